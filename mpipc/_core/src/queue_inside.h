/* What sending and receiving have in common. Small, and on the way of each message: hence inline. */
#ifndef MPIPC_QUEUE_INSIDE_H
#define MPIPC_QUEUE_INSIDE_H

#include "lock.h"
#include "queue.h"

#define MP_DOUBTS (MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR)

/* Taking so many messages without sleeping makes a receiver put out a token; if it was for nothing, twice as many the next time,
 * up to the limit. */
#define MP_SHORTEST_STREAK 8u

static inline uint32_t mp_token_generation(uint32_t token) { return token >> 16; }

int mp_queue_ask(struct mp_queue_view *v);
int mp_queue_send_token(struct mp_queue_view *v);
int mp_queue_entered(struct mp_queue_view *v);
int mp_queue_leave_word(struct mp_queue_view *v);
int64_t mp_queue_count(struct mp_queue_view *v);
int mp_queue_take_locked(struct mp_queue_view *v, struct mp_item *item);
int mp_queue_take_of_shut(struct mp_queue_view *v, struct mp_item *item);

static inline bool mp_queue_is_dropped(struct mp_queue_view *v) { return atomic_load(&v->q->token) & MP_TOKEN_DROP; }

/* For senders: MP_OK, MP_SHUT_DOWN, or as mp_queue_ask(), but that is not asked twice in one tick of the clock. */
static inline int mp_queue_takes_more(struct mp_queue_view *v) {
    uint32_t token = atomic_load_explicit(&v->q->token, memory_order_relaxed);
    if (token & (MP_TOKEN_GONE | MP_TOKEN_SHUT))
        return token & MP_TOKEN_SHUT ? MP_SHUT_DOWN : MP_REMOVED;
    int64_t tick = mp_coarse_ns();
    if (atomic_load_explicit(&v->asked, memory_order_relaxed) == tick)
        return MP_OK;
    atomic_store_explicit(&v->asked, tick, memory_order_relaxed);
    return mp_queue_ask(v);
}

/* The order matters to those without the lock: who finds nothing posted any more has to find it spilled. */
static inline bool mp_queue_nothing_waits(struct mp_queue_view *v) {
    return !mp_is_posted(atomic_load(mp_posted(v->b))) && atomic_load(&v->q->spilled) == 0;
}

/* Keeps the invariant; who sleeps at a queue that was shut down has to be woken, too. If even the token does not fit (somebody
 * lowered msg_qbytes), those who receive what is in the way will see that there is no token. MP_OK; MP_DENIED, MP_GUESTS: this
 * process cannot tell anybody any more of what waits. */
static inline int mp_queue_ensure_token(struct mp_queue_view *v) {
    uint32_t token = atomic_load(&v->q->token);
    if (token & MP_TOKEN_OUT || (!(token & MP_TOKEN_SHUT) && mp_queue_nothing_waits(v)))
        return MP_OK;
    atomic_fetch_or(&v->q->token, MP_TOKEN_OUT);
    int error = mp_queue_send_token(v);
    if (error != MP_OK)
        atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_OUT);
    return error == MP_DENIED || error == MP_GUESTS ? error : MP_OK;
}

/* The lock, if it can be had at once and there is nothing else to be done. For callers who hold the GIL. */
static inline bool mp_queue_try_lock(struct mp_queue_view *v) {
    if (!mp_lock_try(v->f, v->b, 0))
        return false;
    bool died = atomic_load_explicit(&v->q->lock.word, memory_order_relaxed) & MP_LOCK_DIED;
    if (!died && !(atomic_load_explicit(&v->q->token, memory_order_relaxed) & MP_DOUBTS) &&
        !mp_is_posted(atomic_load_explicit(mp_posted(v->b), memory_order_relaxed)))
        return true;
    if (died)
        atomic_fetch_or(&v->q->token, MP_DOUBTS); /* a release clears DIED */
    mp_queue_unlock(v);
    return false;
}

#endif

/* Receiving: in which order messages come. The protocol stands at the head of queue.c. */
#include "queue.h"

#include "access.h"
#include "pieces.h"
#include "queue_inside.h"
#include "rooms.h"
#include "spill.h"

#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>

/* See MP_SHORTEST_STREAK. */
#define LONGEST_STREAK 4096u
#define WORTHWHILE_STREAK 64u

/* How long a receiver looks at an empty spill before it goes to sleep: about as long as going to sleep and waking takes. */
#define LINGER_NS 20000

static bool is_token(long type) { return type < MP_TYPE_LEVEL; }

/* As received by msgrcv(2). */
static void forget_token(struct mp_queue_view *v, long type) {
    uint32_t token = atomic_load(&v->q->token);
    while (type - MP_TYPE_TOKEN == mp_token_generation(token) &&
           !atomic_compare_exchange_strong(&v->q->token, &token, token & ~(uint32_t)(MP_TOKEN_OUT | MP_TOKEN_DRY)))
        ;
}

/* By one who has it in his hand, and does not get the lock, or does not want it any more. */
void mp_queue_return_token(struct mp_queue_view *v, struct mp_item *item) {
    if (item->token == 0)
        return;
    forget_token(v, item->token);
    item->token = 0;
    mp_queue_leave_word(v);
}

/* One byte more than we send, so that what is longer shows; it is cut off, and does not stay in everybody's way. */
static ssize_t receive(struct mp_queue_view *v, struct mp_item *item, long selector, int flags) {
    return MP_ALLOWED(v->f, msgrcv(v->id, &item->message, MP_BODY_SIZE + 1, selector, flags | MSG_NOERROR));
}

/* What was received, and is no token. Anybody may send to the kernel queue. */
static int inline_message(struct mp_queue_view *v, struct mp_item *item, ssize_t n) {
    uint64_t level = (uint64_t)(item->message.type - MP_TYPE_LEVEL);
    if (n < 1 || n > (ssize_t)MP_BODY_SIZE || level >= mp_queue_levels(v) ||
        (item->message.kind != MP_BODY_INLINE && item->message.kind != MP_BODY_PLAIN))
        return MP_CORRUPT;
    item->data = item->message.data;
    item->size = (uint64_t)n - 1;
    return MP_OK;
}

/* What msgrcv(2) says when it has received nothing. */
static int nothing_received(int number) {
    return number == ENOMSG ? MP_EMPTY : number == EINTR ? MP_INTERRUPTED : mp_error(number);
}

/* msgrcv(2) for those who have the lock: ENOMSG, or the message's size. If a token is out they leave it to those without. */
static ssize_t receive_locked(struct mp_queue_view *v, struct mp_item *item, long selector) {
    uint32_t token = atomic_load(&v->q->token);
    if (v->flags & MP_QUEUE_PRIORITY || !(token & MP_TOKEN_OUT))
        return receive(v, item, selector, IPC_NOWAIT);
    if (token & MP_TOKEN_DRY) {
        errno = ENOMSG;
        return -1;
    }
    atomic_fetch_or(&v->q->token, MP_TOKEN_DRY);
    ssize_t n = receive(v, item, MP_TYPE_LEVEL, IPC_NOWAIT);
    if (n >= 0 || errno != ENOMSG) /* removed: with messages that come before those in the spill, perhaps */
        atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_DRY);
    return n;
}

/* The next message of all, or MP_EMPTY. Each look into a lane follows a look into the kernel queue for what comes before it: a
 * lane that turns out to be empty is no reason to go on to the next one. */
int mp_queue_take_locked(struct mp_queue_view *v, struct mp_item *item) {
    for (;;) {
        int64_t level = mp_spill_first_level(v);
        if (level < 0 && errno != 0)
            return errno;
        if (level < 0 && atomic_load(&v->q->spilled) != 0)
            atomic_store(&v->q->spilled, 0); /* it was changed by somebody who should not have */
        long selector = v->flags & MP_QUEUE_PRIORITY && level >= 0 ? -(MP_TYPE_LEVEL + level) : v->selector;
        ssize_t n = receive_locked(v, item, selector);
        if (n < 0 && (errno != ENOMSG || level < 0))
            return nothing_received(errno);
        if (n < 0) {
            int error = mp_spill_pop(v, (uint32_t)level, item);
            if (error == MP_EMPTY)
                continue;
            item->level = level;
            return error;
        }
        if (!is_token(item->message.type)) {
            item->level = -1;
            return inline_message(v, item, n);
        }
        forget_token(v, item->message.type);
    }
}

/* The same; MP_SHUT_DOWN, also MP_TICK: see mp_queue_take_of_shut(). */
static int take_next(struct mp_queue_view *v, struct mp_item *item) {
    return __builtin_expect(mp_queue_is_shut(v), 0) ? mp_queue_take_of_shut(v, item) : mp_queue_take_locked(v, item);
}

/* What is due when a message has been taken: the putters' ring, and a token if it could not be sent. */
static void taken(struct mp_queue_view *v) {
    if (!mp_queue_nothing_waits(v) && !(atomic_load(&v->q->token) & MP_TOKEN_OUT))
        mp_queue_leave_word(v);
    mp_room_ring(v->f, &v->q->putters, false);
}

static int received(struct mp_queue_view *v, struct mp_item *item, ssize_t n) {
    item->token = is_token(item->message.type) ? item->message.type : 0;
    if (item->token != 0)
        return MP_BUSY;
    int error = inline_message(v, item, n);
    taken(v);
    return error;
}

#define RELAXED_LOAD(place) atomic_load_explicit(&(place), memory_order_relaxed)
#define RELAXED_STORE(place, value) atomic_store_explicit(&(place), value, memory_order_relaxed)

/* For statistics of one's own: that of two threads one is lost does no harm. */
static uint32_t lengthen_streak(struct mp_queue_view *v) {
    uint32_t streak = RELAXED_LOAD(v->streak) + 1;
    RELAXED_STORE(v->streak, streak);
    return streak;
}

/* Puts out a token, although there is nothing in the spill: from now on messages go there. */
static void end_streak(struct mp_queue_view *v) {
    uint32_t patience = RELAXED_LOAD(v->patience);
    RELAXED_STORE(v->streak, 0);
    RELAXED_STORE(v->patience, patience < LONGEST_STREAK ? patience * 2 : LONGEST_STREAK);
    if (v->flags & MP_QUEUE_PRIORITY || !mp_queue_try_lock(v))
        return;
    if (!(atomic_load(&v->q->token) & MP_TOKEN_OUT)) {
        atomic_fetch_or(&v->q->token, MP_TOKEN_OUT);
        if (mp_queue_send_token(v) != MP_OK)
            atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_OUT);
    }
    mp_queue_unlock(v);
}

/* Without the lock: what to tell who has looked for a message, and perhaps not into the kernel queue. */
static int found_nothing(struct mp_queue_view *v, int error) {
    return error == MP_EMPTY && atomic_load(&v->q->token) & MP_TOKEN_DRY && mp_queue_ask(v) == MP_REMOVED ? MP_REMOVED : error;
}

/* Of a counted queue, with the lock: what was dropped need not be done by anybody. true: the joiners are to be rung for. */
static bool dropped(struct mp_queue_view *v, int error) {
    if (error != MP_CORRUPT || !(v->flags & MP_QUEUE_COUNTED) || mp_queue_count(v) + atomic_load(&v->q->pending) > 0)
        return false;
    atomic_fetch_add(&v->q->zeros, 1);
    return true;
}

static int take_and_unlock(struct mp_queue_view *v, struct mp_item *item) {
    if (item->token != 0)
        forget_token(v, item->token);
    item->token = 0;
    int error = take_next(v, item);
    if (error == MP_OK && v->flags & MP_QUEUE_COUNTED)
        atomic_fetch_add(&v->q->pending, 1);
    bool all_done = dropped(v, error);
    mp_queue_ensure_token(v);
    mp_queue_unlock(v);
    if (all_done)
        mp_room_ring(v->f, mp_joiners(v->b), true);
    if (error == MP_OK)
        lengthen_streak(v);
    if (error == MP_OK || error == MP_CORRUPT)
        mp_room_ring(v->f, &v->q->putters, false);
    return found_nothing(v, error);
}

/* As mp_queue_take(), if that waits for nobody: MP_BUSY: call mp_queue_take() with this item, there may be a message. */
int mp_queue_try_take(struct mp_queue_view *v, struct mp_item *item) {
    item->token = 0;
    if (v->flags & MP_QUEUE_COUNTED || !mp_queue_nothing_waits(v) ||
        atomic_load(&v->q->token) & (MP_TOKEN_OUT | MP_TOKEN_SHUT)) {
        int error = mp_queue_try_lock(v) ? take_and_unlock(v, item) : MP_BUSY;
        return error == MP_TICK ? MP_BUSY : error;
    }
    ssize_t n = receive(v, item, v->selector, IPC_NOWAIT);
    if (n < 0 && errno == ENOMSG)
        return mp_queue_nothing_waits(v) ? MP_EMPTY : MP_BUSY;
    if (n < 0)
        return nothing_received(errno);
    int error = received(v, item, n);
    if (error == MP_OK && lengthen_streak(v) >= RELAXED_LOAD(v->patience))
        end_streak(v);
    return error;
}

/* Takes the next message without waiting for one, but for the lock until the deadline. MP_OK; MP_EMPTY: there is none;
 * MP_CORRUPT: there was one that is none, and is gone now; MP_TIMED_OUT, MP_TICK, MP_INTERRUPTED; MP_SHUT_DOWN: there is none, and
 * never will be; MP_REMOVED, or an error: then nothing was taken. item->token is the token in our hand, or 0; afterwards there is
 * none. If item->message.kind then is MP_BODY_PIECE, the caller frees item->piece. */
int mp_queue_take(struct mp_queue_view *v, struct mp_item *item, int64_t deadline_ns) {
    int outcome = mp_queue_lock(v, deadline_ns);
    if (outcome == MP_OK)
        return take_and_unlock(v, item);
    mp_queue_return_token(v, item);
    return mp_queue_is_dropped(v) ? MP_SHUT_DOWN : outcome;
}

/* As mp_queue_take(), up to `most` of them; *count may be more than 0 also if the outcome is MP_CORRUPT. Once the kernel queue has
 * nothing that precedes a lane, the lane holds no message that one in the kernel queue has to precede, for as long as we have the
 * lock: who would put the later one waits for it. */
int mp_queue_take_many(struct mp_queue_view *v, struct mp_item *items, uint32_t most, uint32_t *count, int64_t deadline_ns) {
    *count = 0;
    int error = mp_queue_lock(v, deadline_ns);
    if (error != MP_OK)
        return mp_queue_is_dropped(v) ? MP_SHUT_DOWN : error;
    error = take_next(v, items);
    while (error == MP_OK && ++*count < most) {
        struct mp_item *item = &items[*count];
        int64_t level = items[*count - 1].level;
        error = level < 0 ? MP_EMPTY : mp_spill_pop(v, (uint32_t)level, item);
        item->level = level;
        if (error == MP_EMPTY)
            error = mp_queue_take_locked(v, item);
    }
    if (v->flags & MP_QUEUE_COUNTED)
        atomic_fetch_add(&v->q->pending, *count);
    bool all_done = dropped(v, error);
    mp_queue_ensure_token(v);
    mp_queue_unlock(v);
    if (all_done)
        mp_room_ring(v->f, mp_joiners(v->b), true);
    if (*count == 0 && error != MP_CORRUPT)
        return found_nothing(v, error);
    mp_room_ring(v->f, &v->q->putters, true);
    return error == MP_CORRUPT ? error : MP_OK;
}

/* While a token is out somebody is likely to send through the spill before long. false: it is empty, and may be for long. */
static bool linger(struct mp_queue_view *v) {
    int64_t end = 0;
    for (int looks = 0; atomic_load(&v->q->token) & MP_TOKEN_OUT; looks++) {
        if (atomic_load(&v->q->spilled) != 0 || mp_queue_is_shut(v))
            return true;
        if (looks % 16 == 15) {
            int64_t now = mp_now_ns();
            if (end == 0)
                end = now + LINGER_NS;
            else if (now > end)
                break;
            sched_yield();
        }
        mp_pause();
    }
    return false;
}

/* Sleeps in msgrcv(2). As mp_queue_take() without a deadline; MP_EMPTY here means: sleep again. Not for counted queues. */
int mp_queue_await(struct mp_queue_view *v, struct mp_item *item) {
    item->token = 0;
    if (linger(v))
        return mp_queue_take(v, item, -1);
    if (RELAXED_LOAD(v->streak) > WORTHWHILE_STREAK)
        RELAXED_STORE(v->patience, MP_SHORTEST_STREAK);
    RELAXED_STORE(v->streak, 0);
    struct mp_wait *wait = mp_wait_enter(v->f, MP_WAIT_MESSAGE, v->index);
    ssize_t n = receive(v, item, v->selector, 0);
    int error = n < 0 ? nothing_received(errno) : MP_OK;
    mp_wait_leave(wait, error == MP_INTERRUPTED);
    if (error == MP_OK)
        error = received(v, item, n);
    return error == MP_BUSY ? mp_queue_take(v, item, -1) : error;
}

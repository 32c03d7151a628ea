/* Sending: which way a message goes. The protocol stands at the head of queue.c. */
#include "queue.h"

#include "access.h"
#include "pieces.h"
#include "queue_inside.h"
#include "rooms.h"
#include "spill.h"

#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>

/* See queue.c. */
#ifndef MP_POST_AFTER_NS
#define MP_POST_AFTER_NS 2000000ll
#endif

/* MP_OK; MP_FULL: it has to go another way. kernel.msgmax may be less than we would send. */
static int send_to_kernel(struct mp_queue_view *v, struct mp_message *m, uint32_t length) {
    if (MP_ALLOWED(v->f, msgsnd(v->id, m, 1 + length, IPC_NOWAIT)) < 0) {
        if (errno == EAGAIN)
            return MP_FULL;
        if (errno != EINVAL)
            return mp_error(errno);
        if (mp_queue_ask(v) == MP_REMOVED)
            return MP_REMOVED;
        atomic_store_explicit(&v->longest, length, memory_order_relaxed);
        return MP_FULL;
    }
    if (atomic_load(&v->q->token) & MP_TOKEN_DRY)
        atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_DRY);
    return MP_OK;
}

/* Is the kernel queue the way for the next message? */
static bool by_kernel(struct mp_queue_view *v, const struct mp_message *m, uint32_t length) {
    return m->kind != MP_BODY_PIECE && mp_queue_nothing_waits(v) && !(atomic_load(&v->q->token) & v->barred) &&
           1 + length <= atomic_load_explicit(&v->longest, memory_order_relaxed);
}

/* The spill needs a segment, and no more can be had (kernel.shmmni, kernel.shmall, memory). A token is no reason not to send by the
 * kernel queue, only a sign that the spill is faster; what waits there is one. Returns `error` if it cannot be sent so, either. */
static int without_spill(struct mp_queue_view *v, struct mp_message *m, uint32_t length, int error) {
    if ((error != MP_LIMIT && error != MP_NO_MEMORY) || m->kind == MP_BODY_PIECE || !mp_queue_nothing_waits(v) ||
        1 + length > atomic_load_explicit(&v->longest, memory_order_relaxed))
        return error;
    int outcome = send_to_kernel(v, m, length);
    return outcome == MP_FULL ? error : outcome;
}

static int append(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    int error = mp_access_still(v->f);
    if (error == MP_OK)
        error = mp_spill_append(v, m, length, level);
    return error == MP_OK ? error : without_spill(v, m, length, error);
}

static int send_locked(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    int error = by_kernel(v, m, length) ? send_to_kernel(v, m, length) : MP_FULL;
    if (error == MP_FULL) {
        error = append(v, m, length, level);
        int told = mp_queue_ensure_token(v);
        error = error == MP_OK ? told : error; /* it has been sent, perhaps: who wakes up for another one finds it */
    }
    return error;
}

/* Room for one more in a bounded queue. The kernel is asked only when what was free at the last time is used up: in between,
 * receivers can but have made more room. */
static int admit(struct mp_queue_view *v) {
    if (v->b->size == 0)
        return MP_OK;
    uint32_t credit = atomic_load_explicit(&v->q->credit, memory_order_relaxed);
    if (credit == 0) {
        int64_t size = mp_queue_count(v);
        if (size < 0)
            return errno;
        if ((uint64_t)size >= v->b->size)
            return MP_FULL;
        uint64_t room = v->b->size - (uint64_t)size;
        credit = room < UINT32_MAX ? (uint32_t)room : UINT32_MAX;
    }
    atomic_store_explicit(&v->q->credit, credit - 1, memory_order_relaxed);
    return MP_OK;
}

static int send_and_unlock(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    int error = mp_queue_takes_more(v);
    if (error == MP_OK)
        error = admit(v);
    if (error == MP_OK)
        error = send_locked(v, m, length, level);
    else if (error == MP_SHUT_DOWN)
        mp_queue_ensure_token(v); /* who has shut it down may not have come to that yet */
    mp_queue_unlock(v);
    if (error == MP_OK)
        mp_room_ring(v->f, &v->q->getters, false);
    return error;
}

/* As mp_queue_send(), if that waits for nobody: MP_BUSY if somebody has the lock. */
int mp_queue_try_send(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    m->type = MP_TYPE_LEVEL + level;
    if (v->b->size == 0 && by_kernel(v, m, length)) {
        int error = send_to_kernel(v, m, length);
        if (error == MP_OK)
            mp_room_ring(v->f, &v->q->getters, false);
        if (error != MP_FULL)
            return error;
    }
    return mp_queue_try_lock(v) ? send_and_unlock(v, m, length, level) : MP_BUSY;
}

static int post(struct mp_queue_view *v, const unsigned char *bodies, uint64_t size, uint32_t count, uint32_t level) {
    int error = mp_queue_takes_more(v);
    if (error == MP_OK)
        error = mp_access_still(v->f);
    if (error == MP_OK)
        error = mp_spill_post(v, bodies, size, count, level);
    if (error == MP_OK)
        error = mp_queue_leave_word(v);
    if (error != MP_OK)
        return error;
    for (uint32_t i = 0; i < count && i < 8; i++)
        mp_room_ring(v->f, &v->q->getters, count > 1);
    return MP_OK;
}

static int post_message(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    union {
        struct mp_body body;
        unsigned char bytes[sizeof(struct mp_body) + MP_BODY_SIZE + 8];
    } record = {.body.length = 1 + length};
    memcpy(record.bytes + offsetof(struct mp_body, body), &m->kind, 1 + length);
    int error = post(v, record.bytes, mp_body_size(1 + length), 1, level);
    if (error != MP_OK && (error = without_spill(v, m, length, error)) == MP_OK)
        mp_room_ring(v->f, &v->q->getters, false);
    return error;
}

/* As post(). Returns how many were sent. */
static uint64_t post_many(struct mp_queue_view *v, const unsigned char *bodies, uint64_t count, uint32_t level, int *outcome) {
    uint64_t size = 0, sent = 0;
    for (uint64_t i = 0; i < count; i++)
        size += mp_body_size(((const struct mp_body *)(bodies + size))->length);
    int error = post(v, bodies, size, (uint32_t)count, level);
    *outcome = error;
    if (error == MP_OK)
        return count;
    struct mp_message m = {.type = MP_TYPE_LEVEL + level};
    for (; sent < count; sent++) {
        const struct mp_body *body = (const struct mp_body *)bodies;
        memcpy(&m.kind, body->body, body->length);
        if ((*outcome = without_spill(v, &m, body->length - 1, error)) != MP_OK)
            break;
        mp_room_ring(v->f, &v->q->getters, false);
        bodies += mp_body_size(body->length);
    }
    return sent;
}

/* Does the lock's owner keep us from sending for longer than a sender to a queue without a limit should wait? */
static int64_t lock_deadline(struct mp_queue_view *v, int64_t deadline_ns) {
    return v->b->size == 0 ? mp_now_ns() + MP_POST_AFTER_NS : deadline_ns;
}
static bool should_post(struct mp_queue_view *v, int outcome) {
    return v->b->size == 0 && (outcome == MP_TIMED_OUT || outcome == MP_INTERRUPTED || outcome == MP_TICK);
}

/* Never waits for room, and if the queue is bounded, for the lock until the deadline. MP_OK; MP_FULL; of a bounded queue
 * MP_TIMED_OUT, MP_TICK and MP_INTERRUPTED; MP_SHUT_DOWN, MP_REMOVED, or an error: then nothing was sent. */
int mp_queue_send(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level, int64_t deadline_ns) {
    m->type = MP_TYPE_LEVEL + level;
    if (mp_queue_is_shut(v))
        return MP_SHUT_DOWN;
    int outcome = mp_queue_lock(v, lock_deadline(v, deadline_ns));
    if (outcome == MP_OK)
        return send_and_unlock(v, m, length, level);
    return should_post(v, outcome) ? post_message(v, m, length, level) : outcome;
}

/* Several messages at once: into the spill, where one lock and one token do for all. Returns how many were sent; fewer than
 * `count`: *outcome says why, as mp_queue_send() does. The bodies follow each other as struct mp_body. */
uint64_t mp_queue_send_many(struct mp_queue_view *v, const unsigned char *bodies, uint64_t count, uint32_t level,
                            int64_t deadline_ns, int *outcome) {
    uint64_t sent = 0;
    if (mp_queue_is_shut(v)) {
        *outcome = MP_SHUT_DOWN;
        return 0;
    }
    if ((*outcome = mp_queue_lock(v, lock_deadline(v, deadline_ns))) != MP_OK)
        return should_post(v, *outcome) ? post_many(v, bodies, count, level, outcome) : 0;
    struct mp_message m = {.type = MP_TYPE_LEVEL + level};
    *outcome = mp_queue_takes_more(v);
    for (; *outcome == MP_OK && sent < count; sent++) {
        const struct mp_body *body = (const struct mp_body *)bodies;
        if ((*outcome = admit(v)) != MP_OK)
            break;
        memcpy(&m.kind, body->body, body->length);
        uint32_t length = body->length - 1;
        *outcome = count == 1 ? send_locked(v, &m, length, level) : append(v, &m, length, level);
        if (*outcome != MP_OK)
            break;
        bodies += mp_body_size(body->length);
    }
    int told = mp_queue_ensure_token(v);
    *outcome = *outcome == MP_OK ? told : *outcome;
    mp_queue_unlock(v);
    for (uint64_t i = 0; i < sent && i < 8; i++)
        mp_room_ring(v->f, &v->q->getters, sent > 1);
    return sent;
}

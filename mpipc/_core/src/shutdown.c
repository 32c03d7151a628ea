/* Shutting a queue down: nothing is put any more, and who waits for a message that will not come is told so.
 *
 * The queue is shut down by one store: the flag SHUT in the token's word, and DROP with it if what is in the queue is to be
 * dropped. All else follows from these two, is done by whoever meets them, and can be done again:
 *
 *   senders look at SHUT when they look at the token, with or without the lock, and once more with the lock;
 *   a receiver that has the lock and finds nothing closes the two ways by which a sender that has not seen SHUT may still come
 *     without the lock, and looks once more. What it does not find then does not exist. It tells that (MP_SHUT_DOWN), and nothing
 *     is put after it:
 *       the kernel queue may hold one byte from then on (msg_qbytes), which is less than any message has. A token fits, if it
 *         is the only one. The kernel does either the sender's msgsnd(2) or this first;
 *       the stack of what is posted has MP_POSTED_SHUT on top, by the compare-and-swap that finds it empty;
 *   with DROP, what is in the queue does not count from the store on. Whoever has the lock closes both ways, takes it out and
 *     gives it back, so many at a time;
 *   who sleeps in msgrcv(2) is woken by a token: one is out from now on, always (mp_queue_ensure_token), and each one that it
 *     wakes sends it again. Who waits in a room is rung for.
 *
 * A process that dies after the store has left undone at most that somebody is woken: recovery sends a token, and rings
 * (mp_queue_heal). */
#include "access.h"
#include "jobs.h"
#include "queue_inside.h"
#include "rooms.h"
#include "pieces.h"
#include "slots.h"
#include "spill.h"

#include <sys/ipc.h>
#include <sys/msg.h>

#define DROPPED_AT_ONCE 256 /* messages, with the lock held */
#define COLLECTED_AT_ONCE 64 /* times: senders who have not seen SHUT yet are few */

/* The kernel queue takes no message any more; nor is it known to have none. */
static int bar_kernel(struct mp_queue_view *v) {
    struct msqid_ds ds;
    if (MP_ALLOWED(v->f, msgctl(v->id, IPC_STAT, &ds)) < 0)
        return mp_error(errno);
    if (ds.msg_qbytes != 1) {
        ds.msg_qbytes = 1;
        if (MP_ALLOWED(v->f, msgctl(v->id, IPC_SET, &ds)) < 0)
            return mp_error(errno);
    }
    atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_DRY);
    return MP_OK;
}

static bool is_barred(struct mp_queue_view *v) { return atomic_load(mp_posted(v->b)) == MP_POSTED_SHUT; }

/* With the lock. Not MP_OK: at least one way is open, and somebody else will have to close it. MP_TICK: call again. */
static int bar(struct mp_queue_view *v) {
    if (is_barred(v))
        return MP_OK;
    int error = bar_kernel(v);
    for (int i = 0; error == MP_OK && i < COLLECTED_AT_ONCE; i++) {
        uint64_t top = 0;
        if (atomic_compare_exchange_strong(mp_posted(v->b), &top, MP_POSTED_SHUT) || top == MP_POSTED_SHUT)
            return MP_OK;
        error = mp_spill_collect(v);
    }
    return error == MP_OK ? MP_TICK : error;
}

/* MP_SHUT_DOWN: nothing is there any more. MP_TICK: call again. */
static int drop_some(struct mp_queue_view *v, struct mp_item *item) {
    int error = bar(v);
    bool carried = false;
    for (int i = 0; error == MP_OK && i < DROPPED_AT_ONCE; i++) {
        error = mp_queue_take_locked(v, item);
        if (error == MP_OK && item->message.kind == MP_BODY_PIECE) {
            mp_piece_free(v, &item->piece);
            carried |= item->piece.carrier != 0;
        }
        if (error == MP_CORRUPT) /* as good as dropped */
            error = MP_OK;
    }
    if (error == MP_EMPTY && v->flags & MP_QUEUE_WORK)
        carried |= mp_job_drop_returned(v);
    if (carried)
        mp_family_wake_reaper(v->f); /* what these messages held, it drops: carriers.c */
    return error == MP_OK ? MP_TICK : error == MP_EMPTY ? MP_SHUT_DOWN : error;
}

/* With the lock of a queue that was shut down: as mp_queue_take_locked(), but MP_SHUT_DOWN instead of MP_EMPTY, and MP_TICK: let
 * others have the lock, and call again. */
int mp_queue_take_of_shut(struct mp_queue_view *v, struct mp_item *item) {
    if (mp_queue_is_dropped(v))
        return drop_some(v, item);
    bool barred = is_barred(v); /* before it looks */
    int error = mp_queue_take_locked(v, item);
    if (error == MP_EMPTY && !barred && (error = bar(v)) == MP_OK)
        error = mp_queue_take_locked(v, item);
    return error == MP_EMPTY ? MP_SHUT_DOWN : error;
}

/* From now on nothing is put; `immediate`: and what is in the queue is dropped. Can be called again, and for more. Waits for nobody
 * but, if something is to be given back, for the lock until the deadline. MP_OK; MP_TIMED_OUT, MP_TICK, MP_INTERRUPTED: it is shut
 * down, but something may have to be given back yet; or an error, as which it is shut down, too. */
int mp_queue_shutdown(struct mp_queue_view *v, bool immediate, int64_t deadline_ns) {
    struct mp_item item = {.token = 0};
    atomic_fetch_or(&v->q->token, immediate ? MP_TOKEN_SHUT | MP_TOKEN_DROP : MP_TOKEN_SHUT);
    int error = mp_queue_leave_word(v);
    mp_room_ring(v->f, &v->q->getters, true);
    mp_room_ring(v->f, &v->q->putters, true);
    if (immediate)
        mp_room_ring(v->f, mp_joiners(v->b), true);
    if (error != MP_OK || !immediate)
        return error;
    error = mp_queue_lock(v, deadline_ns);
    if (error != MP_OK)
        return error;
    error = drop_some(v, &item);
    mp_queue_ensure_token(v);
    mp_queue_unlock(v);
    return error == MP_SHUT_DOWN ? MP_OK : error;
}

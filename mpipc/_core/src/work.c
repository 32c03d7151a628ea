/* A queue of jobs: taking, acknowledging, giving back, and when all is done. What becomes of a job stands in jobs.c; how it is sent,
 * and in which order those come that were never taken, is as in every queue, but that all of them go through the spill, as
 * descriptors do. Nobody sleeps in msgrcv(2) here: takers wait in the room `getters`, where they are rung for what came back, too.
 *
 * Who has the lock takes what was given back before what was not taken yet. That there may be something, the token's word says
 * (BACK), so that the pieces are looked through only then. */
#include "work.h"

#include "carriers.h"
#include "queue_inside.h"
#include "rooms.h"
#include "spill.h"

#include <sched.h>

#define LINGER_NS 20000

/* Of a queue that was shut down nobody is told the end while somebody has a job that may come back. */
static bool some_may_come_back(struct mp_queue_view *v) { return !mp_queue_is_dropped(v) && mp_job_count(v, true, true) != 0; }

static int take_next(struct mp_queue_view *v, uint32_t least, struct mp_item *item) {
    int error = mp_queue_is_dropped(v) ? MP_EMPTY : mp_job_take_returned(v, least, item);
    if (error == MP_EMPTY && least == 0) {
        error = mp_queue_is_shut(v) ? mp_queue_take_of_shut(v, item) : mp_queue_take_locked(v, item);
        if (error == MP_SHUT_DOWN && some_may_come_back(v))
            error = MP_EMPTY;
    }
    return error == MP_OK ? mp_job_open(v, item) : error;
}

static int take_and_unlock(struct mp_queue_view *v, uint32_t least, struct mp_item *item) {
    int error = take_next(v, least, item);
    mp_queue_ensure_token(v);
    mp_queue_unlock(v);
    if (error == MP_OK || error == MP_CORRUPT)
        mp_room_ring(v->f, &v->q->putters, false);
    return error == MP_EMPTY && mp_queue_ask(v) == MP_REMOVED ? MP_REMOVED : error;
}

/* As mp_work_take(), if that waits for nobody: MP_BUSY. */
int mp_work_try_take(struct mp_queue_view *v, struct mp_item *item) {
    int error = mp_queue_try_lock(v) ? take_and_unlock(v, 0, item) : MP_BUSY;
    return error == MP_TICK ? MP_BUSY : error;
}

/* As mp_queue_take(): the next job, which is ours until it is acknowledged or given back. With `least`, only one that was given back
 * and has been taken so often before. */
int mp_work_take(struct mp_queue_view *v, struct mp_item *item, uint32_t least, int64_t deadline_ns) {
    int error = mp_queue_lock(v, deadline_ns);
    if (error != MP_OK)
        return mp_queue_is_dropped(v) ? MP_SHUT_DOWN : error;
    return take_and_unlock(v, least, item);
}

/* Whether there may be one before long: as linger() in receive.c, and for the same time. */
bool mp_work_linger(struct mp_queue_view *v) {
    int64_t end = mp_now_ns() + LINGER_NS;
    for (int looks = 0; !(atomic_load(&v->q->token) & (MP_TOKEN_BACK | MP_TOKEN_SHUT)); looks++) {
        if (atomic_load(&v->q->spilled) != 0)
            return true;
        if (looks % 16 == 15) {
            if (mp_now_ns() > end)
                return false;
            sched_yield();
        }
        mp_pause();
    }
    return true;
}

/* After a job has come to its end, or to what counts as such. Joiners need not look while others are queued, which have to come to
 * their ends first. */
static void tell_of_the_end(struct mp_queue_view *v) {
    if (mp_queue_nothing_waits(v) || mp_queue_is_dropped(v))
        mp_room_ring(v->f, mp_joiners(v->b), true);
    if (mp_queue_is_shut(v))
        mp_room_ring(v->f, &v->q->getters, true);
}

/* With the GIL. false: this process does not have it (any more). */
bool mp_work_acknowledge(struct mp_queue_view *v, const struct mp_piece *piece) {
    if (!mp_job_accept(v, piece))
        return false;
    mp_message_end(v, piece);
    tell_of_the_end(v);
    return true;
}

/* The same. What a queue has that was shut down at once is dropped. */
bool mp_work_give_back(struct mp_queue_view *v, const struct mp_piece *piece) {
    if (mp_queue_is_dropped(v))
        return mp_work_acknowledge(v, piece);
    if (!mp_job_return(v, piece))
        return false;
    mp_room_ring(v->f, &v->q->getters, mp_queue_is_shut(v));
    if (mp_queue_is_dropped(v))
        tell_of_the_end(v);
    return true;
}

/* Jobs that were put and are not acknowledged, as mp_queue_unfinished() counts tasks. With the lock nobody takes any: one that is
 * given back meanwhile is seen before that, or after. */
int64_t mp_work_unfinished(struct mp_queue_view *v, int64_t deadline_ns) {
    if ((errno = mp_queue_lock(v, deadline_ns)) != MP_OK)
        return MP_FAILED;
    bool dropped = mp_queue_is_dropped(v);
    int64_t count = mp_job_count(v, true, !dropped);
    if (!dropped) {
        count += mp_is_posted(atomic_load(mp_posted(v->b))) ? (int64_t)mp_spill_posted(v) : 0;
        count += atomic_load(&v->q->spilled);
    }
    mp_queue_unlock(v);
    return count;
}

/* Queues: what sending and receiving rest on.
 *
 * A message goes into the kernel queue if it is small and there is room, else into the spill; while there is anything in the
 * spill, everything goes there. So the next message is the first one in the kernel queue, and only if there is none, the first one
 * in the spill: that is looked at with the lock held, and keeps the order of each sender (between two levels, the lower one
 * comes first, wherever it is).
 *
 * A receiver may sleep in msgrcv(2), where nobody can tell it to look into the spill. Hence the token, a message without a
 * body: who receives it takes the lock and looks. Invariant, whenever nobody holds the lock:
 *
 *   if there is anything in the spill, a token is in the kernel queue or in the hand of a living receiver, or recovery is
 *   about to run for a dead one. So it is, always, when the queue was shut down (shutdown.c).
 *
 * A token that is in the kernel queue says more: nobody sleeps there, or he would have it. Then there is nobody to be woken, and
 * sending through the spill takes no system call at all, nor does taking from it. So while a token is out, all messages of a
 * queue without priorities go through the spill, and whoever has received a few without having to sleep puts one out for that
 * purpose alone. It ends when somebody goes to sleep, for he takes the token first. The order needs care, because senders
 * look without the lock whether a token is out: one may have seen none, and send into the kernel queue what its later messages,
 * in the spill, must not overtake. Hence the flag DRY, without which receivers look into the kernel queue first:
 *
 *   a receiver sets it before it looks, with the lock held, and clears it again if it finds a message;
 *   a sender clears it after it has sent into the kernel queue, and before it returns.
 *
 * If the receiver's look misses a message then the sender clears DRY after that, and in any case before the sender's next message.
 *
 * Where a process can die:
 *   after msgsnd(2), before it clears DRY: nobody has to wait for a later message of it, and recovery, by SUSPECT, has the lock's
 *     next owner clear it;
 *   before msgsnd(2), or before its message is counted in the spill: nothing was sent;
 *   after it, before it rings: recovery rings (rooms.c);
 *   with a token in its hand: recovery sends a new one, SUSPECT, because the old one may still be in the queue; whoever takes
 *     the lock next makes it exact again;
 *   with the lock: the lock says so (DIED), and the next one who takes it repairs the spill;
 *   with a message in its hand: it is lost with the process, and with nobody else.
 *
 * Nothing is ever moved from the spill to the kernel queue, so there is no moment in which a message is in both, or none.
 *
 * The lock's owner may not run for a long time: stopped by SIGSTOP, in a debugger, throttled. Then
 *   a receiver waits for the lock as long as it would wait for a message, and a bounded queue's sender as for room; signal handlers
 *     run meanwhile. Calls that wait for nothing wait PATIENCE_NS for the lock, for it is seldom held longer, and then find the queue
 *     empty, or full;
 *   a sender to a queue without a limit waits POST_AFTER_NS, and then posts the message (spill.c): it is in the queue, behind what
 *     this process has sent before, and survives it. While anything is posted nothing goes into the kernel queue, which it might
 *     overtake;
 *   nobody who has something in his hand waits for the lock: with a message not at all, with a token for a tick at most. He leaves
 *     word: LOOK, in the lock's word, by a compare-and-swap against an owner. The owner cannot release the lock before he has looked, that is, has put into their
 *     lanes what was posted and has put out a token if one is due. If there is no owner, one becomes it oneself, and looks; and an
 *     owner who dies leaves it to whoever repairs the spill after him.
 * So whenever nobody holds the lock, nothing is posted, or a living sender is about to leave word.
 *
 * Somebody may remove the kernel queue (ipcrm(1)). Who meets the kernel is told so; who does not has to ask: a receiver when it
 * finds nothing, a sender with the first message in each tick of the coarse clock. GONE, which is never cleared, saves the
 * others the question; who dies before it has rung for the waiters leaves them to their own ticks. A message sent in the tick of
 * the removal may still be accepted: it is in the spill, and can be received. */
#include "queue.h"

#include "access.h"
#include "bells.h"
#include "blocks.h"
#include "carriers.h"
#include "jobs.h"
#include "pieces.h"
#include "queue_inside.h"
#include "rooms.h"
#include "slots.h"
#include "space.h"
#include "spill.h"
#include "trim.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>

/* See above. */
#ifndef MP_PATIENCE_NS
#define MP_PATIENCE_NS 100000000ll
#endif

/* ---- making, opening ---------------------------------------------------------------------------------------------------- */

/* Fills the payload of a queue that is being made. */
int mp_queue_make(struct mp_family *f, uint32_t index, uint64_t maxsize, uint32_t flags) {
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue *q = mp_queue_of(b);
    b->size = maxsize;
    b->more.queue.flags = flags;
    atomic_store(&b->watcher, 0);
    int error = mp_room_make(f, index, &q->getters);
    if (error == MP_OK && maxsize != 0)
        error = mp_room_make(f, index, &q->putters);
    if (error == MP_OK && flags & (MP_QUEUE_COUNTED | MP_QUEUE_WORK))
        error = mp_room_make(f, index, mp_joiners(b));
    return error;
}

static void view(struct mp_queue_view *v, struct mp_family *f, uint32_t index) {
    memset(v, 0, sizeof *v);
    v->f = f;
    v->index = index;
    v->b = mp_block_at(f, index);
    v->q = mp_queue_of(v->b);
    v->id = atomic_load(&v->b->id);
    v->flags = (uint32_t)v->b->more.queue.flags;
    atomic_init(&v->patience, MP_SHORTEST_STREAK);
    atomic_init(&v->longest, MP_BODY_SIZE);
    v->selector = v->flags & MP_QUEUE_PRIORITY ? -LONG_MAX : 0;
    v->barred = v->flags & MP_QUEUE_PRIORITY ? MP_TOKEN_SHUT : MP_TOKEN_SHUT | MP_TOKEN_OUT;
}

int mp_queue_open(struct mp_queue_view *v, struct mp_family *f, uint32_t index) {
    view(v, f, index);
    v->segments = calloc(MP_ARENA_SEGMENTS, sizeof *v->segments);
    return v->segments == NULL ? MP_NO_MEMORY : MP_OK;
}

void mp_queue_close(struct mp_queue_view *v) {
    mp_arena_close(v);
    free(v->segments);
    v->segments = NULL;
}

/* For who has the recovery lock, without malloc(3): he may be the reaper, cloned from a program while another thread of that had
 * malloc's lock. */
static void open_for_recovery(struct mp_queue_view *v, struct mp_family *f, uint32_t index) {
    view(v, f, index);
    v->segments = f->stretches;
}

/* ---- was it removed? ------------------------------------------------------------------------------------------------------- */

/* For those who have not met the kernel: MP_OK or MP_REMOVED. */
int mp_queue_ask(struct mp_queue_view *v) {
    struct msqid_ds ds;
    if (atomic_load(&v->q->token) & MP_TOKEN_GONE)
        return MP_REMOVED;
    if (MP_ALLOWED(v->f, msgctl(v->id, IPC_STAT, &ds)) == 0 || mp_error(errno) != MP_REMOVED)
        return MP_OK;
    atomic_fetch_or(&v->q->token, MP_TOKEN_GONE);
    mp_room_ring(v->f, &v->q->getters, true);
    mp_room_ring(v->f, &v->q->putters, true);
    return MP_REMOVED;
}

/* ---- the lock ------------------------------------------------------------------------------------------------------------- */

/* A queue that may hold no byte takes no token either. It is ours, and one byte is granted to everybody. */
static bool grant_a_byte(struct mp_queue_view *v) {
    struct msqid_ds ds;
    if (MP_ALLOWED(v->f, msgctl(v->id, IPC_STAT, &ds)) < 0 || ds.msg_qbytes != 0)
        return false;
    ds.msg_qbytes = 1;
    return MP_ALLOWED(v->f, msgctl(v->id, IPC_SET, &ds)) == 0;
}

int mp_queue_send_token(struct mp_queue_view *v) {
    long type = MP_TYPE_TOKEN + mp_token_generation(atomic_load(&v->q->token));
    if (MP_ALLOWED(v->f, msgsnd(v->id, &type, 0, IPC_NOWAIT)) == 0 ||
        (errno == EAGAIN && grant_a_byte(v) && MP_ALLOWED(v->f, msgsnd(v->id, &type, 0, IPC_NOWAIT)) == 0))
        return MP_OK;
    return errno == EAGAIN ? MP_FULL : mp_error(errno);
}

#define REPAIRS 8 /* in a row, of what is found damaged again by each of them; recovery may ask for one, too */

/* MP_OK; MP_CORRUPT: it was repaired, and something was lost; or an error, and the doubts stay. They are cleared first, since
 * they may come up again meanwhile; if we die, the lock says so. MENDING tells those who count without the lock. */
static int repair(struct mp_queue_view *v) {
    int result = MP_OK;
    for (int i = 0; i < REPAIRS; i++) {
        uint32_t token = atomic_load(&v->q->token), next;
        while (token & MP_DOUBTS &&
               !atomic_compare_exchange_weak(&v->q->token, &token, (token & ~(uint32_t)MP_DOUBTS) | MP_TOKEN_MENDING))
            ;
        if (!(token & MP_DOUBTS))
            break;
        if (token & MP_TOKEN_REPAIR && atomic_load(&v->q->arena) != 0) {
            int error = mp_spill_repair(v);
            if (error != MP_OK && error != MP_CORRUPT) {
                atomic_fetch_or(&v->q->token, MP_DOUBTS);
                atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_MENDING);
                return error;
            }
            result = error != MP_OK ? error : result;
        }
        /* Tokens of any generation in the queue go; those in somebody's hand are recognised by their generation. */
        struct {
            long type;
            char body[8];
        } m;
        token = atomic_load(&v->q->token);
        do {
            while (MP_ALLOWED(v->f, msgrcv(v->id, &m, sizeof m.body, -(MP_TYPE_LEVEL - 1), IPC_NOWAIT | MSG_NOERROR)) >= 0)
                ;
            next = ((mp_token_generation(token) + 1) & 0xffff) << 16 |
                   (token & (MP_TOKEN_ARENA | MP_TOKEN_GONE | MP_TOKEN_SHUT | MP_TOKEN_DROP | MP_TOKEN_BACK | MP_TOKEN_SEEKING |
                             MP_DOUBTS));
        } while (!atomic_compare_exchange_strong(&v->q->token, &token, next));
    }
    atomic_store_explicit(&v->q->credit, 0, memory_order_relaxed);
    mp_queue_ensure_token(v);
    return result;
}

/* Having got the lock: what is to be done before anything else. Not MP_OK: then the lock is not held any more. */
int mp_queue_entered(struct mp_queue_view *v) {
    int result = MP_OK;
    if (atomic_load_explicit(&v->q->lock.word, memory_order_relaxed) & MP_LOCK_DIED)
        atomic_fetch_or(&v->q->token, MP_DOUBTS);
    if (atomic_load_explicit(&v->q->token, memory_order_relaxed) & MP_DOUBTS)
        result = repair(v);
    if ((result == MP_OK || result == MP_CORRUPT) &&
        mp_is_posted(atomic_load_explicit(mp_posted(v->b), memory_order_relaxed))) {
        int error = mp_spill_collect(v);
        mp_queue_ensure_token(v);
        result = error != MP_OK ? error : result;
    }
    if (result != MP_OK)
        mp_queue_unlock(v);
    return result;
}

/* Sections under the lock are short, and run neither Python nor anything that waits, but their process may be stopped. 0;
 * MP_TIMED_OUT, MP_TICK, MP_INTERRUPTED; MP_CORRUPT: something was found damaged, and has been put right now; or an error if what
 * a dead process left cannot be repaired (no memory to look at it). The lock is held only if it is 0. */
int mp_queue_lock(struct mp_queue_view *v, int64_t deadline_ns) {
    for (int spins = 0; !mp_lock_try(v->f, v->b, 0); spins++) {
        if (spins < 64) {
            mp_pause();
            continue;
        }
        int outcome = mp_lock_wait(v->f, v->index, deadline_ns);
        if (outcome != MP_OK)
            return outcome;
        break;
    }
    return mp_queue_entered(v);
}

/* `owner`: who has it, as it stands in the word. */
static inline void unlock_as(struct mp_queue_view *v, uint64_t owner) {
    uint64_t word = owner;
    while (!atomic_compare_exchange_strong(&v->q->lock.word, &word, 0)) {
        if (!(word & MP_LOCK_OWNER))
            return;
        if (!(word & MP_LOCK_LOOK))
            continue;
        atomic_fetch_and(&v->q->lock.word, ~(uint64_t)MP_LOCK_LOOK);
        if (mp_is_posted(atomic_load(mp_posted(v->b))))
            mp_spill_collect(v); /* if it fails, somebody else may be able to: there will be a token */
        mp_queue_ensure_token(v);
        word = atomic_load(&v->q->lock.word);
    }
    if (word & MP_LOCK_CONTENDED)
        mp_bell_ring(v->f, v->index, 1);
}

void mp_queue_unlock(struct mp_queue_view *v) { unlock_as(v, v->f->me); }

/* Sees to it that somebody looks who has the lock. Waits for nobody. */
int mp_queue_leave_word(struct mp_queue_view *v) {
    for (;;) {
        if (mp_lock_try(v->f, v->b, 0)) {
            int error = mp_queue_entered(v);
            if (error == MP_OK) {
                error = mp_queue_ensure_token(v);
                mp_queue_unlock(v);
            }
            return error == MP_DENIED || error == MP_GUESTS ? error : MP_OK;
        }
        uint64_t word = atomic_load(&v->q->lock.word);
        if (word & MP_LOCK_OWNER && atomic_compare_exchange_strong(&v->q->lock.word, &word, word | MP_LOCK_LOOK))
            return MP_OK;
    }
}

/* Until when a call waits for the lock that waits for nothing else. */
int64_t mp_queue_soon(void) { return mp_now_ns() + MP_PATIENCE_NS; }

/* ---- how many --------------------------------------------------------------------------------------------------------------- */

/* With the lock, or as mp_queue_size() does. A token in somebody's hand is counted against the kernel's messages, which at that
 * time are, but for a race, none; where all that the kernel has has no body, it has only tokens, however many. -1 with errno. */
int64_t mp_queue_count(struct mp_queue_view *v) {
    struct msqid_ds ds;
    if (mp_queue_is_dropped(v))
        return 0;
    uint64_t waiting = mp_is_posted(atomic_load(mp_posted(v->b))) ? mp_spill_posted(v) : 0;
    waiting += atomic_load(&v->q->spilled);
    if (v->flags & MP_QUEUE_WORK && atomic_load(&v->q->token) & (MP_TOKEN_BACK | MP_TOKEN_SEEKING))
        waiting += (uint64_t)mp_job_count(v, false, true);
    if (MP_ALLOWED(v->f, msgctl(v->id, IPC_STAT, &ds)) < 0) {
        errno = mp_error(errno);
        return MP_FAILED;
    }
    if (ds.msg_cbytes == 0)
        return (int64_t)waiting;
    int64_t in_kernel = (int64_t)ds.msg_qnum - (atomic_load(&v->q->token) & MP_TOKEN_OUT);
    return (in_kernel > 0 ? in_kernel : 1) + (int64_t)waiting;
}

/* Waits for nobody. Without the lock the kernel's number and the token's flag may be of different times, between which somebody
 * mended the tokens or put one out; so the flags have to be the same before and after. If they never are, or there are doubts and
 * somebody has the lock for long, tokens may be taken for messages next to which they stand, but a queue that has messages is never
 * said to have none, nor a bounded one to have more than fit. */
int64_t mp_queue_size(struct mp_queue_view *v) {
    const uint32_t unsure = MP_DOUBTS | MP_TOKEN_MENDING;
    const uint32_t passing = MP_TOKEN_ARENA | MP_TOKEN_DRY | MP_TOKEN_GONE | MP_TOKEN_SHUT | MP_TOKEN_DROP;
    for (int spins = 0; spins < 64; spins++) {
        uint32_t before = atomic_load(&v->q->token);
        if (!(before & unsure)) {
            int64_t size = mp_queue_count(v);
            if (size < 0 || ((atomic_load(&v->q->token) ^ before) & ~passing) == 0)
                return size;
        } else if (mp_lock_try(v->f, v->b, 0)) {
            if (mp_queue_entered(v) != MP_OK)
                break;
            int64_t size = mp_queue_count(v);
            mp_queue_unlock(v);
            return size;
        } else {
            mp_pause();
        }
    }
    int64_t size = mp_queue_count(v);
    return size >= 0 && v->b->size != 0 && (uint64_t)size > v->b->size ? (int64_t)v->b->size : size;
}

/* For how many more messages there is room, at least; 0: none, as far as can be known without the lock. -1 with errno, which may
 * be MP_SHUT_DOWN. */
int64_t mp_queue_room(struct mp_queue_view *v) {
    if (mp_queue_is_shut(v)) {
        errno = MP_SHUT_DOWN;
        return MP_FAILED;
    }
    if (v->b->size == 0)
        return INT64_MAX;
    uint32_t credit = atomic_load_explicit(&v->q->credit, memory_order_relaxed);
    if (credit != 0)
        return credit;
    int64_t size = mp_queue_size(v);
    return size < 0 ? size : (uint64_t)size < v->b->size ? (int64_t)(v->b->size - (uint64_t)size) : 0;
}

/* What a waiter in a queue waits for. */
const char *mp_queue_purpose(struct mp_block *b, const struct mp_waiting *waiting) {
    struct mp_queue *q = mp_queue_of(b);
    uint32_t bell = waiting->where + 1;
    if (waiting->kind == MP_WAIT_MESSAGE || bell == atomic_load(&q->getters.bell))
        return "a message";
    return bell == atomic_load(&q->putters.bell)       ? "room"
           : bell == atomic_load(&mp_joiners(b)->bell) ? "its tasks"
                                                       : "its lock";
}

/* ---- tasks -------------------------------------------------------------------------------------------------------------------- */

/* Of a counted queue: messages in it, and those taken and not yet done. -1 with errno: what mp_queue_lock() says. */
int64_t mp_queue_unfinished(struct mp_queue_view *v, int64_t deadline_ns) {
    if ((errno = mp_queue_lock(v, deadline_ns)) != MP_OK)
        return MP_FAILED;
    int64_t size = mp_queue_count(v);
    if (size >= 0)
        size += atomic_load(&v->q->pending);
    int error = errno;
    mp_queue_unlock(v);
    errno = error;
    return size;
}

/* Also MP_NONE_LEFT, or what mp_queue_lock() says. */
int mp_queue_task_done(struct mp_queue_view *v, int64_t deadline_ns) {
    int error = mp_queue_lock(v, deadline_ns);
    if (error != MP_OK)
        return error;
    int64_t size = mp_queue_count(v), unfinished = size + atomic_load(&v->q->pending);
    if (size < 0) {
        error = errno;
    } else if (unfinished <= 0) {
        error = MP_NONE_LEFT;
    } else {
        atomic_fetch_sub(&v->q->pending, 1);
        if (unfinished == 1)
            atomic_fetch_add(&v->q->zeros, 1);
    }
    mp_queue_unlock(v);
    if (error == MP_OK && unfinished == 1)
        mp_room_ring(v->f, mp_joiners(v->b), true);
    return error;
}

/* Takes down what a queue owns, before it is taken down itself. Can be done again from the start. */
void mp_queue_take_down(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue *q = mp_queue_of(b);
    uint64_t owner = mp_owner_word(f, index);
    uint32_t bells[] = {atomic_load(&q->getters.bell), atomic_load(&q->putters.bell), atomic_load(&mp_joiners(b)->bell)};
    for (size_t i = 0; i < sizeof bells / sizeof *bells; i++)
        if (bells[i] != 0 && bells[i] <= MP_BLOCKS)
            mp_block_take_down_owned(f, bells[i] - 1, owner);
    if (!(atomic_load(&q->token) & MP_TOKEN_ARENA))
        return;
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        mp_block_take_down_owned(f, i, owner);
    if (mp_carriers_in_use(f))
        mp_family_wake_reaper(f); /* what messages in it held, it drops */
}

/* Recovery, before the slots are free for others: pieces that the dead had in their hands. */
void mp_queue_recover(struct mp_family *f, uint32_t index, const uint64_t *dead) {
    struct mp_queue_view v;
    if (atomic_load(&mp_queue_of(mp_block_at(f, index))->arena) == 0)
        return;
    open_for_recovery(&v, f, index);
    if (mp_arena_recover(&v, dead))
        atomic_fetch_or(&v.q->token, MP_DOUBTS);
    mp_arena_close(&v);
}

/* Recovery takes the queue's lock itself, where a dead sender has left a piece of which only the lock's owner can tell whether it is a
 * message, and nobody may come by for long: what that holds would stay.
 *
 *   1. `mending` names the queue.
 *   2. CAS of the lock's word from no owner to MP_LOCK_RECOVERY. MP_BUSY: a living process has it.   Dead: the next recovery finds it
 *   3. The repair, as by any owner that finds a dead one's lock.                                      by `mending`, and makes the lock
 *   4. The word to no owner, and a ring for who is parked; `mending` to 0.                            one whose owner died. */
int mp_queue_mend(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue_view v;
    atomic_store(&f->h->mending, index + 1);
    uint64_t word = atomic_load(&b->lock.word);
    do {
        if (word & MP_LOCK_OWNER) {
            atomic_store(&f->h->mending, 0);
            return MP_BUSY;
        }
    } while (!atomic_compare_exchange_weak(&b->lock.word, &word, word | MP_LOCK_RECOVERY));
    open_for_recovery(&v, f, index);
    atomic_fetch_or(&v.q->token, MP_DOUBTS);
    int error = repair(&v);
    unlock_as(&v, MP_LOCK_RECOVERY);
    mp_arena_close(&v);
    atomic_store(&f->h->mending, 0);
    return error == MP_CORRUPT ? MP_OK : error;
}

/* At the start of a recovery: an earlier one has died in that. */
void mp_queue_end_mending(struct mp_family *f) {
    uint32_t index = atomic_load(&f->h->mending) - 1;
    if (index < MP_BLOCKS && mp_block_at(f, index)->kind == MP_KIND_QUEUE)
        mp_lock_recover(f, index, (int)MP_LOCK_RECOVERY - 1);
    atomic_store(&f->h->mending, 0);
}

/* The reaper, under the recovery lock. */
void mp_queue_trim(struct mp_family *f, uint32_t index, int64_t idle_ns) {
    struct mp_queue_view v;
    if (atomic_load(&mp_queue_of(mp_block_at(f, index))->arena) == 0)
        return;
    open_for_recovery(&v, f, index);
    mp_arena_trim(&v, idle_ns);
    mp_arena_close(&v);
}

/* Recovery, after every death: rings that were lost, and tokens. A queue that was shut down has one for its sleepers, whom the dead
 * one may have been about to wake. */
void mp_queue_heal(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue *q = mp_queue_of(b);
    bool died = atomic_load(&q->lock.word) & MP_LOCK_DIED;
    uint32_t token = atomic_load(&q->token);
    if (died || mp_is_posted(atomic_load(mp_posted(b))) || atomic_load(&q->spilled) != 0 ||
        token & (MP_TOKEN_OUT | MP_TOKEN_DRY | MP_TOKEN_SHUT | MP_DOUBTS)) { /* DRY, not OUT: a token was returned */
        struct mp_queue_view v = {.id = atomic_load(&b->id), .q = q};
        uint32_t suspect = MP_TOKEN_SUSPECT | (died ? MP_TOKEN_REPAIR : 0);
        atomic_fetch_or(&q->token, suspect); /* before: who receives this token must find it so */
        mp_queue_send_token(&v);
        atomic_fetch_or(&q->token, suspect); /* after: somebody may just have made the old one exact */
    }
    mp_room_heal(f, &q->getters);
    mp_room_heal(f, &q->putters);
    mp_room_heal(f, mp_joiners(b));
}

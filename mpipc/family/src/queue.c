/* Sending and receiving.
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
 *   about to run for a dead one.
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
 *   after it, before it rings: recovery rings (waiting.c);
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

#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <time.h>

/* Taking so many messages without sleeping makes a receiver put out a token; if it was for nothing, twice as many the next time,
 * up to the limit. */
#define SHORTEST_STREAK 8u
#define LONGEST_STREAK 4096u
#define WORTHWHILE_STREAK 64u

/* How long a receiver looks at an empty spill before it goes to sleep: about as long as going to sleep and waking takes. */
#define LINGER_NS 20000

#define TAG 0x1a5e0000ull /* tells the name of a queue from what others keep in extra[2] */

/* See above. */
#ifndef MP_PATIENCE_NS
#define MP_PATIENCE_NS 100000000ll
#endif
#ifndef MP_POST_AFTER_NS
#define MP_POST_AFTER_NS 2000000ll
#endif

uint64_t mp_queue_name(struct mp_family *f, uint32_t index) {
    return (uint64_t)mp_block_serial(atomic_load(&mp_block_at(f, index)->word)) << 32 | TAG << 3 | index;
}

static uint32_t generation(uint32_t token) { return token >> 16; }

/* ---- making, opening ---------------------------------------------------------------------------------------------------- */

/* Fills the payload of a queue that is being made. */
int mp_queue_make(struct mp_family *f, uint32_t index, uint64_t maxsize, uint32_t flags) {
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue *q = mp_queue_of(b);
    b->size = maxsize;
    b->extra[1] = flags;
    atomic_store(&b->watcher, 0);
    int error = mp_room_make(f, index, &q->getters);
    if (error == MP_OK && maxsize != 0)
        error = mp_room_make(f, index, &q->putters);
    if (error == MP_OK && flags & MP_QUEUE_COUNTED)
        error = mp_room_make(f, index, mp_joiners(b));
    return error;
}

int mp_queue_open(struct mp_queue_view *v, struct mp_family *f, uint32_t index) {
    memset(v, 0, sizeof *v);
    v->f = f;
    v->index = index;
    v->b = mp_block_at(f, index);
    v->q = mp_queue_of(v->b);
    v->id = atomic_load(&v->b->id);
    v->flags = (uint32_t)v->b->extra[1];
    atomic_init(&v->patience, SHORTEST_STREAK);
    atomic_init(&v->longest, MP_BODY_SIZE);
    v->selector = v->flags & MP_QUEUE_PRIORITY ? -LONG_MAX : 0;
    v->segments = calloc(MP_ARENA_SEGMENTS, sizeof *v->segments);
    return v->segments == NULL ? MP_NO_MEMORY : MP_OK;
}

void mp_queue_close(struct mp_queue_view *v) { mp_arena_close(v); }

/* ---- was it removed? ------------------------------------------------------------------------------------------------------- */

/* For those who have not met the kernel: MP_OK or MP_REMOVED. */
static int ask_whether_removed(struct mp_queue_view *v) {
    struct msqid_ds ds;
    if (atomic_load(&v->q->token) & MP_TOKEN_GONE)
        return MP_REMOVED;
    if (msgctl(v->id, IPC_STAT, &ds) == 0 || mp_error(errno) != MP_REMOVED)
        return MP_OK;
    atomic_fetch_or(&v->q->token, MP_TOKEN_GONE);
    mp_room_ring(v->f, &v->q->getters, true);
    mp_room_ring(v->f, &v->q->putters, true);
    return MP_REMOVED;
}

/* The same, but it is not asked twice in one tick of the clock. */
static int removed_lately(struct mp_queue_view *v) {
    if (atomic_load_explicit(&v->q->token, memory_order_relaxed) & MP_TOKEN_GONE)
        return MP_REMOVED;
    int64_t tick = mp_coarse_ns();
    if (atomic_load_explicit(&v->asked, memory_order_relaxed) == tick)
        return MP_OK;
    atomic_store_explicit(&v->asked, tick, memory_order_relaxed);
    return ask_whether_removed(v);
}

/* ---- the lock ------------------------------------------------------------------------------------------------------------- */

/* A queue that may hold no byte takes no token either. It is ours, and one byte is granted to everybody. */
static bool grant_a_byte(struct mp_queue_view *v) {
    struct msqid_ds ds;
    if (msgctl(v->id, IPC_STAT, &ds) < 0 || ds.msg_qbytes != 0)
        return false;
    ds.msg_qbytes = 1;
    return msgctl(v->id, IPC_SET, &ds) == 0;
}

static int send_token(struct mp_queue_view *v) {
    long type = MP_TYPE_TOKEN + generation(atomic_load(&v->q->token));
    if (msgsnd(v->id, &type, 0, IPC_NOWAIT) == 0 ||
        (errno == EAGAIN && grant_a_byte(v) && msgsnd(v->id, &type, 0, IPC_NOWAIT) == 0))
        return MP_OK;
    return errno == EAGAIN ? MP_FULL : mp_error(errno);
}

/* The order matters to those without the lock: who finds nothing posted any more has to find it spilled. */
static bool nothing_waits(struct mp_queue_view *v) {
    return atomic_load(mp_posted(v->b)) == 0 && atomic_load(&v->q->spilled) == 0;
}

/* Keeps the invariant. If even the token does not fit (somebody lowered msg_qbytes), those who receive what is in the way
 * will see that there is no token. */
static void ensure_token(struct mp_queue_view *v) {
    if (nothing_waits(v) || atomic_load(&v->q->token) & MP_TOKEN_OUT)
        return;
    atomic_fetch_or(&v->q->token, MP_TOKEN_OUT);
    if (send_token(v) != MP_OK)
        atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_OUT);
}

#define DOUBTS (MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR)
#define REPAIRS 8 /* in a row, of what is found damaged again by each of them; recovery may ask for one, too */

/* MP_OK; MP_CORRUPT: it was repaired, and something was lost; or an error, and the doubts stay. They are cleared first, since
 * they may come up again meanwhile; if we die, the lock says so. */
static int repair(struct mp_queue_view *v) {
    int result = MP_OK;
    for (int i = 0; i < REPAIRS; i++) {
        uint32_t token = atomic_fetch_and(&v->q->token, ~(uint32_t)DOUBTS), next;
        if (!(token & DOUBTS))
            break;
        if (token & MP_TOKEN_REPAIR && atomic_load(&v->q->arena) != 0) {
            int error = mp_spill_repair(v);
            if (error != MP_OK && error != MP_CORRUPT) {
                atomic_fetch_or(&v->q->token, DOUBTS);
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
            while (msgrcv(v->id, &m, sizeof m.body, -(MP_TYPE_LEVEL - 1), IPC_NOWAIT | MSG_NOERROR) >= 0)
                ;
            next = ((generation(token) + 1) & 0xffff) << 16 | (token & (MP_TOKEN_ARENA | MP_TOKEN_GONE | DOUBTS));
        } while (!atomic_compare_exchange_strong(&v->q->token, &token, next));
    }
    atomic_store_explicit(&v->q->credit, 0, memory_order_relaxed);
    ensure_token(v);
    return result;
}

/* Having got the lock: what is to be done before anything else. Not MP_OK: then the lock is not held any more. */
static int entered(struct mp_queue_view *v) {
    int result = MP_OK;
    if (atomic_load_explicit(&v->q->lock.word, memory_order_relaxed) & MP_LOCK_DIED)
        atomic_fetch_or(&v->q->token, DOUBTS);
    if (atomic_load_explicit(&v->q->token, memory_order_relaxed) & DOUBTS)
        result = repair(v);
    if ((result == MP_OK || result == MP_CORRUPT) && atomic_load_explicit(mp_posted(v->b), memory_order_relaxed) != 0) {
        int error = mp_spill_collect(v);
        ensure_token(v);
        result = error != MP_OK ? error : result;
    }
    if (result != MP_OK)
        mp_queue_unlock(v);
    return result;
}

/* The lock, if it can be had at once and there is nothing else to be done. For callers who hold the GIL. */
static bool try_lock(struct mp_queue_view *v) {
    if (!mp_lock_try(v->f, v->b, 0))
        return false;
    bool died = atomic_load_explicit(&v->q->lock.word, memory_order_relaxed) & MP_LOCK_DIED;
    if (!died && !(atomic_load_explicit(&v->q->token, memory_order_relaxed) & DOUBTS) &&
        atomic_load_explicit(mp_posted(v->b), memory_order_relaxed) == 0)
        return true;
    if (died)
        atomic_fetch_or(&v->q->token, DOUBTS); /* a release clears DIED */
    mp_queue_unlock(v);
    return false;
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
    return entered(v);
}

/* Until when a call waits for the lock that waits for nothing else. */
int64_t mp_queue_soon(void) { return mp_now_ns() + MP_PATIENCE_NS; }

void mp_queue_unlock(struct mp_queue_view *v) {
    uint64_t word = v->f->me;
    while (!atomic_compare_exchange_strong(&v->q->lock.word, &word, 0)) {
        if (!(word & MP_LOCK_OWNER))
            return;
        if (!(word & MP_LOCK_LOOK))
            continue;
        atomic_fetch_and(&v->q->lock.word, ~(uint64_t)MP_LOCK_LOOK);
        if (atomic_load(mp_posted(v->b)) != 0)
            mp_spill_collect(v); /* if it fails, somebody else may be able to: there will be a token */
        ensure_token(v);
        word = atomic_load(&v->q->lock.word);
    }
    if (word & MP_LOCK_CONTENDED)
        mp_bell_ring(v->f, v->index, 1);
}

/* Sees to it that somebody looks who has the lock. Waits for nobody. */
static void leave_word(struct mp_queue_view *v) {
    for (;;) {
        if (mp_lock_try(v->f, v->b, 0)) {
            if (entered(v) == MP_OK) {
                ensure_token(v);
                mp_queue_unlock(v);
            }
            return;
        }
        uint64_t word = atomic_load(&v->q->lock.word);
        if (word & MP_LOCK_OWNER && atomic_compare_exchange_strong(&v->q->lock.word, &word, word | MP_LOCK_LOOK))
            return;
    }
}

/* ---- how many --------------------------------------------------------------------------------------------------------------- */

/* With the lock, or without it if nothing is suspect. A token in somebody's hand is counted against the kernel's messages,
 * which at that time are, but for a race, none. -1 with errno. */
static int64_t count(struct mp_queue_view *v) {
    struct msqid_ds ds;
    uint64_t waiting = atomic_load(mp_posted(v->b)) == 0 ? 0 : mp_spill_posted(v);
    waiting += atomic_load(&v->q->spilled);
    if (msgctl(v->id, IPC_STAT, &ds) < 0) {
        errno = mp_error(errno);
        return MP_FAILED;
    }
    int64_t in_kernel = (int64_t)ds.msg_qnum - (atomic_load(&v->q->token) & MP_TOKEN_OUT);
    return (in_kernel > 0 ? in_kernel : 0) + (int64_t)waiting;
}

/* Waits for nobody. If there are doubts and somebody has the lock for long, a token may be taken for a message. */
int64_t mp_queue_size(struct mp_queue_view *v) {
    for (int spins = 0; spins < 64 && atomic_load(&v->q->token) & DOUBTS; spins++) {
        if (mp_lock_try(v->f, v->b, 0)) {
            if (entered(v) != MP_OK)
                break;
            int64_t size = count(v);
            mp_queue_unlock(v);
            return size;
        }
        mp_pause();
    }
    return count(v);
}

/* For how many more messages there is room, at least; 0: none, as far as can be known without the lock. -1 with errno. */
int64_t mp_queue_room(struct mp_queue_view *v) {
    if (v->b->size == 0)
        return INT64_MAX;
    uint32_t credit = atomic_load_explicit(&v->q->credit, memory_order_relaxed);
    if (credit != 0)
        return credit;
    int64_t size = mp_queue_size(v);
    return size < 0 ? size : (uint64_t)size < v->b->size ? (int64_t)(v->b->size - (uint64_t)size) : 0;
}

/* ---- sending ---------------------------------------------------------------------------------------------------------------- */

/* MP_OK; MP_FULL: it has to go another way. kernel.msgmax may be less than we would send. */
static int send_to_kernel(struct mp_queue_view *v, struct mp_message *m, uint32_t length) {
    if (msgsnd(v->id, m, 1 + length, IPC_NOWAIT) < 0) {
        if (errno == EAGAIN)
            return MP_FULL;
        if (errno != EINVAL)
            return mp_error(errno);
        if (ask_whether_removed(v) == MP_REMOVED)
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
    return m->kind != MP_BODY_PIECE && nothing_waits(v) &&
           (v->flags & MP_QUEUE_PRIORITY || !(atomic_load(&v->q->token) & MP_TOKEN_OUT)) &&
           1 + length <= atomic_load_explicit(&v->longest, memory_order_relaxed);
}

/* The spill needs a segment, and no more can be had (kernel.shmmni, kernel.shmall, memory). A token is no reason not to send by the
 * kernel queue, only a sign that the spill is faster; what waits there is one. Returns `error` if it cannot be sent so, either. */
static int without_spill(struct mp_queue_view *v, struct mp_message *m, uint32_t length, int error) {
    if ((error != MP_LIMIT && error != MP_NO_MEMORY) || m->kind == MP_BODY_PIECE || !nothing_waits(v) ||
        1 + length > atomic_load_explicit(&v->longest, memory_order_relaxed))
        return error;
    int outcome = send_to_kernel(v, m, length);
    return outcome == MP_FULL ? error : outcome;
}

static int append(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    int error = mp_spill_append(v, m, length, level);
    return error == MP_OK ? error : without_spill(v, m, length, error);
}

static int send_locked(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    int error = by_kernel(v, m, length) ? send_to_kernel(v, m, length) : MP_FULL;
    if (error == MP_FULL) {
        error = append(v, m, length, level);
        ensure_token(v);
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
        int64_t size = count(v);
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
    int error = removed_lately(v);
    if (error == MP_OK)
        error = admit(v);
    if (error == MP_OK)
        error = send_locked(v, m, length, level);
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
    return try_lock(v) ? send_and_unlock(v, m, length, level) : MP_BUSY;
}

static int post(struct mp_queue_view *v, const unsigned char *bodies, uint64_t size, uint32_t count, uint32_t level) {
    int error = removed_lately(v);
    if (error == MP_OK)
        error = mp_spill_post(v, bodies, size, count, level);
    if (error != MP_OK)
        return error;
    leave_word(v);
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
 * MP_TIMED_OUT, MP_TICK and MP_INTERRUPTED; MP_REMOVED, or an error: then nothing was sent. */
int mp_queue_send(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level, int64_t deadline_ns) {
    m->type = MP_TYPE_LEVEL + level;
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
    if ((*outcome = mp_queue_lock(v, lock_deadline(v, deadline_ns))) != MP_OK)
        return should_post(v, *outcome) ? post_many(v, bodies, count, level, outcome) : 0;
    struct mp_message m = {.type = MP_TYPE_LEVEL + level};
    *outcome = removed_lately(v);
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
    ensure_token(v);
    mp_queue_unlock(v);
    for (uint64_t i = 0; i < sent && i < 8; i++)
        mp_room_ring(v->f, &v->q->getters, sent > 1);
    return sent;
}

/* ---- receiving -------------------------------------------------------------------------------------------------------------- */

static bool is_token(long type) { return type < MP_TYPE_LEVEL; }

/* As received by msgrcv(2). */
static void forget_token(struct mp_queue_view *v, long type) {
    uint32_t token = atomic_load(&v->q->token);
    while (type - MP_TYPE_TOKEN == generation(token) &&
           !atomic_compare_exchange_strong(&v->q->token, &token, token & ~(uint32_t)(MP_TOKEN_OUT | MP_TOKEN_DRY)))
        ;
}

/* By one who has it in his hand, and does not get the lock, or does not want it any more. */
void mp_queue_return_token(struct mp_queue_view *v, struct mp_item *item) {
    if (item->token == 0)
        return;
    forget_token(v, item->token);
    item->token = 0;
    leave_word(v);
}

/* One byte more than we send, so that what is longer shows; it is cut off, and does not stay in everybody's way. */
static ssize_t receive(struct mp_queue_view *v, struct mp_item *item, long selector, int flags) {
    return msgrcv(v->id, &item->message, MP_BODY_SIZE + 1, selector, flags | MSG_NOERROR);
}

/* What was received, and is no token. Anybody may send to the kernel queue. */
static int inline_message(struct mp_queue_view *v, struct mp_item *item, ssize_t n) {
    uint64_t level = (uint64_t)(item->message.type - MP_TYPE_LEVEL);
    if (n < 1 || n > (ssize_t)MP_BODY_SIZE || level >= mp_arena_levels(v) ||
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
static int take_locked(struct mp_queue_view *v, struct mp_item *item) {
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

/* What is due when a message has been taken: the putters' ring, and a token if it could not be sent. */
static void taken(struct mp_queue_view *v) {
    if (!nothing_waits(v) && !(atomic_load(&v->q->token) & MP_TOKEN_OUT))
        leave_word(v);
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
    if (v->flags & MP_QUEUE_PRIORITY || !try_lock(v))
        return;
    if (!(atomic_load(&v->q->token) & MP_TOKEN_OUT)) {
        atomic_fetch_or(&v->q->token, MP_TOKEN_OUT);
        if (send_token(v) != MP_OK)
            atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_OUT);
    }
    mp_queue_unlock(v);
}

/* Without the lock: what to tell who has looked for a message, and perhaps not into the kernel queue. */
static int found_nothing(struct mp_queue_view *v, int error) {
    return error == MP_EMPTY && atomic_load(&v->q->token) & MP_TOKEN_DRY && ask_whether_removed(v) == MP_REMOVED ? MP_REMOVED
                                                                                                                 : error;
}

/* Of a counted queue, with the lock: what was dropped need not be done by anybody. true: the joiners are to be rung for. */
static bool dropped(struct mp_queue_view *v, int error) {
    if (error != MP_CORRUPT || !(v->flags & MP_QUEUE_COUNTED) || count(v) + atomic_load(&v->q->pending) > 0)
        return false;
    atomic_fetch_add(&v->q->zeros, 1);
    return true;
}

static int take_and_unlock(struct mp_queue_view *v, struct mp_item *item) {
    if (item->token != 0)
        forget_token(v, item->token);
    item->token = 0;
    int error = take_locked(v, item);
    if (error == MP_OK && v->flags & MP_QUEUE_COUNTED)
        atomic_fetch_add(&v->q->pending, 1);
    bool all_done = dropped(v, error);
    ensure_token(v);
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
    if (v->flags & MP_QUEUE_COUNTED || !nothing_waits(v) || atomic_load(&v->q->token) & MP_TOKEN_OUT)
        return try_lock(v) ? take_and_unlock(v, item) : MP_BUSY;
    ssize_t n = receive(v, item, v->selector, IPC_NOWAIT);
    if (n < 0 && errno == ENOMSG)
        return nothing_waits(v) ? MP_EMPTY : MP_BUSY;
    if (n < 0)
        return nothing_received(errno);
    int error = received(v, item, n);
    if (error == MP_OK && lengthen_streak(v) >= RELAXED_LOAD(v->patience))
        end_streak(v);
    return error;
}

/* Takes the next message without waiting for one, but for the lock until the deadline. MP_OK; MP_EMPTY: there is none;
 * MP_CORRUPT: there was one that is none, and is gone now; MP_TIMED_OUT, MP_TICK, MP_INTERRUPTED; MP_REMOVED, or an error: then
 * nothing was taken. item->token is the token in our hand, or 0; afterwards there is none. If item->message.kind then is
 * MP_BODY_PIECE, the caller frees item->piece. */
int mp_queue_take(struct mp_queue_view *v, struct mp_item *item, int64_t deadline_ns) {
    int outcome = mp_queue_lock(v, deadline_ns);
    if (outcome == MP_OK)
        return take_and_unlock(v, item);
    mp_queue_return_token(v, item);
    return outcome;
}

/* As mp_queue_take(), up to `most` of them; *count may be more than 0 also if the outcome is MP_CORRUPT. Once the kernel queue has
 * nothing that precedes a lane, the lane holds no message that one in the kernel queue has to precede, for as long as we have the
 * lock: who would put the later one waits for it. */
int mp_queue_take_many(struct mp_queue_view *v, struct mp_item *items, uint32_t most, uint32_t *count, int64_t deadline_ns) {
    *count = 0;
    int error = mp_queue_lock(v, deadline_ns);
    if (error != MP_OK)
        return error;
    error = take_locked(v, items);
    while (error == MP_OK && ++*count < most) {
        struct mp_item *item = &items[*count];
        int64_t level = items[*count - 1].level;
        error = level < 0 ? MP_EMPTY : mp_spill_pop(v, (uint32_t)level, item);
        item->level = level;
        if (error == MP_EMPTY)
            error = take_locked(v, item);
    }
    if (v->flags & MP_QUEUE_COUNTED)
        atomic_fetch_add(&v->q->pending, *count);
    bool all_done = dropped(v, error);
    ensure_token(v);
    mp_queue_unlock(v);
    if (all_done)
        mp_room_ring(v->f, mp_joiners(v->b), true);
    if (*count == 0 && error != MP_CORRUPT)
        return found_nothing(v, error);
    mp_room_ring(v->f, &v->q->putters, true);
    return error == MP_CORRUPT ? error : MP_OK;
}

/* While a token is out somebody is likely to send through the spill before long. false: it is empty. */
static bool linger(struct mp_queue_view *v) {
    int64_t end = 0;
    for (int looks = 0; atomic_load(&v->q->token) & MP_TOKEN_OUT; looks++) {
        if (atomic_load(&v->q->spilled) != 0)
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
        RELAXED_STORE(v->patience, SHORTEST_STREAK);
    RELAXED_STORE(v->streak, 0);
    _Atomic uint32_t *place = mp_sleeper_enter(v->f, v->index);
    ssize_t n = receive(v, item, v->selector, 0);
    int error = n < 0 ? nothing_received(errno) : MP_OK;
    mp_sleeper_leave(place);
    if (error == MP_OK)
        error = received(v, item, n);
    return error == MP_BUSY ? mp_queue_take(v, item, -1) : error;
}

/* ---- tasks -------------------------------------------------------------------------------------------------------------------- */

/* Of a counted queue: messages in it, and those taken and not yet done. -1 with errno: what mp_queue_lock() says. */
int64_t mp_queue_unfinished(struct mp_queue_view *v, int64_t deadline_ns) {
    if ((errno = mp_queue_lock(v, deadline_ns)) != MP_OK)
        return MP_FAILED;
    int64_t size = count(v);
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
    int64_t size = count(v), unfinished = size + atomic_load(&v->q->pending);
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

/* ---- the end, and deaths --------------------------------------------------------------------------------------------------------- */

static void free_owned(struct mp_family *f, uint32_t index, uint64_t owner) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    if (mp_block_state_of(word) != MP_BLOCK_READY || b->extra[2] != owner || !atomic_load(&b->pinned) ||
        (b->kind != MP_KIND_DATA && b->kind != MP_KIND_SEGMENT))
        return;
    if (atomic_compare_exchange_strong(&b->word, &word, mp_block_word(MP_BLOCK_DYING, f->slot, mp_block_serial(word))))
        mp_block_abandon(f, index);
}

/* Takes down what a queue owns, before it is taken down itself. Can be done again from the start. */
void mp_queue_disown(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue *q = mp_queue_of(b);
    uint64_t owner = mp_queue_name(f, index);
    uint32_t bells[] = {atomic_load(&q->getters.bell), atomic_load(&q->putters.bell), atomic_load(&mp_joiners(b)->bell)};
    for (size_t i = 0; i < sizeof bells / sizeof *bells; i++)
        if (bells[i] != 0 && bells[i] <= MP_BLOCKS)
            free_owned(f, bells[i] - 1, owner);
    if (!(atomic_load(&q->token) & MP_TOKEN_ARENA))
        return;
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        free_owned(f, i, owner);
}

/* Recovery, before the slots are free for others: pieces that the dead had in their hands. */
void mp_queue_recover(struct mp_family *f, uint32_t index, const uint64_t *dead) {
    struct mp_queue_view v;
    if (atomic_load(&mp_queue_of(mp_block_at(f, index))->arena) == 0 || mp_queue_open(&v, f, index) != MP_OK)
        return;
    if (mp_arena_recover(&v, dead))
        atomic_fetch_or(&v.q->token, DOUBTS);
    mp_queue_close(&v);
}

/* The reaper, under the recovery lock. */
void mp_queue_trim(struct mp_family *f, uint32_t index, int64_t idle_ns) {
    struct mp_queue_view v;
    if (atomic_load(&mp_queue_of(mp_block_at(f, index))->arena) == 0 || mp_queue_open(&v, f, index) != MP_OK)
        return;
    mp_arena_trim(&v, idle_ns);
    mp_queue_close(&v);
}

/* Recovery, after every death: rings that were lost, and tokens. */
void mp_queue_heal(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue *q = mp_queue_of(b);
    bool died = atomic_load(&q->lock.word) & MP_LOCK_DIED;
    uint32_t token = atomic_load(&q->token);
    if (died || atomic_load(mp_posted(b)) != 0 || atomic_load(&q->spilled) != 0 ||
        token & (MP_TOKEN_OUT | MP_TOKEN_DRY | DOUBTS)) { /* DRY without OUT: a token was returned while it was set */
        struct mp_queue_view v = {.id = atomic_load(&b->id), .q = q};
        uint32_t suspect = MP_TOKEN_SUSPECT | (died ? MP_TOKEN_REPAIR : 0);
        atomic_fetch_or(&q->token, suspect); /* before: who receives this token must find it so */
        send_token(&v);
        atomic_fetch_or(&q->token, suspect); /* after: somebody may just have made the old one exact */
    }
    mp_room_heal(f, &q->getters);
    mp_room_heal(f, &q->putters);
    mp_room_heal(f, mp_joiners(b));
}

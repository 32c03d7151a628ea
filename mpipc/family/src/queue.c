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
 * Somebody may remove the kernel queue (ipcrm(1)). Who meets the kernel is told so; who does not has to ask: a receiver when it
 * finds nothing, a sender with the first message in each tick of the coarse clock. GONE, which is never cleared, saves the
 * others the question; who dies before it has rung for the waiters leaves them to their own ticks. A message sent in the tick of
 * the removal may still be accepted: it is in the spill, and can be received. */
#include "queue.h"

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

uint64_t mp_queue_name(struct mp_family *f, uint32_t index) {
    return (uint64_t)mp_block_serial(atomic_load(&mp_block_at(f, index)->word)) << 32 | TAG << 3 | index;
}

static uint32_t generation(uint32_t token) { return token >> 16; }

static int removed(int error) { return error == EINVAL ? EIDRM : error; }

/* ---- making, opening ---------------------------------------------------------------------------------------------------- */

/* Fills the payload of a queue that is being made. */
int mp_queue_make(struct mp_family *f, uint32_t index, uint64_t maxsize, uint32_t flags) {
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue *q = mp_queue_of(b);
    b->size = maxsize;
    b->extra[1] = flags;
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
    v->selector = v->flags & MP_QUEUE_PRIORITY ? -(MP_TYPE_LEVEL + (long)MP_QUEUE_LEVELS) : 0;
    v->segments = calloc(MP_ARENA_SEGMENTS, sizeof *v->segments);
    return v->segments == NULL ? ENOMEM : MP_OK;
}

void mp_queue_close(struct mp_queue_view *v) { mp_arena_close(v); }

/* ---- was it removed? ------------------------------------------------------------------------------------------------------- */

/* For those who have not met the kernel: MP_OK or EIDRM. */
static int ask_whether_removed(struct mp_queue_view *v) {
    struct msqid_ds ds;
    if (atomic_load(&v->q->token) & MP_TOKEN_GONE)
        return EIDRM;
    if (msgctl(v->id, IPC_STAT, &ds) == 0 || removed(errno) != EIDRM)
        return MP_OK;
    atomic_fetch_or(&v->q->token, MP_TOKEN_GONE);
    mp_room_ring(v->f, &v->q->getters, true);
    mp_room_ring(v->f, &v->q->putters, true);
    return EIDRM;
}

/* The same, but it is not asked twice in one tick of the clock. */
static int removed_lately(struct mp_queue_view *v) {
    if (atomic_load_explicit(&v->q->token, memory_order_relaxed) & MP_TOKEN_GONE)
        return EIDRM;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t tick = now.tv_sec * 1000000000ll + now.tv_nsec;
    if (atomic_load_explicit(&v->asked, memory_order_relaxed) == tick)
        return MP_OK;
    atomic_store_explicit(&v->asked, tick, memory_order_relaxed);
    return ask_whether_removed(v);
}

/* ---- the lock ------------------------------------------------------------------------------------------------------------- */

static int send_token(struct mp_queue_view *v) {
    long type = MP_TYPE_TOKEN + generation(atomic_load(&v->q->token));
    return msgsnd(v->id, &type, 0, IPC_NOWAIT) == 0 ? MP_OK : removed(errno);
}

/* Keeps the invariant. If even the token does not fit (somebody lowered msg_qbytes), those who receive what is in the way
 * will see that there is no token. */
static void ensure_token(struct mp_queue_view *v) {
    if (atomic_load(&v->q->spilled) == 0 || atomic_load(&v->q->token) & MP_TOKEN_OUT)
        return;
    atomic_fetch_or(&v->q->token, MP_TOKEN_OUT);
    if (send_token(v) != MP_OK)
        atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_OUT);
}

static int repair(struct mp_queue_view *v) {
    uint32_t token = atomic_load(&v->q->token), next;
    if (token & MP_TOKEN_REPAIR && atomic_load(&v->q->arena) != 0) {
        int error = mp_spill_repair(v);
        if (error != MP_OK)
            return error;
    }
    /* Tokens of any generation in the queue go; those in somebody's hand are recognised by their generation. */
    struct {
        long type;
        char body[8];
    } m;
    do {
        while (msgrcv(v->id, &m, sizeof m.body, -(MP_TYPE_LEVEL - 1), IPC_NOWAIT) >= 0)
            ;
        next = ((generation(token) + 1) & 0xffff) << 16 | (token & (MP_TOKEN_ARENA | MP_TOKEN_GONE));
    } while (!atomic_compare_exchange_strong(&v->q->token, &token, next));
    v->q->credit = 0;
    ensure_token(v);
    return MP_OK;
}

/* Sections under the lock are short, and run neither Python nor anything that waits. 0, or an errno if what a dead process
 * left cannot be repaired (no memory to look at it): then the lock is not held. */
int mp_queue_lock(struct mp_queue_view *v) {
    for (int spins = 0; !mp_lock_try(v->f, v->b, false); spins++) {
        if (spins < 64) {
            mp_pause();
            continue;
        }
        int error;
        while ((error = mp_lock_wait(v->f, v->index, -1)) == EINTR)
            ;
        if (error != MP_OK)
            return removed(error);
        break;
    }
    if (atomic_load_explicit(&v->q->lock.word, memory_order_relaxed) & MP_LOCK_DIED)
        atomic_fetch_or(&v->q->token, MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR);
    if (atomic_load_explicit(&v->q->token, memory_order_relaxed) & (MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR)) {
        int error = repair(v);
        if (error != MP_OK) {
            mp_queue_unlock(v);
            return error;
        }
    }
    return MP_OK;
}

/* The lock, if it can be had at once and there is nothing to repair. For callers who hold the GIL. */
static bool try_lock(struct mp_queue_view *v) {
    if (!mp_lock_try(v->f, v->b, 0))
        return false;
    if (!(atomic_load_explicit(&v->q->lock.word, memory_order_relaxed) & MP_LOCK_DIED) &&
        !(atomic_load_explicit(&v->q->token, memory_order_relaxed) & (MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR)))
        return true;
    if (atomic_load(&v->q->lock.word) & MP_LOCK_DIED)
        atomic_fetch_or(&v->q->token, MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR); /* a release clears DIED */
    mp_queue_unlock(v);
    return false;
}

void mp_queue_unlock(struct mp_queue_view *v) { mp_lock_release(v->f, v->index); }

/* ---- how many --------------------------------------------------------------------------------------------------------------- */

/* With the lock, or without it if nothing is suspect. A token in somebody's hand is counted against the kernel's messages,
 * which at that time are, but for a race, none. -1 with errno. */
static int64_t count(struct mp_queue_view *v) {
    struct msqid_ds ds;
    if (msgctl(v->id, IPC_STAT, &ds) < 0) {
        errno = removed(errno);
        return MP_FAILED;
    }
    int64_t in_kernel = (int64_t)ds.msg_qnum - (atomic_load(&v->q->token) & MP_TOKEN_OUT);
    return (in_kernel > 0 ? in_kernel : 0) + atomic_load(&v->q->spilled);
}

int64_t mp_queue_size(struct mp_queue_view *v) {
    if (!(atomic_load(&v->q->token) & (MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR)))
        return count(v);
    if ((errno = mp_queue_lock(v)) != MP_OK)
        return MP_FAILED;
    int64_t size = count(v);
    mp_queue_unlock(v);
    return size;
}

/* ---- sending ---------------------------------------------------------------------------------------------------------------- */

static int send_to_kernel(struct mp_queue_view *v, struct mp_message *m, uint32_t length) {
    if (msgsnd(v->id, m, 1 + length, IPC_NOWAIT) < 0)
        return removed(errno);
    if (atomic_load(&v->q->token) & MP_TOKEN_DRY)
        atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_DRY);
    return MP_OK;
}

/* Is the kernel queue the way for the next message? */
static bool by_kernel(struct mp_queue_view *v, const struct mp_message *m) {
    return m->kind != MP_BODY_PIECE && atomic_load(&v->q->spilled) == 0 &&
           (v->flags & MP_QUEUE_PRIORITY || !(atomic_load(&v->q->token) & MP_TOKEN_OUT));
}

static int send_locked(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    int error = by_kernel(v, m) ? send_to_kernel(v, m, length) : EAGAIN;
    if (error == EAGAIN) {
        error = mp_spill_append(v, m, length, level);
        ensure_token(v);
    }
    return error;
}

/* Room for one more in a bounded queue. The kernel is asked only when what was free at the last time is used up: in between,
 * receivers can but have made more room. */
static int admit(struct mp_queue_view *v) {
    if (v->b->size == 0)
        return MP_OK;
    if (v->q->credit == 0) {
        int64_t size = count(v);
        if (size < 0)
            return errno;
        if ((uint64_t)size >= v->b->size)
            return EAGAIN;
        uint64_t room = v->b->size - (uint64_t)size;
        v->q->credit = room < UINT32_MAX ? (uint32_t)room : UINT32_MAX;
    }
    v->q->credit--;
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

/* As mp_queue_send(), if that waits for nobody: EBUSY if somebody has the lock. */
int mp_queue_try_send(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    m->type = MP_TYPE_LEVEL + level;
    if (v->b->size == 0 && by_kernel(v, m)) {
        int error = send_to_kernel(v, m, length);
        if (error == MP_OK)
            mp_room_ring(v->f, &v->q->getters, false);
        if (error != EAGAIN)
            return error;
    }
    return try_lock(v) ? send_and_unlock(v, m, length, level) : EBUSY;
}

/* Never waits for room. 0; EAGAIN: a bounded queue is full; EIDRM: the queue was removed; or an errno for want of memory. */
int mp_queue_send(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level) {
    m->type = MP_TYPE_LEVEL + level;
    int error = mp_queue_lock(v);
    return error != MP_OK ? error : send_and_unlock(v, m, length, level);
}

/* Several messages at once: into the spill, where one lock and one token do for all. Returns how many were sent, fewer than
 * `count` if a bounded queue is full or *error is set. The bodies follow each other as struct mp_body. */
uint64_t mp_queue_send_many(struct mp_queue_view *v, const unsigned char *bodies, uint64_t count, uint32_t level, int *error) {
    uint64_t sent = 0;
    if ((*error = mp_queue_lock(v)) != MP_OK)
        return 0;
    struct mp_message m = {.type = MP_TYPE_LEVEL + level};
    *error = removed_lately(v);
    for (; *error == MP_OK && sent < count; sent++) {
        const struct mp_body *body = (const struct mp_body *)bodies;
        if ((*error = admit(v)) != MP_OK)
            break;
        memcpy(&m.kind, body->body, body->length);
        if ((*error = count == 1 ? send_locked(v, &m, body->length - 1, level)
                                 : mp_spill_append(v, &m, body->length - 1, level)) != MP_OK)
            break;
        bodies += mp_body_size(body->length);
    }
    ensure_token(v);
    mp_queue_unlock(v);
    if (*error == EAGAIN)
        *error = MP_OK;
    for (uint64_t i = 0; i < sent && i < 8; i++)
        mp_room_ring(v->f, &v->q->getters, sent > 1);
    return sent;
}

/* ---- receiving -------------------------------------------------------------------------------------------------------------- */

static bool is_token(long type) { return type < MP_TYPE_LEVEL; }

/* As received by msgrcv(2). Needs the lock. */
static void forget_token(struct mp_queue_view *v, long type) {
    if (type - MP_TYPE_TOKEN == generation(atomic_load(&v->q->token)))
        atomic_fetch_and(&v->q->token, ~(uint32_t)(MP_TOKEN_OUT | MP_TOKEN_DRY));
}

static void inline_message(struct mp_item *item, ssize_t n) {
    item->data = item->message.data;
    item->size = (uint64_t)n - 1;
}

/* msgrcv(2) for those who have the lock: ENOMSG, or the message's size. If a token is out they leave it to those without. */
static ssize_t receive_locked(struct mp_queue_view *v, struct mp_item *item, long selector) {
    uint32_t token = atomic_load(&v->q->token);
    if (v->flags & MP_QUEUE_PRIORITY || !(token & MP_TOKEN_OUT))
        return msgrcv(v->id, &item->message, MP_BODY_SIZE, selector, IPC_NOWAIT);
    if (token & MP_TOKEN_DRY) {
        errno = ENOMSG;
        return -1;
    }
    atomic_fetch_or(&v->q->token, MP_TOKEN_DRY);
    ssize_t n = msgrcv(v->id, &item->message, MP_BODY_SIZE, MP_TYPE_LEVEL, IPC_NOWAIT);
    if (n >= 0 || errno != ENOMSG) /* removed: with messages that come before those in the spill, perhaps */
        atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_DRY);
    return n;
}

/* The next message of all, or ENOMSG. Each look into a lane follows a look into the kernel queue for what comes before it: a
 * lane that turns out to be empty is no reason to go on to the next one. */
static int take_locked(struct mp_queue_view *v, struct mp_item *item) {
    for (;;) {
        int64_t level = mp_spill_first_level(v);
        if (level < 0 && errno != 0)
            return errno;
        long selector = v->flags & MP_QUEUE_PRIORITY && level >= 0 ? -(MP_TYPE_LEVEL + level) : v->selector;
        ssize_t n = receive_locked(v, item, selector);
        if (n < 0 && (errno != ENOMSG || level < 0))
            return removed(errno);
        if (n < 0) {
            int error = mp_spill_pop(v, (uint32_t)level, item);
            if (error == ENOMSG)
                continue;
            item->level = level;
            return error;
        }
        if (!is_token(item->message.type)) {
            inline_message(item, n);
            item->level = -1;
            return MP_OK;
        }
        forget_token(v, item->message.type);
    }
}

/* What is due when a message has been taken: the putters' ring, and a token if it could not be sent. */
static int taken(struct mp_queue_view *v) {
    if (atomic_load(&v->q->spilled) != 0 && !(atomic_load(&v->q->token) & MP_TOKEN_OUT) && mp_queue_lock(v) == MP_OK) {
        ensure_token(v);
        mp_queue_unlock(v);
    }
    mp_room_ring(v->f, &v->q->putters, false);
    return MP_OK;
}

static int received(struct mp_queue_view *v, struct mp_item *item, ssize_t n) {
    item->token = is_token(item->message.type) ? item->message.type : 0;
    if (item->token != 0)
        return EAGAIN;
    inline_message(item, n);
    return taken(v);
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
    return error == ENOMSG && atomic_load(&v->q->token) & MP_TOKEN_DRY && ask_whether_removed(v) == EIDRM ? EIDRM : error;
}

static int take_and_unlock(struct mp_queue_view *v, struct mp_item *item) {
    if (item->token != 0)
        forget_token(v, item->token);
    int error = take_locked(v, item);
    if (error == MP_OK && v->flags & MP_QUEUE_COUNTED)
        atomic_fetch_add(&v->q->pending, 1);
    ensure_token(v);
    mp_queue_unlock(v);
    if (error == MP_OK) {
        lengthen_streak(v);
        mp_room_ring(v->f, &v->q->putters, false);
    }
    return found_nothing(v, error);
}

/* As mp_queue_take(), if that waits for nobody: EAGAIN: call mp_queue_take() with this item, there may be a message. */
int mp_queue_try_take(struct mp_queue_view *v, struct mp_item *item) {
    item->token = 0;
    if (v->flags & MP_QUEUE_COUNTED || atomic_load(&v->q->spilled) != 0 || atomic_load(&v->q->token) & MP_TOKEN_OUT)
        return try_lock(v) ? take_and_unlock(v, item) : EAGAIN;
    ssize_t n = msgrcv(v->id, &item->message, MP_BODY_SIZE, v->selector, IPC_NOWAIT);
    if (n < 0 && errno == ENOMSG)
        return atomic_load(&v->q->spilled) == 0 ? ENOMSG : EAGAIN;
    if (n < 0)
        return removed(errno);
    int error = received(v, item, n);
    if (error == MP_OK && lengthen_streak(v) >= RELAXED_LOAD(v->patience))
        end_streak(v);
    return error;
}

/* Takes the next message without waiting for one: 0; ENOMSG: there is none; EIDRM: the queue was removed. item->token is the
 * token in our hand, or 0. If item->message.kind then is MP_BODY_PIECE, the caller frees item->piece. */
int mp_queue_take(struct mp_queue_view *v, struct mp_item *item) {
    int error = mp_queue_lock(v);
    return error != MP_OK ? error : take_and_unlock(v, item);
}

/* As mp_queue_take(), up to `most` of them. Once the kernel queue has nothing that precedes a lane, the lane holds no message
 * that one in the kernel queue has to precede, for as long as we have the lock: who would put the later one waits for it. */
int mp_queue_take_many(struct mp_queue_view *v, struct mp_item *items, uint32_t most, uint32_t *count) {
    *count = 0;
    int error = mp_queue_lock(v);
    if (error != MP_OK)
        return error;
    error = take_locked(v, items);
    while (error == MP_OK && ++*count < most) {
        struct mp_item *item = &items[*count];
        int64_t level = items[*count - 1].level;
        error = level < 0 ? ENOMSG : mp_spill_pop(v, (uint32_t)level, item);
        item->level = level;
        if (error == ENOMSG)
            error = take_locked(v, item);
    }
    if (v->flags & MP_QUEUE_COUNTED)
        atomic_fetch_add(&v->q->pending, *count);
    ensure_token(v);
    mp_queue_unlock(v);
    if (*count == 0)
        return found_nothing(v, error);
    mp_room_ring(v->f, &v->q->putters, true);
    return MP_OK;
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

/* Sleeps in msgrcv(2). As mp_queue_take(), and EINTR; ENOMSG here means: sleep again. Not for counted queues. */
int mp_queue_await(struct mp_queue_view *v, struct mp_item *item) {
    item->token = 0;
    if (linger(v))
        return mp_queue_take(v, item);
    if (RELAXED_LOAD(v->streak) > WORTHWHILE_STREAK)
        RELAXED_STORE(v->patience, SHORTEST_STREAK);
    RELAXED_STORE(v->streak, 0);
    _Atomic uint32_t *place = mp_sleeper_enter(v->f, v->index);
    ssize_t n = msgrcv(v->id, &item->message, MP_BODY_SIZE, v->selector, 0);
    int error = n < 0 ? removed(errno) : MP_OK;
    mp_sleeper_leave(place);
    if (error == MP_OK)
        error = received(v, item, n);
    return error == EAGAIN ? mp_queue_take(v, item) : error;
}

/* ---- tasks -------------------------------------------------------------------------------------------------------------------- */

/* Of a counted queue: messages in it, and those taken and not yet done. -1 with errno. */
int64_t mp_queue_unfinished(struct mp_queue_view *v) {
    if ((errno = mp_queue_lock(v)) != MP_OK)
        return MP_FAILED;
    int64_t size = count(v);
    if (size >= 0)
        size += atomic_load(&v->q->pending);
    mp_queue_unlock(v);
    return size;
}

/* ERANGE: there is no unfinished task. */
int mp_queue_task_done(struct mp_queue_view *v) {
    int error = mp_queue_lock(v);
    if (error != MP_OK)
        return error;
    int64_t size = count(v), unfinished = size + atomic_load(&v->q->pending);
    if (size < 0) {
        error = errno;
    } else if (unfinished <= 0) {
        error = ERANGE;
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
    uint32_t high = atomic_load(&f->h->block_high);
    for (uint32_t i = 0; i < high; i++)
        free_owned(f, i, owner);
}

/* Recovery, before the slots are free for others: pieces that the dead had in their hands. */
void mp_queue_recover(struct mp_family *f, uint32_t index, const uint64_t *dead) {
    struct mp_queue_view v;
    if (atomic_load(&mp_queue_of(mp_block_at(f, index))->arena) == 0 || mp_queue_open(&v, f, index) != MP_OK)
        return;
    mp_arena_recover(&v, dead);
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
    if (died || atomic_load(&q->spilled) != 0 || token & (MP_TOKEN_OUT | MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR)) {
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

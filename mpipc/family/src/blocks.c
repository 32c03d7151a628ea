/* Control blocks: making, holding, dropping, taking down; and the bells that belong to them.
 *
 * Invariants:
 *   a READY block has at least one holder or is pinned, except in the moment before its last holder, or recovery for it,
 *     takes it down;
 *   a holder is added only by a process that holds the block itself at that time, or for which its transit slot does, until it
 *     has looked at the block's word afterwards; so a block without holders never gets one again;
 *   the word of a block carries its serial, so a compare-and-swap on it cannot act on the block's next life.
 *
 * Taking down. Holders stand in several words, and nobody can look at all of them at one instant: while one looks, a holder may
 * add a child behind his back and go. Hence two steps:
 *
 *   1. who finds no holder turns READY to LEAVING, and looks at all of them again;
 *   2. he turns LEAVING to DYING if he finds none, else back to READY, and then begins anew: who has dropped the block meanwhile
 *      has left it to him;
 *   whoever adds a holder looks at the word after that, and turns LEAVING back to READY.
 *
 * If the second look misses a holder then it was added after step 1, and whoever did that has seen LEAVING and step 2 fails, or
 * it was added before, and dropped during the look: by then a holder that it had added was there from before step 1, or was
 * added after it, and so on. Where one can die: in LEAVING, recovery goes on with step 2 in his place; in DYING, with the taking
 * down. */
#include "family.h"
#include "named.h"
#include "queue.h"

#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <unistd.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

/* ---- life -------------------------------------------------------------------------------------------------------- */

static bool take(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load_explicit(&b->word, memory_order_relaxed);
    if (mp_block_state_of(word) != MP_BLOCK_FREE)
        return false;
    uint32_t high = atomic_load(&f->h->block_high);
    while (high <= index && !atomic_compare_exchange_weak(&f->h->block_high, &high, index + 1))
        ; /* first, so that recovery looks at the block from the moment it is taken */
    return atomic_compare_exchange_strong(&b->word, &word, mp_block_word(MP_BLOCK_MAKING, f->slot, mp_block_serial(word)));
}

/* With 100,000 blocks in use, a program that drops one and makes one would search the whole table each time, but for
 * `recent`, a stack whose entries are hints: threads without the GIL may lose or find one twice, and take() decides. */
static void remember(struct mp_family *f, uint32_t index) {
    uint32_t top = atomic_fetch_add_explicit(&f->recent_top, 1, memory_order_relaxed);
    atomic_store_explicit(&f->recent[top % MP_RECENT], index + 1, memory_order_relaxed);
}

static int64_t take_recent(struct mp_family *f) {
    for (;;) {
        uint32_t top = atomic_load_explicit(&f->recent_top, memory_order_relaxed);
        uint32_t entry = atomic_exchange_explicit(&f->recent[(top - 1) % MP_RECENT], 0, memory_order_relaxed);
        if (entry == 0)
            return -1;
        atomic_store_explicit(&f->recent_top, top - 1, memory_order_relaxed);
        if (take(f, entry - 1))
            return entry - 1;
    }
}

static int64_t take_any(struct mp_family *f) {
    int64_t recent = take_recent(f);
    if (recent >= 0)
        return recent;
    uint32_t start = atomic_load_explicit(&f->h->block_hint, memory_order_relaxed) % MP_BLOCKS;
    for (uint32_t n = 0; n < MP_BLOCKS; n++) {
        uint32_t index = (start + n) % MP_BLOCKS;
        if (take(f, index)) {
            atomic_store_explicit(&f->h->block_hint, index + 1, memory_order_relaxed);
            return index;
        }
    }
    errno = MP_LIMIT;
    return MP_FAILED;
}

/* Returns the index of a block in MAKING with this process as its holder, or -1 with errno. */
int64_t mp_block_new(struct mp_family *f, uint32_t kind) {
    if (mp_family_join(f) != MP_OK)
        return MP_FAILED;
    int64_t index = take_any(f);
    if (index < 0)
        return MP_FAILED;
    struct mp_block *b = mp_block_at(f, index);
    memset(b->bytes, 0, sizeof b->bytes);
    memset(b->extra, 0, sizeof b->extra);
    b->kind = kind;
    b->key = 0;
    b->size = 0;
    atomic_store(&b->pinned, 0);
    atomic_store(&b->id, -1);
    atomic_store(&b->holders[0], f->me); /* nobody else knows the block */
    return index;
}

int mp_block_ready(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    f->local_refs[index] = 1;
    atomic_store(&b->word, mp_block_word(MP_BLOCK_READY, -1, mp_block_serial(atomic_load(&b->word))));
    return MP_OK;
}

static void clear(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    mp_chunks_free(f, index);
    for (uint32_t i = 0; i < MP_HOLDER_WORDS; i++)
        atomic_store_explicit(&b->holders[i], 0, memory_order_relaxed);
    atomic_store(&b->pinned, 0);
    atomic_store(&b->word, mp_block_word(MP_BLOCK_FREE, -1, mp_block_serial(atomic_load(&b->word)) + 1));
    if (index < atomic_load_explicit(&f->h->block_hint, memory_order_relaxed))
        atomic_store_explicit(&f->h->block_hint, index, memory_order_relaxed);
    remember(f, index);
}

/* Takes down a block in MAKING or DYING: by the process in its word, or by recovery after it. */
void mp_block_abandon(struct mp_family *f, uint32_t index) {
    f->local_refs[index] = 0;
    if (mp_block_at(f, index)->kind == MP_KIND_QUEUE)
        mp_queue_disown(f, index);
    mp_block_remove_kernel_object(mp_block_at(f, index));
    clear(f, index);
}

/* Step 2, of a block that is LEAVING by `by_slot`. Returns whether it is to be decided again. */
static bool decide(struct mp_family *f, uint32_t index, int by_slot, bool *taken_down) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    uint32_t serial = mp_block_serial(word);
    uint64_t leaving = mp_block_word(MP_BLOCK_LEAVING, by_slot, serial);
    if (word != leaving)
        return false; /* somebody holds it again */
    if (!mp_block_unheld(f, b)) {
        atomic_compare_exchange_strong(&b->word, &leaving, mp_block_word(MP_BLOCK_READY, -1, serial));
        return true;
    }
    if (!atomic_compare_exchange_strong(&b->word, &leaving, mp_block_word(MP_BLOCK_DYING, by_slot, serial)))
        return false;
    mp_block_abandon(f, index);
    *taken_down = true;
    return false;
}

/* A process has one thread at a time in here (its callers hold the GIL), and there is one recovery (slot -1) at a time: so the
 * word says exactly whose turn it is. */
bool mp_block_try_free(struct mp_family *f, uint32_t index, int by_slot) {
    struct mp_block *b = mp_block_at(f, index);
    bool taken_down = false, again = true;
    while (again) {
        uint64_t word = atomic_load(&b->word);
        if (mp_block_state_of(word) != MP_BLOCK_READY || atomic_load(&b->pinned) != 0 || !mp_block_unheld(f, b))
            return false;
        uint64_t leaving = mp_block_word(MP_BLOCK_LEAVING, by_slot, mp_block_serial(word));
        again = !atomic_compare_exchange_strong(&b->word, &word, leaving) || decide(f, index, by_slot, &taken_down);
    }
    return taken_down;
}

/* Recovery: goes on where a dead process, or a recovery that did not end, was taking the block down. */
void mp_block_settle(struct mp_family *f, uint32_t index, int by_slot) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    bool taken_down = false;
    if (mp_block_state_of(word) != MP_BLOCK_LEAVING)
        return;
    uint64_t leaving = mp_block_word(MP_BLOCK_LEAVING, by_slot, mp_block_serial(word));
    if (atomic_compare_exchange_strong(&b->word, &word, leaving) && decide(f, index, by_slot, &taken_down))
        mp_block_try_free(f, index, by_slot);
}

/* One more handle in this process. ESTALE: the block is gone (its last holder died before this process could hold it). Of a
 * process that has just arrived everything is held by its transit slot until it has taken over all of it. */
int mp_block_adopt(struct mp_family *f, uint32_t index, uint32_t serial) {
    struct mp_block *b = mp_block_at(f, index);
    if (index >= MP_BLOCKS)
        return ESTALE;
    if (mp_family_join(f) != MP_OK)
        return errno;
    if (f->local_refs[index] == 0) {
        uint64_t word = atomic_load(&b->word);
        if (!mp_block_is_live(word) || mp_block_serial(word) != serial)
            return ESTALE;
        if (mp_block_hold(f, index, f->slot) != MP_OK)
            return errno;
        word = atomic_load(&b->word);
        if (!mp_block_is_live(word) || mp_block_serial(word) != serial) {
            mp_block_unhold(f, index, f->slot);
            mp_block_try_free(f, index, f->slot);
            return ESTALE;
        }
    }
    f->local_refs[index]++;
    return MP_OK;
}

void mp_block_drop(struct mp_family *f, uint32_t index) {
    if (f->local_refs[index] == 0 || --f->local_refs[index] != 0 || f->slot < 0)
        return;
    if (f->local_record[index] != 0)
        mp_sem_forget(f, index);
    mp_block_unhold(f, index, f->slot);
    mp_block_try_free(f, index, f->slot);
}

/* ---- kernel objects ---------------------------------------------------------------------------------------------- */

static key_t new_key(void) {
    uint32_t value = 0;
    if (getrandom(&value, sizeof value, 0) != sizeof value)
        value = (uint32_t)mp_now_ns() * 2654435761u;
    return (key_t)(MP_KEY_PREFIX | (value & ~MP_KEY_MASK));
}

/* The key is written down before the object is made (rule R4), and before that the time, by which the object is known. */
static void have_time_and_key(struct mp_block *b) {
    b->made_at = time(NULL);
    atomic_signal_fence(memory_order_seq_cst);
    b->key = new_key();
    atomic_signal_fence(memory_order_seq_cst);
}

int mp_block_msgget(struct mp_family *f, uint32_t index, int mode) {
    struct mp_block *b = mp_block_at(f, index);
    for (int attempt = 0; attempt < 1000; attempt++) {
        have_time_and_key(b);
        int id = msgget(b->key, IPC_CREAT | IPC_EXCL | mode);
        if (id >= 0) {
            atomic_store(&b->id, id);
            return id;
        }
        if (errno != EEXIST)
            break;
    }
    b->key = 0;
    return MP_FAILED;
}

int mp_block_shmget(struct mp_family *f, uint32_t index, uint64_t size, int flags) {
    struct mp_block *b = mp_block_at(f, index);
    b->size = size;
    for (int attempt = 0; attempt < 1000; attempt++) {
        have_time_and_key(b);
        int id = shmget(b->key, size, IPC_CREAT | IPC_EXCL | flags);
        if (id >= 0) {
            atomic_store(&b->id, id);
            return id;
        }
        if (errno != EEXIST)
            break;
    }
    b->key = 0;
    return MP_FAILED;
}

static void remove_queue(struct mp_block *b, int id) {
    struct msqid_ds ds;
    bool found_by_key = id < 0;
    if (found_by_key)
        id = msgget(b->key, 0);
    if (id < 0 || msgctl(id, IPC_STAT, &ds) < 0 || ds.msg_perm.__key != b->key || ds.msg_perm.cuid != geteuid())
        return;
    if (found_by_key && (ds.msg_ctime < b->made_at || ds.msg_lspid != 0))
        return; /* somebody else's, in whose way our msgget was when its process died */
    msgctl(id, IPC_RMID, NULL);
}

static void remove_segment(struct mp_block *b, int id) {
    struct shmid_ds ds;
    bool found_by_key = id < 0;
    if (found_by_key)
        id = shmget(b->key, 0, 0);
    if (id < 0 || shmctl(id, IPC_STAT, &ds) < 0 || ds.shm_perm.__key != b->key || ds.shm_perm.cuid != geteuid())
        return;
    if (found_by_key && (ds.shm_ctime < b->made_at || ds.shm_nattch != 0 || ds.shm_segsz != b->size))
        return;
    shmctl(id, IPC_RMID, NULL);
}

/* The key of the object is compared before it is removed: an id may have been given out again since. */
void mp_block_remove_kernel_object(struct mp_block *b) {
    if (b->key == 0)
        return;
    if (b->kind == MP_KIND_QUEUE)
        remove_queue(b, atomic_load(&b->id));
    else if (b->kind == MP_KIND_SEGMENT && ((uint32_t)b->key & MP_KEY_MASK) == MP_NAMED_PREFIX)
        mp_named_remove(b);
    else if (b->kind == MP_KIND_SEGMENT)
        remove_segment(b, atomic_load(&b->id));
}

/* ---- bells -------------------------------------------------------------------------------------------------------- */

/* The number of a bell comes from shared memory, where anything may stand. */
static bool is_bell(uint32_t bell) {
    if (bell < MP_BELLS)
        return true;
    errno = MP_CORRUPT;
    return false;
}

/* Where a bell is. -1 with errno: MP_CORRUPT, there is no such bell; or what mp_own_set() says. */
int mp_bell(struct mp_family *f, uint32_t bell, int *semid, unsigned short *num) {
    uint32_t each = f->set_size - 1, set = bell / each;
    if (!is_bell(bell))
        return MP_FAILED;
    int id = mp_published(&f->seg->bell_sets[set]);
    if (id < 0)
        id = mp_own_set(f, &f->seg->bell_sets[set], MP_SET_BELLS + set, (int)f->set_size);
    *semid = id;
    *num = (unsigned short)(1 + bell % each);
    return id < 0 ? MP_FAILED : MP_OK;
}

/* ERANGE (32767 rings not answered yet) is as good as a ring. */
int mp_bell_ring(struct mp_family *f, uint32_t bell, int times) {
    struct sembuf ring = {0, (short)(times > 32767 ? 32767 : times), IPC_NOWAIT};
    int semid;
    if (mp_bell(f, bell, &semid, &ring.sem_num) != MP_OK)
        return MP_FAILED;
    return semop(semid, &ring, 1) < 0 && errno != ERANGE ? MP_FAILED : MP_OK;
}

/* SETVAL and the readings below are for rare occasions: semctl(2) locks the whole set, for which the kernel visits each of
 * its semaphores, 20 us on a set that is otherwise used by single-operation semops (see event.c). */
int mp_bell_set(struct mp_family *f, uint32_t bell, int value) {
    union semun arg = {.val = value};
    unsigned short num;
    int semid;
    if (mp_bell(f, bell, &semid, &num) != MP_OK)
        return MP_FAILED;
    return semctl(semid, num, SETVAL, arg);
}

/* command: GETVAL, GETPID, GETNCNT or GETZCNT. A bell whose set was never made has never been touched. */
int mp_bell_get(struct mp_family *f, uint32_t bell, int command) {
    uint32_t each = f->set_size - 1;
    if (!is_bell(bell))
        return MP_FAILED;
    int id = mp_published(&f->seg->bell_sets[bell / each]);
    return id < 0 ? 0 : semctl(id, (int)(1 + bell % each), command);
}

/* One semop with op -1 (a ring) or 0 (wait for zero), for at most a tick. Returns 0 when it is done, ETIMEDOUT when the
 * deadline (CLOCK_MONOTONIC ns, < 0: none) has passed, EAGAIN when only the tick has, EINTR after a signal handler ran. */
int mp_bell_wait(struct mp_family *f, uint32_t bell, int op, int64_t deadline_ns) {
    struct sembuf wait = {0, (short)op, 0};
    int64_t left = MP_TICK_NS;
    bool last = false;
    int semid;
    if (mp_bell(f, bell, &semid, &wait.sem_num) != MP_OK)
        return errno;
    if (deadline_ns >= 0) {
        int64_t until = deadline_ns - mp_now_ns();
        if (until <= left) {
            left = until > 0 ? until : 0;
            wait.sem_flg = until > 0 ? 0 : IPC_NOWAIT; /* a sleep of 0 ns takes as long as the timer's slack */
            last = true;
        }
    }
    struct timespec timeout = {left / 1000000000, left % 1000000000};
    if (semtimedop(semid, &wait, 1, &timeout) == 0)
        return MP_OK;
    return errno == EAGAIN && last ? ETIMEDOUT : errno;
}

/* As mp_bell_wait(), with an outcome for a result. Who has waited in vain looks after the family: at each
 * tick, and if it is not for so long, as often. */
int mp_bell_await(struct mp_family *f, uint32_t bell, int op, int64_t deadline_ns) {
    int error = mp_bell_wait(f, bell, op, deadline_ns);
    switch (error) {
    case EAGAIN:
        mp_tick(f);
        return MP_TICK;
    case EINTR:
        return MP_INTERRUPTED;
    case ETIMEDOUT:
        mp_look_after(f);
        return MP_TIMED_OUT;
    default:
        return mp_error(error);
    }
}

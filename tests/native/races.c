/* Data races in the C core, for gcc's and clang's -fsanitize=thread: seven threads stand for seven processes.
 *
 * Each has an mp_family and a slot of its own, as a process would; they share the mapping of every segment, so that the sanitizer
 * sees that they mean the same memory: hence the shmat(2) below. All use one queue (small and large messages, one by one and many at
 * a time), locks, a semaphore, an event, a condition and a lock of readers and writers. What a lock guards is plain memory: a lock that lets two in is a race, too.
 *
 * Counts are exact at the end, which is checked with and without the sanitizer.
 *
 *   races ROUNDS */
#include "core.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 7
#define LARGE 100000u

#define check(condition) ((condition) ? (void)0 : fail(__LINE__, #condition))
static void fail(int line, const char *condition) {
    fprintf(stderr, "races.c:%d: not true: %s (errno %d)\n", line, condition, errno);
    exit(1);
}

/* ---- one mapping of each segment ---------------------------------------------------------------------------------------- */

static struct {
    int shmid;
    void *address;
    int uses;
} mappings[4096];
static pthread_mutex_t mappings_lock = PTHREAD_MUTEX_INITIALIZER;

void *shmat(int shmid, const void *wanted, int flags) {
    (void)wanted;
    void *address = (void *)-1;
    pthread_mutex_lock(&mappings_lock);
    for (int i = 0; i < 4096 && address == (void *)-1; i++)
        if (mappings[i].uses > 0 && mappings[i].shmid == shmid) {
            mappings[i].uses++;
            address = mappings[i].address;
        }
    for (int i = 0; i < 4096 && address == (void *)-1; i++)
        if (mappings[i].uses == 0) {
            address = (void *)syscall(SYS_shmat, shmid, NULL, flags);
            if (address == (void *)-1)
                break;
            mappings[i].shmid = shmid;
            mappings[i].address = address;
            mappings[i].uses = 1;
        }
    pthread_mutex_unlock(&mappings_lock);
    return address;
}

int shmdt(const void *address) {
    pthread_mutex_lock(&mappings_lock);
    int result = -1;
    for (int i = 0; i < 4096; i++)
        if (mappings[i].uses > 0 && mappings[i].address == address)
            result = --mappings[i].uses > 0 ? 0 : (int)syscall(SYS_shmdt, address);
    pthread_mutex_unlock(&mappings_lock);
    return result;
}

/* ---- seven processes ------------------------------------------------------------------------------------------------------ */

static struct mp_family founder;
static uint32_t queue_block, lock_block, semaphore_block, event_block, condition_block, guard_block, rwlock_block,
    broadcast_block;
static long guarded, turns, produced, consumed, written, rounds;
static _Atomic long sum_in, sum_out, taken, subscribed;

struct process {
    struct mp_family f;
    struct mp_queue_view queue;
    struct mp_broadcast_view channel;
    struct mp_subscription *subscription;
    uint64_t heard; /* all messages, in their order */
    pthread_t thread;
    int number;
};

static void become_process(struct process *p) {
    p->f = founder;
    p->f.slot = p->f.fork_slot = p->f.start_slot = -1;
    p->f.me = 0;
    p->f.local_refs = calloc(MP_BLOCKS, sizeof *p->f.local_refs);
    p->f.local_record = calloc(MP_BLOCKS, sizeof *p->f.local_record);
    p->f.stretches = calloc(MP_ARENA_SEGMENTS, sizeof *p->f.stretches);
    check(p->f.local_refs != NULL && p->f.local_record != NULL && p->f.stretches != NULL);
    /* Unused, but counted: a process that is not attached to the family's segment has become another program (recovery.c). */
    check(syscall(SYS_shmat, founder.shmid, NULL, 0) != -1);
    check(mp_family_join(&p->f) == MP_OK);
    uint32_t blocks[] = {queue_block,     lock_block,  semaphore_block, event_block,
                         condition_block, guard_block, rwlock_block,    broadcast_block};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        check(mp_block_adopt(&p->f, blocks[i], mp_block_serial(atomic_load(&mp_block_at(&p->f, blocks[i])->word))) == MP_OK);
    check(mp_queue_open(&p->queue, &p->f, queue_block) == MP_OK);
    check(mp_broadcast_open(&p->channel, &p->f, broadcast_block) == MP_OK);
    int64_t index = mp_block_new(&p->f, MP_KIND_SUBSCRIPTION);
    check(index >= 0);
    mp_block_ready(&p->f, (uint32_t)index);
    check(mp_subscribe(&p->channel, (uint32_t)index) == MP_OK);
    p->subscription = mp_subscription_of(mp_block_at(&p->f, (uint32_t)index));
    atomic_fetch_add(&subscribed, 1);
    while (atomic_load(&subscribed) < THREADS)
        sched_yield();
}

static void lock(struct process *p, uint32_t index) {
    int error;
    while ((error = mp_lock_wait(&p->f, index, -1)) != MP_OK)
        check(error == MP_TICK || error == MP_INTERRUPTED);
}
static void unlock(struct process *p, uint32_t index) { check(mp_lock_release(&p->f, index) == MP_OK); }

static void put(struct process *p, long number, bool large) {
    struct mp_message m;
    struct mp_piece piece;
    uint32_t length = sizeof number;
    m.kind = MP_BODY_INLINE;
    memcpy(m.data, &number, sizeof number);
    if (large) {
        unsigned char *data;
        check(mp_piece_claim(&p->queue, LARGE, &piece, &data) == MP_OK);
        for (uint32_t i = 0; i + sizeof number <= LARGE; i += sizeof number)
            memcpy(data + i, &number, sizeof number);
        m.kind = MP_BODY_PIECE;
        length = sizeof piece;
        memcpy(m.data, &piece, sizeof piece);
    }
    int error = mp_queue_try_send(&p->queue, &m, length, 0);
    if (error == MP_BUSY)
        error = mp_queue_send(&p->queue, &m, length, 0, -1);
    check(error == MP_OK);
    if (large)
        mp_piece_sent(&p->queue, &piece);
    atomic_fetch_add(&sum_in, number);
}

static void put_many(struct process *p, long first, int count) {
    unsigned char bodies[32 * 32];
    size_t used = 0;
    int error;
    for (int i = 0; i < count; i++) {
        long number = first + i;
        struct mp_body *body = (struct mp_body *)(bodies + used);
        body->length = 1 + sizeof number;
        body->body[0] = MP_BODY_INLINE;
        memcpy(body->body + 1, &number, sizeof number);
        used += mp_body_size(body->length);
        atomic_fetch_add(&sum_in, number);
    }
    check(mp_queue_send_many(&p->queue, bodies, (uint64_t)count, 0, -1, &error) == (uint64_t)count && error == MP_OK);
}

static void receive(struct process *p, struct mp_item *item) {
    long number;
    memcpy(&number, item->data, sizeof number);
    if (item->message.kind == MP_BODY_PIECE) {
        check(item->size == LARGE);
        for (uint32_t i = 0; i + sizeof number <= LARGE; i += sizeof number)
            check(memcmp(item->data + i, &number, sizeof number) == 0);
        mp_piece_free(&p->queue, &item->piece);
    }
    atomic_fetch_add(&sum_out, number);
    atomic_fetch_add(&taken, 1);
}

static bool take(struct process *p) {
    struct mp_item item;
    int error = mp_queue_try_take(&p->queue, &item);
    if (error == MP_BUSY)
        error = mp_queue_take(&p->queue, &item, -1);
    if (error == MP_EMPTY)
        return false;
    check(error == MP_OK);
    receive(p, &item);
    return true;
}

static void take_many(struct process *p) {
    struct mp_item items[16];
    uint32_t count;
    int error = mp_queue_take_many(&p->queue, items, 16, &count, -1);
    check(error == MP_OK || error == MP_EMPTY);
    for (uint32_t i = 0; i < count; i++)
        receive(p, &items[i]);
}

static void use_semaphore(struct process *p) {
    int error;
    if (!mp_sem_try(&p->f, semaphore_block, &error)) {
        check(error == 0 && mp_sem_enroll(&p->f, semaphore_block) == MP_OK);
        while (!mp_sem_try(&p->f, semaphore_block, &error)) {
            check(error == 0);
            mp_bell_wait(&p->f, semaphore_block, -1, mp_now_ns() + 1000000);
        }
        mp_sem_withdraw(&p->f, semaphore_block);
    }
    check(mp_sem_release(&p->f, semaphore_block) == MP_OK);
}

static void use_event(struct process *p) {
    if (p->number % 2 == 0)
        check(mp_event_set(&p->f, event_block) >= 0);
    else
        check(mp_event_clear(&p->f, event_block) >= 0);
    mp_bell_wait(&p->f, event_block, 0, mp_now_ns() + 10000);
}

/* A bounded buffer of one place, as the text books have it: a condition and the lock that guards it. */
static void use_condition(struct process *p) {
    lock(p, guard_block);
    if (p->number % 2 == 0)
        produced++;
    else if (consumed < produced)
        consumed++;
    turns++;
    if (p->number % 3 == 0) {
        int64_t cell = mp_cell_enter(&p->f, condition_block, 0, 0);
        check(cell >= 0);
        unlock(p, guard_block);
        mp_cell_wait(&p->f, (uint32_t)cell, mp_now_ns() + 200000);
        if (!mp_cell_cancel(&p->f, (uint32_t)cell))
            mp_cell_leave(&p->f, (uint32_t)cell);
        lock(p, guard_block);
    } else {
        mp_cells_notify(&p->f, condition_block, p->number == 1 ? -1 : 1);
    }
    unlock(p, guard_block);
}

static void read_or_wait(struct process *p) {
    uint32_t tenure, index = rwlock_block;
    int64_t cell = -1;
    int error = mp_rw_read_try(&p->f, index);
    if (error == MP_OK)
        return;
    check(error == MP_BUSY && mp_rw_read_enroll(&p->f, index, &tenure) == MP_OK);
    for (;;) {
        check((cell = mp_rw_cell(&p->f, index, cell, MP_RW_READ)) >= 0);
        if (mp_rw_read_look(&p->f, index, tenure))
            break;
        mp_cell_wait(&p->f, (uint32_t)cell, -1);
    }
    mp_cell_leave(&p->f, (uint32_t)cell);
}

static void write_or_wait(struct process *p) {
    int64_t cell = -1;
    if (mp_rw_write_try(&p->f, rwlock_block))
        return;
    lock(p, rwlock_block);
    mp_rw_write_begin(&p->f, rwlock_block);
    for (;;) {
        check((cell = mp_rw_cell(&p->f, rwlock_block, cell, MP_RW_WRITE)) >= 0);
        if (mp_rw_write_look(&p->f, rwlock_block))
            break;
        mp_cell_wait(&p->f, (uint32_t)cell, -1);
    }
    mp_cell_leave(&p->f, (uint32_t)cell);
}

static void use_rwlock(struct process *p, long round) {
    if ((p->number + round) % 4 != 0) {
        read_or_wait(p);
        long seen = written;
        sched_yield();
        check(written == seen);
        mp_rw_read_release(&p->f, rwlock_block);
    } else {
        write_or_wait(p);
        written++;
        check(mp_rw_write_release(&p->f, rwlock_block) == MP_OK);
    }
}

/* Everybody hears what everybody says, in one order. */
static bool hear(struct process *p) {
    struct mp_letter letter;
    uint64_t said;
    if (mp_subscription_next(&p->channel, p->subscription, &letter) != MP_OK)
        return false;
    memcpy(&said, letter.data, sizeof said);
    check(mp_subscription_take(&p->channel, p->subscription, &letter));
    p->heard = p->heard * 0x9e3779b97f4a7c15ull + said;
    return true;
}

static void say(struct process *p, long round) {
    uint64_t word = (uint64_t)(p->number * rounds + round);
    int64_t cell = -1;
    for (;;) {
        struct mp_letter letter = {.length = sizeof word};
        check((cell = mp_broadcast_cell(&p->channel, cell, MP_PLACE_PUT)) >= 0);
        int outcome = mp_broadcast_begin(&p->channel, &letter, -1);
        if (outcome == MP_OK) {
            memcpy(letter.data, &word, sizeof word);
            check(mp_broadcast_publish(&p->channel, &letter) == MP_OK);
            break;
        }
        check(outcome == MP_FULL || outcome == MP_TICK || outcome == MP_INTERRUPTED);
        if (!hear(p)) /* then it is others that are slow */
            mp_cell_wait(&p->f, (uint32_t)cell, mp_now_ns() + 1000000);
    }
    mp_cell_leave(&p->f, (uint32_t)cell);
}

static void *life(void *argument) {
    struct process *p = argument;
    become_process(p);
    for (long round = 0; round < rounds; round++) {
        lock(p, lock_block);
        guarded++;
        unlock(p, lock_block);
        put(p, p->number * rounds + round, round % 8 == 0);
        if (round % 4 == 0)
            put_many(p, round, 16);
        use_semaphore(p);
        take(p);
        if (round % 4 == 1)
            take_many(p);
        if (round % 16 == 0)
            use_event(p);
        use_condition(p);
        for (int i = 0; i < 8; i++)
            use_rwlock(p, round + i);
        say(p, round);
        hear(p);
        if (round % 64 == 0) {
            int64_t index = mp_block_new(&p->f, MP_KIND_LOCK);
            check(index >= 0);
            mp_block_ready(&p->f, (uint32_t)index);
            mp_block_drop(&p->f, (uint32_t)index);
        }
    }
    for (;;) { /* until all have said, and this one has heard, everything */
        uint64_t number = atomic_load(&p->subscription->next);
        if (number == (uint64_t)(THREADS * rounds))
            return NULL;
        if (!hear(p))
            sched_yield();
    }
}

static uint32_t make(uint32_t kind) {
    int64_t index = mp_block_new(&founder, kind);
    check(index >= 0);
    return (uint32_t)index;
}

int main(int argc, char **argv) {
    static struct process processes[THREADS];
    rounds = argc > 1 ? atol(argv[1]) : 1000;
    check(mp_family_create(&founder, "races", mp_tick) == MP_OK && mp_family_join(&founder) == MP_OK);
    queue_block = make(MP_KIND_QUEUE);
    check(mp_block_msgget(&founder, queue_block, 0600) >= 0 && mp_queue_make(&founder, queue_block, 0, 0) == MP_OK);
    semaphore_block = make(MP_KIND_SEMAPHORE);
    mp_sem_init(mp_block_at(&founder, semaphore_block), 3, 3, MP_RETURNS_GUESSED);
    event_block = make(MP_KIND_EVENT);
    condition_block = make(MP_KIND_CONDITION);
    lock_block = make(MP_KIND_LOCK);
    guard_block = make(MP_KIND_LOCK);
    broadcast_block = make(MP_KIND_BROADCAST);
    check(mp_block_shmget(&founder, broadcast_block, mp_broadcast_size(16, 128), 0600) >= 0);
    mp_broadcast_init(mp_block_at(&founder, broadcast_block), 16, 128, 0);
    rwlock_block = make(MP_KIND_RWLOCK);
    mp_rw_init(mp_block_at(&founder, rwlock_block));
    uint32_t blocks[] = {queue_block,     lock_block,  semaphore_block, event_block,
                         condition_block, guard_block, rwlock_block,    broadcast_block};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        mp_block_ready(&founder, blocks[i]);
    check(mp_event_init(&founder, event_block) >= 0);
    for (int i = 0; i < THREADS; i++) {
        processes[i].number = i;
        check(pthread_create(&processes[i].thread, NULL, life, &processes[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(processes[i].thread, NULL);
    while (take(&processes[0]))
        ;
    check(guarded == THREADS * rounds && turns == THREADS * rounds);
    long writes = 0;
    for (long round = 0; round < rounds; round++)
        for (int i = 0; i < THREADS; i++)
            for (int use = 0; use < 8; use++)
                writes += (i + round + use) % 4 == 0;
    check(written == writes);
    for (int i = 1; i < THREADS; i++)
        check(processes[i].heard == processes[0].heard);
    check(atomic_load(&sum_in) == atomic_load(&sum_out));
    check(atomic_load(&taken) == THREADS * (rounds + (rounds + 3) / 4 * 16));
    check(mp_sem_value(mp_block_at(&founder, semaphore_block)) == 3);
    printf("%d threads as processes, %ld rounds: %ld messages, all counts exact\n", THREADS, rounds, atomic_load(&taken));
    mp_family_destroy(&founder);
    return 0;
}

/* What a pool's worker has spent its time on, in the 64 bytes of a DATA block: written by the worker, read by its pool.
 *
 * The worker is at one activity at a time. When it turns to another, what it has spent on the one before is added to the sum of
 * that. `now` says at what it is, and since when, in one word; while a sum changes it says neither, so whoever finds the same
 * activity there before and after he has read the sums has sums that belong to it, and may add what has passed since then.
 *
 * Where the worker can die: before `now` says neither, nothing has changed; then the sum is the old one or the new one, and to
 * be added is nothing. So what is known of a dead worker goes up to its last turn, or to the one before. */
#ifndef MPIPC_TIMES_H
#define MPIPC_TIMES_H

#include <stdatomic.h>
#include <stdint.h>

enum mp_activity {
    MP_TURNING = 0,  /* a sum is being changed; or it has not begun */
    MP_WAITING = 1,  /* for a task */
    MP_WORKING = 2,  /* in the user's function */
    MP_TRANSFER = 3, /* all else: unpacks arguments, packs and sends results */
};

struct mp_times {
    _Atomic uint64_t now;      /* since when, CLOCK_MONOTONIC in ns : 62 | enum mp_activity : 2 */
    _Atomic uint64_t spent[4]; /* ns, by activity */
    _Atomic uint64_t tasks;    /* how often it has turned away from MP_WORKING */
    uint64_t unused[2];
};
_Static_assert(sizeof(struct mp_times) == 64, "the payload of a block");

#define MP_TIMES_TRIES 1000

static inline enum mp_activity mp_times_activity(struct mp_times *t) {
    return (enum mp_activity)(atomic_load_explicit(&t->now, memory_order_relaxed) & 3);
}

/* The worker: from now on it is at this. Returns how many ns it has been at what it was at before. */
static inline uint64_t mp_times_turn(struct mp_times *t, enum mp_activity to, uint64_t now_ns) {
    uint64_t word = atomic_load_explicit(&t->now, memory_order_relaxed), spent = now_ns - (word >> 2);
    unsigned from = word & 3;
    if (from != MP_TURNING) {
        atomic_store_explicit(&t->now, now_ns << 2 | MP_TURNING, memory_order_relaxed);
        atomic_thread_fence(memory_order_release);
        uint64_t sum = atomic_load_explicit(&t->spent[from], memory_order_relaxed);
        atomic_store_explicit(&t->spent[from], sum + spent, memory_order_relaxed);
        if (from == MP_WORKING) {
            uint64_t tasks = atomic_load_explicit(&t->tasks, memory_order_relaxed);
            atomic_store_explicit(&t->tasks, tasks + 1, memory_order_relaxed);
        }
    }
    atomic_store_explicit(&t->now, now_ns << 2 | to, memory_order_release);
    return spent;
}

/* The pool: the sums by activity, and the number of tasks. Returns `now` as it was at that time; at MP_TURNING if the worker has
 * been killed or stopped there, or has turned so often that no look has met it at one activity. */
static inline uint64_t mp_times_read(struct mp_times *t, uint64_t spent[4], uint64_t *tasks) {
    uint64_t before = 0;
    for (int i = 0; i < MP_TIMES_TRIES; i++) {
        before = atomic_load_explicit(&t->now, memory_order_acquire);
        for (int a = 0; a < 4; a++)
            spent[a] = atomic_load_explicit(&t->spent[a], memory_order_relaxed);
        *tasks = atomic_load_explicit(&t->tasks, memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        uint64_t after = atomic_load_explicit(&t->now, memory_order_relaxed);
        if (before == after && (before & 3) != MP_TURNING)
            return before;
    }
    return before & ~3ull;
}

#endif

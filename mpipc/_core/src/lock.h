/* The lock word. */
#ifndef MPIPC_LOCK_H
#define MPIPC_LOCK_H

#include "family.h"
#include "threads.h"

/* The fast path of every lock. contended: MP_LOCK_CONTENDED after parking, because others may be parked still; else 0. Needs
 * a joined process: fails else. */
static inline bool mp_lock_try(struct mp_family *f, struct mp_block *b, uint64_t contended) {
    uint64_t word = 0, me = f->me | contended;
    if (f->me == 0)
        return false; /* a child that was forked in the middle of a call of its parent's; mp_lock_wait() lets it join */
    while (!atomic_compare_exchange_weak_explicit(&b->lock.word, &word, me | (word & (MP_LOCK_DIED | MP_LOCK_CONTENDED)),
                                                  memory_order_acquire, memory_order_relaxed))
        if (word & MP_LOCK_OWNER)
            return false;
    return true;
}

/* The common case of mp_lock_release(): this process has it, nobody waits, and nobody has died with it. */
static inline bool mp_lock_release_now(struct mp_family *f, struct mp_block *b) {
    uint64_t word = f->me;
    return word != 0 && atomic_compare_exchange_strong(&b->lock.word, &word, 0);
}

static inline void mp_lock_set_thread(struct mp_block *b, uint32_t thread) {
    atomic_store_explicit(&b->more.lock.thread, thread, memory_order_release);
}

/* Does this thread own the lock? */
static inline bool mp_lock_mine(struct mp_family *f, struct mp_block *b) {
    return (atomic_load_explicit(&b->lock.word, memory_order_relaxed) & MP_LOCK_OWNER) == f->me && f->me != 0 &&
           atomic_load_explicit(&b->more.lock.thread, memory_order_acquire) == mp_this_thread();
}

int mp_lock_wait(struct mp_family *f, uint32_t index, int64_t deadline_ns);
int mp_lock_release(struct mp_family *f, uint32_t index);
void mp_lock_recover(struct mp_family *f, uint32_t index, int dead_slot);
void mp_lock_heal(struct mp_family *f, uint32_t index);

#endif

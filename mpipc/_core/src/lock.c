/* The lock word: taken by compare-and-swap, with a bell to park at.
 *
 * Invariants:
 *   the word names the owner, so "who holds it" and "is it held" are one atomic fact, and a dead owner is found exactly;
 *   whoever parks has seen, or made, the word CONTENDED while it was owned, so the release that follows rings;
 *   a woken waiter takes the word CONTENDED, because it cannot know whether others are parked.
 *
 * Where a process can die:
 *   acquiring, before the compare-and-swap: it has at most set CONTENDED, which costs the owner one needless ring;
 *   parked: nothing of it is left but that;
 *   woken (the ring is consumed) and not yet owner: the word is free, nobody rings again. Recovery does, for every lock at
 *     whose bell the kernel counts sleepers (GETNCNT);
 *   owning: recovery frees the word, marks it DIED, and rings;
 *   releasing, between the compare-and-swap and the ring: the same as woken. */
#include "lock.h"

#include "bells.h"
#include "slots.h"

/* Waits until the lock is taken. Also MP_TIMED_OUT, MP_INTERRUPTED, MP_TICK, or an error. */
int mp_lock_wait(struct mp_family *f, uint32_t index, int64_t deadline_ns) {
    struct mp_block *b = mp_block_at(f, index);
    bool woken = false;
    if (f->me == 0 && mp_family_join(f) != MP_OK)
        return errno;
    for (;;) {
        if (mp_lock_try(f, b, woken ? MP_LOCK_CONTENDED : 0))
            return MP_OK;
        uint64_t word = atomic_load(&b->lock.word);
        if (!(word & MP_LOCK_OWNER))
            continue;
        if (!atomic_load_explicit(&b->lock.parked, memory_order_relaxed))
            atomic_store(&b->lock.parked, 1);
        if (!(word & MP_LOCK_CONTENDED) && !atomic_compare_exchange_strong(&b->lock.word, &word, word | MP_LOCK_CONTENDED))
            continue;
        int outcome = mp_bell_await(f, index, -1, deadline_ns);
        if (outcome != MP_OK)
            return outcome;
        woken = true;
    }
}

/* Any process may release, as with multiprocessing.Lock. Also MP_NOT_HELD. */
int mp_lock_release(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load_explicit(&b->lock.word, memory_order_relaxed);
    do {
        if (!(word & MP_LOCK_OWNER))
            return MP_NOT_HELD;
    } while (!atomic_compare_exchange_weak(&b->lock.word, &word, 0));
    if (word & MP_LOCK_CONTENDED)
        return mp_bell_ring(f, index, 1) == MP_OK ? MP_OK : mp_error(errno);
    return MP_OK;
}

/* Recovery: the lock's owner is dead, or the lock is free and somebody sleeps at its bell. */
void mp_lock_recover(struct mp_family *f, uint32_t index, int dead_slot) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->lock.word);
    while (dead_slot >= 0 && (word & MP_LOCK_OWNER) == (uint64_t)dead_slot + 1) {
        if (atomic_compare_exchange_weak(&b->lock.word, &word, MP_LOCK_DIED)) {
            if (word & MP_LOCK_CONTENDED)
                mp_bell_ring(f, index, 1);
            return;
        }
    }
}

void mp_lock_heal(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    if (!atomic_load(&b->lock.parked) || mp_bell_get(f, index, GETNCNT) <= 0)
        return;
    uint64_t word = atomic_load(&b->lock.word);
    while ((word & MP_LOCK_OWNER) && !(word & MP_LOCK_CONTENDED))
        if (atomic_compare_exchange_weak(&b->lock.word, &word, word | MP_LOCK_CONTENDED))
            return;
    if (!(word & MP_LOCK_OWNER))
        mp_bell_ring(f, index, 1);
}

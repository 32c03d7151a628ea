/* The barrier: waiters are wait cells (cells.c) that carry the number of the cycle, `generation`, in which they wait, so the count of
 * those who have arrived is exact however many were killed. It has a lock of its own; who arrives, or ends a cycle, holds it.
 *
 * A cycle ends in four steps:
 *
 *   1. broken              whether the barrier is from now on, until it is reset
 *   2. broken_generations  how this cycle ends, in bit generation % 64
 *   3. generation + 1      it has ended
 *   4. the cells of those who wait are ended, and each is rung for
 *
 * Where the one who does it can die:
 *   before 1: nothing has happened; whoever comes next does it;
 *   after 1: if the barrier is to be broken it is, for those who wait as well (mp_barrier_outcome), though the cycle goes on in the
 *     count; else nothing has happened;
 *   after 2: the same: the bit of a cycle that goes on is of no meaning, and is written again when that ends;
 *   after 3: those who wait see that their cycle is over, and how, when they look; recovery rings for who sleeps (mp_cell_heal);
 *   in 4: the same for those whose cell has not been ended.
 *
 * A waiter may look as late as 63 cycles after his own has ended. After that nobody knows any more how it did: it counts as broken. */
#include "barrier.h"

#include "cells.h"
#include "slots.h"

#define HISTORY 64u /* bits of broken_generations */

static struct mp_condition *at(struct mp_family *f, uint32_t index) { return &mp_block_at(f, index)->condition; }

/* How many wait in the present cycle and live; *place: the lowest place that none of them has. With the lock. */
uint32_t mp_barrier_waiting(struct mp_family *f, uint32_t index, uint32_t *place) {
    uint64_t taken[MP_CELLS / 64] = {0}; /* no more than MP_CELLS can wait: one of their places is free */
    uint64_t generation = atomic_load(&at(f, index)->generation);
    uint32_t waiting = 0, high = mp_cell_high(f);
    for (uint32_t i = 0; i < high; i++) {
        struct mp_cell *c = &f->seg->cells[i];
        uint64_t word = atomic_load(&c->word);
        if (mp_cell_state(word) != MP_CELL_WAITING || mp_cell_block(word) != index ||
            atomic_load(&c->generation) != generation || !mp_slot_lives(f, mp_cell_slot(word)))
            continue;
        uint32_t theirs = atomic_load(&c->index);
        waiting++;
        if (theirs < MP_CELLS)
            taken[theirs / 64] |= 1ull << theirs % 64;
    }
    for (*place = 0; *place < MP_CELLS - 1 && taken[*place / 64] >> *place % 64 & 1; ++*place)
        ;
    return waiting;
}

/* Registers this thread as a waiter of the present cycle. The cell, or -1 with errno. With the lock. */
int64_t mp_barrier_enter(struct mp_family *f, uint32_t index, uint32_t place, uint64_t *generation) {
    *generation = atomic_load(&at(f, index)->generation);
    return mp_cell_enter(f, index, *generation, place);
}

/* With the lock. `stays_broken`: until the next end of a cycle that does not. */
void mp_barrier_end(struct mp_family *f, uint32_t index, bool broken, bool stays_broken) {
    struct mp_condition *c = at(f, index);
    uint64_t generation = atomic_load(&c->generation), bit = 1ull << generation % HISTORY;
    uint64_t history = atomic_load(&c->broken_generations);
    atomic_store(&c->broken, stays_broken);
    atomic_store(&c->broken_generations, broken ? history | bit : history & ~bit);
    atomic_store(&c->generation, generation + 1);
    uint32_t high = mp_cell_high(f);
    for (uint32_t i = 0; i < high; i++)
        mp_cell_end(f, i, index, broken ? MP_CELL_BROKEN : MP_CELL_NOTIFIED);
}

/* What has become of a waiter's cycle. */
enum mp_barrier_outcome mp_barrier_outcome(struct mp_family *f, uint32_t index, uint32_t cell, uint64_t generation) {
    struct mp_condition *c = at(f, index);
    uint32_t state = mp_cell_state(atomic_load(&f->seg->cells[cell].word));
    if (state == MP_CELL_NOTIFIED || state == MP_CELL_BROKEN)
        return state == MP_CELL_NOTIFIED ? MP_BARRIER_PASSED : MP_BARRIER_BROKEN;
    uint64_t ended = atomic_load(&c->generation) - generation;
    if (ended == 0)
        return atomic_load(&c->broken) ? MP_BARRIER_BROKEN : MP_BARRIER_WAITING;
    bool broken = ended > HISTORY || atomic_load(&c->broken_generations) >> generation % HISTORY & 1;
    return broken ? MP_BARRIER_BROKEN : MP_BARRIER_PASSED;
}

/* Wait cells: one for each thread that waits in a Condition, Barrier, RWLock or Broadcast, with a bell of its own.
 *
 * A cell's word is {state, slot of the waiter, block}: registering, being notified and giving up are one compare-and-swap
 * each, so notify() counts exactly the waiters that are there, and a dead waiter's cell is found by its slot. Waiters are
 * served in the order of their tickets.
 *
 * Where a waiter can die:
 *   CLAIMED or WAITING: recovery frees the cell; notify() does not count a waiter that is dead already;
 *   NOTIFIED: the notification would be lost with it, so recovery passes it on to the next waiter;
 *   RELEASED, by a notification of all: whoever waits now came later, so nothing is passed on.
 * Where a notifier can die: between a cell's change to NOTIFIED and the ring: the waiter looks again after a tick, or at once
 *   when recovery rings every bell of a notified cell. */
#include "cells.h"

#include "bells.h"
#include "slots.h"

static uint64_t cell_word(enum mp_cell_state state, int slot, uint32_t index) {
    return (uint64_t)state | (uint64_t)(slot + 1) << 8 | (uint64_t)index << 32;
}
uint32_t mp_cell_state(uint64_t w) { return w & 0xff; }
int mp_cell_slot(uint64_t w) { return (int)(w >> 8 & 0xffff) - 1; }
uint32_t mp_cell_block(uint64_t w) { return w >> 32; }

int64_t mp_cell_enter(struct mp_family *f, uint32_t index, uint64_t generation, uint32_t place) {
    if (mp_family_join(f) != MP_OK)
        return MP_FAILED;
    for (uint32_t i = 0; i < MP_CELLS; i++) {
        struct mp_cell *c = &f->seg->cells[i];
        uint64_t word = 0;
        if (atomic_load_explicit(&c->word, memory_order_relaxed) != 0)
            continue;
        uint32_t high = atomic_load(&f->h->cell_high);
        while (high <= i && !atomic_compare_exchange_weak(&f->h->cell_high, &high, i + 1))
            ;
        if (!atomic_compare_exchange_strong(&c->word, &word, cell_word(MP_CELL_CLAIMED, f->slot, index)))
            continue;
        atomic_store(&c->ticket, atomic_fetch_add(&mp_block_at(f, index)->condition.tickets, 1));
        atomic_store(&c->generation, generation);
        atomic_store(&c->index, place);
        atomic_store(&c->word, cell_word(MP_CELL_WAITING, f->slot, index));
        return i;
    }
    errno = MP_TABLE_FULL;
    return MP_FAILED;
}

/* Not the caller's: a child forked by a signal handler while its parent waited goes on in the middle of the wait. */
static bool is_own(struct mp_family *f, uint64_t word) { return mp_cell_slot(word) == f->slot; }

void mp_cell_leave(struct mp_family *f, uint32_t cell) {
    if (is_own(f, atomic_load(&f->seg->cells[cell].word)))
        atomic_store(&f->seg->cells[cell].word, 0);
}

/* Where a thread waits that is served with all others of its place: this cell if nobody has rung for it yet, else another one.
 * cell: -1 if it has none yet. -1 with errno. */
int64_t mp_cell_again(struct mp_family *f, uint32_t index, int64_t cell, uint32_t place) {
    if (cell >= 0) {
        if (mp_cell_state(atomic_load(&f->seg->cells[cell].word)) == MP_CELL_WAITING)
            return cell;
        mp_cell_leave(f, (uint32_t)cell);
    }
    return mp_cell_enter(f, index, 0, place);
}

/* Gives up. false: the cell has been notified (or broken) meanwhile and is still the caller's. */
bool mp_cell_cancel(struct mp_family *f, uint32_t cell) {
    struct mp_cell *c = &f->seg->cells[cell];
    uint64_t word = atomic_load(&c->word);
    if (!is_own(f, word))
        return true;
    return mp_cell_state(word) == MP_CELL_WAITING && atomic_compare_exchange_strong(&c->word, &word, 0);
}

/* MP_OK when the cell is no longer WAITING or its bell rang; MP_TICK, MP_TIMED_OUT, MP_INTERRUPTED, or an error. */
int mp_cell_wait(struct mp_family *f, uint32_t cell, int64_t deadline_ns) {
    if (mp_cell_state(atomic_load(&f->seg->cells[cell].word)) != MP_CELL_WAITING)
        return MP_OK;
    return mp_bell_await(f, mp_cell_bell(cell), -1, deadline_ns);
}

/* Changes one waiting cell; the ring comes after. */
bool mp_cell_end(struct mp_family *f, uint32_t cell, uint32_t index, enum mp_cell_state state) {
    struct mp_cell *c = &f->seg->cells[cell];
    uint64_t word = atomic_load(&c->word);
    if (mp_cell_state(word) != MP_CELL_WAITING || mp_cell_block(word) != index)
        return false;
    if (!atomic_compare_exchange_strong(&c->word, &word, cell_word(state, mp_cell_slot(word), index)))
        return false;
    mp_bell_ring(f, mp_cell_bell(cell), 1);
    return true;
}

/* Rings for all of one place. */
void mp_cells_release(struct mp_family *f, uint32_t index, uint32_t place) {
    uint32_t high = mp_cell_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (atomic_load(&f->seg->cells[i].index) == place)
            mp_cell_end(f, i, index, MP_CELL_RELEASED);
}

/* Notifies the `count` live waiters that came first; all of them if count < 0. Returns how many. */
int mp_cells_notify(struct mp_family *f, uint32_t index, int64_t count) {
    uint32_t high = mp_cell_high(f);
    int notified = 0;
    if (count < 0) {
        for (uint32_t i = 0; i < high; i++)
            notified += mp_cell_end(f, i, index, MP_CELL_RELEASED);
        return notified;
    }
    while (notified < count) {
        int64_t first = -1;
        for (uint32_t i = 0; i < high; i++) {
            uint64_t word = atomic_load(&f->seg->cells[i].word);
            if (mp_cell_state(word) != MP_CELL_WAITING || mp_cell_block(word) != index)
                continue;
            if (!mp_slot_lives(f, mp_cell_slot(word)))
                continue;
            if (first < 0 || atomic_load(&f->seg->cells[i].ticket) < atomic_load(&f->seg->cells[first].ticket))
                first = i;
        }
        if (first < 0)
            break;
        notified += mp_cell_end(f, (uint32_t)first, index, MP_CELL_NOTIFIED);
    }
    return notified;
}

int mp_cells_waiting(struct mp_family *f, uint32_t index) {
    uint32_t high = mp_cell_high(f);
    int waiting = 0;
    for (uint32_t i = 0; i < high; i++) {
        uint64_t word = atomic_load(&f->seg->cells[i].word);
        waiting +=
            mp_cell_state(word) == MP_CELL_WAITING && mp_cell_block(word) == index && mp_slot_lives(f, mp_cell_slot(word));
    }
    return waiting;
}

/* Recovery: frees the cell of a dead waiter, and passes on what it had been told. */
void mp_cell_recover(struct mp_family *f, uint32_t cell, int dead_slot) {
    uint64_t word = atomic_load(&f->seg->cells[cell].word);
    if (word == 0 || mp_cell_slot(word) != dead_slot)
        return;
    uint32_t index = mp_cell_block(word);
    if (index < MP_BLOCKS && mp_cell_state(word) == MP_CELL_NOTIFIED && mp_block_at(f, index)->kind == MP_KIND_CONDITION)
        mp_cells_notify(f, index, 1); /* first: dying here repeats a notification, which waiters allow for */
    atomic_store(&f->seg->cells[cell].word, 0);
}

/* Recovery: a notifier may have died before it rang. */
void mp_cell_heal(struct mp_family *f, uint32_t cell) {
    uint32_t state = mp_cell_state(atomic_load(&f->seg->cells[cell].word));
    if (state >= MP_CELL_WAITING)
        if (mp_bell_get(f, mp_cell_bell(cell), GETNCNT) > 0)
            mp_bell_ring(f, mp_cell_bell(cell), 1);
}

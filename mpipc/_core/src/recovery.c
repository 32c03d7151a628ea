/* Recovery: what is done for processes that are no longer there. Run by the reaper on every death, by any process that has
 * waited for a tick and finds that nobody did it, and by the sweep for whole families.
 *
 * One process at a time recovers a family: dying in here gives its lock to the next (liveness.c). Every step
 * can be done again from the start: a slot stays DEAD until nothing in the segment mentions it (rule R3). */
#include "recovery.h"

#include "blocks.h"
#include "carriers.h"
#include "cells.h"
#include "guests.h"
#include "banks.h"
#include "holders.h"
#include "kinds.h"
#include "liveness.h"
#include "lock.h"
#include "processes.h"
#include "queue.h"
#include "records.h"
#include "sets.h"
#include "slots.h"
#include "ties.h"
#include "waits.h"

#include <limits.h>
#include <string.h>

struct dead {
    uint64_t bits[MP_HOLDER_IDS / 64]; /* of slots only; carriers are looked at by themselves */
    int count;
};

#ifndef MP_SUSPICION_MS
#define MP_SUSPICION_MS 200
#endif

/* What one pass knows of all processes. */
struct census {
    uint32_t high;
    unsigned short alive[MP_SLOTS];
    unsigned long attached; /* the kernel's count; ULONG_MAX: it could not be read */
    unsigned long known;    /* those that the table knows about, the reaper, and we if we are a stranger */
    unsigned long forked;   /* children that have not claimed their slot yet, and may be dead */
    bool missing;           /* fewer are attached than are known, and have been for a while */
};

static uint32_t now_ms(void) { return (uint32_t)(mp_now_ns() / 1000000) | 1; }

/* Has it been so for a while? The count of attachments is lowered by a death a moment before alive[slot] is, and for that
 * moment every comparison of the two is off by one. */
static bool lasts(_Atomic uint32_t *since, bool so) {
    if (!so) {
        atomic_store(since, 0);
        return false;
    }
    uint32_t now = now_ms(), never = 0;
    return !atomic_compare_exchange_strong(since, &never, now) && now - never >= MP_SUSPICION_MS;
}

static void take_census(struct mp_family *f, struct census *c) {
    struct shmid_ds ds;
    c->high = mp_slot_high(f);
    mp_alive_read(f, c->high, c->alive);
    c->forked = 0;
    c->known = f->outsider + (mp_reaper_present(f) ? 1ul : 0ul);
    for (uint32_t i = 0; i < c->high; i++) {
        enum mp_slot_state state = mp_slot_state_of(atomic_load(&f->seg->slots[i].word));
        c->known += (state == MP_SLOT_ALIVE || state == MP_SLOT_JOINING) && c->alive[i] != 0;
        c->forked += state == MP_SLOT_FORKED;
    }
    c->attached = shmctl(f->shmid, IPC_STAT, &ds) == 0 ? (unsigned long)ds.shm_nattch : ULONG_MAX;
    c->missing = lasts(&f->h->missing_since, c->attached < c->known + c->forked);
}

/* Is nobody there whom the table does not know? In the sweep nobody else is attached at all. */
static bool nobody_unknown(struct mp_family *f, struct mp_slot *s, const struct census *c) {
    if (c->attached == ULONG_MAX)
        return false;
    if (f->outsider && c->attached == 1)
        return true;
    return lasts(&s->suspect, c->attached <= c->known);
}

/* Is the process gone that reserved the slot (of a foreign one the slot is asked that it has itself), or that it is sent to? */
static bool reserver_gone(struct mp_family *f, struct mp_slot *s, uint64_t word) {
    int slot = (int)(s - f->seg->slots), reserver = (int)atomic_load(&s->parent) - 1;
    if (!mp_slot_is_foreign(f, slot))
        return mp_process_gone(mp_slot_pid(word));
    return !mp_slot_lives(f, reserver);
}

/* A reservation for a forked child: see mp_fork_prepare(). */
static bool reservation_void(struct mp_family *f, struct mp_slot *s, uint64_t word, const struct census *c) {
    if (mp_slot_state_of(word) == MP_SLOT_FORKING && !reserver_gone(f, s, word))
        return false;
    return nobody_unknown(f, s, c);
}

/* A member that lives, but as another program, by execve(2): it has nothing attached any more. If nobody but us is, that is true
 * of all of them. */
static bool has_left_by_exec(struct mp_family *f, int slot, uint64_t word, struct census *c) {
    unsigned long us = 1ul + (!f->outsider && f->slot >= 0 && mp_reaper_present(f) ? 1ul : 0ul);
    pid_t pid = mp_slot_pid(word);
    if (!c->missing || slot == f->slot || (mp_slot_is_foreign(f, slot) && c->attached > us))
        return false;
    if (c->attached > us) {
        uint64_t started = atomic_load(&f->seg->slots[slot].start_time);
        if (started == 0 || mp_process_start_time(pid) != started || mp_process_attached(pid, f->shmid) != 0)
            return false;
    }
    mp_slot_cancel_undo(f, slot);
    c->known--;
    return true;
}

static bool slot_is_over(struct mp_family *f, int slot, uint64_t word, struct census *c) {
    struct mp_slot *s = &f->seg->slots[slot];
    switch (mp_slot_state_of(word)) {
    case MP_SLOT_ALIVE: /* by now: it may have joined after the census */
        return c->alive[slot] != 0 ? has_left_by_exec(f, slot, word, c) : !mp_slot_lives(f, slot);
    case MP_SLOT_JOINING:
        return (mp_slot_is_foreign(f, slot) ? nobody_unknown(f, s, c) : mp_process_gone(mp_slot_pid(word))) &&
               !mp_slot_is_alive(f, slot);
    case MP_SLOT_TRANSIT:
        return reserver_gone(f, s, word) && (!mp_slot_is_foreign(f, slot) || nobody_unknown(f, s, c));
    case MP_SLOT_FORKING:
    case MP_SLOT_FORKED:
        return reservation_void(f, s, word, c);
    default:
        return false;
    }
}

static void look_at(struct mp_family *f, uint32_t slot, bool reserved, struct census *census, struct dead *dead) {
    struct mp_slot *s = &f->seg->slots[slot];
    uint64_t word = atomic_load(&s->word);
    enum mp_slot_state state = mp_slot_state_of(word);
    if (state == MP_SLOT_FREE || (state == MP_SLOT_FORKING || state == MP_SLOT_FORKED) != reserved)
        return;
    if (state != MP_SLOT_DEAD) {
        uint64_t over = mp_slot_word(MP_SLOT_DEAD, mp_slot_generation(word), mp_slot_pid(word));
        if (!slot_is_over(f, (int)slot, word, census) || !atomic_compare_exchange_strong(&s->word, &word, over))
            return; /* the latter: it has just been claimed */
    }
    dead->bits[slot / 64] |= 1ull << slot % 64;
    dead->count++;
}

/* Reservations last: what is known of them depends on the others. */
static void find_dead(struct mp_family *f, struct dead *dead) {
    struct census census;
    take_census(f, &census);
    memset(dead, 0, sizeof *dead);
    for (uint32_t i = 0; i < census.high; i++)
        look_at(f, i, false, &census, dead);
    for (uint32_t i = 0; i < census.high; i++)
        look_at(f, i, true, &census, dead);
}

static void recover_block(struct mp_family *f, uint32_t index, const struct dead *dead) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    switch (mp_block_state_of(word)) {
    case MP_BLOCK_FREE:
        return;
    case MP_BLOCK_MAKING:
        if (mp_slots_have(dead->bits, mp_block_slot_of(word))) {
            mp_guests_remove(f, b);
            mp_block_abandon(f, index);
        }
        return;
    case MP_BLOCK_DYING: /* by a dead process, or by a recovery (slot -1) that did not end */
        if (mp_block_slot_of(word) < 0 || mp_slots_have(dead->bits, mp_block_slot_of(word)))
            mp_block_abandon(f, index);
        return;
    case MP_BLOCK_LEAVING: /* in doubt, and as long as it is, it is used as before */
    case MP_BLOCK_READY:
        break;
    }
    const struct mp_kind_row *kind = mp_kind_of(b);
    if (kind->has_lock) {
        int owner = (int)(atomic_load(&b->lock.word) & MP_LOCK_OWNER) - 1;
        if (mp_slots_have(dead->bits, owner))
            mp_lock_recover(f, index, owner);
    }
    if (kind->recover != NULL)
        kind->recover(f, index, dead->bits);
    mp_block_drop_holders(f, index, dead->bits);
    if (mp_block_state_of(word) == MP_BLOCK_LEAVING &&
        (mp_block_slot_of(word) < 0 || mp_slots_have(dead->bits, mp_block_slot_of(word))))
        mp_block_settle(f, index, -1);
    else if (!mp_block_try_free(f, index, -1) && kind->reclaim != NULL)
        kind->reclaim(f, index, -1);
}

static void recover_record(struct mp_family *f, uint32_t i, uint32_t index) {
    const struct mp_kind_row *kind = index < MP_BLOCKS ? mp_kind_of(mp_block_at(f, index)) : NULL;
    if (kind != NULL && kind->give_back != NULL)
        kind->give_back(f, i);
    else
        mp_record_free(f, i, atomic_load(&f->seg->records[i].done));
}

/* Rings again wherever a ring may have died with its ringer or its hearer (rule R5). */
static void heal(struct mp_family *f) {
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++) {
        struct mp_block *b = mp_block_at(f, i);
        if (!mp_block_is_live(atomic_load(&b->word)))
            continue;
        const struct mp_kind_row *kind = mp_kind_of(b);
        if (kind->has_lock)
            mp_lock_heal(f, i);
        if (kind->heal != NULL)
            kind->heal(f, i);
    }
    high = mp_cell_high(f);
    for (uint32_t i = 0; i < high; i++)
        mp_cell_heal(f, i);
}

/* What messages hold that are over. Returns whether there is something to be looked at again soon: a living process has the lock of a
 * queue that is to be mended. */
static bool end_carriers(struct mp_family *f, const struct dead *dead) {
    bool busy = false, mended = false;
    uint32_t from = 0;
    mp_carriers_recover(f, dead->bits);
    for (int64_t queue; (queue = mp_carriers_orphan(f, &from)) >= 0;) {
        int outcome = mp_queue_mend(f, (uint32_t)queue);
        busy |= outcome == MP_BUSY;
        mended |= outcome == MP_OK;
    }
    if (mended)
        mp_carriers_recover(f, dead->bits);
    return busy;
}

static bool clear_dead(struct mp_family *f, const struct dead *dead) {
    uint32_t high = mp_chunk_high(f);
    for (uint32_t i = 0; i < high; i++)
        mp_chunk_recover(f, i, dead->bits);
    high = mp_record_high(f);
    for (uint32_t i = 0; i < high; i++) {
        uint64_t owner = atomic_load(&f->seg->records[i].owner);
        if (owner != 0 && mp_slots_have(dead->bits, mp_record_slot(owner)))
            recover_record(f, i, (uint32_t)owner - 1);
    }
    high = mp_cell_high(f);
    for (uint32_t i = 0; i < high; i++) {
        uint64_t word = atomic_load(&f->seg->cells[i].word);
        if (word != 0 && mp_slots_have(dead->bits, mp_cell_slot(word)))
            mp_cell_recover(f, i, mp_cell_slot(word));
    }
    high = mp_wait_high(f);
    for (uint32_t i = 0; i < high; i++)
        mp_wait_recover(f, i, dead->bits);
    high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        recover_block(f, i, dead);
    bool again = end_carriers(f, dead); /* after what the dead had received is free */
    heal(f);
    high = mp_slot_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (mp_slots_have(dead->bits, (int)i)) {
            struct mp_slot *s = &f->seg->slots[i];
            atomic_store(&s->leaving, 0);
            atomic_store(&s->start_time, 0);
            atomic_store(&s->access, 0);
            atomic_store(&s->tie, 0);
            atomic_store(&f->seg->slots[i].pid_ns, 0);
            atomic_store(&s->word, mp_slot_word(MP_SLOT_FREE, mp_slot_generation(atomic_load(&s->word)), 0));
            atomic_fetch_add(&f->h->deaths_seen, 1);
        }
    return again;
}

/* Returns the number of slots that were cleared; -1: somebody else is recovering, or has to, because this process cannot see all that
 * the dead had. */
int mp_recover(struct mp_family *f) {
    struct dead dead;
    if (!mp_recovery_lock(f))
        return -1;
    mp_undo_for_the_dead(f);
    mp_queue_end_mending(f);
    find_dead(f, &dead);
    if (dead.count != 0)
        mp_tied_end(f, dead.bits);
    if (dead.count != 0 && mp_banks_known(f) != MP_OK)
        dead.count = -1;
    else if (dead.count != 0)
        f->again = clear_dead(f, &dead);
    else
        f->again = mp_carriers_in_use(f) && mp_banks_known(f) == MP_OK && end_carriers(f, &dead);
    mp_recovery_unlock(f);
    return dead.count;
}

/* Returns the memory that queues have not used for `idle_ns`. */
void mp_trim(struct mp_family *f, int64_t idle_ns) {
    if (!mp_recovery_lock(f))
        return;
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++) {
        struct mp_block *b = mp_block_at(f, i);
        const struct mp_kind_row *kind = mp_kind_of(b);
        if (kind->trim != NULL && mp_block_is_live(atomic_load(&b->word)))
            kind->trim(f, i, idle_ns);
    }
    mp_recovery_unlock(f);
}

/* Is somebody on the way in or out whom the kernel does not report on? The reaper then looks again soon. */
bool mp_family_pending(struct mp_family *f) {
    if (atomic_load(&f->h->missing_since) != 0)
        return true;
    uint32_t high = mp_slot_high(f);
    for (uint32_t i = 0; i < high; i++) {
        enum mp_slot_state state = mp_slot_state_of(atomic_load(&f->seg->slots[i].word));
        if (state != MP_SLOT_FREE && state != MP_SLOT_ALIVE)
            return true;
    }
    return false;
}

/* Any but this one; -1: any. */
bool mp_slots_in_use(struct mp_family *f, int but) {
    uint32_t high = mp_slot_high(f);
    for (uint32_t i = 0; i < high; i++)
        if ((int)i != but && mp_slot_state_of(atomic_load(&f->seg->slots[i].word)) != MP_SLOT_FREE)
            return true;
    return false;
}

/* Is there anybody but the caller, who is attached but not a member? A child forked behind our back is attached. */
bool mp_family_populated(struct mp_family *f) {
    struct shmid_ds ds;
    return mp_slots_in_use(f, -1) || (shmctl(f->shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch > 1);
}

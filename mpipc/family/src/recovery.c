/* Recovery: what is done for processes that are no longer there. Run by the reaper on every death, by any process that has
 * waited for a tick and finds that nobody did it, and by the sweep for whole families.
 *
 * One process at a time recovers a family: dying in here gives its lock to the next (liveness.c). Every step
 * can be done again from the start: a slot stays DEAD until nothing in the segment mentions it (rule R3). */
#include "family.h"
#include "named.h"
#include "queue.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <unistd.h>

void mp_lock_recover(struct mp_family *f, uint32_t index, int dead_slot);
void mp_lock_heal(struct mp_family *f, uint32_t index);
void mp_sem_heal(struct mp_family *f, uint32_t index);
void mp_cell_recover(struct mp_family *f, uint32_t cell, int dead_slot);
void mp_cell_heal(struct mp_family *f, uint32_t cell);
int mp_cell_slot(uint64_t word);

struct dead {
    uint64_t bits[MP_SLOTS / 64];
    int count;
};

static bool is_dead(const struct dead *dead, int slot) {
    return slot >= 0 && slot < (int)MP_SLOTS && (dead->bits[slot / 64] >> slot % 64 & 1);
}

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
        if (is_dead(dead, mp_block_slot_of(word)))
            mp_block_abandon(f, index);
        return;
    case MP_BLOCK_DYING: /* by a dead process, or by a recovery (slot -1) that did not end */
        if (mp_block_slot_of(word) < 0 || is_dead(dead, mp_block_slot_of(word)))
            mp_block_abandon(f, index);
        return;
    case MP_BLOCK_LEAVING: /* in doubt, and as long as it is, it is used as before */
    case MP_BLOCK_READY:
        break;
    }
    if (mp_kind_has_lock(b->kind)) {
        int owner = (int)(atomic_load(&b->lock.word) & MP_LOCK_OWNER) - 1;
        if (is_dead(dead, owner))
            mp_lock_recover(f, index, owner);
    }
    if (b->kind == MP_KIND_QUEUE)
        mp_queue_recover(f, index, dead->bits);
    if (b->kind == MP_KIND_SEGMENT)
        mp_named_recover(f, index, dead->bits);
    mp_block_drop_holders(f, index, dead->bits);
    if (mp_block_state_of(word) == MP_BLOCK_LEAVING && (mp_block_slot_of(word) < 0 || is_dead(dead, mp_block_slot_of(word))))
        mp_block_settle(f, index, -1);
    else if (!mp_block_try_free(f, index, -1))
        mp_named_reclaim(f, index, -1);
}

/* Rings again wherever a ring may have died with its ringer or its hearer (rule R5). */
static void heal(struct mp_family *f) {
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++) {
        struct mp_block *b = mp_block_at(f, i);
        if (!mp_block_is_live(atomic_load(&b->word)))
            continue;
        if (mp_kind_has_lock(b->kind))
            mp_lock_heal(f, i);
        else if (b->kind == MP_KIND_SEMAPHORE)
            mp_sem_heal(f, i);
        if (b->kind == MP_KIND_QUEUE)
            mp_queue_heal(f, i);
    }
    high = mp_cell_high(f);
    for (uint32_t i = 0; i < high; i++)
        mp_cell_heal(f, i);
}

static void clear_dead(struct mp_family *f, const struct dead *dead) {
    uint32_t high = mp_chunk_high(f);
    for (uint32_t i = 0; i < high; i++)
        mp_chunk_recover(f, i, dead->bits);
    high = mp_record_high(f);
    for (uint32_t i = 0; i < high; i++) {
        uint64_t owner = atomic_load(&f->seg->records[i].owner);
        if (owner != 0 && is_dead(dead, mp_record_slot(owner)))
            mp_sem_return_units(f, i);
    }
    high = mp_cell_high(f);
    for (uint32_t i = 0; i < high; i++) {
        uint64_t word = atomic_load(&f->seg->cells[i].word);
        if (word != 0 && is_dead(dead, mp_cell_slot(word)))
            mp_cell_recover(f, i, mp_cell_slot(word));
    }
    high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        recover_block(f, i, dead);
    heal(f);
    high = mp_slot_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (is_dead(dead, (int)i)) {
            struct mp_slot *s = &f->seg->slots[i];
            atomic_store(&s->leaving, 0);
            atomic_store(&s->start_time, 0);
            atomic_store(&f->seg->pid_ns[i], 0);
            atomic_store(&s->word, mp_slot_word(MP_SLOT_FREE, mp_slot_generation(atomic_load(&s->word)), 0));
            atomic_fetch_add(&f->h->deaths_seen, 1);
        }
}

/* Returns the number of slots that were cleared, -1 if somebody else is recovering. */
int mp_recover(struct mp_family *f) {
    struct dead dead;
    if (!mp_recovery_lock(f))
        return -1;
    mp_undo_for_the_dead(f);
    find_dead(f, &dead);
    if (dead.count != 0)
        clear_dead(f, &dead);
    mp_recovery_unlock(f);
    return dead.count;
}

/* Returns the memory that queues have not used for `idle_ns`. */
void mp_trim(struct mp_family *f, int64_t idle_ns) {
    if (!mp_recovery_lock(f))
        return;
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (mp_block_is_live(atomic_load(&mp_block_at(f, i)->word)) && mp_block_at(f, i)->kind == MP_KIND_QUEUE)
            mp_queue_trim(f, i, idle_ns);
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

static bool slots_in_use(struct mp_family *f) {
    uint32_t high = mp_slot_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (mp_slot_state_of(atomic_load(&f->seg->slots[i].word)) != MP_SLOT_FREE)
            return true;
    return false;
}

/* Is there anybody but the caller, who is attached but not a member? A child forked behind our back is attached. */
bool mp_family_populated(struct mp_family *f) {
    struct shmid_ds ds;
    return slots_in_use(f) || (shmctl(f->shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch > 1);
}

/* The end. The caller has set the state to CLOSING and then found nobody: who joins looks at the state after it has
 * taken a slot, so one of the two sees the other. The segment goes last: until then, whoever finds it can go on. */
void mp_family_destroy(struct mp_family *f) {
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (mp_block_state_of(atomic_load(&mp_block_at(f, i)->word)) != MP_BLOCK_FREE)
            mp_block_remove_kernel_object(mp_block_at(f, i));
    mp_remove_sets(f);
    shmctl(f->shmid, IPC_RMID, NULL);
}

/* ---- the sweep ----------------------------------------------------------------------------------------------------- */

/* Seen by an outsider. The name of a reaper may be of another pid namespace, but it has the segment attached. */
static bool has_reaper(struct mp_family *f) {
    struct shmid_ds ds;
    if (mp_undo(f) == MP_UNDO_WORKS)
        return mp_reaper_present(f);
    return shmctl(f->shmid, IPC_STAT, &ds) < 0 || ds.shm_nattch > 1;
}

static bool sweep_family(int shmid, pid_t creator) {
    struct mp_family f;
    if (mp_family_attach(&f, shmid, 0) != MP_OK) {
        /* Without a header: its creator died before it had written one, or is about to write it. */
        struct shmid_ds ds;
        if (errno == ESTALE && creator > 0 && mp_process_gone(creator) && shmctl(shmid, IPC_STAT, &ds) == 0 &&
            ds.shm_nattch == 0)
            return shmctl(shmid, IPC_RMID, NULL) == 0;
        return false;
    }
    bool swept = false;
    f.outsider = true;
    if (semctl(f.semid, MP_SEM_MARK, GETVAL) < 0 && (errno == EINVAL || errno == EIDRM)) {
        /* Whoever destroyed it died before the end, or somebody used ipcrm: nobody can join without the set. */
        struct shmid_ds ds;
        swept = shmctl(shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1;
        if (swept)
            mp_family_destroy(&f);
        mp_family_detach(&f);
        return swept;
    }
    mp_recover(&f);
    if (!slots_in_use(&f) && !has_reaper(&f) && mp_recovery_lock(&f)) {
        atomic_store(&f.h->state, MP_CLOSING);
        for (int attempt = 0; attempt < 20 && !swept; attempt++) {
            if (!mp_family_populated(&f)) { /* another sweep may be attached for a moment */
                mp_family_destroy(&f);
                swept = true;
            } else {
                usleep(1000);
            }
        }
        if (!swept) {
            atomic_store(&f.h->state, MP_OPEN);
            mp_recovery_unlock(&f);
        }
    }
    mp_family_detach(&f);
    return swept;
}

/* Removes the dead families of this user: a segment with our key prefix and size that nobody is attached to. Returns how
 * many there were. */
int mp_sweep(void) {
    FILE *list = fopen("/proc/sysvipc/shm", "re");
    if (list == NULL)
        return 0;
    char line[512];
    int swept = 0;
    while (fgets(line, sizeof line, list) != NULL) {
        int key, shmid, cpid;
        unsigned long size, nattch;
        unsigned uid;
        if (sscanf(line, " %d %d %*o %lu %d %*d %lu %u", &key, &shmid, &size, &cpid, &nattch, &uid) != 6)
            continue;
        if (((uint32_t)key & MP_KEY_MASK) == MP_KEY_PREFIX && size == sizeof(struct mp_segment) && nattch == 0 &&
            uid == geteuid())
            swept += sweep_family(shmid, cpid);
    }
    fclose(list);
    return swept;
}

/* What a waiter does once a second: the reaper may be gone, or slow. */
int mp_tick(struct mp_family *f) {
    atomic_store_explicit(&f->looked, mp_coarse_ns(), memory_order_relaxed);
    bool reaper = mp_reaper_present(f);
    if (!reaper && semctl(f->semid, MP_SEM_REAPER, GETVAL) < 0)
        return MP_FAILED;
    struct shmid_ds ds;
    unsigned short alive[MP_SLOTS];
    uint32_t high = mp_slot_high(f);
    unsigned long living = reaper ? 1 : 0;
    bool dead = !reaper && mp_undo(f) == MP_UNDO_IGNORED; /* nobody has looked */
    mp_alive_read(f, high, alive);
    for (uint32_t i = 0; i < high; i++)
        if (mp_slot_state_of(atomic_load(&f->seg->slots[i].word)) == MP_SLOT_ALIVE) {
            living += alive[i] != 0;
            dead = dead || alive[i] == 0;
        }
    if (dead || (shmctl(f->shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch < living)) /* the latter: one has left by execve(2) */
        mp_recover(f);
    return reaper ? MP_OK : mp_launch_reaper(f);
}

/* Has this process looked after the family in the last tick? Who only tries, or never waits for so long, is perhaps the only
 * one who is left, and what he tries for is with a dead process. */
bool mp_tick_is_due(struct mp_family *f) {
    return f->slot >= 0 && mp_coarse_ns() - atomic_load_explicit(&f->looked, memory_order_relaxed) >= MP_TICK_NS;
}

void mp_look_after(struct mp_family *f) {
    if (mp_tick_is_due(f))
        mp_tick(f);
}

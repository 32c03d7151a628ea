/* The process table: taking a slot, joining.
 *
 * Where a process can die while it takes a slot:
 *   before the compare-and-swap to JOINING: nothing has happened;
 *   in JOINING: the pid in the word is dead, recovery frees the slot;
 *   after the first semop: the same, and `deaths` rings;
 *   after the second: the kernel has set alive[slot] back to 0 and rung `deaths`; recovery sees a JOINING slot of a dead pid,
 *     or an ALIVE slot with alive == 0. */
#include "slots.h"

#include "access.h"
#include "holders.h"
#include "liveness.h"
#include "processes.h"
#include "sets.h"

#include <sys/mman.h>
#include <unistd.h>

static int count_in(struct mp_family *f) {
    struct sembuf count[] = {{MP_SEM_DEATHS, 1, 0}, {MP_SEM_DEATHS, -1, SEM_UNDO}};
    struct sembuf forget = {MP_SEM_DEATHS, -1, IPC_NOWAIT};
    int done;
    while ((done = semop(f->semid, count, 2)) < 0 && errno == ERANGE)
        semop(f->semid, &forget, 1); /* SEMVMX deaths and nobody has looked: there is no reaper */
    return done < 0 ? errno : MP_OK;
}

/* As if this process had never joined; whoever has a reason to look is rung for. */
void mp_slot_count_out(struct mp_family *f) {
    struct sembuf back = {MP_SEM_DEATHS, 1, SEM_UNDO | IPC_NOWAIT};
    semop(f->semid, &back, 1);
}

void mp_slot_unreserve(struct mp_family *f, int slot) {
    uint64_t word = atomic_load(&f->seg->slots[slot].word);
    atomic_store(&f->seg->slots[slot].pid_ns, 0);
    atomic_store(&f->seg->slots[slot].word, mp_slot_word(MP_SLOT_FREE, mp_slot_generation(word), 0));
}

/* A slot that may be mentioned already: recovery clears it like a dead process's. */
void mp_slot_void(struct mp_family *f, int slot) {
    struct mp_slot *s = &f->seg->slots[slot];
    atomic_store(&s->word, mp_slot_word(MP_SLOT_DEAD, mp_slot_generation(atomic_load(&s->word)), 0));
    mp_family_wake_reaper(f);
}

int mp_slot_claim(struct mp_family *f, uint64_t *expected, int slot) {
    struct mp_slot *s = &f->seg->slots[slot];
    uint64_t joining = mp_slot_word(MP_SLOT_JOINING, mp_slot_generation(*expected), f->pid);
    if (mp_undo(f) == MP_UNDO_IGNORED && f->pid_ns != f->h->pid_ns)
        return MP_FOREIGN;
    if (!atomic_compare_exchange_strong(&s->word, expected, joining))
        return ESTALE;
    atomic_store(&f->seg->slots[slot].pid_ns, f->pid_ns);
    atomic_store(&s->start_time, mp_process_start_time(f->pid));
    atomic_store(&s->leaving, 0);
    struct sembuf live = {0, 1, SEM_UNDO};
    int semid, error = mp_alive(f, slot, &semid, &live.sem_num) == MP_OK ? count_in(f) : errno;
    if (error == MP_OK && semop(semid, &live, 1) < 0) {
        error = errno;
        mp_slot_count_out(f);
    }
    if (error != MP_OK) { /* of a reservation, blocks name it as their holder already (rule R3) */
        if (mp_slot_state_of(*expected) == MP_SLOT_JOINING)
            mp_slot_unreserve(f, slot);
        else
            mp_slot_void(f, slot);
        return error == ESTALE ? EIDRM : error;
    }
    uint64_t claimed = joining;
    if (!atomic_compare_exchange_strong(&s->word, &claimed, mp_slot_word(MP_SLOT_ALIVE, mp_slot_generation(joining), f->pid))) {
        /* Recovery took us for dead (another pid namespace, say): step back, as if we had never been here. */
        live.sem_op = -1;
        semop(semid, &live, 1);
        mp_slot_count_out(f);
        return ESTALE;
    }
    f->slot = slot;
    f->me = (uint64_t)slot + 1;
    return MP_OK;
}

static void raise_high(_Atomic uint32_t *high, uint32_t value) {
    uint32_t seen = atomic_load(high);
    while (seen < value && !atomic_compare_exchange_weak(high, &seen, value))
        ;
}

static int take_free_slot(struct mp_family *f, enum mp_slot_state state) {
    for (uint32_t i = 0; i < MP_SLOTS; i++) {
        struct mp_slot *s = &f->seg->slots[i];
        uint64_t word = atomic_load(&s->word);
        if (mp_slot_state_of(word) != MP_SLOT_FREE)
            continue;
        raise_high(&f->h->slot_high, i + 1);
        if (!atomic_compare_exchange_strong(&s->word, &word, mp_slot_word(state, mp_slot_generation(word) + 1, f->pid)))
            continue;
        atomic_store(&f->seg->slots[i].pid_ns, f->pid_ns);
        atomic_store(&s->parent, (uint32_t)f->me);
        atomic_store(&s->start_time, 0);
        atomic_store(&s->suspect, 0);
        atomic_store(&s->kept, MP_KEEP_NOTHING);
        atomic_store(&s->access, 0);
        atomic_store(&s->tie, 0);
        return (int)i;
    }
    return MP_FAILED;
}

/* Takes a free slot in the name of this process, for a child. The pid in the word is the reserver's until the child is
 * known, so a reservation whose reserver died is recognised. A table that is full of the dead has lost its reaper. */
int mp_slot_reserve(struct mp_family *f, enum mp_slot_state state) {
    int slot = take_free_slot(f, state), semid;
    unsigned short num;
    if (slot < 0) {
        mp_look_after_now(f);
        slot = take_free_slot(f, state);
    }
    if (slot < 0) {
        errno = MP_SLOTS_FULL;
    } else if (mp_alive(f, slot, &semid, &num) != MP_OK) { /* now, and not in the child, where nobody can be told */
        int error = errno;
        mp_slot_unreserve(f, slot);
        errno = error;
        slot = -1;
    }
    return slot;
}

int mp_hold_all_local(struct mp_family *f, int slot) {
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (f->local_refs[i] != 0 && mp_block_hold(f, i, slot) != MP_OK)
            return MP_FAILED;
    return MP_OK;
}

/* In a forked child: the parent's units are the parent's, a recovery that a thread of it was in is that one's, and so is what it is
 * to end with. */
void mp_forget_what_threads_did(struct mp_family *f) {
    atomic_store(&f->recovery_held, 0);
    f->tie = 0;
    madvise(f->local_record, MP_BLOCKS * sizeof(uint32_t), MADV_DONTNEED);
    madvise(f->stretches, MP_ARENA_SEGMENTS * sizeof(uintptr_t), MADV_DONTNEED);
}

/* Joins as a process nobody prepared a slot for. What this process inherited handles of (a fork that ran no hooks) it
 * holds from now on. */
int mp_family_join(struct mp_family *f) {
    if (f->slot >= 0)
        return MP_OK;
    if (f->pid != getpid()) { /* forked behind our back: the parent's units are the parent's, and so is what its threads do */
        f->pid = getpid();
        f->pid_ns = mp_pid_namespace();
        mp_forget_what_threads_did(f);
    }
    for (;;) {
        int slot = mp_slot_reserve(f, MP_SLOT_JOINING);
        if (slot < 0)
            return MP_FAILED;
        atomic_store(&f->seg->slots[slot].parent, 0);
        if (atomic_load(&f->h->state) != MP_OPEN) { /* pairs with the closing reaper: see mp_family_destroy() */
            mp_slot_unreserve(f, slot);
            errno = MP_GONE;
            return MP_FAILED;
        }
        uint64_t word = atomic_load(&f->seg->slots[slot].word);
        int error = mp_slot_claim(f, &word, slot);
        if (error == ESTALE)
            continue;
        if (error == MP_FOREIGN)
            mp_slot_unreserve(f, slot);
        if (error != MP_OK) {
            errno = error;
            return MP_FAILED;
        }
        if (mp_hold_all_local(f, slot) == MP_OK)
            return MP_OK;
        error = errno;
        f->slot = -1;
        f->me = 0;
        mp_slot_cancel_undo(f, slot);
        mp_slot_count_out(f);
        mp_slot_void(f, slot);
        errno = error;
        return MP_FAILED;
    }
}

void mp_leaving(struct mp_family *f) {
    if (f->slot >= 0)
        atomic_store(&f->seg->slots[f->slot].leaving, 1);
}

bool mp_slot_lives(struct mp_family *f, int slot) {
    if (slot < 0 || slot >= (int)MP_SLOTS)
        return false;
    uint64_t word = atomic_load(&f->seg->slots[slot].word);
    if (mp_slot_state_of(word) != MP_SLOT_ALIVE)
        return mp_slot_state_of(word) == MP_SLOT_JOINING;
    return mp_slot_is_alive(f, slot);
}

int mp_family_wake_reaper(struct mp_family *f) {
    struct sembuf ring = {MP_SEM_DEATHS, 1, IPC_NOWAIT};
    return MP_ALLOWED(f, semop(f->semid, &ring, 1)) < 0 && errno != ERANGE ? MP_FAILED : MP_OK;
}

/* Has somebody removed the family's sets (ipcrm(1), or logind at the end of the user's last session)? Then it is of no use any more
 * for what its members make from now on. */
bool mp_family_is_removed(struct mp_family *f) {
    if (!f->removed && semctl(f->semid, MP_SEM_MARK, GETVAL) < 0)
        f->removed = errno == EINVAL || errno == EIDRM;
    return f->removed;
}

/* The end of a family, and the sweep, which ends those that have died with their reaper. */
#include "sweep.h"

#include "banks.h"
#include "blocks.h"
#include "guests.h"
#include "kinds.h"
#include "liveness.h"
#include "memory.h"
#include "processes.h"
#include "recovery.h"
#include "segment.h"
#include "slots.h"
#include "sets.h"

#include <stdio.h>
#include <sys/ipc.h>
#include <unistd.h>

/* Can be done again from the start. */
static void remove_all(struct mp_family *f) {
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (mp_block_state_of(atomic_load(&mp_block_at(f, i)->word)) != MP_BLOCK_FREE)
            mp_kind_remove(f, mp_block_at(f, i));
    mp_remove_sets(f);
    mp_remove_banks(f);
}

/* The end. The caller has set the state to CLOSING and then found nobody: who joins looks at the state after it has
 * taken a slot, so one of the two sees the other. The segment goes last: until then, whoever finds it can go on. false: this
 * process cannot see all of it, and nothing was done. */
bool mp_family_destroy(struct mp_family *f) {
    if (mp_banks_known(f) != MP_OK)
        return false;
    remove_all(f);
    if (mp_guests_become(f)) { /* what he has made, and did not come to give to the founder */
        remove_all(f);
        mp_guests_unbecome(f);
    }
    shmctl(f->shmid, IPC_RMID, NULL);
    return true;
}

/* The normal end of a process that could not start a reaper (RLIMIT_NPROC, seccomp(2)): the last member does its work. Whoever joins
 * meanwhile looks at the state after he has taken a slot. */
void mp_family_leave(struct mp_family *f) {
    struct shmid_ds ds;
    mp_leaving(f);
    if (!f->reaper_failed || f->slot < 0 || f->fork_slot >= 0 || f->start_slot >= 0 || mp_reaper_present(f))
        return;
    mp_recover(f);
    uint32_t open = MP_OPEN;
    if (mp_slots_in_use(f, f->slot) || !atomic_compare_exchange_strong(&f->h->state, &open, MP_CLOSING))
        return;
    if (mp_slots_in_use(f, f->slot) || shmctl(f->shmid, IPC_STAT, &ds) < 0 || ds.shm_nattch > 1 || mp_reaper_present(f)) {
        atomic_store(&f->h->state, MP_OPEN);
        return;
    }
    struct mp_slot *s = &f->seg->slots[f->slot]; /* first: when the sets are gone, nobody can tell that it is dead */
    atomic_store(&s->word, mp_slot_word(MP_SLOT_DEAD, mp_slot_generation(atomic_load(&s->word)), 0));
    if (!mp_family_destroy(f))
        atomic_store(&f->h->state, MP_OPEN);
}

/* Seen by an outsider. The name of a reaper may be of another pid namespace, but it has the segment attached. */
static bool has_reaper(struct mp_family *f) {
    struct shmid_ds ds;
    if (mp_undo(f) == MP_UNDO_WORKS)
        return mp_reaper_present(f);
    return shmctl(f->shmid, IPC_STAT, &ds) < 0 || ds.shm_nattch > 1;
}

static bool sweep_family(int shmid, pid_t creator) {
    struct mp_family f;
    if (mp_family_attach(&f, shmid, 0, MP_ATTACH_OWN, NULL) != MP_OK) {
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
        swept = shmctl(shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1 && mp_family_destroy(&f);
        mp_space_forget(&f);
        mp_family_detach(&f);
        return swept;
    }
    mp_recover(&f);
    if (!mp_slots_in_use(&f, -1) && !has_reaper(&f) && mp_recovery_lock(&f)) {
        atomic_store(&f.h->state, MP_CLOSING);
        for (int attempt = 0; attempt < 20 && !swept; attempt++) {
            if (!mp_family_populated(&f)) { /* another sweep may be attached for a moment */
                swept = mp_family_destroy(&f);
                break;
            } else {
                usleep(1000);
            }
        }
        if (!swept) {
            atomic_store(&f.h->state, MP_OPEN);
            mp_recovery_unlock(&f);
        }
    }
    mp_space_forget(&f);
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
        unsigned cuid;
        if (sscanf(line, " %d %d %*o %lu %d %*d %lu %*u %*u %u", &key, &shmid, &size, &cpid, &nattch, &cuid) != 6)
            continue;
        if (((uint32_t)key & MP_KEY_MASK) == MP_KEY_PREFIX && size == sizeof(struct mp_segment) && nattch == 0 &&
            cuid == geteuid())
            swept += sweep_family(shmid, cpid);
    }
    fclose(list);
    return swept;
}

/* ---- what lasts ------------------------------------------------------------------------------------------------------------ */

static uint32_t add(int *ids, uint32_t count, uint32_t most, int id) {
    if (id >= 0 && count < most)
        ids[count++] = id;
    return count;
}

/* Ids of the sets that are there as long as the family is. Returns how many. */
uint32_t mp_lasting_sets(struct mp_family *f, int *ids, uint32_t most) {
    uint32_t count = add(ids, 0, most, f->semid);
    for (uint32_t i = 0; i < MP_BELL_SETS; i++)
        count = add(ids, count, most, mp_published(&f->seg->bell_sets[i]));
    for (uint32_t i = 0; i < MP_ALIVE_SETS; i++)
        count = add(ids, count, most, mp_published(&f->seg->alive_sets[i]));
    return count;
}

/* The same of segments; those of memory that is held only while nobody holds any. */
uint32_t mp_lasting_segments(struct mp_family *f, int *ids, uint32_t most) {
    uint64_t bytes, in_use, segments;
    uint32_t count = add(ids, 0, most, f->shmid), high = mp_block_high(f);
    for (uint32_t i = 0; i < MP_BANKS; i++)
        count = add(ids, count, most, mp_published(&f->seg->banks[i]));
    mp_memory_usage(f, &bytes, &in_use, &segments);
    for (uint32_t i = 0; segments != 0 && in_use == 0 && i < high; i++) {
        struct mp_block *b = mp_block_at(f, i);
        int64_t owner = b->kind == MP_KIND_SEGMENT && mp_block_is_live(atomic_load(&b->word)) ? mp_block_owner(f, i) : -1;
        if (owner >= 0 && mp_block_at(f, (uint32_t)owner)->kind == MP_KIND_SPACE)
            count = add(ids, count, most, atomic_load(&b->id));
    }
    return count;
}

/* Children on their way into the family, by fork(2) or started anew, and members that become another program. */
#include "fork.h"

#include "access.h"
#include "futex.h"
#include "holders.h"
#include "liveness.h"
#include "processes.h"
#include "sets.h"
#include "slots.h"
#include "threads.h"

#include <unistd.h>

/* A process that execs keeps its pid and its SEM_UNDO entries, and loses everything it held. The new image cancels the undo
 * entries of the old one, which makes the old slot look dead, as it is. */
void mp_family_forget_exec(struct mp_family *f) {
    uint64_t started = mp_process_start_time(getpid());
    uint32_t high = mp_slot_high(f);
    for (uint32_t i = 0; i < high; i++) {
        struct mp_slot *s = &f->seg->slots[i];
        uint64_t word = atomic_load(&s->word);
        if ((int)i == f->slot || mp_slot_state_of(word) != MP_SLOT_ALIVE || mp_slot_pid(word) != getpid() ||
            mp_slot_is_foreign(f, (int)i) || atomic_load(&s->start_time) != started || started == 0)
            continue;
        struct sembuf cancel = {0, -1, SEM_UNDO | IPC_NOWAIT};
        int semid;
        if (mp_alive(f, (int)i, &semid, &cancel.sem_num) == MP_OK && semop(semid, &cancel, 1) == 0)
            mp_slot_count_out(f);
    }
}

/* Fork. The child must hold what the parent holds from its first instruction on, so the parent reserves a slot that holds
 * it before the fork, and the child claims the slot.
 *   The parent dies before the fork: the slot is FORKING, its reserver is dead, and nobody but the known processes is
 *     attached to the segment: recovery frees it.
 *   The fork fails, or the child dies before it claims: FORKED, and again nobody unknown is attached.
 *   The parent dies after the fork: the unknown attachment is the child; recovery waits for it. */
int mp_fork_prepare(struct mp_family *f) {
    f->fork_slot = -1;
    if (f->slot < 0 || mp_family_is_removed(f))
        return MP_OK;
    mp_access_need(f); /* a child that has to join for it cannot ask; if it is refused, it is the child that will be told */
    int slot = f->start_slot;
    if (slot >= 0 && f->start_thread == mp_this_thread())
        f->start_slot = -1;
    else
        slot = mp_slot_reserve(f, MP_SLOT_FORKING);
    if (slot < 0)
        return MP_FAILED;
    if (mp_hold_all_local(f, slot) != MP_OK) {
        int error = errno;
        mp_slot_void(f, slot);
        errno = error;
        return MP_FAILED;
    }
    f->fork_slot = slot;
    return MP_OK;
}

/* Process.start() reserves the child's slot before it forks, because in the fork itself there is nobody to be told that there
 * is none. If two threads start at the same time, the second one may find it out in its child. What the child is to hold is
 * noted in the fork. -1 with errno: see mp_slot_reserve(). */
int mp_start_reserve(struct mp_family *f) {
    if (f->slot < 0 || f->start_slot >= 0 || mp_family_is_removed(f))
        return MP_OK;
    if ((errno = mp_access_need(f)) != MP_OK)
        return MP_FAILED;
    int slot = mp_slot_reserve(f, MP_SLOT_FORKING);
    if (slot < 0)
        return MP_FAILED;
    f->start_thread = mp_this_thread();
    f->start_slot = slot;
    return MP_OK;
}

/* After the fork, or when it failed: gives back what was not used. */
void mp_start_cancel(struct mp_family *f) {
    if (f->start_slot < 0 || f->start_thread != mp_this_thread())
        return;
    mp_slot_unreserve(f, f->start_slot); /* nothing mentions it */
    f->start_slot = -1;
}

void mp_fork_parent(struct mp_family *f) {
    if (f->fork_slot < 0)
        return;
    struct mp_slot *s = &f->seg->slots[f->fork_slot];
    uint64_t word = atomic_load(&s->word);
    if (mp_slot_state_of(word) == MP_SLOT_FORKING && mp_slot_pid(word) == f->pid &&
        atomic_compare_exchange_strong(&s->word, &word, mp_slot_word(MP_SLOT_FORKED, mp_slot_generation(word), f->pid)))
        mp_family_wake_reaper(f); /* it watches reservations until they are claimed */
    f->fork_slot = -1;
}

int mp_fork_child(struct mp_family *f) {
    pid_t parent = f->pid;
    int slot = f->fork_slot;
    f->pid = getpid();
    f->pid_ns = mp_pid_namespace();
    f->slot = f->fork_slot = f->start_slot = -1;
    f->me = 0;
    f->reaper_child = 0;
    mp_forget_what_threads_did(f);
    if (slot >= 0) {
        uint64_t word = atomic_load(&f->seg->slots[slot].word);
        for (int attempt = 0; attempt < 3; attempt++) { /* FORKING may turn to FORKED under us, once */
            enum mp_slot_state state = mp_slot_state_of(word);
            if ((state != MP_SLOT_FORKING && state != MP_SLOT_FORKED) || mp_slot_pid(word) != parent)
                break;
            int error = mp_slot_claim(f, &word, slot);
            if (error == MP_OK)
                return MP_OK;
            if (error != ESTALE)
                break;
        }
    }
    /* Without a slot of its own it joins when it first uses the family; if it had one that recovery has taken, at once, because
     * what it inherited is held by nobody in its name. */
    return slot >= 0 ? mp_family_join(f) : MP_OK;
}

/* Transit: what is pickled for a spawned child is held by a slot of its own until the child has unpickled all of it. The slot
 * is named by a token that carries its generation: the child may have arrived, and the slot be somebody else's, before the
 * parent has noted which process the child is. */
int64_t mp_transit_reserve(struct mp_family *f) {
    if ((errno = mp_family_is_removed(f) ? MP_REMOVED : mp_access_need(f)) != MP_OK)
        return MP_FAILED;
    int slot = mp_slot_reserve(f, MP_SLOT_TRANSIT);
    if (slot < 0)
        return MP_FAILED;
    return (int64_t)mp_slot_generation(atomic_load(&f->seg->slots[slot].word)) * MP_SLOTS + slot;
}

int mp_transit_slot(int64_t token) { return (int)(token % MP_SLOTS); }

static bool is_transit(uint64_t word, int64_t token) {
    return mp_slot_state_of(word) == MP_SLOT_TRANSIT && mp_slot_generation(word) == (uint32_t)(token / MP_SLOTS);
}

/* What is in transit may include segments that are removed with their last attachment, and if the sender dies before the child
 * has come, that was it. So the reaper attaches them as long as the slot is in transit, and the sender waits for that, until the
 * child has come. A reaper that is gone, or is stopped, is no reason not to start a child; a slow one is none to leave the child
 * without. */
#define PATIENCE_TICKS 3
#define LOOK_NS (MP_TICK_NS / 20) /* how often the sender looks whether the reaper lives, and the child has come */

/* Is there one, or has one been started that need not have come so far? */
static bool reaper_comes(struct mp_family *f) {
    int64_t launched = atomic_load(&f->h->reaper_launched_ns);
    return mp_reaper_present(f) || (launched != 0 && mp_now_ns() - launched < MP_TICK_NS);
}

void mp_transit_keep(struct mp_family *f, int64_t token) {
    struct mp_slot *s = &f->seg->slots[mp_transit_slot(token)];
    int64_t end = mp_now_ns() + PATIENCE_TICKS * MP_TICK_NS;
    atomic_store(&s->kept, MP_KEEP_WANTED);
    mp_family_wake_reaper(f);
    while (is_transit(atomic_load(&s->word), token) && atomic_load(&s->kept) == MP_KEEP_WANTED && reaper_comes(f) &&
           mp_now_ns() < end)
        mp_futex_wait(&s->kept, MP_KEEP_WANTED, LOOK_NS);
}

/* The child, before it takes over the first object: from now on the slot is its own, whatever becomes of the sender. ESTALE: the
 * sender had died before, and the slot has been cleared. */
int mp_transit_claim(struct mp_family *f, int64_t token) {
    if (token < 0 || mp_transit_slot(token) >= (int)MP_SLOTS)
        return ESTALE;
    int slot = mp_transit_slot(token);
    struct mp_slot *s = &f->seg->slots[slot];
    uint64_t word = atomic_load(&s->word);
    if (is_transit(word, token) && atomic_load(&f->seg->slots[slot].pid_ns) != f->pid_ns)
        atomic_store(&f->seg->slots[slot].pid_ns, 0); /* nobody may take our pid for one of the sender's namespace */
    while (is_transit(word, token))
        if (atomic_compare_exchange_weak(&s->word, &word, mp_slot_word(MP_SLOT_TRANSIT, mp_slot_generation(word), getpid()))) {
            atomic_store(&f->seg->slots[slot].pid_ns, f->pid_ns);
            return MP_OK;
        }
    return ESTALE;
}

void mp_transit_sent(struct mp_family *f, int64_t token, pid_t pid) {
    struct mp_slot *s = &f->seg->slots[mp_transit_slot(token)];
    uint64_t word = atomic_load(&s->word);
    if (!is_transit(word, token))
        return; /* the child has arrived already */
    if (pid > 0)
        atomic_compare_exchange_strong(&s->word, &word, mp_slot_word(MP_SLOT_TRANSIT, mp_slot_generation(word), pid));
    else
        mp_transit_arrived(f, token);
    mp_family_wake_reaper(f);
}

/* The child holds everything itself now (or there is none): recovery clears the slot like a dead process's. */
void mp_transit_arrived(struct mp_family *f, int64_t token) {
    struct mp_slot *s = &f->seg->slots[mp_transit_slot(token)];
    uint64_t word = atomic_load(&s->word);
    while (is_transit(word, token))
        if (atomic_compare_exchange_weak(&s->word, &word, mp_slot_word(MP_SLOT_DEAD, mp_slot_generation(word), 0)))
            break;
    mp_family_wake_reaper(f);
}

/* Members that end with the process that started them (end_with_parent=): recovery ends them when it finds that process dead.
 *
 * What a member is tied to stands in its slot, by slot and generation: the process that called start(), which for a child of the
 * fork server is not its parent in the process tree. The child writes it, before it runs anything of its own.
 *
 *   The parent dies before: recovery has turned the parent's word to DEAD, and the child, which looks at that word after it has
 *     written the tie, finds it so. (Recovery writes the word, then reads the ties; the child writes the tie, then reads the word:
 *     one of the two sees the other.)
 *   The parent dies after: recovery, while the parent's slot is DEAD, ends who is tied to it. If it is killed in between, the
 *     next one finds the slot DEAD, and does it again.
 *   Where recovery cannot reach the child (it is in another pid namespace, or another user's) the child looks at its next tick.
 *
 * The signal is SIGKILL: who is tied has asked not to outlive its parent, whatever it is at, and crash safety is what it rests on.
 * prctl(PR_SET_PDEATHSIG) would be of no use: it tells of the death of the thread that forked, not of the process, and of the fork
 * server's. */
#include "ties.h"

#include "liveness.h"
#include "processes.h"
#include "sets.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Ties this process to a member. MP_GONE: that one is no longer there, and this process has to end by itself. */
int mp_tie(struct mp_family *f, int parent, uint32_t generation) {
    if (parent < 0 || parent >= (int)MP_SLOTS || f->slot < 0)
        return MP_GONE;
    f->tie = mp_tie_word(parent, generation);
    atomic_store(&f->seg->slots[f->slot].tie, f->tie);
    return mp_tie_holds(f) ? MP_OK : MP_GONE;
}

/* Is the process there that this one is to end with, if there is one? Whether there is one, nobody else has to say. */
bool mp_tie_holds(struct mp_family *f) {
    if (f->slot < 0 || f->pid != getpid() || f->tie == 0)
        return true;
    int parent = mp_tie_slot(f->tie);
    uint64_t word = atomic_load(&f->seg->slots[parent].word);
    return mp_slot_state_of(word) == MP_SLOT_ALIVE && mp_slot_generation(word) == mp_tie_generation(f->tie);
}

/* Is the process that has the member's pid the member? Asked after it has been opened: if so, it was so then.
 *
 * Who can write to the segment could write any pid into a slot, and the reaper may be root where he is not (access.c). So what
 * counts is the kernel's word: the last one who has operated on alive[slot] is the member, when it joined. The pid is still its
 * own as long as that is 1, or, where SEM_UNDO does not see to that, as long as its start time is the same. */
static bool is_member(struct mp_family *f, int slot, pid_t pid) {
    uint64_t noted = atomic_load(&f->seg->slots[slot].start_time), started = mp_process_start_time(pid);
    unsigned short num;
    int semid;
    if (mp_alive(f, slot, &semid, &num) != MP_OK || semctl(semid, num, GETPID) != pid)
        return false;
    if (noted != 0 && started != 0)
        return noted == started;
    return mp_undo(f) == MP_UNDO_WORKS && mp_slot_is_alive(f, slot);
}

static void end_member(struct mp_family *f, int slot, pid_t pid) {
    int fd = -1, sent = -1;
    if (pid <= 0 || mp_slot_is_foreign(f, slot))
        return;
#if defined(SYS_pidfd_open) && defined(SYS_pidfd_send_signal)
    fd = (int)syscall(SYS_pidfd_open, pid, 0u);
#endif
    if (is_member(f, slot, pid)) {
#if defined(SYS_pidfd_open) && defined(SYS_pidfd_send_signal)
        if (fd >= 0)
            sent = (int)syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0u);
#endif
        if (sent < 0) /* older kernels, or no descriptor is left */
            kill(pid, SIGKILL);
    }
    if (fd >= 0)
        close(fd);
}

/* By recovery, with its lock held, while the slots of the dead are DEAD: ends who was to end with them. Slots are freed by recovery
 * alone, so what is read of one is of one process. Itself it does not end, so that its work gets done: that has time until its
 * tick. */
void mp_tied_end(struct mp_family *f, const uint64_t *dead) {
    for (uint32_t i = 0, high = mp_slot_high(f); i < high; i++) {
        uint64_t word = atomic_load(&f->seg->slots[i].word), tie = atomic_load(&f->seg->slots[i].tie);
        int parent = mp_tie_slot(tie);
        if (mp_slot_state_of(word) == MP_SLOT_ALIVE && (int)i != f->slot && mp_slots_have(dead, parent) &&
            mp_slot_generation(atomic_load(&f->seg->slots[parent].word)) == mp_tie_generation(tie))
            end_member(f, (int)i, mp_slot_pid(word));
    }
}

/* Letting a member in again that has changed its user id: the part of whoever still is the founder's user. The protocol stands at
 * the head of access.c. */
#include "guests.h"

#include "access.h"
#include "banks.h"
#include "kinds.h"
#include "processes.h"
#include "sets.h"

#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- who asks? ------------------------------------------------------------------------------------------------------------ */

/* Is the process in this slot a member, and of this user now? The kernel has to say both: that it lives, and that it once did the
 * operation on alive[slot] for which one needs rights on the set. Of a process of another pid namespace that cannot be seen. */
static bool is_members(struct mp_family *f, int slot, uint32_t uid) {
    struct mp_slot *s = &f->seg->slots[slot];
    uint64_t word = atomic_load(&s->word), started = atomic_load(&s->start_time);
    pid_t pid = mp_slot_pid(word);
    unsigned short num;
    uint32_t now;
    int semid;
    if (mp_slot_state_of(word) != MP_SLOT_ALIVE || mp_slot_is_foreign(f, slot) || pid <= 0 || started == 0 ||
        mp_alive(f, slot, &semid, &num) != MP_OK || semctl(semid, num, GETVAL) != 1 || semctl(semid, num, GETPID) != pid)
        return false;
    return mp_process_euid(pid, &now) && now == uid && mp_process_start_time(pid) == started;
}

/* ---- what there is to give --------------------------------------------------------------------------------------------------- */

static void share_queue(struct mp_family *f, struct mp_block *b) {
    struct msqid_ds ds;
    int id = atomic_load(&b->id);
    if (id >= 0 && msgctl(id, IPC_STAT, &ds) == 0 && ds.msg_perm.__key == b->key)
        mp_access_share_queue(f, id);
}

/* One that goes with its last attachment has no key any more. */
static void share_segment(struct mp_family *f, struct mp_block *b) {
    struct shmid_ds ds;
    int id = atomic_load(&b->id);
    if (id >= 0 && shmctl(id, IPC_STAT, &ds) == 0 &&
        (ds.shm_perm.__key == b->key || (ds.shm_perm.__key == IPC_PRIVATE && (ds.shm_perm.mode & SHM_DEST) != 0)))
        mp_access_share_segment(f, id);
}

static void share_sets(struct mp_family *f, _Atomic int32_t *sets, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        int id = mp_published(&sets[i]);
        if (id >= 0 && semctl(id, MP_SEM_MARK, GETVAL) == (int)mp_mark(f))
            mp_access_share_set(f, id);
    }
}

static void share_all(struct mp_family *f) {
    share_sets(f, &f->h->semid, 1);
    share_sets(f, f->seg->alive_sets, MP_ALIVE_SETS);
    share_sets(f, f->seg->bell_sets, MP_BELL_SETS);
    mp_access_share_segment(f, f->shmid);
    mp_banks_share(f);
    for (uint32_t i = 0, high = mp_block_high(f); i < high; i++) {
        struct mp_block *b = mp_block_at(f, i);
        if (mp_block_state_of(atomic_load(&b->word)) == MP_BLOCK_FREE)
            continue;
        if (b->kind == MP_KIND_QUEUE)
            share_queue(f, b);
        else if (b->kind == MP_KIND_SEGMENT || b->kind == MP_KIND_BROADCAST)
            share_segment(f, b);
    }
}

/* ---- the answer ---------------------------------------------------------------------------------------------------------- */

static void answer(struct mp_family *f, int slot, uint64_t word) {
    uint32_t uid = mp_access_uid(word), none = 0;
    if (!is_members(f, slot, uid))
        return; /* he gives up after a while, and tells his caller */
    atomic_compare_exchange_strong(&f->h->guest, &none, uid + 1);
    bool admitted = mp_access_is_users(f, uid);
    if (admitted)
        share_all(f);
    uint64_t reply = mp_access_word(admitted ? MP_ACCESS_GIVEN : MP_ACCESS_REFUSED, uid);
    atomic_compare_exchange_strong(&f->seg->slots[slot].access, &word, reply);
}

/* By anybody, at any time. What can be done by the founder's user only is left to one who is. */
void mp_guests_admit(struct mp_family *f) {
    if (atomic_load(&f->h->access_wanted) == 0 || geteuid() != f->h->uid)
        return;
    atomic_store(&f->h->access_wanted, 0); /* first: who asks writes his slot before, and goes on writing this */
    for (uint32_t i = 0, high = mp_slot_high(f); i < high; i++) {
        uint64_t word = atomic_load(&f->seg->slots[i].access);
        if (mp_access_of(word) == MP_ACCESS_WANTED)
            answer(f, (int)i, word);
    }
}

/* ---- what the guest did not come to give ------------------------------------------------------------------------------------
 *
 * An object that he has made, and whose maker was killed before he gave it to the founder, only he can remove. The reaper is alone
 * in its process, and mostly may become him for a moment, as who has become the guest could. Without CAP_SETUID such an object
 * stays until somebody calls ipcrm(1). */

#ifdef SYS_setresuid32
#define SETRESUID SYS_setresuid32
#else
#define SETRESUID SYS_setresuid
#endif

/* Not by the C library: a reaper that is a clone has its tables of threads, and not the threads. */
bool mp_guests_become(struct mp_family *f) {
    uint32_t guest = atomic_load(&f->h->guest);
    return f->is_reaper && guest != 0 && geteuid() == f->h->uid && syscall(SETRESUID, -1, (uid_t)(guest - 1), -1) == 0;
}

void mp_guests_unbecome(struct mp_family *f) { syscall(SETRESUID, -1, (uid_t)f->h->uid, -1); }

/* Of a block in the making: its kernel object, if the guest has made it. */
void mp_guests_remove(struct mp_family *f, struct mp_block *b) {
    if (!mp_guests_become(f))
        return;
    mp_kind_remove(f, b);
    mp_guests_unbecome(f);
}

/* Rights on the family's kernel objects for a member that has changed its user id.
 *
 * The kernel checks each call on a set, queue or segment against the caller's effective user id of that moment, and everything is
 * open to its creator (cuid) and its owner (uid) alone. So a process that has given up the user who founded the family (setuid(2),
 * seteuid(2)) can do nothing any more but with what it has attached. A family can have one such user id beside the founder's: its
 * guest. Everything then has one of the two for its creator and the other for its owner, and both have the same rights.
 *
 *   1. The member that gets EACCES, or is about to make an object, writes its user id and WANTED into its slot, and waits. It has
 *      no right on anything that it could ring with, but it may write to the segment, and wake who sleeps there: a thread of the
 *      reaper's, which rings (mpipc-reaper.c). It makes the call again when it has the answer.
 *   2. Whoever still is the founder's user (the reaper, when that thread rings, or where it has none once a tick; a member, at its
 *      tick) asks the kernel who is in that slot and who he is now (guests.c), writes him into header.guest, gives everything that
 *      there is to him, and answers.
 *   3. From then on whoever makes an object gives it to the other of the two users, as its creator, before others know of it.
 *
 * Who makes an object publishes its id before he looks at header.guest, and who writes the guest looks for ids after that, so one
 * of the two sees the other. Where one can die: in 1 and 3, the slot is cleared like everything of the dead; an object that was
 * not given away by its creator is given when the next member asks, or, of one that nobody has seen, its block is taken down. In 2,
 * the slot still says WANTED, and each step can be done again.
 *
 * Nobody becomes a guest by what stands in shared memory alone, but the members trust each other: this is no wall between a
 * process that has dropped its privileges and the rest of its family. See SECURITY.md. */
#include "access.h"

#include "futex.h"

#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <unistd.h>

#define PATIENCE_TICKS 3
#define LOOK_NS 1000000

union semun {
    struct semid_ds *buf;
};

/* ---- whose is it? ---------------------------------------------------------------------------------------------------- */

static uint32_t guest(struct mp_family *f) { return atomic_load_explicit(&f->h->guest, memory_order_seq_cst); }

/* Is it the founder's user id, or the guest's? */
bool mp_access_is_users(struct mp_family *f, uint32_t uid) {
    uint32_t other = guest(f);
    return uid == f->h->uid || (other != 0 && uid == other - 1);
}

/* Made by one of the two (which cannot be forged), owned by one of the two, and nobody else has any right on it? */
bool mp_access_is_ours(struct mp_family *f, const struct ipc_perm *perm) {
    return mp_access_is_users(f, perm->cuid) && mp_access_is_users(f, perm->uid) && (perm->mode & 077) == 0;
}

/* ---- asking ------------------------------------------------------------------------------------------------------------ */

static int refuse(struct mp_family *f, uint32_t uid, int error) {
    f->refused_uid = uid;
    f->refused_error = error;
    f->refused_ns = mp_now_ns();
    return error;
}

/* MP_OK; MP_GUESTS: the family has another guest; MP_DENIED: nobody answers, or the object is no object of the family. */
static int ask(struct mp_family *f) {
    uint32_t uid = geteuid();
    if (f->slot < 0 || f->is_reaper || uid == f->h->uid) /* the reaper gives, and asks nobody */
        return MP_DENIED;
    if (f->refused_error != MP_OK && f->refused_uid == uid && mp_now_ns() - f->refused_ns < MP_TICK_NS)
        return f->refused_error; /* not for each call of a loop anew */
    struct mp_slot *s = &f->seg->slots[f->slot];
    uint64_t wanted = mp_access_word(MP_ACCESS_WANTED, uid), word = wanted;
    int64_t end = mp_now_ns() + PATIENCE_TICKS * MP_TICK_NS;
    atomic_store(&s->access, wanted);
    while (word == wanted && mp_now_ns() < end) {
        atomic_store(&f->h->access_wanted, 1);
        mp_futex_wake(&f->h->access_wanted);
        nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
        word = atomic_load(&s->access);
    }
    switch (mp_access_of(word)) {
    case MP_ACCESS_GIVEN:
        f->refused_error = MP_OK;
        return MP_OK;
    case MP_ACCESS_REFUSED:
        return refuse(f, uid, MP_GUESTS);
    default:
        return refuse(f, uid, MP_DENIED);
    }
}

/* After EACCES. False with errno. */
bool mp_access_again(struct mp_family *f) {
    int error = ask(f);
    errno = error;
    return error == MP_OK;
}

/* Before something is made, for which a process that has changed its user needs no right of its own. */
int mp_access_need(struct mp_family *f) { return mp_access_is_users(f, geteuid()) ? MP_OK : ask(f); }

/* ---- giving -------------------------------------------------------------------------------------------------------------- */

/* Who is to own what this user has made: the other one of the two. False: there is none, or he does. */
static bool is_to_be_given(struct mp_family *f, struct ipc_perm *perm) {
    uint32_t other = guest(f);
    if (other == 0 || !mp_access_is_ours(f, perm) || perm->cuid != geteuid())
        return false;
    uint32_t owner = perm->cuid == f->h->uid ? other - 1 : f->h->uid;
    if (perm->uid == owner)
        return false;
    perm->uid = owner;
    return true;
}

/* Whatever cannot be given (it is gone, say) will be missed by who wants to use it. */
void mp_access_share_set(struct mp_family *f, int id) {
    struct semid_ds ds;
    union semun arg = {.buf = &ds};
    if (guest(f) != 0 && semctl(id, 0, IPC_STAT, arg) == 0 && is_to_be_given(f, &ds.sem_perm))
        semctl(id, 0, IPC_SET, arg);
}

void mp_access_share_queue(struct mp_family *f, int id) {
    struct msqid_ds ds;
    if (guest(f) != 0 && msgctl(id, IPC_STAT, &ds) == 0 && is_to_be_given(f, &ds.msg_perm))
        msgctl(id, IPC_SET, &ds);
}

void mp_access_share_segment(struct mp_family *f, int id) {
    struct shmid_ds ds;
    if (guest(f) != 0 && shmctl(id, IPC_STAT, &ds) == 0 && is_to_be_given(f, &ds.shm_perm))
        shmctl(id, IPC_SET, &ds);
}

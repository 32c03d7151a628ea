/* Bells: semaphores of the pooled sets, at which waiters sleep. Every block has one, and every wait cell. */
#include "bells.h"

#include "access.h"
#include "sets.h"
#include "waits.h"

union semun {
    int val;
};

/* The number of a bell comes from shared memory, where anything may stand. */
static bool is_bell(uint32_t bell) {
    if (bell < MP_BELLS)
        return true;
    errno = MP_CORRUPT;
    return false;
}

/* Where a bell is. -1 with errno: MP_CORRUPT, there is no such bell; or what mp_own_set() says. */
int mp_bell(struct mp_family *f, uint32_t bell, int *semid, unsigned short *num) {
    uint32_t each = f->set_size - 1, set = bell / each;
    if (!is_bell(bell))
        return MP_FAILED;
    int id = mp_published(&f->seg->bell_sets[set]);
    if (id < 0)
        id = mp_own_set(f, &f->seg->bell_sets[set], MP_SET_BELLS + set, (int)f->set_size);
    *semid = id;
    *num = (unsigned short)(1 + bell % each);
    return id < 0 ? MP_FAILED : MP_OK;
}

/* ERANGE (32767 rings not answered yet) is as good as a ring. */
int mp_bell_ring(struct mp_family *f, uint32_t bell, int times) {
    struct sembuf ring = {0, (short)(times > 32767 ? 32767 : times), IPC_NOWAIT};
    int semid;
    if (mp_bell(f, bell, &semid, &ring.sem_num) != MP_OK)
        return MP_FAILED;
    return MP_ALLOWED(f, semop(semid, &ring, 1)) < 0 && errno != ERANGE ? MP_FAILED : MP_OK;
}

/* SETVAL and the readings below are for rare occasions: semctl(2) locks the whole set, for which the kernel visits each of
 * its semaphores, 20 us on a set that is otherwise used by single-operation semops (see event.c). */
int mp_bell_set(struct mp_family *f, uint32_t bell, int value) {
    union semun arg = {.val = value};
    unsigned short num;
    int semid;
    if (mp_bell(f, bell, &semid, &num) != MP_OK)
        return MP_FAILED;
    return MP_ALLOWED(f, semctl(semid, num, SETVAL, arg));
}

/* command: GETVAL, GETPID, GETNCNT or GETZCNT. A bell whose set was never made has never been touched. */
int mp_bell_get(struct mp_family *f, uint32_t bell, int command) {
    uint32_t each = f->set_size - 1;
    if (!is_bell(bell))
        return MP_FAILED;
    int id = mp_published(&f->seg->bell_sets[bell / each]);
    return id < 0 ? 0 : MP_ALLOWED(f, semctl(id, (int)(1 + bell % each), command));
}

/* One semop with op -1 (a ring) or 0 (wait for zero), for at most a tick. Returns 0 when it is done, ETIMEDOUT when the
 * deadline (CLOCK_MONOTONIC ns, < 0: none) has passed, EAGAIN when only the tick has, EINTR after a signal handler ran. */
int mp_bell_wait(struct mp_family *f, uint32_t bell, int op, int64_t deadline_ns) {
    struct sembuf wait = {0, (short)op, 0};
    int64_t left = MP_TICK_NS;
    bool last = false;
    int semid;
    if (mp_bell(f, bell, &semid, &wait.sem_num) != MP_OK)
        return errno;
    if (deadline_ns >= 0) {
        int64_t until = deadline_ns - mp_now_ns();
        if (until <= left) {
            left = until > 0 ? until : 0;
            wait.sem_flg = until > 0 ? 0 : IPC_NOWAIT; /* a sleep of 0 ns takes as long as the timer's slack */
            last = true;
        }
    }
    struct timespec timeout = {left / 1000000000, left % 1000000000};
    if (MP_ALLOWED(f, semtimedop(semid, &wait, 1, &timeout)) == 0)
        return MP_OK;
    return errno == EAGAIN && last ? ETIMEDOUT : errno;
}

/* As mp_bell_wait(), with an outcome for a result, and a record of it. Who has waited in vain looks after the family: at each
 * tick, and if it is not for so long, as often. */
int mp_bell_await(struct mp_family *f, uint32_t bell, int op, int64_t deadline_ns) {
    struct mp_wait *wait = mp_wait_enter(f, op == 0 ? MP_WAIT_ZERO : MP_WAIT_RING, bell);
    int error = mp_bell_wait(f, bell, op, deadline_ns);
    mp_wait_leave(wait, error == EAGAIN || error == EINTR);
    switch (error) {
    case EAGAIN:
        mp_look_after_now(f);
        return MP_TICK;
    case EINTR:
        return MP_INTERRUPTED;
    case ETIMEDOUT:
        mp_look_after(f);
        return MP_TIMED_OUT;
    default:
        return mp_error(error);
    }
}

/* The event: a semaphore of a pooled set, 0 while the event is set and positive while it is clear.
 *
 * Only single-operation semops are used. A semctl, or a semop of several operations, takes the lock of the whole set, for
 * which the kernel visits each of its semaphores in turn: 20 us for a set of 1025 against 0.3 us (ipc/sem.c,
 * complexmode_enter). So there is no SETVAL and no atomic "to 1 if 0"; two processes that clear at the same time may leave
 * the value at 2, and set() takes it down until it is zero.
 *
 * Where a process can die: in set(), before the value is 0: the event is still clear, nobody was told anything; at the
 * moment it becomes 0 the kernel wakes every waiter itself. In clear(): it is done or it is not. */
#include "family.h"

static int change(struct mp_family *f, uint32_t index, int op) {
    struct sembuf operation = {0, (short)op, IPC_NOWAIT};
    int semid;
    if (mp_bell(f, index, &semid, &operation.sem_num) != MP_OK)
        return MP_FAILED;
    return semop(semid, &operation, 1);
}

/* 1 set, 0 clear, -1 with errno. */
int mp_event_is_set(struct mp_family *f, uint32_t index) {
    if (change(f, index, 0) == 0)
        return 1;
    return errno == EAGAIN ? 0 : MP_FAILED;
}

int mp_event_clear(struct mp_family *f, uint32_t index) {
    int is_set = mp_event_is_set(f, index);
    if (is_set <= 0)
        return is_set;
    return change(f, index, 1);
}

int mp_event_set(struct mp_family *f, uint32_t index) {
    int value = 1;
    for (;;) {
        if (change(f, index, -value) < 0 && errno != EAGAIN)
            return MP_FAILED;
        int is_set = mp_event_is_set(f, index);
        if (is_set != 0)
            return is_set < 0 ? MP_FAILED : MP_OK;
        value = mp_bell_get(f, index, GETVAL); /* cleared twice, or rings from the block's earlier life */
        if (value <= 0)
            value = 1;
    }
}

/* A new event is clear, whatever its semaphore was used for before. */
int mp_event_init(struct mp_family *f, uint32_t index) {
    return change(f, index, 1) < 0 && errno != ERANGE ? MP_FAILED : MP_OK;
}

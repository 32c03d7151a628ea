/* semop(2) and semtimedop(2) of a kernel that accepts SEM_UNDO and ignores it, as gVisor does. For /etc/ld.so.preload: the reaper is
 * started with an environment of its own. See .ci/without-undo. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 500 /* SEMOPM of Linux */

int semtimedop(int id, struct sembuf *operations, size_t count, const struct timespec *timeout) {
    struct sembuf stripped[MOST];
    if (count > MOST) {
        errno = E2BIG;
        return -1;
    }
    memcpy(stripped, operations, count * sizeof *operations);
    for (size_t i = 0; i < count; i++)
        stripped[i].sem_flg &= (short)~SEM_UNDO;
    return (int)syscall(SYS_semtimedop, id, stripped, count, timeout);
}

int semop(int id, struct sembuf *operations, size_t count) { return semtimedop(id, operations, count, NULL); }

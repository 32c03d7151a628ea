/* How a call of the core ends: a closed list, and the only one.
 *
 * Calls that return an outcome return one of these numbers; those that return an id, a count or NULL say in errno which error it
 * was. There are two sorts, which no number belongs to both of:
 *
 *   answers   say how something went that is no failure: a tick has passed, a signal handler wants to run, there is no message.
 *             They have numbers that no errno has, they are for the loops around the core, and never leave those.
 *   errors    are errnos, and each means one thing, whatever call of the kernel found it. What the kernel says goes through
 *             mp_error() on its way here, because it has one number for several things (EAGAIN: the time is up, or the queue is
 *             full; EINVAL: the object is gone, or the message is too long) and several for one (EINVAL, EIDRM: it is gone).
 *             They become exceptions in one place, mpipc/_core/errors.py. */
#ifndef MPIPC_OUTCOME_H
#define MPIPC_OUTCOME_H

#include <errno.h>

enum mp_outcome {
    MP_OK = 0,
    MP_FAILED = -1, /* where the result is not an outcome: errno has the error */

    /* answers */
    MP_TICK = 1000, /* a tick has passed: let signal handlers run, and call again */
    MP_INTERRUPTED, /* a signal handler has run, or wants to: the same */
    MP_TIMED_OUT,   /* the deadline has passed */
    MP_BUSY,        /* somebody has the lock, and this call waits for nobody */
    MP_EMPTY,       /* there is no message */
    MP_FULL,        /* there is no room for one more message */
    MP_NOT_HELD,    /* a lock that nobody holds was to be released */
    MP_NONE_LEFT,   /* a task was to be done, and none is unfinished */

    /* errors */
    MP_REMOVED = EIDRM,     /* somebody has removed the kernel object (ipcrm(1)) */
    MP_CORRUPT = EBADMSG,   /* what stands in shared memory, or in the kernel queue, cannot be: it was dropped */
    MP_NO_MEMORY = ENOMEM,  /* of the machine, or no room in this process's address space */
    MP_LIMIT = ENOSPC,      /* a limit of the system on kernel objects or on their memory */
    MP_TOO_LARGE = EFBIG,   /* larger than a segment of shared memory may be (kernel.shmmax) */
    MP_TABLE_FULL = EXFULL, /* a table of the family (of blocks, chunks, records, cells), or the queue's list of segments */
    MP_SLOTS_FULL = EUSERS, /* the process table of the family */
    MP_SETS_SMALL = E2BIG,  /* the kernel's limit on semaphores in a set (SEMMSL) is below what a family needs */
    MP_SQUATTED = EADDRINUSE, /* another user has made sets under all keys that one of ours may have */
    MP_GONE = ESTALE,       /* the process that shared it ended before this one could take it over */
    MP_FOREIGN = EXDEV,     /* a process of another pid namespace, where SEM_UNDO is ignored: nobody could see it die */
    MP_DENIED = EACCES,     /* the kernel object is not this user's, and nobody lets him in who is: see access.c */
    MP_GUESTS = ENOTUNIQ,   /* another one has been let in */
    MP_SHUT_DOWN = ESHUTDOWN, /* the queue was shut down, and has nothing more to give: see shutdown.c */
    MP_UNEXPECTED = EIO     /* anything else */
};

/* The error that an errno of the kernel stands for. What is an answer for the caller (EAGAIN, EINTR, ENOMSG) he has looked at
 * before. */
static inline int mp_error(int number) {
    switch (number) {
    case MP_OK:
    case MP_REMOVED:
    case MP_CORRUPT:
    case MP_NO_MEMORY:
    case MP_LIMIT:
    case MP_TOO_LARGE:
    case MP_TABLE_FULL:
    case MP_SLOTS_FULL:
    case MP_SETS_SMALL:
    case MP_SQUATTED:
    case MP_FOREIGN:
    case MP_GONE:
    case MP_DENIED:
    case MP_GUESTS:
        return number;
    case EINVAL: /* of an id: nothing has it any more */
        return MP_REMOVED;
    case EPERM:
        return MP_DENIED;
    case ENFILE:
    case EMFILE:
        return MP_LIMIT;
    default:
        return MP_UNEXPECTED;
    }
}

#endif

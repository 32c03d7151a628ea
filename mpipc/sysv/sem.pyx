"""Semaphore sets: semget, semop, semtimedop and semctl. See semget(2), semop(2) and semctl(2).

As in mpipc.sysv.msg, a call that may wait is first made without waiting and with the GIL held.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EACCES, EAGAIN, EFBIG, EINTR, EINVAL, ERANGE, errno
from libc.limits cimport SHRT_MAX, SHRT_MIN, USHRT_MAX
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from posix.time cimport timespec

from mpipc.sysv cimport _libc
from mpipc.sysv._args cimport as_key, clipped, given
from mpipc.sysv._libc cimport sembuf
from mpipc.sysv._waits cimport attempt_until_done, deadline_in, now_ns

from mpipc.sysv.errors import SysVTimeoutError, from_errno, make
from mpipc.sysv.structs import ipc_perm, semid_ds, seminfo

__all__ = [
    "GETALL",
    "GETNCNT",
    "GETPID",
    "GETVAL",
    "GETZCNT",
    "SEM_INFO",
    "SEM_UNDO",
    "SETALL",
    "SETVAL",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
]

SEM_UNDO = _libc.SEM_UNDO
GETPID = _libc.GETPID
GETVAL = _libc.GETVAL
GETALL = _libc.GETALL
GETNCNT = _libc.GETNCNT
GETZCNT = _libc.GETZCNT
SETVAL = _libc.SETVAL
SETALL = _libc.SETALL
SEM_INFO = _libc.SEM_INFO

cdef enum:
    INLINE = 16  # operations kept on the stack


cdef struct operation:
    int semid
    sembuf *sops
    size_t count


cdef int perform(void *what, int64_t deadline) noexcept nogil:
    """semop(2) or semtimedop(2): 0 or an errno."""
    cdef operation *o = <operation *>what
    cdef int64_t left
    cdef timespec remaining
    if deadline < 0:
        return 0 if _libc.c_semop(o.semid, o.sops, o.count) == 0 else errno
    left = deadline - now_ns()
    if left <= 0:
        return EAGAIN
    remaining.tv_sec = left // 1_000_000_000
    remaining.tv_nsec = left % 1_000_000_000
    return 0 if _libc.c_semtimedop(o.semid, o.sops, o.count, &remaining) == 0 else errno


cdef object failure(int number, str call, int semid, dict arguments):
    """The exception for a call that failed on the set `semid`."""
    cdef _libc.semid_ds ds
    cdef _libc.semun arg
    arg.buf = &ds
    gone = number == EINVAL and _libc.c_semctl(semid, 0, _libc.IPC_STAT, arg) == -1 and errno != EACCES
    return from_errno(number, call, arguments, gone)


def semget(key, nsems, int semflg=0o600):
    """Return the id of the set with this key, or of a new one with `nsems` semaphores, all 0.

    `semflg` is IPC_CREAT, IPC_EXCL and the mode. IPC_PRIVATE always makes a new set. For a set that exists, the mode
    is what the caller wants to be allowed, 0 asks for nothing, and `nsems` may be anything up to its size.

    Raises SysVFileExistsError, SysVFileNotFoundError, SysVPermissionError, or LimitError (SEMMSL, SEMMNI, SEMMNS; the
    size of the existing set). Source: semget(2).
    """
    cdef int semid = _libc.c_semget(as_key(key), clipped(nsems), semflg)
    if semid == -1:
        raise from_errno(errno, "semget", {"key": key, "nsems": nsems, "semflg": semflg})
    return semid


cpdef object semop(int semid, object sops):
    """Perform the operations `sops`, each `(sem_num, sem_op)` or `(sem_num, sem_op, sem_flg)`, all of them or none.

    `sem_op` > 0 is added to the semaphore, < 0 is taken from it as soon as it is large enough, 0 waits until it is 0.
    `sem_flg` is IPC_NOWAIT (raise SysVBlockingIOError rather than wait) and SEM_UNDO (take the operation back when
    this process ends).

    Raises LimitError (SEMOPM; SEMVMX; the size of the set), RemovedError, also when the set is removed during the wait,
    and SysVPermissionError. Source: semop(2).
    """
    operate(semid, sops, None, "semop")


cpdef object semtimedop(int semid, object sops, object timeout=None):
    """Perform operations as semop() does, but wait for at most `timeout` seconds (None: for ever).

    When they are over, SysVTimeoutError is raised, which is a TimeoutError and a BlockingIOError (EAGAIN). Signal
    handlers that run during the wait do not prolong it.

    Source: semop(2).
    """
    operate(semid, sops, timeout, "semtimedop")


cdef int operate(int semid, object sops, object timeout, str call) except -1:
    cdef sembuf frame[2 * INLINE]
    cdef sembuf *wanted = frame  # the operations as they were asked for
    cdef sembuf *trial           # the same with IPC_NOWAIT
    cdef bint patient = False    # is there an operation that may wait?
    cdef bint timed = timeout is not None
    cdef int64_t deadline = -1
    cdef operation what
    cdef int number
    if timed:
        deadline = deadline_after(timeout)
    if type(sops) is not tuple and type(sops) is not list:
        sops = tuple(sops)
    cdef Py_ssize_t count = len(sops)
    if count > INLINE:
        wanted = <sembuf *>malloc(2 * <size_t>count * sizeof(sembuf))
        if wanted == NULL:
            raise MemoryError(f"no memory for {count} semaphore operations")
    trial = wanted + count
    try:
        number = load(sops, count, wanted, trial, &patient)
        if number == 0:
            number = 0 if _libc.c_semop(semid, trial, <size_t>count) == 0 else errno
        if number == EAGAIN and patient:
            PyErr_CheckSignals()
            what = operation(semid, wanted, <size_t>count)
            number = attempt_until_done(perform, &what, deadline, EINTR, EINTR)
    finally:
        if wanted != frame:
            free(wanted)
    if number == 0:
        return 0
    arguments = {"semid": semid, "sops": sops}
    if timed:
        arguments["timeout"] = timeout
    # The kernel says EAGAIN in both cases; before the deadline it was an operation with IPC_NOWAIT.
    if number == EAGAIN and patient and 0 <= deadline <= now_ns():
        raise make(SysVTimeoutError, number, call, arguments)
    raise failure(number, call, semid, arguments)


cdef int load(list_or_tuple, Py_ssize_t count, sembuf *wanted, sembuf *trial, bint *patient) except -1:
    """Fill both arrays. Returns the errno for a number that does not fit its C type, as it is beyond every limit."""
    cdef Py_ssize_t i, size
    cdef long sem_num, sem_op, sem_flg
    cdef int number = 0
    for i in range(count):
        item = list_or_tuple[i]
        if not isinstance(item, tuple):
            item = tuple(item)
        operation = <tuple>item
        size = len(operation)
        if size != 2 and size != 3:
            raise ValueError(
                f"an operation is (sem_num, sem_op) or (sem_num, sem_op, sem_flg), not {operation!r}"
            )
        sem_num = clipped(operation[0])
        sem_op = clipped(operation[1])
        sem_flg = clipped(operation[2]) if size == 3 else 0
        if sem_flg < 0 or sem_flg > SHRT_MAX:
            raise ValueError(f"sem_flg must be 0 or made of IPC_NOWAIT and SEM_UNDO, not {sem_flg:#x}")
        if sem_num < 0 or sem_num > USHRT_MAX:
            number = EFBIG
        elif sem_op < SHRT_MIN or sem_op > SHRT_MAX:
            number = number or ERANGE
        wanted[i].sem_num = <unsigned short>sem_num
        wanted[i].sem_op = <short>sem_op
        wanted[i].sem_flg = <short>sem_flg
        trial[i] = wanted[i]
        trial[i].sem_flg |= _libc.IPC_NOWAIT
        if not sem_flg & _libc.IPC_NOWAIT:
            patient[0] = True
    return number


cdef int64_t deadline_after(object timeout) except? -1:
    """The CLOCK_MONOTONIC time in ns at which `timeout` seconds are over, or -1 if nobody will live to see it."""
    cdef double seconds = timeout
    if not seconds >= 0:
        raise ValueError(f"timeout must be a number of seconds, 0 or more, or None, not {timeout!r}")
    return deadline_in(seconds)


def semctl(int semid, int semnum, int cmd, arg=None, *, uid=None, gid=None, mode=None):
    """Control a set, or its semaphore number `semnum`, which is ignored by commands for the whole set.

    - GETVAL, GETPID (who operated on it last), GETNCNT and GETZCNT (how many wait for it to grow, to be 0): an int
    - GETALL: the values of all semaphores, a list
    - SETVAL: set the value to `arg`. SETALL: set all values to the sequence `arg`. Both drop all processes' SEM_UNDO
      entries for the semaphores and wake those who waited for such a value.
    - IPC_STAT: the semid_ds
    - IPC_SET: set owner and mode, from a semid_ds or from the keywords; what is not given stays as it is
    - IPC_RMID: remove the set and wake everyone who waits at it
    - IPC_INFO and SEM_INFO, for which `semid` is ignored: a seminfo

    Raises RemovedError; SysVPermissionError; LimitError (SEMVMX) for a value that is too large. Source: semctl(2).
    """
    cdef _libc.semid_ds ds
    cdef _libc.seminfo info
    cdef _libc.semun argument
    argument.buf = NULL
    if arg is not None and cmd != _libc.SETVAL and cmd != _libc.SETALL and cmd != _libc.IPC_SET:
        raise TypeError("semctl: arg goes with SETVAL, SETALL and IPC_SET only")
    if cmd != _libc.IPC_SET and given((uid, gid, mode)):
        raise TypeError("semctl: uid, gid and mode go with IPC_SET only")
    if cmd == _libc.GETVAL or cmd == _libc.GETPID or cmd == _libc.GETNCNT or cmd == _libc.GETZCNT:
        return control(semid, semnum, cmd, argument, None)
    if cmd == _libc.SETVAL:
        if arg is None:
            raise TypeError("semctl: SETVAL needs a value")
        argument.val = clipped(arg)
        control(semid, semnum, cmd, argument, arg)
        return None
    if cmd == _libc.GETALL:
        return get_all(semid)
    if cmd == _libc.SETALL:
        if arg is None:
            raise TypeError("semctl: SETALL needs a sequence of values")
        set_all(semid, tuple(arg))
        return None
    if cmd == _libc.IPC_STAT:
        argument.buf = &ds
        control(semid, 0, cmd, argument, None)
        perm = ds.sem_perm
        return semid_ds(
            ipc_perm(perm.key, perm.uid, perm.gid, perm.cuid, perm.cgid, perm.mode, perm.seq),
            ds.sem_otime,
            ds.sem_ctime,
            ds.sem_nsems,
        )
    if cmd == _libc.IPC_RMID:
        control(semid, 0, cmd, argument, None)
        return None
    if cmd == _libc.IPC_SET:
        if arg is not None:
            uid = arg.sem_perm.uid if uid is None else uid
            gid = arg.sem_perm.gid if gid is None else gid
            mode = arg.sem_perm.mode if mode is None else mode
        if not given((uid, gid, mode)):
            raise TypeError("semctl: IPC_SET needs a semid_ds or one of uid, gid and mode")
        argument.buf = &ds
        if uid is None or gid is None or mode is None:
            control(semid, 0, _libc.IPC_STAT, argument, None)
        if uid is not None:
            ds.sem_perm.uid = uid
        if gid is not None:
            ds.sem_perm.gid = gid
        if mode is not None:
            ds.sem_perm.mode = mode
        control(semid, 0, cmd, argument, {"uid": ds.sem_perm.uid, "gid": ds.sem_perm.gid, "mode": ds.sem_perm.mode})
        return None
    if cmd == _libc.IPC_INFO or cmd == _libc.SEM_INFO:
        argument.info = &info
        control(semid, 0, cmd, argument, None)
        return seminfo(
            info.semmap, info.semmni, info.semmns, info.semmnu, info.semmsl,
            info.semopm, info.semume, info.semusz, info.semvmx, info.semaem,
        )
    raise ValueError(
        "semctl: cmd must be GETVAL, SETVAL, GETALL, SETALL, GETPID, GETNCNT, GETZCNT, IPC_STAT, IPC_SET, IPC_RMID,"
        f" IPC_INFO or SEM_INFO, not {cmd}"
    )


cdef int control(int semid, int semnum, int cmd, _libc.semun argument, object shown) except? -1:
    """semctl(2). `shown` is how an error shows the argument."""
    cdef int result = _libc.c_semctl(semid, semnum, cmd, argument)
    if result == -1:
        number = errno
        arguments = {"semid": semid, "semnum": semnum, "cmd": cmd}
        if isinstance(shown, dict):
            arguments |= shown
        elif shown is not None:
            arguments["arg"] = shown
        raise failure(number, "semctl", semid, arguments)
    return result


cdef Py_ssize_t set_size(int semid, int cmd) except -1:
    """The number of semaphores in the set: GETALL and SETALL read and write that many, whatever they are given."""
    cdef _libc.semid_ds ds
    cdef _libc.semun argument
    cdef int number
    argument.buf = &ds
    if _libc.c_semctl(semid, 0, _libc.IPC_STAT, argument) == 0:
        return <Py_ssize_t>ds.sem_nsems
    number = errno
    if number == EACCES and cmd == _libc.SETALL:  # a set that we may write and not read; the listing has no permissions
        from mpipc.sysv.listing import semaphore_sets

        for entry in semaphore_sets():
            if entry.semid == semid:
                return entry.nsems
    raise failure(number, "semctl", semid, {"semid": semid, "semnum": 0, "cmd": cmd})


cdef list get_all(int semid):
    cdef Py_ssize_t count = set_size(semid, _libc.GETALL)
    cdef Py_ssize_t i
    cdef _libc.semun argument
    argument.array = <unsigned short *>malloc(<size_t>count * sizeof(unsigned short))
    if argument.array == NULL:
        raise MemoryError(f"no memory for {count} semaphore values")
    try:
        control(semid, 0, _libc.GETALL, argument, None)
        return [argument.array[i] for i in range(count)]
    finally:
        free(argument.array)


cdef int set_all(int semid, tuple values) except -1:
    cdef Py_ssize_t count = set_size(semid, _libc.SETALL)
    cdef Py_ssize_t i
    cdef int value
    cdef _libc.semun argument
    if len(values) != count:
        raise ValueError(f"semctl: SETALL needs {count} values, one for each semaphore of the set, not {len(values)}")
    argument.array = <unsigned short *>malloc(<size_t>count * sizeof(unsigned short))
    if argument.array == NULL:
        raise MemoryError(f"no memory for {count} semaphore values")
    try:
        for i in range(count):
            # The array's C type ends at 65535, beyond SEMVMX: the kernel refuses it as it refuses anything larger.
            value = clipped(values[i])
            argument.array[i] = <unsigned short>value if 0 <= value <= USHRT_MAX else USHRT_MAX
        control(semid, 0, _libc.SETALL, argument, values)
    finally:
        free(argument.array)
    return 0

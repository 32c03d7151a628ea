# How a thread waits: deadlines, and the loop around calls that may sleep. For the layers above, too.

from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport ceil
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef inline int64_t now_ns() noexcept nogil:
    """CLOCK_MONOTONIC, which time.monotonic() is."""
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t> time.tv_sec * 1_000_000_000 + time.tv_nsec


cdef inline int64_t deadline_in(double seconds) noexcept:
    """When so many seconds are over, by now_ns(); -1 if nobody will live to see it. At once if they are negative."""
    if seconds > 4e9:
        return -1
    # Rounded up: a wait is never shorter than asked for.
    return now_ns() + (<int64_t> ceil(seconds * 1e9) if seconds > 0 else 0)


# A call that may sleep, until the deadline (< 0: for ever). It answers how that went.
ctypedef int (*attempt_function)(void *what, int64_t deadline) noexcept nogil


cdef inline int attempt_once(
    attempt_function attempt, void *what, int64_t deadline, int interrupted, int tick
) except -1:
    """One attempt, without the GIL. Where it was interrupted, or a tick has passed, signal handlers run, and what they
    raise is raised: such an answer means that nothing has been done, and nothing is in our hands."""
    cdef int answer
    with nogil:
        answer = attempt(what, deadline)
    if answer == interrupted or answer == tick:
        PyErr_CheckSignals()
    return answer


cdef inline int attempt_until_done(
    attempt_function attempt, void *what, int64_t deadline, int interrupted, int tick
) except -1:
    """Attempts until there is an answer of another kind."""
    cdef int answer = interrupted
    while answer == interrupted or answer == tick:
        answer = attempt_once(attempt, what, deadline, interrupted, tick)
    return answer

# How this process waits for others: what a timeout means, and the one loop around the calls of the core that may sleep.
#
# Signal handlers run after every interrupted sleep, and on every tick of a longer one: a signal that came just before
# the sleep began has not interrupted it.
#
# Beside greenlets (_core/greenlets.py), who waits for something that one of them may bring about does not sleep in the
# kernel: it asks there again and again, and lets them run in between. Not so who waits for a process that is at work,
# as the owner of a queue's lock is.

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from mpipc._core.family cimport MP_INTERRUPTED, MP_OK, MP_TICK, MP_TIMED_OUT, fail_bell, mp_wait_over
from mpipc.sysv._waits cimport attempt_function, attempt_once, attempt_until_done, deadline_in, now_ns

cdef extern from "Python.h":
    PyObject *PyImport_GetModuleDict()  # borrowed
    PyObject *PyDict_GetItemString(PyObject *dictionary, const char *key)  # borrowed, or NULL

cdef enum:
    LONGEST_PAUSE_US = 10000
    TURNS_NS = 1000000000  # about a tick: who waits longer looks after the family in between

# Whether what is waited for is there. With the GIL.
ctypedef bint (*look_function)(void *what) except -1


cdef inline int64_t deadline_after(object timeout) except -2:
    """Absolute CLOCK_MONOTONIC ns for a timeout in seconds; -1 for None. Negative timeouts are 0, as multiprocessing's
    are."""
    cdef double seconds
    if timeout is None:
        return -1
    seconds = timeout
    if seconds != seconds:
        raise ValueError("timeout must be a number of seconds or None, got nan")
    return deadline_in(seconds)


cdef inline int64_t deadline_if(object block, object timeout) except -2:
    """The same for a call that waits only if `block`; 0 if it waits for nothing. As in multiprocessing, the timeout is
    ignored then, and one that is not positive is none."""
    cdef double seconds
    if not block:
        return 0
    if timeout is None:
        return -1
    seconds = timeout
    return 0 if seconds <= 0 else deadline_after(timeout)


cdef inline bint must_go_on(int outcome) noexcept:
    """Whether an attempt has ended before it had done anything."""
    return outcome == MP_TICK or outcome == MP_INTERRUPTED


cdef inline int wait_once(attempt_function attempt, void *what, int64_t deadline) except -1:
    """One call of the core, without the GIL, after which signal handlers run if they may want to."""
    return attempt_once(attempt, what, deadline, MP_INTERRUPTED, MP_TICK)


cdef inline bint beside_greenlets(bint as_everybody=False) except -1:
    """Whether other greenlets may run while this thread waits; see greenlets.are_here()."""
    if PyDict_GetItemString(PyImport_GetModuleDict(), "greenlet") == NULL:
        return False
    from mpipc._core import greenlets

    return greenlets.are_here(as_everybody)


cdef inline int readable(int descriptor, double seconds) except -1:
    """Lets them run until a file descriptor is readable, or so long."""
    from mpipc._core import greenlets

    greenlets.readable(descriptor, seconds)
    return 0


cdef inline int wait_in_turns(attempt_function attempt, void *what, int64_t deadline) except -1:
    """As wait_once(), beside greenlets. What a pause raises is raised: nothing is in our hands then."""
    cdef int answer
    cdef int64_t now = now_ns(), end = now + TURNS_NS, pause_us = 0
    from mpipc._core import greenlets

    while True:
        answer = attempt(what, 1)  # that is long over: it does not sleep
        if answer != MP_TIMED_OUT:
            break
        now = now_ns()
        if 0 <= deadline <= now:
            return MP_TIMED_OUT
        if now >= end:
            answer = MP_TICK
            break
        greenlets.pause(1e-6 * min(pause_us, (deadline - now) // 1000 + 1 if deadline >= 0 else pause_us))
        pause_us = min(2 * pause_us + 20, LONGEST_PAUSE_US)
    if must_go_on(answer):
        PyErr_CheckSignals()
    return answer


cdef inline int wait_in_turn(attempt_function attempt, void *what, int64_t deadline) except -1:
    """wait_once(), or beside greenlets wait_in_turns()."""
    if beside_greenlets():
        return wait_in_turns(attempt, what, deadline)
    return wait_once(attempt, what, deadline)


cdef inline int wait_for(attempt_function attempt, void *what, int64_t deadline) except -1:
    """For calls of the core that end with what is waited for. What they answer, which is neither MP_TICK nor
    MP_INTERRUPTED: then they have done nothing yet, and are called again when signal handlers have run."""
    mp_wait_over()  # the one before, if a signal handler has raised in it
    return attempt_until_done(attempt, what, deadline, MP_INTERRUPTED, MP_TICK)


cdef inline int wait_long_for(attempt_function attempt, void *what, int64_t deadline) except -1:
    """As wait_for(), where other greenlets of this thread may have to run before it comes."""
    cdef int answer = MP_INTERRUPTED
    mp_wait_over()  # the one before
    while must_go_on(answer):
        answer = wait_in_turn(attempt, what, deadline)
    return answer


cdef inline int wait_until(look_function look, attempt_function sleep, void *what, int64_t deadline) except -1:
    """For what is seen by a look, and is not certain after a sleep. MP_OK: a look has found it; MP_TIMED_OUT: the last
    one, after the deadline, has not; or the error of `sleep`. There is a look after every sleep, however that ended."""
    cdef int outcome = MP_OK
    mp_wait_over()  # the one before
    while not look(what):
        if outcome == MP_TIMED_OUT:
            return MP_TIMED_OUT
        outcome = wait_in_turn(sleep, what, deadline)
        if outcome != MP_OK and outcome != MP_TIMED_OUT and not must_go_on(outcome):
            return outcome
    return MP_OK


cdef inline bint in_time(int outcome) except -1:
    """Whether what was waited for at a bell has come before the deadline."""
    if outcome != MP_OK and outcome != MP_TIMED_OUT:
        fail_bell(outcome)
    return outcome == MP_OK

# distutils: language = c
"""A pool's life: the state it is in, the lock under which that changes, and the descriptor that wakes the supervisor.

Compiled, as _pool/schedule.pyx is, which says why.
"""

import os
import threading

from libc.stdint cimport uint64_t
from posix.unistd cimport close, write

from mpipc._pool.states import AFTER as _AFTER
from mpipc._pool.states import ForbiddenTransition, State

cdef dict AFTER = _AFTER
cdef object RUNNING = State.RUNNING
cdef object CLOSED = State.CLOSED
cdef object QUITTING = State.QUITTING
cdef object CONCLUDING = State.CONCLUDING
cdef object ENDED = State.ENDED


cdef class Life:
    """What all parts of a pool have in common.

    lock        guards `state`, and whatever else says so. It is reentrant because garbage collection, thus a finalizer
                that terminates the pool, may come at any point. No code of the user runs under it (no pickling, no
                callback), and nothing waits under it
    state       changed by enter() only
    history     the states up to that
    wakeup      readable if the supervisor is to look at the state of things; -1 after the end

    Who is about to change the state looks first whether it may, under the same hold of the lock: several threads may
    want to end a pool, and the first one does.
    """

    def __cinit__(self):
        self.wakeup = -1

    def __init__(self):
        self.lock = threading.RLock()
        self.state = RUNNING
        self.history = (RUNNING,)
        self.wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __dealloc__(self):
        if self.wakeup >= 0:
            close(self.wakeup)

    cdef bint runs(self) noexcept:
        return self.state is RUNNING

    cdef bint over(self) noexcept:
        return self.state is not RUNNING and self.state is not CLOSED and self.state is not QUITTING

    cdef bint refuses(self) noexcept:
        return self.state is CONCLUDING or self.state is ENDED

    @property
    def is_running(self):
        """Whether nobody has closed or terminated it, and it has not broken."""
        return self.state is RUNNING

    @property
    def is_staffed(self):
        """Whether workers are started where some are missing: RUNNING or CLOSED."""
        return self.state is RUNNING or self.state is CLOSED

    @property
    def is_over(self):
        """Whether what is not done will not be: TERMINATING or later."""
        return self.over()

    @property
    def is_concluding(self):
        """Whether it is too late to ask for anything: CONCLUDING or ENDED."""
        return self.refuses()

    cpdef bint may_enter(self, object state) except -1:
        """Whether a state may follow the present one. Holds as long as the caller has the lock."""
        return state in AFTER[self.state]

    cpdef enter(self, object state):
        """The pool gets into a state. ForbiddenTransition if that does not follow the one it is in."""
        with self.lock:
            if state not in AFTER[self.state]:
                raise ForbiddenTransition(self.state, state)
            self.history += (state,)
            self.state = state

    cpdef wake(self):
        """Have the supervisor look at the state of things."""
        cdef uint64_t one = 1
        if self.wakeup >= 0:
            write(self.wakeup, &one, sizeof(one))  # EAGAIN: it has been told 2**64 times

    def close(self):
        """Nobody waits any more. The GIL is held from wake()'s look at the descriptor to its use."""
        if self.wakeup >= 0:
            close(self.wakeup)
            self.wakeup = -1

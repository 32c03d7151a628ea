"""The compiled halves of mpipc.synchronize: a lock, a counting semaphore, and an event.

The protocols, and what happens when a process dies in the middle of one, stand in _core/src: lock.c, semaphore.c,
event.c. Changes of shared state are made with the GIL held; only sleeping is done without it: _core/waits.pxd.
"""

import threading
from multiprocessing import process as _process
from operator import index as index_of

cimport cython
from libc.errno cimport EOVERFLOW, EXFULL, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from mpipc._core.family cimport (
    GETNCNT,
    GETZCNT,
    MP_INTERRUPTED,
    MP_KIND_EVENT,
    MP_KIND_LOCK,
    MP_KIND_RLOCK,
    MP_KIND_SEMAPHORE,
    MP_LOCK_DIED,
    MP_LOCK_OWNER,
    MP_NOT_HELD,
    MP_OK,
    MP_RETURNS_ALWAYS,
    MP_RETURNS_GUESSED,
    MP_RETURNS_NEVER,
    MP_SLOTS,
    Block,
    fail,
    fail_bell,
    look_after,
    mp_bell_await,
    mp_bell_get,
    mp_event_clear,
    mp_event_init,
    mp_event_is_set,
    mp_event_set,
    mp_family,
    mp_lock_mine,
    mp_lock_release,
    mp_lock_release_now,
    mp_lock_set_thread,
    mp_lock_try,
    mp_lock_wait,
    mp_returns,
    mp_sem_debt,
    mp_sem_enroll,
    mp_sem_init,
    mp_sem_release,
    mp_sem_returns,
    mp_sem_try,
    mp_sem_units,
    mp_sem_value,
    mp_sem_withdraw,
    mp_slot_pid,
    mp_this_thread,
    new_block,
    seal,
)
from mpipc._core.waits cimport deadline_if, in_time, wait_long_for, wait_until

SEM_VALUE_MAX = 0x7fffffff


cdef class Shared:
    """What all of them have in common: a control block, and the pickling rule of objects that are inherited."""

    def _identify(self):
        """"MainProcess", or "MainProcess|Thread-1": how multiprocessing's reprs name an owner in this thread."""
        name = _process.current_process().name
        thread = threading.current_thread().name
        return name if thread == "MainThread" else f"{name}|{thread}"


# ---- what this room waits for: see _core/waits.pxd -------------------------------------------------------------------

cdef struct place:  # a block's, where its bell is
    mp_family *f
    uint32_t index


cdef int acquire_lock(void *what, int64_t deadline) noexcept nogil:
    cdef place *at = <place *> what
    return mp_lock_wait(at.f, at.index, deadline)


cdef bint acquire_unit(void *what) except -1:
    cdef place *at = <place *> what
    cdef int error
    return mp_sem_try(at.f, at.index, &error)


cdef int await_ring(void *what, int64_t deadline) noexcept nogil:
    cdef place *at = <place *> what
    return mp_bell_await(at.f, at.index, -1, deadline)


cdef int await_zero(void *what, int64_t deadline) noexcept nogil:
    cdef place *at = <place *> what
    return mp_bell_await(at.f, at.index, 0, deadline)


# ---- locks -----------------------------------------------------------------------------------------------------------

# Functions, not methods, so that the compiler puts them into the callers.

cdef inline void note_taken(mp_block *b) noexcept:
    b.lock.depth = 1
    mp_lock_set_thread(b, mp_this_thread())


cdef inline bint take_at_once(mp_family *f, mp_block *b) noexcept:
    """The common case: the lock is free."""
    if f.slot < 0 or not mp_lock_try(f, b, 0):
        return False
    note_taken(b)
    return True


@cython.final
cdef class Acquired:
    """What acquired() of a lock or a semaphore returns. It may be used again, and within itself if the lock may."""

    cdef object lock
    cdef object timeout

    def __enter__(self):
        if not self.lock.acquire(True, self.timeout):
            raise TimeoutError(f"{self.lock!r} was not to be had within {self.timeout} seconds")
        return True

    def __exit__(self, exc_type=None, exc=None, traceback=None):
        self.lock.release()


cdef Acquired acquired(object lock, object timeout):
    cdef Acquired made = Acquired.__new__(Acquired)
    made.lock = lock
    made.timeout = timeout
    return made


cdef class LockBase(Shared):
    """A mutual exclusion lock whose owner is known, and which is handed on when its owner dies.

    Invariant: the lock word names the owning process and thread; depth is 0 unless an RLock is owned.
    """

    def __init__(self, bint recursive=False, Block block=None):
        self.recursive = recursive
        self.block = block if block is not None else seal(new_block(MP_KIND_RLOCK if recursive else MP_KIND_LOCK))
        self.f = self.block.f
        self.b = self.block.b

    def acquire(self, block=True, timeout=None):
        """Takes the lock; waits for it if `block`, at most `timeout` seconds if that is not None. Returns whether it
        was taken. See multiprocessing.Lock.acquire."""
        if take_at_once(self.f, self.b):
            return True
        return self.take(block, timeout)

    def acquired(self, timeout=None):
        """For `with lock.acquired(timeout=...):`, which takes the lock and releases it. Raises TimeoutError
        if it waits longer than `timeout` seconds, if not None; negative is 0."""
        return acquired(self, timeout)

    cdef bint take(self, object block, object timeout) except -1:
        cdef int64_t deadline
        cdef place at
        if self.f.slot < 0:
            self.block.ensure()
        if self.recursive and mp_lock_mine(self.f, self.b):
            self.b.lock.depth += 1
            return True
        if take_at_once(self.f, self.b):
            return True
        deadline = deadline_if(block, timeout)
        if deadline == 0:
            look_after(self.f)
            return False
        at = place(self.f, self.block.index)
        if not in_time(wait_long_for(acquire_lock, &at, deadline)):
            return False
        note_taken(self.b)
        return True

    def release(self):
        """Frees the lock. A Lock may be released by any process or thread, an RLock by its owner only.

        Raises ValueError (Lock) or AssertionError (RLock) if it is not held. See multiprocessing.Lock.release.
        """
        if self.recursive:
            self.give_back()
            return
        mp_lock_set_thread(self.b, 0)
        if not mp_lock_release_now(self.f, self.b):
            self.give_back()

    cdef int give_back(self) except -1:
        cdef int error
        if self.recursive:
            if not mp_lock_mine(self.f, self.b):
                raise AssertionError("attempt to release recursive lock not owned by thread")
            if self.b.lock.depth > 1:
                self.b.lock.depth -= 1
                return 0
        mp_lock_set_thread(self.b, 0)
        if mp_lock_release_now(self.f, self.b):
            return 0
        error = mp_lock_release(self.f, self.block.index)
        if error == MP_NOT_HELD:
            raise ValueError("semaphore or lock released too many times")
        if error != MP_OK:
            fail_bell(error)
        return 0

    def _release_save(self):
        """Frees the lock however often its owner has acquired it; returns how often. For Condition.wait()."""
        cdef Block handle = self.block
        cdef uint32_t depth = handle.b.lock.depth
        cdef int error
        mp_lock_set_thread(handle.b, 0)
        error = mp_lock_release(handle.f, handle.index)
        if error == MP_NOT_HELD:
            raise ValueError("semaphore or lock released too many times")
        if error != MP_OK:
            fail_bell(error)
        return depth

    def _acquire_restore(self, uint32_t depth):
        """Takes the lock back. An exception of a signal handler waits until the lock is held, so that `with condition`
        can be left; a second one does not."""
        cdef place at = place(self.f, self.block.index)
        cdef int outcome = MP_INTERRUPTED
        pending = None
        if self.f.slot < 0:
            self.block.ensure()
        while outcome != MP_OK:
            try:
                outcome = wait_long_for(acquire_lock, &at, -1)
            except BaseException as exception:
                if pending is not None:
                    raise
                pending = exception
            else:
                in_time(outcome)
        note_taken(self.b)
        self.b.lock.depth = depth
        if pending is not None:
            raise pending

    def __enter__(self):
        return True if take_at_once(self.f, self.b) else self.take(True, None)

    def __exit__(self, exc_type=None, exc=None, traceback=None):
        self.give_back()

    @property
    def owner_died(self):
        """True from the moment that recovery took the lock from a dead owner until the next owner releases it.

        The one who holds the lock then should check what it protects: the dead owner may have left it half changed. The
        counterpart of EOWNERDEAD in pthread_mutexattr_setrobust(3).
        """
        return (self.block.b.lock.word & MP_LOCK_DIED) != 0

    def _is_mine(self):
        return mp_lock_mine(self.f, self.b)

    def _count(self):
        """How many times this process has acquired the lock, as the standard library's SemLock._count()."""
        cdef uint64_t owner = self.block.b.lock.word & MP_LOCK_OWNER
        return self.block.b.lock.depth if owner != 0 and owner == self.block.f.me else 0

    def locked(self):
        """Whether some process or thread holds the lock; or held it when it died, and nobody has taken it since: that
        counts as held, as with pthread_mutexattr_setrobust(3). See multiprocessing.Lock.locked of Python 3.14."""
        return not self._get_value()

    def _units_free(self):
        """1 if it can be acquired at once, also from a dead owner, else 0."""
        look_after(self.f)
        return 0 if self.block.b.lock.word & MP_LOCK_OWNER else 1

    def _get_value(self):
        look_after(self.f)
        return 0 if self.block.b.lock.word & (MP_LOCK_OWNER | MP_LOCK_DIED) else 1

    def _is_zero(self):
        return self._get_value() == 0

    def _holder_pid(self):
        cdef uint64_t owner = self.block.b.lock.word & MP_LOCK_OWNER
        return mp_slot_pid(self.block.f.seg.slots[owner - 1].word) if 0 < owner <= MP_SLOTS else None

    def _waiters(self):
        return mp_bell_get(self.block.f, self.block.index, GETNCNT)


cdef class SemaphoreBase(Shared):
    """A counting semaphore that knows which process holds how many of its units.

    `returns`: what becomes of a killed holder's units, see mpipc.synchronize.Semaphore, and _core/src/semaphore.c.
    """

    cdef readonly int _maximum

    def __init__(self, value=1, maximum=SEM_VALUE_MAX, Block block=None, *, returns=None):
        cdef Block handle
        if block is not None:
            self.block = block
            self._maximum = block.b.semaphore.maximum
            return
        value, maximum = index_of(value), index_of(maximum)
        if not 0 <= value <= SEM_VALUE_MAX:
            raise ValueError(f"semaphore value must be between 0 and {SEM_VALUE_MAX}, got {value}")
        if returns is not None and not isinstance(returns, bool):
            raise TypeError(f"returns must be True, False or None, got {returns!r}")
        handle = new_block(MP_KIND_SEMAPHORE)
        mp_sem_init(handle.b, value, maximum,
                    MP_RETURNS_GUESSED if returns is None else MP_RETURNS_ALWAYS if returns else MP_RETURNS_NEVER)
        self.block = seal(handle)
        self._maximum = maximum

    def acquire(self, block=True, timeout=None):
        """Takes one unit; waits for it if `block`, at most `timeout` seconds if that is not None. Returns whether one
        was taken. See multiprocessing.Semaphore.acquire."""
        cdef Block handle = self.block
        cdef mp_family *f = handle.f
        cdef uint32_t index = handle.index
        cdef int64_t deadline
        cdef int error
        cdef place at
        if f.slot < 0:
            handle.ensure()
        if mp_sem_try(f, index, &error):
            return True
        if error:
            fail(error, "acquiring a semaphore")
        deadline = deadline_if(block, timeout)
        if deadline == 0:
            look_after(f)
            return False
        error = mp_sem_enroll(f, index)
        if error:
            fail(error, "waiting for a semaphore")
        at = place(f, index)
        try:
            return in_time(wait_until(acquire_unit, await_ring, &at, deadline))
        finally:
            mp_sem_withdraw(f, index)

    def acquired(self, timeout=None):
        """For `with semaphore.acquired(timeout=...):`, which takes one unit and gives it back. Raises
        TimeoutError if it waits longer than `timeout` seconds, if not None; negative is 0."""
        return acquired(self, timeout)

    def release(self):
        """Gives one unit back, or adds one; pays, if this process has none, for one that has come back from a killed
        process. Raises ValueError if the value would pass its maximum: the initial value of a BoundedSemaphore,
        SEM_VALUE_MAX else. See multiprocessing.Semaphore.release."""
        cdef int error
        if self.block.f.slot < 0:
            self.block.ensure()
        error = mp_sem_release(self.block.f, self.block.index)
        if error == EOVERFLOW:
            raise ValueError("semaphore or lock released too many times")
        if error == EXFULL:
            fail(error, "releasing a semaphore")
        if error != MP_OK:
            fail_bell(error)

    def __enter__(self):
        return self.acquire()

    def __exit__(self, exc_type=None, exc=None, traceback=None):
        self.release()

    def locked(self):
        """Whether there is no unit that can be acquired now. See multiprocessing.Semaphore of Python 3.14."""
        return self.get_value() == 0

    def get_value(self):
        """The number of units that can be acquired now."""
        look_after(self.block.f)
        return mp_sem_value(self.block.b)

    def _get_value(self):
        return self.get_value()

    def _is_zero(self):
        return self.get_value() == 0

    @property
    def returns(self):
        """Whether the units of a holder that is killed come back: True, always; None, until a process that holds none
        releases the semaphore; False, they do not: it was declared, or there was such a release."""
        cdef mp_returns returns = mp_sem_returns(self.block.b)
        return None if returns == MP_RETURNS_GUESSED else returns == MP_RETURNS_ALWAYS

    def _units(self):
        """Units this process holds, by its record. A signal without debt keeps no records."""
        return mp_sem_units(self.block.f, self.block.index)

    def _debt(self):
        """Units that have come back from killed processes, and that nobody has released since."""
        return mp_sem_debt(self.block.b)

    def _waiters(self):
        return mp_bell_get(self.block.f, self.block.index, GETNCNT)


cdef class EventBase(Shared):
    """A flag that processes wait for: one System V semaphore, positive while clear and 0 while set
    (_core/src/event.c).

    wait() is a wait for zero, so set() wakes every waiter in one system call and counts nobody: a waiter that was
    killed leaves no trace, and nothing can be left half done.
    """

    def __init__(self, Block block=None):
        cdef Block handle
        if block is not None:
            self.block = block
            return
        handle = seal(new_block(MP_KIND_EVENT))
        if mp_event_init(handle.f, handle.index) < 0:
            fail_bell(errno)
        self.block = handle

    def is_set(self):
        """True if the event is set. See multiprocessing.Event."""
        cdef int answer = mp_event_is_set(self.block.f, self.block.index)
        if answer < 0:
            fail_bell(errno)
        return answer != 0

    def set(self):
        """Sets the event and wakes every waiter."""
        if mp_event_set(self.block.f, self.block.index) < 0:
            fail_bell(errno)

    def clear(self):
        """Clears the event: from now on wait() waits."""
        if mp_event_clear(self.block.f, self.block.index) < 0:
            fail_bell(errno)

    def wait(self, timeout=None):
        """Waits until the event is set, at most `timeout` seconds if that is not None. Returns whether it was set."""
        cdef place at
        cdef int64_t deadline
        if self.is_set():
            return True
        deadline = deadline_if(True, timeout)
        if deadline == 0:
            return False
        at = place(self.block.f, self.block.index)
        return in_time(wait_long_for(await_zero, &at, deadline))

    def _waiters(self):
        return mp_bell_get(self.block.f, self.block.index, GETZCNT)

"""Locks, semaphores, conditions, events and barriers that a killed process cannot break.

The classes have the names, signatures, errors and reprs of multiprocessing.synchronize. What they do beyond it:

* a lock held by a process that died is handed to the next waiter, and says so (`owner_died`);
* the units of a semaphore held by a process that was killed come back, unless the semaphore is used as a signal, by
  processes that release what they have not acquired; a process that ends normally changes nothing;
* a killed waiter is not waited for, by Event.set(), Condition.notify(), Barrier.wait() or anybody;
* `statistics()` tells value, holder and waiters;
* `with lock.acquired(timeout=1.0):` raises TimeoutError instead of waiting for longer.

RWLock is mpipc's own.
"""

import threading
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, NamedTuple

from mpipc._stdlib.likeness import Likeness
from mpipc._stdlib.start_method import assert_shareable, is_fork
from mpipc._sync.condition import BarrierState, Waiters
from mpipc._sync.primitives import Acquired, EventBase, LockBase, SemaphoreBase
from mpipc._sync.rwlock import RWLockBase

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "RWLock", "Semaphore"]

SEM_VALUE_MAX = 0x7FFFFFFF
"""The highest value that a Semaphore can have; multiprocessing's on Linux, too."""


class Statistics(NamedTuple):
    """What statistics() of a primitive returns."""

    value: int
    """Units to be had at once (Lock, RLock: 1 or 0), 1 if an Event is set, waiters that have arrived at a Barrier."""
    holder: int | None
    """Pid of the process that holds the lock; None if it is free, or where there is no holder."""
    waiters: int
    """Threads that are waiting now, in all processes."""


class Lock(LockBase, Likeness):
    """A non-recursive lock between processes (multiprocessing.Lock), which survives the death of its owner.

    It may be released by a process or thread other than the one that acquired it.
    """

    _like = "synchronize", "Lock"

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        super().__init__(False)
        self._is_fork_ctx = is_fork(ctx)

    @property
    def _semlock(self) -> "Lock":
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(owner={_owner(self)})>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)

    def statistics(self) -> Statistics:
        """Whether the lock is free, who holds it, and how many wait for it."""
        return Statistics(self._units_free(), self._holder_pid(), self._waiters())


class RLock(LockBase, Likeness):
    """A recursive lock between processes (multiprocessing.RLock), which survives the death of its owner."""

    _like = "synchronize", "RLock"

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        super().__init__(True)
        self._is_fork_ctx = is_fork(ctx)

    @property
    def _semlock(self) -> "RLock":
        return self

    def __repr__(self) -> str:
        count: int | str = self._count()
        if not self._is_mine():
            count = 0 if self._get_value() else "nonzero"
        return f"<{type(self).__name__}({_owner(self)}, {count})>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)

    def statistics(self) -> Statistics:
        """Whether the lock is free, who holds it, and how many wait for it."""
        return Statistics(self._units_free(), self._holder_pid(), self._waiters())


class RWLockStatistics(NamedTuple):
    """What RWLock.statistics() returns. A thread that reads, or waits, several times over is counted once."""

    readers: int
    """Threads that read, in all processes, or may go on to read."""
    writer: int | None
    """Pid of the process that writes; None if none does."""
    waiting_readers: int
    """Threads that wait to read."""
    waiting_writers: int
    """Threads that wait to write; the first of them may be waiting for the last readers."""

    @property
    def waiters(self) -> int:
        """Threads that wait."""
        return self.waiting_readers + self.waiting_writers


class RWLock(RWLockBase):
    """A lock that many threads of many processes may have to read, or one of them to write.

    Neither side can be kept waiting by however many of the other: a reader that comes while somebody writes, or waits
    for the readers to leave so that it can write, is let in before the writer after that one. A process that dies is
    not waited for, whatever it has or waits for: `owner_died` tells if it was writing.

    It belongs to threads. One that reads may acquire it again to read, one that writes both to read and to write, and
    has it at once; each acquire wants its release. One that writes and reads may release the writing first, and goes on
    reading beside others. One that reads cannot acquire it to write: it would wait for itself, and two that tried would
    wait for each other, so that is a RuntimeError at once. So is a release of what the thread does not have. A forked
    child has nothing of what its parent has. When a process has no such object any more its threads have released it.
    """

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        super().__init__()
        self._is_fork_ctx = is_fork(ctx)

    def __repr__(self) -> str:
        if self._is_writing():
            writer = self._identify()
        elif self._writer_pid() is None:
            writer = "None"
        else:
            writer = "SomeOtherThread" if self._writer_is_here() else "SomeOtherProcess"
        return f"<{type(self).__name__}(readers={self._counts()[0]}, writer={writer})>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)

    def statistics(self) -> RWLockStatistics:
        """Who reads, writes and waits."""
        readers, waiting_readers, waiting_writers = self._counts()
        return RWLockStatistics(readers, self._writer_pid(), waiting_readers, waiting_writers)


class Semaphore(SemaphoreBase, Likeness):
    """A counting semaphore between processes (multiprocessing.Semaphore).

    What becomes of the units that a process has acquired and not released when it is killed is said by `returns`, which
    is mpipc's own:

    * True: they come back. For a semaphore that limits how many do something at a time: who acquires also releases.
    * False: they do not. For a semaphore that counts things, acquired by one process and released by another.
    * None: mpipc guesses. They come back until the first release by a process that holds none; from then on they do
      not.

    Units that have come back may still be released for the dead process by another. Such a release, by a process that
    holds none, pays for them: it does not raise the value. A process that ends normally changes nothing. The threads of
    a process hold their units together; a forked child holds none.
    """

    _like = "synchronize", "Semaphore"

    def __init__(self, value: int = 1, *, returns: bool | None = None, ctx: BaseContext | None = None) -> None:
        super().__init__(value, returns=returns)
        self._is_fork_ctx = is_fork(ctx)

    @property
    def _semlock(self) -> "Semaphore":
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self.get_value()})>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)

    def statistics(self) -> Statistics:
        """Units that are free, and how many wait for one. There is no one holder."""
        return Statistics(self.get_value(), None, self._waiters())


class BoundedSemaphore(Semaphore):
    """A semaphore whose value never passes its initial value (multiprocessing.BoundedSemaphore).

    `returns` is Semaphore's. A release that pays for a unit which has come back from a killed process is not too many.
    """

    _like = "synchronize", "BoundedSemaphore"

    def __init__(self, value: int = 1, *, returns: bool | None = None, ctx: BaseContext | None = None) -> None:
        SemaphoreBase.__init__(self, value, value, returns=returns)
        self._is_fork_ctx = is_fork(ctx)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self.get_value()}, maxvalue={self._maximum})>"


class Condition(Likeness):
    """A condition variable between processes (multiprocessing.Condition).

    Waiters are notified in the order in which they came. One that was killed is not counted, and a notification that
    was on its way to it goes to the next.
    """

    _like = "synchronize", "Condition"

    def __init__(self, lock: Lock | RLock | None = None, *, ctx: BaseContext | None = None) -> None:
        self._lock = RLock(ctx=ctx) if lock is None else lock
        self._waiters = Waiters()
        self._is_fork_ctx = is_fork(ctx)
        self._make_methods()

    def _make_methods(self) -> None:
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __getstate__(self) -> tuple[Any, ...]:
        assert_shareable(self)
        return self._lock, self._waiters.block

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._lock, block = state
        self._waiters = Waiters(block)
        self._is_fork_ctx = False
        self._make_methods()

    def acquired(self, timeout: float | None = None) -> Acquired:
        """For `with condition.acquired(timeout=...):`: acquired() of the lock."""
        return self._lock.acquired(timeout)

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.__exit__(exc_type, exc, traceback)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self._lock}, {self._waiters.count()})>"

    def wait(self, timeout: float | None = None) -> bool:
        """Releases the lock, waits until notified (at most `timeout` seconds if not None), acquires it again.

        Returns whether it was notified. The lock must be held (AssertionError).
        """
        if not self._lock._is_mine():
            raise AssertionError("must acquire() condition before using wait()")
        cell = self._waiters.enter()
        depth = self._lock._release_save()
        try:
            return self._waiters.wait(cell, timeout)
        finally:
            cell.leave()
            self._lock._acquire_restore(depth)

    def notify(self, n: int = 1) -> None:
        """Wakes up to n of the waiters, those who came first. The lock must be held (AssertionError)."""
        if not self._lock._is_mine():
            raise AssertionError("lock is not owned")
        if n > 0:
            self._waiters.notify(n)

    def notify_all(self) -> None:
        """Wakes all waiters. The lock must be held (AssertionError)."""
        if not self._lock._is_mine():
            raise AssertionError("lock is not owned")
        self._waiters.notify(-1)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Waits until predicate() is true, at most `timeout` seconds if not None. Returns its last value."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    # multiprocessing's Condition counts its waiters in three semaphores, which programs (and CPython's tests) read when
    # they want to know who waits.

    @property
    def _sleeping_count(self) -> "_Reading":
        return _Reading(self._waiters.count())

    @property
    def _woken_count(self) -> "_Reading":
        return _Reading(0)

    @property
    def _wait_semaphore(self) -> "_Reading":
        return _Reading(0)

    def statistics(self) -> Statistics:
        """Of the lock: whether it is free and who holds it; and how many wait for a notification."""
        return Statistics(self._lock._units_free(), self._lock._holder_pid(), self._waiters.count())


class _Reading(NamedTuple):
    """A number that is read like the value of a semaphore."""

    value: int

    def get_value(self) -> int:
        return self.value


class Event(EventBase, Likeness):
    """A flag that processes can wait for (multiprocessing.Event).

    set() never blocks, whoever was killed while waiting.
    """

    _like = "synchronize", "Event"

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        super().__init__()
        self._is_fork_ctx = is_fork(ctx)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {id(self):#x} {'set' if self.is_set() else 'unset'}>"

    @property
    def _flag(self) -> _Reading:
        return _Reading(int(self.is_set()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)

    def statistics(self) -> Statistics:
        """1 if set, and how many wait."""
        return Statistics(int(self.is_set()), None, self._waiters())


class Barrier(threading.Barrier, Likeness):
    """A barrier between processes (multiprocessing.Barrier).

    A process that is killed while it waits is as if it had not come: it is not counted, and the barrier opens when
    `parties` living ones have arrived.
    """

    _like = "synchronize", "Barrier"

    def __init__(
        self,
        parties: int,
        action: Callable[[], Any] | None = None,
        timeout: float | None = None,
        *,
        ctx: BaseContext | None = None,
    ) -> None:
        if parties < 1:  # threading.Barrier checks this from 3.13 on
            raise ValueError(f"parties must be at least 1, got {parties}")
        self._shared = BarrierState(parties)
        self._is_fork_ctx = is_fork(ctx)
        self._action = action
        self._timeout = timeout

    def __getstate__(self) -> tuple[Any, ...]:
        assert_shareable(self)
        return self._shared.block, self._action, self._timeout

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        block, self._action, self._timeout = state
        self._shared = BarrierState(0, block)
        self._is_fork_ctx = False

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        if self.broken:
            return f"<{name} at {id(self):#x}: broken>"
        return f"<{name} at {id(self):#x}: waiters={self.n_waiting}/{self.parties}>"

    def wait(self, timeout: float | None = None) -> int:
        """Waits until all parties have arrived. Returns a place from 0 to parties - 1, another for each of them.

        Raises threading.BrokenBarrierError if the barrier is broken, reset, or not complete within `timeout` seconds
        (the constructor's if None); that breaks it for the others too.
        """
        if timeout is None:
            timeout = self._timeout
        shared = self._shared
        with shared:
            if shared.broken:
                raise threading.BrokenBarrierError
            waiting, place = shared.waiting()
            if waiting + 1 >= shared.parties:
                self._open()
                return place
            cell = shared.enter(place)
        try:
            outcome = shared.wait(cell, timeout)
            if outcome == "timeout":
                with shared:
                    outcome = shared.give_up(cell)
        finally:
            cell.leave()
        if outcome != "passed":
            raise threading.BrokenBarrierError
        return place

    def _open(self) -> None:
        shared = self._shared
        generation = shared.generation
        try:
            if self._action is not None:
                self._action()
        except BaseException:
            if shared.generation == generation:
                shared.end_cycle(True, True)
            raise
        if shared.generation != generation:  # the action has reset or aborted the barrier
            raise threading.BrokenBarrierError
        shared.end_cycle(False, False)

    def reset(self) -> None:
        """Makes the barrier whole again. Those who wait get BrokenBarrierError."""
        with self._shared:
            self._shared.end_cycle(True, False)

    def abort(self) -> None:
        """Breaks the barrier: those who wait, and those who come, get BrokenBarrierError."""
        with self._shared:
            self._shared.end_cycle(True, True)

    @property
    def parties(self) -> int:
        """How many it takes to open the barrier."""
        return self._shared.parties

    @property
    def n_waiting(self) -> int:
        """How many have arrived and wait."""
        return self._shared.waiting()[0]

    @property
    def broken(self) -> bool:
        """True if the barrier is broken."""
        return self._shared.broken

    def statistics(self) -> Statistics:
        """How many have arrived; who holds the barrier's own lock at this moment."""
        waiting = self.n_waiting
        return Statistics(waiting, self._shared._holder_pid(), waiting)


def _owner(lock: LockBase) -> str:
    """multiprocessing's words for who owns a lock, as seen from this thread."""
    if lock._is_mine():
        return lock._identify()
    if lock._get_value():
        return "None"
    return "SomeOtherThread" if lock._count() > 0 else "SomeOtherProcess"


def _reduce(primitive: Any) -> tuple[Any, ...]:
    assert_shareable(primitive)
    return _rebuild, (type(primitive), primitive.block, primitive.__dict__)


def _rebuild(cls: Any, block: Any, state: dict[str, Any]) -> Any:
    primitive = cls.__new__(cls)
    if issubclass(cls, LockBase):
        LockBase.__init__(primitive, issubclass(cls, RLock), block)
    elif issubclass(cls, SemaphoreBase):
        SemaphoreBase.__init__(primitive, block=block)
    elif issubclass(cls, RWLockBase):
        RWLockBase.__init__(primitive, block)
    else:
        EventBase.__init__(primitive, block)
    primitive.__dict__.update(state)
    return primitive

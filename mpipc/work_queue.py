"""WorkQueue: jobs for processes that may fail, or die, before they have done them. multiprocessing has none.

A Queue's get() takes an object out for good: with the process that has got it, it is gone. A WorkQueue's take() lends
it out. Whoever has done the job acknowledges it; what is not acknowledged comes back, whether its process gives it
back, raises, or is killed, and is taken by the next one, before those that were put later.

So a job is done at least once: a process that is killed after the work, and before it has said so, leaves a job that is
done again. Work that must not be done twice has to know what has been done (a file that is there, a row in a table).

There is no lease, no time after which a job counts as lost: a process that lives keeps what it has taken, also while it
is stopped. One that has ended does not, however it has ended.
"""

from __future__ import annotations

from functools import partial
from multiprocessing.context import BaseContext
from queue import Empty, Full
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from mpipc._queue.parts import settled
from mpipc._queue.work import JobBase, WorkMessages
from mpipc._stdlib.shut_down import ShutDown
from mpipc._stdlib.start_method import assert_shareable, is_fork
from mpipc.queues import Queue

if TYPE_CHECKING:
    from mpipc._stdlib.by_pickler import ByPickler

__all__ = ["Empty", "FailedJob", "Full", "Job", "ShutDown", "WorkQueue", "WorkStatistics"]

T = TypeVar("T")


class WorkStatistics(NamedTuple):
    """What WorkQueue.statistics() returns."""

    queued: int
    """Jobs that take() would get: those never taken, and those that came back."""
    taken: int
    """Jobs in somebody's hands."""
    waiting_takers: int
    """Threads that wait in take()."""
    waiting_putters: int
    """Threads that wait in put() for room."""
    waiting_joiners: int
    """Threads that wait in join()."""
    shared_bytes: int
    """Memory of the queue's shared blocks."""
    shared_bytes_in_use: int
    """Part of it that holds jobs, 256 bytes at least for each."""


class FailedJob(Generic[T]):
    """What a WorkQueue's `failed` has: a job that was taken max_attempts times, and never acknowledged."""

    __slots__ = ("_pickle", "_value", "attempts", "error")

    attempts: int
    """How often it was taken."""
    error: str | None
    """The traceback of its last attempt. None: that has raised nothing; its process was killed, or gave it back."""

    def __init__(self, value: T | None, pickled: bytes | None, attempts: int, error: str | None) -> None:
        self._value = value
        self._pickle = pickled
        self.attempts = attempts
        self.error = error

    @property
    def value(self) -> T:
        """The job, unpickled now if it needs that: raises what unpickling raises."""
        if self._pickle is None:
            return self._value  # type: ignore[return-value]
        from pickle import loads

        return loads(self._pickle)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(attempts={self.attempts}, error={(self.error or '').strip()[-60:]!r})>"


class Job(JobBase, Generic[T]):
    """A job that this process has taken, and keeps until it acknowledges it, gives it back, or ends.

    job.value is what was put; job.attempts, how often it has been taken with this time: 1 for one that never came back.
    As a context manager it is acknowledged when the block is left normally, and given back when that raises, unless it
    has been settled by then, by ack() or give_back(). It can be settled in any thread of the process, and once only. A
    forked child does not have what its parent has taken: there ack() and give_back() raise RuntimeError, and leaving
    the block does nothing. If nothing refers to a job any more that was not settled, it is given back.
    """

    __slots__ = ()

    value: T  # type: ignore[misc]
    attempts: int  # type: ignore[misc]


class WorkQueue(Generic[T]):
    """A queue of jobs between processes, each of which is done at least once.

    `with queue.take() as job:` takes one, whose object is job.value. It is acknowledged when the block ends, and comes
    back when that raises or the process dies; then it is taken before those that were put later. With `max_attempts`, a
    job that was taken so often and not acknowledged goes to `failed`, a Queue of FailedJob, which it reaches at least
    once too. `maxsize` limits what put() adds, not what comes back; 0 or less means no limit. `pickler`: see Queue.

    Small jobs are messages in shared memory, too: nothing goes through the kernel's queue.
    """

    failed: Queue[FailedJob[T]] | None
    """Jobs that nobody has managed to do; None without max_attempts."""

    def __init__(
        self,
        maxsize: int = 0,
        *,
        max_attempts: int | None = None,
        ctx: BaseContext | None = None,
        pickler: Any = None,
    ) -> None:
        if max_attempts is not None and max_attempts < 1:
            raise ValueError(f"max_attempts must be 1 or more, or None for no limit, not {max_attempts}")
        self._is_fork_ctx = is_fork(ctx)
        by = settled(pickler, ctx)
        failed: Any = None if max_attempts is None else Queue(ctx=ctx, raise_on_pickle_error=True, pickler=pickler)
        self._reset(by, max_attempts, failed, maxsize=max(maxsize, 0))

    def _reset(self, by: ByPickler | None, max_attempts: int | None, failed: Any, **options: Any) -> None:
        self._by = by
        self._max_attempts = max_attempts
        self.failed = failed
        if max_attempts is not None:
            options.update(most=max_attempts, bury=partial(_bury, failed, max_attempts))
        self._messages = WorkMessages(**options)

    def __getstate__(self) -> Any:
        assert_shareable(self)
        return self._is_fork_ctx, self._messages.block, self._by, self._max_attempts, self.failed

    def __setstate__(self, state: Any) -> None:
        self._is_fork_ctx, block, *others = state
        self._reset(*others, block=block)

    # ---- putting

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Puts a job: from now on it is there for all processes, until one of them has acknowledged it.

        Waits for room as Queue.put() does, and then raises queue.Full. ShutDown: the queue was shut down. What pickling
        the object raises is raised here.
        """
        if self._by is not None:
            from mpipc._queue.pickled import to_be_pickled

            obj = to_be_pickled(self._by, obj)
        if not self._messages.put(obj, block, timeout):
            raise Full

    def put_nowait(self, obj: T) -> None:
        """put(obj, False)."""
        self.put(obj, False)

    # ---- taking

    def take(self, block: bool = True, timeout: float | None = None) -> Job[T]:
        """The next job, which this process has until it is settled; see Job.

        Waits for one, at most `timeout` seconds if that is not None, and not at all without `block`; then raises
        queue.Empty. ShutDown: the queue was shut down, is empty, and nobody has a job that may come back; EOFError: it
        was removed. What unpickling the object raises is raised here: that was an attempt, and the job is given back.
        """
        return self._messages.next_job(Job, block, timeout)

    def take_nowait(self) -> Job[T]:
        """take(False)."""
        return self.take(False)

    # ---- the end

    def join(self, timeout: float | None = None) -> bool:
        """Waits until every job that was put is acknowledged, or has gone to `failed`, for `timeout` seconds if that is
        not None; whether that is so."""
        return self._messages.join_jobs(timeout)

    def shutdown(self, immediate: bool = False) -> None:
        """Ends the queue, in all processes that share it: put() raises ShutDown from now on.

        take() goes on until nothing is there and nobody has a job that may come back; then it raises ShutDown, also
        where it waits. With `immediate`, what is there is dropped, and what comes back will be: take() raises ShutDown
        at once. Who has a job can acknowledge it all the same, and join() waits for that. It cannot be undone, and can
        be called again. `failed` stays as it is.
        """
        self._messages.shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Whether shutdown() has been called, by any process."""
        return self._messages.is_shutdown

    # ---- what there is

    def qsize(self) -> int:
        """Jobs that take() would get: those never taken, and those that came back."""
        return self._messages.size()

    def empty(self) -> bool:
        """Whether take() would have to wait."""
        return self._messages.size() == 0

    def full(self) -> bool:
        """Whether put() would have to wait."""
        maxsize = self._messages.maxsize
        return maxsize != 0 and self._messages.size() >= maxsize

    def unfinished(self) -> int:
        """Jobs that were put, and are neither acknowledged nor in `failed`: queued, or in somebody's hands."""
        return self._messages.unacknowledged()

    def statistics(self) -> WorkStatistics:
        """What is in the queue, and in whose hands, and who waits."""
        taken, takers, putters, joiners = self._messages.counts()
        _spilled, shared, in_use, *_others = self._messages.usage()
        return WorkStatistics(self.qsize(), taken, takers, putters, joiners, shared, in_use)

    def trim(self) -> int:
        """Returns all shared memory that holds no job to the system now; how many bytes that were."""
        return self._messages.trim()


# ---- those that have failed ------------------------------------------------------------------------------------------


def _bury(failed: Any, max_attempts: int, job: JobBase, error: BaseException | None) -> None:
    """Puts a job that this process has into `failed`. It is not unpickled for that if it need not be: it may be what
    kills its takers. Then it is acknowledged; if this process is killed between the two, the next one does both."""
    text = None
    if error is not None:
        from traceback import format_exception

        text = "".join(format_exception(error))
    pickled, value = job.pickled(), None
    try:
        value = job.unpickled() if pickled is None else None
    except Exception as why:
        text = text or f"{type(why).__name__}: {why}"
    failed.put(FailedJob(value, pickled, min(job.attempts, max_attempts), text))

"""What a pool's asynchronous methods return: multiprocessing's classes, which can also be told that nothing will come.

`_set()` and `_abort()` of a result are called by one thread only, the pool's result thread; user callbacks run there.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpipc._pool.cancel import cancelled_error
from mpipc._pool.codec import Task, unpack
from mpipc._pool.progress import Bar
from mpipc._pool.tasks import function_name
from mpipc._pool.worker import RETURNED, Quoted
from mpipc._stdlib.standard import standard_module

if TYPE_CHECKING:
    from multiprocessing import pool as _base
else:
    _base = standard_module("pool")

__all__ = [
    "ApplyResult",
    "AsyncResult",
    "Cache",
    "IMapIterator",
    "IMapUnorderedIterator",
    "Last",
    "MapResult",
    "opened",
]

MaybeEncodingError: Any = _base.MaybeEncodingError  # type: ignore[attr-defined]


def opened(message: tuple[Any, ...], task: Task, caught: type[BaseException] = Exception) -> tuple[bool, Any]:
    """Whether a task has succeeded, and its result or exception. What cannot be unpickled is one that has not."""
    returned = message[0] == RETURNED
    try:
        return returned, unpack(message[5], message[6])
    except caught as error:
        if returned and isinstance(error, Exception):
            error.add_note(f"mpipc: this was raised while {_what(task)!r} was unpickled")
            return False, error
        substitute = MaybeEncodingError(Quoted(error), _what(task) if returned else Quoted(message[3]))
        substitute.__cause__ = error
        return False, substitute


def _what(task: Task) -> Quoted:
    return Quoted(f"what {function_name(task.function.call)} has returned")


def _nothing() -> None:
    pass


class Cache(dict[int, Any]):
    """The results that are not complete, by job number. `on_empty` is called whenever the last one is.

    multiprocessing's results enter the cache, and may leave it, as they are made. Here they do not before their tasks
    have been taken on: a result whose maker is interrupted before that would never be complete.
    """

    def __init__(self, on_empty: Callable[[], object]) -> None:
        super().__init__()
        self._on_empty = on_empty
        self._made_elsewhere: weakref.WeakValueDictionary[int, Any] | None = None

    def remember(self, result: Any) -> None:
        """Somebody else than the pool has made a result, and is about to submit tasks for it."""
        if self._made_elsewhere is None:
            self._made_elsewhere = weakref.WeakValueDictionary()
        self._made_elsewhere[result._job] = result

    def find(self, job: int) -> Any:
        """The result of a job that has been remembered or is outstanding. ValueError if there is none."""
        result = self.get(job)
        if result is None and self._made_elsewhere is not None:
            result = self._made_elsewhere.get(job)
        if result is None:
            raise ValueError(f"the pool knows of no result with the number {job}: make it with the pool")
        return result

    def enter(self, job: Any) -> None:
        """A result is outstanding."""
        super().__setitem__(job._job, job)

    def detach(self) -> None:
        """Nobody is interested any more. Results refer to the cache, and with it to whoever was."""
        self._on_empty = _nothing

    def __setitem__(self, job: int, result: Any) -> None:
        pass

    def __delitem__(self, job: int) -> None:
        if self.pop(job, None) is not None and not self:
            self._on_empty()


def _guarded(callback: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
    """A callback that raises is reported as a thread that raises is, and the pool goes on."""
    if callback is None:
        return None

    def call(value: Any) -> None:
        try:
            callback(value)
        except BaseException:
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

    return call


class Latch:
    """A threading.Event that is set once, and that a signal handler which raises in wait() cannot break.

    threading.Event's can be: the Condition in it may then release the lock that the thread in set() holds, and that
    thread, which is the pool's result thread, gets RuntimeError. Here a waiter passes the gate and opens it again for
    the next; if it is interrupted in between, the others look by themselves within GLANCE.
    """

    GLANCE = 0.5  # seconds

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self._set = False

    def is_set(self) -> bool:
        """Whether set() was called."""
        return self._set

    def set(self) -> None:
        """Let all waiters through, from now on."""
        if not self._set:
            self._set = True
            self._gate.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most `timeout` seconds if not None. Returns whether it is."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._set:
            left = self.GLANCE if end is None else min(end - time.monotonic(), self.GLANCE)
            if left <= 0:
                return False
            if self._gate.acquire(timeout=left):
                self._gate.release()
        return True


_CANCELLED: list[bool] = []
"""`_undecided` of a result that was cancelled. Of any other it is a list of one, which whoever completes it takes out:
of a thread that cancels and the result thread, one is the first."""


class ApplyResult(_base.ApplyResult):  # type: ignore[type-arg]
    """multiprocessing.pool.ApplyResult. `ours`: the pool has made it, and not somebody else."""

    cancellable = False
    _pool: Any
    _job: int
    _cache: dict[int, Any]

    def __init__(
        self,
        pool: Any,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        ours: bool = False,
    ) -> None:
        super().__init__(pool, _guarded(callback), _guarded(error_callback))
        self._event = Latch()
        self._undecided = [True]
        if not ours:
            pool._cache.remember(self)

    def cancel(self) -> bool:
        """Withdraw it: what no worker has begun is not run, and a worker that runs a part of it is killed and replaced.

        True if get() will raise concurrent.futures.CancelledError now; False if there is a result or an error already.
        As Future.cancel(), but for what is running.
        """
        pool = self._pool  # None once it is complete
        return pool is not None and pool._engine.cancel(self)

    def cancelled(self) -> bool:
        """Whether cancel() has returned True."""
        return self._undecided is _CANCELLED

    def _give_up(self) -> bool:
        """It is going to be cancelled. False if its result is just being set, or it was cancelled before."""
        try:
            self._undecided.pop()
        except IndexError:
            return False
        self._undecided = _CANCELLED
        return True

    def _set(self, i: int, success_result: tuple[bool, Any]) -> None:
        try:
            self._undecided.pop()
        except IndexError:
            return  # it was cancelled while its result was on its way
        super()._set(i, success_result)  # type: ignore[misc]

    def _abort(self, error: BaseException, *, callback: bool) -> None:
        """Complete with an error that stands for whatever is missing."""
        if not callback:
            self._error_callback = None
        if self._undecided is _CANCELLED:
            error = cancelled_error()
        if not self._event.is_set():
            super()._set(0, (False, error))  # type: ignore[misc]


AsyncResult = ApplyResult


class MapResult(_base.MapResult):  # type: ignore[type-arg]
    """multiprocessing.pool.MapResult. `progress` is told the number of items whenever a chunk is done.

    `single`: what a task returns is the result of an item, not a list of one.
    """

    cancellable = False
    cancel = ApplyResult.cancel
    cancelled = ApplyResult.cancelled
    _give_up = ApplyResult._give_up
    _event: Any
    _pool: Any
    _job: int
    _cache: dict[int, Any]
    _number_left: int
    _success: bool
    _value: Any

    def __init__(
        self,
        pool: Any,
        chunksize: int,
        length: int,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        progress: Bar | None = None,
        *,
        single: bool = False,
        ours: bool = False,
    ) -> None:
        self._progress = progress
        self._single = single
        self._undecided = [True]
        super().__init__(pool, chunksize, length, _guarded(callback), _guarded(error_callback))
        if not self._event.is_set():  # it is if there is nothing to wait for
            self._event = Latch()
        else:
            self._undecided.clear()
        if not ours:
            pool._cache.remember(self)
        if progress is not None and not length:
            progress.finish()

    def _set(self, i: int, success_result: tuple[bool, Any]) -> None:
        if self._undecided is _CANCELLED:
            return  # this was on its way
        if self._single and success_result[0]:
            if self._success and self._number_left > 1 and self._progress is None:
                # What the base class does for most of the results, without a list for each.
                self._number_left -= 1
                self._value[i] = success_result[1]
                return
            success_result = True, [success_result[1]]
        if self._number_left == 1:
            try:
                self._undecided.pop()
            except IndexError:
                return
        if self._progress is not None:
            if success_result[0]:
                self._progress.advance(len(success_result[1]))
            if self._number_left == 1:
                self._progress.finish()
        super()._set(i, success_result)  # type: ignore[misc]

    def _abort(self, error: BaseException, *, callback: bool) -> None:
        """Complete with an error that stands for whatever is missing."""
        if not callback:
            self._error_callback = None
        self._number_left = 1
        if self._progress is not None:
            self._progress.finish()
        if self._undecided is _CANCELLED:
            error = cancelled_error()
        if not self._event.is_set():
            super()._set(0, (False, error))  # type: ignore[misc]


class IMapIterator(_base.IMapIterator):  # type: ignore[type-arg]
    """multiprocessing.pool.IMapIterator."""

    cancellable = False
    _job: int
    _cache: dict[int, Any]
    _cond: threading.Condition
    _items: Any
    _index: int
    _length: int | None
    _unsorted: dict[int, Any]

    _aborted = False

    def __init__(self, pool: Any) -> None:
        super().__init__(pool)
        # As in Latch: a lock that knows its owner is not given back by a waiter whose wait a signal handler has broken.
        self._cond = threading.Condition(threading.RLock())
        pool._cache.remember(self)

    def _set_length(self, length: int) -> None:
        if not self._aborted:
            super()._set_length(length)  # type: ignore[misc]
        with self._cond:
            if self._aborted:  # meanwhile, perhaps
                self._length = self._index

    def _abort(self, error: BaseException, *, callback: bool) -> None:
        """The next item is the error, and there is none after it."""
        with self._cond:
            self._unsorted.clear()
            self._items.append((False, error))
            self._index += 1
            self._length = self._index
            self._cond.notify_all()
            self._aborted = True
            self._cache.pop(self._job, None)
            self._pool = None


class IMapUnorderedIterator(IMapIterator, _base.IMapUnorderedIterator):  # type: ignore[type-arg]
    """multiprocessing.pool.IMapUnorderedIterator."""

    _last: tuple[int, tuple[bool, Any]] | None = None

    def _set(self, i: int, success_result: tuple[bool, Any]) -> None:
        super()._set(i, success_result)  # type: ignore[misc]
        self._set_last()

    def _set_last(self) -> None:
        if self._last is not None and self._index >= self._last[0]:
            last, self._last = self._last, None
            super()._set(*last)  # type: ignore[misc]

    def _end_with(self, index: int, success_result: tuple[bool, Any]) -> None:
        self._last = index, success_result
        self._set_last()


class Last:
    """A job, for whoever has a result that is to come after those of all the tasks before it."""

    def __init__(self, job: Any) -> None:
        self._set: Callable[[int, tuple[bool, Any]], None] = getattr(job, "_end_with", job._set)

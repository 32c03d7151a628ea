"""Pools of worker processes that survive their workers.

`Pool` has the interface of multiprocessing.Pool. What it does beyond it:

* when a worker dies, the task it was running fails with WorkerLostError (or is run again, if `retries` are asked for),
  every other task is completed, and the worker is replaced;
* a worker that cannot be started, or whose initializer fails again and again, ends the pool with an error;
* when the parent dies, its workers end too, whatever they are doing;
* get() of a result whose pool has been terminated raises BrokenPoolError, where multiprocessing waits forever;
* tasks can have a `timeout`, maps a progress bar, `statistics()` tells what the workers do, and `report()` what their
  time went into.

A chunk of a map is one task, as in multiprocessing: if one of its items fails, or its worker dies, the chunk has no
results. How it works stands in _pool/engine.py.
"""

from __future__ import annotations

import operator
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import TimeoutError as TimeoutError
from multiprocessing import util
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING, Any

from mpipc._pool.broadcast import Broadcasts
from mpipc._pool.codec import APPLY, CALL, CHUNK, ITEM, STAR_CHUNK, Source, Task
from mpipc._pool.engine import Engine
from mpipc._pool.options import WorkerOptions, check_retries, checked_bytes, checked_setting, checked_timeout
from mpipc._pool.parts import Parts
from mpipc._pool.progress import Showing, bar_of
from mpipc._pool.report import LongTask as LongTask
from mpipc._pool.report import PoolReport as PoolReport
from mpipc._pool.report import WorkerTimes as WorkerTimes
from mpipc._pool.report import report_of
from mpipc._pool.results import ApplyResult, AsyncResult, IMapIterator, IMapUnorderedIterator, MapResult
from mpipc._pool.statistics import PoolStatistics as PoolStatistics
from mpipc._pool.statistics import WorkerStatistics as WorkerStatistics
from mpipc._pool.statistics import gather
from mpipc._pool.tasks import Feed, Function, function_name
from mpipc._stdlib import private
from mpipc._stdlib.by_pickler import by_pickler
from mpipc._stdlib.standard import standard_module
from mpipc._stdlib.start_method import default_context
from mpipc._stdlib.subclasses import own_reducers, settle_pool
from mpipc.exceptions import BrokenPoolError as BrokenPoolError
from mpipc.exceptions import TaskTimeoutError as TaskTimeoutError
from mpipc.exceptions import WorkerLostError as WorkerLostError

if TYPE_CHECKING:
    from multiprocessing import pool as _base
else:
    _base = standard_module("pool")

_private: Any = _base  # its private names are unknown to type checkers
INIT, RUN, CLOSE, TERMINATE = _private.INIT, _private.RUN, _private.CLOSE, _private.TERMINATE
ExceptionWithTraceback = _private.ExceptionWithTraceback
MaybeEncodingError = _private.MaybeEncodingError
RemoteTraceback = _private.RemoteTraceback

__all__ = ["Pool", "ThreadPool"]

_os: Any = os

NOTHING_DONE = (
    "a chunksize of {} makes no chunks: the function is called for no item, and each result is None, as with"
    " multiprocessing. Give a chunksize of 1 or more, or None"
)


def default_processes() -> int:
    """How many workers a pool has if that is not said: as multiprocessing, which looks at the affinity from 3.13 on."""
    count = _os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    return count or 1


class Pool(Parts, Broadcasts, _base.Pool):
    """multiprocessing.Pool on System V message queues.

    `retries`: how many times a task is run again when the worker that runs it dies. It may have had effects before
    that, and a chunk is repeated as a whole.

    `memory_limit`: how many bytes of private memory a worker may have while it runs a task; shared memory does not
    count, nor what it has inherited and nobody has written to since. A worker that has more (it is looked at every
    0.05 s) is killed, and the task fails with MemoryLimitError. `max_memory_per_child`: a worker that has more after a
    task, which has succeeded, is replaced.

    `pickler`: "cloudpickle", "dill", a module like these, or a function that returns what pickle.loads() reads. It
    pickles functions, arguments, results, and the initializer: lambdas, closures, what a notebook has defined.

    `worker_init(state)` is called in each worker after the initializer, and `worker_exit(state)` when it ends because
    the pool is closed or its tasks are used up (not when it is killed, nor when the pool is terminated, as at the end
    of `with`); tasks get the state, an object for attributes, by mpipc.worker_state(). `nice` is added to the workers'
    niceness. `cpu_affinity`: a set of CPUs for all, or a list of sets, one for each worker in turn (a new one gets its
    predecessor's). `end_with_parent`: workers end with this process in any case; with True the reaper sees to that,
    also for one that is stopped.

    `shared`: an object that tasks find as mpipc.worker_state().shared. A forked worker, also one that replaces another,
    has this process's: it is not pickled, and its memory is copied page by page as somebody writes to it. With spawn
    and forkserver it is pickled once for each worker. What a worker changes in it, no other one sees.

    Without `copy`, arrays in arguments and results arrive as read-only views of what the sender has copied. Without
    `inherit`, a forked worker gives up what there was of mpipc.arrays before it: its tasks read none of that. Both say
    nothing of arrays in shared memory that are passed: those travel by reference.

    Raises ValueError and TypeError as multiprocessing does, OSError if no process can be started.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        retries: int = 0,
        memory_limit: int | None = None,
        max_memory_per_child: int | None = None,
        pickler: Any = None,
        worker_init: Callable[[Any], object] | None = None,
        worker_exit: Callable[[Any], object] | None = None,
        nice: int | None = None,
        cpu_affinity: Any = None,
        end_with_parent: bool = False,
        shared: Any = None,
        copy: bool = True,
        inherit: bool = True,
    ) -> None:
        # First what __del__() looks at.
        self._state: str = INIT
        self._pool: list[Any] = []
        self._ctx = context or default_context()
        if processes is None:
            processes = default_processes()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        check_retries(retries)
        self._processes = processes
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        self._retries = retries
        by = by_pickler(pickler, self._ctx)
        task_reducers, result_reducers = (by, by) if by is not None else own_reducers(self, Pool)
        self._engine = Engine(
            self.Process,
            self._ctx,
            processes,
            WorkerOptions(
                initializer,
                initargs,
                maxtasksperchild,
                task_reducers=task_reducers,
                result_reducers=result_reducers,
                memory_limit=checked_bytes("memory_limit", memory_limit),
                max_memory=checked_bytes("max_memory_per_child", max_memory_per_child),
                **checked_setting(
                    self._ctx, worker_init, worker_exit, nice, cpu_affinity, end_with_parent, shared, copy, inherit
                ),
            ),
        )
        self._pool = self._engine.processes
        self._cache = self._engine.schedule.cache
        self._engine.start()
        self._terminate = util.Finalize(self, self._engine.terminate, exitpriority=15)
        self._state = RUN

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        settle_pool(cls, Pool)

    def __del__(self, _warn: Any = warnings.warn, _running: str = RUN) -> None:
        if self._state == _running:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    # --- calls --------------------------------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Any = {},  # noqa: B006
        *,
        timeout: float | None = None,
    ) -> Any:
        """Return func(*args, **kwds), run by a worker. A task that runs longer than `timeout` seconds is killed."""
        result, task = self._call(func, args, kwds, None, None, timeout)
        return self._engine.run(result, task)

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Any = {},  # noqa: B006
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
    ) -> AsyncResult:
        """Have func(*args, **kwds) run by a worker.

        `timeout` is in seconds from when the task is begun; then its worker is killed, and get() raises TimeoutError.
        """
        result, task = self._call(func, args, kwds, callback, error_callback, timeout)
        self._engine.take_on(result, task)
        return result

    def _call(
        self,
        func: Callable[..., Any],
        args: Iterable[Any],
        kwds: Any,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        timeout: float | None,
    ) -> tuple[ApplyResult, Task]:
        self._check_running()
        options = self._options(timeout)
        kind, payload = (CALL, (tuple(args), kwds)) if kwds else (APPLY, tuple(args))
        result = ApplyResult(self, callback, error_callback, ours=True)
        function = Function(func, result._job + 1, lasting=False)
        return result, Task(result, 0, kind, function, payload, **options)

    # --- maps ---------------------------------------------------------------------------------------------------------

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        progress: Any = False,
    ) -> list[Any]:
        """Return [func(x) for x in iterable], run by the workers in chunks.

        `timeout` is in seconds for each chunk (see apply_async). `progress` shows a bar: True or "tqdm" by tqdm, "rich"
        by rich, or a rich.progress.Progress, in which each map with it has a line, and which the caller starts and
        stops.
        """
        result = self._map_async(func, iterable, CHUNK, chunksize, timeout=timeout, progress=progress)
        return result.get()

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        progress: Any = False,
    ) -> list[Any]:
        """Return [func(*x) for x in iterable]; see map()."""
        result = self._map_async(func, iterable, STAR_CHUNK, chunksize, timeout=timeout, progress=progress)
        return result.get()

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
        progress: Any = False,
    ) -> MapResult:
        """map() that returns at once."""
        return self._map_async(
            func, iterable, CHUNK, chunksize, callback, error_callback, timeout=timeout, progress=progress
        )

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
        progress: Any = False,
    ) -> MapResult:
        """starmap() that returns at once."""
        return self._map_async(
            func, iterable, STAR_CHUNK, chunksize, callback, error_callback, timeout=timeout, progress=progress
        )

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        kind: int,
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
        progress: Any = False,
    ) -> MapResult:
        self._check_running()
        error: Exception | None = None
        items: tuple[Any, ...] | range
        if type(iterable) in (tuple, range):
            items = iterable  # type: ignore[assignment]
        elif hasattr(iterable, "__len__"):
            len(iterable)  # type: ignore[arg-type]  # what this raises, it raises here
            items, error = _items_before_error(iterable)
        else:
            items = tuple(iterable)
        length = len(items)
        if chunksize is None:
            chunksize, extra = divmod(length, self._processes * 4)
            if extra:
                chunksize += 1
        if length == 0:
            chunksize = 0
        elif chunksize <= 0:  # no task at all, and as many times None: so does multiprocessing
            warnings.warn(NOTHING_DONE.format(chunksize), RuntimeWarning, stacklevel=3)
        options = self._options(timeout)
        bar = bar_of(progress, length, function_name(func))
        if error is not None:
            result = MapResult(self, 1, 1, callback, error_callback, bar, ours=True)
            self._engine.take_on_failure(result, error)
            return result
        if chunksize == 1 and kind == CHUNK:
            kind = ITEM
        result = MapResult(self, chunksize, length, callback, error_callback, bar, single=kind == ITEM, ours=True)
        if result._number_left:
            function = Function(func, result._job + 1)
            self._engine.take_on(result, Source(result, kind, function, items, chunksize, **options))
        return result

    def imap(  # type: ignore[override]
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        timeout: float | None = None,
        progress: Any = False,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Return an iterator over the results of map(), in order, which gives each as soon as it is there.

        The iterable is read by a thread, as workers get free: ahead of them are twice as many tasks for each worker as
        one is given at a time (1 if they take long, some hundreds if they take microseconds). With `buffersize` it is
        also read no more than so many items ahead of the results that were taken from the iterator (but always a
        chunk), and no further when nobody has the iterator any more; once the pool is closed, all of it is read, since
        join() waits for it. ValueError if it is not positive. See Executor.map of Python 3.14, buffersize.
        """
        return self._imap(IMapIterator, func, iterable, chunksize, timeout, progress, buffersize)

    def imap_unordered(  # type: ignore[override]
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        timeout: float | None = None,
        progress: Any = False,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """imap(), in the order in which the results come."""
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize, timeout, progress, buffersize)

    def _imap(
        self,
        make_iterator: type[IMapIterator],
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        timeout: float | None,
        progress: Any,
        buffersize: int | None,
    ) -> Iterator[Any]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
        if buffersize is not None and operator.index(buffersize) < 1:
            raise ValueError(f"'buffersize' must be None or > 0, not {buffersize!r}")
        options = self._options(timeout)
        bar = bar_of(progress, getattr(iterable, "__len__", lambda: None)(), function_name(func))
        result: Any = make_iterator(self)
        function = Function(func, result._job + 1)
        kind = ITEM if chunksize == 1 else CHUNK

        found: Iterator[Any] = result
        if buffersize is None and type(iterable) in (list, tuple, range):
            # A list may be changed by the caller before the last chunk is made of it.
            items: Any = tuple(iterable) if type(iterable) is list else iterable
            count = -(-len(items) // chunksize)
            result._set_length(count)
            if count:
                self._engine.take_on(result, Source(result, kind, function, items, chunksize, **options))
        else:
            feed = Feed(None if buffersize is None else max(1, buffersize // chunksize))

            def make(index: int, first: int, items: tuple[Any, ...]) -> Task:
                payload = items[0] if kind == ITEM else items
                return Task(result, index, kind, function, payload, first=first, feed=feed, **options)

            found = self._engine.feed(result, _chunks(iterable, chunksize, make), feed)
        if chunksize > 1:
            found = (item for chunk in found for item in chunk)
        return found if bar is None else Showing(bar, found)

    # --- the rest -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take on nothing more; the workers end when all that was submitted is done."""
        util.debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            self._engine.close()

    def terminate(self) -> None:
        """End the workers, and wait for that.

        They get SIGTERM. Those that have no task end in any case; one that is running a task, and ignores or blocks the
        signal or is stopped, gets SIGKILL after 0.1 s, and one that handles it, after 1 s.
        """
        util.debug("terminating pool")
        self._state = TERMINATE
        self._terminate()  # does nothing if it has run before, perhaps in a callback, where it does not wait
        self._engine.terminate()

    def join(self) -> None:
        """Wait until the workers have ended, after close() or terminate()."""
        util.debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        self._engine.join()
        for process in self._pool:
            process.join(0)  # they have ended, but for one that cannot be killed
        self._terminate.cancel()

    def statistics(self) -> PoolStatistics:
        """What the workers have done, and what they are doing."""
        return gather(self._engine)

    def report(self) -> PoolReport:
        """What the time of each worker went into until now, and which tasks were the longest. Also after the end."""
        return report_of(self._engine)

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        if self._engine.broken is not None:
            raise self._engine.broken

    def _options(self, timeout: float | None) -> dict[str, Any]:
        return {"retries": self._retries, "timeout": checked_timeout(timeout)}

    def _repopulate_pool(self) -> None:
        self._engine.populate()


def _items_before_error(iterable: Iterable[Any]) -> tuple[tuple[Any, ...], Exception | None]:
    try:
        return tuple(iterable), None
    except Exception as error:
        return (), error


def _chunks(iterable: Iterable[Any], size: int, make: Callable[[int, int, Any], Task]) -> Iterator[Task]:
    """Tasks from an iterable of the user. If that raises, so does this; the items of the broken chunk are lost."""
    index = first = 0
    items: list[Any] = []
    for item in iterable:
        items.append(item)
        if len(items) == size:
            yield make(index, first, tuple(items))
            index, first, items = index + 1, first + size, []
    if items:
        yield make(index, first, tuple(items))


# --- threads ----------------------------------------------------------------------------------------------------------


class _Notifier:
    """The queue with which a pool of threads wakes its manager thread: a pipe, and no semaphore."""

    def __init__(self) -> None:
        self._reader, self._writer = Pipe(duplex=False)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nobody is there any more who could be woken up."""
        with self._lock:
            self._writer.close()
            self._reader.close()

    def put(self, item: Any) -> None:
        with self._lock:
            if not self._writer.closed:
                self._writer.send(item)

    def get(self) -> Any:
        return self._reader.recv()

    def empty(self) -> bool:
        return not self._reader.poll()


class _ThreadContext:
    @staticmethod
    def SimpleQueue() -> _Notifier:
        return _Notifier()


_StandardThreadPool: Any = _base.ThreadPool

_LEAVING = 0.05
"""Seconds in which the threads of a terminated pool end that have nothing to do. The others cannot be ended."""


class ThreadPool(_base.ThreadPool):
    """multiprocessing.pool.ThreadPool, which needs no semaphore in /dev/shm here."""

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        # Past the standard ThreadPool.__init__(), which knows no context.
        initialize: Any = super(_StandardThreadPool, self).__init__
        initialize(processes, initializer, initargs, context=_ThreadContext())

    @classmethod
    def _terminate_pool(
        cls,
        taskqueue: Any,
        inqueue: Any,
        outqueue: Any,
        pool: Any,
        change_notifier: Any,
        worker_handler: Any,
        task_handler: Any,
        *others: Any,
    ) -> None:
        # The first thing that the standard method does is a system call, in which the thread that hands out tasks may
        # run and hand some out after all; no thread can be made to give up one that it has begun.
        private.set_thread_state(task_handler, TERMINATE)
        terminate: Any = super()._terminate_pool  # type: ignore[misc]
        terminate(taskqueue, inqueue, outqueue, pool, change_notifier, worker_handler, task_handler, *others)
        # A worker that went at its sentinel may have been replaced once more before the thread that does so ended: the
        # new one waits for a sentinel that nobody sends, and join() for the new one.
        for worker in pool:
            if worker.is_alive():
                inqueue.put(None)
        deadline = time.monotonic() + _LEAVING
        for worker in pool:
            if worker is not threading.current_thread():
                worker.join(max(deadline - time.monotonic(), 0))
        if threading.current_thread() not in (worker_handler, task_handler, *others):
            change_notifier.close()

    def join(self) -> None:
        """Wait until the threads have ended, after close() or terminate()."""
        super().join()
        notifier: Any = self._change_notifier  # type: ignore[attr-defined]
        notifier.close()


def __getattr__(name: str) -> Any:
    return getattr(_base, name)

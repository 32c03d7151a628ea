"""concurrent.futures on System V message queues: an executor that survives its workers.

`ProcessPoolExecutor` has the interface of concurrent.futures.ProcessPoolExecutor, on the engine of mpipc.Pool. What is
different:

* when a worker dies, the future whose task it was running gets WorkerLostError (or the task is run again, if `retries`
  are asked for); every other future is completed, the worker is replaced, and the executor goes on;
* only an executor whose workers cannot be started, or fail again and again in the initializer, is broken: its futures
  and submit() raise BrokenProcessPool;
* tasks can have a `timeout`; `statistics()` tells what the workers do, and `report()` what their time went into;
* `max_tasks_per_child` works with every start method;
* a function that is mapped is pickled once, not once for each chunk.

Workers are started by the first submit() or map(), all at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import process as _base
from itertools import count, islice
from multiprocessing import util
from types import SimpleNamespace
from typing import Any

from mpipc._pool.broadcast import broadcast
from mpipc._pool.codec import APPLY, CALL, STAR_CHUNK, Task
from mpipc._pool.engine import Engine
from mpipc._pool.options import WorkerOptions, check_retries, checked_bytes, checked_setting, checked_timeout
from mpipc._pool.report import PoolReport, report_of
from mpipc._pool.statistics import PoolStatistics, gather
from mpipc._pool.tasks import Function
from mpipc._stdlib.by_pickler import by_pickler
from mpipc._stdlib.private import register_atexit
from mpipc._stdlib.standard import standard_module
from mpipc._stdlib.start_method import default_context
from mpipc.exceptions import BrokenPoolError
from mpipc.exceptions import TaskTimeoutError as TaskTimeoutError
from mpipc.exceptions import WorkerLostError as WorkerLostError
from mpipc.pool import default_processes

__all__ = ["BrokenProcessPool", "ProcessPoolExecutor", "get_reusable_executor"]

_base_pool: Any = standard_module("pool")  # its private names are unknown to type checkers


class BrokenProcessPool(BrokenPoolError, _base.BrokenProcessPool):
    """The executor cannot go on: its workers die before they have run the initializer, or they were ended on purpose.

    Both BrokenPoolError and concurrent.futures.process.BrokenProcessPool. A worker that dies later is none of it: see
    WorkerLostError.
    """


class RunningFuture(Future[Any]):
    """A concurrent.futures.Future that can be cancelled also while it is running."""

    def __init__(self, engine: Engine, job: _Job) -> None:
        super().__init__()
        self._engine = weakref.ref(engine)
        self._job = weakref.ref(job)
        self._stopped = False  # True: somebody has tried to, while it was running

    def cancel(self, *, running: bool = False) -> bool:
        """concurrent.futures.Future.cancel(), which returns False for a task that is running. With `running`, the
        worker that runs it is killed, and replaced, and result() raises CancelledError."""
        if super().cancel():
            return True
        engine, job = self._engine(), self._job()
        if not running or engine is None or job is None or self.done():
            return False
        return engine.cancel(job)

    def cancelled(self) -> bool:
        """Whether it was cancelled, before it ran or while it did."""
        return super().cancelled() or (self._stopped and self.done() and isinstance(self.exception(), CancelledError))


class _Job:
    """A future, as the engine sees a result.

    In the cache from when its task is taken on until the future is done, or was cancelled and nobody will run it. A
    future can be cancelled until its task is about to be sent to a worker, as with the standard executor.
    """

    cancellable = True
    __slots__ = ("__weakref__", "_begun", "_cache", "_job", "_untold", "future")

    def __init__(self, engine: Engine) -> None:
        cache = engine.schedule.cache
        self.future = RunningFuture(engine, self)
        self._job: int = next(_base_pool.job_counter)
        self._cache = cache
        self._begun = False
        self._untold = [True]

    def _give_up(self) -> bool:
        """The future is cancelled, while its task is running. False if it is done."""
        self.future._stopped = True  # before its callbacks ask
        try:
            self.future.set_exception(CancelledError())
        except InvalidStateError:
            return False
        return True

    def _begin(self) -> bool:
        """The task is about to be sent to a worker. False if the future was cancelled, or somebody else has set it."""
        if self._begun:
            return True
        future = self.future
        try:
            self._untold.pop()  # once only: a future that was told already would raise
        except IndexError:  # the one who has told it was interrupted in that
            runs = not future.cancelled()
        else:
            try:
                runs = not (future.done() and not future.cancelled()) and future.set_running_or_notify_cancel()
            except RuntimeError:  # somebody else has just set it
                runs = False
        if runs:
            self._begun = True
        else:
            self._forget()
        return runs

    def _forget(self) -> None:
        if self._job in self._cache:
            del self._cache[self._job]

    def _set(self, index: int, success_result: tuple[bool, Any]) -> None:
        """Complete the future; its callbacks run here, in the result thread."""
        if not self._begin():
            return
        ok, value = success_result
        try:
            if ok:
                self.future.set_result(value)
            else:
                self.future.set_exception(value)
        except InvalidStateError:
            pass  # somebody else has set it
        except BaseException:  # of a callback: concurrent.futures catches an Exception only
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
        finally:
            self._forget()

    def _abort(self, error: BaseException, *, callback: bool) -> None:
        """Nothing will come any more."""
        broken = BrokenProcessPool(*error.args)
        broken.__cause__ = error.__cause__
        self._set(0, (False, broken))


class ProcessPoolExecutor(_base.ProcessPoolExecutor):
    """concurrent.futures.ProcessPoolExecutor on System V message queues.

    `retries`: how many times a task is run again when the worker that runs it dies. It may have had effects before
    that, and a chunk of a map is repeated as a whole.

    `timeout`: how many seconds a task (a chunk of a map is one) may run; then its worker is killed, and the future
    raises TaskTimeoutError, which is a TimeoutError.

    `memory_limit`, `max_memory_per_child`: bytes of private memory that a worker may have while it runs a task, and
    after one; `pickler`: what pickles functions, arguments and results; `worker_init`, `worker_exit`, `nice`,
    `cpu_affinity`, `end_with_parent`: how workers begin, end and run; `shared`: what they all have; `copy`, `inherit`:
    of arrays. See mpipc.Pool.

    Raises ValueError and TypeError as the standard one does.
    """

    # The constructor of the base class, which makes queues and locks, is not called on purpose.
    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        retries: int = 0,
        timeout: float | None = None,
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
        if max_workers is None:
            max_workers = default_processes()
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        check_retries(retries)
        if mp_context is None:
            mp_context = default_context()
        self._mp_context = mp_context
        self._max_workers: int = max_workers
        self._initializer: Any = initializer
        self._initargs = initargs
        self._max_tasks_per_child = max_tasks_per_child
        self._by_pickler = by_pickler(pickler, mp_context)
        self._memory_limit = checked_bytes("memory_limit", memory_limit)
        self._max_memory = checked_bytes("max_memory_per_child", max_memory_per_child)
        self._setting = checked_setting(
            mp_context, worker_init, worker_exit, nice, cpu_affinity, end_with_parent, shared, copy, inherit
        )
        self._options: dict[str, Any] = {"retries": retries, "timeout": checked_timeout(timeout)}
        self._pid = os.getpid()
        self._lock = threading.RLock()
        # --- guarded by _lock
        self._engine: Engine | None = None
        self._is_shut_down = False

    @property
    def _processes(self) -> dict[int, Any]:  # type: ignore[override]  # which others look at
        engine = self._engine
        if engine is None:
            return {}
        with engine.life.lock:
            return {process.pid: process for process in engine.processes}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have fn(*args, **kwargs) run by a worker, and return the future of it.

        RuntimeError after shutdown(); BrokenProcessPool, which is one too, if no worker can be started. What pickling
        raises, the future raises.
        """
        kind, payload = (CALL, (args, kwargs)) if kwargs else (APPLY, args)
        return self._run(Function(fn, _new_id(), lasting=False), kind, payload)

    def _run(self, function: Function, kind: int, payload: tuple[Any, ...], first: int = 0) -> Future[Any]:
        with self._lock:
            engine = self._started_engine()
            job = _Job(engine)
            task = Task(job, 0, kind, function, payload, first=first, **self._options)
            added = engine.schedule.add(job, task)  # from here on the engine does not end
        if added:
            engine.schedule.dispatch()
        else:
            engine.receiver.refuse(job)
        return job.future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Return an iterator over map(fn, *iterables), in order; the iterables are read at once.

        `chunksize` items at a time are one task, and one result. After `timeout` seconds from this call, the iterator
        raises TimeoutError where the next result is not there; the tasks that have begun go on.

        With `buffersize` (as in Python 3.14, and here in all) only so many tasks are made at once, and one more when
        the first result of a task is asked for: the iterables may be endless. What they raise, the iterator raises.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be an integer or None, got {buffersize!r}")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be None or > 0, got {buffersize}")
        kind = APPLY if chunksize == 1 else STAR_CHUNK
        if buffersize is not None:
            return self._map_ahead(Function(fn, _new_id()), kind, iterables, deadline, chunksize, buffersize)
        items = list(zip(*iterables, strict=False))
        firsts = range(0, len(items), chunksize)
        payloads = items if kind == APPLY else [tuple(items[first : first + chunksize]) for first in firsts]
        with self._lock:
            engine = self._started_engine()
            jobs = [_Job(engine) for _ in firsts]
            if not jobs:
                return iter(())
            function = Function(fn, _new_id())
            tasks = [
                Task(job, 0, kind, function, payload, first=first, **self._options)
                for job, first, payload in zip(jobs, firsts, payloads, strict=True)
            ]
            added = engine.schedule.add_many(tasks)
        if added:
            engine.schedule.dispatch()
        else:
            for job in jobs:
                engine.receiver.refuse(job)
        return _results(deque(job.future for job in jobs), kind, deadline)

    def _map_ahead(
        self,
        function: Function,
        kind: int,
        iterables: tuple[Iterable[Any], ...],
        deadline: float | None,
        chunksize: int,
        buffersize: int,
    ) -> Iterator[Any]:
        """map() with `buffersize`. The iterator does not keep the executor: what was submitted is done nevertheless."""
        items = zip(*iterables, strict=False)
        payloads = items if kind == APPLY else iter(lambda: tuple(islice(items, chunksize)), ())
        numbered = zip(count(0, chunksize), payloads)
        myself = weakref.ref(self)

        def one_more() -> None:
            executor = myself()
            if executor is not None:
                for first, payload in islice(numbered, 1):
                    futures.append(executor._run(function, kind, payload, first))

        futures = deque(self._run(function, kind, payload, first) for first, payload in islice(numbered, buffersize))
        return _results(futures, kind, deadline, one_more)

    def broadcast(self, fn: Callable[..., Any], /, *args: Any) -> list[Any]:
        """Have each worker run fn(*args) once, and return the list of results: see Pool.broadcast().

        RuntimeError after shutdown(); BrokenProcessPool if the workers cannot be started.
        """
        with self._lock:
            engine = self._started_engine()
        try:
            return broadcast(engine, SimpleNamespace(_cache=engine.schedule.cache), fn, args, self._options["retries"])
        except BrokenPoolError as error:
            raise BrokenProcessPool(*error.args) from error.__cause__

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take on nothing more; the workers end when all that was submitted is done.

        `wait` until then. With `cancel_futures`, what no worker has been given yet is cancelled.
        """
        with self._lock:
            self._is_shut_down = True
            engine = self._engine
        if engine is None or os.getpid() != self._pid:
            return
        if cancel_futures:
            engine.cancel_backlog()
        engine.close()
        if wait:
            engine.join()
            self._close.cancel()

    def terminate_workers(self) -> None:
        """shutdown() that ends the workers with SIGTERM, and with SIGKILL if that does not help: see Pool.terminate().

        All futures that are not done raise BrokenProcessPool.
        """
        self._end_workers("terminate")

    def kill_workers(self) -> None:
        """As terminate_workers(), with SIGKILL."""
        self._end_workers("kill")

    def _end_workers(self, how: str) -> None:
        with self._lock:
            self._is_shut_down = True
            engine = self._engine
        if engine is None or os.getpid() != self._pid:
            return
        engine.terminate(mercy=how != "kill")

    def _is_usable(self) -> bool:
        """Whether submit() would take something."""
        engine = self._engine
        broken = engine is not None and engine.broken is not None
        return not (self._is_shut_down or _exiting or broken or os.getpid() != self._pid)

    def statistics(self) -> PoolStatistics:
        """What the workers have done, and what they are doing."""
        engine = self._engine
        return PoolStatistics([], 0, 0) if engine is None else gather(engine)

    def report(self) -> PoolReport:
        """What the time of each worker went into until now, and which tasks were the longest. Also after the end."""
        engine = self._engine
        return PoolReport((), None, ()) if engine is None else report_of(engine)

    def _started_engine(self) -> Engine:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this executor is process {self._pid}'s: make one of its own in this process, {os.getpid()}"
            )
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        engine = self._engine
        if engine is None:
            engine = Engine(
                _make_process,
                self._mp_context,
                self._max_workers,
                WorkerOptions(
                    self._initializer,
                    self._initargs,
                    self._max_tasks_per_child,
                    daemon=False,
                    task_reducers=self._by_pickler,
                    result_reducers=self._by_pickler,
                    memory_limit=self._memory_limit,
                    max_memory=self._max_memory,
                    **self._setting,
                ),
            )
            engine.start()
            _finish_at_exit(engine)
            self._close = util.Finalize(self, engine.close)  # collected: what was submitted is done nevertheless
            self._engine = engine
        elif engine.broken is not None:
            broken = BrokenProcessPool(*engine.broken.args)
            raise broken from engine.broken.__cause__
        return engine


# --- one for the whole program ----------------------------------------------------------------------------------------

_reusable: tuple[ProcessPoolExecutor, tuple[Any, ...]] | None = None
_reusable_lock = threading.Lock()


def get_reusable_executor(
    max_workers: int | None = None,
    context: Any = None,
    *,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    reuse: bool | str = "auto",
    kill_workers: bool = False,
    **options: Any,
) -> ProcessPoolExecutor:
    """The executor that this process has for everybody (loky's function of this name): started once, used again.

    If it was asked for something else (`reuse="auto"`, the default), was shut down, is broken, or was the parent's, it
    is another one; what the former was given is done nevertheless, or, with `kill_workers`, ended. `reuse=True`: the
    one that there is, whatever it was asked for; False: another one. `options` are ProcessPoolExecutor's.

    Raises what ProcessPoolExecutor raises.
    """
    global _reusable
    shared = id(options.get("shared"))  # which may be large, and like no other
    others = sorted(((name, options[name]) for name in options.keys() - {"shared"}), key=str)
    wanted = (max_workers or default_processes(), context, initializer, initargs, others, shared)
    with _reusable_lock:
        if _reusable is not None:
            executor, had = _reusable
            same = reuse is True or (reuse == "auto" and had == wanted)
            if same and executor._is_usable():
                return executor
            _reusable = None
            if kill_workers:
                executor.kill_workers()
            else:
                executor.shutdown(wait=False)
        executor = ProcessPoolExecutor(wanted[0], context, initializer, initargs, **options)
        _reusable = executor, wanted
        return executor


def _forget_reusable() -> None:
    global _reusable, _reusable_lock
    _reusable, _reusable_lock = None, threading.Lock()  # the parent's


os.register_at_fork(after_in_child=_forget_reusable)


def _new_id() -> int:
    """For a Function: no other of this process has it, in any pool."""
    job: int = next(_base_pool.job_counter)
    return 1 + job


def _make_process(context: Any, **options: Any) -> Any:
    return context.Process(**options)


def _results(
    futures: deque[Future[Any]], kind: int, deadline: float | None, one_more: Callable[[], None] | None = None
) -> Iterator[Any]:
    """The results of futures, which are not kept; before each future, `one_more` may append one."""
    try:
        while futures:
            if one_more is not None:
                one_more()
            result = futures.popleft().result(None if deadline is None else deadline - time.monotonic())
            if kind == APPLY:
                yield result
                continue
            result.reverse()
            while result:
                yield result.pop()
    finally:
        for future in futures:
            future.cancel()


# --- the end of the process -------------------------------------------------------------------------------------------

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_exiting = False
_finalizer_of = 0  # pid


def _finish_at_exit(engine: Engine) -> None:
    """A process that ends lets its executors finish, as concurrent.futures does."""
    global _finalizer_of
    _engines.add(engine)
    if _finalizer_of != os.getpid():
        # In a child, multiprocessing joins the workers before it comes to the threads.
        _finalizer_of = os.getpid()
        util.Finalize(None, _finish_all, exitpriority=100)


def _finish_all() -> None:
    global _exiting
    _exiting = True
    for engine in list(_engines):
        engine.close()
    for engine in list(_engines):
        engine.join()


def _forget_all() -> None:
    global _exiting
    _engines.clear()
    _exiting = False


os.register_at_fork(after_in_child=_forget_all)
# As concurrent.futures does: handlers of atexit come too late, no process or thread can be started any more.
register_atexit(_finish_all)

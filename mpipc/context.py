"""Contexts: multiprocessing's, with factories that make mpipc's objects.

What needs no System V IPC (Pipe, current_process, logging, the exceptions ...) is inherited from the running
interpreter, and so is its choice of the default start method. The default context is mpipc's own: what starts a process
through it settles mpipc's start method, never multiprocessing's, and the other way round. A child inherits both.
"""

# The factories return other types than the standard library's do, on purpose.
# mypy: disable-error-code="override"

from __future__ import annotations

import multiprocessing
import multiprocessing.context as _base
import signal
import sys
from multiprocessing import process
from multiprocessing import reduction as reduction
from multiprocessing.context import AuthenticationError as AuthenticationError
from multiprocessing.context import BufferTooShort as BufferTooShort
from multiprocessing.context import ProcessError as ProcessError
from multiprocessing.context import TimeoutError as TimeoutError
from multiprocessing.context import assert_spawning as assert_spawning
from multiprocessing.context import get_spawning_popen as get_spawning_popen
from multiprocessing.context import set_spawning_popen as set_spawning_popen
from types import MethodType

from mpipc._stdlib import private, start_method
from mpipc._stdlib.start_method import INHERITED_METHOD

TYPE_CHECKING = False  # as type checkers understand it; typing itself takes a third of the time of multiprocessing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, Literal

    from mpipc import broadcast, managers, pool, popen_forkserver, popen_spawn_posix, queues, synchronize, work_queue
    from mpipc._stdlib.by_pickler import ByPickler

__all__ = ()


class BaseContext(_base.BaseContext):
    """The factories of multiprocessing.context.BaseContext for mpipc's classes.

    The signatures are multiprocessing's; so are the imports inside, which keep `import mpipc` cheap.
    """

    _by_pickler: ByPickler | None = None
    """The pickler of what it makes, see with_pickler()."""

    @_base.BaseContext.reducer.setter  # type: ignore[attr-defined, untyped-decorator]
    def reducer(self, reduction: Any) -> None:
        """Controls how objects will be reduced to a form that can be shared with other processes."""
        from mpipc._stdlib.picklers import set_reducer

        _base.BaseContext.reducer.fset(self, reduction)  # type: ignore[attr-defined]
        set_reducer(reduction)

    def Manager(self, *, end_with_parent: bool = False) -> managers.SyncManager:
        """Return a manager with a server process that has been started, for objects that live in that process.

        With `end_with_parent`, which is mpipc's own, the server ends when this process is killed: see Process.
        """
        from mpipc.managers import SyncManager

        manager = SyncManager(ctx=self.get_context(), end_with_parent=end_with_parent)
        manager.start()
        return manager

    def Lock(self) -> synchronize.Lock:
        """Return a non-recursive lock, which a process that dies does not keep."""
        from mpipc.synchronize import Lock

        return Lock(ctx=self.get_context())

    def RLock(self) -> synchronize.RLock:
        """Return a recursive lock, which a process that dies does not keep."""
        from mpipc.synchronize import RLock

        return RLock(ctx=self.get_context())

    def RWLock(self) -> synchronize.RWLock:
        """Return a lock for many readers or one writer, which is mpipc's own: a process that dies does not keep it."""
        from mpipc.synchronize import RWLock

        return RWLock(ctx=self.get_context())

    def Condition(self, lock: Any = None) -> synchronize.Condition:
        """Return a condition with `lock`, a Lock or RLock, or with an RLock of its own."""
        from mpipc.synchronize import Condition

        return Condition(lock, ctx=self.get_context())

    def Semaphore(self, value: int = 1, *, returns: bool | None = None) -> synchronize.Semaphore:
        """Return a semaphore of `value` units.

        With `returns`, which is mpipc's own, those that a killed process held come back (True) or do not (False); by
        default (None) they do until a process that holds none has released the semaphore.
        """
        from mpipc.synchronize import Semaphore

        return Semaphore(value, returns=returns, ctx=self.get_context())

    def BoundedSemaphore(self, value: int = 1, *, returns: bool | None = None) -> synchronize.BoundedSemaphore:
        """Return a semaphore whose value never exceeds `value`. `returns`: see Semaphore()."""
        from mpipc.synchronize import BoundedSemaphore

        return BoundedSemaphore(value, returns=returns, ctx=self.get_context())

    def Event(self) -> synchronize.Event:
        """Return an event, which is clear."""
        from mpipc.synchronize import Event

        return Event(ctx=self.get_context())

    def Barrier(
        self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None
    ) -> synchronize.Barrier:
        """Return a barrier for `parties` processes; one of them runs `action` when all are there."""
        from mpipc.synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(
        self, maxsize: int = 0, *, raise_on_pickle_error: bool = False, pickler: Any = None, copy: bool = True
    ) -> queues.Queue[Any]:
        """Return a queue of at most `maxsize` objects, without a limit if that is 0 or less.

        With `raise_on_pickle_error`, which is mpipc's own, put() raises what pickling an object raises. `pickler`, too,
        pickles what is put, lambdas also if it is "cloudpickle". Without `copy`, arrays arrive as read-only views of
        what the sender has copied. See mpipc.queues.Queue.
        """
        from mpipc.queues import Queue

        return Queue(
            maxsize,
            ctx=self.get_context(),
            raise_on_pickle_error=raise_on_pickle_error,
            pickler=pickler,
            copy=copy,
        )

    def JoinableQueue(self, maxsize: int = 0, *, pickler: Any = None, copy: bool = True) -> queues.JoinableQueue[Any]:
        """Return a queue with task_done() and join(). `pickler`, `copy`: see Queue()."""
        from mpipc.queues import JoinableQueue

        return JoinableQueue(maxsize, ctx=self.get_context(), pickler=pickler, copy=copy)

    def SimpleQueue(self, *, pickler: Any = None, copy: bool = True) -> queues.SimpleQueue[Any]:
        """Return a queue with get(), put(), empty() and close() only. `pickler`, `copy`: see Queue()."""
        from mpipc.queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context(), pickler=pickler, copy=copy)

    def Broadcast(
        self,
        *,
        maxsize: int = 1024,
        maxbytes: int = 1 << 24,
        slow: Literal["block", "drop"] = "block",
        pickler: Any = None,
    ) -> broadcast.Broadcast[Any]:
        """Return a channel, which is mpipc's own, from which each subscription gets each message.

        It keeps `maxsize` messages of `maxbytes` bytes for those who are slow; then put() waits for them ("block"), or
        they lose the oldest ("drop"): see mpipc.broadcast.Broadcast. `pickler`: see Queue().
        """
        from mpipc.broadcast import Broadcast

        return Broadcast(maxsize=maxsize, maxbytes=maxbytes, slow=slow, pickler=pickler, ctx=self.get_context())

    def WorkQueue(
        self, maxsize: int = 0, *, max_attempts: int | None = None, pickler: Any = None
    ) -> work_queue.WorkQueue[Any]:
        """Return a queue of jobs, which is mpipc's own: one whose process fails or dies is taken again by another.

        At most `max_attempts` times, then it goes to the queue's `failed`. `maxsize`, `pickler`: see Queue().
        """
        from mpipc.work_queue import WorkQueue

        return WorkQueue(maxsize, max_attempts=max_attempts, ctx=self.get_context(), pickler=pickler)

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
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
    ) -> pool.Pool:
        """Return a pool of worker processes, by default as many as there are processors.

        With `retries`, which is mpipc's own, a task whose worker died is run again, up to so many times.
        `memory_limit` and `max_memory_per_child` are bytes that a worker may have, `pickler` pickles what is sent,
        `worker_init`, `worker_exit`, `nice`, `cpu_affinity` and `end_with_parent` say how workers begin, end and run,
        `shared` is what they all have, `copy` and `inherit` are about arrays: see mpipc.pool.Pool.
        """
        from mpipc.pool import Pool

        return Pool(
            processes,
            initializer,
            initargs,
            maxtasksperchild,
            self.get_context(),
            retries=retries,
            memory_limit=memory_limit,
            max_memory_per_child=max_memory_per_child,
            pickler=pickler,
            worker_init=worker_init,
            worker_exit=worker_exit,
            nice=nice,
            cpu_affinity=cpu_affinity,
            end_with_parent=end_with_parent,
            shared=shared,
            copy=copy,
            inherit=inherit,
        )

    def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:
        """Return a ctypes object in shared memory, without a lock."""
        from mpipc.sharedctypes import RawValue

        return RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type: Any, size_or_initializer: int | Sequence[Any]) -> Any:
        """Return a ctypes array in shared memory, without a lock."""
        from mpipc.sharedctypes import RawArray

        return RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
        """Return a ctypes object in shared memory, by default wrapped with a lock."""
        from mpipc.sharedctypes import Value

        return Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type: Any, size_or_initializer: int | Sequence[Any], *, lock: Any = True) -> Any:
        """Return a ctypes array in shared memory, by default wrapped with a lock."""
        from mpipc.sharedctypes import Array

        return Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def set_forkserver_preload(self, module_names: list[str], *, on_error: str = "ignore") -> None:
        """Have the fork server, when it is started, import these modules first.

        `on_error` (as in Python 3.15, and here in all) says what it does with one that cannot be imported: "ignore" it,
        "warn" with an ImportWarning, or "fail", and then it starts no process: start() raises EOFError or an OSError.

        TypeError for names that are no strings; ValueError for another `on_error`.
        """
        from mpipc._stdlib.fork_server import set_preload

        set_preload(module_names, on_error)

    def freeze_support(self) -> None:
        """In a program that was frozen: become the child process, or the helper, that this process was started as.

        What freezes programs (PyInstaller) puts a function of its own in the place of multiprocessing.freeze_support;
        that one is called, as it is when this is. See multiprocessing.freeze_support.
        """
        current = multiprocessing.freeze_support
        if not isinstance(current, MethodType):
            current()
        elif getattr(sys, "frozen", False):
            from multiprocessing.spawn import freeze_support

            freeze_support()

    def get_context(self, method: str | None = None) -> Any:
        """Return the context of a start method, without one this context (of the default context, the settled one).

        ValueError for a method that does not exist here.
        """
        if method is None:
            return super().get_context()
        try:
            context = _concrete_contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None
        private.check_available(context)
        return context if self._by_pickler is None else context.with_pickler(self._by_pickler)

    def with_pickler(self, pickler: Any) -> Any:
        """Return a context like this one with a pickler, by which travels what is made or started through it.

        That are the objects in its queues; the functions, arguments and results of its pools, and of a
        ProcessPoolExecutor that has it as `mp_context`; and its processes, on their way to a fresh interpreter. Pipes
        and managers' objects are multiprocessing's and know nothing of it. `pickler`: see mpipc.Pool. Of the default
        context, the settled one is meant, and asking settles it.

        ValueError, TypeError, ImportError: there is no such pickler.
        """
        from mpipc._stdlib.by_pickler import by_pickler

        method = self.get_start_method()
        by = by_pickler(pickler)
        if by is None:
            return _concrete_contexts[method]
        plain = self.get_context()
        context = object.__new__(type(plain))
        context.__dict__.update(vars(plain))
        context._by_pickler = by
        # The class has no methods, so that it can go where its name is not known, as a base of somebody's class.
        base = type(plain).Process
        members = {"_by_pickler": by, "__module__": base.__module__, "__doc__": base.__doc__}
        context.Process = type(base.__name__, (base,), members)
        return context

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._by_pickler is None:
            return super().__reduce_ex__(protocol)
        return _context_with, (self.get_start_method(), self._by_pickler)


def _context_with(method: str, by: ByPickler) -> Any:
    return _concrete_contexts[method].with_pickler(by)


# --- processes --------------------------------------------------------------------------------------------------------


_NO_KEYWORDS: Any = process.BaseProcess.__init__.__defaults__[-1]  # type: ignore[index]
"""{} up to Python 3.13, None from 3.14 on."""


class _FamilyProcess(process.BaseProcess):
    """What the process classes below do in the child beyond multiprocessing's.

    mpipc._core counts a process that returns, raises or calls sys.exit() as having ended normally, one that ends by a
    signal or by os._exit() as dead. A process that has not loaded mpipc._core has no mpipc object.
    """

    _start_method: Any  # str | None, given a value by the other base class
    _by_pickler: ByPickler | None = None
    """The pickler by which it gets to a fresh interpreter. Of classes that with_pickler() has made."""

    _popen: Any
    _ends_with_parent = False
    _parent_place: tuple[int, int, int, int] | None = None
    """Of who has called start(), where the process is to end with that one."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = _NO_KEYWORDS,
        *,
        daemon: bool | None = None,
        end_with_parent: bool = False,
    ) -> None:
        """As multiprocessing's; `end_with_parent`, which is mpipc's own: see the attribute."""
        super().__init__(group, target, name, args, kwargs, daemon=daemon)  # type: ignore[arg-type]
        self.end_with_parent = end_with_parent

    @property
    def end_with_parent(self) -> bool:
        """Whether the process is ended, by SIGKILL, when the one that has called start() is no longer there.

        However that one ended: by SIGKILL, a crash, os._exit(), or by becoming another program. At a normal end it
        waits for its children first (and terminates daemons), as always. By default, as with multiprocessing, nothing
        happens to the children of a process that is killed, not even to daemons. Can be set until start().
        """
        return self._ends_with_parent

    @end_with_parent.setter
    def end_with_parent(self, ends: bool) -> None:
        if not isinstance(ends, bool):
            raise TypeError(f"end_with_parent must be True or False, not {ends!r}")
        if self._popen is not None:  # as with daemon
            raise AssertionError("process has already started: set end_with_parent before start()")
        self._ends_with_parent = ends

    def __reduce_ex__(self, protocol: Any) -> Any:
        if "_by_pickler" not in vars(type(self)):
            return super().__reduce_ex__(protocol)
        return _new_process, (type(self).__bases__[0],), self.__dict__

    def start(self) -> None:
        """Start the child process."""
        if self._ends_with_parent:
            from mpipc._core import ties

            self._parent_place = ties.place()
        super().start()

    if not hasattr(process.BaseProcess, "interrupt"):  # it has it from Python 3.14 on

        def interrupt(self) -> None:
            """Send SIGINT to the process, for which it raises KeyboardInterrupt unless it does otherwise."""
            private.send_signal(self, signal.SIGINT)

    def _bootstrap(self, *args: Any, **kwargs: Any) -> int:
        _default_context._actual_context  # noqa: B018  (take over what the parent has noted, if nobody has asked yet)
        if self._start_method is not None:
            _force_start_method(self._start_method)
            # BaseProcess._bootstrap() would now force the standard library's default context to the same method.
            self._start_method = None
        if self._parent_place is not None:
            from mpipc._core import ties

            ties.end_with(*self._parent_place)
        if "mpipc._core" in sys.modules:
            sys.modules["mpipc._core"].arrived()
        if "mpipc.log" in sys.modules:
            sys.modules["mpipc.log"].arrived()
        from mpipc._memory import awaiting_torch

        awaiting_torch.act("started")
        try:
            return super()._bootstrap(*args, **kwargs)  # type: ignore[misc, no-any-return]
        finally:
            from multiprocessing import util

            if util.is_exiting():
                _leave()
            else:
                # From Python 3.13 on the finalizers run after _bootstrap(): we go last among them.
                util.Finalize(None, _leave, exitpriority=-sys.maxsize)


def _new_process(cls: Any) -> Any:
    return cls.__new__(cls)


def _leave() -> None:
    if "mpipc._queue.message_queue" in sys.modules:
        sys.modules["mpipc._queue.message_queue"].await_hearing()
    if "mpipc._core" in sys.modules:
        sys.modules["mpipc._core"].leaving()


class Process(_FamilyProcess, _base.Process):
    """A process started by the method of mpipc's default context."""

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:
        return _default_context.get_context().Process._Popen(process_obj)

    @staticmethod
    def _after_fork() -> None:
        _default_context.get_context().Process._after_fork()


class ForkProcess(_FamilyProcess, _base.ForkProcess):
    """A process started by os.fork()."""

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Any:
        from mpipc._memory import awaiting_torch

        awaiting_torch.look()
        family = sys.modules.get("mpipc._core")
        if family is None:
            return _base.ForkProcess._Popen(process_obj)
        family.reserve_for_child()
        try:
            return _base.ForkProcess._Popen(process_obj)
        finally:
            family.cancel_reservations()


class SpawnProcess(_FamilyProcess, _base.SpawnProcess):
    """A process started as a fresh interpreter."""

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> popen_spawn_posix.Popen:
        from mpipc.popen_spawn_posix import Popen

        return Popen(process_obj)


class ForkServerProcess(_FamilyProcess, _base.ForkServerProcess):
    """A process forked by the fork server."""

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> popen_forkserver.Popen:
        from mpipc.popen_forkserver import Popen

        return Popen(process_obj)


# --- contexts ---------------------------------------------------------------------------------------------------------


class DefaultContext(BaseContext, _base.DefaultContext):
    """The context behind the functions of the package, whose start method can be set once."""

    Process = Process
    _settled: BaseContext | None

    @property
    def _actual_context(self) -> BaseContext | None:
        """The settled context. In a child that is importing its `__main__`, its parent's."""
        inherited = vars(process.current_process()).pop(INHERITED_METHOD, None)
        if inherited is not None:
            self._settled = _concrete_contexts[inherited]
        return self._settled

    @_actual_context.setter
    def _actual_context(self, context: BaseContext | None) -> None:
        if context is not None:
            vars(process.current_process()).pop(INHERITED_METHOD, None)
        self._settled = context


class ForkContext(BaseContext, _base.ForkContext):
    """The context of the start method "fork"."""

    Process = ForkProcess


class SpawnContext(BaseContext, _base.SpawnContext):
    """The context of the start method "spawn"."""

    Process = SpawnProcess


class ForkServerContext(BaseContext, _base.ForkServerContext):
    """The context of the start method "forkserver"."""

    Process = ForkServerProcess


_concrete_contexts: dict[str, Any] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}
_default_context = DefaultContext(_concrete_contexts[private.fallback().get_start_method()])
start_method.default = _default_context


def _force_start_method(method: str) -> None:
    _default_context._actual_context = _concrete_contexts[method]


def __getattr__(name: str) -> Any:
    return getattr(_base, name)

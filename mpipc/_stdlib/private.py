"""CPython's private names: each one that mpipc uses stands here, with the reason, and is touched nowhere else.

First the table, then what it says is read: values, bound when this is imported, if their module is loaded by `import
mpipc` anyway, and functions. tests/stdlib/test_private.py holds both against the running interpreter: a name that is
gone, one that has come back, one that nobody uses any more.

What CPython's documentation tells about is not private: os._exit(), ctypes' _fields_, a proxy's _exposed_.
"""

from __future__ import annotations

import threading
from multiprocessing import context as _context
from multiprocessing import process as _process
from multiprocessing.reduction import AbstractReducer

from mpipc._stdlib.standard import standard_module

TYPE_CHECKING = False  # as type checkers understand it; typing itself takes a third of the time of multiprocessing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "CONTEXTS",
    "NAMES",
    "ORIGINAL_PICKLER",
    "QUEUE_INTERNALS",
    "SAFE_QUEUE",
    "SETUP_QUEUES",
    "check_available",
    "extra_reducers",
    "fallback",
    "forget_sentinel",
    "fork_server",
    "is_importing_main",
    "is_owned",
    "main_runner",
    "popen_of",
    "preload_knows_on_error",
    "preloaded",
    "register_atexit",
    "resource_sharer",
    "segment_names",
    "segment_tracker",
    "send_signal",
    "set_connections_pickler",
    "set_preloaded",
    "set_thread_state",
    "settle",
    "settled",
    "standard_default",
]

# --- the table --------------------------------------------------------------------------------------------------------

EVER = "3.11-"  # the oldest Python that mpipc knows; tried up to 3.15

NAMES = (
    # Where it is, its names; for which Pythons; how it is used; why, and what is done where it is not.
    #
    # How: "read", by what stands below; "sought", in the code or the names of others; "derived", by a subclass of ours
    # that overrides it or has it in common with its base; "offered", by a class of ours that has no base in CPython.
    # What is derived or offered stands in that class, too: it cannot but have it there.
    #
    # --- contexts and processes
    (
        "multiprocessing.context",
        "_default_context",
        EVER,
        "read",
        "The standard default context: its choice of a start method is ours; install() makes it a window on ours; the"
        " launch of a child must not settle it.",
    ),
    (
        "multiprocessing.context",
        "_concrete_contexts",
        EVER,
        "sought",
        "The table of contexts by start method. install() puts ours there, for get_context() of a context.",
    ),
    (
        "multiprocessing.context.DefaultContext",
        "_actual_context _default_context",
        EVER,
        "read",
        "The settled context, None before, and the one that it will be if nobody sets another.",
    ),
    (
        "multiprocessing.context.DefaultContext",
        "_actual_context",
        EVER,
        "derived",
        "In ours, a property: a child that imports its `__main__` has its parent's.",
    ),
    (
        "multiprocessing.context.BaseContext",
        "_check_available",
        EVER,
        "read",
        "Raises ValueError for the fork server where descriptors cannot be sent; get_context() calls it.",
    ),
    (
        "multiprocessing.context.Process",
        "_Popen _after_fork _start_method",
        EVER,
        "derived",
        "How a process starts; what it does as a forked child. Ours ask mpipc's default context. In the child,"
        " _bootstrap() would force the standard library's default context to _start_method: it is None by then.",
    ),
    (
        "multiprocessing.context.ForkProcess",
        "_Popen _start_method",
        EVER,
        "derived",
        "Around the start, a slot in the family is reserved for the child. _start_method: see above.",
    ),
    (
        "multiprocessing.context.SpawnProcess multiprocessing.context.ForkServerProcess",
        "_Popen _start_method",
        EVER,
        "derived",
        "They start by mpipc's Popen classes. _start_method: see above.",
    ),
    (
        "multiprocessing.process.BaseProcess",
        "_bootstrap _popen",
        EVER,
        "derived",
        "All that a child does. Around it, the child tells the family that it has come, and that it ends normally. Once"
        " there is a _popen, the process has been started, and end_with_parent is settled.",
    ),
    (
        "multiprocessing.process.BaseProcess",
        "_check_closed _popen _sentinel",
        EVER,
        "read",
        "What interrupt() of Python 3.14 does, for older ones; and a pool closes the descriptors of an ended worker.",
    ),
    (
        "multiprocessing.spawn",
        "_inheriting",
        EVER,
        "read",
        "Set on the process object of a child while it imports its `__main__`, when parent_process() is not known yet.",
    ),
    (
        "multiprocessing.popen_fork.Popen",
        "_send_signal",
        EVER,
        "read",
        "Sends a signal unless the child is known to have ended; for interrupt(), as above.",
    ),
    (
        "multiprocessing.popen_spawn_posix.Popen multiprocessing.popen_forkserver.Popen",
        "_launch",
        EVER,
        "derived",
        "Pickles the process object and starts the child. Around it, what the child gets is held for it.",
    ),
    (
        "multiprocessing.forkserver",
        "_forkserver",
        EVER,
        "read",
        "The one fork server: mpipc._stdlib.fork_server has it preload modules, and install itself.",
    ),
    (
        "multiprocessing.forkserver.ForkServer",
        "_preload_modules",
        EVER,
        "read",
        "The list of modules whose repr() is in the line of Python that the server is started with.",
    ),
    (
        "multiprocessing.forkserver.ForkServer",
        "_preload_on_error",
        "3.15-",
        "read",
        "Its set_forkserver_preload() knows `on_error`. Where it does not, mpipc._stdlib.preload does it.",
    ),
    # --- pools and executors
    (
        "multiprocessing.pool.Pool",
        "_cache _check_running _pool _state",
        EVER,
        "derived",
        "What the base's __repr__() and __enter__(), and the constructors of results, look at.",
    ),
    (
        "multiprocessing.pool.Pool",
        "_ctx _initargs _initializer _map_async _maxtasksperchild _processes _repopulate_pool _terminate",
        EVER,
        "derived",
        "The base's constructor is not called; whoever looks into a pool, as CPython's tests do, looks for these.",
    ),
    (
        "multiprocessing.pool.Pool",
        "_change_notifier _terminate_pool",
        EVER,
        "derived",
        "ThreadPool: the queue that wakes its manager thread, a pipe of ours; and its end, which waits for threads.",
    ),
    (
        "multiprocessing.pool.Pool",
        "_inqueue _outqueue _quick_put _result_handler _task_handler _taskqueue _worker_handler",
        EVER,
        "derived",
        "Programs put tasks for results of their own into _taskqueue, ask it how many are waiting, and look at the"
        " threads.",
    ),
    (
        "multiprocessing.pool.Pool",
        "_setup_queues",
        EVER,
        "sought",
        "Where a pool makes its two queues. A subclass that replaces it, as joblib's, wants to pickle in its own way.",
    ),
    (
        "multiprocessing.pool.Pool",
        "_state",
        EVER,
        "read",
        "Of the threads of a ThreadPool: set to TERMINATE, it ends the one that hands out tasks.",
    ),
    (
        "multiprocessing.pool.ApplyResult",
        "_cache _error_callback _event _job _pool _set",
        EVER,
        "derived",
        "Its state. The event is a Latch, callbacks are guarded, _abort() sets what nobody will set any more, and"
        " cancel() asks the pool, which it has until it is complete.",
    ),
    (
        "multiprocessing.pool.MapResult",
        "_number_left _pool _set _success _value",
        EVER,
        "derived",
        "Its state: how many chunks are to come, and what has come. Ours counts single items, without a list for each.",
    ),
    (
        "multiprocessing.pool.IMapIterator",
        "_cache _cond _index _items _job _length _pool _set_length _unsorted",
        EVER,
        "derived",
        "Its state. The condition has a lock that a broken wait does not give back, and _abort() ends the iteration.",
    ),
    (
        "multiprocessing.pool.IMapUnorderedIterator",
        "_index _pool _set",
        EVER,
        "derived",
        "How many have come. _set() is called for each; ours also sets the error of the user's iterator in its turn.",
    ),
    (
        "concurrent.futures.process.ProcessPoolExecutor",
        "_initargs _initializer _max_tasks_per_child _max_workers _mp_context _processes",
        EVER,
        "derived",
        "The base's constructor is not called; whoever looks into an executor, as CPython's tests do, looks for these.",
    ),
    (
        "concurrent.futures.process",
        "_SafeQueue",
        EVER,
        "sought",
        "The one class that the standard library derives from multiprocessing's queues; install() derives it anew.",
    ),
    (
        "threading",
        "_register_atexit",
        EVER,
        "read",
        "Runs a function before the threads are joined at exit. Handlers of atexit come too late: then no process or"
        " thread can be started any more, which finishing what was submitted may need.",
    ),
    (
        "threading._RLock",
        "_is_owned",
        EVER,
        "read",
        "Whether this thread has the lock: a finalizer that terminates a pool may run while its thread does.",
    ),
    # --- queues and pickling
    (
        "multiprocessing.queues.Queue",
        "_buffer _feed _notempty _opid _rlock _sem _start_thread _thread _wlock",
        EVER,
        "sought",
        "What multiprocessing's queues are made of and mpipc's are not: a pipe with locks, a semaphore, a feeder"
        " thread. A subclass that speaks of them is derived from multiprocessing's.",
    ),
    (
        "multiprocessing.reduction.ForkingPickler",
        "_extra_reducers",
        EVER,
        "read",
        "What programs have registered with ForkingPickler.register(), for queues, which use the C pickler directly.",
    ),
    (
        "multiprocessing.queues",
        "_ForkingPickler",
        EVER,
        "offered",
        "The pickler of the queues. Programs put another one there, which takes lambdas, say.",
    ),
    (
        "multiprocessing.connection",
        "_ForkingPickler",
        EVER,
        "read",
        "The pickler of connections, which is replaced where `multiprocess` is to be multiprocessing with dill.",
    ),
    # --- shared memory and managers
    (
        "multiprocessing.shared_memory",
        "_make_filename _SHM_NAME_PREFIX",
        EVER,
        "read",
        "Names of segments look as multiprocessing's do.",
    ),
    (
        "multiprocessing.shared_memory.SharedMemory",
        "_buf _flags _mmap _mode _name _size",
        EVER,
        "derived",
        "Its state, which the base's properties and close() use. The mapping is ours.",
    ),
    (
        "multiprocessing.shared_memory.SharedMemory",
        "_track",
        "3.13-",
        "derived",
        "What `track` was. Ours has `track`, and so the attribute, in all Pythons.",
    ),
    (
        "multiprocessing.sharedctypes.SynchronizedBase",
        "_lock _obj",
        EVER,
        "derived",
        "Its state: the ctypes object and the lock, which the base's methods use.",
    ),
    (
        "multiprocessing.managers",
        "_SharedMemoryTracker",
        EVER,
        "read",
        "The list of segments that a manager's server unlinks; ours unlinks mpipc's.",
    ),
    (
        "multiprocessing.managers.BaseManager",
        "_Client _address _authkey",
        EVER,
        "derived",
        "How its server is reached: a segment is made here and tracked there.",
    ),
    (
        "multiprocessing.managers.SharedMemoryManager",
        "_Server",
        EVER,
        "derived",
        "The class of its server.",
    ),
    (
        "threading.Barrier",
        "_action _timeout",
        EVER,
        "derived",
        "All methods are ours: the base is there for isinstance(). The same things have the same names.",
    ),
    (
        "multiprocessing.resource_sharer",
        "_resource_sharer",
        EVER,
        "read",
        "The thread that hands descriptors to who unpickles them: it hands out memory that goes through a pipe, too.",
    ),
    # --- what others look for
    (
        "multiprocessing.queues.Queue",
        "_closed _ignore_epipe _maxsize _on_queue_feeder_error _reader _writer",
        EVER,
        "offered",
        "concurrent.futures sets _ignore_epipe, and its subclass overrides what is told that an object cannot be"
        " pickled. Programs look at the ends, at the limit, and whether it is closed.",
    ),
    (
        "multiprocessing.queues.Queue",
        "_terminate_broken",
        "3.12-",
        "offered",
        "concurrent.futures calls it when its workers are gone. Nobody calls it where there is none.",
    ),
    (
        "multiprocessing.queues.Queue",
        "_buffer _joincancelled _opid _poll _recv_bytes _rlock _sem _send_bytes _thread _wlock",
        EVER,
        "offered",
        "Programs look whether something is still to be sent, and receive beside get(). See _queue/parts.py.",
    ),
    (
        "multiprocessing.queues.JoinableQueue",
        "_unfinished_tasks",
        EVER,
        "offered",
        "Its value tells how much is to be done.",
    ),
    (
        "multiprocessing.queues.SimpleQueue",
        "_poll _reader _rlock _wlock _writer",
        EVER,
        "offered",
        "concurrent.futures waits for _reader; programs look whether there is something.",
    ),
    (
        "multiprocessing.synchronize.SemLock",
        "_is_fork_ctx _semlock",
        EVER,
        "offered",
        "Who asks a lock for its name or value asks its _semlock, which is the lock. One that was made by a context of"
        " fork is not sent to a child of spawn.",
    ),
    (
        "multiprocessing.synchronize.Event",
        "_flag",
        EVER,
        "offered",
        "Its value tells whether it is set.",
    ),
    (
        "multiprocessing.synchronize.Condition",
        "_lock _sleeping_count _wait_semaphore _woken_count",
        EVER,
        "offered",
        "CPython's tests read how many wait from them.",
    ),
    (
        "multiprocessing.shared_memory",
        "_USE_POSIX",
        EVER,
        "offered",
        "CPython's tests ask it whether a name can be unlinked while the segment is in use.",
    ),
    # --- python -m mpipc run
    (
        "runpy",
        "_run_module_as_main",
        EVER,
        "read",
        "What `python -m` calls, and runs a folder or an archive with: in the `__main__` that is there.",
    ),
)

# --- contexts and processes -------------------------------------------------------------------------------------------

standard_default: Any = _context._default_context
"""The standard library's default context."""

CONTEXTS = "_concrete_contexts"
"""Name in multiprocessing.context: its contexts, by start method."""


def settled() -> Any:
    """The context that the standard library's default context has settled on, None if it has not."""
    return standard_default._actual_context


def settle(context: Any) -> None:
    """Set it, or with None, have it open again."""
    standard_default._actual_context = context


def fallback() -> Any:
    """The context that it settles on if nobody sets a start method."""
    return standard_default._default_context


def check_available(context: Any) -> None:
    """ValueError if this context cannot start processes here."""
    context._check_available()


def send_signal(process: Any, number: int) -> None:
    """Send a signal to a child, if it has not ended. ValueError if the process object is closed."""
    process._check_closed()
    process._popen._send_signal(number)


def popen_of(process: Any) -> Any:
    """The Popen object of a process; None before it is started, and of what is no process of multiprocessing's."""
    return getattr(process, "_popen", None)


def forget_sentinel(process: Any) -> None:
    """The descriptor is about to be closed, and its number will be somebody else's."""
    process.__dict__.pop("_sentinel", None)


def is_importing_main() -> bool:
    """Whether this process is a child that is importing its `__main__`."""
    importing: bool = getattr(_process.current_process(), "_inheriting", False)
    return importing


def fork_server() -> Any:
    """The fork server of this process."""
    return standard_module("forkserver")._forkserver


def preload_knows_on_error(server: Any) -> bool:
    """Whether the fork server's set_forkserver_preload() has `on_error`."""
    return hasattr(server, "_preload_on_error")


def preloaded(server: Any) -> list[str]:
    """The modules that the fork server will import when it is started."""
    modules: list[str] = server._preload_modules
    return modules


def set_preloaded(server: Any, modules: list[str]) -> None:
    """Set them. The repr() of the list is Python that the server runs."""
    server._preload_modules = modules


# --- pools and executors ----------------------------------------------------------------------------------------------

register_atexit: Callable[..., None] = threading._register_atexit  # type: ignore[attr-defined]
"""Have a function called at exit, before threads are joined."""

SAFE_QUEUE = "concurrent.futures.process", "_SafeQueue"
"""Module and name of the class that is derived from multiprocessing.queues.Queue."""

SETUP_QUEUES = "_setup_queues"
"""The method in which multiprocessing's pools make their two queues."""


def is_owned(lock: Any) -> bool:
    """Whether this thread has a threading.RLock."""
    owned: bool = lock._is_owned()
    return owned


def set_thread_state(thread: Any, state: str) -> None:
    """Tell a thread of a ThreadPool what the pool's state is."""
    thread._state = state


# --- queues and pickling ----------------------------------------------------------------------------------------------

QUEUE_INTERNALS = frozenset(
    ["_buffer", "_feed", "_notempty", "_opid", "_rlock", "_sem", "_start_thread", "_thread", "_wlock"]
)
"""What multiprocessing's queues are made of and mpipc's are not."""

ORIGINAL_PICKLER: Any = AbstractReducer.ForkingPickler
"""multiprocessing.reduction.ForkingPickler, as long as nobody has put another there."""

extra_reducers: dict[type, Any] = ORIGINAL_PICKLER._extra_reducers
"""The reducers registered with ForkingPickler, by type. It changes whenever one is registered."""


def set_connections_pickler(pickler: Any) -> None:
    """Have connections, and with them managers, pickle with this from now on."""
    standard_module("connection")._ForkingPickler = pickler  # type: ignore[attr-defined]


# --- shared memory and managers ---------------------------------------------------------------------------------------


def segment_names() -> tuple[Callable[[], str], str]:
    """The function that makes up a name for shared memory, and what such names begin with."""
    module: Any = standard_module("shared_memory")
    return module._make_filename, module._SHM_NAME_PREFIX


def segment_tracker() -> Any:
    """The class of what a SharedMemoryManager's server keeps its segments in."""
    return standard_module("managers")._SharedMemoryTracker


def resource_sharer() -> Any:
    """Its register(send, close) gives an identifier; get_connection(identifier), elsewhere, has send(connection, pid)
    called, then close(). Once: OSError, EOFError if who has registered it has gone."""
    return standard_module("resource_sharer")._resource_sharer


# --- python -m mpipc run ----------------------------------------------------------------------------------------------


def main_runner() -> Any:
    """The function that runs a module in the `__main__` that is there, as `python -m` does.

    Not one that calls it: its frame would be in the program's tracebacks.
    """
    import runpy

    return runpy._run_module_as_main  # type: ignore[attr-defined]

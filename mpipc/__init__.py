"""multiprocessing on System V IPC: `import mpipc as multiprocessing`.

The functions and classes here have the names that the running interpreter's multiprocessing has, found at import. They
are bound to a default context of mpipc's own: setting the start method of one package leaves the other's alone. Nothing
that talks to the kernel is loaded until the first lock, queue or array is made.
"""

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES

if sys.platform != "linux" or not os.path.isdir("/proc/sysvipc"):
    # Another platform, a kernel without System V IPC, or merely no /proc. The function that tells them apart is part of
    # a package that loads compiled modules, so it is not called where the answer is plain.
    from mpipc.sysv._platform import require_sysv_ipc

    require_sysv_ipc()
# Semaphore records, the counts of this process's handles, and much else are changed by one thread at a time because
# that holds the GIL. Asked here, since what is imported below would turn it on for the whole program, unless
# PYTHON_GIL=0 keeps it off.
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "mpipc needs the global interpreter lock, and this free-threaded Python runs without: start it with"
        " PYTHON_GIL=1 in the environment, or with -X gil=1."
    )
if not any(os.path.exists(os.path.join(__path__[0], "sysv", "msg" + suffix)) for suffix in EXTENSION_SUFFIXES):
    raise ImportError(
        f"mpipc in {__path__[0]} is not compiled for Python {sys.version_info[0]}.{sys.version_info[1]}:"
        " run `pip install .` in its source tree, or `make`."
    )

import multiprocessing

from mpipc import context
from mpipc import process as process
from mpipc import reduction as reduction
from mpipc._stdlib.install import install as install
from mpipc._stdlib.install import uninstall as uninstall
from mpipc.exceptions import BrokenPoolError as BrokenPoolError
from mpipc.exceptions import MemoryLimitError as MemoryLimitError
from mpipc.exceptions import ObjectsRemovedError as ObjectsRemovedError
from mpipc.exceptions import TaskTimeoutError as TaskTimeoutError
from mpipc.exceptions import WorkerLostError as WorkerLostError

__version__ = "0.1.0"

__all__ = [name for name in multiprocessing.__all__ if hasattr(context._default_context, name)]
globals().update((name, getattr(context._default_context, name)) for name in __all__)
Broadcast = context._default_context.Broadcast
RWLock = context._default_context.RWLock
WorkQueue = context._default_context.WorkQueue
with_pickler = context._default_context.with_pickler

SUBDEBUG: int = multiprocessing.SUBDEBUG  # type: ignore[attr-defined]
SUBWARNING: int = multiprocessing.SUBWARNING  # type: ignore[attr-defined]

_SUBMODULES = frozenset(
    [
        "arrays",
        "broadcast",
        "connection",
        "dummy",
        "executor",
        "forkserver",
        "heap",
        "log",
        "managers",
        "pool",
        "popen_fork",
        "popen_forkserver",
        "popen_spawn_posix",
        "queues",
        "resource_sharer",
        "resource_tracker",
        "shared_memory",
        "sharedctypes",
        "spawn",
        "synchronize",
        "util",
        "work_queue",
    ]
)
_OWN = frozenset(["arrays", "broadcast", "executor", "log", "work_queue"])
"""Those of which multiprocessing has none of that name."""


def __getattr__(name: str) -> object:
    """A submodule that nobody has imported yet, the executor, or what else is seldom wanted.

    With multiprocessing, `mp.connection.wait(...)` works without an import because `mp.Queue()` happened to import
    multiprocessing.connection; programs rely on that without knowing it.
    """
    if name in _SUBMODULES:
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    if name in ("ProcessPoolExecutor", "get_reusable_executor"):  # whose import costs as much as all the rest
        from mpipc import executor

        return getattr(executor, name)
    if name == "ShutDown":
        from mpipc._stdlib.shut_down import ShutDown

        return ShutDown
    if name == "worker_state":
        from mpipc._pool.state import worker_state

        return worker_state
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

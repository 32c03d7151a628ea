"""The API of mpipc with threads in the place of processes: multiprocessing.dummy, but for its pool."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mpipc._stdlib.standard import standard_module

if TYPE_CHECKING:
    from multiprocessing import dummy as _base
    from multiprocessing.dummy import Barrier as Barrier
    from multiprocessing.dummy import BoundedSemaphore as BoundedSemaphore
    from multiprocessing.dummy import Condition as Condition
    from multiprocessing.dummy import DummyProcess as DummyProcess
    from multiprocessing.dummy import Event as Event
    from multiprocessing.dummy import JoinableQueue as JoinableQueue
    from multiprocessing.dummy import Lock as Lock
    from multiprocessing.dummy import Namespace as Namespace
    from multiprocessing.dummy import Pipe as Pipe
    from multiprocessing.dummy import Process as Process
    from multiprocessing.dummy import Queue as Queue
    from multiprocessing.dummy import RLock as RLock
    from multiprocessing.dummy import Semaphore as Semaphore
    from multiprocessing.dummy import Value as Value
    from multiprocessing.dummy import active_children as active_children
    from multiprocessing.dummy import current_process as current_process
    from multiprocessing.dummy import freeze_support as freeze_support

    from mpipc.pool import ThreadPool
else:
    _base = standard_module("dummy")
    globals().update((name, getattr(_base, name)) for name in (*_base.__all__, "DummyProcess", "Namespace", "Value"))

__all__ = _base.__all__


def Manager() -> ModuleType:
    """Return this module, which has all that a manager offers."""
    return sys.modules[__name__]


def Pool(
    processes: int | None = None, initializer: Callable[..., object] | None = None, initargs: Iterable[Any] = ()
) -> ThreadPool:
    """Return a pool of threads."""
    from mpipc.pool import ThreadPool

    return ThreadPool(processes, initializer, initargs)


def __getattr__(name: str) -> Any:
    return getattr(_base, name)

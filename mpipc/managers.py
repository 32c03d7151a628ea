"""Managers: multiprocessing's, with a server that is a process of an mpipc context, mpipc's pools and shared memory.

A manager holds ordinary objects (a list, a threading.Lock, a queue.Queue) in a server process and talks to it over a
socket, from this machine or another. That needs no System V IPC and is inherited. A server that is killed closes its
connections: whoever waits for an answer gets EOFError or a ConnectionError.
"""

# SharedMemory and ShareableList are not the standard library's, on purpose.
# mypy: disable-error-code="override"

from __future__ import annotations

import threading
from collections.abc import Iterable
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from mpipc import pool, shared_memory
from mpipc._stdlib import private
from mpipc._stdlib.proxies import AcquirerProxy as AcquirerProxy
from mpipc._stdlib.proxies import DictProxy as DictProxy
from mpipc._stdlib.proxies import ListProxy as ListProxy
from mpipc._stdlib.proxies import SetProxy as SetProxy
from mpipc._stdlib.standard import standard_module
from mpipc._stdlib.start_method import default_context
from mpipc._stdlib.tying import tying

if TYPE_CHECKING:
    from multiprocessing import managers as _standard
    from multiprocessing.managers import BaseProxy as BaseProxy
    from multiprocessing.managers import Namespace as Namespace
    from multiprocessing.managers import RemoteError as RemoteError
    from multiprocessing.managers import Server as Server
    from multiprocessing.managers import Token as Token
    from multiprocessing.managers import ValueProxy as ValueProxy
else:
    _standard = standard_module("managers")
    BaseProxy, Namespace, RemoteError = _standard.BaseProxy, _standard.Namespace, _standard.RemoteError
    Server, Token, ValueProxy = _standard.Server, _standard.Token, _standard.ValueProxy

_base: Any = _standard  # its private names are unknown to type checkers

__all__ = ["BaseManager", "BaseProxy", "SharedMemoryManager", "SyncManager", "Token"]


class BaseManager(_standard.BaseManager):
    """multiprocessing.managers.BaseManager whose server, unless `ctx` is given, is started by mpipc's default context.

    `shutdown_timeout` is in seconds. With `end_with_parent`, which is mpipc's own, the server is ended (SIGKILL) when
    the process that has called start() is no longer there; by default it lives on then, as multiprocessing's does.
    TypeError for another package's `ctx`.
    """

    _address: Any
    _authkey: bytes
    _Client: Any

    def __init__(
        self,
        address: Any = None,
        authkey: bytes | None = None,
        serializer: str = "pickle",
        ctx: BaseContext | None = None,
        *,
        shutdown_timeout: float = 1.0,
        end_with_parent: bool = False,
    ) -> None:
        ctx = ctx or default_context()
        if end_with_parent:
            ctx = tying(ctx)
        # Not super(): the standard SharedMemoryManager starts a resource tracker, which mpipc's segments do not need.
        _base.BaseManager.__init__(
            self,
            address,
            authkey,
            serializer,
            ctx,
            shutdown_timeout=shutdown_timeout,
        )


class SyncManager(BaseManager, _standard.SyncManager):
    """multiprocessing.managers.SyncManager, which offers the same types; its Pool is mpipc's."""


SyncManager.register("Pool", pool.Pool, _base.PoolProxy)
# What the running interpreter's manager lacks: it registers from Python 3.14 on what is registered here.
SyncManager.register("list", list, ListProxy)
SyncManager.register("dict", dict, DictProxy)
SyncManager.register("set", set, SetProxy)
for _name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore"):
    SyncManager.register(_name, getattr(threading, _name), AcquirerProxy)


class _SharedMemoryTracker(private.segment_tracker()):  # type: ignore[misc]
    """The names of the segments that a manager's server has to unlink."""

    def destroy_segment(self, segment_name: str) -> None:
        """Unlink the segment and forget its name."""
        self.segment_names.remove(segment_name)
        segment = shared_memory.SharedMemory(segment_name)
        segment.close()
        segment.unlink()


class SharedMemoryServer(_standard.SharedMemoryServer):
    """The server of a SharedMemoryManager; it unlinks what it tracks when it is shut down."""

    shared_memory_context: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        standard = self.shared_memory_context
        self.shared_memory_context = _SharedMemoryTracker(standard.shared_memory_context_name, [])
        # All trackers of the standard library share one list, and unlink what it names when they are deleted.
        standard.segment_names = []


class SharedMemoryManager(BaseManager, _standard.SharedMemoryManager):
    """multiprocessing.managers.SharedMemoryManager for mpipc.shared_memory.

    The segments are unlinked when the manager is shut down.
    """

    _Server = SharedMemoryServer

    def SharedMemory(self, size: int) -> shared_memory.SharedMemory:
        """Return a new segment of `size` bytes, tracked by the manager."""
        segment = shared_memory.SharedMemory(None, create=True, size=size)
        self._track(segment)
        return segment

    def ShareableList(self, sequence: Iterable[Any] | None) -> shared_memory.ShareableList[Any]:
        """Return a new list in shared memory with the items of `sequence`, tracked by the manager."""
        shareable = shared_memory.ShareableList(sequence)
        self._track(shareable.shm)
        return shareable

    def _track(self, segment: shared_memory.SharedMemory) -> None:
        try:
            with self._Client(self._address, authkey=self._authkey) as connection:
                _base.dispatch(connection, None, "track_segment", (segment.name,))
        except BaseException:
            segment.close()
            segment.unlink()
            raise


def __getattr__(name: str) -> Any:
    return getattr(_base, name)

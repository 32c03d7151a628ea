"""What the tests of RWLock share: processes that have the lock, or wait for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from mpipc import _core as family
from support.waiting import wait_until

LIMIT = 60
"""Seconds in which a test hangs."""


class HandlerError(Exception):
    pass


def start(ctx: Any, target: Callable[..., Any], *args: Any) -> Any:
    process = ctx.Process(target=target, args=args)
    process.start()
    return process


def finish(*children: Any, exitcode: int = 0) -> None:
    for child in children:
        child.join(LIMIT)
        assert child.exitcode == exitcode


def kill(*children: Any) -> None:
    for child in children:
        child.kill()
    finish(*children, exitcode=-signal.SIGKILL)


def gone(child: Any) -> None:
    """Returns when recovery has dealt with it."""
    wait_until(lambda: child.pid not in [pid for _, _, pid in family.current().processes()], timeout=LIMIT)


def statistics_become(lock: Any, readers: int, writer: int | None, waiting_readers: int, waiting_writers: int) -> None:
    wanted = (readers, writer, waiting_readers, waiting_writers)
    wait_until(lambda: lock.statistics() == wanted, timeout=LIMIT, message=f"{wanted}, not {lock.statistics()}")


def in_thread(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises in another thread."""
    results: list[Any] = []

    def body() -> None:
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(LIMIT)
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def free(lock: Any) -> bool:
    return bool(lock.statistics() == (0, None, 0, 0))


def acquire(lock: Any, kind: str, *args: Any) -> bool:
    return bool(lock.acquire_read(*args) if kind == "read" else lock.acquire_write(*args))


def hold(lock: Any, kind: str, timeout: float) -> Any:
    return lock.reading(timeout) if kind == "read" else lock.writing(timeout=timeout)


def release(lock: Any, kind: str) -> None:
    lock.release_read() if kind == "read" else lock.release_write()


def hold_until(lock: Any, kind: str, has: Any, go: Any) -> None:
    assert acquire(lock, kind, True, LIMIT)
    has.set()
    assert go.wait(LIMIT)
    release(lock, kind)


class Holder:
    """A process that has acquired the lock, or waits for it."""

    def __init__(self, ctx: Any, lock: Any, kind: str) -> None:
        self.has, self.go = ctx.Event(), ctx.Event()
        self.process = start(ctx, hold_until, lock, kind, self.has, self.go)

    def is_in(self) -> Holder:
        assert self.has.wait(LIMIT)
        return self

    def leave(self) -> None:
        self.go.set()
        finish(self.process)

    def kill(self) -> None:
        kill(self.process)

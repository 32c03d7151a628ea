"""What several modules of cases need."""

from __future__ import annotations

import atexit
import importlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from crew import together
from harness import Operation, Prepare

PACKAGES = ("mpipc", "multiprocessing")


def context(package: str) -> Any:
    """`get_context("fork")` of the package: how processes start is not what is measured, and fork is the quickest."""
    return importlib.import_module(package).get_context("fork")


def on_packages(prepare: Callable[[Any], Operation], *packages: str) -> dict[str, Prepare]:
    """The same for mpipc and multiprocessing, or other packages with a context of the same kind."""
    return {package: partial(_prepared, prepare, package) for package in packages or PACKAGES}


def _prepared(prepare: Callable[[Any], Operation], package: str) -> Operation:
    return prepare(context(package))  # imports it, which is for the process of the contestant to do


def repeated(body: Callable[[], object]) -> Operation:
    """An operation that is one call."""

    def run(count: int) -> None:
        for _ in range(count):
            body()

    return Operation(run)


def wake_by_semaphores(ctx: Any, alive: Any = None) -> Operation:
    """Two processes wake each other, there and back, while other objects are `alive`."""
    ping, pong = ctx.Semaphore(0), ctx.Semaphore(0)

    def first(count: int, alive: Any = alive) -> None:
        for _ in range(count):
            ping.release()
            pong.acquire()

    def second(count: int) -> None:
        for _ in range(count):
            ping.acquire()
            pong.release()

    return together(ctx, [first, second])


SMALL_DICT: dict[str, Any] = {"index": 12345, "name": "measurement", "value": 0.125, "final": False}
"""The message of the queue cases; pickled with protocol 5 it has about 75 bytes."""

HOUR = 3600.0
"""Time limit for peers that have a short one unless told otherwise: none is to give up."""


def remove_at_exit(remove: Callable[[], None]) -> None:
    """Removes a kernel object at the end of this process, however that comes; forked ones leave it alone."""
    pid = os.getpid()
    atexit.register(lambda: remove() if os.getpid() == pid else None)

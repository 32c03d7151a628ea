"""Many objects at a time: what making 10 to 10,000 costs, and what an operation costs with so many alive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from harness import Case, Operation, Prepare

from . import CASES
from .common import SMALL_DICT, context, wake_by_semaphores

COUNTS = (10, 100, 1_000, 10_000)

MAKERS: dict[str, Callable[[Any], Any]] = {
    "Lock": lambda ctx: ctx.Lock(),
    "Queue": lambda ctx: ctx.Queue(),
    "Value": lambda ctx: ctx.Value("q", 0),
}


def making(package: str, kind: str, number: int) -> Operation:
    """So many at a time, and dropping them all; timed is one."""
    ctx, make = context(package), MAKERS[kind]

    def run(count: int) -> None:
        for _ in range(count // number):
            alive = [make(ctx) for _ in range(number)]
            del alive

    return Operation(run, step=number)


def alive(package: str, kind: str, number: int) -> tuple[Any, list[Any]]:
    ctx = context(package)
    return ctx, [MAKERS[kind](ctx) for _ in range(number)]


def one_lock(package: str, number: int) -> Operation:
    """The one in the middle."""
    _, objects = alive(package, "Lock", number)
    lock = objects[number // 2]

    def run(count: int, objects: Any = objects, acquire: Any = lock.acquire, release: Any = lock.release) -> None:
        for _ in range(count):
            acquire()
            release()

    return Operation(run)


def each_lock(package: str, number: int) -> Operation:
    """All of them, one after the other; with many, the time that it takes to get them from memory counts."""
    _, objects = alive(package, "Lock", number)

    def run(count: int) -> None:
        done = 0
        while done < count:
            part = objects[: count - done]
            for lock in part:
                lock.acquire()
                lock.release()
            done += len(part)

    return Operation(run)


def one_queue(package: str, number: int) -> Operation:
    _, objects = alive(package, "Queue", number)
    queue = objects[number // 2]

    def run(count: int, objects: Any = objects, put: Any = queue.put, get: Any = queue.get) -> None:
        for _ in range(count):
            put(SMALL_DICT)
            get()

    return Operation(run)


def one_value(package: str, number: int) -> Operation:
    _, objects = alive(package, "Value", number)
    value = objects[number // 2]

    def run(count: int, objects: Any = objects) -> None:
        for _ in range(count):
            with value.get_lock():
                value.value += 1

    return Operation(run)


def wake_up(package: str, number: int) -> Operation:
    """Two processes wake each other by two semaphores, which takes the kernel, while so many locks are alive."""
    ctx, objects = alive(package, "Lock", number)
    return wake_by_semaphores(ctx, objects)


def label(package: str, number: int) -> str:
    return f"{package}, {number:,} alive"


for kind in MAKERS:
    for number in COUNTS:
        CASES.add(
            Case(
                f"objects/make-{kind}-{number}",
                f"make and drop {number:,} {kind}s (one)",
                {package: partial(making, package, kind, number) for package in ("mpipc", "multiprocessing")},
                speed=0.5,
            )
        )

OPERATIONS: dict[str, tuple[str, Callable[[str, int], Operation]]] = {
    "one-lock": ("Lock: acquire and release of one of many", one_lock),
    "each-lock": ("Lock: acquire and release of each in turn", each_lock),
    "wake-up": ("Semaphore: release to acquire, there and back, with many locks", wake_up),
    "one-queue": ("Queue: put and get of one of many", one_queue),
    "one-value": ("Value: += 1 under its lock, of one of many", one_value),
}

for key, (title, operation) in OPERATIONS.items():
    contestants: dict[str, Prepare] = {
        label(package, number): partial(operation, package, number)
        for package in ("mpipc", "multiprocessing")
        for number in COUNTS
    }
    CASES.add(Case(f"objects/{key}", title, contestants, speed=0.5))

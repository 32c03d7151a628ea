"""Lock, RLock and Semaphore, alone and fought over; a Value incremented under its lock; an Event without a waiter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import native
from crew import shared
from harness import Case, Operation, Prepare

from . import CASES
from .common import context, on_packages, remove_at_exit


def acquire_release(acquire: Callable[[], object], release: Callable[[], object]) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            acquire()
            release()

    return run


def alone_or_shared(ctx: Any, part: Callable[[int], None], processes: int) -> Operation:
    return Operation(part) if processes == 1 else shared(ctx, part, processes)


def of_class(name: str, processes: int) -> Callable[[Any], Operation]:
    def prepare(ctx: Any) -> Operation:
        lock = getattr(ctx, name)()
        return alone_or_shared(ctx, acquire_release(lock.acquire, lock.release), processes)

    return prepare


def sysv_ipc(processes: int) -> Operation:
    import sysv_ipc

    semaphore = sysv_ipc.Semaphore(None, sysv_ipc.IPC_CREX, initial_value=1)
    semaphore.undo = True  # otherwise a killed holder would hold it for ever
    remove_at_exit(semaphore.remove)
    return alone_or_shared(context("multiprocessing"), acquire_release(semaphore.acquire, semaphore.release), processes)


def posix_ipc(processes: int) -> Operation:
    import posix_ipc

    semaphore = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=1)
    semaphore.unlink()
    return alone_or_shared(context("multiprocessing"), acquire_release(semaphore.acquire, semaphore.release), processes)


def increment(processes: int) -> Callable[[Any], Operation]:
    def prepare(ctx: Any) -> Operation:
        value = ctx.Value("q", 0)

        def part(count: int) -> None:
            for _ in range(count):
                with value.get_lock():
                    value.value += 1

        return alone_or_shared(ctx, part, processes)

    return prepare


def event(ctx: Any) -> Operation:
    flag = ctx.Event()

    def run(count: int) -> None:
        for _ in range(count):
            flag.set()
            flag.wait()
            flag.clear()

    return Operation(run)


for processes in (1, 2, 4, 8):
    where = "uncontended" if processes == 1 else f"{processes} processes"
    for name in ("Lock", "RLock", "Semaphore"):
        contestants: dict[str, Prepare] = on_packages(of_class(name, processes))
        if name != "RLock":
            contestants["sysv_ipc"] = partial(sysv_ipc, processes)
            contestants["posix_ipc"] = partial(posix_ipc, processes)
            contestants["C, sem_t"] = partial(native.operation, "locks", "posix", processes, step=processes)
        if name == "Lock":
            for label, kind in (("C, robust mutex", "robust"), ("C, semop with SEM_UNDO", "semop")):
                contestants[label] = partial(native.operation, "locks", kind, processes, step=processes)
        CASES.add(
            Case(
                f"locks/{name}-{processes}",
                f"{name}: acquire and release, {where}",
                contestants,
                quick=name == "Lock" and processes in (1, 4),
            )
        )

for processes in (1, 2):
    CASES.add(
        Case(
            f"locks/Value-{processes}",
            f"Value: += 1 under its lock, {'uncontended' if processes == 1 else f'{processes} processes'}",
            {
                **on_packages(increment(processes)),
                "C, sem_t": partial(native.operation, "locks", "posix-increment", processes, step=processes),
            },
            quick=processes == 1,
        )
    )

CASES.add(Case("locks/Event-alone", "Event: set, wait and clear, nobody waiting", on_packages(event)))

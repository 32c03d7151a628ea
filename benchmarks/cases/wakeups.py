"""One process wakes another: by a Semaphore, an Event, a Condition, a Barrier."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import native
from crew import together
from harness import Case, Operation

from . import CASES
from .common import on_packages, wake_by_semaphores


def event(ctx: Any) -> Operation:
    ping, pong = ctx.Event(), ctx.Event()

    def first(count: int) -> None:
        for _ in range(count):
            ping.set()
            pong.wait()
            pong.clear()

    def second(count: int) -> None:
        for _ in range(count):
            ping.wait()
            ping.clear()
            pong.set()

    return together(ctx, [first, second])


def condition(ctx: Any) -> Operation:
    """The turn is passed on under the condition's lock, and the other one waits for it."""
    changed = ctx.Condition()
    turn = ctx.RawValue("i", 0)

    def part(mine: int) -> Callable[[int], None]:
        def run(count: int) -> None:
            for _ in range(count):
                with changed:
                    while turn.value != mine:
                        changed.wait()
                    turn.value = 1 - mine
                    changed.notify()

        return run

    return together(ctx, [part(0), part(1)])


def barrier(processes: int) -> Callable[[Any], Operation]:
    def prepare(ctx: Any) -> Operation:
        gate = ctx.Barrier(processes)

        def part(count: int) -> None:
            for _ in range(count):
                gate.wait()

        return together(ctx, [part] * processes)

    return prepare


CASES.add(
    Case(
        "wakeups/semaphore",
        "Semaphore: release to acquire, there and back",
        {
            **on_packages(wake_by_semaphores),
            "C, sem_t": partial(native.operation, "wakeups", "semaphore", 2),
            "C, semop": partial(native.operation, "wakeups", "semop", 2),
        },
        quick=True,
    )
)
CASES.add(Case("wakeups/event", "Event: set to wait, there and back, with clear", on_packages(event), quick=True))
CASES.add(
    Case(
        "wakeups/condition",
        "Condition: notify to wait, there and back",
        {**on_packages(condition), "C, pthread_cond_t": partial(native.operation, "wakeups", "condition", 2)},
    )
)
for processes in (2, 4, 8):
    CASES.add(
        Case(
            f"wakeups/barrier-{processes}",
            f"Barrier: {processes} processes pass it",
            {
                **on_packages(barrier(processes)),
                "C, pthread_barrier_t": partial(native.operation, "wakeups", "barrier", processes),
            },
        )
    )

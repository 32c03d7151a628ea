"""A message for each of some processes: one Broadcast, or a queue for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from crew import together
from harness import Case, Operation

from . import CASES
from .common import SMALL_DICT, context

SUBSCRIBERS = 4


def to_each(ctx: Any, put: Callable[[], object], gets: list[Callable[[], object]]) -> Operation:
    """One operation is a message that all of them get."""

    def repeating(call: Callable[[], object]) -> Callable[[int], None]:
        def run(count: int) -> None:
            for _ in range(count):
                call()

        return run

    return together(ctx, [repeating(call) for call in (put, *gets)])


def broadcast() -> Operation:
    ctx = context("mpipc")
    channel = ctx.Broadcast()
    subscriptions = [channel.subscribe() for _ in range(SUBSCRIBERS)]
    return to_each(ctx, partial(channel.put, SMALL_DICT), [subscription.get for subscription in subscriptions])


def queues(package: str) -> Operation:
    ctx = context(package)
    made = [ctx.Queue() for _ in range(SUBSCRIBERS)]

    def put() -> None:
        for queue in made:
            queue.put(SMALL_DICT)

    return to_each(ctx, put, [queue.get for queue in made])


CASES.add(
    Case(
        f"broadcasts/{SUBSCRIBERS}",
        f"A small dict to each of {SUBSCRIBERS} processes: a Broadcast, or a queue for each",
        {
            "mpipc": broadcast,
            "mpipc queues": partial(queues, "mpipc"),
            "multiprocessing": partial(queues, "multiprocessing"),
        },
        shared_count=True,
    )
)

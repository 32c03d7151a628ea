"""Many small dicts through one queue, from some processes to others: faster-fifo's table.

All queues as they are made without arguments. Each producer puts its share and each consumer takes its share; everybody
has the same number of messages, so that nobody's queue has more to hold than another's.
"""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import native
from crew import stream
from harness import Case, Operation, Prepare

from . import CASES
from .common import HOUR, SMALL_DICT, context, on_packages, repeated
from .queues import PICKLED, added, posix_ipc, queue, sysv_ipc, timed

CONFIGURATIONS = ((1, 1), (1, 10), (10, 1), (3, 20), (20, 3), (20, 20))
BATCH = 100


def single(ctx: Any, put: Any, get: Any, producers: int, consumers: int) -> Operation:
    def putting(count: int) -> None:
        for _ in range(count):
            put(SMALL_DICT)

    def getting(count: int) -> None:
        for _ in range(count):
            get()

    return stream(ctx, putting, getting, producers, consumers)


def default_queue(producers: int, consumers: int, ctx: Any) -> Operation:
    return single(ctx, *queue(ctx), producers, consumers)


def batches(ctx: Any, put: Any, get_many: Any, producers: int, consumers: int, put_many: Any = None) -> Operation:
    """get_many(n) of up to BATCH messages; put_many() of BATCH, if that is given."""
    batch = [SMALL_DICT] * BATCH

    def putting(count: int) -> None:
        if put_many is None:
            for _ in range(count):
                put(SMALL_DICT)
        else:
            for _ in range(count // BATCH):
                put_many(batch)

    def getting(count: int) -> None:
        while count:
            count -= len(get_many(min(count, BATCH)))

    return stream(ctx, putting, getting, producers, consumers, chunk=BATCH if put_many else 1)


def mpipc_many(producers: int, consumers: int, put_many: bool) -> Operation:
    ctx = context("mpipc")
    made = ctx.Queue()
    return batches(ctx, made.put, made.get_many, producers, consumers, made.put_many if put_many else None)


def faster_fifo(producers: int, consumers: int) -> Operation:
    import faster_fifo

    made = faster_fifo.Queue()
    return single(
        context("multiprocessing"),
        lambda message: made.put(message, timeout=HOUR),
        lambda: made.get(timeout=HOUR),
        producers,
        consumers,
    )


def faster_fifo_many(producers: int, consumers: int, put_many: bool) -> Operation:
    import faster_fifo

    made = faster_fifo.Queue()
    return batches(
        context("multiprocessing"),
        lambda message: made.put(message, timeout=HOUR),
        lambda most: made.get_many(timeout=HOUR, max_messages_to_get=most),
        producers,
        consumers,
        (lambda messages: made.put_many(messages, timeout=HOUR)) if put_many else None,
    )


def floor(pickling: Operation) -> Operation:
    """The stream of System V messages between two C programs, and then pickle's work for as many messages."""
    return added(native.operation("queues", "stream", len(PICKLED), 1, 1), timed(pickling))


def floor_both() -> Operation:
    return floor(repeated(lambda: pickle.loads(pickle.dumps(SMALL_DICT, 5))))


def floor_overlapped() -> Operation:
    """dumps() and loads() happen in two processes at a time: only the slower of the two, which is loads()."""
    return floor(repeated(lambda: pickle.loads(PICKLED)))


for producers, consumers in CONFIGURATIONS:
    contestants: dict[str, Prepare] = {
        **on_packages(partial(default_queue, producers, consumers)),
        "faster-fifo": partial(faster_fifo, producers, consumers),
        "mpipc get_many": partial(mpipc_many, producers, consumers, put_many=False),
        "faster-fifo get_many": partial(faster_fifo_many, producers, consumers, put_many=False),
    }
    if (producers, consumers) == (1, 1):
        contestants["sysv_ipc + pickle"] = lambda: single(context("multiprocessing"), *sysv_ipc(), 1, 1)
        contestants["posix_ipc + pickle"] = lambda: single(context("multiprocessing"), *posix_ipc(), 1, 1)
        contestants["C + pickle"] = floor_both
        contestants["C + loads alone"] = floor_overlapped
    CASES.add(
        Case(
            f"streams/{producers}-{consumers}",
            f"Queue: stream of small dicts, {producers} to {consumers}",
            contestants,
            shared_count=True,
            quick=(producers, consumers) == (1, 1),
        )
    )

for producers, consumers in ((1, 1), (20, 3)):
    CASES.add(
        Case(
            f"streams/many-{producers}-{consumers}",
            f"Queue: put_many and get_many of {BATCH} small dicts (one message), {producers} to {consumers}",
            {
                "mpipc": partial(mpipc_many, producers, consumers, put_many=True),
                "faster-fifo": partial(faster_fifo_many, producers, consumers, put_many=True),
            },
            shared_count=True,
        )
    )

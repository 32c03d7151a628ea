"""Large messages through a queue from one process to another, as bytes and as numpy arrays.

At most four are under way: the queues are bounded, faster-fifo's by bytes, the others' by maxsize. That is how one
sends large objects, and shows the steady state, in which memory has been touched before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from crew import stream
from harness import Case, Operation

from . import CASES
from .common import HOUR, context, on_packages

SIZES = {"1 KB": 1 << 10, "64 KB": 1 << 16, "1 MB": 1 << 20, "16 MB": 1 << 24}
UNDER_WAY = 4


def make_bytes(size: int) -> Any:
    return bytes(size)


def make_array(size: int) -> Any:
    import numpy

    return numpy.ones(size // 8)


def send(ctx: Any, put: Callable[[Any], object], get: Callable[[], Any], message: Any) -> Operation:
    def putting(count: int) -> None:
        for _ in range(count):
            put(message)

    def getting(count: int) -> None:
        for _ in range(count):
            received = get()
            if len(received) != len(message):
                raise ValueError("not what was sent")

    return stream(ctx, putting, getting, 1, 1)


def queue(make: Callable[[int], Any], size: int, ctx: Any) -> Operation:
    made = ctx.Queue(UNDER_WAY)
    return send(ctx, made.put, made.get, make(size))


def faster_fifo(make: Callable[[int], Any], size: int) -> Operation:
    import faster_fifo

    made = faster_fifo.Queue(UNDER_WAY * (size + 1024))
    return send(
        context("multiprocessing"),
        lambda message: made.put(message, timeout=HOUR),
        lambda: made.get(timeout=HOUR),
        make(size),
    )


for kind, make in (("bytes", make_bytes), ("array", make_array)):
    for text, size in SIZES.items():
        CASES.add(
            Case(
                f"messages/{kind}-{text.replace(' ', '')}",
                f"Queue: {text} as {'bytes' if kind == 'bytes' else 'a numpy array'}, one to one",
                {
                    **on_packages(partial(queue, make, size)),
                    "faster-fifo": partial(faster_fifo, make, size),
                },
                amount=size,
                quick=(kind, text) == ("array", "1 MB"),
            )
        )

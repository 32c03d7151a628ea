"""Memory that travels by reference, and ordinary arrays: a new one for each message, and at most four under way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from crew import stream
from harness import Case, Operation, Prepare

from . import CASES
from .common import SMALL_DICT, context, repeated

MB = 1 << 20
UNDER_WAY = 4


def sent(package: str, make: Callable[[], Any], use: Callable[[Any], object], **options: Any) -> Operation:
    ctx = context(package)
    queue = ctx.Queue(UNDER_WAY, **options)

    def putting(count: int) -> None:
        for _ in range(count):
            queue.put(make())

    def getting(count: int) -> None:
        for _ in range(count):
            use(queue.get())

    return warmed(stream(ctx, putting, getting, 1, 1))


def warmed(operation: Operation, count: int = 2 * UNDER_WAY) -> Operation:
    """The steady state: memory has been touched before, and how often to repeat is not told by the first time."""
    operation.run(count)
    return operation


def ignore(array: Any) -> None:
    pass


def shared(size: int, fill: bool) -> Callable[[], Any]:
    from mpipc import arrays

    def make() -> Any:
        array = arrays.empty(size // 8)
        if fill:
            array.fill(1.0)
        return array

    return make


def ordinary(size: int, fill: bool) -> Callable[[], Any]:
    import numpy

    def make() -> Any:
        array = numpy.empty(size // 8)
        if fill:
            array.fill(1.0)
        return array

    return make


def summed(array: Any) -> None:
    if array.sum() != array.size:
        raise ValueError("not what was sent")


CASES.add(
    Case(
        "arrays/new-64MB",
        "A new array of 64 MB for each message, filled by the sender and summed by the receiver",
        {
            "mpipc.arrays": lambda: sent("mpipc", shared(64 * MB, True), summed),
            "mpipc": lambda: sent("mpipc", ordinary(64 * MB, True), summed),
            "multiprocessing": lambda: sent("multiprocessing", ordinary(64 * MB, True), summed),
        },
        amount=64 * MB,
    )
)
CASES.add(
    Case(
        "arrays/by-reference",
        "A new array of mpipc.arrays for each message, which nobody reads or writes; a small message beside it",
        {
            "64 MB": lambda: sent("mpipc", shared(64 * MB, False), ignore),
            "64 KB": lambda: sent("mpipc", shared(64 << 10, False), ignore),
            "small dict": lambda: sent("mpipc", lambda: SMALL_DICT, ignore),
        },
    )
)


def one_process(make: Callable[[], Any]) -> Operation:
    queue = context("mpipc").Queue()

    def there_and_back() -> None:
        queue.put(make())
        queue.get()

    return warmed(repeated(there_and_back))


CASES.add(
    Case(
        "arrays/put-and-get",
        "The same in one process: made, put, got, dropped",
        {
            "64 MB": lambda: one_process(shared(64 * MB, False)),
            "64 KB": lambda: one_process(shared(64 << 10, False)),
            "small dict": lambda: one_process(lambda: SMALL_DICT),
        },
    )
)


def same(size: int) -> Callable[[], Any]:
    array = ordinary(size, True)()
    return lambda: array


def copies(size: int, count: int) -> Operation:
    import numpy

    source = ordinary(size, True)()
    targets = [numpy.ones(size // 8) for _ in range(count)]

    def run() -> None:
        for target in targets:
            target[:] = source

    return repeated(run)


for size in (1, 16):
    CASES.add(
        Case(
            f"arrays/ordinary-{size}MB",
            f"An ordinary array of {size} MB, the same for each message",
            {
                "mpipc": partial(lambda size: sent("mpipc", same(size * MB), ignore), size),
                "mpipc copy=False": partial(lambda size: sent("mpipc", same(size * MB), ignore, copy=False), size),
                "multiprocessing": partial(lambda size: sent("multiprocessing", same(size * MB), ignore), size),
                "one memcpy": partial(copies, size * MB, 1),
                "two memcpy": partial(copies, size * MB, 2),
            },
            amount=size * MB,
            quick=size == 1,
        )
    )


def total(array: Any) -> float:
    return float(array.sum())


def mapped(package: str, make: Callable[[], Any]) -> Operation:
    ctx = context(package)
    made = [make() for _ in range(100)]
    pool = ctx.Pool(2)

    def run() -> None:
        if sum(pool.map(total, made)) != 100 * made[0].size:
            raise ValueError("not what was sent")

    return warmed(Operation(repeated(run).run, close=pool.terminate), 1)


maps: dict[str, Prepare] = {
    "mpipc.arrays": lambda: mapped("mpipc", shared(8 * MB, True)),
    "mpipc": lambda: mapped("mpipc", ordinary(8 * MB, True)),
    "multiprocessing": lambda: mapped("multiprocessing", ordinary(8 * MB, True)),
}
CASES.add(Case("arrays/map", "Pool.map of sum() over 100 arrays of 8 MB, 2 workers", maps))

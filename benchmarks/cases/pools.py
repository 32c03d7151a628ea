"""Pools of two workers: starting one, one task at a time, and many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import native
from harness import Case, Operation, Prepare

from . import CASES
from .common import context, on_packages, repeated

WORKERS = 2


def trivial(number: int) -> int:
    """The task: what is measured is everything else."""
    return number


# ---- the pools and executors -----------------------------------------------------------------------------------------


def warmed_up(run: Callable[[int], None], close: Callable[[], None]) -> Operation:
    """With the workers there: the executors start them for the first tasks."""
    run(4 * WORKERS)
    return Operation(run, close=close)


def pool_operation(use: Callable[[Any], Callable[[int], None]]) -> Callable[[Any], Operation]:
    def prepare(ctx: Any) -> Operation:
        pool = ctx.Pool(WORKERS)

        def close() -> None:
            pool.close()
            pool.join()

        return warmed_up(use(pool), close)

    return prepare


def concurrent_futures() -> Any:
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(WORKERS, mp_context=context("multiprocessing"))


def mpipc_executor() -> Any:
    import mpipc

    return mpipc.ProcessPoolExecutor(WORKERS, mp_context=context("mpipc"))


def loky() -> Any:
    import loky

    return loky.ProcessPoolExecutor(WORKERS)


def pebble() -> Any:
    import pebble

    return pebble.ProcessPool(max_workers=WORKERS, context=context("multiprocessing"))


def end_pebble(pool: Any) -> None:
    pool.close()
    pool.join()


def executor_operation(make: Callable[[], Any], use: Callable[[Any], Callable[[int], None]]) -> Prepare:
    def prepare() -> Operation:
        executor = make()
        return warmed_up(use(executor), executor.shutdown)

    return prepare


def pebble_operation(use: Callable[[Any], Callable[[int], None]]) -> Prepare:
    def prepare() -> Operation:
        pool = pebble()
        return warmed_up(use(pool), lambda: end_pebble(pool))

    return prepare


# ---- what is done with them ------------------------------------------------------------------------------------------


def start_pool(ctx: Any) -> Operation:
    def body() -> None:
        pool = ctx.Pool(WORKERS)
        pool.apply(trivial, (0,))
        pool.close()
        pool.join()

    return repeated(body)


def start_executor(make: Callable[[], Any]) -> Operation:
    def body() -> None:
        with make() as executor:
            executor.submit(trivial, 0).result()

    return repeated(body)


def start_pebble() -> Operation:
    def body() -> None:
        pool = pebble()
        pool.schedule(trivial, (0,)).result()
        end_pebble(pool)

    return repeated(body)


def apply(pool: Any) -> Callable[[int], None]:
    def run(count: int) -> None:
        for number in range(count):
            pool.apply(trivial, (number,))

    return run


def submit(executor: Any) -> Callable[[int], None]:
    def run(count: int) -> None:
        for number in range(count):
            executor.submit(trivial, number).result()

    return run


def schedule(pool: Any) -> Callable[[int], None]:
    def run(count: int) -> None:
        for number in range(count):
            pool.schedule(trivial, (number,)).result()

    return run


def checked(results: Any, count: int) -> None:
    if sum(1 for _ in results) != count:
        raise ValueError("results are missing")


def chunk_for(count: int) -> int:
    """What multiprocessing's map() takes by itself: four chunks a worker."""
    return max(1, -(-count // (WORKERS * 4)))


def mapping(chunksize: int | None) -> Callable[[Any], Callable[[int], None]]:
    """map() of multiprocessing's kind; None: its own choice."""
    return lambda pool: lambda count: checked(pool.map(trivial, range(count), chunksize), count)


def executor_mapping(chunksize: int | None) -> Callable[[Any], Callable[[int], None]]:
    """map() of concurrent.futures' kind, whose own choice is always 1: it is told multiprocessing's."""
    return lambda executor: (
        lambda count: checked(executor.map(trivial, range(count), chunksize=chunksize or chunk_for(count)), count)
    )


def pebble_mapping(chunksize: int | None) -> Callable[[Any], Callable[[int], None]]:
    return lambda pool: (
        lambda count: checked(pool.map(trivial, range(count), chunksize=chunksize or chunk_for(count)).result(), count)
    )


def unordered(pool: Any) -> Callable[[int], None]:
    return lambda count: checked(pool.imap_unordered(trivial, range(count)), count)


def as_completed(executor: Any) -> Callable[[int], None]:
    from concurrent.futures import as_completed

    return lambda count: checked(as_completed([executor.submit(trivial, number) for number in range(count)]), count)


def everyone(
    on_pool: Callable[[Any], Callable[[int], None]],
    on_executor: Callable[[Any], Callable[[int], None]],
    on_pebble: Callable[[Any], Callable[[int], None]] | None,
) -> dict[str, Prepare]:
    contestants: dict[str, Prepare] = {
        **on_packages(pool_operation(on_pool)),
        "mpipc executor": executor_operation(mpipc_executor, on_executor),
        "concurrent.futures": executor_operation(concurrent_futures, on_executor),
        "loky": executor_operation(loky, on_executor),
    }
    if on_pebble is not None:
        contestants["pebble"] = pebble_operation(on_pebble)
    return contestants


CASES.add(
    Case(
        "pools/start",
        "Pool: start two workers, one task, end",
        {
            **on_packages(start_pool),
            "concurrent.futures": lambda: start_executor(concurrent_futures),
            "loky": lambda: start_executor(loky),
            "pebble": start_pebble,
        },
    )
)
CASES.add(
    Case(
        "pools/apply",
        "Pool.apply (submit and result) of a trivial task",
        {
            **everyone(apply, submit, schedule),
            "C, System V queue there and back": lambda: native.operation("mechanisms", "sysv-queue", "latency", 64),
        },
        quick=True,
    )
)
CASES.add(
    Case(
        "pools/map-1",
        "Pool.map of a trivial task, chunksize 1 (one task)",
        everyone(mapping(1), executor_mapping(1), pebble_mapping(1)),
        shared_count=True,
        quick=True,
    )
)
CASES.add(
    Case(
        "pools/map-auto",
        "Pool.map of a trivial task, automatic chunksize (one task)",
        everyone(mapping(None), executor_mapping(None), pebble_mapping(None)),
        shared_count=True,
    )
)
CASES.add(
    Case(
        "pools/imap_unordered",
        "Pool.imap_unordered (as_completed) of a trivial task (one task)",
        everyone(unordered, as_completed, None),
        shared_count=True,
    )
)

"""A small dict put into a queue and taken out: by one process, and there and back between two."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import native
from crew import together
from harness import Case, Operation

from . import CASES
from .common import HOUR, SMALL_DICT, context, on_packages, remove_at_exit, repeated

PICKLED = pickle.dumps(SMALL_DICT, pickle.HIGHEST_PROTOCOL)

Channel = tuple[Callable[[Any], object], Callable[[], Any]]
"""put() and get()."""


def queue(ctx: Any) -> Channel:
    made = ctx.Queue()
    return made.put, made.get


def simple_queue(ctx: Any) -> Channel:
    made = ctx.SimpleQueue()
    return made.put, made.get


def faster_fifo() -> Channel:
    import faster_fifo

    made = faster_fifo.Queue()
    return lambda message: made.put(message, timeout=HOUR), lambda: made.get(timeout=HOUR)


def sysv_ipc() -> Channel:
    """What one writes by hand with the package: a queue of the kernel, and pickle."""
    import sysv_ipc

    made = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, max_message_size=8192)
    remove_at_exit(made.remove)
    dumps, loads, send, receive = pickle.dumps, pickle.loads, made.send, made.receive
    return lambda message: send(dumps(message, 5)), lambda: loads(receive()[0])


def posix_ipc() -> Channel:
    import posix_ipc

    made = posix_ipc.MessageQueue(None, posix_ipc.O_CREX)
    made.unlink()
    dumps, loads, send, receive = pickle.dumps, pickle.loads, made.send, made.receive
    return lambda message: send(dumps(message, 5)), lambda: loads(receive()[0])


def both_ends(channel: Channel) -> Operation:
    put, get = channel

    def run(count: int) -> None:
        for _ in range(count):
            put(SMALL_DICT)
            get()

    return Operation(run)


def there_and_back(ctx: Any, make: Callable[[], Channel]) -> Operation:
    (put_there, get_there), (put_back, get_back) = make(), make()

    def first(count: int) -> None:
        for _ in range(count):
            put_there(SMALL_DICT)
            get_back()

    def second(count: int) -> None:
        for _ in range(count):
            put_back(get_there())

    return together(ctx, [first, second])


def pickle_alone() -> Operation:
    dumps, loads = pickle.dumps, pickle.loads
    return repeated(lambda: loads(dumps(SMALL_DICT, 5)))


def added(*operations: Operation) -> Operation:
    """The sum of their times, one after the other."""

    def run(count: int) -> float:
        total = 0.0
        for operation in operations:
            value = operation.run(count)
            assert value is not None
            total += value
        return total

    return Operation(run, step=max(operation.step for operation in operations))


def timed(operation: Operation) -> Operation:
    """One that measures itself."""
    import time

    def run(count: int) -> float:
        begin = time.perf_counter_ns()
        operation.run(count)
        return float(time.perf_counter_ns() - begin)

    return Operation(run, step=operation.step)


CASES.add(
    Case(
        "queues/one-process",
        "Queue: put and get of a small dict, one process",
        {
            **on_packages(lambda ctx: both_ends(queue(ctx))),
            "mpipc SimpleQueue": lambda: both_ends(simple_queue(context("mpipc"))),
            "multiprocessing SimpleQueue": lambda: both_ends(simple_queue(context("multiprocessing"))),
            "faster-fifo": lambda: both_ends(faster_fifo()),
            "sysv_ipc + pickle": lambda: both_ends(sysv_ipc()),
            "posix_ipc + pickle": lambda: both_ends(posix_ipc()),
            "pickle alone": pickle_alone,
            "C + pickle": lambda: added(native.operation("queues", "both", len(PICKLED)), timed(pickle_alone())),
        },
        quick=True,
    )
)
CASES.add(
    Case(
        "queues/ping-pong",
        "Queue: a small dict there and back, two processes",
        {
            **on_packages(lambda ctx: there_and_back(ctx, lambda: queue(ctx))),
            "mpipc SimpleQueue": lambda: there_and_back(context("mpipc"), lambda: simple_queue(context("mpipc"))),
            "multiprocessing SimpleQueue": lambda: there_and_back(
                context("multiprocessing"), lambda: simple_queue(context("multiprocessing"))
            ),
            "faster-fifo": lambda: there_and_back(context("multiprocessing"), faster_fifo),
            "sysv_ipc + pickle": lambda: there_and_back(context("multiprocessing"), sysv_ipc),
            "posix_ipc + pickle": lambda: there_and_back(context("multiprocessing"), posix_ipc),
            "C, System V queue": lambda: native.operation("mechanisms", "sysv-queue", "latency", len(PICKLED)),
        },
        quick=True,
    )
)

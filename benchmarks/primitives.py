"""Locks, semaphores, events, conditions and values of mpipc beside multiprocessing's, in one process and between two.

python benchmarks/primitives.py [--repeat 7] [--seconds 0.1]
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
from collections.abc import Callable
from typing import Any

from harness import Result, compare, table

import mpipc

PACKAGES: dict[str, Any] = {"mpipc": mpipc.get_context("fork"), "multiprocessing": multiprocessing.get_context("fork")}


def acquire_release(make: Callable[[Any], Any]) -> Callable[[Any], Callable[[int], None]]:
    """lock.acquire() and lock.release() in one process, nobody else there."""

    def prepare(ctx: Any) -> Callable[[int], None]:
        lock = make(ctx)

        def operation(count: int, acquire: Any = lock.acquire, release: Any = lock.release) -> None:
            for _ in range(count):
                acquire()
                release()

        return operation

    return prepare


def contended(processes: int) -> Callable[[Any], Callable[[int], None]]:
    """One lock, several processes that all want it all the time; the time is for one acquire and release of any."""

    def worker(lock: Any, start: Any, count: int) -> None:
        start.wait()
        for _ in range(count):
            lock.acquire()
            lock.release()

    def prepare(ctx: Any) -> Callable[[int], None]:
        def operation(count: int) -> None:
            lock, start = ctx.Lock(), ctx.Event()
            share = max(1, count // processes)
            workers = [ctx.Process(target=worker, args=(lock, start, share)) for _ in range(processes)]
            for process in workers:
                process.start()
            start.set()
            for process in workers:
                process.join()

        return operation

    return prepare


def increment(ctx: Any) -> Callable[[int], None]:
    """`with value.get_lock(): value.value += 1`."""
    value = ctx.Value("q", 0)

    def operation(count: int) -> None:
        for _ in range(count):
            with value.get_lock():
                value.value += 1

    return operation


def event(ctx: Any) -> Callable[[int], None]:
    """set(), is_set(), wait() on a set event, clear()."""
    flag = ctx.Event()

    def operation(count: int) -> None:
        for _ in range(count):
            flag.set()
            flag.is_set()
            flag.wait()
            flag.clear()

    return operation


def create(make: Callable[[Any], Any]) -> Callable[[Any], Callable[[int], None]]:
    """Making an object and dropping it."""

    def prepare(ctx: Any) -> Callable[[int], None]:
        def operation(count: int) -> None:
            for _ in range(count):
                make(ctx)

        return operation

    return prepare


def handshake(ctx: Any) -> Callable[[int], None]:
    """Two processes that pass a token to and fro by two semaphores; the time is for there and back."""

    def partner(ping: Any, pong: Any, count: int) -> None:
        for _ in range(count):
            ping.acquire()
            pong.release()

    def operation(count: int) -> None:
        ping, pong = ctx.Semaphore(0), ctx.Semaphore(0)
        process = ctx.Process(target=partner, args=(ping, pong, count))
        process.start()
        for _ in range(count):
            ping.release()
            pong.acquire()
        process.join()

    return operation


CASES: dict[str, Callable[[Any], Callable[[int], None]]] = {
    "Lock, uncontended": acquire_release(lambda ctx: ctx.Lock()),
    "RLock, uncontended": acquire_release(lambda ctx: ctx.RLock()),
    "Semaphore, uncontended": acquire_release(lambda ctx: ctx.Semaphore(1)),
    "Lock, 2 processes": contended(2),
    "Lock, 4 processes": contended(4),
    "Value += 1 under its lock": increment,
    "Event set, is_set, wait, clear": event,
    "Semaphore to and fro": handshake,
    "create a Lock": create(lambda ctx: ctx.Lock()),
    "create a Value": create(lambda ctx: ctx.Value("i", 0)),
    "create a Queue": create(lambda ctx: ctx.Queue()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7, help="turns of each contestant (default 7)")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a turn (default 0.1)")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    args = parser.parse_args()
    results: list[Result] = []
    for case, prepare in CASES.items():
        if args.only in case:
            contestants = {name: prepare(ctx) for name, ctx in PACKAGES.items()}
            results.append(compare(case, contestants, repeat=args.repeat, seconds=args.seconds, shared_count=True))
    print(f"Python {platform.python_version()}, Linux {platform.release()}, {platform.machine()}\n")
    print(table(results, "mpipc", "multiprocessing"))


if __name__ == "__main__":
    main()

"""Workers of a pool, and the processes that look after it, are stopped (SIGSTOP) for longer than a tick at any place:
everything comes out right, only later.

A tick is how long anybody sleeps before he looks whether others are still alive (MP_TICK_NS, 1 s). Somebody who is
stopped may hold whatever lock there is in the pool's queues.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import processes
from support.pool_tasks import square

import mpipc

LONG = 90.0
TICK = 1.0
STOPS = 4


def answer(x: int) -> bytes:
    """Results that a kernel queue has room for only a few of."""
    return x.to_bytes(8, "little") * (225 if x % 50 else 2000)


class Stopper(threading.Thread):
    """Stops one of the processes at a time, for a little more than a tick, again and again."""

    def __init__(self, victims: Callable[[], list[int]], seed: int) -> None:
        super().__init__(daemon=True)
        self._victims = victims
        self._random = random.Random(seed)
        self.over = threading.Event()
        self.stops = 0

    def run(self) -> None:
        while not self.over.wait(self._random.random() * 0.03):
            pids = self._victims()
            if not pids:
                continue
            pid = self._random.choice(pids)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                try:
                    self.over.wait(TICK * (1.2 + self._random.random() * 0.5))
                finally:
                    os.kill(pid, signal.SIGCONT)
                self.stops += 1


@contextmanager
def stopping(victims: Callable[[], list[int]]) -> Iterator[Stopper]:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    stopper = Stopper(victims, seed)
    stopper.start()
    try:
        yield stopper
    finally:
        stopper.over.set()
        stopper.join()


def helpers_of_this_test() -> list[int]:
    """The reaper, which is nobody's child, and the fork server."""
    namespace = os.readlink("/proc/self/ns/ipc")
    return [
        process.pid
        for process in processes().values()
        if process.name == "mpipc-reaper" and process.ipc_namespace() == namespace
    ]


def workers_of(pool: Any) -> Callable[[], list[int]]:
    return lambda: [process.pid for process in list(pool._pool) if process.pid]


def until(stopper: Stopper, work: Callable[[int], object]) -> None:
    deadline = time.monotonic() + LONG
    rounds = 0
    while stopper.stops < STOPS:
        assert time.monotonic() < deadline
        work(rounds)
        rounds += 1


@pytest.mark.slow_but("forkserver")
def test_maps(ctx: Any) -> None:
    def work(number: int) -> None:
        count = 3000
        assert pool.map_async(answer, range(count), 1).get(LONG) == [answer(x) for x in range(count)]
        found = sorted(pool.imap_unordered(square, iter(range(300)), 3))
        assert found == [x * x for x in range(300)]
        assert pool.apply(square, (number,)) == number * number

    with ctx.Pool(3) as pool:
        pids = {process.pid for process in pool._pool}
        with stopping(workers_of(pool)) as stopper:
            until(stopper, work)
        assert {process.pid for process in pool._pool} == pids  # nobody was taken for dead
        pool.close()
        pool.join()


@pytest.mark.slow_but("fork")
def test_calls(ctx: Any) -> None:
    """One at a time: the parent receives without its result thread."""

    def work(number: int) -> None:
        for x in range(200):
            assert pool.apply(answer, (x,)) == answer(x)

    with ctx.Pool(2) as pool, stopping(workers_of(pool)) as stopper:
        until(stopper, work)


@pytest.mark.slow
def test_large_arguments(ctx: Any) -> None:
    def work(number: int) -> None:
        texts = [bytes([x % 256]) * 300_000 for x in range(20)]
        assert pool.map(len, texts, 1) == [300_000] * 20

    with ctx.Pool(2) as pool, stopping(workers_of(pool)) as stopper:
        until(stopper, work)


@pytest.mark.slow_but("spawn")
def test_executor(ctx: Any) -> None:
    def work(number: int) -> None:
        assert list(executor.map(answer, range(1000), chunksize=2)) == [answer(x) for x in range(1000)]

    with mpipc.ProcessPoolExecutor(3, mp_context=ctx) as executor:
        executor.submit(square, 1).result(LONG)
        with stopping(lambda: list(executor._processes)) as stopper:
            until(stopper, work)


@pytest.mark.slow
def test_workers_come_and_go(ctx: Any) -> None:
    def work(number: int) -> None:
        assert pool.map(answer, range(400), 1) == [answer(x) for x in range(400)]

    with ctx.Pool(2, maxtasksperchild=50) as pool, stopping(workers_of(pool)) as stopper:
        until(stopper, work)


@pytest.mark.slow_but("fork")
def test_the_reaper_is_stopped(ctx: Any) -> None:
    """And a worker killed meanwhile: its task is lost, all others are done."""
    with ctx.Pool(2) as pool:
        assert pool.apply(square, (3,)) == 9
        with stopping(helpers_of_this_test) as stopper:

            def work(number: int) -> None:
                results = [pool.apply_async(answer, (x,)) for x in range(300)]
                pool._pool[0].kill()
                lost = 0
                for x, result in enumerate(results):
                    try:
                        assert result.get(LONG) == answer(x)
                    except mpipc.WorkerLostError:
                        lost += 1
                assert lost <= 1

            until(stopper, work)


@pytest.mark.slow_with("spawn", "forkserver")
@pytest.mark.parametrize("end", ["terminate", "close"])
def test_the_end(ctx: Any, end: str) -> None:
    """terminate() does not wait for stopped workers; join() after close() does, until they go on."""
    for _ in range(3):
        pool = ctx.Pool(3)
        assert pool.map(square, range(30), 1) == [x * x for x in range(30)]
        with stopping(workers_of(pool)) as stopper:
            result = pool.map_async(answer, range(2000), 1)
            if end == "terminate":
                pool.terminate()
            else:
                pool.close()
                assert result.get(LONG) == [answer(x) for x in range(2000)]
            pool.join()
            stopper.over.set()

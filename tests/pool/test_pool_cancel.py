"""AsyncResult.cancel(), and cancel(running=True) of an executor's futures."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import CancelledError, wait
from typing import Any

import pytest
from support import pool_tasks as tasks
from support import wait_until

from mpipc import WorkerLostError
from mpipc.executor import ProcessPoolExecutor

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60


@pytest.fixture
def gates(ctx: Any) -> Any:
    return ctx.Semaphore(0), ctx.Event()


def test_one_that_runs(ctx: Any, gates: Any) -> None:
    """Its worker is killed and replaced; what waited behind it is run by others."""
    running, proceed = gates
    told: list[BaseException] = []
    with ctx.Pool(1, tasks.start, ((running, proceed),)) as pool:
        result = pool.apply_async(tasks.enter_and_wait, (0,), error_callback=told.append)
        others = [pool.apply_async(tasks.square, (x,)) for x in range(5)]
        assert running.acquire(True, LONG)
        pid = pool._pool[0].pid
        assert not result.cancelled()
        assert result.cancel() and result.cancelled()
        assert not result.cancel()  # it is complete, or is just being completed
        with pytest.raises(CancelledError):
            result.get(LONG)
        assert result.ready() and not result.successful()
        assert [other.get(LONG) for other in others] == [x * x for x in range(5)]
        assert [type(error) for error in told] == [CancelledError]
        assert pool._pool[0].pid != pid and pool.statistics().replaced == 1


def test_one_that_waits(ctx: Any, gates: Any) -> None:
    """It is not run, whether a worker has it already or not; no worker is killed."""
    running, proceed = gates
    with ctx.Pool(1, tasks.start, ((running, proceed),)) as pool:
        first = pool.apply_async(tasks.enter_and_wait, (0,))
        assert running.acquire(True, LONG)
        waiting = [pool.apply_async(tasks.enter_and_wait, (x,)) for x in range(1, 10)]
        withdrawn = [result for x, result in enumerate(waiting) if x % 2 == 0]
        assert all(result.cancel() for result in withdrawn)
        proceed.set()
        for result in withdrawn:
            with pytest.raises(CancelledError):
                result.get(LONG)
        assert first.get(LONG) == 0
        assert [result.get(LONG) for x, result in enumerate(waiting) if x % 2] == [2, 4, 6, 8]
        assert pool.statistics().replaced == 0
        for _ in range(4):
            assert running.acquire(False)
        assert not running.acquire(False)


def test_a_map(ctx: Any, gates: Any) -> None:
    running, proceed = gates
    with ctx.Pool(2, tasks.start, ((running, proceed),)) as pool:
        result = pool.map_async(tasks.enter_and_wait, range(100), 5)
        other = pool.map_async(tasks.square, range(20), 1)
        for _ in range(2):
            assert running.acquire(True, LONG)
        assert result.cancel()
        with pytest.raises(CancelledError):
            result.get(LONG)
        assert other.get(LONG) == [x * x for x in range(20)]
        wait_until(lambda: pool.statistics().replaced == 2)
        assert not running.acquire(False)


def test_one_that_is_done(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        result = pool.apply_async(tasks.square, (3,))
        assert result.get(LONG) == 9
        failed = pool.apply_async(tasks.leave, (1,))
        with pytest.raises(WorkerLostError):
            failed.get(LONG)
        empty = pool.map_async(tasks.square, [])
        for done in (result, failed, empty):
            assert not done.cancel() and not done.cancelled()
        assert result.get() == 9 and empty.get() == []


def test_a_callback_cancels_another(ctx: Any, gates: Any) -> None:
    running, proceed = gates
    with ctx.Pool(2, tasks.start, ((running, proceed),)) as pool:
        stuck = pool.apply_async(tasks.enter_and_wait, (0,))
        assert running.acquire(True, LONG)
        done: list[Any] = []
        pool.apply_async(tasks.square, (3,), callback=lambda value: done.append((value, stuck.cancel())))
        with pytest.raises(CancelledError):
            stuck.get(LONG)
        assert done == [(9, True)]


def test_close_and_terminate_after_it(ctx: Any, gates: Any) -> None:
    running, proceed = gates
    for end in ("close", "terminate"):
        pool = ctx.Pool(1, tasks.start, ((running, proceed),))
        result = pool.apply_async(tasks.enter_and_wait, (0,))
        assert running.acquire(True, LONG)
        assert result.cancel()
        getattr(pool, end)()
        pool.join()
        with pytest.raises(CancelledError):
            result.get(LONG)
        assert not result.cancel()


def test_at_random_moments(ctx: Any) -> None:
    """Each job ends in one of two ways, and says in which: its result, or CancelledError where cancel() was True."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with ctx.Pool(2) as pool:
        for _ in range(20):
            results = [pool.apply_async(tasks.square, (x,)) for x in range(20)]
            results += [pool.map_async(tasks.square, range(10), 3) for _ in range(3)]
            outcome = {result: result.cancel() for result in chance.sample(results, 10)}
            for x, result in enumerate(results):
                assert result.cancelled() == outcome.get(result, False)
                if result.cancelled():
                    with pytest.raises(CancelledError):
                        result.get(LONG)
                else:
                    assert result.get(LONG) == (x * x if x < 20 else [y * y for y in range(10)])
        assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]


def test_two_threads_cancel_the_same(ctx: Any, gates: Any) -> None:
    running, proceed = gates
    with ctx.Pool(1, tasks.start, ((running, proceed),)) as pool:
        result = pool.apply_async(tasks.enter_and_wait, (0,))
        assert running.acquire(True, LONG)
        found: list[bool] = []
        threads = [threading.Thread(target=lambda: found.append(result.cancel())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [False] * 7 + [True]


def test_a_future_that_runs(ctx: Any, gates: Any) -> None:
    running, proceed = gates
    with ProcessPoolExecutor(1, ctx, tasks.start, ((running, proceed),)) as executor:
        future = executor.submit(tasks.enter_and_wait, 0)
        others = [executor.submit(os.getpid) for _ in range(5)]
        assert running.acquire(True, LONG)
        assert not future.cancel() and not future.cancelled() and future.running()  # as the standard library's
        assert future.cancel(running=True)  # type: ignore[call-arg]
        assert future.cancelled() and future.done() and not future.running()
        with pytest.raises(CancelledError):
            future.result(LONG)
        assert len({other.result(LONG) for other in others}) == 1
        assert not future.cancel(running=True)  # type: ignore[call-arg]
        assert wait([future, *others], LONG).not_done == set()


def test_futures_that_wait_or_are_done(ctx: Any, gates: Any) -> None:
    running, proceed = gates
    with ProcessPoolExecutor(1, ctx, tasks.start, ((running, proceed),)) as executor:
        first = executor.submit(tasks.enter_and_wait, 0)
        assert running.acquire(True, LONG)
        others = [executor.submit(tasks.enter_and_wait, x) for x in range(1, 8)]
        cancelled = {other: other.cancel(running=True) for other in others[::2]}  # type: ignore[call-arg]
        assert all(cancelled.values())
        proceed.set()
        assert first.result(LONG) == 0 and not first.cancel(running=True)  # type: ignore[call-arg]
        for x, other in enumerate(others, 1):
            assert other.cancelled() == (other in cancelled)
            if other not in cancelled:
                assert other.result(LONG) == x

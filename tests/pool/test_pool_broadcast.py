"""broadcast(): a call in each worker."""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from support import pool_tasks, wait_until
from support import worker_tasks as tasks

import mpipc
from mpipc import WorkerLostError

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60


def test_once_in_each_worker(ctx: Any) -> None:
    with ctx.Pool(4) as pool:
        pids = pool.broadcast(os.getpid)
        assert len(set(pids)) == 4
        assert set(pool.broadcast(tasks.keep, "x", 7)) == set(pids)
        assert set(pool.map(tasks.kept, ["x"] * 40, 1)) == {7}
        assert pool.map(pool_tasks.square, range(100)) == [x * x for x in range(100)]


def test_an_executor(ctx: Any) -> None:
    with mpipc.ProcessPoolExecutor(3, mp_context=ctx) as executor:
        assert len(set(executor.broadcast(os.getpid))) == 3
        assert list(executor.map(pool_tasks.square, range(5))) == [0, 1, 4, 9, 16]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.broadcast(os.getpid)


def test_workers_that_do_one_task_each(ctx: Any) -> None:
    with ctx.Pool(2, maxtasksperchild=1) as pool:
        first = set(pool.broadcast(os.getpid))
        assert len(first) == 2
        assert not first & set(pool.broadcast(os.getpid))
        assert pool.map(pool_tasks.square, range(5), 1) == [0, 1, 4, 9, 16]


def test_some_at_the_same_time(ctx: Any) -> None:
    with ctx.Pool(3) as pool:
        results: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda: results.append(pool.broadcast(tasks.identity_of, 1))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert len({frozenset(pids) for pids in results}) == 1
        assert len(results) == 8


def test_behind_what_workers_do(ctx: Any, tmp_path: Path) -> None:
    """It waits for one that is busy, and what waits behind that is run by others meanwhile."""
    gate = str(tmp_path / "gate")
    with ctx.Pool(2) as pool:
        busy = pool.apply_async(tasks.wait_for_file, (gate,))
        wait_until(lambda: any(row.function for row in pool.statistics().workers))
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.extend(pool.broadcast(os.getpid)))
        thread.start()
        assert pool.map(pool_tasks.square, range(50), 1) == [x * x for x in range(50)]
        assert not results
        Path(gate).touch()
        thread.join(LONG)
        assert len(set(results)) == 2
        assert busy.get(LONG) in results


def test_errors_are_as_with_map(ctx: Any, tmp_path: Path) -> None:
    path = tmp_path / "one"
    with ctx.Pool(3) as pool:
        path.touch()
        with pytest.raises(KeyError, match="one"):
            pool.broadcast(tasks.fail_in_one, str(path))
        with pytest.raises(KeyError):
            pool.broadcast(pool_tasks.fail, 1)
        with pytest.raises((AttributeError, TypeError, pickle.PicklingError), match=r"pickle|lambda"):
            pool.broadcast(lambda: 1)
        path.touch()
        with pytest.raises(WorkerLostError, match="die_once"):
            pool.broadcast(tasks.die_once, str(path))
        assert len(set(pool.broadcast(os.getpid))) == 3


def test_a_worker_that_dies_in_it_and_a_retry(ctx: Any, tmp_path: Path) -> None:
    path = tmp_path / "one"
    with ctx.Pool(2, retries=1) as pool:
        before = set(pool.broadcast(os.getpid))
        path.touch()
        after = set(pool.broadcast(tasks.die_once, str(path)))
        assert len(after) == 2
        assert len(after & before) == 1
        assert set(pool.broadcast(os.getpid)) == after


def test_one_that_dies_after_it_has_a_successor_that_runs_it(ctx: Any, tmp_path: Path) -> None:
    first, gate = tmp_path / "first", tmp_path / "gate"
    with ctx.Pool(2) as pool:
        before = set(pool.broadcast(os.getpid))
        first.touch()
        results: list[Any] = []
        thread = threading.Thread(
            target=lambda: results.extend(pool.broadcast(tasks.die_or_wait, str(first), str(gate)))
        )
        thread.start()
        wait_until(lambda: not first.exists() and any(not row.function for row in pool.statistics().workers))
        idle = next(row.pid for row in pool.statistics().workers if not row.function)
        os.kill(idle, signal.SIGKILL)
        wait_until(lambda: pool.statistics().replaced == 1)
        gate.touch()
        thread.join(LONG)
        assert len(results) == 2
        assert idle not in results or set(results) == before  # the latter: it was over by then
        assert len(set(pool.broadcast(os.getpid)) - {idle}) == 2


def test_while_workers_are_killed(ctx: Any) -> None:
    """One in each round, at any moment; so it may be the one that has just been started."""
    chance = random.Random(5)
    with ctx.Pool(3, retries=1000) as pool:
        for number in range(12):
            killer = threading.Timer(chance.random() * 0.02, chance.choice(list(pool._pool)).kill)
            killer.start()
            others = pool.map_async(pool_tasks.square, range(20), 1)
            assert len(set(pool.broadcast(tasks.keep, "number", number))) == 3
            assert others.get(LONG) == [x * x for x in range(20)]
            killer.join()


def test_after_close_and_terminate(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        pool.close()
        with pytest.raises(ValueError, match="Pool not running"):
            pool.broadcast(os.getpid)
        pool.join()


def test_a_pool_that_is_terminated_meanwhile(ctx: Any, tmp_path: Path) -> None:
    raised: list[BaseException] = []
    with ctx.Pool(2) as pool:

        def ask() -> None:
            try:
                pool.broadcast(tasks.wait_for_file, str(tmp_path / "never"))
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: any(row.function for row in pool.statistics().workers))
        pool.terminate()
        thread.join(LONG)
    assert isinstance(raised[0], mpipc.BrokenPoolError)

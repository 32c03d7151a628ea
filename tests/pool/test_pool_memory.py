"""memory_limit and max_memory_per_child of pools and executors."""

from __future__ import annotations

import os
import pickle
import sys
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import pytest
from support import pool_tasks as tasks

import mpipc
from mpipc import MemoryLimitError, WorkerLostError
from mpipc._pool.memory import private_memory
from mpipc.executor import ProcessPoolExecutor

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

MB = 1 << 20
LONG = 60


def room(megabytes: int) -> int:
    """A limit that no worker meets by itself: what an interpreter with the tests loaded has, and so much more."""
    return private_memory("self") + megabytes * MB


def test_a_task_that_takes_too_much_fails_and_no_other(ctx: Any) -> None:
    limit = room(100)
    with ctx.Pool(2, memory_limit=limit) as pool:
        others = [pool.apply_async(tasks.square, (x,)) for x in range(50)]
        late = pool.apply_async(tasks.allocate, (limit + 100 * MB,))
        others += [pool.apply_async(tasks.square, (x,)) for x in range(50, 99)]
        with pytest.raises(MemoryLimitError) as caught:
            late.get(LONG)
        assert [other.get(LONG) for other in others] == [x * x for x in range(99)]
        assert pool.statistics().replaced == 1
        assert pool.apply(tasks.allocate, (-10 * MB,)) == 10 * MB
    error = caught.value
    assert isinstance(error, WorkerLostError) and isinstance(error, MemoryError)
    assert error.limit == limit < error.peak and error.signal == "SIGKILL"  # type: ignore[operator]
    assert "allocate" in str(error) and "memory_limit is" in str(error) and " MB of private memory" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and (copy.limit, copy.peak, copy.pid) == (error.limit, error.peak, error.pid)


def test_an_item_of_a_map(ctx: Any) -> None:
    limit = room(100)
    with ctx.Pool(2, memory_limit=limit) as pool:
        with pytest.raises(MemoryLimitError, match="on item 2") as caught:
            pool.map(tasks.allocate, [-1, -1, limit + 100 * MB, -1], 4)
        assert caught.value.index == 2
        assert pool.map(tasks.square, range(20)) == [x * x for x in range(20)]


def test_it_is_not_run_again(ctx: Any) -> None:
    """retries are for tasks that are not to blame."""
    limit = room(50)
    with ctx.Pool(1, memory_limit=limit, retries=5) as pool:
        with pytest.raises(MemoryLimitError):
            pool.apply(tasks.allocate, (limit + 50 * MB,))
        assert pool.statistics().replaced == 1


def test_an_executor(ctx: Any) -> None:
    limit = room(100)
    with ProcessPoolExecutor(2, ctx, memory_limit=limit) as executor:
        sizes = {executor.submit(tasks.allocate, size): size for size in (-MB, limit + 100 * MB, -2 * MB)}
        for future in as_completed(sizes, LONG):
            if sizes[future] < 0:
                assert future.result() == -sizes[future]
            else:
                assert isinstance(future.exception(), MemoryLimitError)


@pytest.mark.parametrize("write", [False, True])
def test_what_was_only_read_of_the_parent_s_does_not_count(write: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = room(100)
    monkeypatch.setattr(tasks, "inherited", bytearray(200 * MB + limit))
    with mpipc.get_context("fork").Pool(1, memory_limit=limit) as pool:
        for _ in range(3):
            assert pool.apply(tasks.read_inherited) == 0
        if write:
            with pytest.raises(MemoryLimitError):
                pool.apply(tasks.write_inherited)


def test_what_was_allocated_between_tasks_counts_when_one_runs(ctx: Any) -> None:
    limit = room(50)
    pool = ctx.Pool(1, memory_limit=limit, initializer=tasks.keep, initargs=(limit,))
    with pool, pytest.raises(MemoryLimitError):
        pool.apply(tasks.sleep_on)


def test_a_worker_that_has_become_large_is_replaced_after_its_task(ctx: Any) -> None:
    limit = room(50)
    with ctx.Pool(1, max_memory_per_child=limit) as pool:
        small = {pool.apply(tasks.keep, (MB,)) for _ in range(3)}
        large = [pool.apply(tasks.keep, (limit,)) for _ in range(3)]
        assert len(small) == 1 and large[0] in small and len(set(large)) == 3
        assert pool.map(tasks.square, range(100), 1) == [x * x for x in range(100)]


def test_max_memory_per_child_of_an_executor(ctx: Any) -> None:
    with ProcessPoolExecutor(1, ctx, max_memory_per_child=1) as executor:
        pids = [executor.submit(os.getpid).result(LONG) for _ in range(3)]
    assert len(set(pids)) == 3


@pytest.mark.parametrize("name", ["memory_limit", "max_memory_per_child"])
@pytest.mark.parametrize("make", [mpipc.Pool, ProcessPoolExecutor])
def test_arguments_that_are_no_number_of_bytes(make: Any, name: str) -> None:
    for wrong in ("500 MB", 1.5e9, True):
        with pytest.raises(TypeError, match=f"{name} must be a number of bytes"):
            make(1, **{name: wrong})
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"{name} must be a number of bytes greater than 0"):
            make(1, **{name: wrong})


def test_private_memory() -> None:
    before = private_memory("self")
    hold = bytearray(os.urandom(1)) * (100 * MB)
    grown = private_memory("self")
    assert 95 * MB < grown - before < 130 * MB and len(hold) == 100 * MB
    everything = private_memory("self", sys.maxsize)
    assert everything >= grown
    assert private_memory(1 << 30) == 0  # there is no such process


def test_private_memory_without_smaps_rollup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on kernels before 4.14, and in some sandboxes."""
    from mpipc._pool import memory

    read = memory._sum

    def without(path: str, names: tuple[bytes, ...]) -> int:
        if path.endswith("smaps_rollup"):
            raise FileNotFoundError(path)
        return read(path, names)

    monkeypatch.setattr(memory, "_sum", without)
    before = private_memory("self")
    hold = bytearray(os.urandom(1)) * (100 * MB)
    assert private_memory("self") - before > 95 * MB and len(hold) == 100 * MB

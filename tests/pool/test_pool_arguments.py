"""What is handed to a pool: arguments, iterables, chunk sizes and time limits that are out of the ordinary."""

import asyncio
import contextlib
import gc
import multiprocessing.pool
import os
import signal
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from support import pool_tasks as tasks
from support import wait_until

import mpipc
from mpipc.pool import BrokenPoolError, Pool
from mpipc.sysv import IPC_RMID, msgctl

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60.0


@pytest.fixture
def pool(ctx: Any) -> Iterator[Any]:
    with ctx.Pool(2) as made:
        yield made


@pytest.mark.parametrize("way", ["map", "imap", "imap_unordered", "imap of a generator", "apply_async"])
def test_tasks_do_not_share_an_argument(pool: Any, way: str) -> None:
    """Many tasks go in one message, in which one object stands once."""
    shared = [0]
    if way == "apply_async":
        results = [pool.apply_async(tasks.append_and_count, (shared,)) for _ in range(1000)]
        assert {result.get(LONG) for result in results} == {2}
        return
    call = getattr(pool, way.split()[0])
    items: Any = [shared] * 3000
    assert set(call(tasks.append_and_count, iter(items) if "generator" in way else items, 1)) == {2}


@pytest.mark.parametrize("items", [[1, 2, 3], (1, 2, 3), range(1, 4)], ids=lambda items: type(items).__name__)
def test_a_chunk_for_all(pool: Any, items: Any) -> None:
    assert pool.map(tasks.square, items, chunksize=sys.maxsize) == [1, 4, 9]
    assert list(pool.imap(tasks.square, items, chunksize=sys.maxsize)) == [1, 4, 9]
    assert pool.apply(tasks.square, (3,)) == 9


@pytest.mark.compares
@pytest.mark.parametrize("chunksize", [0, -1])
def test_chunks_of_nothing(pool: Any, chunksize: int) -> None:
    """None for each item, at once, and no callback: as in multiprocessing, which does not say so."""
    called: list[Any] = []
    with multiprocessing.pool.ThreadPool(1) as theirs:
        expected = theirs.map(tasks.square, [1, 2, 3], chunksize)
        theirs.map_async(tasks.square, [1, 2, 3], chunksize, called.append).get(LONG)
    assert (expected, called) == ([None] * 3, [])
    with pytest.warns(RuntimeWarning, match="called for no item") as caught:
        assert pool.map(tasks.square, [1, 2, 3], chunksize) == expected
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(RuntimeWarning, match="called for no item") as caught:
        result = pool.starmap_async(pow, [(1, 2)] * 3, chunksize, called.append)
    assert [warning.filename for warning in caught] == [__file__]
    assert result.ready() and result.successful() and result.get() == expected
    assert not pool._cache
    assert pool.map(tasks.square, [1, 2, 3]) == [1, 4, 9]
    assert not called


@pytest.mark.parametrize("chunksize", [1, 4])
def test_the_list_is_changed_afterwards(pool: Any, chunksize: int) -> None:
    items = list(range(500))
    result = pool.map_async(tasks.square, items, chunksize)
    items.clear()
    assert result.get(LONG) == [x * x for x in range(500)]
    items = list(range(500))
    results = pool.imap(tasks.square, items, chunksize)
    items[:] = [-1] * 500
    assert list(results) == [x * x for x in range(500)]


class Doubling(list[int]):
    def __iter__(self) -> Iterator[int]:
        return (2 * x for x in list.__iter__(self))


class Unreadable(list[int]):
    def __getitem__(self, index: Any) -> Any:
        raise KeyError(index)


def test_a_subclass_of_list_is_iterated(pool: Any) -> None:
    assert pool.map(tasks.identity, Doubling([1, 2, 3])) == [2, 4, 6]
    assert list(pool.imap(tasks.identity, Doubling([1, 2, 3]))) == [2, 4, 6]
    assert pool.map(tasks.identity, Unreadable([1, 2, 3])) == [1, 2, 3]


@pytest.mark.parametrize("timeout", [float("inf"), 3e6, 1e300, Decimal(50), 50])
def test_long_timeouts(pool: Any, timeout: Any) -> None:
    assert pool.apply_async(tasks.square, (3,), timeout=timeout).get(LONG) == 9
    assert pool.apply(tasks.square, (3,)) == 9


class OddCode:
    """Answers everything, also to those who ask for what a function has."""

    def __call__(self, x: int) -> int:
        return -x

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__code__":
            raise AttributeError(name)
        return []


def test_a_callable_with_an_odd_code(pool: Any) -> None:
    assert pool.apply_async(OddCode(), (3,)).get(LONG) == -3
    assert pool.map(OddCode(), [1, 2]) == [-1, -2]


class Cancelling:
    def __reduce__(self) -> Any:
        raise asyncio.CancelledError("in pickling")


def test_no_exception_when_it_is_pickled_by_the_result_thread(ctx: Any) -> None:
    """What is no Exception interrupts the main thread; nothing interrupts the result thread."""
    running, proceed = ctx.Semaphore(0), ctx.Event()
    with ctx.Pool(1, tasks.start, ((running, proceed),)) as pool:
        waiting = pool.apply_async(tasks.enter_and_wait, (1,))
        assert running.acquire(True, LONG)
        others = [pool.apply_async(tasks.square, (x,)) for x in range(5)]
        bad = pool.apply_async(tasks.identity, (Cancelling(),))
        last = pool.apply_async(tasks.square, (9,))
        proceed.set()
        assert waiting.get(LONG) is not None
        assert [other.get(LONG) for other in others] == [0, 1, 4, 9, 16]
        with pytest.raises(asyncio.CancelledError, match="in pickling"):
            bad.get(LONG)
        assert last.get(LONG) == 81


class Interrupting:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def _submit_and_be_interrupted() -> None:
    with mpipc.Pool(1) as pool:
        assert pool.apply(tasks.square, (3,)) == 9  # its worker is ready: the next task is sent by who submits it
        with pytest.raises(KeyboardInterrupt):
            pool.apply_async(tasks.identity, (Interrupting(),))
        pool.close()
        pool.join()


def test_a_child_of_another_thread_has_a_main_thread() -> None:
    """In a forked child the thread that has forked is the main one, in which signal handlers run."""
    child = mpipc.get_context("fork").Process(target=_submit_and_be_interrupted)
    thread = threading.Thread(target=child.start)
    thread.start()
    thread.join()
    child.join()
    assert child.exitcode == 0


def _exit(value: Any) -> None:
    raise SystemExit(value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_exits(pool: Any) -> None:
    result = pool.apply_async(tasks.square, (3,), callback=_exit)
    assert result.get(LONG) == 9
    assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]


# --- queues that somebody removes -------------------------------------------------------------------------------------


def _remove(channel: Any) -> None:
    msgctl(channel._messages.block.id, IPC_RMID)


@pytest.mark.leftovers(reason="mpipc does not find again what somebody else has removed")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_queue_of_results_is_removed(ctx: Any, asynchronous: bool) -> None:
    with ctx.Pool(2) as pool:
        assert pool.apply(tasks.square, (3,)) == 9
        _remove(pool._engine.results)
        with pytest.raises(BrokenPoolError):
            if asynchronous:
                pool.apply_async(tasks.square, (3,)).get(LONG)
            else:
                pool.apply(tasks.square, (3,))
        with pytest.raises((BrokenPoolError, ValueError)):
            pool.apply(tasks.square, (3,))


@pytest.mark.leftovers(reason="mpipc does not find again what somebody else has removed")
def test_the_queue_of_a_stopped_worker_is_removed(ctx: Any) -> None:
    """Whether close() can still tell it or not, join() comes to an end."""
    pool = ctx.Pool(2)
    assert pool.map(tasks.square, range(10), 1) == [x * x for x in range(10)]
    members = list(pool._engine.members())
    for member in members:
        os.kill(member.process.pid, signal.SIGSTOP)
        _remove(member.tasks)
    pool.close()
    wait_until(lambda: all(member.quitting for member in members))
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.process.pid, signal.SIGCONT)
    pool.join()


# --- a start that fails -----------------------------------------------------------------------------------------------


def test_a_failed_start_leaves_no_descriptor(ctx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = ctx.Process

    def make(context: Any, *arguments: Any, **options: Any) -> Any:
        started.append(True)
        if len(started) % 3 == 0:
            raise OSError("no more processes")
        return real(*arguments, **options)

    monkeypatch.setattr(Pool, "Process", staticmethod(make))
    ctx.Pool(1).terminate()  # what stays open from the first pool on is not counted
    started.clear()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        started.clear()
        with pytest.raises(OSError, match="no more processes"):
            ctx.Pool(3)
    wait_until(lambda: (gc.collect(), len(os.listdir("/proc/self/fd")))[1] <= before)

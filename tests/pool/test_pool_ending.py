"""The end of a pool: nothing is left of it when the call that ends it returns; that is soon, and whatever fails."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import START_METHODS, kernel_objects, processes, wait_until
from support import pool_tasks as tasks
from support.pool_tasks import square
from support.privileges import can_become

import mpipc
from mpipc._core import families_of_this_process
from mpipc._pool import supervisor
from mpipc.exceptions import BrokenPoolError
from mpipc.pool import Pool, ThreadPool
from mpipc.sysv import IPC_RMID, msgctl

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60.0

# --- nothing is left --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def what_there_is() -> dict[str, Any]:
    """What a pool uses: descriptors, threads, processes, kernel objects, blocks."""
    objects = kernel_objects()
    return {
        "descriptors": sorted(os.listdir("/proc/self/fd"), key=int)[:-1],  # the last one is of this listing
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "children": multiprocessing.active_children(),
        "queues": objects.msg,
        "segments": objects.shm,
        "blocks": sorted(block[:2] for family in families_of_this_process() for block in family.blocks()),
    }


def closed(ctx: Any) -> Any:
    pool = ctx.Pool(3)
    results = [pool.apply_async(square, (1,)), pool.map_async(square, range(10)), pool.imap(square, iter(range(4)))]
    pool.close()
    pool.join()
    return pool, results


def left(ctx: Any) -> Any:
    with ctx.Pool(3) as pool:
        results = [pool.apply_async(square, (1,)), pool.map_async(tasks.spin, range(10), 1)]
        results[0].get(LONG)
    return pool, results


def terminated(ctx: Any) -> Any:
    pool = ctx.Pool(3)
    kept = [pool, pool.imap_unordered(square, iter(range(1000)))]
    pool.terminate()
    pool.join()
    return kept


def deleted(ctx: Any) -> Any:
    pool = ctx.Pool(2)
    result = pool.map_async(square, range(10))
    result.get(LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del pool
    return result


def with_executor(ctx: Any) -> Any:
    with mpipc.ProcessPoolExecutor(3, mp_context=ctx) as executor:
        futures = [executor.submit(square, number) for number in range(5)]
        assert list(executor.map(square, range(5), chunksize=2)) == [0, 1, 4, 9, 16]
    return executor, futures


def cancelled(ctx: Any) -> Any:
    executor = mpipc.ProcessPoolExecutor(2, mp_context=ctx)
    futures = [executor.submit(square, number) for number in range(200)]
    executor.shutdown(cancel_futures=True)
    return executor, futures


def killed_executor(ctx: Any) -> Any:
    executor = mpipc.ProcessPoolExecutor(2, mp_context=ctx)
    future = executor.submit(tasks.spin, 1)
    executor.kill_workers()
    return executor, future


def initializer_fails(ctx: Any) -> Any:
    pool = ctx.Pool(2, os._exit, (3,))
    with pytest.raises(BrokenPoolError):
        pool.apply(square, (1,))
    pool.terminate()
    pool.join()
    return pool


def cannot_start(ctx: Any) -> Any:
    class Refused(Pool):
        started = 0

        @staticmethod
        def Process(ctx: Any, *args: Any, **options: Any) -> Any:
            Refused.started += 1
            if Refused.started == 3:
                raise OSError(11, "no more processes")
            return ctx.Process(*args, **options)

    with pytest.raises(OSError, match="no more processes"):
        Refused(3, context=ctx)
    return Refused


def workers_die(ctx: Any) -> Any:
    pool = ctx.Pool(2)
    processes = list(pool._pool)
    results = [pool.apply_async(tasks.die) for _ in range(3)]
    for result in results:
        with contextlib.suppress(mpipc.WorkerLostError):
            result.get(LONG)
    pool.close()
    pool.join()
    assert [process.exitcode for process in processes] == [-9, -9] or len(set(processes) - set(pool._pool)) < 2
    return pool, processes, results


def short_lives(ctx: Any) -> Any:
    pool = ctx.Pool(2, maxtasksperchild=2)
    assert pool.map(square, range(12), 1) == [x * x for x in range(12)]
    pool.close()
    pool.join()
    return pool


def iterable_fails(ctx: Any) -> Any:
    pool = ctx.Pool(2)
    results = pool.imap_unordered(square, tasks.broken_generator(4))
    with pytest.raises(KeyError):
        list(results)
    pool.close()
    pool.join()
    return pool, results


def from_threads(ctx: Any) -> Any:
    pool = ctx.Pool(2)
    threads = [threading.Thread(target=pool.map, args=(square, range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.terminate()
    pool.join()
    return pool


def beside_another(ctx: Any) -> Any:
    """The workers of the second pool have inherited what the first one had, and outlive it."""
    first = ctx.Pool(2)
    with ctx.Pool(1) as second:
        assert second.apply(square, (2,)) == 4
        before = set(kernel_objects().msg)
        first.terminate()
        first.join()
        assert len(before - set(kernel_objects().msg)) == 3
        assert second.apply(square, (3,)) == 9
    return first, second


ENDINGS = [
    closed,
    left,
    terminated,
    deleted,
    with_executor,
    cancelled,
    killed_executor,
    initializer_fails,
    cannot_start,
    workers_die,
    short_lives,
    iterable_fails,
    from_threads,
    beside_another,
]


@pytest.mark.slow_with("forkserver")
@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
def test_nothing_is_left(ctx: Any, end: Callable[[Any], Any]) -> None:
    kept = [closed(ctx), mpipc.Lock()]  # helpers that multiprocessing starts once; sets that the family makes once
    before = what_there_is()
    for _ in range(3):
        kept.append(end(ctx))
        assert what_there_is() == before


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("way", ["close", "terminate", "with", "del"])
def test_nothing_is_left_of_a_pool_of_threads(way: str) -> None:
    before = what_there_is()
    for _ in range(3):
        pool = ThreadPool(3)
        result = pool.map_async(square, range(10))
        assert result.get(LONG) == [x * x for x in range(10)]
        if way == "close":
            pool.close()
            pool.join()
        elif way == "terminate":
            pool.terminate()
            pool.join()
        elif way == "with":
            with pool:
                pass
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                del pool
        assert what_there_is() == before


@pytest.mark.usefixtures("no_gc")
def test_nothing_is_left_of_a_managers_pool(ctx: Any) -> None:
    with ctx.Manager() as manager:

        def use() -> None:
            pool = manager.Pool(2)
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
            pool.terminate()
            pool.join()

        use()
        before = kernel_objects()
        use()
        assert kernel_objects().msg == before.msg


def test_an_ended_process_is_still_known(ctx: Any) -> None:
    pool = ctx.Pool(2)
    processes = list(pool._pool)
    pool.close()
    pool.join()
    for process in processes:
        process.join()
        assert not process.is_alive()
        assert process.exitcode == 0
        process.terminate()
        with pytest.raises(ValueError, match="not started"):
            _ = process.sentinel  # of which the descriptor is closed


def test_a_feeder_that_waits_for_its_iterable_is_not_waited_for(ctx: Any) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        reading.set()
        go_on.wait(LONG)
        yield 1

    pool = ctx.Pool(1)
    pool.imap(square, items())
    assert reading.wait(LONG)
    pool.terminate()
    pool.join()
    assert not go_on.is_set()
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "mpipc-pool-feeder":
            thread.join(LONG)


# --- it is soon -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["default", "ignore", "handle", "block"])
def test_idle_workers_leave_whatever_they_do_about_sigterm(ctx: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them has to be killed."""
    monkeypatch.setattr(supervisor, "DEAF", LONG)
    monkeypatch.setattr(supervisor, "GRACE", LONG)
    running = ctx.Semaphore(0)
    with ctx.Pool(2, tasks.defy_sigterm, (how, running)) as pool:
        assert running.acquire(True, LONG)
        assert running.acquire(True, LONG)
    # SIGTERM that is blocked in the main thread only, another thread takes.
    assert {process.exitcode for process in pool._pool} <= ({0} if how in ("ignore", "handle") else {0, -15})


@pytest.mark.parametrize("task", [tasks.say_and_spin, tasks.say_and_count], ids=["python", "c"])
@pytest.mark.parametrize("how", ["default", "ignore", "handle", "block"])
def test_workers_with_tasks_are_killed_if_sigterm_does_not_end_them(
    ctx: Any, how: str, task: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GRACE", 0.2 if how == "handle" else LONG)
    running = ctx.Semaphore(0)
    pool = ctx.Pool(1, tasks.defy_sigterm, (how, running))
    result = pool.apply_async(task, (1,))
    assert running.acquire(True, LONG)
    assert running.acquire(True, LONG)
    pool.terminate()
    assert [process.exitcode for process in pool._pool] == [-9 if how in ("ignore", "handle") else -15]
    with pytest.raises(BrokenPoolError, match="terminated"):
        result.get(LONG)


@pytest.mark.parametrize("how", ["default", "handle"])
def test_a_stopped_worker_is_killed(ctx: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE", LONG)
    running = ctx.Semaphore(0)
    pool = ctx.Pool(2, tasks.defy_sigterm, (how, running))
    assert running.acquire(True, LONG)
    assert running.acquire(True, LONG)
    stopped = pool._pool[0].pid
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: processes()[stopped].state == "T")
    pool.terminate()
    assert pool._pool[0].exitcode == -9


def test_what_handles_sigterm_has_time_for_its_finally_clauses(ctx: Any) -> None:
    flag, running = ctx.Value("i", 0, lock=False), ctx.Semaphore(0)
    pool = ctx.Pool(1, tasks.clean_up, (flag, running))
    pool.apply_async(tasks.wait_and_clean_up, (1,))
    assert running.acquire(True, LONG)
    pool.terminate()
    assert flag.value == 1
    assert pool._pool[0].exitcode == 3


def test_sigterm_blocked_in_the_parent(ctx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE", LONG)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with ctx.Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_executor_with_a_task_that_ignores_sigterm(ctx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE", LONG)
    running = ctx.Semaphore(0)
    executor = mpipc.ProcessPoolExecutor(
        1, mp_context=ctx, initializer=tasks.defy_sigterm, initargs=("ignore", running)
    )
    future = executor.submit(tasks.say_and_spin, 1)
    assert running.acquire(True, LONG)
    assert running.acquire(True, LONG)
    executor.terminate_workers()
    assert isinstance(future.exception(LONG), BrokenPoolError)


# --- whatever fails ---------------------------------------------------------------------------------------------------


def refuse(*arguments: Any) -> Any:
    raise PermissionError(13, "refused")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("what", ["results", "tasks", "both"])
def test_terminate_after_ipcrm(ctx: Any, what: str, busy: bool) -> None:
    pool = ctx.Pool(2)
    assert pool.map(square, range(4)) == [0, 1, 4, 9]
    if busy:
        pool.map_async(tasks.spin, range(2), 1)
    channels = [] if what == "tasks" else [pool._engine.results]
    if what != "results":
        channels += [member.tasks for member in pool._engine.members()]
    for channel in channels:
        with contextlib.suppress(OSError, AttributeError):  # after the first one, the pool may have removed the others
            msgctl(channel._messages.block.id, IPC_RMID)
    receiver = pool._engine.receiver
    pool.terminate()
    pool.join()
    assert not any(process.is_alive() for process in pool._pool)
    assert not receiver.thread.is_alive(), "it has found out by itself that there is nothing to receive from"


@pytest.mark.parametrize("error", [BlockingIOError(11, "again"), PermissionError(13, "no"), MemoryError()], ids=repr)
def test_join_when_the_result_thread_cannot_be_told(
    ctx: Any, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ctx.Pool(2)
    assert pool.map(square, range(4)) == [0, 1, 4, 9]

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(pool._engine.receiver, "_tell", fail)
    pool.close()
    pool.join()
    assert not any(thread.name.startswith("mpipc-pool") for thread in threading.enumerate())


def test_join_when_the_result_thread_cannot_be_woken(ctx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when this process has lost its rights: the queue can neither be sent to nor removed."""
    from mpipc._pool import receiver as receiving

    monkeypatch.setattr(receiving, "LAST_WORD", 0.05)
    pool = ctx.Pool(2)
    results = pool._engine.results
    messages = results._messages
    monkeypatch.setattr(results, "remove", lambda: None)
    monkeypatch.setattr(pool._engine.receiver, "_tell", refuse)
    waiting = pool.map_async(tasks.spin, range(4))
    pool.terminate()
    pool.join()
    with pytest.raises(BrokenPoolError):
        waiting.get(LONG)
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (1,))
    receiver = pool._engine.receiver.thread
    assert receiver.is_alive()
    messages.remove()
    receiver.join()


def test_terminate_when_the_supervisor_waits_for_a_stopped_worker(ctx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does if the worker has the lock of the result queue: until the worker is dead."""
    pool = ctx.Pool(2)
    assert pool.map(square, range(4)) == [0, 1, 4, 9]
    stopped, other = list(pool._pool)
    told = threading.Event()
    tell = pool._engine.receiver._tell

    def wait_for_stopped(*arguments: Any) -> None:
        told.set()
        stopped.join(LONG)
        tell(*arguments)

    monkeypatch.setattr(pool._engine.receiver, "_tell", wait_for_stopped)
    os.kill(stopped.pid, signal.SIGSTOP)
    other.kill()
    assert told.wait(LONG)
    pool.terminate()
    assert stopped.exitcode == -9


@pytest.mark.slow_but("fork-with")
@pytest.mark.parametrize(
    ("method", "way"),
    [(method, "terminate") for method in START_METHODS]
    + [("fork", way) for way in ("join", "exit", "with", "shutdown")],
)
@pytest.mark.skipif(not can_become(), reason="only root can change its user id")
@pytest.mark.leftovers(reason="a process that may not remove a queue forgets it nevertheless")
def test_a_process_that_has_given_up_its_rights(method: str, way: str, tmp_path: Path) -> None:
    """It may neither send to its workers nor signal them; they go nevertheless."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, sys, mpipc
            from mpipc.exceptions import BrokenPoolError

            if __name__ == "__main__":
                way = sys.argv[2]
                ctx = mpipc.get_context(sys.argv[1])
                if way == "shutdown":
                    pool = mpipc.ProcessPoolExecutor(2, mp_context=ctx)
                    assert pool.submit(abs, -1).result() == 1
                else:
                    pool = ctx.Pool(2)
                    assert pool.map(abs, [-1]) == [1]
                    print(*(process.pid for process in pool._pool), flush=True)
                os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
                if way == "terminate":
                    pool.terminate(); pool.join()
                elif way == "join":
                    pool.close(); pool.join()
                elif way == "with":
                    with pool: pass
                elif way == "shutdown":
                    pool.shutdown()
            """
        )
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, program, method, way], capture_output=True, text=True, timeout=LONG, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < LONG
    deadline = time.monotonic() + LONG
    for pid in done.stdout.split():
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not os.path.exists(f"/proc/{pid}")

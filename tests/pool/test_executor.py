"""mpipc.ProcessPoolExecutor, and the standard one on mpipc's contexts."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import as_completed, wait
from typing import Any

import pytest
from support import pool_tasks as tasks
from support import run_script, wait_until

import mpipc
from mpipc.executor import BrokenProcessPool, ProcessPoolExecutor
from mpipc.pool import BrokenPoolError, MaybeEncodingError, RemoteTraceback, WorkerLostError

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60.0
"""Seconds after which a wait that should end counts as hanging."""


@pytest.fixture
def executor(ctx: Any) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, ctx) as made:
        yield made


class Gate:
    """Workers that run tasks.enter_and_wait: how many have begun, and the word to go on."""

    def __init__(self, ctx: Any) -> None:
        self.running, self.proceed = ctx.Semaphore(0), ctx.Event()
        self.initargs = ((self.running, self.proceed),)

    def await_running(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.running.acquire(True, LONG)


# --- the interface ----------------------------------------------------------------------------------------------------


def test_it_is_exported_and_recognised() -> None:
    assert mpipc.ProcessPoolExecutor is ProcessPoolExecutor
    assert issubclass(ProcessPoolExecutor, concurrent.futures.ProcessPoolExecutor)
    assert issubclass(BrokenProcessPool, concurrent.futures.process.BrokenProcessPool)
    assert issubclass(BrokenProcessPool, BrokenPoolError)


def test_submit(executor: ProcessPoolExecutor) -> None:
    assert executor.submit(tasks.square, 5).result(LONG) == 25
    assert executor.submit(tasks.add, 5, y=2).result(LONG) == 7
    futures = [executor.submit(tasks.square, x) for x in range(200)]
    assert [future.result(LONG) for future in futures] == [x * x for x in range(200)]
    assert all(future.done() and not future.cancelled() for future in futures)
    with pytest.raises(KeyError, match="3") as caught:
        executor.submit(tasks.fail, 3).result(LONG)
    assert type(caught.value.__cause__) is RemoteTraceback
    assert isinstance(executor.submit(tasks.fail, 3).exception(LONG), KeyError)


@pytest.mark.parametrize("chunksize", [1, 3, 1000])
def test_map(executor: ProcessPoolExecutor, chunksize: int) -> None:
    assert list(executor.map(tasks.square, range(100), chunksize=chunksize)) == [x * x for x in range(100)]
    assert list(executor.map(tasks.add, range(10), iter(range(20)), chunksize=chunksize)) == list(range(0, 20, 2))
    assert list(executor.map(tasks.square, [], chunksize=chunksize)) == []
    results = executor.map(tasks.fail_at, range(20), chunksize=chunksize)
    with pytest.raises(KeyError):
        list(results)


def test_map_with_a_timeout(ctx: Any) -> None:
    gate = Gate(ctx)
    with ProcessPoolExecutor(1, ctx, tasks.start, gate.initargs) as executor:
        results = executor.map(tasks.enter_and_wait, range(3), timeout=0.05)
        gate.await_running()
        with pytest.raises(TimeoutError):
            next(results)
        gate.proceed.set()  # the others were cancelled, or are run


def test_a_mapped_function_is_pickled_once(executor: ProcessPoolExecutor) -> None:
    function = tasks.CountingPickles()
    assert list(executor.map(function, range(50))) == list(range(50))
    assert list(executor.map(function, range(50), chunksize=7)) == list(range(50))
    assert function.pickles == 2


def test_large_arguments_and_results(executor: ProcessPoolExecutor) -> None:
    data = os.urandom(3_000_000)
    assert executor.submit(tasks.identity, data).result(LONG) == data


def test_what_cannot_be_pickled(executor: ProcessPoolExecutor) -> None:
    for future in (
        executor.submit(lambda: 1),
        executor.submit(tasks.identity, lambda: 1),
    ):
        assert isinstance(future.exception(LONG), AttributeError | pickle.PicklingError)
    assert isinstance(executor.submit(tasks.unsendable).exception(LONG), MaybeEncodingError)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        list(executor.map(lambda x: x, range(3)))
    assert executor.submit(tasks.square, 3).result(LONG) == 9


def test_arguments_are_checked() -> None:
    for workers in (0, -1):
        with pytest.raises(ValueError, match="max_workers"):
            ProcessPoolExecutor(workers)
    with pytest.raises(TypeError, match="initializer"):
        ProcessPoolExecutor(1, initializer=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_tasks_per_child"):
        ProcessPoolExecutor(1, max_tasks_per_child=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        ProcessPoolExecutor(1, max_tasks_per_child=0)
    with pytest.raises(ValueError, match="retries"):
        ProcessPoolExecutor(1, retries=-1)
    with pytest.raises(ValueError, match="timeout"):
        ProcessPoolExecutor(1, timeout=0)
    with pytest.raises(ValueError, match="chunksize"):
        ProcessPoolExecutor(1).map(tasks.square, [1], chunksize=0)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_with_a_buffersize_reads_no_further(executor: ProcessPoolExecutor, chunksize: int) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    results = executor.map(tasks.square, numbers(), chunksize=chunksize, buffersize=4)
    assert len(read) == 4 * chunksize  # before the first result is asked for, as in Python 3.14
    for number in range(20):
        assert next(results) == number * number
        assert len(read) == (4 + number // chunksize + 1) * chunksize


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("buffersize", [1, 2, 50])
def test_map_with_a_buffersize(executor: ProcessPoolExecutor, chunksize: int, buffersize: int) -> None:
    options = {"chunksize": chunksize, "buffersize": buffersize}
    assert list(executor.map(tasks.square, range(30), **options)) == [x * x for x in range(30)]
    assert list(executor.map(tasks.add, range(10), iter(range(20)), **options)) == list(range(0, 20, 2))
    assert list(executor.map(tasks.square, [], **options)) == []
    results = executor.map(tasks.fail_at, range(20), **options)
    with pytest.raises(KeyError):
        list(results)


def test_map_with_a_buffersize_does_not_keep_the_executor(ctx: Any) -> None:
    executor = ProcessPoolExecutor(1, ctx)
    results = executor.map(tasks.square, itertools.count(), buffersize=3)
    assert next(results) == 0
    reference = weakref.ref(executor)
    del executor
    gc.collect()
    assert reference() is None
    assert list(results) == [1, 4, 9]  # what was submitted by then


def test_map_with_a_buffersize_after_shutdown(ctx: Any) -> None:
    executor = ProcessPoolExecutor(1, ctx)
    results = executor.map(tasks.square, itertools.count(), buffersize=2)
    assert next(results) == 0
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        next(results)


def test_impossible_buffersizes(executor: ProcessPoolExecutor) -> None:
    with pytest.raises(TypeError, match=r"buffersize must be an integer or None, got 1\.5"):
        executor.map(tasks.square, [1], buffersize=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="buffersize must be None or > 0, got 0"):
        executor.map(tasks.square, [1], buffersize=0)


def test_nothing_is_started_before_it_is_needed(ctx: Any) -> None:
    with ProcessPoolExecutor(2, ctx) as executor:
        assert executor._processes == {}
        assert executor.statistics().workers == []
        executor.submit(tasks.square, 1).result(LONG)
        assert len(executor._processes) == 2
        statistics = executor.statistics()
        assert sum(worker.tasks for worker in statistics.workers) == 1


def test_max_tasks_per_child(ctx: Any) -> None:
    with ProcessPoolExecutor(2, ctx, max_tasks_per_child=3) as executor:
        pids = list(executor.map(tasks.pid_after, range(30)))
    assert max(pids.count(pid) for pid in pids) <= 3
    assert len(set(pids)) >= 10


def test_workers_may_have_children(executor: ProcessPoolExecutor) -> None:
    """They are no daemons, as with the standard executor: a task may use processes, and executors, of its own."""
    assert executor.submit(square_in_an_executor, 7).result(LONG) == 49


def square_in_an_executor(x: int) -> int:
    return ProcessPoolExecutor(1).submit(tasks.square, x).result(LONG)  # left to be collected


# --- futures ----------------------------------------------------------------------------------------------------------


def test_callbacks_and_waiting(executor: ProcessPoolExecutor) -> None:
    seen: list[int] = []
    over = threading.Event()
    futures = [executor.submit(tasks.square, x) for x in range(20)]
    for future in futures:
        future.add_done_callback(lambda done: seen.append(done.result()) or (len(seen) == 20 and over.set()))
    assert sorted(future.result() for future in as_completed(futures, LONG)) == [x * x for x in range(20)]
    done, pending = wait(futures, LONG)
    assert (len(done), pending) == (20, set())
    assert over.wait(LONG)
    assert sorted(seen) == [x * x for x in range(20)]


def test_a_callback_may_submit(executor: ProcessPoolExecutor) -> None:
    chained: list[Any] = []
    over = threading.Event()

    def go_on(future: Any) -> None:
        chained.append(executor.submit(tasks.square, future.result()))
        over.set()

    executor.submit(tasks.square, 3).add_done_callback(go_on)
    assert over.wait(LONG)
    assert chained[0].result(LONG) == 81


def test_cancellation(ctx: Any) -> None:
    gate = Gate(ctx)
    with ProcessPoolExecutor(1, ctx, tasks.start, gate.initargs) as executor:
        futures = [executor.submit(tasks.enter_and_wait, x) for x in range(20)]
        gate.await_running()
        assert futures[0].running()
        assert not futures[0].cancel()
        assert futures[-1].cancel()
        assert futures[-1].cancelled()
        called: list[Any] = []
        futures[-2].add_done_callback(called.append)
        assert futures[-2].cancel()
        assert called == [futures[-2]]
        gate.proceed.set()
        assert [future.result(LONG) for future in futures[:18]] == list(range(18))
        done, pending = wait(futures, LONG)  # the cancelled ones are notified
        assert (len(done), len(pending)) == (20, 0)
        assert executor.submit(tasks.square, 2).result(LONG) == 4
    assert gate.running.get_value() == 17  # no cancelled task was run


def test_asyncio(executor: ProcessPoolExecutor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, tasks.square, x) for x in range(30)]
        with pytest.raises(WorkerLostError):
            await loop.run_in_executor(executor, tasks.leave, 3)
        return await asyncio.wait_for(asyncio.gather(*calls), LONG)

    assert asyncio.run(main()) == [x * x for x in range(30)]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_shutdown(ctx: Any) -> None:
    executor = ProcessPoolExecutor(2, ctx)
    futures = [executor.submit(tasks.square, x) for x in range(50)]
    processes = list(executor._processes.values())
    executor.shutdown(wait=False)
    for call in (executor.submit, executor.map):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call(tasks.square, [1])
    assert [future.result(LONG) for future in futures] == [x * x for x in range(50)]
    executor.shutdown()
    executor.shutdown()
    assert [process.exitcode for process in processes] == [0, 0]
    with pytest.raises(RuntimeError), executor:
        executor.submit(tasks.square, 1)
    ProcessPoolExecutor(2, ctx).shutdown()


def test_shutdown_with_cancel_futures(ctx: Any) -> None:
    gate = Gate(ctx)
    executor = ProcessPoolExecutor(2, ctx, tasks.start, gate.initargs)
    futures = [executor.submit(tasks.enter_and_wait, x) for x in range(40)]
    gate.await_running(2)
    executor.shutdown(wait=False, cancel_futures=True)
    cancelled = [future for future in futures if future.cancelled()]
    assert len(cancelled) >= 30
    assert wait(cancelled, LONG).not_done == set()
    gate.proceed.set()
    executor.shutdown()
    for x, future in enumerate(futures):
        assert future.cancelled() or future.result(LONG) == x


def test_a_dropped_executor_completes_its_futures(ctx: Any) -> None:
    before = set(threading.enumerate())
    executor = ProcessPoolExecutor(2, ctx)
    futures = [executor.submit(tasks.square, x) for x in range(50)]
    processes = list(executor._processes.values())
    reference = weakref.ref(executor)
    del executor
    gc.collect()
    assert reference() is None
    assert [future.result(LONG) for future in futures] == [x * x for x in range(50)]
    # Not before it has ended: the supervisor asks for exit codes, too, and of two the second is told 255, or nothing.
    wait_until(lambda: set(threading.enumerate()) <= before, timeout=LONG)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
def test_workers_can_be_ended(ctx: Any, how: str) -> None:
    gate = Gate(ctx)
    executor = ProcessPoolExecutor(2, ctx, tasks.start, gate.initargs)
    futures = [executor.submit(tasks.enter_and_wait, x) for x in range(10)]
    gate.await_running(2)
    ProcessPoolExecutor.__dict__[how](executor)  # from 3.14 on they are in the interface
    for future in futures:
        with pytest.raises(BrokenProcessPool):
            future.result(LONG)
    with pytest.raises(RuntimeError):
        executor.submit(tasks.square, 1)


def test_a_program_that_ends_waits_for_its_futures(start_method: str) -> None:
    script = f"""
    import mpipc
    from support import pool_tasks
    if __name__ == "__main__":
        executor = mpipc.ProcessPoolExecutor(2, mpipc.get_context({start_method!r}))
        for x in range(20):
            executor.submit(pool_tasks.square, x).add_done_callback(lambda future: print(future.result(), flush=True))
    """
    result = run_script(script)
    assert sorted(map(int, result.stdout.split())) == [x * x for x in range(20)]
    assert result.stderr == ""


def test_nothing_is_accepted_while_the_interpreter_ends() -> None:
    result = run_script(
        """
    import mpipc
    from support import pool_tasks
    from support import wait_until
    if __name__ == "__main__":
        executor = mpipc.ProcessPoolExecutor(1)
        def again(future):
            wait_until(lambda: mpipc.executor._exiting)
            try:
                executor.submit(pool_tasks.square, 2)
            except RuntimeError as error:
                print(error)
        executor.submit(pool_tasks.square, 2).add_done_callback(again)
    """
    )
    assert result.stdout == "cannot schedule new futures after interpreter shutdown\n"


def test_a_forked_child_is_told_to_make_its_own(ctx: Any) -> None:
    executor = ProcessPoolExecutor(1, ctx)
    executor.submit(tasks.square, 2).result(LONG)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            try:
                executor.submit(tasks.square, 2)
            except RuntimeError:
                executor.shutdown()  # not the parent's
                os._exit(7)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert executor.submit(tasks.square, 3).result(LONG) == 9
    executor.shutdown()


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_fails_its_own_future(ctx: Any) -> None:
    gate = Gate(ctx)
    with ProcessPoolExecutor(2, ctx, tasks.start, gate.initargs) as executor:
        futures = [executor.submit(tasks.enter_and_wait, x) for x in range(8)]
        gate.await_running(2)
        victim = next(iter(executor._processes))
        os.kill(victim, signal.SIGKILL)
        gate.proceed.set()
        errors = [future.exception(LONG) for future in futures]
        (error,) = [error for error in errors if error is not None]
        assert isinstance(error, WorkerLostError)
        assert (error.pid, error.signal, error.function) == (victim, "SIGKILL", "support.pool_tasks.enter_and_wait")
        assert [future.result() for future in futures if future.exception() is None] == [
            x for x in range(8) if errors[x] is None
        ]
        assert executor.submit(tasks.square, 3).result(LONG) == 9


@pytest.mark.parametrize(
    ("function", "argument", "reason"),
    [
        (tasks.leave, 3, "exited with code 3"),
        (tasks.die, signal.SIGKILL, "SIGKILL"),
        (tasks.die, signal.SIGSEGV, "SIGSEGV"),
    ],
)
def test_ways_to_die(executor: ProcessPoolExecutor, function: Any, argument: int, reason: str) -> None:
    others = [executor.submit(tasks.square, x) for x in range(10)]
    with pytest.raises(WorkerLostError, match=reason):
        executor.submit(function, argument).result(LONG)
    with pytest.raises(WorkerLostError, match="item 3"):
        list(executor.map(tasks.die_at_three, range(8)))
    assert [other.result(LONG) for other in others] == [x * x for x in range(10)]


def test_retries(ctx: Any) -> None:
    with ProcessPoolExecutor(2, ctx, tasks.start, (ctx.Event(),), retries=1) as executor:
        assert list(executor.map(tasks.die_once, range(10))) == list(range(10))
        assert executor.statistics().replaced == 1


def test_timeout(ctx: Any) -> None:
    with ProcessPoolExecutor(2, ctx, timeout=0.2) as executor:
        slow = executor.submit(tasks.spin, 1)
        fast = [executor.submit(tasks.square, x) for x in range(10)]
        assert [future.result(LONG) for future in fast] == [x * x for x in range(10)]
        error = slow.exception(LONG)
        assert isinstance(error, TimeoutError)
        assert isinstance(error, mpipc.TimeoutError)
        assert isinstance(error, mpipc.TaskTimeoutError)
        assert "support.pool_tasks.spin did not end within 0.2 s" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("initializer", "initargs"),
    [(tasks.die, (signal.SIGKILL,)), (tasks.exit_at_start, (5,)), (tasks.fail_to_start, ())],
)
def test_workers_that_never_get_ready_break_the_executor(
    start_method: str, initializer: Any, initargs: tuple[Any, ...]
) -> None:
    script = f"""
    import faulthandler, os, signal, sys
    import concurrent.futures, mpipc
    from support import pool_tasks
    if __name__ == "__main__":
        initializer, initargs = pool_tasks.{initializer.__name__}, {tuple(map(int, initargs))!r}
        executor = mpipc.ProcessPoolExecutor(1, mpipc.get_context({start_method!r}), initializer, initargs)
        futures = [executor.submit(pool_tasks.square, x) for x in range(5)]
        for future in futures:
            try:
                future.result(60)
            except concurrent.futures.process.BrokenProcessPool as error:
                print("broken", "in a row" in str(error))
        try:
            executor.submit(pool_tasks.square, 1)
        except concurrent.futures.process.BrokenProcessPool:
            print("refused")
        executor.shutdown()
    """
    assert run_script(script).stdout.splitlines() == ["broken True"] * 5 + ["refused"]


# --- the standard executor --------------------------------------------------------------------------------------------


def test_the_standard_executor_on_an_mpipc_context(ctx: Any) -> None:
    gate = Gate(ctx)
    with concurrent.futures.ProcessPoolExecutor(2, ctx, tasks.start, gate.initargs) as executor:
        assert list(executor.map(tasks.square, range(50), chunksize=3)) == [x * x for x in range(50)]
        data = os.urandom(1_000_000)
        assert executor.submit(tasks.identity, data).result(LONG) == data
        with pytest.raises(KeyError):
            executor.submit(tasks.fail, 1).result(LONG)
        futures = [executor.submit(tasks.enter_and_wait, x) for x in range(10)]
        gate.await_running(2)
        assert futures[-1].cancel()
        gate.proceed.set()
        assert sorted(future.result() for future in as_completed(futures[:-1], LONG)) == list(range(9))
        assert executor.submit(type_of_process).result(LONG) == "mpipc.context"


def type_of_process() -> str:
    return type(mpipc.current_process()).__module__


def test_the_standard_executor_breaks_when_a_worker_dies(ctx: Any) -> None:
    """Its own rule, not ours: one death ends it. It says so, and does not hang."""
    with concurrent.futures.ProcessPoolExecutor(2, ctx) as executor:
        futures = [executor.submit(tasks.die)] + [executor.submit(tasks.pid_after, x) for x in range(5)]
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            futures[0].result(LONG)
        assert wait(futures, LONG).not_done == set()


def test_standard_executor_after_a_shutdown_that_does_not_wait(ctx: Any) -> None:
    executor = concurrent.futures.ProcessPoolExecutor(1, ctx)
    future = executor.submit(tasks.square, 6)
    manager: Any = executor._executor_manager_thread  # type: ignore[attr-defined]
    executor.shutdown(wait=False)
    assert future.result(LONG) == 36
    manager.join(LONG)
    assert not manager.is_alive()


def test_arguments_are_not_kept(executor: ProcessPoolExecutor) -> None:
    argument = Collectable()
    reference = weakref.ref(argument)
    executor.submit(tasks.identity, argument).result(LONG)
    del argument

    def gone() -> bool:
        gc.collect()
        return reference() is None

    wait_until(gone)


class Collectable:
    pass


@pytest.mark.slow_with("forkserver")
def test_cancelling_while_tasks_are_handed_out(ctx: Any) -> None:
    """Both tell a future that it runs, or does not; each future is told once."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            executor = mpipc.ProcessPoolExecutor(2, mp_context=ctx)
            futures = [executor.submit(tasks.square, x) for x in range(200)]
            futures[0].result(LONG)
            executor.shutdown(cancel_futures=True)
            assert all(future.done() for future in futures)
            for x, future in enumerate(futures):
                assert future.cancelled() or future.result() == x * x
    finally:
        sys.setswitchinterval(interval)


def test_a_future_that_somebody_else_sets(ctx: Any) -> None:
    running, proceed = ctx.Semaphore(0), ctx.Event()
    with mpipc.ProcessPoolExecutor(1, ctx, tasks.start, ((running, proceed),)) as executor:
        waiting = executor.submit(tasks.enter_and_wait, 1)
        assert running.acquire(True, LONG)
        futures = [executor.submit(tasks.square, x) for x in range(10)]
        futures[7].set_result("mine")
        proceed.set()
        assert waiting.result(LONG) is not None
        expected: list[Any] = [x * x for x in range(10)]
        expected[7] = "mine"
        assert [future.result(LONG) for future in futures] == expected


@pytest.mark.parametrize("what", ["mpipc.Pool(2)", "mpipc.ProcessPoolExecutor(2).submit(abs, 1)"])
def test_ctrl_c_while_a_worker_starts(what: str) -> None:
    """It is known then, and ended, and nobody waits for it."""
    result = run_script(
        f"""
        import multiprocessing
        import os
        import signal
        import mpipc

        armed = True
        os.register_at_fork(before=lambda: armed and os.kill(os.getpid(), signal.SIGINT))
        if __name__ == "__main__":
            mpipc.set_start_method("fork")
            mpipc.Lock()
            try:
                {what}
            except KeyboardInterrupt:
                print("interrupted", multiprocessing.active_children())
            armed = False
        """
    )
    assert result.stdout == "interrupted []\n"

"""Pools whose workers, or whose parent, die: killed, exited, in a task, in the initializer, or doing nothing."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import child_processes, processes, run_script, start_script, wait_until
from support import pool_tasks as tasks

import mpipc
from mpipc.pool import BrokenPoolError, Pool, WorkerLostError

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60.0


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)


# --- one death --------------------------------------------------------------------------------------------------------


def test_the_task_of_a_killed_worker_fails_and_no_other(ctx: Any) -> None:
    """Six tasks on two workers, one of which is killed while both are at work."""
    running, proceed = ctx.Semaphore(0), ctx.Event()
    with ctx.Pool(2, tasks.start, ((running, proceed),)) as pool:
        results = pool.imap(tasks.enter_and_wait, range(6))
        for _ in range(2):
            assert running.acquire(True, LONG)
        (victim,) = [worker for worker in pool.statistics().workers if worker.item == 1]
        os.kill(victim.pid, signal.SIGKILL)
        proceed.set()
        assert next(results) == 0
        with pytest.raises(WorkerLostError) as caught:
            next(results)
        assert list(results) == [2, 3, 4, 5]
        error = caught.value
        assert (error.pid, error.exitcode, error.signal) == (victim.pid, -9, "SIGKILL")
        assert (error.function, error.index, error.attempts) == ("support.pool_tasks.enter_and_wait", 1, 1)
        text = f"worker {victim.pid} was killed by SIGKILL while it was running {error.function} on item 1"
        assert str(error).partition(";")[0] == text  # and how large it was, where that is known
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]
        wait_until(lambda: len(pool._pool) == 2)
        assert victim.pid not in {worker.pid for worker in pool._pool}
        pool.close()
        pool.join()


def test_map_raises_as_for_any_error(ctx: Any) -> None:
    done: list[Any] = []
    with ctx.Pool(2) as pool:
        with pytest.raises(WorkerLostError, match="item 3"):
            pool.map(tasks.die_at_three, range(8), 1)
        with pytest.raises(WorkerLostError, match="item 3") as caught:
            pool.map(tasks.die_at_three, range(20), 5)  # the item within its chunk
        assert caught.value.index == 3
        with pytest.raises(WorkerLostError):
            pool.starmap_async(tasks.die_at, [(1, 0), (5, 5)], 1, error_callback=done.append).get(LONG)
        assert [type(error) for error in done] == [WorkerLostError]
        assert sorted(ordered_or_lost(pool.imap_unordered(tasks.die_at_three, range(8)))) == [-1, 0, 1, 2, 4, 5, 6, 7]
        assert ordered_or_lost(pool.imap(tasks.die_at_three, iter(range(8)))) == [0, 1, 2, -1, 4, 5, 6, 7]


def ordered_or_lost(results: Any) -> list[int]:
    found = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found
        except WorkerLostError:
            found.append(-1)


@pytest.mark.parametrize(
    ("function", "argument", "exitcode", "name", "text"),
    [
        (tasks.leave, 3, 3, None, "exited with code 3"),
        (tasks.leave, 0, 0, None, "exited with code 0"),
        (tasks.call_exit, 5, 5, None, "exited with code 5"),
        (tasks.die, signal.SIGSEGV, -11, "SIGSEGV", "was killed by SIGSEGV"),
        (tasks.die, signal.SIGTERM, -15, "SIGTERM", "was killed by SIGTERM"),
    ],
)
def test_ways_to_die(ctx: Any, function: Any, argument: int, exitcode: int, name: str | None, text: str) -> None:
    with ctx.Pool(1) as pool:
        with pytest.raises(WorkerLostError, match=text) as caught:
            pool.apply(function, (argument,))
        assert (caught.value.exitcode, caught.value.signal) == (exitcode, name)
        assert pool.apply(tasks.square, (3,)) == 9


def test_a_task_that_kills_while_it_is_unpickled_is_not_sent_again(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        with pytest.raises(WorkerLostError):
            pool.apply(tasks.identity, (tasks.DiesWhenUnpickled(),))
        assert pool.apply(tasks.square, (3,)) == 9
        assert pool.statistics().replaced == 1


def test_idle_workers_killed_then_a_map(ctx: Any) -> None:
    with ctx.Pool(3) as pool:
        for _ in range(3):
            assert pool.map(tasks.square, range(20), 1) == [x * x for x in range(20)]
            for process in list(pool._pool):
                kill(process)
        assert pool.map(tasks.square, range(20), 1) == [x * x for x in range(20)]


def test_what_waits_behind_a_killed_worker_is_run_once(ctx: Any) -> None:
    """The only worker is killed with a task running and one in its queue: the second one is run by the next worker."""
    running, proceed = ctx.Semaphore(0), ctx.Event()
    with ctx.Pool(1, tasks.start, ((running, proceed),)) as pool:
        results = [pool.apply_async(tasks.enter_and_wait, (x,)) for x in range(4)]
        assert running.acquire(True, LONG)
        kill(pool._pool[0])
        with pytest.raises(WorkerLostError):
            results[0].get(LONG)
        proceed.set()
        assert [result.get(LONG) for result in results[1:]] == [1, 2, 3]
        assert running.get_value() == 3  # each of the others has begun once


def test_all_workers_killed_at_once(ctx: Any) -> None:
    running, proceed = ctx.Semaphore(0), ctx.Event()
    with ctx.Pool(3, tasks.start, ((running, proceed),)) as pool:
        results = [pool.apply_async(tasks.enter_and_wait, (x,)) for x in range(9)]
        for _ in range(3):
            assert running.acquire(True, LONG)
        for process in list(pool._pool):
            kill(process)
        for result in results[:3]:
            with pytest.raises(WorkerLostError):
                result.get(LONG)
        proceed.set()
        assert [result.get(LONG) for result in results[3:]] == [3, 4, 5, 6, 7, 8]


def test_killed_while_starting(ctx: Any) -> None:
    running, proceed = ctx.Semaphore(0), ctx.Event()
    with ctx.Pool(2, tasks.wait_in_initializer, (running, proceed)) as pool:
        result = pool.map_async(tasks.square, range(10), 1)
        for _ in range(2):
            assert running.acquire(True, LONG)
        kill(pool._pool[0])
        assert running.acquire(True, LONG)  # the one that took its place
        proceed.set()
        assert result.get(LONG) == [x * x for x in range(10)]


def test_the_worker_with_the_last_task_is_killed_after_close(ctx: Any) -> None:
    running, proceed = ctx.Semaphore(0), ctx.Event()
    with ctx.Pool(2, tasks.start, ((running, proceed),)) as pool:
        result = pool.apply_async(tasks.enter_and_wait, (1,))
        pool.close()
        assert running.acquire(True, LONG)
        (busy,) = [worker for worker in pool.statistics().workers if worker.function]
        os.kill(busy.pid, signal.SIGKILL)
        pool.join()
        with pytest.raises(WorkerLostError):
            result.get(LONG)


def test_killed_during_terminate(ctx: Any) -> None:
    for _ in range(5):
        pool = ctx.Pool(2)
        pool.map_async(tasks.spin, range(10), 1)
        victims = list(pool._pool)
        killer = threading.Thread(target=lambda victims=victims: [kill(process) for process in victims[:1]])
        killer.start()
        pool.terminate()
        killer.join()
        pool.join()
        assert all(process.exitcode is not None for process in victims)


def test_a_forked_child_that_holds_everything_open(ctx: Any) -> None:
    """A worker's death is noticed though the pipe of its sentinel is still open."""
    with ctx.Pool(1) as pool:
        child = pool.apply(tasks.fork_and_leave_child, (0,))
        try:
            kill(pool._pool[0])
            assert pool.apply(tasks.square, (3,)) == 9
        finally:
            os.kill(child, signal.SIGKILL)
    pool.join()


def test_a_task_that_forks_returns_once(ctx: Any) -> None:
    with ctx.Pool(2) as pool:
        assert pool.map(tasks.fork_and_return, range(20), 1) == list(range(20))
        assert pool.statistics().replaced == 0


def test_somebody_else_reaps_the_workers() -> None:
    """os.wait() in the program takes the exit status of a worker, before the supervisor asks for it."""
    with mpipc.get_context("fork").Pool(1) as pool:
        assert pool.apply(tasks.square, (3,)) == 9
        (worker,) = pool._pool
        taken = threading.Event()
        asked = worker._popen.poll

        def ask(*flags: int) -> Any:
            assert taken.wait(LONG)
            return asked(*flags)

        worker._popen.poll = ask
        os.kill(worker.pid, signal.SIGKILL)
        assert os.waitpid(worker.pid, 0) == (worker.pid, signal.SIGKILL)
        taken.set()
        assert pool.apply(tasks.square, (3,)) == 9
        assert pool.statistics().replaced == 1


# --- retries ----------------------------------------------------------------------------------------------------------


def test_retries(ctx: Any) -> None:
    token = ctx.Event()
    with Pool(2, tasks.start, (token,), context=ctx, retries=1) as pool:
        assert pool.map(tasks.die_once, range(10), 2) == list(range(10))
        with pytest.raises(WorkerLostError, match="second attempt") as caught:
            pool.apply(tasks.die)
        assert caught.value.attempts == 2
        with pytest.raises(KeyError):  # an exception is an answer, and not retried
            pool.apply(tasks.fail, (1,))


@pytest.mark.slow_with("forkserver")
@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
def test_random_kills(ctx: Any, method: str, tmp_path: Path) -> None:
    """A dozen workers are killed at random moments: each result is right, each task is run at least once."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    choose = random.Random(seed).choice
    total = 400
    log = tmp_path / "log"
    log.touch()
    over = threading.Event()
    with Pool(3, tasks.start, (str(log),), context=ctx, retries=1000) as pool:

        def kill_now_and_then() -> None:
            for _ in range(12):
                if over.wait(0.05):
                    return
                victims = [worker.pid for worker in pool.statistics().workers if worker.tasks]
                if victims:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(choose(victims), signal.SIGKILL)

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        try:
            found = getattr(pool, method)(tasks.log_and_square, range(total), 1)
            found = sorted(found) if method == "imap_unordered" else list(found)
        finally:
            over.set()
            killer.join()
        replaced = pool.statistics().replaced
    assert found == [x * x for x in range(total)]
    runs = collections.Counter(int(line) for line in log.read_text().split())
    assert set(runs) == set(range(total))
    # At most one task is run again for each worker that died: the one that it had in hand.
    assert sum(runs.values()) - total <= replaced


# --- timeouts ---------------------------------------------------------------------------------------------------------


def test_timeout(ctx: Any) -> None:
    with ctx.Pool(2) as pool:
        with pytest.raises(mpipc.TimeoutError, match=r"spin did not end within 0\.05 s"):
            pool.apply(tasks.spin, (1,), timeout=0.05)
        mixed = [pool.apply_async(tasks.square, (x,), timeout=LONG) for x in range(20)]
        mixed.insert(7, pool.apply_async(tasks.spin, (1,), timeout=0.05))
        for index, result in enumerate(mixed):
            if index == 7:
                with pytest.raises(mpipc.TimeoutError):
                    result.get(LONG)
            else:
                result.get(LONG)
        assert pool.map(tasks.square, range(100), 1, timeout=LONG) == [x * x for x in range(100)]
        assert pool.statistics().replaced == 2


def test_a_task_that_ends_is_not_hit_by_its_timeout() -> None:
    """Tasks that take from nothing to twice as long as they may: each one is either done or timed out, and the one that
    comes after it, which the worker runs next, is never hit in its place."""
    limit = 0.012
    with mpipc.get_context("fork").Pool(2) as pool:
        results, others = [], []
        for number in range(150):
            results.append(pool.apply_async(time.sleep, (2 * limit * number / 149,), timeout=limit))
            others.append(pool.apply_async(tasks.square, (number,), timeout=LONG))
        outcomes = collections.Counter()
        for result in results:
            try:
                outcomes[result.get(LONG)] += 1
            except mpipc.TimeoutError:
                outcomes["late"] += 1
        assert [other.get(LONG) for other in others] == [number**2 for number in range(150)]
        assert outcomes[None] + outcomes["late"] == 150
        assert outcomes[None] and outcomes["late"], "both happened"
        assert pool.statistics().replaced == outcomes["late"]


# --- initializers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("initializer", "arguments", "text"),
    [(tasks.fail_to_start, (), "exited with code 1"), (tasks.exit_at_start, (4,), "exited with code 4")],
)
def test_an_initializer_that_always_fails(ctx: Any, initializer: Any, arguments: Any, text: str) -> None:
    errors: list[Any] = []
    with ctx.Pool(2, initializer, arguments) as pool:
        result = pool.map_async(tasks.square, range(5), error_callback=errors.append)
        with pytest.raises(BrokenPoolError, match=text) as caught:
            result.get(LONG)
        assert errors == [caught.value]
        if initializer is tasks.fail_to_start:
            assert "no database" in repr(caught.value.__cause__)
        with pytest.raises(BrokenPoolError):
            pool.apply(tasks.square, (1,))
    pool.join()


def test_an_initializer_that_fails_once(ctx: Any) -> None:
    with ctx.Pool(2, tasks.fail_to_start_once, (ctx.Semaphore(1),)) as pool:
        assert pool.map(tasks.square, range(10), 1) == [x * x for x in range(10)]
        wait_until(lambda: pool.statistics().replaced == 1)


# --- the parent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_workers_end_with_their_parent(start_method: str, when: str) -> None:
    script = f"""
        import mpipc, sys, time
        from support import pool_tasks
        if __name__ == "__main__":
            context = mpipc.get_context({start_method!r})
            pool = context.Pool(3)
            pool.map(pool_tasks.square, range(30))
            if {when!r} == "busy":
                pool.map_async(pool_tasks.spin, range(100), 1)
            print(*[process.pid for process in pool._pool], flush=True)
            sys.stdin.read()
    """
    with start_script(script) as parent:
        pids = {int(word) for word in parent.stdout.readline().split()}
        assert len(pids) == 3
        parent.kill()
        parent.wait()
        wait_until(lambda: not any(pid in pids and process.state != "Z" for pid, process in processes().items()))


def test_ctrl_c_leaves_only_the_programs_own_traceback(start_method: str) -> None:
    script = f"""
        import mpipc, signal
        from support import pool_tasks
        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)
            context = mpipc.get_context({start_method!r})
            running = context.Semaphore(0)
            with context.Pool(2, pool_tasks.start, ((running, context.Event()),)) as pool:
                result = pool.map_async(pool_tasks.enter_and_wait, range(2), 1)
                for _ in range(2):
                    running.acquire()
                try:
                    print("running", flush=True)
                    result.get()
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
    """
    with start_script(script) as program:
        assert program.stdout.readline() == "running\n"
        wait_until(lambda: len(child_processes(program.pid)) > 0)
        os.killpg(program.pid, signal.SIGINT)
        result = program.finish()
    assert result.stdout == "interrupted\n"
    assert result.stderr == ""
    assert result.returncode == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])  # a child of the fork server begins outside of our reach
def test_ctrl_c_while_a_worker_is_being_started(method: str, tmp_path: Path) -> None:
    """It comes before the worker has got to any code of the pool. It ends without a word, and is replaced."""
    script = f"""
        import os, signal
        def interrupt_once():
            try:
                os.close(os.open({str(tmp_path / "interrupted")!r}, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGINT)
        if __name__ == "__mp_main__":
            interrupt_once()
        import mpipc
        from support import pool_tasks
        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)
            mpipc.Lock()  # whatever mpipc forks for itself is there
            if {method!r} == "fork":
                os.register_at_fork(after_in_child=interrupt_once)
            with mpipc.get_context({method!r}).Pool(1) as pool:
                print(pool.map(pool_tasks.interruptible, range(3), 1), pool.statistics().replaced)
    """
    result = run_script(script)
    assert (tmp_path / "interrupted").exists()
    assert (result.stdout, result.stderr) == ("[True, True, True] 1\n", "")

"""WorkQueue: a job is taken until it is acknowledged, and comes back when it is not."""

from __future__ import annotations

import contextlib
import gc
import os
import queue as stdlib_queue
import random
import signal
import threading
from typing import Any

import pytest
from support import wait_until
from support.work_crew import (
    Book,
    Explosive,
    Unpicklable,
    join_and_tell,
    take,
    take_and_die,
    take_and_end,
    take_and_wait,
    take_until_shut,
    work,
)

import mpipc
from mpipc.queues import ShutDown
from mpipc.work_queue import FailedJob, Job, WorkQueue


def values(queue: Any) -> list[Any]:
    """Of all jobs that are there, which are acknowledged."""
    found = []
    with contextlib.suppress(stdlib_queue.Empty):
        while True:
            with queue.take(False) as job:
                found.append(job.value)
    return found


def run(ctx: Any, target: Any, *args: Any) -> Any:
    process = ctx.Process(target=target, args=args)
    process.start()
    return process


def run_to_its_end(ctx: Any, target: Any, *args: Any) -> int:
    process = run(ctx, target, *args)
    process.join()
    return process.exitcode  # type: ignore[no-any-return]


# ---- in one process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, None, "text", b"b" * 3000, {"a": [1, 2]}, list(range(5000)), b"x" * 3_000_000])
def test_a_job_of_any_size(value: Any) -> None:
    queue: Any = mpipc.WorkQueue()
    queue.put(value)
    job = queue.take()
    assert (job.value, job.attempts, queue.qsize(), queue.unfinished()) == (value, 1, 0, 1)
    job.give_back()
    assert (queue.qsize(), queue.unfinished()) == (1, 1)
    with queue.take() as job:
        assert (job.value, job.attempts) == (value, 2)
    assert queue.unfinished() == 0
    assert queue.join()
    assert queue.statistics()[:2] == (0, 0)


def test_an_exception_gives_it_back_before_the_others() -> None:
    queue: WorkQueue[int] = mpipc.WorkQueue()
    for number in range(6):
        queue.put(number)
    jobs = [queue.take() for _ in range(4)]
    for which in (2, 0, 3):
        with pytest.raises(ZeroDivisionError), jobs[which]:
            1 / 0  # noqa: B018
    assert queue.qsize() == 5
    assert values(queue) == [0, 2, 3, 4, 5], "in the order in which they were put, without the one that is out"
    jobs[1].ack()
    assert queue.join()


def test_it_is_settled_once() -> None:
    queue: Any = mpipc.WorkQueue()
    queue.put(1)
    with queue.take() as job:
        job.ack()  # before the block ends: leaving it does nothing more
    for settle in (job.ack, job.give_back):
        with pytest.raises(ValueError, match="already"):
            settle()
    queue.put(2)
    with queue.take() as job:
        job.give_back()
    assert values(queue) == [2]


def test_another_thread_acknowledges_late() -> None:
    queue: Any = mpipc.WorkQueue()
    queue.put(1)
    with contextlib.suppress(ZeroDivisionError):
        job = queue.take()
    thread = threading.Thread(target=job.ack)
    thread.start()
    thread.join()
    assert queue.unfinished() == 0


def test_a_job_that_nobody_refers_to_comes_back() -> None:
    queue: Any = mpipc.WorkQueue()
    queue.put(1)
    queue.take()
    gc.collect()
    assert queue.take().attempts == 2


def test_take_waits_no_longer_than_it_is_told() -> None:
    queue: Any = mpipc.WorkQueue()
    for options in ({"block": False}, {"timeout": 0}, {"timeout": -1}, {"timeout": 0.01}):
        with pytest.raises(stdlib_queue.Empty):
            queue.take(**options)
    with pytest.raises(stdlib_queue.Empty):
        queue.take_nowait()
    queue.put(1)
    job = queue.take()
    with pytest.raises(stdlib_queue.Empty):
        queue.take(timeout=0.01)
    assert not queue.join(timeout=0.01)
    job.ack()
    assert queue.join(timeout=0)


def test_room() -> None:
    queue: Any = mpipc.WorkQueue(2)
    queue.put(1)
    queue.put_nowait(2)
    assert queue.full()
    with pytest.raises(stdlib_queue.Full):
        queue.put(3, timeout=0.01)
    job = queue.take()
    queue.put(3)
    job.give_back()
    assert queue.qsize() == 3, "what comes back has room"
    with pytest.raises(stdlib_queue.Full):
        queue.put_nowait(4)
    waiting = threading.Thread(target=queue.put, args=(4,))
    waiting.start()
    for number in (1, 2):
        with queue.take() as job:
            assert job.value == number
    waiting.join()
    assert values(queue) == [3, 4]
    assert queue.empty()


def test_what_cannot_be_pickled_is_not_put() -> None:
    queue: Any = mpipc.WorkQueue()
    with pytest.raises(Exception, match="pickle"):
        queue.put(lambda: None)
    assert queue.unfinished() == 0
    assert queue.statistics().shared_bytes_in_use == 0


def test_refused() -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        mpipc.WorkQueue(max_attempts=0)
    with pytest.raises(TypeError, match="taken from a queue"):
        Job()


def test_a_pickler_of_its_own() -> None:
    pytest.importorskip("cloudpickle")
    queue: Any = mpipc.WorkQueue(pickler="cloudpickle", max_attempts=1)
    queue.put(lambda: 42)
    job = queue.take()
    assert job.value() == 42
    job.give_back()
    failed = queue.failed.get()
    assert failed.value() == 42


def test_arrays_arrive_at_each_attempt() -> None:
    numpy = pytest.importorskip("numpy")
    queue: Any = mpipc.WorkQueue(max_attempts=3)
    array = numpy.arange(200_000)
    queue.put(array)
    for attempt in (1, 2, 3):
        job = queue.take()
        assert job.attempts == attempt
        assert (job.value == array).all()
        job.give_back()
    assert (queue.failed.get().value == array).all()
    assert queue.join()


# ---- those that fail -------------------------------------------------------------------------------------------------


def test_max_attempts() -> None:
    queue: WorkQueue[str] = mpipc.WorkQueue(max_attempts=2)
    queue.put("a")
    queue.put("b")
    for _ in range(2):
        with pytest.raises(KeyError), queue.take() as job:
            assert job.value == "a"
            raise KeyError("what it says")
    assert queue.failed is not None
    failed: FailedJob[str] = queue.failed.get()
    assert (failed.value, failed.attempts) == ("a", 2)
    assert failed.error is not None
    assert "what it says" in failed.error
    assert "attempts=2" in repr(failed)
    assert values(queue) == ["b"]
    assert queue.join()


def test_what_cannot_be_unpickled_fails() -> None:
    queue: Any = mpipc.WorkQueue(max_attempts=2)
    queue.put(Unpicklable())
    for _ in range(2):
        with pytest.raises(LookupError, match="cannot be unpickled"):
            queue.take()
    failed = queue.failed.get()
    assert failed.attempts == 2
    assert "cannot be unpickled" in failed.error
    with pytest.raises(LookupError):
        failed.value  # noqa: B018
    assert queue.join()


def test_the_last_attempt_was_killed(ctx: Any) -> None:
    """Nobody is left who would take it: who joins moves it."""
    queue, taken = ctx.WorkQueue(max_attempts=2), ctx.SimpleQueue()
    queue.put("a")
    for attempt in (1, 2):
        assert run_to_its_end(ctx, take_and_die, queue, taken) == -signal.SIGKILL
        assert taken.get() == ("a", attempt)
    assert queue.join(timeout=30)
    failed = queue.failed.get()
    assert (failed.value, failed.attempts, failed.error) == ("a", 2, None)


def test_what_kills_those_who_unpickle_it_is_moved(ctx: Any) -> None:
    queue = ctx.WorkQueue(max_attempts=1)
    queue.put(Explosive())
    queue.put("b")
    assert run_to_its_end(ctx, take, queue) == -signal.SIGKILL
    with queue.take() as job:
        if job.value != "b":
            raise AssertionError("the job that was used up")
    assert queue.join(timeout=30)
    assert queue.failed.get().attempts == 1  # and it is not unpickled here


# ---- other processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [take_and_die, take_and_end])
def test_a_job_survives_its_taker(ctx: Any, end: Any) -> None:
    queue, taken = ctx.WorkQueue(), ctx.SimpleQueue()
    for number in range(3):
        queue.put(number)
    run_to_its_end(ctx, end, queue, taken)
    assert taken.get() == (0, 1)
    job = queue.take(timeout=30)
    if job.value != 0:  # its death has not been noticed yet
        job.give_back()
        wait_until(lambda: queue.qsize() == 3)
        job = queue.take()
    assert (job.value, job.attempts) == (0, 2)
    job.ack()
    assert values(queue) == [1, 2]


def test_who_waits_gets_what_comes_back(ctx: Any) -> None:
    queue, taken, go_on, done = ctx.WorkQueue(), ctx.SimpleQueue(), ctx.SimpleQueue(), ctx.SimpleQueue()
    queue.put("a")
    first = run(ctx, take_and_wait, queue, taken, go_on)
    assert taken.get() == ("a", 1)
    queue.shutdown()  # nobody is told the end while the job is out
    second = run(ctx, take_until_shut, queue, done)
    wait_until(lambda: queue.statistics().waiting_takers == 1)
    first.kill()
    assert done.get() == ("a", 2)
    second.join()
    first.join()
    assert second.exitcode == 0
    with pytest.raises(ShutDown):
        queue.take()


def test_a_stopped_taker_keeps_it(ctx: Any) -> None:
    queue, taken, go_on = ctx.WorkQueue(), ctx.SimpleQueue(), ctx.SimpleQueue()
    queue.put("a")
    process = run(ctx, take_and_wait, queue, taken, go_on)
    taken.get()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(stdlib_queue.Empty):
        queue.take(timeout=3.3)  # more than three ticks, in each of which it looks after the family
    assert queue.unfinished() == 1
    os.kill(process.pid, signal.SIGCONT)
    go_on.put(None)
    process.join()
    assert queue.join()
    assert queue.empty()


def test_a_forked_child_has_not_its_parents_job() -> None:
    queue = mpipc.get_context("fork").WorkQueue()
    queue.put("a")
    errors = mpipc.get_context("fork").SimpleQueue()

    def child() -> None:
        for settle in (job.ack, job.give_back):
            try:
                settle()
            except RuntimeError as error:
                errors.put(str(error))
        with contextlib.suppress(KeyError), job:
            raise KeyError
        with job:
            pass

    with queue.take() as job:
        process = mpipc.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
        for _ in range(2):
            assert f"process {os.getpid()}'s" in errors.get()
        assert (queue.qsize(), queue.unfinished()) == (0, 1)
    assert queue.join()


def test_join_waits_for_what_is_out(ctx: Any) -> None:
    queue, told = ctx.WorkQueue(), ctx.SimpleQueue()
    queue.put(1)
    queue.put(2)
    jobs = [queue.take(), queue.take()]
    joiner = run(ctx, join_and_tell, queue, told)
    assert told.get() == "waiting"
    wait_until(lambda: queue.statistics().waiting_joiners == 1)
    jobs[0].ack()
    jobs[1].give_back()
    assert queue.unfinished() == 1
    assert values(queue) == [2]
    assert told.get() is True
    joiner.join()


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_shutdown_waits_for_what_may_come_back() -> None:
    queue: Any = mpipc.WorkQueue()
    queue.put(1)
    queue.put(2)
    job = queue.take()
    queue.shutdown()
    assert queue.is_shutdown
    with pytest.raises(ShutDown):
        queue.put(3)
    assert values(queue) == [2]
    with pytest.raises(stdlib_queue.Empty):
        queue.take(timeout=0.01)
    job.give_back()
    with queue.take() as job:
        assert job.value == 1
    with pytest.raises(ShutDown):
        queue.take()


def test_shutdown_at_once() -> None:
    queue: Any = mpipc.WorkQueue()
    for number in range(600):  # more than are dropped at a time
        queue.put(number)
    out, back, back_later = queue.take(), queue.take(), queue.take()
    back.give_back()
    queue.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        queue.take()
    assert (queue.qsize(), queue.unfinished()) == (0, 2)
    back_later.give_back()
    assert queue.unfinished() == 1
    with pytest.raises(ShutDown):
        queue.take()
    out.ack()
    assert queue.join()
    assert queue.statistics().shared_bytes_in_use == 0


def test_a_waiting_taker_is_told_the_end_by_the_last_ack(ctx: Any) -> None:
    queue, done = ctx.WorkQueue(), ctx.SimpleQueue()
    queue.put(1)
    job = queue.take()
    queue.shutdown()
    process = run(ctx, take_until_shut, queue, done)
    wait_until(lambda: queue.statistics().waiting_takers == 1)
    job.ack()
    process.join()
    assert process.exitcode == 0
    assert done.empty()


# ---- killed at random ------------------------------------------------------------------------------------------------

JOBS = 3000
TAKERS = 4


@pytest.mark.slow_with("spawn")
@pytest.mark.timeout(600)
def test_takers_killed_at_random(ctx: Any, start_method: str) -> None:
    """Every job is done at least once, none by two at once, and more often only what a killed one had."""
    kills = 40 if start_method == "fork" else 8
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    queue, book = ctx.WorkQueue(), Book(ctx, JOBS)
    for number in range(JOBS):
        queue.put((number, bytes(chance.choice((0, 10, 3000, 70_000)))))
    takers = [run(ctx, work, book, queue) for _ in range(TAKERS)]
    for kill in range(1, kills + 1):
        wait_until(lambda: sum(book.done) >= kill * JOBS * 0.8 / kills, timeout=60)  # noqa: B023
        victim = takers.pop(chance.randrange(TAKERS))
        victim.kill()
        victim.join()
        takers.append(run(ctx, work, book, queue))
    queue.shutdown()
    for taker in takers:
        taker.join()
        assert taker.exitcode == 0
    assert queue.join(timeout=60)
    assert book.wrong[:] == [0, 0, 0]  # two had a job; it was taken more often than it says; torn
    assert min(book.done) >= 1
    assert sum(book.taken) - JOBS <= kills, "each of the killed had one job at most"
    assert queue.statistics()[:2] == (0, 0)
    assert queue.statistics().shared_bytes_in_use == 0

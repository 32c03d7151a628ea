"""Pool.apply() whose caller receives the result itself, and all that can come between."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import pool_tasks as tasks
from support import wait_until

import mpipc
from mpipc.pool import BrokenPoolError, WorkerLostError

LONG = 60.0


class Gate:
    def __init__(self, ctx: Any) -> None:
        self.running, self.proceed = ctx.Semaphore(0), ctx.Event()


@pytest.fixture
def gate(ctx: Any) -> Gate:
    return Gate(ctx)


@pytest.fixture
def pool(ctx: Any, gate: Gate) -> Iterator[Any]:
    """A pool in which the next apply() receives by itself."""
    with ctx.Pool(2, tasks.start, ((gate.running, gate.proceed),)) as made:
        park(made)
        yield made
        made.close()
        made.join()


def park(pool: Any) -> None:
    def parked() -> bool:
        assert pool.apply(tasks.square, (3,)) == 9
        return bool(pool._engine.schedule.parked)

    wait_until(parked)


class Caller(threading.Thread):
    """Calls apply() and is in it, receiving, when the constructor returns."""

    def __init__(self, pool: Any, gate: Gate, argument: Any = 5) -> None:
        super().__init__()
        self.result: Any = None
        self._arguments = pool, argument
        self.start()
        assert gate.running.acquire(True, LONG)
        assert pool._engine.schedule.calling

    def run(self) -> None:
        pool, argument = self._arguments
        try:
            self.result = pool.apply(tasks.enter_and_wait, (argument,))
        except Exception as error:
            self.result = error


def test_many_in_a_row(pool: Any) -> None:
    assert [pool.apply(tasks.square, (x,)) for x in range(300)] == [x * x for x in range(300)]
    assert pool._engine.schedule.parked
    assert pool.apply(tasks.identity, (b"x" * 3_000_000,)) == b"x" * 3_000_000
    assert not pool._cache


def test_errors(pool: Any) -> None:
    for _ in range(3):
        with pytest.raises(KeyError, match="3") as caught:
            pool.apply(tasks.fail, (3,))
        assert "raise KeyError(x)" in str(caught.value.__cause__)
        with pytest.raises((AttributeError, pickle.PicklingError)):
            pool.apply(lambda: 1)
        with pytest.raises(RuntimeError, match="refused"):
            pool.apply(tasks.not_readable)
        park(pool)
    assert not pool._cache


def test_something_else_is_asked_for_meanwhile(pool: Any, gate: Gate) -> None:
    """Its callback does not run in the thread that receives."""
    caller = Caller(pool, gate)
    threads: list[Any] = []
    result = pool.map_async(tasks.square, range(50), 1, callback=lambda _: threads.append(threading.current_thread()))
    assert result.get(LONG) == [x * x for x in range(50)]
    assert pool.apply(tasks.square, (4,)) == 16
    assert list(pool.imap(tasks.square, iter(range(5)))) == [0, 1, 4, 9, 16]
    assert caller.is_alive()
    gate.proceed.set()
    caller.join(LONG)
    assert caller.result == 5
    assert threads == [pool._engine.receiver.thread]


def test_several_threads_call(pool: Any) -> None:
    found: list[int] = []

    def call(first: int) -> None:
        for x in range(first, first + 100):
            found.append(pool.apply(tasks.square, (x,)))

    threads = [threading.Thread(target=call, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert sorted(found) == [x * x for x in range(300)]
    assert not pool._cache


def test_the_worker_is_killed(pool: Any, gate: Gate) -> None:
    caller = Caller(pool, gate)
    (victim,) = [worker.pid for worker in pool.statistics().workers if worker.function]
    os.kill(victim, signal.SIGKILL)
    caller.join(LONG)
    assert isinstance(caller.result, WorkerLostError)
    assert (caller.result.pid, caller.result.index) == (victim, 0)
    park(pool)


def test_a_worker_that_is_idle_is_killed_and_replaced(pool: Any) -> None:
    for _ in range(3):
        before = [worker.pid for worker in pool._pool]
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda before=before: before[0] not in [worker.pid for worker in pool._pool])
        assert [pool.apply(tasks.square, (x,)) for x in range(20)] == [x * x for x in range(20)]
        wait_until(lambda: len(pool._pool) == 2)
        park(pool)
    assert pool.statistics().replaced == 3


def test_terminated_meanwhile(ctx: Any) -> None:
    gate = Gate(ctx)
    with ctx.Pool(1, tasks.start, ((gate.running, gate.proceed),)) as pool:
        park(pool)
        caller = Caller(pool, gate)
    caller.join(LONG)
    assert isinstance(caller.result, BrokenPoolError)


def test_closed_meanwhile(ctx: Any) -> None:
    gate = Gate(ctx)
    with ctx.Pool(1, tasks.start, ((gate.running, gate.proceed),)) as pool:
        park(pool)
        caller = Caller(pool, gate)
        pool.close()
        gate.proceed.set()
        pool.join()
        caller.join(LONG)
        assert caller.result == 5


class Alarm(Exception):
    pass


def test_the_caller_is_interrupted(pool: Any, gate: Gate) -> None:
    """A signal handler raises while the main thread receives. The task goes on; the pool is as good as before."""

    rung = threading.Event()

    def ring(*_: Any) -> None:
        if not rung.is_set():
            rung.set()
            raise Alarm

    previous = signal.signal(signal.SIGALRM, ring)

    def interrupt() -> None:
        assert gate.running.acquire(True, LONG)
        while not rung.wait(0.02):  # a signal that comes just before the system call does not interrupt that
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    try:
        helper = threading.Thread(target=interrupt)
        helper.start()
        with pytest.raises(Alarm):
            pool.apply(tasks.enter_and_wait, (1,))
        helper.join()
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert pool.map(tasks.square, range(10), 1) == [x * x for x in range(10)]
    gate.proceed.set()
    wait_until(lambda: not pool._cache)  # its result has come, and nobody misses it
    park(pool)


@pytest.mark.parametrize("what", ["apply", "apply_async", "map", "terminate", "close and join"])
def test_a_signal_handler_uses_the_pool(pool: Any, gate: Gate, what: str) -> None:
    """It runs on top of the apply() that is receiving, which has to leave that to others."""
    done = threading.Event()
    answers: list[Any] = []

    def handler(*_: Any) -> None:
        if done.is_set():
            return
        done.set()
        if what == "apply":
            answers.append(pool.apply(tasks.square, (5,)))
        elif what == "apply_async":
            answers.append(pool.apply_async(tasks.square, (5,)).get(LONG))
        elif what == "map":
            answers.append(sum(pool.map(tasks.square, [3, 4])))
        elif what == "terminate":
            pool.terminate()
            raise Alarm
        gate.proceed.set()
        if what == "close and join":
            pool.close()
            pool.join()
            answers.append(25)

    def interrupt() -> None:
        assert gate.running.acquire(True, LONG)
        while not done.wait(0.02):  # a signal that comes just before the system call does not interrupt that
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    previous = signal.signal(signal.SIGALRM, handler)
    helper = threading.Thread(target=interrupt)
    try:
        helper.start()
        if what == "terminate":
            with pytest.raises(Alarm):
                pool.apply(tasks.enter_and_wait, (1,))
        else:
            assert pool.apply(tasks.enter_and_wait, (1,)) is not None
            assert answers == [25]
    finally:
        helper.join()
        signal.signal(signal.SIGALRM, previous)
    if what not in ("terminate", "close and join"):
        park(pool)


# ---- signal handlers that raise in a wait


@pytest.mark.parametrize("call", ["apply_async", "map_async"])
def test_a_handler_that_raises_in_a_wait_does_not_break_the_result_thread(call: str) -> None:
    """It comes at some instant around that in which the result does. (A condition of threading, as imap() has, can
    be left locked by such a handler for good.)"""
    armed = False

    class Interrupted(Exception):
        pass

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    # A function, because Python 3.13.0 lets what is raised in a loop's jump pass by the `with` around the loop.
    def wait(result: Any) -> None:
        while armed:
            result.wait(1)

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with mpipc.get_context("fork").Pool(2) as pool:
            for number in range(400):
                argument: Any = (number,)  # of one call, and a sequence of one item
                result = getattr(pool, call)(abs, argument)
                with contextlib.suppress(Interrupted):
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 200))
                    wait(result)
            assert pool.apply(abs, (-7,)) == 7
            assert pool.map(abs, range(10)) == list(range(10))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

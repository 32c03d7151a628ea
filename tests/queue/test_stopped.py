"""What others can do while a process stands still (stopped, in a debugger, throttled) that has a queue's lock.

Every instruction at which it may stand is tried in test_stop_every_step.py; here is what programs see of it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue as stdlib_queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import run_script, sysctl, wait_until

import mpipc
from mpipc._queue.batch import BatchQueue
from mpipc.queues import PriorityQueue
from mpipc.sysv import LimitError

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

LONG = 3.3
"""More than three ticks, in seconds. A waiter looks after the family at each; none of them may be told as an error."""


class HandlerError(Exception):
    pass


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _hold(messages: BatchQueue) -> None:
    """Stands still with the queue's lock in its hand until somebody sends SIGCONT."""
    assert messages.hold() == 0
    os.kill(os.getpid(), signal.SIGSTOP)
    messages.let_go()


def _hold_queue(queue: Any) -> None:
    _hold(queue._messages)


@contextlib.contextmanager
def _holder(ctx: Any, queue: Any) -> Iterator[Callable[[], None]]:
    """A process that stands still with the queue's lock; what is yielded lets it go on, and waits for its end."""
    process = ctx.Process(target=_hold_queue, args=(queue,))
    process.start()
    wait_until(lambda: _state(process.pid) == "T")

    def go_on() -> None:
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGCONT)
        process.join()
        assert process.exitcode == 0

    try:
        yield go_on
    finally:
        go_on()


@contextlib.contextmanager
def _raising_handler(after: float) -> Iterator[None]:
    def handler(number: int, frame: Any) -> None:
        raise HandlerError

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _put_and_vanish(queue: Any, first: int) -> None:
    for i in range(first, first + 10):
        queue.put(i)
    os._exit(0)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue", "PriorityQueue"])
def test_puts_into_a_queue_without_a_limit_neither_fail_nor_wait(kind: str) -> None:
    ctx = mpipc.get_context("fork")
    queue: Any = PriorityQueue() if kind == "PriorityQueue" else getattr(ctx, kind)()
    large = os.urandom(1 << 20)
    sent: list[Any] = list(range(100))
    for i in range(50):
        queue.put(i)
    with _holder(ctx, queue) as go_on:
        for i in range(50, 100):  # more than the kernel's queue has room for, in both ways
            queue.put(i) if i % 2 or kind == "SimpleQueue" else queue.put_nowait(i)
        queue.put(large)
        sent.append(large)
        for i in range(100, 200):
            queue.put(bytes([i]) * 1500)
            sent.append(bytes([i]) * 1500)
        if kind != "SimpleQueue":
            assert queue.put_many(range(200, 600)) == 400
            sent += range(200, 600)
            assert queue.qsize() == len(sent)
        assert not queue.empty()
        assert queue.statistics().messages == len(sent)
        queue.trim()
        go_on()
    assert [queue.get() for _ in sent] == sent
    assert queue.empty()


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue", "PriorityQueue"])
def test_puts_meanwhile_need_no_segment(kind: str) -> None:
    """Where none can be had, they go by the kernel's queue, as long as that has room."""
    ctx = mpipc.get_context("fork")
    queue: Any = PriorityQueue() if kind == "PriorityQueue" else getattr(ctx, kind)()
    for i in range(2000):  # until a token is out, and messages go by shared memory
        queue.put(i)
        assert queue.get() == i
    sent = list(range(10))
    queue.trim()
    with _holder(ctx, queue) as go_on, sysctl("shmmni", 0):
        for i in sent:
            queue.put(i)
        if kind != "SimpleQueue":
            assert queue.put_many(range(10, 20)) == 10
            sent += range(10, 20)
        with pytest.raises(LimitError):
            queue.put(bytes(100_000))
        go_on()
        assert [queue.get() for _ in sent] == sent
    assert queue.empty()


@pytest.mark.slow_with("spawn")
def test_what_is_put_meanwhile_outlives_its_process(ctx: Any) -> None:
    queue = ctx.Queue()
    with _holder(ctx, queue) as go_on:
        putters = [ctx.Process(target=_put_and_vanish, args=(queue, 100 * n)) for n in range(3)]
        for putter in putters:
            putter.start()
        for putter in putters:
            putter.join()
        assert queue.qsize() == 30
        go_on()
    received = [queue.get() for _ in range(30)]
    for n in range(3):
        assert [i for i in received if i // 100 == n] == list(range(100 * n, 100 * n + 10))


@pytest.mark.slow_with("spawn")
def test_gets_wait_for_the_lock_as_for_a_message(ctx: Any) -> None:
    queue = ctx.Queue()
    received: list[int] = []
    with _holder(ctx, queue) as go_on:
        queue.put_many([1, 2, 3])
        for call in (queue.get_nowait, lambda: queue.get(timeout=0), lambda: queue.get_many(5, False)):
            with pytest.raises(stdlib_queue.Empty):
                call()
        for timeout in (0.05, 1.5):
            began = time.monotonic()
            with pytest.raises(stdlib_queue.Empty):
                queue.get(timeout=timeout)
            assert time.monotonic() - began >= timeout
        threads = [
            threading.Thread(target=lambda: received.append(queue.get())),
            threading.Thread(target=lambda: received.append(queue.get(timeout=1000))),
            threading.Thread(target=lambda: received.extend(queue.get_many(1))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG / len(threads))
            assert thread.is_alive()
        assert received == []
        go_on()
        for thread in threads:
            thread.join()
    assert sorted(received) == [1, 2, 3]
    assert queue.empty()


def test_signal_handlers_run_at_once(ctx: Any) -> None:
    unlimited, bounded, counted = ctx.Queue(), ctx.Queue(1), ctx.JoinableQueue()
    counted.put(0)
    counted.get()
    for i in range(100):
        unlimited.put(bytes([i]) * 1500)  # not all of it in the kernel's queue: get() needs the lock
    for queue, calls in (
        (unlimited, (unlimited.get, lambda: unlimited.get(timeout=1000), lambda: unlimited.get_many(3))),
        (bounded, (lambda: bounded.put(1), lambda: bounded.put(1, timeout=1000), lambda: bounded.put_many([1, 2]))),
        (counted, (counted.get, counted.task_done, counted.join)),
    ):
        with _holder(ctx, queue):
            if queue is counted:
                queue.put("there")
            for call in calls:
                with _raising_handler(0.05), pytest.raises(HandlerError):
                    call()
    assert [unlimited.get() for _ in range(100)] == [bytes([i]) * 1500 for i in range(100)]
    bounded.put("there")
    assert bounded.get() == "there"
    assert counted.get() == "there"
    counted.task_done()
    counted.task_done()
    counted.join()


def test_a_handler_that_returns_lets_the_call_go_on(ctx: Any) -> None:
    queue = ctx.Queue(1)
    ran: list[int] = []
    with _holder(ctx, queue) as go_on:
        old = signal.signal(signal.SIGALRM, lambda number, frame: ran.append(number))
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        began = time.monotonic()
        try:
            with pytest.raises(stdlib_queue.Full):
                queue.put(1, timeout=0.5)
            with pytest.raises(stdlib_queue.Empty):
                queue.get(timeout=0.5)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        assert time.monotonic() - began >= 1
        go_on()
    assert len(ran) > 2
    assert queue.empty()


def test_a_bounded_queue_is_full_after_the_timeout(ctx: Any) -> None:
    queue = ctx.Queue(2)
    done = threading.Event()
    with _holder(ctx, queue) as go_on:
        for call in (
            lambda: queue.put(1, timeout=0.2),
            lambda: queue.put_nowait(1),
            lambda: queue.put(1, timeout=-1),
            lambda: queue.put(os.urandom(1 << 20), timeout=0.2),
        ):
            with pytest.raises(stdlib_queue.Full):
                call()
        assert queue.put_many([1, 2], timeout=0.1) == 0
        thread = threading.Thread(target=lambda: (queue.put("waited"), done.set()))
        thread.start()
        assert not done.wait(LONG)
        go_on()
        thread.join()
    assert queue.get() == "waited"
    assert queue.statistics().shared_bytes_in_use == 0


def test_nothing_is_posted_at_a_bell_that_is_none(ctx: Any) -> None:
    """A queue without a limit has no room for putters: who waits there reads and writes beyond the family's tables."""
    queue = ctx.Queue()
    sets = Path("/proc/sysvipc/sem").read_text()
    with _holder(ctx, queue) as go_on:
        thread = threading.Thread(target=lambda: [queue.put(b"x" * 1500) for _ in range(50)])
        thread.start()
        thread.join()
        go_on()
    assert Path("/proc/sysvipc/sem").read_text().count("\n") == sets.count("\n")


# ---- the reaper is gone, too -----------------------------------------------------------------------------------------


def test_the_dead_owner_is_found_by_those_who_wait_less_than_a_tick() -> None:
    script = """
    import os, queue, signal, sys, time
    import mpipc
    from mpipc._core import current
    from support import ipc_namespace, processes, wait_until

    def hold(q):
        q._messages.hold()
        os.kill(os.getppid(), signal.SIGUSR1)
        signal.pause()

    mpipc.set_start_method("fork")
    held = []
    signal.signal(signal.SIGUSR1, lambda *a: held.append(1))
    q = mpipc.Queue()
    for i in range(100):
        q.put(b"x" * 1000)
    p = mpipc.Process(target=hold, args=(q,))
    p.start()
    wait_until(lambda: held)

    def reapers():
        return [
            process.pid
            for process in processes().values()
            if process.name == "mpipc-reaper"
            and str(current().shmid) in process.command().split()
            and process.ipc_namespace() == ipc_namespace()
        ]

    wait_until(lambda: len(reapers()) == 1)  # one that comes second goes again
    os.kill(reapers()[0], signal.SIGKILL)
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    q.put_nowait("last")
    got = 0
    deadline = time.monotonic() + 60
    while got < 101 and time.monotonic() < deadline:
        try:
            q.get(timeout=0.05)
            got += 1
        except queue.Empty:
            pass
    print(got)
    wait_until(lambda: current().tick() or current().has_reaper())
    """
    result = run_script(script)
    assert result.stdout.split() == ["101"], result.stderr


# ---- a pool ----------------------------------------------------------------------------------------------------------


def _stand_still_with_every_queue(_: int) -> str:
    """In a worker: with the locks of all of its pool's queues that can be had."""
    queues = [obj for obj in gc.get_objects() if type(obj) is BatchQueue]
    assert queues
    for queue in queues:
        assert queue.hold() == 0
    os.kill(os.getpid(), signal.SIGSTOP)
    for queue in queues:
        queue.let_go()
    return "went on"


def _square(x: int) -> tuple[int, bytes]:
    return x * x, b"r" * 1800


def test_a_pool_goes_on_when_a_worker_does(ctx: Any) -> None:
    with ctx.Pool(3) as pool:
        pool.map(_square, range(30))
        pids = [process.pid for process in pool._pool]
        stopped = pool.apply_async(_stand_still_with_every_queue, (0,))
        [pid] = wait_until(lambda: [pid for pid in pids if _state(pid) == "T"])
        others = pool.map_async(_square, range(3000), chunksize=1)
        others.wait(LONG)
        os.kill(pid, signal.SIGCONT)
        assert stopped.get(60) == "went on"
        assert others.get(60) == [_square(x) for x in range(3000)]
        assert [process.pid for process in pool._pool] == pids

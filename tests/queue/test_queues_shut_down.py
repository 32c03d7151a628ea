"""shutdown() of queues: who waits comes to an end, in all processes, and what was put before it is got."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import queue as stdlib_queue
import random
import select
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
from support import run_script, wait_until
from support.queue_shutting import MAKERS

import mpipc
from mpipc.queues import JoinableQueue, PriorityQueue, Queue, ShutDown, SimpleQueue

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

KINDS = ["Queue", "JoinableQueue", "SimpleQueue", "PriorityQueue"]
LARGE = bytes(100_000)


def make(ctx: Any, kind: str) -> Any:
    return PriorityQueue(ctx=ctx) if kind == "PriorityQueue" else getattr(ctx, kind)()


def has_ended(queue: Any) -> bool:
    """Whether put() and get() raise ShutDown, and nothing is there."""
    for call in (lambda: queue.put(1), lambda: queue.put(LARGE), queue.get):
        with pytest.raises(ShutDown):
            call()
    statistics = queue.statistics()
    assert statistics.messages == statistics.shared_bytes_in_use == 0
    return bool(queue.is_shutdown and statistics.is_shutdown and queue.empty())


def _get_all(queue: Any, got: Any) -> None:
    try:
        while True:
            got.put(queue.get())
    except ShutDown:
        got.put("end")
    with pytest.raises(ShutDown):
        queue.put(1)


def _wait_in(queue: Any, call: str, *arguments: Any) -> None:
    """Ends well if the call raises ShutDown."""
    with pytest.raises(ShutDown):
        getattr(queue, call)(*arguments)


def _shut_down(queue: Any, immediate: bool) -> None:
    queue.shutdown(immediate)


def _join(queue: Any) -> None:
    queue.join()


# ---- what it means ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_put_is_got_first(ctx: Any, kind: str) -> None:
    queue, got = make(ctx, kind), ctx.SimpleQueue()
    put = [*range(50), LARGE, "x" * 3000]
    for obj in put:
        queue.put(obj)
    shutter = ctx.Process(target=_shut_down, args=(queue, False))
    shutter.start()
    shutter.join()
    assert queue.is_shutdown
    assert queue.statistics().messages == len(put)
    with pytest.raises(ShutDown):
        queue.put(1)
    consumer = ctx.Process(target=_get_all, args=(queue, got))  # started when it is shut down already
    consumer.start()
    assert list(iter(got.get, "end")) == put
    consumer.join()
    assert consumer.exitcode == 0
    assert has_ended(queue)


@pytest.mark.parametrize("kind", KINDS)
def test_immediate_drops_what_is_there(ctx: Any, kind: str) -> None:
    queue = make(ctx, kind)
    for i in range(1000):
        queue.put((i, "x" * (20 * i)))  # in the kernel's queue, in the spill, and large ones
    assert queue.statistics().shared_bytes_in_use > 0
    shutter = ctx.Process(target=_shut_down, args=(queue, True))
    shutter.start()
    shutter.join()
    assert queue.empty()
    assert has_ended(queue)
    queue.trim()
    assert queue.statistics().shared_bytes == 0


def test_immediate_after_an_orderly_one() -> None:
    queue: Queue[int] = Queue()
    queue.put(1)
    queue.put(2)
    queue.shutdown()
    queue.shutdown()
    assert queue.get() == 1
    queue.shutdown(immediate=True)
    queue.shutdown()
    assert has_ended(queue)


@pytest.mark.slow_with("forkserver")
@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_getters_end(ctx: Any, kind: str, immediate: bool) -> None:
    queue = make(ctx, kind)
    calls: list[tuple[Any, ...]] = [("get",)] * 3
    if kind != "SimpleQueue":
        calls += [("get", True, 1000), ("get", True, 1000), ("get_many", 5), ("get_many", 5, True, 1000)]
    waiting = [ctx.Process(target=_wait_in, args=(queue, *call)) for call in calls]
    for process in waiting:
        process.start()
    wait_until(lambda: queue.statistics().waiting_readers == len(calls))
    queue.shutdown(immediate)
    for process in waiting:
        process.join()
        assert process.exitcode == 0
    assert has_ended(queue)


@pytest.mark.slow_with("forkserver")
@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize("kind", [Queue, JoinableQueue, PriorityQueue])
def test_putters_end(ctx: Any, kind: Any, immediate: bool) -> None:
    queue = kind(1, ctx=ctx)
    queue.put("first")
    calls = [("put", 1), ("put", LARGE), ("put", 1, True, 1000), ("put_many", [1, 2]), ("put_many", [LARGE])]
    waiting = [ctx.Process(target=_wait_in, args=(queue, *call)) for call in calls]
    for process in waiting:
        process.start()
    wait_until(lambda: queue.statistics().waiting_writers == len(calls))
    queue.shutdown(immediate)
    for process in waiting:
        process.join()
        assert process.exitcode == 0
    if not immediate:
        assert queue.full()
        assert queue.get() == "first"
    assert not queue.full()
    assert has_ended(queue)


def test_joiners_end_when_the_rest_is_dropped(ctx: Any) -> None:
    queue: JoinableQueue[int] = ctx.JoinableQueue()
    for i in range(10):
        queue.put(i)
    assert [queue.get(), queue.get()] == [0, 1]
    joiner = ctx.Process(target=_join, args=(queue,))
    joiner.start()
    wait_until(lambda: queue._messages.usage()[6] == 1)
    queue.task_done()
    queue.shutdown(immediate=True)
    assert queue.statistics().unfinished == 1  # what was taken is still to be done
    queue.task_done()
    joiner.join()
    with pytest.raises(ValueError):
        queue.task_done()
    queue.join()
    assert has_ended(queue)


def test_joiners_end_at_once_when_nothing_was_taken(ctx: Any) -> None:
    queue: JoinableQueue[int] = ctx.JoinableQueue()
    queue.put(1)
    joiner = ctx.Process(target=_join, args=(queue,))
    joiner.start()
    wait_until(lambda: queue._messages.usage()[6] == 1)
    queue.shutdown(immediate=True)
    joiner.join()
    assert has_ended(queue)


def test_tasks_of_an_orderly_shutdown_want_to_be_done() -> None:
    queue: JoinableQueue[int] = JoinableQueue()
    queue.put(1)
    queue.shutdown()
    joiner = threading.Thread(target=queue.join)
    joiner.start()
    wait_until(lambda: queue._messages.usage()[6] == 1)
    assert queue.get() == 1
    assert joiner.is_alive()
    queue.task_done()
    joiner.join()
    assert has_ended(queue)


# ---- calls -----------------------------------------------------------------------------------------------------------


def test_calls_that_do_not_wait() -> None:
    queue: Queue[int] = Queue(3)
    queue.put(1)
    queue.shutdown()
    for put in (
        lambda: queue.put_nowait(2),
        lambda: queue.put(2, timeout=0.01),
        lambda: queue.put_many([]),
        lambda: queue.put_many([2, 3], False),
    ):
        with pytest.raises(ShutDown):
            put()
    assert not queue.full()
    assert queue.get_nowait() == 1
    for get in (
        queue.get_nowait,
        lambda: queue.get(timeout=0),
        lambda: queue.get(timeout=0.01),
        lambda: queue.get_many(2),
        lambda: queue.get_many(2, False),
        lambda: queue.get_many(2, timeout=0.01),
    ):
        with pytest.raises(ShutDown):
            get()
    assert has_ended(queue)


def test_many_at_once() -> None:
    queue: Queue[int] = Queue()
    assert queue.put_many(range(300)) == 300
    queue.shutdown()
    got: list[int] = []
    with pytest.raises(ShutDown):
        while True:
            got += queue.get_many(1000)
    assert got == list(range(300))
    assert has_ended(queue)


@pytest.mark.parametrize("maxsize", [0, 500])
def test_what_put_many_had_put(maxsize: int) -> None:
    """What the iterator gives is put in bundles; the queue is shut down while one of them is made."""
    queue: Queue[int] = Queue(maxsize)

    def numbers() -> Iterator[int]:
        for i in range(1000):
            if i == 400:
                queue.shutdown()
            yield i

    with pytest.raises(ShutDown) as end:
        queue.put_many(numbers())
    sent = end.value.sent  # type: ignore[attr-defined]
    assert 0 < sent <= 400
    got: list[int] = []
    with contextlib.suppress(ShutDown):
        while True:
            got += queue.get_many(100)
    assert got == list(range(sent))
    assert has_ended(queue)


def test_closed_here() -> None:
    queue, simple = Queue[int](), SimpleQueue[int]()
    queue.close()
    simple.close()
    with pytest.raises(ValueError, match="is closed"):
        queue.shutdown()
    with pytest.raises(OSError, match="is closed"):
        simple.shutdown()
    assert not queue.is_shutdown
    shut: Queue[int] = Queue()
    shut.shutdown()
    shut.close()
    shut.join_thread()
    with pytest.raises(ValueError, match="is closed"):
        shut.put(1)
    with pytest.raises(ValueError, match="is closed"):
        shut.get()


def test_what_cannot_be_pickled_is_not_asked_for() -> None:
    queue: Queue[Any] = Queue()
    queue.shutdown()
    with pytest.raises(ShutDown):
        queue.put(lambda: None)
    assert has_ended(queue)


def test_ends_of_a_queue() -> None:
    queue: Any = SimpleQueue()
    queue._writer.send_bytes(pickle.dumps("a"))
    queue.shutdown()
    assert queue._reader.recv() == "a"
    for call in (queue._reader.recv, queue._reader.recv_bytes, lambda: queue._writer.send(1)):
        with pytest.raises(ShutDown):
            call()
    with pytest.raises(ShutDown):
        queue._writer.send_bytes(b"abc")
    assert has_ended(queue)


# ---- waiting for a descriptor ----------------------------------------------------------------------------------------


def test_poll(ctx: Any) -> None:
    queue = ctx.Queue()
    assert not queue._reader.poll()
    poller = threading.Thread(target=queue._reader.poll, args=(None,))
    poller.start()
    wait_until(lambda: queue.statistics().waiting_readers == 1)
    shutter = ctx.Process(target=_shut_down, args=(queue, False))
    shutter.start()
    poller.join()
    shutter.join()
    assert queue._reader.poll()
    assert has_ended(queue)


@pytest.mark.parametrize("immediate", [False, True])
def test_the_descriptor_is_readable(ctx: Any, immediate: bool) -> None:
    queue = ctx.Queue()
    assert select.select([queue], [], [], 0) == ([], [], [])
    shutter = ctx.Process(target=_shut_down, args=(queue, immediate))
    shutter.start()
    assert wait([queue._reader]) == [queue._reader]
    shutter.join()
    with pytest.raises(ShutDown):
        queue.get_nowait()
    assert select.select([queue], [], []) == ([queue], [], [])  # and stays so
    assert has_ended(queue)
    assert select.select([queue], [], []) == ([queue], [], [])
    queue.close()
    gc.collect()


def test_the_descriptor_of_one_that_was_shut_down_before() -> None:
    queue: Queue[int] = Queue()
    queue.put(1)
    queue.shutdown()
    assert wait([queue._reader]) == [queue._reader]
    assert queue.get() == 1
    assert wait([queue._reader]) == [queue._reader]
    assert has_ended(queue)
    queue.close()


def test_asyncio() -> None:
    queue: Queue[int] = Queue()

    async def consume() -> list[int]:
        loop, got = asyncio.get_running_loop(), list[int]()
        ended = loop.create_future()

        def ready() -> None:
            try:
                got.append(queue.get_nowait())
            except stdlib_queue.Empty:
                pass
            except ShutDown:
                loop.remove_reader(queue.fileno())
                ended.set_result(None)

        loop.add_reader(queue.fileno(), ready)
        putter = threading.Thread(target=lambda: (queue.put_many(range(100)), queue.shutdown()))
        putter.start()
        await ended
        putter.join()
        return got

    assert asyncio.run(consume()) == list(range(100))
    queue.close()


# ---- the exception ---------------------------------------------------------------------------------------------------


def test_the_exception() -> None:
    assert mpipc.ShutDown is mpipc.queues.ShutDown is ShutDown
    if sys.version_info >= (3, 13):
        assert ShutDown is stdlib_queue.ShutDown
    assert issubclass(ShutDown, Exception)
    assert not issubclass(ShutDown, (stdlib_queue.Empty, stdlib_queue.Full, OSError))
    queue: Queue[int] = Queue()
    queue.shutdown()
    with pytest.raises(ShutDown) as raised:
        queue.get()
    again = pickle.loads(pickle.dumps(raised.value))
    assert type(again) is ShutDown
    assert "shutdown()" in str(again)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="queue.Queue has it from 3.13 on")
@pytest.mark.parametrize("seed", range(20))
def test_as_the_standard_library_has_it(seed: int) -> None:
    """What can be told without waiting: the same calls on both."""
    chance = random.Random(seed)
    ours: Any = JoinableQueue(6)
    theirs: Any = stdlib_queue.Queue(6)
    calls: list[tuple[Any, ...]] = [("put_nowait", 1), ("put_nowait", 2)]
    calls += [(name,) for name in ("get_nowait", "task_done", "qsize", "empty", "full")]
    for _ in range(200):
        shutdown = ("shutdown", chance.random() < 0.5)
        name, *arguments = shutdown if chance.random() < 0.02 else chance.choice(calls)
        told = []
        for queue in (ours, theirs):
            try:
                told.append(getattr(queue, name)(*arguments))
            except Exception as e:
                told.append(type(e))
        assert told[0] == told[1], (seed, name)
        assert ours.is_shutdown == theirs.is_shutdown
        assert ours._unfinished_tasks.get_value() == theirs.unfinished_tasks


# ---- who stands still, or is killed ----------------------------------------------------------------------------------


def _stand_still_with_the_lock(queue: Any) -> None:
    assert queue._messages.hold() == 0
    os.kill(os.getpid(), signal.SIGSTOP)
    queue._messages.let_go()


@contextlib.contextmanager
def _holder(queue: Any) -> Iterator[None]:
    process = mpipc.get_context("fork").Process(target=_stand_still_with_the_lock, args=(queue,))
    process.start()
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.join()


@pytest.mark.parametrize("kind", KINDS)
def test_shutting_down_while_somebody_stands_still_with_the_lock(kind: str) -> None:
    queue = make(mpipc.get_context("fork"), kind)
    for i in range(20):
        queue.put(i)
    with _holder(queue):
        queue.shutdown()
        with pytest.raises(ShutDown):
            queue.put(1)
        queue.shutdown(immediate=True)
        assert queue.empty()
        with pytest.raises(ShutDown):
            queue.get()
    assert has_ended(queue)


@pytest.mark.parametrize("kind", ["unbounded", "bounded", "joinable", "priority", "simple"])
@pytest.mark.slow_with("bounded", "simple")
@pytest.mark.timeout(600)
def test_shut_down_at_random(kind: str) -> None:
    """Under kills: see support/queue_shutting.py."""
    _run_shutting(3000, (kind,))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_shut_down_at_random_100000() -> None:
    _run_shutting(100_000, tuple(MAKERS))


def _run_shutting(messages: int, kinds: tuple[str, ...]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}: python -m support.queue_shutting {messages} {seed}")
    source = f"""
        from support.queue_shutting import run
        run({messages}, {seed}, {kinds!r})
        """
    print(run_script(source, timeout=600).stdout)

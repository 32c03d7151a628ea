"""The inside of queues and pools, as far as programs look at it: views that mean what multiprocessing's attributes do.

Programs that use them: recipes/.
"""

from __future__ import annotations

import multiprocessing.pool
import os
import pickle
import select
from multiprocessing.connection import wait
from operator import neg
from typing import Any

import pytest
from support import wait_until

import mpipc
import mpipc.pool as mpp

# --- queues -----------------------------------------------------------------------------------------------------------


def test_bytes_are_pickles(ctx: Any) -> None:
    """recv_bytes() gets an object as it is pickled, send_bytes() puts one: short, pickled and long ones."""
    for queue in (ctx.Queue(), ctx.SimpleQueue(), ctx.JoinableQueue()):
        for obj in (1, "text", {1, 2}, bytes(100_000), [bytearray(5000)]):
            queue.put(obj)
            assert pickle.loads(queue._reader.recv_bytes()) == obj
            queue._writer.send_bytes(pickle.dumps(obj))
            assert queue.get() == obj
        assert queue.empty()


def test_any_bytes_go_from_end_to_end(ctx: Any) -> None:
    queue = ctx.Queue()
    queue._writer.send_bytes(b"no pickle")
    assert queue._recv_bytes() == b"no pickle"
    queue._send_bytes(bytearray(b"0123456789"), 2, 3)
    assert queue._reader.recv_bytes() == b"234"
    queue._send_bytes(memoryview(b"0123456789")[::1], 7)
    with pytest.raises(OSError, match="got 3 bytes where at most 2 were expected"):
        queue._reader.recv_bytes(2)
    for arguments in ((b"",), (b"abc", 4), (b"abc", 1, 3), (b"abc", -1)):
        with pytest.raises(ValueError):
            queue._writer.send_bytes(*arguments)
    queue.close()
    with pytest.raises(OSError, match="handle is closed"):
        queue._reader.recv_bytes()
    with pytest.raises(OSError, match="handle is closed"):
        queue._writer.send_bytes(b"x")


def send_bytes(writer: Any) -> None:
    writer.send_bytes(b"from the child")


def test_ends_in_another_process() -> None:
    queue = mpipc.get_context("fork").SimpleQueue()
    process = mpipc.get_context("fork").Process(target=send_bytes, args=(queue._writer,))
    process.start()
    assert queue._reader.recv_bytes() == b"from the child"
    process.join()


def test_what_a_queue_says_of_itself(ctx: Any) -> None:
    queue = ctx.Queue(3)
    queue.put(1)
    assert len(queue._buffer) == 0 and queue._thread is None and queue._opid == os.getpid()
    assert queue._sem.get_value() == queue._sem._semlock._get_value() == 2 and not queue._sem._semlock._is_zero()
    queue.put(2)
    queue.put(3)
    assert queue._sem._semlock._is_zero()
    with queue._rlock, queue._wlock:
        assert queue._poll() and queue._rlock.acquire(timeout=0.1)
        queue._rlock.release()
    assert queue._joincancelled is False
    queue.cancel_join_thread()
    assert queue._joincancelled is True
    assert not hasattr(queue, "_notempty") and not hasattr(queue, "_feed"), "as documented"


def tell_maker(queue: Any, answers: Any) -> None:
    answers.put((queue._opid, os.getpid()))


def test_who_has_made_it(ctx: Any) -> None:
    queue, answers = ctx.Queue(), ctx.SimpleQueue()
    process = ctx.Process(target=tell_maker, args=(queue, answers))
    process.start()
    process.join()
    assert process.exitcode == 0 and answers.get() == (os.getpid(), process.pid)


def test_unfinished_tasks(ctx: Any) -> None:
    queue = ctx.JoinableQueue()
    assert queue._unfinished_tasks._semlock._is_zero()
    queue.put(1)
    queue.put(2)
    queue.get()
    assert queue._unfinished_tasks.get_value() == 2
    queue.task_done()
    assert queue._unfinished_tasks.get_value() == 1


def test_simple_queue(ctx: Any) -> None:
    queue = ctx.SimpleQueue()
    assert not queue._poll() and not hasattr(queue, "_buffer") and not hasattr(queue, "_sem")
    with queue._rlock, queue._wlock:
        queue.put(1)
        assert queue._poll(0.1) and queue.get() == 1


def test_event_flag(ctx: Any) -> None:
    event = ctx.Event()
    assert event._flag.get_value() == 0
    event.set()
    assert event._flag.get_value() == 1


def test_writer_can_be_waited_for() -> None:
    queue = mpipc.Queue()
    number = queue._writer.fileno()
    assert queue._writer.fileno() == number and select.select([], [queue._writer], [], 0)[1] == [queue._writer]
    queue.close()
    del queue
    with pytest.raises(OSError):
        os.fstat(number)


def take(queue: Any) -> None:
    wait([queue._reader])
    assert queue.get() == 1


def test_wait_does_not_see_what_others_have_taken() -> None:
    context = mpipc.get_context("fork")
    queue = context.Queue()
    assert wait([queue._reader], 0) == []
    process = context.Process(target=take, args=(queue,))
    process.start()
    queue.put(1)
    process.join()
    assert process.exitcode == 0
    assert wait([queue._reader], 0) == [] and select.select([queue._reader], [], [], 0)[0] == []
    queue.put(2)
    assert wait([queue._reader]) == [queue._reader] and queue.get() == 2


# --- pools ------------------------------------------------------------------------------------------------------------


def hold(path: str, go_on: str) -> None:
    open(path, "w").close()
    with open(go_on, "rb"):
        pass


def negative(n: int) -> int:
    return -n


@pytest.fixture
def held(ctx: Any, tmp_path: Any) -> Any:
    """A pool of one worker that runs a task until `go_on` is called: (pool, go_on)."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ctx.Pool(1) as pool:
        result = pool.apply_async(hold, (str(tmp_path / "begun"), str(fifo)))
        wait_until(lambda: (tmp_path / "begun").exists())

        def go_on() -> None:
            with open(fifo, "wb"):
                pass
            result.get()

        yield pool, go_on
    pool.join()


def test_tasks_that_no_worker_has(held: Any) -> None:
    """Workers are given more tasks of a function that is known to be fast: of neg nothing is known."""
    pool, go_on = held
    assert pool._taskqueue.qsize() == 0 and pool._taskqueue.empty() and pool._inqueue.qsize() == 1
    calls = [pool.apply_async(neg, (n,)) for n in range(10)]
    chunks = pool.map_async(neg, range(20), chunksize=5)
    given = pool._inqueue.qsize() - 1
    assert pool._taskqueue.qsize() == 10 + 4 - given and not pool._taskqueue.empty() and not pool._inqueue.empty()
    assert chunks._number_left == 4
    go_on()
    assert [call.get() for call in calls] == [-n for n in range(10)] and chunks.get() == [-n for n in range(20)]
    assert pool._taskqueue.empty() and pool._inqueue.empty() and pool._outqueue.empty()


def test_threads(held: Any) -> None:
    pool, go_on = held
    threads = [pool._worker_handler, pool._task_handler, pool._result_handler]
    assert all(thread.is_alive() for thread in threads)
    go_on()
    pool.close()
    pool.join()
    assert not any(thread.is_alive() for thread in threads)
    assert pool._taskqueue.qsize() == pool._inqueue.qsize() == pool._outqueue.qsize() == 0


def test_a_task_for_a_result_of_ones_own(pool: Any) -> None:
    got: list[Any] = []
    result = mpp.ApplyResult(pool, got.append, None)
    pool._quick_put((result._job, 0, pow, (2,), {"exp": 5}))
    assert result.get() == 32 and got == [32]
    result = mpp.ApplyResult(pool, None, None)
    pool._taskqueue.put(([(result._job, 0, negative, (1, 2, 3), {})], None))
    with pytest.raises(TypeError):
        result.get()
    assert not pool._cache
    found = mpp.IMapIterator(pool)
    pool._taskqueue.put((((found._job, n, negative, (n,), {}) for n in range(500)), found._set_length))
    assert list(found) == [-n for n in range(500)]
    found = mpp.IMapUnorderedIterator(pool)
    lengths = []
    tasks = [(found._job, n, negative, (n,), {}) for n in range(5)]
    pool._taskqueue.put((tasks, lambda length: lengths.append(length) or found._set_length(length)))
    assert sorted(found) == [-n for n in reversed(range(5))] and lengths == [5]
    assert not pool._cache


def test_what_no_task_can_be(pool: Any) -> None:
    with pytest.raises(TypeError, match="close\\(\\) or terminate\\(\\)"):
        pool._taskqueue.put(None)
    with pytest.raises(ValueError, match="knows of no result with the number 123456789"):
        pool._quick_put((123456789, 0, negative, (1,), {}))
    theirs = multiprocessing.pool.mapstar  # type: ignore[attr-defined]
    result = mpp.MapResult(pool, 2, 3, None, None)
    pool._taskqueue.put(
        ([(result._job, i, theirs, ((negative, part),), {}) for i, part in enumerate([(1, 2), (3,)])], None)
    )
    assert result.get() == [-1, -2, -3]


def test_tasks_after_the_end(ctx: Any) -> None:
    pool = ctx.Pool(1)
    pool.terminate()
    found = mpp.IMapIterator(pool)
    pool._taskqueue.put((((found._job, n, negative, (n,), {}) for n in range(3)), found._set_length))
    with pytest.raises(mpipc.BrokenPoolError):
        next(found)
    pool.join()

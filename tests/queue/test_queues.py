"""What programs do with queues: multiprocessing's API, over the three start methods."""

import asyncio
import gc
import os
import pickle
import queue as stdlib_queue
import random
import resource
import selectors
import signal
import subprocess
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any

import pytest
from support import SANITIZED, kernel_objects, kernel_rows, run_script, sysctl, wait_until

import mpipc
from mpipc._core import current, infrastructure
from mpipc._queue.message_queue import INLINE
from mpipc.exceptions import ObjectsRemovedError
from mpipc.queues import JoinableQueue, PriorityQueue, Queue, SimpleQueue
from mpipc.sysv import IPC_RMID, LimitError, msgctl


@pytest.fixture
def fork() -> Any:
    """For what does not depend on the start method."""
    return mpipc.get_context("fork")


def _put_all(queue: Any, objects: Any) -> None:
    for obj in objects:
        queue.put(obj)


def _put_and_vanish(queue: Any, count: int) -> None:
    for i in range(count):
        queue.put(i)
    os._exit(0)


def _echo(requests: Any, replies: Any) -> None:
    for obj in iter(requests.get, None):
        replies.put(obj)


# ---- one process -----------------------------------------------------------------------------------------------------


def test_a_put_is_visible_when_it_returns() -> None:
    queue: Queue[int] = Queue()
    for i in range(1000):
        queue.put(i)
        assert queue.empty() is False
        assert queue.qsize() == 1
        assert queue.get_nowait() == i
    assert queue.empty()


@pytest.mark.parametrize("make", [Queue, JoinableQueue, PriorityQueue])
def test_full_and_empty(make: Any) -> None:
    queue = make(3)
    for call in (
        queue.get_nowait,
        lambda: queue.get(False),
        lambda: queue.get(timeout=0.01),
        lambda: queue.get(True, -1),
        lambda: queue.get_many(5, False),
        lambda: queue.get_many(5, timeout=0.01),
    ):
        with pytest.raises(stdlib_queue.Empty):
            call()
    for i in range(3):
        assert not queue.full()
        queue.put(i)
    assert queue.full()
    for call in (
        lambda: queue.put_nowait(3),
        lambda: queue.put(3, False),
        lambda: queue.put(3, timeout=0.01),
        lambda: queue.put(3, True, -1),
        lambda: queue.put(3, False, 100),
    ):
        with pytest.raises(stdlib_queue.Full):
            call()
    assert [queue.get() for _ in range(3)] == [0, 1, 2]


def test_closed() -> None:
    for queue in (Queue(), JoinableQueue(), PriorityQueue()):
        with pytest.raises(AssertionError):
            queue.join_thread()
        queue.cancel_join_thread()
        queue.close()
        queue.close()
        queue.join_thread()
        with pytest.raises(ValueError, match="is closed"):
            queue.put(1)
        with pytest.raises(ValueError, match="is closed"):
            queue.get()
    simple: SimpleQueue[int] = SimpleQueue()
    simple.close()
    simple.close()
    assert simple._reader.closed and simple._writer.closed
    for call in (simple.get, simple.empty, lambda: simple.put(1)):
        with pytest.raises(OSError, match="handle is closed"):
            call()


class Unpicklable:
    def __reduce__(self) -> Any:
        raise AttributeError("on purpose")


class HalfPicklable:
    """Fails when much has been written already."""

    def __reduce__(self) -> Any:
        return list, (), None, iter([bytes(100_000), Unpicklable()])


def _fail() -> None:
    raise ArithmeticError("on purpose")


class NotUnpicklable:
    def __reduce__(self) -> Any:
        return _fail, ()


@pytest.mark.parametrize("bad", [Unpicklable, HalfPicklable])
def test_what_cannot_be_pickled(bad: Any, capfd: pytest.CaptureFixture[str]) -> None:
    queue: Queue[Any] = Queue(1)
    queue.put(bad())
    assert "on purpose" in capfd.readouterr().err
    assert queue.empty()
    queue.put(True)
    assert queue.qsize() == 1
    assert queue.get(timeout=60) is True

    heard = []

    class SafeQueue(Queue[Any]):
        def _on_queue_feeder_error(self, e: Exception, obj: Any) -> None:  # type: ignore[override]
            heard.append((type(e), type(obj)))

    safe = SafeQueue(ctx=mpipc.get_context())
    safe.put(bad())
    assert heard == [(AttributeError, bad)]
    strict: Queue[Any] = Queue(raise_on_pickle_error=True)
    simple: SimpleQueue[Any] = SimpleQueue()
    for put in (strict.put, simple.put):
        with pytest.raises(AttributeError, match="on purpose"):
            put(bad())
    strict.put(1)
    assert strict.get() == 1


@pytest.mark.parametrize("ballast", [b"", bytes(100_000)])
def test_what_cannot_be_unpickled_is_gone(ballast: bytes) -> None:
    queue: Queue[Any] = Queue()
    queue.put((ballast, NotUnpicklable()))
    queue.put("next")
    with pytest.raises(ArithmeticError):
        queue.get()
    assert queue.qsize() == 1
    assert queue.get() == "next"
    assert queue.statistics().shared_bytes_in_use == 0


def test_queues_travel_to_children_only() -> None:
    queue: Queue[Any] = Queue(raise_on_pickle_error=True)
    with pytest.raises(RuntimeError, match="inheritance"):
        queue.put(queue)
    with pytest.raises(RuntimeError, match="inheritance"):
        queue.put(SimpleQueue())


SIZES = [0, 1, 100, INLINE - 100, *range(INLINE - 12, INLINE + 13), 4000, 8191, 8192, 8193, 16384, 1 << 20, 5 << 20]


@pytest.mark.parametrize("make", [Queue, JoinableQueue, SimpleQueue, PriorityQueue])
def test_messages_of_all_sizes(make: Any) -> None:
    queue = make()
    for size in SIZES:
        queue.put(os.urandom(16) * (size // 16) + bytes(size % 16))
    for size in SIZES:
        assert len(queue.get()) == size
    for size in SIZES:
        original = {"bytes": os.urandom(size), "bytearray": bytearray(os.urandom(size)), "text": "x" * size}
        queue.put(original)
        assert queue.get() == original


def test_buffers_in_any_object() -> None:
    numpy = pytest.importorskip("numpy")
    queue: Queue[Any] = Queue()
    numbers = numpy.arange(300_000).reshape(300, 1000)
    for value in (numbers, numbers.T, numbers[::2, ::3], numbers[:0], numpy.array(["a", None], dtype=object)):
        queue.put({"nested": [value, (value,)]})
        got = queue.get()["nested"]
        assert (got[0] == value).all() and got[0].dtype == value.dtype and got[0].shape == value.shape
        assert got[0] is got[1][0]
    queue.put(numbers)
    got = queue.get()
    got[0, 0] = 99  # writable, and nobody else's
    queue.put(numbers)
    assert queue.get()[0, 0] == 0
    assert got[0, 0] == 99
    frozen = numpy.arange(100_000)
    frozen.flags.writeable = False
    queue.put(frozen)
    assert not queue.get().flags.writeable


def _say_the_last_word(queue: Any) -> None:
    queue.put("the last word")


@pytest.mark.slow_with("spawn", "forkserver")
def test_the_last_word_is_heard_before_the_end(ctx: Any) -> None:
    """Who waits for a queue's descriptor and a process's sentinel, as concurrent.futures does, would otherwise take the
    process for killed."""
    queue = ctx.SimpleQueue()
    for _ in range(60):
        process = ctx.Process(target=_say_the_last_word, args=(queue,))
        process.start()
        assert queue._reader in wait([queue._reader, process.sentinel])
        assert queue.get() == "the last word"
        process.join()


def test_registered_reducers() -> None:
    import copyreg

    from mpipc.reduction import ForkingPickler

    class Local:  # cannot be pickled by name
        pass

    queue: Queue[Any] = Queue(raise_on_pickle_error=True)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):  # the last: from Python 3.14 on
        queue.put(Local())
    ForkingPickler.register(Local, lambda local: (str, ("forking",)))
    try:
        queue.put(Local())
        assert queue.get() == "forking"
        copyreg.pickle(Local, lambda local: (str, ("copyreg",)))  # type: ignore[arg-type]
        queue.put([Local()])
        assert queue.get() == ["forking"]
    finally:
        del ForkingPickler._extra_reducers[Local]
    queue.put([Local()])
    assert queue.get() == ["copyreg"]
    del copyreg.dispatch_table[Local]


def test_pickling_may_use_queues() -> None:
    inner: Queue[Any] = Queue()
    outer: Queue[Any] = Queue()
    _Chatty.queue = inner
    outer.put([_Chatty(), _Chatty()])
    assert outer.get() == ["made", "made"]
    assert [inner.get() for _ in range(2)] == ["making", "making"]
    _Chatty.queue = None


class _Chatty:
    queue: Any = None

    def __reduce__(self) -> Any:
        _Chatty.queue.put("making")
        return str, ("made",)


def test_priorities() -> None:
    queue: PriorityQueue[Any] = PriorityQueue()
    sent = [(priority, number) for number in range(2000) for priority in (3, 32767, 0, 3)]
    for priority, number in sent:
        queue.put((priority, number, bytes(number)), priority=priority)
    assert queue.statistics().overflow > 0
    queue.put_nowait("last", priority=0)
    received = [queue.get()[:2] for _ in sent]
    assert received == sorted(sent, key=lambda item: -item[0])
    assert queue.get(timeout=60) == "last"
    queue.put_many(["a", "b"])
    queue._writer.send("c")
    queue.put("first", priority=1)
    queue.put_many(["before"], priority=2)
    assert queue.get_many(10) == ["before", "first", "a", "b", "c"]
    for wrong in (-1, 32768):
        with pytest.raises(ValueError, match="priority"):
            queue.put(1, priority=wrong)


def test_many_with_priorities() -> None:
    queue: PriorityQueue[Any] = PriorityQueue()
    sent = []
    for priority, count in ((3, 400), (5, 3), (1, 3), (4, 3), (3, 3)):  # those of 3 fill the kernel queue, and more
        for _ in range(count):
            sent.append((priority, len(sent), bytes(100)))
            queue.put(sent[-1], priority=priority)
    assert queue.statistics().overflow > 12
    received: list[Any] = []
    while not queue.empty():
        received += queue.get_many(4)
    assert received == sorted(sent, key=lambda item: -item[0])


def test_fifo_across_the_overflow() -> None:
    queue: Queue[Any] = Queue()
    expected = 0
    sent = 0
    for wave in (10, 5000, 1, 300, 20_000, 7):  # never emptied in between
        for _ in range(wave):
            queue.put((sent, bytes(sent % 3000)))
            sent += 1
        for _ in range(wave - 1):
            assert queue.get()[0] == expected
            expected += 1
        assert queue.qsize() == sent - expected
    assert [queue.get()[0] for _ in range(sent - expected)] == list(range(expected, sent))
    assert queue.empty()


def test_memory_is_used_again_and_returned() -> None:
    queue: Queue[Any] = Queue()
    for _ in range(50):
        queue.put(bytes(3_000_000))
        queue.get()
    usage = queue.statistics()
    assert usage.shared_bytes < 8_000_000
    assert usage.shared_bytes_in_use == 0
    rss = kernel_rows("shm")
    resident = sum(row["rss"] for row in rss.values())
    assert queue.trim() == usage.shared_bytes
    assert queue.statistics().shared_bytes == 0
    assert sum(row["rss"] for row in kernel_rows("shm").values()) <= resident - 3_000_000


@pytest.mark.slow
def test_the_reaper_returns_what_is_idle(fork: Any) -> None:
    """Without a call of ours, once it has been idle for some seconds; what the queue holds stays."""
    queue = fork.Queue()
    queue.put(bytes(3_000_000))
    queue.put(b"held" * 1_000_000)
    queue.get()
    before = queue.statistics()
    assert before.shared_bytes > before.shared_bytes_in_use >= 4_000_000

    def returned() -> bool:
        child = fork.Process()  # its end wakes the reaper, which would look twice a minute otherwise
        child.start()
        child.join()
        return queue.statistics().shared_bytes <= before.shared_bytes - 3_000_000  # type: ignore[no-any-return]

    wait_until(returned, timeout=60)
    assert queue.get() == b"held" * 1_000_000


def test_dropped_queues_leave_nothing() -> None:
    Queue()
    before = kernel_objects()
    for _ in range(300):
        queue: Queue[Any] = Queue(10)
        queue.put(bytes(100_000))
    del queue
    assert kernel_objects().minus(before, infrastructure()).count == 0


def test_statistics() -> None:
    queue: Queue[Any] = Queue()
    queue.put("x")
    statistics = queue.statistics()
    assert statistics.messages == statistics.kernel_messages == 1
    assert 0 < statistics.kernel_bytes < 100
    assert statistics.last_sender == os.getpid()
    for _ in range(10_000):
        queue.put("x" * 100)
    statistics = queue.statistics()
    assert statistics.messages == 10_001 == statistics.kernel_messages + statistics.overflow
    with pytest.raises(stdlib_queue.Empty):
        Queue().get(timeout=0)
    assert queue.statistics().waiting_readers == 0


# ---- several ---------------------------------------------------------------------------------------------------------


def test_echo(ctx: Any) -> None:
    requests, replies = ctx.Queue(), ctx.SimpleQueue()
    process = ctx.Process(target=_echo, args=(requests, replies))
    process.start()
    for size in (10, 2000, 100_000, 3_000_000):
        requests.put(bytes(size))
        assert replies.get() == bytes(size)
    for i in range(2000):
        requests.put(i)
    assert [replies.get() for _ in range(2000)] == list(range(2000))
    requests.put(None)
    process.join()
    assert process.exitcode == 0


def test_what_was_put_survives_its_process(ctx: Any) -> None:
    queue = ctx.Queue()
    process = ctx.Process(target=_put_and_vanish, args=(queue, 20_000))
    process.start()
    process.join()
    assert queue.qsize() == 20_000
    assert [queue.get() for _ in range(20_000)] == list(range(20_000))


def test_the_queue_lives_as_long_as_a_child_uses_it(ctx: Any) -> None:
    requests, replies, permission = ctx.Queue(), ctx.Queue(), ctx.Queue()
    process = ctx.Process(target=_relay_later, args=(requests, replies, permission))
    process.start()
    assert replies.get() == "ready"
    number = requests._messages.block.id
    requests.put("work")
    del requests
    assert number in kernel_rows("msg")
    permission.put("go")
    assert replies.get() == "work"
    process.join()
    wait_until(lambda: number not in kernel_rows("msg"))


def _relay_later(requests: Any, replies: Any, permission: Any) -> None:
    replies.put("ready")
    permission.get()
    replies.put(requests.get())


@pytest.mark.slow_with("spawn")
def test_maxsize_under_many_producers(ctx: Any) -> None:
    queue = ctx.Queue(7)
    processes = [ctx.Process(target=_put_all, args=(queue, [(n, i) for i in range(300)])) for n in range(4)]
    for process in processes:
        process.start()
    got: dict[int, list[int]] = {n: [] for n in range(4)}
    for _ in range(1200):
        assert queue.qsize() <= 7
        number, i = queue.get(timeout=60)
        got[number].append(i)
    assert all(numbers == list(range(300)) for numbers in got.values())
    assert queue.empty()
    for process in processes:
        process.join()


def _work(tasks: Any) -> None:
    for _ in iter(tasks.get, None):
        tasks.task_done()
    tasks.task_done()


def test_join(ctx: Any) -> None:
    tasks = ctx.JoinableQueue()
    tasks.join()
    processes = [ctx.Process(target=_work, args=(tasks,)) for _ in range(3)]
    for process in processes:
        process.start()
    for i in range(3000):
        tasks.put(i)
    tasks.join()
    for _ in processes:
        tasks.put(None)
    for process in processes:
        process.join()
    tasks.join()
    with pytest.raises(ValueError, match="too many times"):
        tasks.task_done()


def _take_and_sit(tasks: Any, taken: Any) -> None:
    tasks.get()
    taken.set()
    signal.pause()


def test_a_task_of_a_killed_consumer_stays_unfinished(ctx: Any) -> None:
    """Nobody knows how far it had come. Who decides that, calls task_done() for it, in any process."""
    tasks, taken = ctx.JoinableQueue(), ctx.Event()
    tasks.put(1)
    consumer = ctx.Process(target=_take_and_sit, args=(tasks, taken))
    consumer.start()
    assert taken.wait(60)
    consumer.kill()
    consumer.join()
    wait_until(lambda: consumer.pid not in [pid for _, _, pid in current().processes()], timeout=30)
    assert tasks.statistics().unfinished == 1
    joined = threading.Thread(target=tasks.join)
    joined.start()
    wait_until(lambda: tasks._messages.usage()[6] == 1, message="a waiting joiner")
    finisher = ctx.Process(target=tasks.task_done)
    finisher.start()
    finisher.join()
    joined.join(60)
    assert not joined.is_alive()
    with pytest.raises(ValueError, match="too many times"):
        tasks.task_done()


@pytest.mark.slow
def test_a_million_tasks(fork: Any) -> None:
    tasks = fork.JoinableQueue()
    for _ in range(1_000_000):
        tasks.put(0)
    for _ in range(1_000_000):
        tasks.get()
    joined = threading.Thread(target=tasks.join)
    joined.start()
    for _ in range(999_999):
        tasks.task_done()
    assert joined.is_alive()
    tasks.task_done()
    joined.join(60)
    assert not joined.is_alive()


def _get_one(queue: Any, timed: bool, ready: Any, replies: Any) -> None:
    ready.put(os.getpid())
    replies.put((os.getpid(), queue.get(timeout=60) if timed else queue.get()))


def _sleeps_in(pid: int, *calls: str) -> bool:
    with open(f"/proc/{pid}/wchan") as file:
        return file.read() in calls


@pytest.mark.parametrize("timed", [True, False, None], ids=["timed", "untimed", "mixed"])
def test_a_killed_waiter_takes_nothing_along(fork: Any, timed: bool | None) -> None:
    queue, ready, replies = fork.Queue(), fork.Queue(), fork.Queue()
    processes = [
        fork.Process(target=_get_one, args=(queue, bool(n % 2) if timed is None else timed, ready, replies))
        for n in range(6)
    ]
    for process in processes:
        process.start()
    for process in processes:
        ready.get()
        wait_until(lambda process=process: _state(process.pid) == "S")  # type: ignore[misc]
    for process in processes[::2]:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    for i in range(3):
        queue.put(i)
    received = dict(replies.get(timeout=60) for _ in range(3))
    assert sorted(received.values()) == [0, 1, 2]
    assert set(received) == {process.pid for process in processes[1::2]}
    for process in processes:
        process.join()


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.mark.slow
def test_waiting_costs_nothing(fork: Any) -> None:
    """A consumer that waits with a timeout sleeps in the kernel: it is woken about once a second, to look after the
    family, and not more often."""
    queue = fork.Queue()
    thread = resource.RUSAGE_THREAD
    before = resource.getrusage(thread)
    with pytest.raises(stdlib_queue.Empty):
        queue.get(timeout=5)
    after = resource.getrusage(thread)
    print("slept", after.ru_nvcsw - before.ru_nvcsw)
    assert 4 <= after.ru_nvcsw - before.ru_nvcsw <= 12  # five ticks, and what the memory of a busy machine may cost
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.010


def test_a_killed_reader_is_not_counted(ctx: Any) -> None:
    queue = ctx.Queue()
    readers = [ctx.Process(target=queue.get) for _ in range(3)]
    for reader in readers:
        reader.start()
    wait_until(lambda: queue.statistics().waiting_readers == 3)
    os.kill(readers[0].pid, signal.SIGKILL)
    wait_until(lambda: queue.statistics().waiting_readers == 2)
    for _ in readers[1:]:
        queue.put(None)
    for reader in readers:
        reader.join()
    assert queue.statistics().waiting_readers == 0


def test_readers_of_many_queues_are_counted(fork: Any) -> None:
    """However many queues and threads: there is more room for their records when it is needed."""
    queues = [fork.Queue() for _ in range(30)]
    readers = [threading.Thread(target=queue.get) for queue in queues for _ in range(3)]
    for reader in readers:
        reader.start()
    wait_until(lambda: [queue.statistics().waiting_readers for queue in queues] == 30 * [3])
    for queue in queues:
        for _ in range(3):
            queue.put(None)
    for reader in readers:
        reader.join()
    assert not any(queue.statistics().waiting_readers for queue in queues)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_no_more_queues(fork: Any) -> None:
    fork.Queue()
    before, blocks = kernel_objects(), current().blocks()
    with sysctl("msgmni", 0), pytest.raises(LimitError, match=r"kernel\.msgmni") as caught:
        fork.Queue()
    assert caught.value.limit == "MSGMNI"
    gc.collect()
    assert kernel_objects().minus(before).count == 0
    assert current().blocks() == blocks
    fork.Queue().put(1)


@pytest.mark.parametrize("limit", ["shmmni", "shmall"])
def test_no_more_segments(fork: Any, limit: str) -> None:
    """Nothing of the message that would need one is sent; the queue goes on, and takes it once there is one."""
    queue = fork.Queue()
    queue.put("small")
    with sysctl(limit, 0):
        with pytest.raises(LimitError, match=rf"kernel\.{limit}") as caught:
            queue.put(bytes(100_000))
        assert caught.value.limit == limit.upper()
        assert queue.qsize() == 1
        with pytest.raises(LimitError):
            for _ in range(1000):  # what the kernel's queue has no room for
                queue.put(bytes(1000))
        held = queue.qsize()
        assert queue.get() == "small"
        for _ in range(held - 1):
            assert queue.get() == bytes(1000)
        assert queue.empty()
    queue.put(bytes(100_000))
    assert queue.get() == bytes(100_000)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
@pytest.mark.parametrize("limit", ["shmmni", "shmall"])
def test_what_would_be_faster_by_a_segment_goes_without(fork: Any, kind: str, limit: str) -> None:
    """Who receives often without having to sleep makes the others send by shared memory; unless there is none."""
    queue = getattr(fork, kind)()
    with sysctl(limit, 0):
        for i in range(2000):
            queue.put(i)
            assert queue.get() == i
        for i in range(10):
            queue.put(i)
        assert [queue.get() for _ in range(10)] == list(range(10))
        if kind != "SimpleQueue":
            assert queue.put_many(range(20)) == 20
            assert queue.get_many(20) == list(range(20))
        assert queue.empty()
    queue.put(bytes(100_000))
    queue.put(1)
    assert (queue.get(), queue.get()) == (bytes(100_000), 1)


# ---- a queue that is removed -----------------------------------------------------------------------------------------


def _remove(queue: Any) -> None:
    # Not by fork(2) of this process: the child would be a member of the family, its end a reason to look at the queue.
    subprocess.run(["ipcrm", "-q", str(queue._messages.block.id)], check=True)


def _stream(queue: Any) -> None:
    """Brings the (empty) queue to where messages do not go through the kernel."""
    for i in range(50):
        queue.put(i)
        assert queue.get() == i
    queue.put(None)
    assert queue.statistics().overflow == 1
    assert queue.get() is None


def _refused_before_long(put: Callable[[], object]) -> None:
    """In the clock tick of the removal a message may still be accepted."""
    for _ in range(100_000_000):
        try:
            put()
        except BrokenPipeError:
            return
    raise AssertionError("not refused")


def test_removed_for_many_at_once(fork: Any) -> None:
    """It is the queue that is gone, and not one object among others: there is nothing that was `received`."""
    queue = fork.Queue()
    queue.put_many(range(3))
    assert queue.get_many(3) == [0, 1, 2]
    msgctl(queue._messages.block.id, IPC_RMID)
    for block in (True, False):
        with pytest.raises(EOFError) as caught:
            queue.get_many(3, block)
        assert not hasattr(caught.value, "received")


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("timed", [True, False])
def test_removed_under_a_reader(fork: Any, timed: bool, streamed: bool) -> None:
    queue = fork.Queue()
    raised: list[type[BaseException]] = []

    def read() -> None:
        try:
            queue.get(timeout=60 if timed else None)
        except BaseException as e:
            raised.append(type(e))

    if streamed:
        _stream(queue)
    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: queue.statistics().waiting_readers == 1)
    _remove(queue)
    reader.join(60)
    assert raised == [ObjectsRemovedError]
    with pytest.raises(EOFError):
        queue.get()
    with pytest.raises(EOFError):
        queue.get_nowait()
    with pytest.raises(EOFError):
        queue.get_many(3)
    with pytest.raises(BrokenPipeError):
        queue.put(1)
    with pytest.raises(BrokenPipeError):
        queue.put_many([1, 2])


@pytest.mark.parametrize("streamed", [True, False])
def test_removed_under_a_writer(fork: Any, streamed: bool) -> None:
    queue = fork.Queue(1)
    raised: list[type[BaseException]] = []

    def write() -> None:
        try:
            queue.put(2)
        except BaseException as e:
            raised.append(type(e))

    if streamed:
        _stream(queue)
    queue.put(1)
    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: queue.statistics().waiting_writers == 1)
    _remove(queue)
    writer.join(60)
    assert raised == [ObjectsRemovedError]


def _get(queue: Any) -> None:
    with pytest.raises(EOFError):
        queue.get(timeout=60)


def test_removed_while_nobody_meets_the_kernel(fork: Any) -> None:
    """What was put before is received, unless somebody has met the kernel; then all are told."""
    queue = fork.Queue()
    _stream(queue)
    queue.put_many(range(3))
    _remove(queue)
    assert [queue.get() for _ in range(3)] == [0, 1, 2]
    for get in (queue.get_nowait, queue.get, lambda: queue.get(timeout=0.001), lambda: queue.get_many(2)):
        with pytest.raises(EOFError):
            get()
    with pytest.raises(EOFError):
        queue.qsize()
    child = fork.Process(target=_get, args=(queue,))
    child.start()
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize("many", [True, False])
def test_removed_under_a_writer_who_does_not_meet_the_kernel(fork: Any, many: bool) -> None:
    queue = fork.Queue()
    _stream(queue)
    _remove(queue)
    _refused_before_long((lambda: queue.put_many([1, 2])) if many else (lambda: queue.put(1)))
    with pytest.raises(BrokenPipeError):
        queue.put(1)
    with pytest.raises(EOFError):
        while True:
            queue.get()


@pytest.mark.skipif(SANITIZED, reason="sanitizers need more address space")
def test_out_of_memory_sends_nothing() -> None:
    run_script(
        """
        import resource
        from mpipc.queues import Queue

        queue = Queue()
        queue.put(1)
        data = bytes(300 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
        try:
            queue.put([data, data])
        except MemoryError:
            pass
        else:
            raise SystemExit("no MemoryError")
        queue.put(2)
        assert [queue.get(), queue.get()] == [1, 2] and queue.empty()
        """
    )


def test_two_thousand_queues_with_256_descriptors() -> None:
    run_script(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        from mpipc.queues import Queue

        queues = [Queue() for _ in range(2000)]
        for i, queue in enumerate(queues):
            queue.put(i)
        assert [queue.get() for queue in queues] == list(range(2000))
        """
    )


def test_ctrl_c(fork: Any) -> None:
    queue = fork.Queue(1)
    queue.put(0)
    empty = fork.Queue()
    for call in (empty.get, lambda: empty.get(timeout=60), lambda: queue.put(1), lambda: empty._reader.poll(60)):
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        timer.join()
    queue.get()
    assert queue.empty()


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_many_at_once() -> None:
    queue: Queue[Any] = Queue()
    count = 0
    for size in (1, 2, 5, 200, 5000):
        assert queue.put_many(range(count, count + size)) == size
        queue.put(count + size)
        count += size + 1
    assert queue.qsize() == count
    queue.put_many(bytes([i]) * 100_000 for i in range(3))
    received: list[Any] = []
    while not queue.empty():
        received += queue.get_many(50)
    assert received[:-3] == list(range(count))
    assert received[-3:] == [bytes([i]) * 100_000 for i in range(3)]
    assert queue.statistics().shared_bytes_in_use == 0
    with pytest.raises(ValueError, match="max_items"):
        queue.get_many(0)


def test_many_into_a_bounded_queue() -> None:
    queue: Queue[Any] = Queue(5)
    assert queue.put_many(range(10), False) == 5
    assert queue.full()
    assert queue.put_many(range(10), timeout=0.01) == 0
    assert queue.get_many(3) == [0, 1, 2]
    assert queue.put_many([7, 8, 9], False) == 3
    assert queue.get_many(100) == [3, 4, 7, 8, 9]
    bodies = [bytes([i]) * 5000 for i in range(100)]
    putter = threading.Thread(target=queue.put_many, args=(bodies,))
    putter.start()
    received: list[Any] = []
    while len(received) < 100:
        received += queue.get_many(2)
        assert queue.qsize() <= 5
    assert received == bodies
    putter.join()
    assert queue.statistics().shared_bytes_in_use == 0


def test_many_with_a_bad_one(capfd: pytest.CaptureFixture[str]) -> None:
    queue: Queue[Any] = Queue()
    queue.put_many([1, Unpicklable(), 2, HalfPicklable(), bytes(10_000), NotUnpicklable(), 3])
    assert capfd.readouterr().err.count("AttributeError: on purpose") == 2
    with pytest.raises(ArithmeticError) as caught:
        queue.get_many(10)
    assert caught.value.received == [1, 2, bytes(10_000), 3]  # type: ignore[attr-defined]
    strict: Queue[Any] = Queue(raise_on_pickle_error=True)
    with pytest.raises(AttributeError):
        strict.put_many([1, 2, Unpicklable(), 3])
    assert strict.get_many(10) == [1, 2]


def test_many_tasks() -> None:
    tasks: JoinableQueue[int] = JoinableQueue()
    tasks.put_many(range(10))
    for _ in tasks.get_many(4):
        tasks.task_done()
    assert tasks.statistics().unfinished == 0
    for _ in tasks.get_many(10):
        tasks.task_done()
    tasks.join()


# ---- mixed sizes, producers and consumers ----------------------------------------------------------------------------


def _put_sizes(queue: Any, producer: int, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(200):
        size = chance.choice(SIZES[:-1])
        queue.put((producer, number, size, zlib.crc32(bytes([number & 255]) * size), bytes([number & 255]) * size))


def _check_all(queue: Any, replies: Any) -> None:
    for producer, number, size, checksum, body in iter(queue.get, None):
        replies.put((producer, number, len(body) == size and zlib.crc32(body) == checksum))


@pytest.mark.slow_with("spawn")
def test_sizes_mixed(ctx: Any) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    queue, replies = ctx.Queue(), ctx.Queue()
    producers = [ctx.Process(target=_put_sizes, args=(queue, n, seed + n)) for n in range(3)]
    consumers = [ctx.Process(target=_check_all, args=(queue, replies)) for _ in range(3)]
    for process in producers + consumers:
        process.start()
    for process in producers:
        process.join()
    for _ in consumers:
        queue.put(None)
    received = [replies.get(timeout=60) for _ in range(600)]
    assert all(good for _, _, good in received)
    assert sorted(received) == [(n, i, True) for n in range(3) for i in range(200)]
    for process in consumers:
        process.join()
    assert queue.statistics().shared_bytes_in_use == 0


# ---- file descriptors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Queue, SimpleQueue, JoinableQueue, PriorityQueue])
def test_descriptor(make: Any) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    queue = make()
    queue.put(0)
    queue.get()
    assert len(os.listdir("/proc/self/fd")) == descriptors  # nothing, until somebody asks
    for waitable in (queue, queue._reader):
        for _ in range(3):
            assert wait([waitable], 0) == []
            queue.put(1)
            queue.put(2)
            assert wait([waitable], 60) == [waitable]
            assert queue.get() == 1
            assert wait([waitable], 60) == [waitable]
            assert queue._reader.recv() == 2
            wait_until(lambda waitable=waitable: wait([waitable], 0) == [])  # type: ignore[misc]
    assert queue._reader.poll() is False
    queue._writer.send("sent")
    assert queue._reader.poll(60) is True
    assert queue.get() == "sent"
    queue.close()
    with pytest.raises(OSError, match="closed"):
        queue.fileno()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == descriptors)


def test_descriptor_wakes_a_sleeper(ctx: Any) -> None:
    requests, replies = ctx.Queue(), ctx.SimpleQueue()
    process = ctx.Process(target=_echo, args=(requests, replies))
    process.start()
    with selectors.DefaultSelector() as selector:
        selector.register(replies._reader, selectors.EVENT_READ)
        for i in range(100):
            requests.put(i)
            assert selector.select(60)
            assert replies.get() == i
    requests.put(None)
    process.join()
    replies.close()


def _select_and_take(queue: Any, replies: Any) -> None:
    while True:
        assert wait([queue], 60)
        try:
            obj = queue.get_nowait()
        except stdlib_queue.Empty:
            continue  # another consumer was faster
        if obj is None:
            return
        replies.put(obj)


def test_descriptors_of_several_consumers(ctx: Any) -> None:
    queue, replies = ctx.Queue(), ctx.Queue()
    consumers = [ctx.Process(target=_select_and_take, args=(queue, replies)) for _ in range(3)]
    for process in consumers:
        process.start()
    for i in range(300):
        queue.put(i)
    for _ in consumers:
        queue.put(None)
    assert sorted(replies.get(timeout=60) for _ in range(300)) == list(range(300))
    for process in consumers:
        process.join()


def test_asyncio(fork: Any) -> None:
    queue = fork.Queue()
    received: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def ready() -> None:
            try:
                while True:
                    received.append(queue.get_nowait())
                    if received[-1] == 99:
                        done.set()
            except stdlib_queue.Empty:
                pass

        loop.add_reader(queue, ready)
        process = fork.Process(target=_put_all, args=(queue, list(range(100))))
        process.start()
        await asyncio.wait_for(done.wait(), 60)
        loop.remove_reader(queue)
        process.join()

    asyncio.run(main())
    assert received == list(range(100))
    queue.close()


def test_process_pool_executor(ctx: Any) -> None:
    with ProcessPoolExecutor(2, mp_context=ctx) as executor:
        assert list(executor.map(abs, range(-100, 0), chunksize=7)) == list(range(100, 0, -1))


def test_descriptor_whose_thread_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter ends. Waiting does not raise, nor wait; receiving tells; the next attempt succeeds."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    queue = mpipc.SimpleQueue()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert mpipc.connection.wait([queue._reader], 60) == [queue._reader]
    with pytest.raises(RuntimeError, match="can't create new thread"):
        queue._reader.recv()
    assert mpipc.connection.wait([queue._reader], 0) == []
    queue.put(1)
    assert mpipc.connection.wait([queue._reader], 60) == [queue._reader]
    assert queue._reader.recv() == 1
    queue.close()


@pytest.mark.parametrize("most", [1, 2, 64])
def test_get_many_waits_for_its_first(fork: Any, most: int) -> None:
    """Also if that one is all that was asked for."""
    queue = fork.Queue()
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.extend(queue.get_many(most)))
    reader.start()
    wait_until(lambda: queue.statistics().waiting_readers == 1)
    queue.put("late")
    reader.join()
    assert found == ["late"]

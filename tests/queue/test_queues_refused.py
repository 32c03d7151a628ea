"""What is refused costs nothing: full queues and large objects, and timeouts that are none."""

from __future__ import annotations

import queue as stdlib_queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import mpipc
from mpipc.queues import JoinableQueue, PriorityQueue, Queue


class Large:
    """Counts how often it is pickled."""

    def __init__(self) -> None:
        self.pickled = 0

    def __reduce__(self) -> tuple[Any, ...]:
        self.pickled += 1
        return bytearray, (b"x" * (1 << 20),)


@pytest.mark.parametrize("make", [Queue, JoinableQueue, PriorityQueue])
def test_a_full_queue_is_asked_for_room_first(make: Callable[[int], Any]) -> None:
    queue = make(1)
    queue.put(1)
    large = Large()
    for call in (
        lambda: queue.put_nowait(large),
        lambda: queue.put(large, timeout=0),
        lambda: queue.put(large, timeout=-1),
        lambda: queue.put(large, timeout=0.05),
    ):
        with pytest.raises(stdlib_queue.Full):
            call()
    assert queue.put_many([large] * 3, False) == 0
    assert queue.put_many([large] * 3, timeout=0.05) == 0
    assert large.pickled == 0
    assert queue.statistics().segments == 0


def test_a_blocked_put_pickles_and_claims_once() -> None:
    queue: Queue[Any] = Queue(1)
    queue.put(0)
    large = Large()
    thread = threading.Thread(target=queue.put, args=(large,))
    thread.start()
    received = []
    for i in range(1000):  # again and again there is room, and the waiter is woken, and often comes too late
        received.append(queue.get())
        try:
            queue.put_nowait(i)
        except stdlib_queue.Full:
            break
    while bytearray not in map(type, received):
        received.append(queue.get(timeout=60))
    thread.join()
    assert large.pickled == 1
    assert queue.statistics().shared_bytes <= 2 << 20
    assert queue.statistics().shared_bytes_in_use == 0


def test_put_many_sends_as_many_as_there_is_room_for() -> None:
    queue: Queue[Any] = Queue(5)
    larges = [Large() for _ in range(8)]
    assert queue.put_many([1, *larges], False) == 5
    assert [large.pickled for large in larges] == [1] * 4 + [0] * 4
    assert queue.get() == 1
    assert [len(queue.get()) for _ in range(4)] == [1 << 20] * 4
    received: list[int] = []
    thread = threading.Thread(target=lambda: received.extend(len(queue.get()) for _ in range(8)))
    thread.start()
    assert queue.put_many(larges) == 8
    thread.join()
    assert received == [1 << 20] * 8
    assert [large.pickled for large in larges] == [2] * 4 + [1] * 4


def _best(call: Callable[[], object], other: Callable[[], object]) -> float:
    """How much longer the one takes than the other, at best."""

    def once(function: Callable[[], object]) -> float:
        began = time.perf_counter()
        for _ in range(300):
            function()
        return time.perf_counter() - began

    once(call), once(other)
    pairs = [(once(call), once(other)) for _ in range(15)]
    return min(first for first, _ in pairs) / min(second for _, second in pairs)


def _refused(error: type[Exception], function: Callable[..., object], *args: object, **kwargs: object) -> Any:
    def call() -> None:
        try:
            function(*args, **kwargs)
        except error:
            return
        raise AssertionError("it was not refused")

    return call


@pytest.mark.parametrize("timeout", [0, -1, 0.0])
def test_a_timeout_that_is_not_positive_is_none(timeout: float) -> None:
    """It neither registers nor sleeps, which costs 50 us and more."""
    empty, full = mpipc.Queue(), mpipc.Queue(1)
    full.put(1)
    lock, semaphore, event = mpipc.Lock(), mpipc.Semaphore(0), mpipc.Event()
    lock.acquire()
    for call, other in (
        (_refused(stdlib_queue.Empty, empty.get, timeout=timeout), _refused(stdlib_queue.Empty, empty.get, False)),
        (_refused(stdlib_queue.Full, full.put, 1, timeout=timeout), _refused(stdlib_queue.Full, full.put, 1, False)),
        (lambda: lock.acquire(timeout=timeout), lambda: lock.acquire(False)),
        (lambda: semaphore.acquire(timeout=timeout), lambda: semaphore.acquire(False)),
        (lambda: event.wait(timeout), event.is_set),
        (lambda: empty._reader.poll(timeout), empty.empty),
    ):
        assert _best(call, other) < 1.5
    lock.release()


def test_what_is_there_is_had_without_a_timeout() -> None:
    queue, event, condition = mpipc.Queue(), mpipc.Event(), mpipc.Condition()
    queue.put(1)
    assert queue._reader.poll(0)
    assert queue.get(timeout=0) == 1
    event.set()
    assert event.wait(0)
    with condition:
        assert condition.wait(0) is False
        assert condition.wait_for(lambda: True, 0)
    barrier = mpipc.Barrier(2)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0)


def test_a_refused_large_object_costs_what_a_small_one_does() -> None:
    numpy = pytest.importorskip("numpy")
    full = mpipc.Queue(1)
    full.put(1)
    array = numpy.ones(2 << 20)
    large = _refused(stdlib_queue.Full, full.put, array, False)
    small = _refused(stdlib_queue.Full, full.put, 2, False)
    assert _best(large, small) < 2
    assert full.statistics().shared_bytes == 0

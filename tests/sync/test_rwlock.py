"""RWLock: its face, its rules for threads and forks, and who is let in beside whom and in which order.

Histories of several processes are the subject of test_rwlock_model.py, what interrupts and kills them is that of
test_rwlock_kill.py, and what happens between two machine instructions that of native/rwlock_scenarios.h.
"""

from __future__ import annotations

import gc
import os
import pickle
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import wait_until
from support.rwlock_crew import (
    LIMIT,
    HandlerError,
    Holder,
    acquire,
    finish,
    free,
    hold,
    in_thread,
    kill,
    release,
    start,
    statistics_become,
)
from support.shared import Shared

import mpipc
from mpipc import synchronize

# --- the face ---------------------------------------------------------------------------------------------------------


def test_it_is_made_by_every_context(ctx: Any) -> None:
    assert type(ctx.RWLock()) is type(mpipc.RWLock()) is synchronize.RWLock


def test_results_and_statistics() -> None:
    lock = mpipc.RWLock()
    assert free(lock)
    assert lock.acquire_read() is True
    assert lock.statistics() == (1, None, 0, 0) and lock.statistics().waiters == 0
    assert in_thread(lambda: [lock.acquire_read(False), lock.statistics(), lock.release_read()]) == [
        True,
        (2, None, 0, 0),
        None,
    ]
    assert in_thread(lambda: lock.acquire_write(False)) is False
    assert lock.release_read() is None
    assert lock.acquire_write() is True
    assert lock.statistics() == (0, os.getpid(), 0, 0)
    assert in_thread(lambda: lock.acquire_read(False)) is False
    assert in_thread(lambda: lock.acquire_write(False)) is False
    assert lock.release_write() is None
    assert free(lock)


def test_reprs(ctx: Any) -> None:
    lock = ctx.RWLock()
    assert repr(lock) == "<RWLock(readers=0, writer=None)>"
    with lock.reading():
        assert repr(lock) == "<RWLock(readers=1, writer=None)>"
    with lock.writing():
        assert repr(lock) == "<RWLock(readers=0, writer=MainProcess)>"
        assert in_thread(lambda: repr(lock)) == "<RWLock(readers=0, writer=SomeOtherThread)>"
    holder = Holder(ctx, lock, "write").is_in()
    assert repr(lock) == "<RWLock(readers=0, writer=SomeOtherProcess)>"
    holder.leave()


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("timeout", [0.1, 0, -1])
def test_timeouts(kind: str, timeout: float) -> None:
    lock = mpipc.RWLock()
    other = "write" if kind == "read" else "read"
    acquire(lock, other)

    def body() -> None:
        began = time.monotonic()
        assert acquire(lock, kind, True, timeout) is False
        assert timeout <= time.monotonic() - began < LIMIT
        with pytest.raises(TimeoutError, match="RWLock"), hold(lock, kind, timeout):
            raise AssertionError
        assert acquire(lock, kind, False, 3600) is False, "the timeout is ignored"

    in_thread(body)
    assert lock.statistics().waiters == 0
    release(lock, other)
    assert in_thread(lambda: acquire(lock, kind, True, timeout))


def test_a_timeout_that_is_no_number() -> None:
    lock = mpipc.RWLock()
    for call in (lock.acquire_read, lock.acquire_write):
        with pytest.raises(ValueError, match="nan"):
            call(True, float("nan"))
        with pytest.raises(TypeError):
            call(True, "soon")
    assert free(lock)


def test_holds_may_be_kept_and_used_again() -> None:
    lock = mpipc.RWLock()
    reading, writing = lock.reading(), lock.writing(timeout=1)
    for _ in range(3):
        with writing as taken, writing, reading:
            assert taken is True
        with reading, reading:
            assert lock.statistics().readers == 1
    with pytest.raises(HandlerError), writing:
        raise HandlerError
    assert free(lock)


class TaggedRWLock(synchronize.RWLock):
    """A subclass with an attribute."""

    tag = "none"


def check_tag(lock: TaggedRWLock) -> None:
    assert type(lock) is TaggedRWLock and lock.tag == "mine"
    assert lock.acquire_read(False) is True and lock.acquire_write(False) is True


def check_tag_and_end(lock: TaggedRWLock) -> None:
    with pytest.raises(RuntimeError):
        check_tag(lock)


def test_pickling(ctx: Any) -> None:
    lock = TaggedRWLock(ctx=ctx)
    lock.tag = "mine"
    with pytest.raises(RuntimeError, match="inherit"):
        pickle.dumps(lock)
    with lock.reading():
        finish(start(ctx, check_tag_and_end, lock))


# --- rules ------------------------------------------------------------------------------------------------------------


def test_reading_within_reading() -> None:
    """Also while a writer waits, for which another thread would wait."""
    lock = mpipc.RWLock()
    lock.acquire_read()
    writer = threading.Thread(target=lambda: [lock.acquire_write(), lock.release_write()])
    writer.start()
    statistics_become(lock, 1, None, 0, 1)
    assert in_thread(lambda: lock.acquire_read(False)) is False
    for _ in range(1000):
        assert lock.acquire_read()
    assert lock.statistics() == (1, None, 0, 1)
    for _ in range(1001):
        assert lock.statistics().waiting_writers == 1
        lock.release_read()
    writer.join(LIMIT)
    assert free(lock)


def test_writing_within_writing() -> None:
    lock = mpipc.RWLock()
    for _ in range(1000):
        assert lock.acquire_write()
    for _ in range(1000):
        assert in_thread(lambda: lock.acquire_read(False)) is False
        lock.release_write()
    assert free(lock)


@pytest.mark.slow_with("spawn")
def test_reading_within_writing_and_downgrade(ctx: Any) -> None:
    lock = ctx.RWLock()
    lock.acquire_write()
    assert lock.acquire_read() and lock.acquire_read()
    assert lock.acquire_write(), "it writes"
    assert lock.statistics() == (1, os.getpid(), 0, 0)
    reader, writer = Holder(ctx, lock, "read"), Holder(ctx, lock, "write")
    statistics_become(lock, 1, os.getpid(), 1, 1)
    lock.release_write()
    assert not reader.has.is_set()
    lock.release_write()
    reader.is_in()
    assert not writer.has.is_set()
    reader.leave()
    lock.release_read()
    assert not writer.has.is_set()
    lock.release_read()
    writer.is_in().leave()


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("args", [(), (False,), (True, 0.1)])
def test_an_upgrade_is_an_error_at_once(others: int, args: tuple[Any, ...]) -> None:
    """Whether it is the only reader or not. It goes on reading."""
    lock = mpipc.RWLock()
    lock.acquire_read()
    for _ in range(others):
        in_thread(lock.acquire_read)
    with pytest.raises(RuntimeError, match="in a thread that reads"):
        lock.acquire_write(*args)
    with pytest.raises(RuntimeError), lock.writing():
        raise AssertionError
    assert lock.statistics() == (1 + others, None, 0, 0)
    lock.release_read()
    assert lock.acquire_write(False) is (others == 0)


def test_release_by_who_does_not_have_it(ctx: Any) -> None:
    lock = ctx.RWLock()

    def neither() -> None:
        for call in (lock.release_read, lock.release_write):
            with pytest.raises(RuntimeError, match="cannot release an RWLock that this thread does not"):
                call()

    neither()
    with lock.reading():
        in_thread(neither)
        with pytest.raises(RuntimeError):
            lock.release_write()
        finish(start(ctx, refuse_to_release, lock))
        assert lock.statistics().readers == 1
    with lock.writing():
        in_thread(neither)
        with pytest.raises(RuntimeError):
            lock.release_read()
        finish(start(ctx, refuse_to_release, lock))
        assert lock.statistics().writer == os.getpid()
    neither()


def refuse_to_release(lock: Any) -> None:
    for call in (lock.release_read, lock.release_write):
        with pytest.raises(RuntimeError):
            call()


def in_forked_child(call: Callable[[], Any]) -> None:
    child = os.fork()
    if child == 0:
        try:
            call()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_has_nothing() -> None:
    lock = mpipc.RWLock()

    def reads_too() -> None:
        refuse_to_release(lock)
        assert lock._reads() == 0 and lock.acquire_read(False) and lock._reads() == 1
        assert lock.statistics().readers == 2
        lock.release_read()
        assert lock.acquire_write(False) is False, "its parent reads"

    def has_to_wait() -> None:
        refuse_to_release(lock)
        assert not lock._is_writing() and not lock.acquire_read(False) and not lock.acquire_write(False)

    with lock.reading():
        in_forked_child(reads_too)
        assert lock.statistics().readers == 1
    with lock.writing(), lock.reading():
        in_forked_child(has_to_wait)
        assert lock.statistics() == (1, os.getpid(), 0, 0)
    assert free(lock)


def test_two_objects_are_one_lock() -> None:
    lock = mpipc.RWLock()
    same = synchronize._rebuild(synchronize.RWLock, lock.block, {})
    with lock.reading():
        assert same.acquire_read() and lock._reads() == 2
        with pytest.raises(RuntimeError):
            same.acquire_write()
        same.release_read()
    with same.writing(), lock.writing(), lock.reading():
        assert same._is_writing()
    assert free(lock)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_who_has_no_object_any_more_has_released_it(ctx: Any, kind: str) -> None:
    lock = ctx.RWLock()
    acquire(lock, kind)
    heir = start(ctx, write_once, lock)
    statistics_become(lock, *((1, None) if kind == "read" else (0, os.getpid())), 0, 1)
    del lock
    gc.collect()
    finish(heir)


def write_once(lock: Any) -> None:
    with lock.writing(LIMIT):
        pass


# --- turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow_with("spawn")
def test_readers_share(ctx: Any) -> None:
    lock = ctx.RWLock()
    readers = [Holder(ctx, lock, "read") for _ in range(3)]
    for reader in readers:
        reader.is_in()
    assert lock.statistics() == (3, None, 0, 0)
    assert lock.acquire_write(False) is False
    for reader in readers:
        reader.leave()
    assert lock.acquire_write(False) is True


@pytest.mark.slow_with("spawn")
def test_readers_and_writers_take_turns(ctx: Any) -> None:
    """A reader does not overtake a writer that waits, nor a writer the readers that waited for its predecessor."""
    lock = ctx.RWLock()
    first = Holder(ctx, lock, "read").is_in()
    writer = Holder(ctx, lock, "write")
    statistics_become(lock, 1, None, 0, 1)
    readers = [Holder(ctx, lock, "read") for _ in range(2)]
    statistics_become(lock, 1, None, 2, 1)
    first.leave()
    writer.is_in()
    assert lock.statistics() == (0, writer.process.pid, 2, 0)
    next_writer = Holder(ctx, lock, "write")
    statistics_become(lock, 0, writer.process.pid, 2, 1)
    writer.leave()
    for reader in readers:
        reader.is_in()
    statistics_become(lock, 2, None, 0, 1)
    late = Holder(ctx, lock, "read")
    statistics_become(lock, 2, None, 1, 1)
    for reader in readers:
        reader.leave()
    next_writer.is_in()
    assert not late.has.is_set()
    next_writer.leave()
    late.is_in().leave()
    assert free(lock)


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_a_writer_that_gives_up_lets_those_in_who_waited_for_it(ctx: Any, how: str) -> None:
    lock = ctx.RWLock()
    lock.acquire_read()
    writer = start(ctx, try_to_write, lock, 4 if how == "timeout" else LIMIT)
    statistics_become(lock, 1, None, 0, 1)
    reader = Holder(ctx, lock, "read")
    statistics_become(lock, 1, None, 1, 1)
    if how == "kill":
        kill(writer)
    else:
        finish(writer)
    reader.is_in()
    assert lock.owner_died is False, "it had changed nothing"
    reader.leave()
    lock.release_read()
    assert free(lock)


def try_to_write(lock: Any, timeout: float) -> None:
    assert lock.acquire_write(timeout=timeout) is False


def in_and_out(lock: Any, kind: str, stop: Any, shared: Shared, index: int) -> None:
    while not stop.is_set():
        assert acquire(lock, kind, True, LIMIT)
        shared[index] += 1
        time.sleep(0.001)  # so long that there always is one who has it, or wants it
        release(lock, kind)


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("kind", ["read", "write"])
def test_nobody_starves(ctx: Any, kind: str) -> None:
    """Beside three of the other sort who come again and again."""
    lock, stop, shared = ctx.RWLock(), ctx.Event(), Shared()
    crowd = "write" if kind == "read" else "read"
    others = [start(ctx, in_and_out, lock, crowd, stop, shared, i) for i in range(3)]
    wait_until(lambda: all(shared[i] for i in range(3)), timeout=LIMIT)
    for _ in range(50):
        assert acquire(lock, kind, True, LIMIT)
        release(lock, kind)
    stop.set()
    finish(*others)
    assert free(lock)


def read_and_write(lock: Any, go: Any, shared: Shared, seed: int, rounds: int) -> None:
    choose = random.Random(seed)
    assert go.wait(LIMIT)

    def body() -> None:
        for i in range(rounds):
            if i % 2:
                with lock.writing():
                    value = shared[0]
                    shared[0] = value + 1
                    if choose.random() < 0.1:
                        os.sched_yield()
                    assert shared[1] == value
                    shared[1] = value + 1
            else:
                with lock.reading():
                    value = shared[0]
                    if choose.random() < 0.1:
                        os.sched_yield()
                    assert shared[0] == shared[1] == value

    for each in (threads := [threading.Thread(target=in_thread, args=(body,)) for _ in range(2)]):
        each.start()
    for each in threads:
        each.join()
    body()


@pytest.mark.slow_with("spawn", "forkserver")
def test_exclusion_is_exact(ctx: Any) -> None:
    """Processes with threads; neither the increments nor the looks are single operations."""
    lock, go, shared, rounds = ctx.RWLock(), ctx.Event(), Shared(), 1000
    children = [start(ctx, read_and_write, lock, go, shared, seed, rounds) for seed in range(3)]
    go.set()
    finish(*children)
    assert shared[0] == shared[1] == 3 * 3 * rounds // 2
    assert free(lock)

"""RWLock with processes that are interrupted, or killed: waiting, reading, writing, and at random moments.

What happens between two machine instructions is the subject of native/rwlock_scenarios.h. `MPIPC_KILL_ROUNDS` sets how
many processes the storm kills.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
    gone,
    in_thread,
    kill,
    release,
    start,
    statistics_become,
)
from support.shared import Shared

import mpipc

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

KILL_ROUNDS = int(os.environ.get("MPIPC_KILL_ROUNDS", "100"))

# --- signal handlers --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interrupted(lock: Any, wanted: tuple[Any, ...], handler: Callable[[], Any]) -> Iterator[None]:
    """When the lock's statistics are `wanted` the main thread is interrupted, and runs `handler`."""

    def interrupt() -> None:
        statistics_become(lock, *wanted)
        os.kill(os.getpid(), signal.SIGUSR1)

    old = signal.signal(signal.SIGUSR1, lambda number, frame: handler())
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join(LIMIT)
        signal.signal(signal.SIGUSR1, old)


def raise_error() -> None:
    raise HandlerError


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize(("held", "kind"), [("read", "write"), ("write", "read"), ("write", "write")])
def test_an_exception_of_a_handler_ends_the_wait(ctx: Any, held: str, kind: str) -> None:
    """KeyboardInterrupt is one, too."""
    lock = ctx.RWLock()
    holder = Holder(ctx, lock, held).is_in()
    pid = holder.process.pid
    state = (1, None) if held == "read" else (0, pid)
    waits = (1, 0) if kind == "read" else (0, 1)
    with interrupted(lock, (*state, *waits), raise_error), pytest.raises(HandlerError):
        acquire(lock, kind, True, LIMIT)
    assert lock.statistics() == (*state, 0, 0)
    assert lock._reads() == 0 and not lock._is_writing()
    holder.leave()
    assert acquire(lock, kind, False)


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("kind", ["read", "write"])
def test_what_a_handler_cannot_have_is_an_error(ctx: Any, kind: str) -> None:
    """It would wait for the thread that it has interrupted."""
    lock, errors = ctx.RWLock(), []
    holder = Holder(ctx, lock, "read" if kind == "write" else "write").is_in()

    def handler() -> None:
        with pytest.raises(RuntimeError) as caught:
            lock.acquire_write()
        errors.append(caught.value)
        if kind == "write":
            with pytest.raises(RuntimeError):
                lock.acquire_read()
        holder.go.set()

    state = (1, None, 0, 1) if kind == "write" else (0, holder.process.pid, 1, 0)
    with interrupted(lock, state, handler):
        assert acquire(lock, kind, True, LIMIT)
    assert len(errors) == 1
    release(lock, kind)
    finish(holder.process)
    assert free(lock)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_handler_that_forks(kind: str) -> None:
    """The child goes on in the middle of its parent's call, and waits for itself."""
    ctx = mpipc.get_context("fork")
    lock = ctx.RWLock()
    holder = Holder(ctx, lock, "read" if kind == "write" else "write").is_in()
    state = (1, None) if kind == "write" else (0, holder.process.pid)
    children: list[int] = []

    def handler() -> None:
        children.append(os.fork())
        if children[0] == 0:
            return
        waits = (2, 0) if kind == "read" else (0, 2)
        statistics_become(lock, *state, *waits)
        holder.go.set()

    with interrupted(lock, (*state, *((1, 0) if kind == "read" else (0, 1))), handler):
        try:
            assert acquire(lock, kind, True, LIMIT)
            release(lock, kind)
        finally:
            if children == [0]:  # nothing of pytest's is to be run in it
                os._exit(1 if sys.exc_info()[0] else 0)
    assert os.waitpid(children[0], 0)[1] == 0
    finish(holder.process)
    wait_until(lambda: free(lock), timeout=LIMIT)
    assert acquire(lock, "write", False)


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_a_dead_reader_is_not_waited_for(ctx: Any) -> None:
    lock = ctx.RWLock()
    readers = [Holder(ctx, lock, "read").is_in() for _ in range(2)]
    writer = Holder(ctx, lock, "write")
    statistics_become(lock, 2, None, 0, 1)
    for reader in readers:
        reader.kill()
    writer.is_in()
    assert lock.owner_died is False
    writer.leave()
    assert free(lock)


@pytest.mark.parametrize("ending", ["kill", "end"])
def test_a_dead_writer_is_told_of_until_the_next_one_releases(ctx: Any, ending: str) -> None:
    lock = ctx.RWLock()
    if ending == "kill":
        Holder(ctx, lock, "write").is_in().kill()
    else:
        finish(start(ctx, write_and_end, lock))
    assert lock.acquire_read(timeout=LIMIT) and lock.owner_died
    lock.release_read()
    assert lock.owner_died, "a reader puts nothing right"
    with lock.reading():
        assert in_thread(lambda: lock.acquire_write(True, 0.01)) is False
    assert lock.owner_died, "nor does who gives up"
    with lock.writing():
        assert lock.owner_died
    assert lock.owner_died is False
    assert free(lock)


def write_and_end(lock: Any) -> None:
    lock.acquire_write()


@pytest.mark.slow_with("spawn")
def test_all_who_wait_for_a_dead_writer_are_let_in(ctx: Any) -> None:
    lock = ctx.RWLock()
    dead = Holder(ctx, lock, "write").is_in()
    readers = [Holder(ctx, lock, "read") for _ in range(2)]
    statistics_become(lock, 0, dead.process.pid, 2, 0)
    writer = Holder(ctx, lock, "write")
    statistics_become(lock, 0, dead.process.pid, 2, 1)
    dead.kill()
    for reader in readers:
        reader.is_in()
    assert lock.owner_died
    for reader in readers:
        reader.leave()
    writer.is_in().leave()
    assert lock.owner_died is False and free(lock)


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("held", ["read", "write"])
def test_killed_waiters_leave_nothing(ctx: Any, held: str) -> None:
    lock = ctx.RWLock()
    acquire(lock, held)
    victims = [Holder(ctx, lock, "write") for _ in range(2)]
    state = (1, None) if held == "read" else (0, os.getpid())
    statistics_become(lock, *state, 0, 2)
    victims.append(Holder(ctx, lock, "read"))
    statistics_become(lock, *state, 1, 2)
    for victim in victims:
        victim.kill()
        gone(victim.process)
    assert lock.statistics() == (*state, 0, 0)
    assert in_thread(lambda: lock.acquire_read(False)) is (held == "read")
    assert lock.owner_died is False
    release(lock, held)


def test_who_ends_normally_has_released_it(ctx: Any) -> None:
    lock = ctx.RWLock()
    finish(start(ctx, lock.acquire_read))
    assert lock.acquire_write(timeout=LIMIT)
    assert lock.owner_died is False


# In the storm: [0] and [1] are to be equal, [2] is how often a writer has put them right; [4:] is written by one worker
# each, before it does what it counts.
def storm(lock: Any, shared: Shared, index: int, seed: int) -> None:
    choose = random.Random(seed)
    while True:
        if choose.random() < 0.5:
            with lock.writing():
                if lock.owner_died:
                    shared[2] += 1
                    shared[1] = shared[0]
                value = shared[0]
                assert shared[1] == value
                shared[4 + index] += 1
                shared[0] = value + 1
                for _ in range(choose.randrange(50)):
                    pass
                shared[1] = value + 1
        else:
            with lock.reading():
                died = lock.owner_died
                value = shared[0]
                for _ in range(choose.randrange(50)):
                    pass
                assert shared[0] == value, "nobody writes"
                assert shared[1] == value or (died and shared[1] == value - 1)


@pytest.mark.slow_with("spawn", "forkserver")
def test_storm(ctx: Any, start_method: str) -> None:
    """Four processes read and write, and are killed at random moments. What the writers count is exact, but for the
    last count of each that was killed."""
    lock, shared, seed = ctx.RWLock(), Shared(), random.randrange(1 << 30)
    print(f"seed {seed}")
    choose = random.Random(seed)
    rounds = KILL_ROUNDS if start_method == "fork" else KILL_ROUNDS // 10
    children = [start(ctx, storm, lock, shared, index, choose.randrange(1 << 30)) for index in range(4)]
    for _ in range(rounds):
        index = choose.randrange(4)
        before = shared[4 + index]
        wait_until(lambda: shared[4 + index] > before, timeout=LIMIT)  # noqa: B023
        time.sleep(choose.random() * 0.01)
        assert children[index].exitcode is None
        kill(children[index])
        children[index] = start(ctx, storm, lock, shared, index, choose.randrange(1 << 30))
    for child in children:
        assert child.exitcode is None
    kill(*children)
    for child in children:
        gone(child)
    with lock.writing(timeout=LIMIT):
        begun = sum(shared[4 + index] for index in range(4))
        print(f"{begun} writes, {shared[2]} put right")
        assert shared[0] <= begun <= shared[0] + rounds + 4
        assert shared[0] - shared[1] in ((0, 1) if lock.owner_died else (0,))
    assert free(lock)

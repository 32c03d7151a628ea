"""SIGKILL at every stage of every primitive: holding, waiting, between; alone, beside others, and at random moments.

What happens between two machine instructions is the subject of test_kill_every_step.py. Here the processes are
Python's, of every start method, and recovery is the reaper's.
`MPIPC_KILL_ROUNDS` sets how many processes the storms kill.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import wait_until
from support.shared import Shared

import mpipc
from mpipc import _core as family

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

KILL_ROUNDS = int(os.environ.get("MPIPC_KILL_ROUNDS", "100"))


def start(ctx: Any, target: Callable[..., Any], *args: Any) -> Any:
    process = ctx.Process(target=target, args=args)
    process.start()
    return process


def finish(*children: Any, exitcode: int = 0) -> None:
    for child in children:
        child.join(60)
        assert child.exitcode == exitcode


def kill(*children: Any) -> None:
    for child in children:
        child.kill()
    finish(*children, exitcode=-signal.SIGKILL)


def waiting(primitive: Any, number: int) -> None:
    wait_until(lambda: primitive.statistics().waiters == number, timeout=30, message=f"{number} waiters")


def forever() -> None:
    while True:
        signal.pause()


# --- holding ----------------------------------------------------------------------------------------------------------


def acquire_and_sit(lock: Any, times: int, shared: Shared) -> None:
    for _ in range(times):
        assert lock.acquire(timeout=60)
    shared[0] = 1
    forever()


def holder(ctx: Any, lock: Any, times: int = 1) -> Any:
    shared = Shared()
    child = start(ctx, acquire_and_sit, lock, times, shared)
    wait_until(lambda: shared[0] == 1, timeout=30)
    return child


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", ["Lock", "RLock"])
def test_a_lock_is_taken_from_its_dead_owner(ctx: Any, name: str, times: int) -> None:
    if name == "Lock" and times > 1:
        pytest.skip("not recursive")
    lock = getattr(ctx, name)()
    child = holder(ctx, lock, times)
    assert lock.acquire(False) is False
    assert lock.owner_died is False
    kill(child)
    assert lock.acquire(timeout=60)
    assert lock.owner_died is True
    assert lock.statistics() == (0, os.getpid(), 0)
    lock.release()
    assert lock.owner_died is False
    with lock:
        assert lock.owner_died is False


def acquire_and_end(lock: Any) -> None:
    lock.acquire()


@pytest.mark.parametrize("name", ["Lock", "RLock"])
def test_a_lock_taken_into_the_grave_is_held_until_it_is_taken(ctx: Any, name: str) -> None:
    """As a robust mutex of POSIX: CPython's tests look at such locks, at any time after the end of their owner."""
    lock = getattr(ctx, name)()
    finish(start(ctx, acquire_and_end, lock))
    wait_until(lambda: lock.statistics() == (1, None, 0), timeout=30)
    assert lock.locked() is True
    assert "SomeOtherProcess" in repr(lock)
    assert lock.acquire(False) and lock.owner_died
    lock.release()
    assert lock.locked() is False and "None" in repr(lock)


def acquire_and_report(lock: Any, shared: Shared) -> None:
    assert lock.acquire(timeout=60)
    shared[1] += 1
    shared[2] += lock.owner_died
    lock.release()


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("name", ["Lock", "RLock"])
def test_waiters_get_the_lock_of_a_dead_owner_one_after_the_other(ctx: Any, name: str) -> None:
    lock, shared = getattr(ctx, name)(), Shared()
    child = holder(ctx, lock)
    waiters = [start(ctx, acquire_and_report, lock, shared) for _ in range(3)]
    waiting(lock, 3)
    kill(child)
    finish(*waiters)
    assert [shared[1], shared[2]] == [3, 1], "all got it, and the first was told"
    assert lock.statistics() == (1, None, 0)


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("name", ["Lock", "RLock", "Semaphore"])
def test_a_killed_waiter_is_not_waited_for(ctx: Any, name: str) -> None:
    lock, shared = getattr(ctx, name)(), Shared()
    lock.acquire()
    victims = [start(ctx, acquire_and_sit, lock, 1, shared) for _ in range(2)]
    waiting(lock, 2)
    survivor = start(ctx, acquire_once, lock)
    waiting(lock, 3)
    kill(*victims)
    lock.release()
    finish(survivor)
    assert lock.acquire(timeout=60)
    assert getattr(lock, "owner_died", False) is False, "it died waiting, not holding"
    lock.release()
    assert lock.statistics().waiters == 0


def acquire_once(lock: Any) -> None:
    assert lock.acquire(timeout=60)
    lock.release()


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("name", ["Semaphore", "BoundedSemaphore"])
def test_the_units_of_a_killed_holder_come_back(ctx: Any, name: str) -> None:
    semaphore = getattr(ctx, name)(5)
    child = holder(ctx, semaphore, 3)
    waiter = start(ctx, take, semaphore, 5)
    waiting(semaphore, 1)
    kill(child)
    finish(waiter)
    # The waiter kept its five: it ended normally.
    assert semaphore.get_value() == 0


def take(semaphore: Any, number: int) -> None:
    for _ in range(number):
        assert semaphore.acquire(timeout=60)


@pytest.mark.parametrize(
    ("returns", "after", "released"),
    [(None, (3, None), (3, False)), (True, (3, True), (3, True)), (False, (1, False), (2, False))],
)
def test_the_same_history_of_a_limit_and_a_signal(
    ctx: Any, returns: bool | None, after: tuple[int, Any], released: tuple[int, Any]
) -> None:
    """Somebody acquires two of three units and is killed. Was it a holder, or a producer that has filled two places?"""
    semaphore = ctx.Semaphore(3, returns=returns)
    child = holder(ctx, semaphore, 2)
    assert semaphore.get_value() == 1
    kill(child)
    gone(child)
    assert (semaphore.get_value(), semaphore.returns) == after
    semaphore.release()  # a late one for the dead, or a place that has been emptied
    assert (semaphore.get_value(), semaphore.returns) == released


def fill(places: Any, things: Any, number: int, shared: Shared) -> None:
    for _ in range(number):
        assert places.acquire(timeout=60)
        things.release()
    shared[0] = 1
    forever()


def test_places_of_a_buffer_do_not_come_back(ctx: Any) -> None:
    """The bounded buffer of the textbooks: places that the producer acquires and the consumer releases."""
    places, things, shared = ctx.Semaphore(3), ctx.Semaphore(0), Shared()
    producer = start(ctx, fill, places, things, 50, shared)
    for _ in range(50):
        assert things.acquire(timeout=60)
        places.release()
    wait_until(lambda: shared[0] == 1, timeout=30)
    kill(producer)
    gone(producer)
    assert (places.get_value(), things.get_value()) == (3, 0)
    assert (places.returns, things.returns) == (False, False)


def release_two(semaphore: Any, go: Any) -> None:
    take(semaphore, 2)
    assert go.wait(60)
    semaphore.release()
    semaphore.release()


def test_a_throttle_keeps_its_limit(ctx: Any) -> None:
    """The parent releases for its child, and the child is killed afterwards: the units are not there twice."""
    semaphore, go = ctx.BoundedSemaphore(3), ctx.Event()
    child = holder(ctx, semaphore, 3)
    for _ in range(3):
        semaphore.release()
    another = start(ctx, release_two, semaphore, go)
    wait_until(lambda: semaphore.get_value() == 1, timeout=30)
    kill(child)
    gone(child)
    assert semaphore.get_value() == 1
    go.set()
    finish(another)
    assert semaphore.get_value() == 3


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("returns", [None, True])
def test_a_release_for_a_process_that_is_dead_is_not_too_many(ctx: Any, returns: bool | None) -> None:
    semaphore = ctx.BoundedSemaphore(3, returns=returns)
    child = holder(ctx, semaphore, 2)
    kill(child)
    gone(child)
    assert semaphore.get_value() == 3
    semaphore.release()
    semaphore.release()
    assert semaphore.get_value() == 3
    with pytest.raises(ValueError, match="too many times"):
        semaphore.release()
    assert semaphore.returns is (returns or False)


def test_units_handed_to_a_forked_child_are_foreign_to_it() -> None:
    semaphore = mpipc.get_context("fork").Semaphore(2)
    semaphore.acquire()
    child = start(mpipc.get_context("fork"), semaphore.release)
    finish(child)
    assert (semaphore.get_value(), semaphore.returns) == (2, False)


def wait_once(condition: Any, shared: Shared) -> None:
    with condition:
        assert condition.wait(60)
        shared[2] += condition._lock.owner_died
        shared[1] += 1  # last: it is what the test waits for


def notify_and_sit(condition: Any, number: int, shared: Shared) -> None:
    with condition:
        condition.notify(number) if number else condition.notify_all()
        shared[0] = 1
        forever()


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("number", [1, 2, 0])
def test_a_killed_notifier(ctx: Any, number: int) -> None:
    """Its notifications have been made, and the lock that it held is free."""
    condition, shared = ctx.Condition(), Shared()
    waiters = [start(ctx, wait_once, condition, shared) for _ in range(3)]
    waiting(condition, 3)
    child = start(ctx, notify_and_sit, condition, number, shared)
    wait_until(lambda: shared[0] == 1, timeout=30)
    assert shared[1] == 0, "nobody has the lock yet"
    kill(child)
    wait_until(lambda: shared[1] == (number or 3), timeout=30)
    assert shared[2] == 1, "the first was told"
    with condition:
        assert shared[1] == (number or 3)
        condition.notify_all()
    finish(*waiters)


def test_a_killed_owner_of_a_conditions_lock(ctx: Any) -> None:
    condition = ctx.Condition()
    kill(holder(ctx, condition))
    assert condition.acquire(timeout=60)
    assert condition._lock.owner_died
    condition.release()


# --- a semaphore as a signal ------------------------------------------------------------------------------------------


def signal_and_end(semaphore: Any, ending: str, shared: Shared) -> None:
    semaphore.release()
    semaphore.release()
    shared[0] = 1
    end(ending)


def consume_and_end(semaphore: Any, ending: str, shared: Shared) -> None:
    take(semaphore, 2)
    shared[0] = 1
    end(ending)


def end(ending: str) -> None:
    if ending == "sys.exit":
        sys.exit(0)
    if ending == "exception":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        raise LookupError
    if ending == "kill":
        forever()


EXIT_CODES = {"return": 0, "sys.exit": 0, "exception": 1, "kill": -signal.SIGKILL}


@pytest.mark.slow_with("spawn")
@pytest.mark.parametrize("ending", EXIT_CODES)
def test_what_a_process_has_signalled_stays(ctx: Any, ending: str) -> None:
    semaphore, shared = ctx.Semaphore(0), Shared()
    child = start(ctx, signal_and_end, semaphore, ending, shared)
    wait_until(lambda: shared[0] == 1, timeout=30)
    if ending == "kill":
        child.kill()
    finish(child, exitcode=EXIT_CODES[ending])
    gone(child)
    assert semaphore.get_value() == 2


@pytest.mark.parametrize("ending", EXIT_CODES)
def test_a_consumer_that_ends_normally_keeps_what_it_took(ctx: Any, ending: str) -> None:
    semaphore, shared = ctx.Semaphore(3), Shared()
    child = start(ctx, consume_and_end, semaphore, ending, shared)
    wait_until(lambda: shared[0] == 1, timeout=30)
    if ending == "kill":
        child.kill()
    finish(child, exitcode=EXIT_CODES[ending])
    gone(child)
    assert semaphore.get_value() == (3 if ending == "kill" else 1)


def gone(child: Any) -> None:
    """Returns when recovery has dealt with it."""
    wait_until(lambda: child.pid not in [pid for _, _, pid in family.current().processes()], timeout=30)


# --- waiting for events, notifications, barriers ----------------------------------------------------------------------


def wait_and_count(primitive: Any, lock: Any, shared: Shared) -> None:
    with primitive if hasattr(primitive, "notify") else lock:
        if not hasattr(primitive, "notify"):
            lock.release()
        assert primitive.wait(60) is True
        if not hasattr(primitive, "notify"):
            lock.acquire()
        shared[0] += 1


def test_event_set_does_not_mind_the_dead(ctx: Any) -> None:
    event, lock, shared = ctx.Event(), ctx.Lock(), Shared()
    children = [start(ctx, wait_and_count, event, lock, shared) for _ in range(4)]
    waiting(event, 4)
    kill(*children[:2])
    event.set()
    finish(*children[2:])
    assert shared[0] == 2
    assert event.is_set() and event.wait(0)
    event.clear()
    assert event.wait(0) is False


@pytest.mark.slow_with("spawn", "forkserver")
@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("call", ["notify", "notify_all"])
def test_notifications_do_not_mind_the_dead(ctx: Any, call: str, victim: int) -> None:
    condition, shared = ctx.Condition(), Shared()
    children = []
    for index in range(3):
        children.append(start(ctx, wait_and_count, condition, None, shared))
        waiting(condition, index + 1)
    dead = children.pop(victim)
    kill(dead)
    with condition:
        if call == "notify":
            condition.notify()
            condition.notify()
        else:
            condition.notify_all()
    finish(*children)
    assert shared[0] == 2
    waiting(condition, 0)


def stop(process: Any) -> None:
    """Stops it where it is; the kernel's own word that it has stopped."""
    os.kill(process.pid, signal.SIGSTOP)
    path = f"/proc/{process.pid}/stat"

    def stopped() -> bool:
        with open(path) as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    wait_until(stopped, timeout=30)


def test_a_notification_for_a_waiter_that_dies_before_it_wakes_is_passed_on(ctx: Any) -> None:
    condition, shared = ctx.Condition(), Shared()
    first = start(ctx, wait_and_count, condition, None, shared)
    waiting(condition, 1)
    second = start(ctx, wait_and_count, condition, None, shared)
    waiting(condition, 2)
    stop(first)
    with condition:
        condition.notify()
    assert condition.statistics().waiters == 1, "the first has been notified and knows nothing of it"
    kill(first)
    finish(second)
    assert shared[0] == 1


def test_a_notification_of_all_is_not_passed_on(ctx: Any) -> None:
    condition, shared = ctx.Condition(), Shared()
    first = start(ctx, wait_and_count, condition, None, shared)
    waiting(condition, 1)
    stop(first)
    with condition:
        condition.notify_all()
    second = start(ctx, wait_and_count, condition, None, shared)
    waiting(condition, 1)
    kill(first)
    gone(first)
    assert condition.statistics().waiters == 1
    with condition:
        condition.notify()
    finish(second)


def pass_and_count(barrier: Any, lock: Any, shared: Shared) -> None:
    barrier.wait(60)
    with lock:
        shared[0] += 1


def test_a_barrier_opens_when_enough_living_have_come(ctx: Any) -> None:
    barrier, lock, shared = ctx.Barrier(3), ctx.Lock(), Shared()
    victims = [start(ctx, pass_and_count, barrier, lock, shared) for _ in range(2)]
    wait_until(lambda: barrier.n_waiting == 2, timeout=30)
    kill(*victims)
    wait_until(lambda: barrier.n_waiting == 0, timeout=30)
    children = [start(ctx, pass_and_count, barrier, lock, shared) for _ in range(2)]
    wait_until(lambda: barrier.n_waiting == 2, timeout=30)
    assert shared[0] == 0
    assert 0 <= barrier.wait(60) < 3
    finish(*children)
    assert shared[0] == 2
    assert not barrier.broken


def die_in_action() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_at(barrier: Any) -> None:
    barrier.wait(60)


def test_the_action_of_a_barrier_is_killed(ctx: Any) -> None:
    barrier = ctx.Barrier(2, die_in_action)
    waiter = threading.Thread(target=wait_at, args=(barrier,))
    waiter.start()
    wait_until(lambda: barrier.n_waiting == 1, timeout=30)
    child = start(ctx, wait_at, barrier)
    finish(child, exitcode=-signal.SIGKILL)
    assert barrier.n_waiting == 1, "the dead one had not opened it"
    barrier._action = None
    assert barrier.wait(60) in (0, 1)
    waiter.join(60)
    assert not waiter.is_alive()


# --- storms -----------------------------------------------------------------------------------------------------------


def storm(ctx: Any, work: Callable[..., Any], args: tuple[Any, ...], seed: int, between: Callable[[], Any]) -> None:
    """Three processes work while one after the other of them is killed at a random moment and replaced."""
    print(f"seed {seed}, {KILL_ROUNDS} kills")
    rng = random.Random(seed)
    ticks = args[-1]
    children = [start(ctx, work, *args) for _ in range(3)]
    for _ in range(KILL_ROUNDS):
        victim = children.pop(rng.randrange(len(children)))
        # Some progress, then some spinning, so that the moment is any; nothing is waited for that depends on time.
        progress(ticks, rng.randrange(1, 5))
        for _ in range(rng.randrange(3000)):
            pass
        kill(victim)
        between()
        children.append(start(ctx, work, *args))
    kill(*children)
    for child in children:
        gone(child)


def progress(ticks: Shared, times: int) -> None:
    """Returns when the counter has changed some times. Not when it has grown: some of the workers count without a lock,
    and one that was off the processor in the middle sets it far back."""
    for _ in range(times):
        last = ticks[7]
        wait_until(lambda: ticks[7] != last, timeout=60, message="progress of the others")  # noqa: B023


def hammer_lock(lock: Any, shared: Shared) -> None:
    """Invariant: [0] == [1] whenever the lock is held by one who was not told that its owner died."""
    while True:
        with lock:
            if lock.owner_died:
                shared[1] = shared[0]
            elif shared[0] != shared[1]:
                shared[2] += 1
            shared[0] += 1
            shared[1] += 1
            shared[7] += 1


def seed_of(request: pytest.FixtureRequest) -> int:
    return int(os.environ.get("MPIPC_SEED", random.SystemRandom().randrange(2**32)))


@pytest.mark.slow_but("Lock")
@pytest.mark.parametrize("name", ["Lock", "RLock"])
def test_storm_on_a_lock(name: str, request: pytest.FixtureRequest) -> None:
    ctx = mpipc.get_context("fork")
    lock, shared = getattr(ctx, name)(), Shared()
    storm(ctx, hammer_lock, (lock, shared), seed_of(request), lambda: None)
    assert lock.acquire(timeout=60)
    assert shared[2] == 0, "two held it at once"
    lock.release()
    assert lock.statistics() == (1, None, 0)


def hammer_semaphore(semaphore: Any, shared: Shared) -> None:
    while True:
        assert semaphore.acquire(timeout=60)
        if semaphore.acquire(False):
            semaphore.release()
        shared[7] += 1  # torn increments only make the storm a little longer
        semaphore.release()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Semaphore", "BoundedSemaphore"])
def test_storm_on_a_semaphore(name: str, request: pytest.FixtureRequest) -> None:
    ctx = mpipc.get_context("fork")
    semaphore, shared = getattr(ctx, name)(2), Shared()
    storm(ctx, hammer_semaphore, (semaphore, shared), seed_of(request), lambda: None)
    assert semaphore.statistics() == (2, None, 0)
    take(semaphore, 2)
    assert semaphore.acquire(False) is False
    semaphore.release()
    semaphore.release()


def hammer_condition(condition: Any, shared: Shared) -> None:
    """Passes a token around; whoever dies with it has it only inside the lock, so it is never lost."""
    while True:
        with condition:
            while shared[0] == os.getpid() and condition.statistics().waiters:
                condition.notify()
                condition.wait(60)
            shared[0] = os.getpid()
            shared[7] += 1
            condition.notify()


@pytest.mark.slow
def test_storm_on_a_condition(request: pytest.FixtureRequest) -> None:
    ctx = mpipc.get_context("fork")
    condition, shared = ctx.Condition(), Shared()

    def between() -> None:
        with condition:
            condition.notify_all()

    storm(ctx, hammer_condition, (condition, shared), seed_of(request), between)
    assert condition.statistics() == (1, None, 0)
    with condition:
        condition.notify_all()
        assert condition.wait(0) is False


def hammer_event(event: Any, shared: Shared) -> None:
    while True:
        event.set()
        assert event.wait(60)
        event.clear()
        shared[7] += 1


@pytest.mark.slow
def test_storm_on_an_event(request: pytest.FixtureRequest) -> None:
    ctx = mpipc.get_context("fork")
    event, shared = ctx.Event(), Shared()
    storm(ctx, hammer_event, (event, shared), seed_of(request), event.set)
    event.set()
    assert event.wait(0) and event.is_set()
    event.clear()
    assert not event.wait(0)
    assert event.statistics().waiters == 0

"""The primitives of mpipc.synchronize under every start method, compared with multiprocessing's where possible."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import pickle
import resource
import struct
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, Full
from typing import Any

import pytest
from support import wait_until

import mpipc
from mpipc import _core as family
from mpipc import synchronize

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

NAMES = ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier")
ARGUMENTS: dict[str, tuple[Any, ...]] = {"Barrier": (2,), "Semaphore": (2,), "BoundedSemaphore": (2,)}
SEM_VALUE_MAX = 2**31 - 1

# --- what runs in the children ----------------------------------------------------------------------------------------


def make(context: Any, name: str) -> Any:
    return getattr(context, name)(*ARGUMENTS.get(name, ()))


def run(ctx: Any, target: Callable[..., Any], *args: Any) -> Any:
    """Starts a child that has to succeed; join it with `finish`."""
    process = ctx.Process(target=target, args=args)
    process.start()
    return process


def finish(*children: Any) -> None:
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def in_child(ctx: Any, target: Callable[..., Any], *args: Any) -> None:
    finish(run(ctx, target, *args))


class Shared:
    """64 bytes of shared memory seen as 8 numbers; a change of one is not atomic, which is the point of it."""

    def __init__(self) -> None:
        self.block = family.new_data()

    def __getitem__(self, index: int) -> int:
        return int(struct.unpack_from("q", family.payload(self.block), 8 * index)[0])

    def __setitem__(self, index: int, value: int) -> None:
        struct.pack_into("q", family.payload(self.block), 8 * index, value)


def waiting(primitive: Any, number: int) -> None:
    """Returns when that many threads wait."""
    wait_until(lambda: primitive.statistics().waiters == number, timeout=30, message=f"{number} waiters")


# --- signatures, errors, reprs ----------------------------------------------------------------------------------------


@pytest.mark.compares
@pytest.mark.parametrize("name", NAMES)
def test_signatures(name: str) -> None:
    ours, theirs = make(mpipc.get_context("fork"), name), make(multiprocessing.get_context("fork"), name)
    own = [("returns", None, inspect.Parameter.KEYWORD_ONLY)] if "Semaphore" in name else []
    assert parameters(getattr(mpipc, name)) == (parameters(getattr(multiprocessing, name)) or []) + own
    public = [method for method in dir(theirs) if not method.startswith("_") and callable(getattr(theirs, method))]
    assert public
    for method in public:
        if parameters(getattr(theirs, method)) is not None:
            assert parameters(getattr(ours, method)) == parameters(getattr(theirs, method)), method


def parameters(function: Any) -> list[tuple[Any, ...]] | None:
    """Without the annotations, which multiprocessing does not have; None for a function that does not tell."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return None
    return [(parameter.name, parameter.default, parameter.kind) for parameter in signature.parameters.values()]


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def both(name: str, *args: Any) -> Iterator[Any]:
    for module in (mpipc, multiprocessing):
        yield getattr(module.get_context("fork"), name)(*args)


@pytest.mark.compares
@pytest.mark.parametrize(
    "situation",
    [
        "lock.release()",
        "lock.acquire(), lock.acquire(False)",
        "lock.acquire(), lock.acquire(timeout=0)",
        "lock.acquire(), lock.acquire(timeout=-1)",
        "lock.acquire(), lock.acquire(True, 0.001)",
        "lock.acquire(False, 5), lock.release(), lock.acquire(False, None)",
        "lock.acquire(), lock.release(), lock.release()",
        "lock.__enter__()",
        "lock.acquire(), lock.__exit__(None, None, None)",
        "lock.acquire(1, 2, 3)",
    ],
)
@pytest.mark.parametrize("name", ["Lock", "RLock", "Semaphore", "BoundedSemaphore"])
def test_results_and_errors_are_multiprocessings(name: str, situation: str) -> None:
    if name == "Semaphore" and situation.endswith("lock.release(), lock.release()"):
        pytest.skip("allowed")

    def play(lock: Any) -> Any:
        result = outcome(lambda: eval(situation, {"lock": lock}))
        return TypeError if isinstance(result, tuple) and result[0] is TypeError else result

    ours, theirs = both(name, *ARGUMENTS.get(name, ()))
    if "Semaphore" in name and "acquire(), lock.acquire(" in situation:
        theirs.acquire(), ours.acquire()
    assert play(ours) == play(theirs)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("Semaphore", (-1,), ValueError, f"between 0 and {SEM_VALUE_MAX}, got -1"),
        ("Semaphore", (2**31,), ValueError, f"between 0 and {SEM_VALUE_MAX}, got {2**31}"),
        ("Semaphore", ("x",), TypeError, "'str' object cannot be interpreted as an integer"),
        ("Semaphore", (1.5,), TypeError, "'float' object cannot be interpreted as an integer"),
        ("BoundedSemaphore", (-1,), ValueError, f"between 0 and {SEM_VALUE_MAX}, got -1"),
        ("Barrier", ("x",), TypeError, "'str' and 'int'"),
        ("Condition", (5,), AttributeError, "'int' object has no attribute 'acquire'"),
    ],
)
def test_impossible_arguments(name: str, arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    """They are refused when the object is made, not when it is used, and leave nothing behind."""
    blocks = len(family.current().blocks())
    with pytest.raises(error, match=words):
        getattr(mpipc, name)(*arguments)
    wait_until(lambda: len(family.current().blocks()) == blocks)


@pytest.mark.parametrize("name", ["Lock", "RLock", "Semaphore", "BoundedSemaphore"])
def test_locked(name: str) -> None:
    primitive = getattr(mpipc, name)()
    assert primitive.locked() is False
    with primitive:
        assert primitive.locked() is True
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.append(primitive.locked()))
        thread.start()
        thread.join()
        assert seen == [True]
    assert primitive.locked() is False


def test_impossible_timeouts() -> None:
    lock = mpipc.Lock()
    lock.acquire()
    for wait in (lock.acquire, mpipc.Event().wait):
        with pytest.raises(ValueError, match="nan"):
            wait(timeout=float("nan"))
        with pytest.raises(TypeError):
            wait(timeout="x")
    assert lock.acquire(False, "ignored") is False


def hold(lock: Any, held: Any, done: Any) -> None:
    with lock:
        held.set()
        assert done.wait(60)


@pytest.mark.compares
@pytest.mark.parametrize("name", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
def test_reprs(name: str) -> None:
    """In each situation the string that multiprocessing gives."""
    strings: list[list[str]] = []
    for module in (mpipc, multiprocessing):
        context = module.get_context("fork")
        lock = make(context, name)
        seen = [repr(lock)]
        with lock:
            seen.append(repr(lock))
            if name == "RLock":
                with lock:
                    seen.append(repr(lock))
            thread_seen: list[str] = []
            thread = threading.Thread(target=lambda: thread_seen.append(repr(lock)), name="T")  # noqa: B023
            thread.start()
            thread.join()
            seen += thread_seen
        held, done = threading.Event(), threading.Event()
        thread = threading.Thread(target=hold, args=(lock, held, done), name="T")
        thread.start()
        held.wait(60)
        seen.append(repr(lock))
        done.set()
        thread.join()
        held, done = context.Event(), context.Event()
        child = run(context, hold, lock, held, done)
        assert held.wait(60)
        seen.append(repr(lock))
        done.set()
        finish(child)
        seen.append(repr(lock))
        strings.append(seen)
    assert strings[0] == strings[1]


@pytest.mark.compares
def test_reprs_of_event_and_barrier() -> None:
    event = mpipc.Event()
    assert repr(event).startswith("<Event at 0x") and repr(event).endswith(" unset>")
    event.set()
    assert repr(event).endswith(" set>")
    ours, theirs = both("Barrier", 2)
    assert repr(ours).partition(":")[2] == repr(theirs).partition(":")[2] == " waiters=0/2>"
    ours.abort(), theirs.abort()
    assert repr(ours).partition(":")[2] == repr(theirs).partition(":")[2] == " broken>"


@pytest.mark.compares
@pytest.mark.parametrize("name", NAMES)
def test_pickling_is_for_children_that_are_being_started(name: str) -> None:
    ours, theirs = both(name, *ARGUMENTS.get(name, ()))
    mine, yours = outcome(lambda: pickle.dumps(ours)), outcome(lambda: pickle.dumps(theirs))
    assert mine[0] is yours[0] is RuntimeError
    if name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"):
        assert mine[1] == yours[1]
    assert "inherit" in mine[1]


class TaggedLock(synchronize.Lock):
    """A subclass with an attribute."""

    tag = "none"


def check_tag(lock: TaggedLock) -> None:
    assert type(lock) is TaggedLock and lock.tag == "mine"
    assert lock.acquire(False) is False


def test_a_subclass_keeps_its_type_and_attributes(ctx: Any) -> None:
    lock = TaggedLock(ctx=ctx)
    lock.tag = "mine"
    with lock:
        in_child(ctx, check_tag, lock)


# --- not waiting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, -1, 0.0, -2.5])
def test_nothing_to_wait_for_is_no_sleep(timeout: float) -> None:
    """A timeout that is over is no sleep of some nanoseconds, which takes as long as the timer's slack: counted by the
    number of times that the thread gives the processor up."""
    semaphore, lock, event, condition = mpipc.Semaphore(0), mpipc.Lock(), mpipc.Event(), mpipc.Condition()
    lock.acquire()
    condition.acquire()
    for call in (semaphore.acquire, lock.acquire, event.wait, condition.wait):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        for _ in range(300):
            assert call(timeout=timeout) is False
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 150, call


@pytest.mark.parametrize("returns", [0, 1, "yes", ()])
def test_returns_is_true_false_or_none(returns: Any) -> None:
    for factory in (mpipc.Semaphore, mpipc.BoundedSemaphore, synchronize.Semaphore, synchronize.BoundedSemaphore):
        with pytest.raises(TypeError, match="returns must be"):
            factory(1, returns=returns)
        for allowed in (None, True, False):
            assert factory(1, returns=allowed).returns is allowed


# --- locks ------------------------------------------------------------------------------------------------------------


def acquire_and_tell(lock: Any, shared: Shared, go: Any) -> None:
    assert lock.acquire(False) is False
    assert lock.acquire(timeout=0.001) is False
    go.set()
    with lock:
        shared[0] += 1


@pytest.mark.parametrize("name", ["Lock", "RLock"])
def test_a_held_lock_is_held_everywhere(ctx: Any, name: str) -> None:
    lock, shared, go = make(ctx, name), Shared(), ctx.Event()
    lock.acquire()
    child = run(ctx, acquire_and_tell, lock, shared, go)
    assert go.wait(60)
    waiting(lock, 1)
    assert lock.statistics() == (0, os.getpid(), 1)
    assert shared[0] == 0
    lock.release()
    finish(child)
    assert shared[0] == 1
    assert lock.statistics() == (1, None, 0)


def release(lock: Any) -> None:
    lock.release()


def fail_to_release(lock: Any) -> None:
    with pytest.raises(AssertionError, match="not owned"):
        lock.release()
    assert lock.acquire(False) is False


def test_a_lock_may_be_released_by_another_process(ctx: Any) -> None:
    lock = ctx.Lock()
    lock.acquire()
    in_child(ctx, release, lock)
    assert lock.acquire(timeout=60)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert lock.acquire(timeout=60)


def test_an_rlock_may_not(ctx: Any) -> None:
    lock = ctx.RLock()
    lock.acquire()
    in_child(ctx, fail_to_release, lock)
    with pytest.raises(AssertionError):
        [thread_result(lock.release)]
    lock.release()


def thread_result(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises in another thread."""
    result: list[Any] = []
    error: list[BaseException] = []

    def body() -> None:
        try:
            result.append(call())
        except BaseException as exception:
            error.append(exception)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(60)
    if error:
        raise error[0]
    return result[0]


def test_rlock_is_recursive_for_its_thread_only() -> None:
    lock = mpipc.RLock()
    for _ in range(1000):
        assert lock.acquire()
    assert thread_result(lambda: lock.acquire(False)) is False
    for _ in range(999):
        lock.release()
        assert lock.statistics().holder == os.getpid()
    lock.release()
    assert thread_result(lambda: lock.acquire(False)) is True
    with pytest.raises(AssertionError):
        lock.release()


@pytest.mark.parametrize("name", ["Lock", "RLock"])
def test_a_forked_child_does_not_own_its_parents_lock(name: str) -> None:
    lock = make(mpipc.get_context("fork"), name)
    with lock:
        child = os.fork()
        if child == 0:
            try:
                assert lock.acquire(False) is False
                assert not lock._semlock._is_mine()
                assert lock.statistics().holder == os.getppid()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert lock.statistics().holder == os.getpid()


def increment(lock: Any, shared: Shared, start: Any, rounds: int, threads: int) -> None:
    start.wait(60)

    def body() -> None:
        for _ in range(rounds):
            with lock:
                value = shared[0]
                if value % 16 == 0:
                    os.sched_yield()
                shared[0] = value + 1

    workers = [threading.Thread(target=body) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@pytest.mark.slow_with("spawn", "forkserver")
@pytest.mark.parametrize("name", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
def test_mutual_exclusion_is_exact(ctx: Any, name: str) -> None:
    """Processes with threads; the increment is no single operation."""
    lock = getattr(ctx, name)() if name not in ARGUMENTS else getattr(ctx, name)(1)
    shared, start = Shared(), ctx.Event()
    children = [run(ctx, increment, lock, shared, start, 300, 2) for _ in range(4)]
    start.set()
    finish(*children)
    assert shared[0] == 4 * 2 * 300
    assert lock.acquire(False)
    lock.release()


# --- semaphores -------------------------------------------------------------------------------------------------------


def take(semaphore: Any, number: int) -> None:
    for _ in range(number):
        assert semaphore.acquire(timeout=60)


def give(semaphore: Any, number: int) -> None:
    for _ in range(number):
        semaphore.release()


@pytest.mark.parametrize("name", ["Semaphore", "BoundedSemaphore"])
def test_semaphore_counts_across_processes(ctx: Any, name: str) -> None:
    semaphore = getattr(ctx, name)(5)
    in_child(ctx, take, semaphore, 3)
    assert semaphore.get_value() == 2
    take(semaphore, 2)
    assert semaphore.acquire(False) is False
    assert semaphore.acquire(timeout=0.001) is False
    in_child(ctx, give, semaphore, 5)
    assert semaphore.statistics() == (5, None, 0)


def test_bounded_semaphore_has_a_bound(ctx: Any) -> None:
    semaphore = ctx.BoundedSemaphore(2)
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.release()
    take(semaphore, 2)
    in_child(ctx, give, semaphore, 2)
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.release()
    with pytest.raises(ValueError, match="released too many times"):
        ctx.BoundedSemaphore(0).release()


@pytest.mark.parametrize("value", [0, 1, 32767, 32768, 40000, SEM_VALUE_MAX - 1, SEM_VALUE_MAX])
def test_values_beyond_those_of_the_kernels_semaphores(value: int) -> None:
    semaphore = mpipc.Semaphore(value)
    assert semaphore.get_value() == value
    if value < SEM_VALUE_MAX:
        semaphore.release()
        assert semaphore.get_value() == value + 1
        assert semaphore.acquire()
    else:
        with pytest.raises(ValueError, match="released too many times"):
            semaphore.release()
    if value:
        assert semaphore.acquire(False)
        assert semaphore.get_value() == value - 1
    else:
        assert semaphore.acquire(False) is False


@pytest.mark.slow_with("spawn", "forkserver")
def test_every_unit_of_40000(ctx: Any) -> None:
    semaphore = ctx.Semaphore(0)
    in_child(ctx, give, semaphore, 40000)
    assert semaphore.get_value() == 40000
    in_child(ctx, take, semaphore, 40000)
    assert semaphore.acquire(False) is False


def test_each_release_wakes_one_of_many(ctx: Any) -> None:
    semaphore = ctx.Semaphore(0)
    children = [run(ctx, take, semaphore, 3) for _ in range(4)]
    threads = [threading.Thread(target=take, args=(semaphore, 3)) for _ in range(4)]
    for thread in threads:
        thread.start()
    waiting(semaphore, 8)
    give(semaphore, 24)
    for thread in threads:
        thread.join(60)
    finish(*children)
    assert semaphore.get_value() == 0


# --- events -----------------------------------------------------------------------------------------------------------


def wait_for_event(event: Any, expected: bool) -> None:
    assert event.wait(60) is expected


def test_event(ctx: Any) -> None:
    event = ctx.Event()
    assert event.is_set() is False
    assert event.wait(0) is False
    assert event.wait(-1) is False
    assert event.wait(0.001) is False
    children = [run(ctx, wait_for_event, event, True) for _ in range(3)]
    threads = [threading.Thread(target=event.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    waiting(event, 6)
    event.set()
    finish(*children)
    for thread in threads:
        thread.join(60)
    assert event.is_set() is True
    assert event.wait() is True
    assert event.wait(0) is True
    assert event.statistics() == (1, None, 0)
    in_child(ctx, type(event).clear, event)
    assert event.is_set() is False
    event.set()
    event.set()
    assert event.is_set() is True
    event.clear()
    event.clear()
    assert event.wait(0) is False
    event.set()
    assert event.wait(0) is True


def test_a_pulse_wakes_those_who_wait() -> None:
    event = mpipc.Event()
    for _ in range(20):
        results: list[bool] = []
        threads = [threading.Thread(target=lambda: results.append(event.wait(60))) for _ in range(3)]  # noqa: B023
        for thread in threads:
            thread.start()
        waiting(event, 3)
        event.set()
        event.clear()
        for thread in threads:
            thread.join(60)
        assert results == [True] * 3


def clear_after_waiting(event: Any, cleared: Any, rounds: int) -> None:
    for _ in range(rounds):
        assert event.wait(60)
        event.clear()
        cleared.release()


def test_what_a_waiter_clears_stays_clear(ctx: Any) -> None:
    """Also while the set() that woke it is still on its way back from the kernel."""
    event, cleared, rounds = ctx.Event(), ctx.Semaphore(0), 300
    child = run(ctx, clear_after_waiting, event, cleared, rounds)
    for _ in range(rounds):
        event.set()
        assert cleared.acquire(timeout=60)
        assert not event.is_set()
    finish(child)


def clear_when_told(event: Any, go: Any, done: Any, rounds: int) -> None:
    for _ in range(rounds):
        go.acquire()
        event.clear()
        done.release()


@pytest.mark.slow_with("spawn")
def test_cleared_twice_is_set_once(ctx: Any) -> None:
    """By two at the same time: one set() is enough afterwards."""
    event, go, done, rounds = ctx.Event(), ctx.Semaphore(0), ctx.Semaphore(0), 300
    children = [run(ctx, clear_when_told, event, go, done, rounds) for _ in range(2)]
    for _ in range(rounds):
        event.set()
        assert event.is_set()
        go.release()
        go.release()
        assert done.acquire(timeout=60) and done.acquire(timeout=60)
        assert not event.is_set()
    finish(*children)


def flip(event: Any, rounds: int) -> None:
    for _ in range(rounds):
        event.clear()
        event.set()


def test_setters_and_clearers_at_the_same_time(ctx: Any) -> None:
    event = ctx.Event()
    children = [run(ctx, flip, event, 2000) for _ in range(3)]
    finish(*children)
    assert event.is_set() is True
    event.clear()
    assert event.is_set() is False


# --- conditions -------------------------------------------------------------------------------------------------------


def wait_in_turn(condition: Any, shared: Shared, index: int) -> None:
    with condition:
        assert condition.wait(60)
        shared[index] = shared[7] = shared[7] + 1


@pytest.mark.slow_with("spawn")
def test_notify_wakes_exactly_n_in_the_order_they_came(ctx: Any) -> None:
    condition, shared = ctx.Condition(), Shared()
    children = []
    for index in range(5):
        children.append(run(ctx, wait_in_turn, condition, shared, index))
        waiting(condition, index + 1)
    with condition:
        condition.notify(2)
    finish(*children[:2])
    assert sorted([shared[0], shared[1]]) == [1, 2]
    assert condition.statistics().waiters == 3
    with condition:
        condition.notify()
    finish(children[2])
    assert [shared[2], shared[3], shared[4]] == [3, 0, 0]
    with condition:
        condition.notify(100)
    finish(*children[3:])
    assert sorted([shared[3], shared[4]]) == [4, 5]
    assert condition.statistics() == (1, None, 0)


def test_notify_all_and_threads(ctx: Any) -> None:
    condition, shared = ctx.Condition(ctx.Lock()), Shared()
    children = [run(ctx, wait_in_turn, condition, shared, index) for index in range(3)]
    threads = [threading.Thread(target=wait_in_turn, args=(condition, shared, index)) for index in range(3, 6)]
    for thread in threads:
        thread.start()
    waiting(condition, 6)
    with condition:
        condition.notify_all()
        assert condition.statistics().waiters == 0
    finish(*children)
    for thread in threads:
        thread.join(60)
    assert shared[7] == 6


def test_a_notification_is_not_remembered() -> None:
    condition = mpipc.Condition()
    with condition:
        condition.notify()
        condition.notify_all()
        assert condition.wait(0) is False
        assert condition.wait(0.001) is False
        assert condition.wait(-1) is False
        condition.notify(0)
        condition.notify(-1)


@pytest.mark.compares
def test_condition_needs_its_lock(ctx: Any) -> None:
    ours, theirs = both("Condition")
    for call in ("wait", "notify", "notify_all"):
        with pytest.raises(AssertionError) as mine:
            getattr(ours, call)()
        with pytest.raises(AssertionError) as yours:
            getattr(theirs, call)()
        assert str(mine.value) == str(yours.value)


def test_wait_releases_all_levels_of_an_rlock_and_takes_them_back() -> None:
    condition = mpipc.Condition()
    woken = []

    def other() -> None:
        with condition:
            woken.append(True)
            condition.notify()

    with condition, condition, condition:
        thread = threading.Thread(target=other)
        thread.start()
        assert condition.wait(60)
        assert woken
        assert repr(condition).startswith("<Condition(<RLock(MainProcess, 3)>")
        thread.join()
    assert condition.statistics() == (1, None, 0)


def produce(condition: Any, shared: Shared) -> None:
    for _ in range(3):
        with condition:
            shared[0] += 1
            condition.notify_all()


def test_wait_for(ctx: Any) -> None:
    condition, shared = ctx.Condition(), Shared()
    with condition:
        assert condition.wait_for(lambda: False, 0.001) is False
        assert condition.wait_for(lambda: 7, 0) == 7
        child = run(ctx, produce, condition, shared)
        assert condition.wait_for(lambda: shared[0] == 3, 60) is True
    finish(child)


def test_a_thousand_notifications_reach_their_waiters(ctx: Any) -> None:
    condition, shared = ctx.Condition(), Shared()
    child = run(ctx, ping, condition, shared, 0)
    ping(condition, shared, 1)
    finish(child)
    assert shared[0] == 1000


def ping(condition: Any, shared: Shared, parity: int) -> None:
    for _ in range(500):
        with condition:
            assert condition.wait_for(lambda: shared[0] % 2 == parity, 60)
            shared[0] += 1
            condition.notify()


# --- barriers ---------------------------------------------------------------------------------------------------------


def pass_barrier(barrier: Any, shared: Shared, lock: Any, rounds: int) -> None:
    for _ in range(rounds):
        place = barrier.wait(60)
        with lock:
            shared[place] += 1


def test_barrier_gives_each_a_place_for_many_cycles(ctx: Any) -> None:
    barrier, shared, lock = ctx.Barrier(4), Shared(), ctx.Lock()
    children = [run(ctx, pass_barrier, barrier, shared, lock, 200) for _ in range(2)]
    threads = [threading.Thread(target=pass_barrier, args=(barrier, shared, lock, 200)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    finish(*children)
    assert [shared[place] for place in range(5)] == [200, 200, 200, 200, 0]
    assert (barrier.n_waiting, barrier.parties, barrier.broken) == (0, 4, False)


def in_threads(number: int, call: Callable[[], Any]) -> list[Any]:
    """What `call` returned in each thread; for an exception, its type."""
    results: list[Any] = []

    def body() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(type(error))

    threads = [threading.Thread(target=body) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_barrier_action() -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(barrier.n_waiting)

    barrier = mpipc.Barrier(3, action)
    assert sorted(in_threads(3, barrier.wait)) == [0, 1, 2]
    assert sorted(in_threads(3, barrier.wait)) == [0, 1, 2]
    assert calls == [2, 2]
    assert mpipc.Barrier(1).wait() == 0


def test_barrier_action_that_raises() -> None:
    def action() -> None:
        raise LookupError

    barrier = mpipc.Barrier(3, action)
    assert sorted(map(str, in_threads(3, barrier.wait))) == sorted(
        map(str, [LookupError, threading.BrokenBarrierError, threading.BrokenBarrierError])
    )
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken


@pytest.mark.parametrize("ending", ["abort", "reset"])
def test_barrier_action_that_ends_the_cycle_itself(ending: str) -> None:
    def action() -> None:
        getattr(barrier, ending)()

    barrier = mpipc.Barrier(2, action)
    assert in_threads(2, barrier.wait) == [threading.BrokenBarrierError] * 2
    assert barrier.broken is (ending == "abort")


def test_barrier_timeout_breaks_it_for_all(ctx: Any) -> None:
    barrier = ctx.Barrier(3, timeout=60)
    child = run(ctx, expect_broken, barrier)
    wait_until(lambda: barrier.n_waiting == 1, timeout=30)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0.01)
    finish(child)
    assert barrier.broken and barrier.n_waiting == 0
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    with pytest.raises(threading.BrokenBarrierError):
        mpipc.Barrier(2, timeout=0.01).wait()
    with pytest.raises(threading.BrokenBarrierError):
        mpipc.Barrier(2).wait(0)


def expect_broken(barrier: Any) -> None:
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(60)


@pytest.mark.parametrize("ending", ["abort", "reset"])
def test_barrier_ended_with_waiters(ctx: Any, ending: str) -> None:
    barrier = ctx.Barrier(4)
    children = [run(ctx, expect_broken, barrier) for _ in range(2)]
    wait_until(lambda: barrier.n_waiting == 2, timeout=30)
    assert barrier.statistics().waiters == 2
    getattr(barrier, ending)()
    finish(*children)
    assert barrier.broken is (ending == "abort")
    barrier.reset()
    assert sorted(in_threads(4, barrier.wait)) == [0, 1, 2, 3]


def test_barrier_without_parties() -> None:
    for parties in (0, -1):
        with pytest.raises((ValueError, OverflowError)):
            mpipc.Barrier(parties)


# --- life of the objects ----------------------------------------------------------------------------------------------


def use_after_drop(primitives: list[Any], ready: Any, go: Any) -> None:
    ready.set()
    assert go.wait(60)
    lock, rlock, semaphore, bounded, condition, event, barrier = primitives
    for one in (lock, rlock, semaphore, bounded):
        assert one.acquire(False)
        one.release()
    with condition:
        condition.notify_all()
        assert condition.wait(0) is False
    event.set()
    assert event.wait(0)
    assert barrier.n_waiting == 0
    others = [mpipc.Lock() for _ in range(50)]  # take the places of anything that is gone
    for other in others:
        assert other.acquire(False)
    assert lock.acquire(False)


def test_objects_live_as_long_as_a_child_uses_them(ctx: Any) -> None:
    before = len(family.current().blocks())
    ready, go = ctx.Event(), ctx.Event()
    primitives = [make(ctx, name) for name in NAMES]
    child = run(ctx, use_after_drop, primitives, ready, go)
    assert ready.wait(60)
    del primitives
    child._args = ()
    mine = [mpipc.Lock() for _ in range(50)]
    for lock in mine:
        lock.acquire()
    go.set()
    finish(child)
    del mine, ready, go, lock
    wait_until(lambda: len(family.current().blocks()) == before)


def test_a_failed_start_leaves_nothing(start_method: str) -> None:
    if start_method == "fork":
        pytest.skip("nothing is pickled")
    before = family.current().blocks()
    lock = mpipc.get_context(start_method).Lock()
    process = mpipc.get_context(start_method).Process(target=print, args=(lock, lambda: None))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        process.start()
    del process, lock
    wait_until(lambda: family.current().blocks() == before)
    wait_until(lambda: [state for _, state, _ in family.current().processes()] == ["alive"])


# --- timeouts ---------------------------------------------------------------------------------------------------------


def refused(error: type[Exception], call: Callable[[], object]) -> bool:
    """False, which is what calls that do not raise return."""
    with pytest.raises(error):
        call()
    return False


def taken(primitive: Any) -> Any:
    """By another thread, entirely."""

    def take() -> None:
        while primitive.acquire(False) and not isinstance(primitive, synchronize.RLock):
            pass

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return primitive


def wait_in_condition(timeout: float) -> bool:
    condition = mpipc.Condition()
    with condition:
        return bool(condition.wait(timeout))


def put_into_full(timeout: float) -> bool:
    queue = mpipc.Queue(1)
    queue.put(1)
    return refused(Full, lambda: queue.put(2, timeout=timeout))


WAITS: dict[str, Callable[[float], bool]] = {
    "Lock": lambda timeout: taken(mpipc.Lock()).acquire(timeout=timeout),
    "RLock": lambda timeout: taken(mpipc.RLock()).acquire(timeout=timeout),
    "Semaphore": lambda timeout: taken(mpipc.Semaphore(2)).acquire(timeout=timeout),
    "BoundedSemaphore": lambda timeout: taken(mpipc.BoundedSemaphore(2)).acquire(timeout=timeout),
    "Condition": wait_in_condition,
    "Event": lambda timeout: mpipc.Event().wait(timeout),
    "Barrier": lambda timeout: refused(threading.BrokenBarrierError, lambda: mpipc.Barrier(2).wait(timeout)),
    "Queue.get": lambda timeout: refused(Empty, lambda: mpipc.Queue().get(timeout=timeout)),
    "Queue.put": put_into_full,
}


@pytest.mark.slow_with("RLock", "Semaphore", "BoundedSemaphore")
@pytest.mark.parametrize("name", WAITS)
def test_a_wait_does_not_end_before_its_timeout(name: str) -> None:
    """Also across the ticks in between (mpipc looks after the family once a second)."""
    begin = time.monotonic()
    assert WAITS[name](1.2) is False
    assert time.monotonic() - begin >= 1.2

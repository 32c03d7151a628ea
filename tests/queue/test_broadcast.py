"""Broadcast: each subscription gets each message, in one order, whoever is slow or dead.

What happens between two machine instructions is the subject of native/broadcast_scenarios.h; random deaths:
test_broadcast_killed.py.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from queue import Empty, Full
from typing import Any

import pytest
from support import wait_until
from support.rwlock_crew import LIMIT, HandlerError, finish, in_thread, kill, start

import mpipc
from mpipc.broadcast import Broadcast, ShutDown, Subscription

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

LARGE = bytes(range(256)) * 4000


def drained(subscription: Any) -> list[Any]:
    """What is there for it now."""
    got = []
    with contextlib.suppress(Empty, ShutDown):
        while True:
            got.append(subscription.get_nowait())
    return got


def report(subscription: Any, results: Any) -> None:
    results.put((os.getpid(), list(subscription)))


def subscribe_and_report(channel: Any, ready: Any, results: Any) -> None:
    with channel.subscribe() as subscription:
        ready.release()
        report(subscription, results)


def hold(things: Any, ready: Any) -> None:
    ready.release()
    signal.pause()


def waiting(channel: Any, readers: int = 0, writers: int = 0) -> None:
    """Returns when so many threads wait."""

    def count() -> bool:
        found = channel.statistics()
        return (found.waiting_readers, found.waiting_writers) == (readers, writers)

    wait_until(count, timeout=LIMIT)


# ---- who gets what ---------------------------------------------------------------------------------------------------


def test_each_gets_everything(ctx: Any) -> None:
    channel, ready, results = ctx.Broadcast(), ctx.Semaphore(0), ctx.SimpleQueue()
    given = [channel.subscribe() for _ in range(2)]
    children = [start(ctx, report, subscription, results) for subscription in given]
    children += [start(ctx, subscribe_and_report, channel, ready, results) for _ in range(2)]
    for subscription in given:
        subscription.close()
    for _ in range(2):
        assert ready.acquire(timeout=LIMIT)
    messages = [1, "two", b"3", [4.0, None], {5, 6}, LARGE, "x" * 3000, range(8)]
    for message in messages:
        channel.put(message)
    channel.shutdown()
    reports = dict(results.get() for _ in children)
    finish(*children)
    assert reports == {child.pid: messages for child in children}
    wait_until(lambda: channel.subscribers() == [], timeout=LIMIT)


def put_range(channel: Any, name: int, count: int) -> None:
    for number in range(count):
        channel.put((name, number))


def test_all_get_the_same_order(ctx: Any) -> None:
    channel, results = ctx.Broadcast(maxsize=4), ctx.SimpleQueue()
    subscriptions = [channel.subscribe() for _ in range(3)]
    readers = [start(ctx, report, subscription, results) for subscription in subscriptions]
    for subscription in subscriptions:
        subscription.close()
    finish(*[start(ctx, put_range, channel, name, 200) for name in range(3)])
    channel.shutdown()
    orders = [results.get()[1] for _ in readers]
    finish(*readers)
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == [(name, number) for name in range(3) for number in range(200)]
    for name in range(3):
        assert [number for who, number in orders[0] if who == name] == list(range(200))


def test_a_subscription_begins_with_the_next_put() -> None:
    channel: Broadcast[int] = mpipc.Broadcast()
    channel.put(1)  # for nobody
    assert channel.statistics()[:3] == (0, 0, 0)
    first = channel.subscribe()
    assert first.empty()
    channel.put(2)
    second = channel.subscribe()
    channel.put(3)
    assert (first.qsize(), second.qsize()) == (2, 1)
    assert drained(first) == [2, 3] and drained(second) == [3]
    second.close()
    assert len(channel.subscribers()) == 1


def test_get_waits() -> None:
    channel: Broadcast[int] = mpipc.Broadcast()
    subscription = channel.subscribe()
    for options in ({"block": False}, {"timeout": 0}, {"timeout": -1}, {"timeout": 0.01}):
        with pytest.raises(Empty):
            subscription.get(**options)
    with pytest.raises(Empty):
        subscription.get_nowait()
    thread = threading.Thread(target=lambda: [waiting(channel, 1), channel.put(7)])
    thread.start()
    assert subscription.get(timeout=LIMIT) == 7
    thread.join()
    with pytest.raises(ValueError, match="timeout"):
        subscription.get(timeout=float("nan"))


# ---- who is slow -----------------------------------------------------------------------------------------------------


def test_who_is_slow_loses_the_oldest(ctx: Any) -> None:
    channel = ctx.Broadcast(maxsize=10, slow="drop")
    slow, fast = channel.subscribe(), channel.subscribe()
    for number in range(100):
        channel.put(number)
        assert fast.get_nowait() == number
        assert slow.lost == max(0, number - 9)
    assert fast.lost == 0
    assert drained(slow) == list(range(90, 100))
    assert slow.lost == 90
    channel.put(100)
    assert slow.get() == 100 and slow.lost == 90


def test_bytes_are_a_limit_too() -> None:
    channel = mpipc.Broadcast(maxbytes=8192, slow="drop")
    subscription = channel.subscribe()
    for number in range(20):
        channel.put(bytes([number]) * 2500)
    got = drained(subscription)
    assert got == [bytes([number]) * 2500 for number in range(20 - len(got), 20)]
    assert 2 <= len(got) <= 3 and subscription.lost == 20 - len(got)


def test_put_waits_for_the_slowest(ctx: Any) -> None:
    channel = ctx.Broadcast(maxsize=2)
    slow, fast = channel.subscribe(), channel.subscribe()
    for number in range(2):
        channel.put(number)
    assert drained(fast) == [0, 1]
    for options in ({"block": False}, {"timeout": 0}, {"timeout": 0.01}):
        with pytest.raises(Full):
            channel.put(2, **options)
    with pytest.raises(Full):
        channel.put_nowait(2)
    assert fast.empty()
    putter = start(ctx, put_range, channel, 9, 1)
    waiting(channel, 0, 1)
    assert slow.get() == 0
    finish(putter)
    assert drained(slow) == [1, (9, 0)] and slow.lost == 0
    assert drained(fast) == [(9, 0)]


@pytest.mark.parametrize("ending", ["kill", "close", "end"])
def test_a_subscription_that_is_over_holds_up_nobody(ctx: Any, ending: str) -> None:
    """Also if others were forked when it was there, or have been given other subscriptions."""
    channel, ready = ctx.Broadcast(maxsize=1), ctx.Semaphore(0)
    subscriptions = [channel.subscribe() for _ in range(3)]
    others = [start(ctx, hold, subscription, ready) for subscription in subscriptions[1:]]
    for subscription in subscriptions[1:]:
        subscription.close()
    if ending == "kill":
        others.append(start(ctx, hold, subscriptions[0], ready))
        subscriptions.pop(0).close()
    for _ in others:
        assert ready.acquire(timeout=LIMIT)
    assert sorted(each.pids for each in channel.subscribers()) == sorted(
        [[child.pid] for child in others] + ([] if ending == "kill" else [[os.getpid()]])
    )
    channel.put(0)
    putter = start(ctx, put_range, channel, 9, 1)
    waiting(channel, 0, 1)
    if ending == "close":
        subscriptions[0].close()
    elif ending == "end":
        subscriptions.clear()
        gc.collect()
    kill(*others)
    finish(putter)
    wait_until(lambda: channel.subscribers() == [], timeout=LIMIT)


def subscribe_and_start(ctx: Any, channel: Any, done: Any) -> None:
    with channel.subscribe():
        start(ctx, put_and_tell, channel, done)
        signal.pause()


def put_and_tell(channel: Any, done: Any) -> None:
    put_range(channel, 0, 3)
    done.put(os.getpid())


def test_a_child_of_a_dead_subscriber_does_not_wait_for_it(ctx: Any) -> None:
    channel, done = ctx.Broadcast(maxsize=1), ctx.SimpleQueue()
    parent = start(ctx, subscribe_and_start, ctx, channel, done)
    waiting(channel, 0, 1)
    assert [each.pids for each in channel.subscribers()] == [[parent.pid]]
    kill(parent)
    assert done.get() != parent.pid
    assert channel.subscribers() == []


def test_what_is_not_got_is_kept_for_those_who_have_not(ctx: Any) -> None:
    channel = ctx.Broadcast(maxsize=5)
    first, second = channel.subscribe(), channel.subscribe()
    for number in range(5):
        channel.put(number)
    assert drained(first) == list(range(5))
    assert channel.statistics()[:3] == (5, 40, 2)
    found = {each.behind for each in channel.subscribers()}
    assert found == {0, 5}
    second.close()
    assert channel.statistics()[:3] == (0, 0, 1)


# ---- who shares a subscription ---------------------------------------------------------------------------------------


def test_each_message_is_got_by_one_of_those_who_share(ctx: Any) -> None:
    channel, results = ctx.Broadcast(maxsize=8), ctx.SimpleQueue()
    subscription, whole = channel.subscribe(), channel.subscribe()
    children = [start(ctx, report, subscription, results) for _ in range(3)]
    subscription.close()
    for number in range(300):
        channel.put(number)
        assert whole.get() == number
    channel.shutdown()
    got = [results.get()[1] for _ in children]
    finish(*children)
    assert all(part == sorted(part) for part in got)
    assert sorted(number for part in got for number in part) == list(range(300))


class Carrier:
    """What a subscription may hang on."""

    def __init__(self, subscription: Any) -> None:
        self.parts = {"subscription": [subscription]}

    def hold(self, ready: Any) -> None:
        hold(self, ready)


class Holding(mpipc.get_context("fork").Process):  # type: ignore[name-defined, misc]
    def __init__(self, subscription: Any, ready: Any) -> None:
        super().__init__()
        self.subscription = subscription
        self.ready = ready

    def run(self) -> None:
        hold(self.subscription, self.ready)


@pytest.mark.parametrize("way", ["argument", "in an object", "method", "closure", "attribute"])
def test_what_a_forked_child_was_given(way: str) -> None:
    ctx = mpipc.get_context("fork")
    channel, ready = ctx.Broadcast(), ctx.Semaphore(0)
    subscription, other = channel.subscribe(), channel.subscribe()

    def enclosing(ready: Any) -> None:
        hold(subscription, ready)

    child = {
        "argument": lambda: ctx.Process(target=hold, args=(subscription, ready)),
        "in an object": lambda: ctx.Process(target=hold, kwargs={"things": Carrier(subscription), "ready": ready}),
        "method": lambda: ctx.Process(target=Carrier(subscription).hold, args=(ready,)),
        "closure": lambda: ctx.Process(target=enclosing, args=(ready,)),
        "attribute": lambda: Holding(subscription, ready),
    }[way]()
    child.start()
    assert ready.acquire(timeout=LIMIT)
    assert [each.pids for each in channel.subscribers()] == [sorted([os.getpid(), child.pid]), [os.getpid()]]
    kill(child)
    del other


inherited: Any = None


def use_inherited(ready: Any, gate: Any, results: Any) -> None:
    ready.release()
    gate.acquire()
    try:
        results.put(inherited.get(timeout=LIMIT))
    except OSError as error:
        results.put(error.errno)


@pytest.mark.parametrize("there", [True, False])
def test_what_a_forked_child_inherits_it_has_when_it_uses_it(there: bool) -> None:
    global inherited
    ctx = mpipc.get_context("fork")
    channel, ready, gate, results = ctx.Broadcast(), ctx.Semaphore(0), ctx.Semaphore(0), ctx.SimpleQueue()
    inherited = channel.subscribe()
    child = start(ctx, use_inherited, ready, gate, results)
    try:
        assert ready.acquire(timeout=LIMIT)
        assert [each.pids for each in channel.subscribers()] == [[os.getpid()]]
        channel.put("message")
        if not there:
            inherited.close()
            assert channel.subscribers() == []
        gate.release()
        assert results.get() == ("message" if there else 116)  # ESTALE
        finish(child)
    finally:
        inherited = None


def test_a_child_of_os_fork_has_what_its_parent_has() -> None:
    channel = mpipc.Broadcast()
    subscription = channel.subscribe()
    channel.put(1)
    channel.put(2)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if subscription.get(timeout=LIMIT) == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert drained(subscription) == [2]


def test_it_is_shared_as_queues_are() -> None:
    channel = mpipc.get_context("spawn").Broadcast()
    subscription = channel.subscribe()
    for thing in (channel, subscription):
        with pytest.raises(RuntimeError, match="through inheritance"):
            pickle.dumps(thing)


# ---- what is put -----------------------------------------------------------------------------------------------------


class Refuses:
    def __reduce__(self) -> Any:
        raise LookupError("not to be pickled")


def no() -> None:
    raise LookupError("not to be unpickled")


class RefusesThere:
    def __reduce__(self) -> Any:
        return no, ()


def test_what_cannot_be_pickled_leaves_nothing() -> None:
    channel = mpipc.Broadcast()
    subscription = channel.subscribe()
    for obj in (Refuses(), [LARGE, Refuses()]):
        with pytest.raises(LookupError):
            channel.put(obj)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        channel.put(lambda: 0)
    assert subscription.empty() and channel.statistics().messages == 0
    channel.put(RefusesThere())
    channel.put(1)
    with pytest.raises(LookupError, match="unpickled"):
        subscription.get()
    assert drained(subscription) == [1]


def test_what_is_too_large_is_refused() -> None:
    channel = mpipc.Broadcast(maxbytes=4096)
    subscription = channel.subscribe()
    with pytest.raises(ValueError, match=r"maxbytes=4096: make it with a larger maxbytes="):
        channel.put(LARGE)
    channel.put(bytes(4000))
    assert drained(subscription) == [bytes(4000)]


def test_messages_of_all_sizes_around_the_end() -> None:
    chance = random.Random(7)
    for slow in ("block", "drop"):
        channel = mpipc.Broadcast(maxsize=6, maxbytes=6000, slow=slow)
        subscriptions = [channel.subscribe() for _ in range(3)]
        there: list[list[Any]] = [[] for _ in subscriptions]
        for number in range(2000):
            message = (number, bytes([number & 255]) * chance.choice((0, 5, 700, 2100, 3000, 5900)))
            with contextlib.suppress(Full):
                channel.put_nowait(message)
                for messages in there:
                    messages.append(message)
            for subscription, messages in zip(subscriptions, there, strict=True):
                if chance.random() < 0.45 and messages:
                    lost = len(messages) - subscription.qsize()
                    assert lost == 0 or slow == "drop"
                    del messages[:lost]
                    if messages:
                        assert subscription.get_nowait() == messages.pop(0)
        assert all(subscription.lost == 0 or slow == "drop" for subscription in subscriptions)


def test_a_pickler_of_its_own(ctx: Any) -> None:
    pytest.importorskip("cloudpickle")
    for channel in (ctx.Broadcast(pickler="cloudpickle"), ctx.with_pickler("cloudpickle").Broadcast()):
        subscription = channel.subscribe()
        channel.put(lambda: 42)
        channel.put(1)
        assert subscription.get()() == 42 and subscription.get() == 1


def test_foreign_contents_are_passed_over() -> None:
    from mpipc.sysv import shmat

    channel = mpipc.Broadcast(maxsize=3)
    subscription = channel.subscribe()
    for number in range(3):
        channel.put(number)
    with shmat(channel._log.block.id) as memory:  # the places of subscriptions, then the entries
        view = memoryview(memory).cast("B").cast("Q")
        view[1024 + 2 * 1 + 1] = 1 << 63  # as long as cannot be
        view.release()
    assert subscription.get() == 0
    with pytest.raises(OSError, match="has been passed over"):
        subscription.get()
    assert drained(subscription) == [2]


# ---- ends ------------------------------------------------------------------------------------------------------------


def put_until_the_end(channel: Any) -> None:
    with pytest.raises(ShutDown):
        while True:
            channel.put(0)


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown(ctx: Any, immediate: bool) -> None:
    channel, ready, results = ctx.Broadcast(maxsize=3), ctx.Semaphore(0), ctx.SimpleQueue()
    child = start(ctx, subscribe_and_report, channel, ready, results)
    assert ready.acquire(timeout=LIMIT)
    subscription = channel.subscribe()
    putter = start(ctx, put_until_the_end, channel)
    waiting(channel, 1, 1)
    assert not channel.is_shutdown
    channel.shutdown(immediate)
    finish(child, putter)
    assert results.get()[1] == [0, 0, 0]
    assert channel.is_shutdown and channel.statistics().is_shutdown
    assert drained(subscription) == ([] if immediate else [0, 0, 0])
    for call in (subscription.get, lambda: channel.put(1), lambda: channel.put(Refuses()), channel.subscribe().get):
        with pytest.raises(ShutDown):
            call()
    channel.shutdown(True)
    assert list(subscription) == []


def test_close() -> None:
    channel = mpipc.Broadcast()
    with channel.subscribe() as subscription:
        channel.put(1)
        assert subscription.get() == 1
    subscription.close()
    for call in (subscription.get, subscription.qsize, subscription.empty, lambda: subscription.lost):
        with pytest.raises(ValueError, match="is closed"):
            call()
    assert channel.subscribers() == []
    other = channel.subscribe()
    channel.close()
    for call in (lambda: channel.put(1), channel.subscribe, channel.shutdown):
        with pytest.raises(ValueError, match="is closed"):
            call()
    with pytest.raises(Empty):
        other.get_nowait()


def test_closing_beside_a_thread_that_gets() -> None:
    channel = mpipc.Broadcast()
    subscription = channel.subscribe()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(subscription.get(timeout=LIMIT)))
    thread.start()
    waiting(channel, 1)
    subscription.close()
    assert len(channel.subscribers()) == 1, "as long as the thread waits"
    channel.put(1)
    thread.join()
    assert got == [1]
    wait_until(lambda: channel.subscribers() == [], timeout=LIMIT)


@pytest.mark.parametrize(
    "options",
    [{"maxsize": 0}, {"maxbytes": 0}, {"maxsize": -1}, {"slow": "wait"}, {"slow": None}, {"maxsize": 1 << 60}],
)
def test_what_cannot_be_made(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        mpipc.Broadcast(**options)


def test_there_is_room_for_so_many() -> None:
    channel = mpipc.Broadcast()
    subscriptions = [channel.subscribe() for _ in range(1024)]
    with pytest.raises(OSError, match="1024"):
        channel.subscribe()
    subscriptions.pop().close()
    subscriptions.append(channel.subscribe())
    channel.put(1)
    assert all(drained(subscription) == [1] for subscription in subscriptions)


def test_names() -> None:
    channel = mpipc.Broadcast(maxsize=7, maxbytes=8000, slow="drop")
    assert isinstance(channel, Broadcast) and isinstance(channel.subscribe(), Subscription)
    assert repr(channel) == "<Broadcast maxsize=7 maxbytes=8000 slow='drop'>"


# ---- signal handlers -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interrupted(channel: Any, call: str, handler: Callable[[], Any]) -> Iterator[None]:
    """When the main thread waits in get() or put() it is interrupted, and runs `handler`."""

    def interrupt() -> None:
        waiting(channel, call == "get", call == "put")
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


@pytest.mark.parametrize("call", ["get", "put"])
def test_an_exception_of_a_handler_ends_the_wait(call: str) -> None:
    """KeyboardInterrupt is one, too."""
    channel = mpipc.Broadcast(maxsize=1)
    subscription = channel.subscribe()
    if call == "put":
        channel.put(0)
    with interrupted(channel, call, raise_error), pytest.raises(HandlerError):
        channel.put(1) if call == "put" else subscription.get()
    waiting(channel)
    assert drained(subscription) == ([0] if call == "put" else [])
    channel.put(2)
    assert drained(subscription) == [2]


@pytest.mark.parametrize("call", ["get", "put"])
def test_a_handler_that_uses_it(call: str) -> None:
    channel = mpipc.Broadcast(maxsize=1)
    subscription = channel.subscribe()
    if call == "put":
        channel.put(0)
    handler = subscription.get if call == "put" else lambda: channel.put(1)
    with interrupted(channel, call, handler):
        channel.put(1) if call == "put" else subscription.get()
    assert drained(subscription) == ([1] if call == "put" else [])


@pytest.mark.parametrize("call", ["get", "put"])
def test_a_handler_that_forks(call: str) -> None:
    """The child goes on in the middle of its parent's call, and waits for itself."""
    channel = mpipc.Broadcast(maxsize=1)
    subscription = channel.subscribe()
    if call == "put":
        channel.put(0)
    children: list[int] = []

    def handler() -> None:
        children.append(os.fork())
        if children[0] == 0:
            return
        waiting(channel, 2 * (call == "get"), 2 * (call == "put"))
        thread = threading.Thread(target=make_way)
        thread.start()
        children.append(thread)  # type: ignore[arg-type]

    def make_way() -> None:
        for number in (1, 2):
            channel.put(number, timeout=LIMIT) if call == "get" else subscription.get(timeout=LIMIT)

    with interrupted(channel, call, handler):
        try:
            channel.put(3, timeout=LIMIT) if call == "put" else subscription.get(timeout=LIMIT)
        finally:
            if children == [0]:  # nothing of pytest's is to be run in it
                os._exit(1 if sys.exc_info()[0] else 0)
    assert os.waitpid(children[0], 0)[1] == 0
    children[1].join(LIMIT)  # type: ignore[attr-defined]
    waiting(channel)
    assert drained(subscription) == ([3] if call == "put" else [])


def test_a_put_beside_threads_of_its_process() -> None:
    channel = mpipc.Broadcast(maxsize=3)
    subscription = channel.subscribe()
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.extend(subscription))
    reader.start()
    putters = [threading.Thread(target=put_range, args=(channel, name, 100)) for name in range(4)]
    for putter in putters:
        putter.start()
    for putter in putters:
        putter.join()
    channel.shutdown()
    reader.join()
    assert sorted(got) == [(name, number) for name in range(4) for number in range(100)]
    assert in_thread(lambda: subscription.lost) == 0

"""gevent and eventlet, which make greenlets of threads: who waits lets the others run, and nothing stands still."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from support import run_script

PATCHED = {
    "gevent": """
        from gevent import monkey
        monkey.patch_all()
        import gevent
        from gevent import spawn, sleep
        def result(greenlet):
            return greenlet.get(timeout=40)
        def kill(greenlet):
            greenlet.kill(block=True)
        """,
    "eventlet": """
        import warnings
        warnings.simplefilter("ignore")
        import eventlet
        eventlet.monkey_patch()
        from eventlet import spawn, sleep
        def result(greenlet):
            with eventlet.Timeout(40):
                return greenlet.wait()
        def kill(greenlet):
            greenlet.kill()
        """,
}


@pytest.fixture(params=list(PATCHED))
def library(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def run(library: str, body: str, start_method: str = "spawn") -> None:
    """A program's `body`, which has `ctx`, and functions of either library: spawn, sleep, result, kill."""
    start = f"import mpipc, threading, time\nctx = mpipc.get_context({start_method!r})\n"
    indented = body.strip("\n").replace("\n", "\n    ")
    lines = [line[8:] for line in PATCHED[library].strip("\n").splitlines()]
    run_script("\n".join(lines) + "\n" + start + "if __name__ == '__main__':\n    " + indented + "\n", timeout=50)


WITH_CHILDREN = {
    "pool": """
with ctx.Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
    assert pool.apply(abs, (-3,)) == 3 and pool.apply(abs, (-4,)) == 4
    assert list(pool.imap(abs, iter([-3]))) == [3]
    assert [result(g) for g in [spawn(pool.apply, abs, (-n,)) for n in range(5)]] == list(range(5))
    pool.close()
    pool.join()
""",
    "queue": """
from support.held import held
queue, gate = ctx.Queue(), ctx.Event()
process = ctx.Process(target=held, args=(gate, queue.put, 5))
process.start()
assert queue.get(timeout=40) == 5
gate.set()
process.join()
assert process.exitcode == 0
""",
    "executors": """
from concurrent.futures import ProcessPoolExecutor
for make in (lambda: ProcessPoolExecutor(2, mp_context=ctx), lambda: mpipc.ProcessPoolExecutor(2, mp_context=ctx)):
    with make() as executor:
        assert executor.submit(abs, -4).result(40) == 4
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
""",
    "log records": """
import logging, logging.handlers
import mpipc.log
from support.held import held
from support.logged import emit_numbers
gate = ctx.Event()
logging.basicConfig(level=logging.INFO, handlers=[logging.handlers.BufferingHandler(100)])
with mpipc.log.forward():
    process = ctx.Process(target=held, args=(gate, emit_numbers, "n", 3))
    process.start()
    gate.set()
    process.join()
    assert process.exitcode == 0
assert [each.getMessage() for each in logging.root.handlers[0].buffer] == ["n 0", "n 1", "n 2"]
""",
    "lock": """
from support.held import held
lock, gate = ctx.Lock(), ctx.Event()
lock.acquire()
process = ctx.Process(target=held, args=(gate, lock.release))
waiter = spawn(lock.acquire)
sleep(0)
process.start()
assert result(waiter)
gate.set()
process.join()
""",
}


@pytest.mark.parametrize("case", list(WITH_CHILDREN))
def test_with_children(library: str, start_method: str, case: str) -> None:
    if (library, start_method) == ("eventlet", "forkserver"):
        pytest.skip("where eventlet has patched, multiprocessing has no forkserver")
    if start_method == "forkserver" and sys.version_info >= (3, 14):
        pytest.skip("multiprocessing's fork server asks who it is over a socket, which does not block any more there")
    run(library, WITH_CHILDREN[case], start_method)


ALONE = {
    "get": """
queue = ctx.Queue()
getters = [spawn(queue.get), spawn(queue.get, timeout=40), spawn(queue.get)]
sleep(0)
for number in range(3):
    queue.put(number)
assert sorted(result(getter) for getter in getters) == [0, 1, 2]
""",
    "get of a SimpleQueue, recv and poll": """
queue = ctx.SimpleQueue()
for receive in (queue.get, queue._reader.recv, lambda: queue._reader.poll(40) and queue.get()):
    getter = spawn(receive)
    sleep(0)
    queue.put(1)
    assert result(getter) == 1
""",
    "get that times out": """
import queue as errors
queue, steps = ctx.Queue(), []
def count():
    while True:
        steps.append(1)
        sleep(0.001)
counter = spawn(count)
for timeout in (0.05, 0):
    try:
        queue.get(timeout=timeout)
    except errors.Empty:
        pass
    else:
        raise AssertionError
assert len(steps) > 3
kill(counter)
""",
    "put into a full queue": """
queue = ctx.Queue(1)
queue.put(0)
putter = spawn(queue.put, 1)
sleep(0)
assert queue.get() == 0
result(putter)
assert queue.get() == 1
""",
    "a broadcast": """
channel = ctx.Broadcast(maxsize=1)
subscription = channel.subscribe()
getters = [spawn(subscription.get), spawn(subscription.get, timeout=40)]
sleep(0)
for number in range(2):
    channel.put(number)
assert sorted(result(getter) for getter in getters) == [0, 1]
channel.put(2)
putter = spawn(channel.put, 3)
sleep(0)
assert subscription.get() == 2
result(putter)
assert subscription.get() == 3
""",
    "join of a queue": """
queue = ctx.JoinableQueue()
queue.put(0)
joiner = spawn(queue.join)
sleep(0)
queue.get()
queue.task_done()
result(joiner)
""",
    "a waiter that is killed": """
queue, lock = ctx.Queue(), ctx.Lock()
lock.acquire()
waiters = [spawn(queue.get), spawn(queue.get, timeout=40), spawn(lock.acquire)]
sleep(0.01)
for waiter in waiters:
    kill(waiter)
queue.put(1)
lock.release()
assert queue.get(timeout=40) == 1 and lock.acquire(timeout=40)
""",
    "locks": """
for lock in (ctx.Lock(), ctx.Semaphore(1)):
    inside = []
    def enter():
        with lock:
            inside.append(1)
            assert len(inside) == 1
            sleep(0.01)
            inside.pop()
        return True
    assert all([result(greenlet) for greenlet in [spawn(enter) for _ in range(3)]])
""",
    "conditions": """
condition = ctx.Condition()
def wait():
    with condition:
        return condition.wait(40)
waiters = [spawn(wait) for _ in range(2)]
while condition.statistics().waiters < 2:
    sleep(0)
with condition:
    condition.notify_all()
assert all([result(waiter) for waiter in waiters])
""",
    "a barrier": """
barrier = ctx.Barrier(3)
assert sorted([result(waiter) for waiter in [spawn(barrier.wait) for _ in range(3)]]) == [0, 1, 2]
""",
    "an event that a thread waits for": """
event, found = ctx.Event(), []
thread = threading.Thread(target=lambda: found.append(event.wait(40)))
thread.start()
event.set()
thread.join(40)
assert found == [True]
""",
    "select": """
from multiprocessing.connection import wait
queues = [ctx.Queue(), ctx.Queue()]
waiter = spawn(wait, [queue._reader for queue in queues], 40)
sleep(0)
queues[1].put(1)
assert result(waiter) == [queues[1]._reader]
""",
}


@pytest.mark.parametrize("case", list(ALONE))
def test_greenlets_of_one_process(library: str, case: str) -> None:
    run(library, ALONE[case])


def test_a_forked_child_does_not_go_on_with_its_parents_greenlets(library: str) -> None:
    """They would do what they do in the parent a second time. What waits is the child's only greenlet."""
    run(
        library,
        """
import os
told, lock, seen = ctx.Queue(), ctx.Lock(), ctx.Value("i", 0)
parent = os.getpid()
def tick():
    while True:
        if os.getpid() != parent:
            seen.value = 1
        sleep(0.001)
ticker = spawn(tick)
sleep(0.01)
lock.acquire()
orders = ctx.Queue()
process = ctx.Process(target=lambda: (told.put("here"), lock.acquire(), orders.get(), told.put(seen.value)))
process.start()
assert told.get() == "here"
sleep(0.1)
lock.release()
orders.put("go")
assert told.get() == 0  # at its end it may run them: that is the library's affair
process.join()
kill(ticker)
""",
        "fork",
    )


def test_where_no_greenlet_was_started_a_wait_is_an_ordinary_one(library: str) -> None:
    if library == "eventlet":
        pytest.skip("it starts one when it patches")
    run(
        library,
        """
from mpipc._core import greenlets
def fail(*arguments):
    raise AssertionError
greenlets.pause = greenlets.readable = fail
assert not greenlets.are_here()
assert not ctx.Event().wait(0.01) and not ctx.Queue()._reader.poll(0.01)
""",
    )

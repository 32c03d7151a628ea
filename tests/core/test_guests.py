"""A process that changes its user id after objects exist: it goes on, and so do all that it shares with.

Root of a container has neither CAP_IPC_OWNER nor CAP_SYS_ADMIN, with which the kernel would let it do everything: the
programs here give them up first. What changes its user keeps the right to read files (support.privileges), since the
interpreter may lie where only root can read. See mpipc/_core/src/access.c.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from support import NOBODY, become, can_become, run_script
from support.privileges import as_in_a_container as as_in_a_container  # the programs below use it

from mpipc.queues import ShutDown

START = pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
OTHER = 65533
LARGE = 300_000

pytestmark = pytest.mark.skipif(
    not (can_become(NOBODY) and can_become(OTHER)), reason="not permitted to change the user"
)


def run(source: str, method: str) -> None:
    """Runs it as the main module of a program, with `mp`, a context."""
    lines = source.strip("\n").splitlines()
    run_script(
        "\n".join(
            [
                "import os, signal, sys, time, mpipc",
                "from mpipc import _core as family",
                "from support import wait_until",
                "from support.reaper import reaper_pid",
                f"sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})",
                "from test_guests import *",
                "if __name__ == '__main__':",
                "    as_in_a_container()",
                f"    mp = mpipc.get_context({method!r})",
                *lines,
            ]
        )
    )


# --- what the other process does -------------------------------------------------------------------------------------


def drop(uid: int = NOBODY) -> None:
    if os.geteuid() == 0:
        become(uid)


def use_everything(parts: dict[str, Any], answers: Any) -> None:
    """Each object from both sides: what this process tells, the parent checks."""
    drop()
    with parts["lock"], parts["rlock"]:
        parts["value"].value += 1
    parts["semaphore"].acquire()
    parts["semaphore"].release()
    assert parts["event"].wait(30)
    with parts["condition"]:
        parts["condition"].notify_all()
    parts["array"][0] = os.getuid()
    for size in (10, LARGE):
        assert parts["there"].get(timeout=30) == b"t" * size
        parts["back"].put(b"b" * size)
    assert parts["heard"].get(timeout=30) == "there"
    parts["channel"].put("back")
    with parts["channel"].subscribe() as subscription:
        assert subscription.empty()
    assert parts["barrier"].wait(30) in (0, 1)
    answers.put(os.getuid())


def everything(mp: Any) -> dict[str, Any]:
    channel = mp.Broadcast()
    return {
        "lock": mp.Lock(),
        "rlock": mp.RLock(),
        "semaphore": mp.Semaphore(1),
        "event": mp.Event(),
        "condition": mp.Condition(),
        "barrier": mp.Barrier(2),
        "value": mp.Value("i", 0),
        "array": mp.Array("i", 4),
        "there": mp.Queue(),
        "back": mp.Queue(),
        "channel": channel,
        "heard": channel.subscribe(),
        "hears": channel.subscribe(),
    }


def other_side(parts: dict[str, Any], answers: Any) -> None:
    """What the parent does while use_everything() runs."""
    parts["event"].set()
    for size in (10, LARGE):
        parts["there"].put(b"t" * size)
        assert parts["back"].get(timeout=30) == b"b" * size
    parts["channel"].put("there")
    assert [parts["hears"].get(timeout=30) for _ in range(2)] == ["there", "back"]
    parts["barrier"].wait(30)
    assert answers.get(timeout=30) == NOBODY
    assert parts["array"][0] == NOBODY
    assert parts["value"].value == 1


def echo(there: Any, back: Any) -> None:
    for _ in range(2):
        back.put((os.getuid(), there.get(timeout=30)))


def square(x: int) -> int:
    return x * x


def user(_: object = None) -> int:
    return os.getuid()


def put_when_dropped(queue: Any, thing: Any, uid: int = NOBODY) -> None:
    drop(uid)
    try:
        queue.put(thing)
        queue.close()
        queue.join_thread()
    except PermissionError:
        os._exit(7)


def hold_and_sleep(lock: Any, ready: Any) -> None:
    drop()
    lock.acquire()
    ready.set()
    signal.pause()


def change_only_the_group(there: Any, back: Any) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    back.put((os.getgid(), there.get(timeout=30)))


def dropped_parent(method: str, answers: Any) -> None:
    """A member that drops, and then has children."""
    import mpipc

    mp = mpipc.get_context(method)
    drop()
    there, back = mp.Queue(), mp.Queue()
    child = mp.Process(target=echo, args=(there, back))
    child.start()
    for thing in ("small", b"l" * LARGE):
        there.put(thing)
        answers.put(back.get(timeout=30))
    child.join(30)
    answers.put(child.exitcode)


# --- tests ------------------------------------------------------------------------------------------------------------


@START
def test_a_child_that_drops_goes_on_with_everything(method: str) -> None:
    run(
        """
    parts, answers = everything(mp), mp.Queue()
    child = mp.Process(target=use_everything, args=(parts, answers))
    child.start()
    other_side(parts, answers)
    child.join(30)
    assert child.exitcode == 0
    """,
        method,
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_parent_that_drops_goes_on_with_everything(method: str) -> None:
    """Its pool's workers and a child are root's, later children are the new user's."""
    run(
        """
    pool = mp.Pool(2)
    assert pool.map(square, range(3)) == [0, 1, 4]
    there, back = mp.Queue(), mp.Queue()
    old = mp.Process(target=echo, args=(there, back))
    old.start()
    parts, answers = everything(mp), mp.Queue()
    drop()
    assert pool.map(square, range(100)) == [i * i for i in range(100)]
    for thing in ("small", b"l" * LARGE):
        there.put(thing)
        assert back.get(timeout=30) == (0, thing)
    old.join(30)
    child = mp.Process(target=use_everything, args=(parts, answers))
    child.start()
    other_side(parts, answers)
    child.join(30)
    assert (old.exitcode, child.exitcode) == (0, 0)
    after = mp.Array("i", 70000)
    after[69999] = 5
    with mp.Pool(2) as late:
        assert late.map(user, range(4)) == [NOBODY] * 4
    pool.terminate()
    pool.join()
    """,
        method,
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_children_of_a_child_that_dropped(method: str) -> None:
    run(
        f"""
    answers = mp.Queue()
    child = mp.Process(target=dropped_parent, args=({method!r}, answers))
    child.start()
    assert answers.get(timeout=30) == (NOBODY, "small")
    assert answers.get(timeout=30) == (NOBODY, b"l" * LARGE)
    assert answers.get(timeout=30) == 0
    child.join(30)
    """,
        method,
    )


@START
def test_a_pool_whose_initializer_drops(method: str) -> None:
    run(
        """
    with mp.Pool(2, initializer=drop) as pool:
        assert pool.map(user, range(20), chunksize=1) == [NOBODY] * 20
        assert len(pool.map(bytes, [LARGE] * 4)[3]) == LARGE
        pool.close()
        pool.join()
    """,
        method,
    )


def shut_down_dropped(queue: Any, last: Any) -> None:
    """The last look at one of them, and the end of the other."""
    drop()
    got = []
    try:
        while True:
            got.append(last.get())
    except ShutDown:
        assert got == [1, 2]
    queue.shutdown(immediate=True)
    assert queue.empty()


@START
def test_queues_that_are_shut_down(method: str) -> None:
    run(
        """
    queue, last = mp.Queue(), mp.Queue()
    for each in (queue, last):
        each.put(1)
        each.put(2)
    last.shutdown()
    child = mp.Process(target=shut_down_dropped, args=(queue, last))
    child.start()
    child.join()
    assert child.exitcode == 0
    for each in (queue, last):
        try:
            each.get()
        except ShutDown:
            continue
        raise AssertionError("not shut down")
    """,
        method,
    )


def test_a_user_for_a_moment() -> None:
    run(
        """
    queue, lock = mp.Queue(), mp.Lock()
    os.seteuid(NOBODY)
    queue.put(b"x" * LARGE)
    made = mp.Queue()
    made.put(1)
    os.seteuid(0)
    assert len(queue.get(timeout=30)) == LARGE
    made.put(b"y" * LARGE)
    assert made.get(timeout=30) == 1 and len(made.get(timeout=30)) == LARGE
    with lock:
        pass
    """,
        "fork",
    )


@START
def test_the_group_is_no_matter(method: str) -> None:
    run(
        """
    there, back = mp.Queue(), mp.Queue()
    child = mp.Process(target=change_only_the_group, args=(there, back))
    child.start()
    there.put(b"x" * LARGE)
    assert back.get(timeout=30) == (NOBODY, b"x" * LARGE)
    child.join(30)
    assert child.exitcode == 0
    """,
        method,
    )


@START
def test_one_that_dropped_is_killed(method: str) -> None:
    run(
        """
    lock, ready = mp.Lock(), mp.Event()
    child = mp.Process(target=hold_and_sleep, args=(lock, ready))
    child.start()
    assert ready.wait(30)
    assert not lock.acquire(False)
    os.kill(child.pid, signal.SIGKILL)
    assert lock.acquire(timeout=30)
    child.join(30)
    """,
        method,
    )


def test_the_last_one_has_dropped() -> None:
    """And the reaper was killed: that of the other user ends the family, with what root has made."""
    run(
        """
    queue, ready, parent = mp.Queue(), mp.Queue(), os.getpid()
    queue.put(b"x" * LARGE)
    if os.fork():
        assert ready.get(timeout=30) == NOBODY
        os.kill(reaper_pid(), signal.SIGKILL)
        os._exit(0)
    drop()
    assert len(queue.get(timeout=30)) == LARGE
    ready.put(os.getuid())
    wait_until(lambda: os.getppid() != parent and not family.current().has_reaper())
    wait_until(lambda: family.current().tick() or family.current().has_reaper())
    array = mp.Array("i", 100000)
    array[5] = 1
    """,
        "fork",
    )


def test_there_is_room_for_one_other_user() -> None:
    """The second one is told so, at once, and nobody waits for it."""
    run(
        """
    queue = mp.Queue()
    first = mp.Process(target=put_when_dropped, args=(queue, "first"))
    first.start()
    assert queue.get(timeout=30) == "first"
    first.join()
    second = mp.Process(target=put_when_dropped, args=(queue, b"s" * LARGE, OTHER))
    started = time.monotonic()
    second.start()
    second.join(30)
    assert second.exitcode == 7
    os.seteuid(OTHER)
    try:
        mp.Process(target=user, args=(1,)).start()
    except PermissionError as error:
        assert "one user id beside that of its founder" in str(error), error
    else:
        raise AssertionError("it has started")
    os.seteuid(0)
    queue.put(1)
    assert queue.get(timeout=30) == 1
    """,
        "fork",
    )


def test_nobody_is_left_to_let_it_in() -> None:
    """Some ticks, and then an error that says what to do; in every call, and at once in the next one."""
    run(
        """
    queue, lock, event = mp.Queue(), mp.Lock(), mp.Event()
    queue.put(b"a" * LARGE)
    queue.get(timeout=30)
    lock.acquire()
    wait_until(reaper_pid)
    while pid := reaper_pid():  # there may be two for a moment
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: reaper_pid() != pid)
    drop()
    for call in (
        lambda: queue.put(1), lambda: queue.put(b"b" * LARGE), lambda: queue.get(timeout=30), queue.get,
        lambda: lock.acquire(timeout=30), event.wait, event.set, mp.Queue, lambda: mp.Process().start(),
    ):
        try:
            call()
        except PermissionError as error:
            assert "runs as user id 65534" in str(error), error
        else:
            raise AssertionError(call)
    """,
        "fork",
    )
    run_script("from mpipc import _core; assert _core.sweep() == 1")  # by the founder's user, later


def test_a_reaper_that_nobody_asks_sleeps() -> None:
    """It is woken by who asks, and does not look by itself."""
    run(
        """
    lock = mp.Lock()
    with open(f"/proc/{wait_until(reaper_pid)}/status") as status:
        def switches():
            status.seek(0)
            return [line for line in status if line.startswith("voluntary_ctxt_switches")]
        def sleeps():
            before = switches()
            time.sleep(0.5)
            return switches() == before
        wait_until(sleeps, message="nothing wakes the reaper")
    """,
        "fork",
    )

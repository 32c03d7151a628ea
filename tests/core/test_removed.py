"""All System V objects of a user are removed while a program runs, as logind's RemoveIPC=yes does at his last logout:
queues and sets always, segments if nobody has them attached. Every call of before says so by one exception, nobody
waits for ever, and what is made afterwards works.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import START_METHODS, kernel_objects, run_script, wait_until

import mpipc
from mpipc import ObjectsRemovedError as ObjectsRemovedError  # the programs below use it
from mpipc import sysv
from mpipc.sysv.listing import message_queues, semaphore_sets, shared_memory_segments

HERE = os.path.dirname(os.path.abspath(__file__))
CALLS = [
    "get",
    "get_in_time",
    "put",
    "simple_get",
    "broadcast_get",
    "broadcast_put",
    "join",
    "acquire",
    "semaphore",
    "event",
    "condition",
    "barrier",
    "read",
    "write",
]


SPARED = "MPIPC_TEST_SPARED"
"""In the environment of the programs: what pytest's own process has in this namespace, which is not theirs."""


def remove_all() -> None:
    spared = os.environ[SPARED].split()
    for queue in message_queues():
        if f"msg{queue.msqid}" not in spared:
            sysv.msgctl(queue.msqid, sysv.IPC_RMID)
    for found in semaphore_sets():
        if f"sem{found.semid}" not in spared:
            sysv.semctl(found.semid, 0, sysv.IPC_RMID)
    for segment in shared_memory_segments():
        if segment.nattch == 0 and f"shm{segment.shmid}" not in spared:
            with contextlib.suppress(OSError):
                sysv.shmctl(segment.shmid, sysv.IPC_RMID)


def blocking_call(mp: Any, which: str) -> Callable[[], object]:
    """One that waits for something that never comes."""
    if which == "put":
        full = mp.Queue(1)
        full.put(1)
        return lambda: full.put(2)
    if which == "join":
        tasks = mp.JoinableQueue()
        tasks.put(1)
        return tasks.join
    if which == "acquire":
        lock = mp.Lock()
        lock.acquire()
        return lock.acquire
    if which == "condition":
        condition = mp.Condition()

        def wait() -> None:
            with condition:
                condition.wait()

        return wait
    if which == "broadcast_put":
        channel = mp.Broadcast(maxsize=1)
        subscription = channel.subscribe()
        channel.put(1)
        return lambda: [channel.put(2), subscription]
    if which in ("read", "write"):
        locked = mpipc.RWLock()
        if which == "read":
            threading.Thread(target=locked.acquire_write).start()  # its own thread, which has it from then on
            wait_until(lambda: not locked.acquire_read(False))
            return locked.acquire_read
        locked.acquire_write()
        return locked.acquire_write
    return {
        "get": lambda: mp.Queue().get,
        "get_in_time": lambda: (lambda queue: lambda: queue.get(timeout=60))(mp.Queue()),
        "simple_get": lambda: mp.SimpleQueue().get,
        "broadcast_get": lambda: mp.Broadcast().subscribe().get,
        "semaphore": lambda: mp.Semaphore(0).acquire,
        "event": lambda: mp.Event().wait,
        "barrier": lambda: mp.Barrier(2).wait,
    }[which]()  # type: ignore[no-untyped-call]


def sleeps() -> bool:
    """Is a thread of this process in semtimedop(2) or msgrcv(2)?"""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if task.name != str(os.getpid()) and task.joinpath("stat").read_text().rpartition(") ")[2][0] == "S":
                return True
    return False


def answer_to(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it came back")


def program(source: str, method: str = "fork") -> str:
    lines = source.strip("\n").splitlines()
    text = [
        "import os, sys, time, threading, mpipc",
        f"sys.path.insert(0, {HERE!r})",
        "from test_removed import *",
        "if __name__ == '__main__':",
        f"    mp = mpipc.get_context({method!r})",
        *lines,
    ]
    here = [f"{kind}{number}" for kind, ids in kernel_objects()._asdict().items() for number in ids]
    return run_script("\n".join(text), env={SPARED: " ".join(here)}).stdout


@pytest.mark.parametrize("which", CALLS)
def test_who_waits_is_told(which: str) -> None:
    program(f"""
    answers = []
    call = blocking_call(mp, {which!r})
    thread = threading.Thread(target=lambda: answers.append(answer_to(call)))
    thread.start()
    wait_until(sleeps)
    remove_all()
    thread.join(30)
    assert not thread.is_alive(), "it waits for ever"
    error, = answers
    assert type(error) is ObjectsRemovedError, repr(error)
    assert isinstance(error, BrokenPipeError) and isinstance(error, EOFError)
    for word in ("ipcrm", "RemoveIPC=no", "loginctl enable-linger"):
        assert word in str(error), error
    if {which!r} != "write":  # which this thread has
        assert type(answer_to(call)) is ObjectsRemovedError
    """)


@pytest.mark.parametrize("method", START_METHODS)
def test_what_is_made_afterwards_works(method: str) -> None:
    program(
        """
    lock, old = mp.Lock(), mp.Queue()
    remove_all()
    for _ in range(2):
        queue, event = mp.Queue(), mp.Event()
        child = mp.Process(target=put_and_set, args=(queue, event))
        child.start()
        assert queue.get(timeout=30) == 5 and event.wait(30)
        child.join(30)
        assert child.exitcode == 0
        with mp.Pool(2) as pool:
            assert pool.map(abs, range(-3, 0)) == [3, 2, 1]
    if method_is_not_fork:
        assert type(answer_to(mp.Process(target=put_and_set, args=(old, event)).start)) is ObjectsRemovedError
    """.replace("method_is_not_fork", repr(method != "fork")),
        method,
    )


def put_and_set(queue: Any, event: Any) -> None:
    queue.put(5)
    event.set()


def test_a_pool_that_runs_breaks() -> None:
    program("""
    pool = mp.Pool(2)
    result = pool.map_async(time.sleep, [0.05] * 1000, chunksize=1)
    remove_all()
    assert type(answer_to(lambda: result.get(30))).__name__ == "BrokenPoolError"
    pool.terminate()
    pool.join()
    """)


def test_a_manager_goes_on() -> None:
    program("""
    with mp.Manager() as manager:
        shared = manager.dict()
        remove_all()
        shared[1] = 2
        assert dict(shared) == {1: 2}
    """)


def test_nothing_of_it_is_left() -> None:
    """The reaper outlives the set that it waited at, and removes the rest when the last one has gone."""
    before = kernel_objects()
    pid = int(
        program("""
    array, queue = mp.Array("i", 10000), mp.Queue()
    from support.reaper import wait_for_reaper
    print(wait_for_reaper(), flush=True)
    remove_all()
    """)
    )
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout=30)
    assert kernel_objects().minus(before).count == 0

"""What the processes of tests/core/test_end_with_parent.py run."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import mpipc


def wait_for_ever(told: Any, *_: Any) -> None:
    told.send(os.getpid())
    while True:
        signal.pause()


def wait_in_a_lock(told: Any, lock: Any) -> None:
    told.send(os.getpid())
    lock.acquire()


def start_and_wait(told: Any, method: str, plans: list[Any], *arguments: Any) -> None:
    """A parent: starts a child for each plan, (end_with_parent, target, arguments), tells their pids, and waits."""
    context = mpipc.get_context(method)
    children = []
    for ends, target, more in plans:
        child = context.Process(target=target, args=(told, *more, *arguments))
        child.end_with_parent = ends
        child.start()
        children.append(child)
    told.send([child.pid for child in children])
    while True:
        signal.pause()


def start_in_a_thread_and_wait(told: Any, method: str) -> None:
    """The thread that has started the child ends, and the process lives."""
    thread = threading.Thread(target=start_one, args=(told, method))
    thread.start()
    thread.join()
    told.send("thread over")
    while True:
        signal.pause()


def start_one(told: Any, method: str) -> None:
    mpipc.get_context(method).Process(target=wait_for_ever, args=(told,), end_with_parent=True).start()


def start_and_return(told: Any, method: str) -> None:
    """Ends in the normal way, and waits for its child in that."""
    mpipc.get_context(method).Process(target=take_a_while, args=(told,), end_with_parent=True).start()


def take_a_while(told: Any) -> None:
    mpipc.parent_process().is_alive()  # type: ignore[union-attr]
    for _ in range(200_000):
        pass
    told.send("done")


def end_at_once(told: Any, method: str) -> None:
    """Ends without waiting for anybody, and not by a signal."""
    start_one(told, method)
    told.send("leaving")
    os._exit(0)


def start_manager_and_wait(told: Any, method: str, ends: bool) -> None:
    manager = mpipc.get_context(method).Manager(end_with_parent=ends)
    told.send(manager._process.pid)
    while True:
        signal.pause()

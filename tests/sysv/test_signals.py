"""Signals during calls that wait: the handler runs, the call goes on, the deadline stays, Ctrl-C gets out.

Each body runs in a child, whose main thread waits. The parent sends the signals.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import wait_until

from mpipc import sysv
from mpipc.sysv import GETVAL, IPC_SET

from .conftest import Child, Make

ForkChild = Callable[..., Child]


class Waits:
    """The calls that wait, on objects that make them wait, and what lets them go on."""

    def __init__(self, queue: int, full: int, semset: int) -> None:
        self.queue, self.full, self.semset = queue, full, semset

    def calls(self) -> dict[str, tuple[str, Callable[[], object], Callable[[], object]]]:
        """name: (kernel function it sleeps in, call, what ends its waiting)"""
        queue, full, semset = self.queue, self.full, self.semset
        return {
            "msgrcv": ("msgrcv", lambda: sysv.msgrcv(queue), lambda: sysv.msgsnd(queue, 1, b"")),
            "msgrcv_into": (
                "msgrcv",
                lambda: sysv.msgrcv_into(queue, bytearray(1)),
                lambda: sysv.msgsnd(queue, 1, b""),
            ),
            "msgsnd": ("msgsnd", lambda: sysv.msgsnd(full, 1, b"2"), lambda: sysv.msgrcv(full)),
            "semop": ("semtimedop", lambda: sysv.semop(semset, [(0, -1)]), lambda: sysv.semop(semset, [(0, 1)])),
            "semtimedop": (
                "semtimedop",
                lambda: sysv.semtimedop(semset, [(0, -1)], 3600),
                lambda: sysv.semop(semset, [(0, 1)]),
            ),
            "semtimedop for ever": (
                "semtimedop",
                lambda: sysv.semtimedop(semset, [(0, -1)]),
                lambda: sysv.semop(semset, [(0, 1)]),
            ),
        }


@pytest.fixture
def waits(new_queue: Make, new_set: Make) -> Waits:
    full = new_queue(sysv.IPC_PRIVATE)
    sysv.msgctl(full, IPC_SET, msg_qbytes=1)
    sysv.msgsnd(full, 1, b"1")
    return Waits(new_queue(sysv.IPC_PRIVATE), full, new_set(sysv.IPC_PRIVATE, 2))


NAMES = list(Waits(0, 0, 0).calls())


@pytest.mark.parametrize("name", NAMES)
def test_handler_runs_and_the_call_goes_on(name: str, waits: Waits, fork_child: ForkChild) -> None:
    where, call, end = waits.calls()[name]

    def body() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: sysv.semop(waits.semset, [(1, 1)]))
        call()
        assert sysv.semctl(waits.semset, 1, GETVAL) == 2

    child = fork_child(body)
    for count in (1, 2):
        child.wait_asleep(where)
        os.kill(child.pid, signal.SIGUSR1)
        wait_until(lambda count=count: sysv.semctl(waits.semset, 1, GETVAL) == count)  # type: ignore[misc]
    child.wait_asleep(where)
    end()
    child.join()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_handler_raises_gets_out(name: str, waits: Waits, fork_child: ForkChild) -> None:
    where, call, _ = waits.calls()[name]

    def handler(*_: object) -> None:
        raise ZeroDivisionError("from the handler")

    def body() -> None:
        signal.signal(signal.SIGUSR1, handler)
        with pytest.raises(ZeroDivisionError, match="from the handler"):
            call()

    child = fork_child(body)
    child.wait_asleep(where)
    os.kill(child.pid, signal.SIGUSR1)
    child.join()


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c(name: str, waits: Waits, fork_child: ForkChild) -> None:
    where, call, _ = waits.calls()[name]

    def body() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            call()

    child = fork_child(body)
    child.wait_asleep(where)
    os.kill(child.pid, signal.SIGINT)
    child.join()


@pytest.mark.parametrize("name", NAMES)
def test_handler_may_end_the_wait_itself(name: str, waits: Waits, fork_child: ForkChild) -> None:
    where, call, end = waits.calls()[name]

    def body() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: end())
        call()

    child = fork_child(body)
    child.wait_asleep(where)
    os.kill(child.pid, signal.SIGUSR1)
    child.join()


def test_signals_do_not_prolong_a_timeout(semset: int, fork_child: ForkChild) -> None:
    """They come faster than the timeout, without end: a call that starts its time again would never come back."""
    timeout = 0.2

    def body() -> None:
        handled: list[Any] = []
        signal.signal(signal.SIGALRM, lambda *_: handled.append(None))
        signal.setitimer(signal.ITIMER_REAL, timeout / 20, timeout / 20)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            sysv.semtimedop(semset, [(0, -1)], timeout)
        assert time.monotonic() - start >= timeout
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert handled

    fork_child(body).join()


def test_a_handler_that_outlasts_the_timeout(semset: int, fork_child: ForkChild) -> None:
    def body() -> None:
        def handler(*_: object) -> None:
            deadline = time.monotonic() + 0.1
            while time.monotonic() < deadline:
                pass

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(TimeoutError):
            sysv.semtimedop(semset, [(0, -1)], 0.05)

    fork_child(body).join()

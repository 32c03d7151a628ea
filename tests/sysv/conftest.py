"""Objects that go away with the test, and children in which a test may change user, namespace or signal handlers."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import NoReturn

import pytest
from support import NOBODY, become, can_become, wait_until
from support.privileges import isolate_ipc

from mpipc import sysv

Make = Callable[..., int]


def _factory(get: Callable[..., int], remove: Callable[[int], None]) -> Iterator[Make]:
    made: list[int] = []

    def make(*args: int, **options: int) -> int:
        made.append(get(*args, **options))
        return made[-1]

    yield make
    for number in made:
        with suppress(sysv.RemovedError):
            remove(number)


@pytest.fixture
def new_queue() -> Iterator[Make]:
    """msgget(), and IPC_RMID after the test."""
    yield from _factory(sysv.msgget, lambda number: sysv.msgctl(number, sysv.IPC_RMID))


@pytest.fixture
def new_set() -> Iterator[Make]:
    """semget(), and IPC_RMID after the test."""
    yield from _factory(sysv.semget, lambda number: sysv.semctl(number, 0, sysv.IPC_RMID))


@pytest.fixture
def new_segment() -> Iterator[Make]:
    """shmget(), and IPC_RMID after the test."""
    yield from _factory(sysv.shmget, lambda number: sysv.shmctl(number, sysv.IPC_RMID))


@pytest.fixture
def queue(new_queue: Make) -> int:
    return new_queue(sysv.IPC_PRIVATE)


@pytest.fixture
def semset(new_set: Make) -> int:
    """A set of three semaphores."""
    return new_set(sysv.IPC_PRIVATE, 3)


@pytest.fixture
def segment(new_segment: Make) -> int:
    """A segment of 10000 bytes, which is no whole number of pages."""
    return new_segment(sysv.IPC_PRIVATE, 10000)


Body = Callable[[], object]


class Child:
    """A forked process that runs `body`; join() raises what it raised.

    What the body needs is in its closure, and what comes out of it are its assertions.
    """

    def __init__(self, body: Body, *, user: int | None = None, namespace: bool = False) -> None:
        self._receive, self._send = Pipe(duplex=False)
        self.pid = os.fork()
        if self.pid == 0:
            self._run(body, user, namespace)
        self._send.close()
        self.status: int | None = None

    def _run(self, body: Body, user: int | None, namespace: bool) -> NoReturn:
        outcome = "ok", ""
        try:
            if namespace and not isolate_ipc():
                pytest.skip("no permission to make an IPC namespace")
            if user is not None:
                become(user)
            body()
        except pytest.skip.Exception as skip:
            outcome = "skip", str(skip)
        except BaseException:
            outcome = "error", traceback.format_exc()
        finally:
            with suppress(OSError):
                self._send.send(outcome)
            os._exit(0)

    def wait_asleep(self, call: str) -> None:
        wait_until(lambda: asleep_in(self.pid, call), message=f"process {self.pid} sleeps in {call}")

    def wait_dead(self) -> None:
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]

    def join(self) -> None:
        try:
            kind, text = self._receive.recv()
        except EOFError:
            kind, text = "error", "the child died without a word"
        self.wait_dead()
        self._receive.close()
        if kind == "skip":
            pytest.skip(text)
        assert kind == "ok", text


def asleep_in(task: int, call: str) -> bool:
    """Does the process or thread with this id sleep in the system call? See wchan in proc(5)."""
    return call in Path(f"/proc/{task}/wchan").read_text()


@pytest.fixture
def fork_child() -> Iterator[Callable[..., Child]]:
    """Starts a Child; one that is left at the end of the test is killed."""
    children: list[Child] = []

    def start(body: Body, **options: bool | int) -> Child:
        children.append(Child(body, **options))  # type: ignore[arg-type]
        return children[-1]

    yield start
    for child in children:
        if child.status is None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, 9)
            child.wait_dead()


@pytest.fixture
def as_nobody(fork_child: Callable[..., Child]) -> Callable[[Body], None]:
    """Runs a body as an ordinary user who is not the owner of this process's objects."""
    if not can_become(NOBODY):
        pytest.skip("only root can become another user")
    return lambda body: fork_child(body, user=NOBODY).join()


@pytest.fixture
def in_namespace(fork_child: Callable[..., Child]) -> Callable[[Body], None]:
    """Runs a body in an IPC namespace of its own, whose limits it may set with set_limit()."""
    return lambda body: fork_child(body, namespace=True).join()


def set_limit(name: str, value: str | int) -> None:
    """Set a sysctl below kernel. for this IPC namespace."""
    try:
        Path("/proc/sys/kernel", name).write_text(f"{value}\n")
    except OSError as error:
        pytest.skip(f"no permission to change kernel.{name}: {error}")

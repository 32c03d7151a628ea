"""The processes of a round."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from soak.board import DONE, IN_HAND, INTERRUPTIONS, OPERATIONS, STOP, UNCERTAIN, WORKERS, Board

T = TypeVar("T")

STACKS = signal.SIGUSR2
INTERRUPTION = signal.SIGUSR1


class Interrupted(Exception):
    """What the handler of INTERRUPTION raises, wherever the process is; but only inside Worker.call()."""


class Handler:
    """Raises when `armed`, once. Python runs handlers in the main thread only, between two instructions of Python or in
    a call that looks for signals."""

    def __init__(self) -> None:
        self.armed = False
        self.raised = 0
        signal.signal(INTERRUPTION, self.handle)

    def handle(self, _number: int, _frame: Any) -> None:
        if self.armed:
            self.armed = False
            self.raised += 1
            raise Interrupted


class Worker:
    """A process of the crew, seen from inside."""

    def __init__(self, path: str, index: int, seed: int, fault: str = "") -> None:
        self.board = Board(path)
        self.fault = fault
        self.row = self.board.row(index)
        self.index = index
        self.rng = random.Random(seed)
        self.handler = Handler()

    @property
    def running(self) -> bool:
        return not self.board.head[STOP]

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """One operation, in which the handler may raise. Interrupted tells nothing of whether it has happened."""
        self.row[OPERATIONS] += 1
        try:
            self.handler.armed = True
            result = function(*arguments, **options)
            self.handler.armed = False
        except Interrupted:
            self.row[INTERRUPTIONS] += 1
            raise
        finally:
            self.handler.armed = False
        return result

    def about_to(self, count: int = 1) -> None:
        """From now on, until done(), so many things are in the hands of this process."""
        self.row[IN_HAND] = count

    def done(self, count: int = 1) -> None:
        self.row[DONE] += count
        self.row[IN_HAND] = 0

    def gave_up(self) -> None:
        """Nothing has happened."""
        self.row[IN_HAND] = 0

    def is_uncertain(self) -> None:
        """It was interrupted: what was in its hands may be done, or gone."""
        self.row[UNCERTAIN] += self.row[IN_HAND]
        self.row[IN_HAND] = 0

    def pause(self) -> None:
        """A little while, now and then."""
        if self.rng.random() < 0.1:
            select.select([], [], [], self.rng.expovariate(2000))


def run(
    work: Callable[..., None], path: str, index: int, seed: int, role: str, fault: str, objects: dict[str, Any]
) -> None:
    """The target of the processes."""
    faulthandler.register(STACKS)
    me = Worker(path, index, seed, fault)
    try:
        work(me, role, **objects)
    except BaseException:
        me.board.wrong(f"{role} {index} (pid {os.getpid()}): {traceback.format_exc()}")
        raise


class Member:
    """A process of the crew, seen from outside."""

    def __init__(self, process: Any, index: int, role: str) -> None:
        self.process, self.index, self.role = process, index, role
        self.handle = os.pidfd_open(process.pid)
        self.killed = False

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def ended(self, timeout: float = 0.0) -> bool:
        return bool(select.select([self.handle], [], [], timeout)[0])

    def bury(self) -> None:
        self.process.join()
        os.close(self.handle)


class Crew:
    """All of them. Started from the main thread; struck from the storm's."""

    def __init__(
        self,
        context: Any,
        work: Callable[..., None],
        board: Board,
        rng: random.Random,
        fault: str,
        objects: dict[str, Any],
    ) -> None:
        self.context, self.work, self.board, self.rng = context, work, board, rng
        self.fault, self.objects = fault, objects
        self.members: list[Member] = []
        self.to_replace: list[str] = []
        self.started = 0
        self.lost = 0
        """What was in the hands of those who were killed."""

    def start(self, role: str) -> None:
        if self.started == WORKERS:
            return
        arguments = (self.work, self.board.path, self.started, self.rng.getrandbits(32), role, self.fault, self.objects)
        process = self.context.Process(target=run, args=arguments)
        process.start()
        self.members.append(Member(process, self.started, role))
        self.started += 1

    def kill(self, member: Member) -> None:
        member.killed = True
        member.send(signal.SIGKILL)
        member.ended(60)
        self.lost += self.board.row(member.index)[IN_HAND]
        self.to_replace.append(member.role)

    def replace(self) -> None:
        while self.to_replace:
            self.start(self.to_replace.pop())

    def alive(self) -> list[Member]:
        return [member for member in self.members if not member.ended()]

    @property
    def uncertain(self) -> int:
        """How many operations nobody knows the end of."""
        return self.lost + self.board.sum(UNCERTAIN)

    def bury(self) -> list[str]:
        """When all have ended. Returns what is wrong with how they did."""
        complaints = []
        for member in self.members:
            member.bury()
            expected = (0, -signal.SIGKILL) if member.killed else (0,)
            if member.process.exitcode not in expected:
                complaints.append(f"{member.role} {member.index} ended with {member.process.exitcode}")
        self.members = []
        return complaints

"""What is done to the processes of a round: decided before it begins, done while it runs."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from support import ProcessInfo, ipc_namespace, processes

from soak.crew import INTERRUPTION, Crew

TICK = 1.0
"""After so many seconds a waiter looks whether what it waits for is gone (MP_TICK_NS of family.h)."""


class Blow(NamedTuple):
    at: float
    what: str
    whom: float
    """0 to 1, of those that are there then."""
    seconds: float = 0.0


def forecast(rng: random.Random, length: float, costly: bool) -> list[Blow]:
    """The blows of a round. `costly`: to start another process in place of a killed one takes long."""
    blows = []
    rates = {
        "kill": rng.choice((0.0, 1.0, 4.0)) * (0.4 if costly else 1.0),
        "interrupt": rng.choice((0.0, 5.0, 60.0)),
        "stop": rng.choice((0.0, 0.5, 3.0)),
        "reaper": rng.choice((0.0, 0.0, 0.3)),
    }
    for what, rate in rates.items():
        at = rng.expovariate(rate) if rate else length
        while at < length:
            seconds = rng.choice((0.01, 0.1, 0.3)) if rng.random() < 0.9 else rng.uniform(1.0, 3.0) * TICK
            blows.append(Blow(at, what, rng.random(), seconds if what == "stop" else 0.0))
            at += rng.expovariate(rate)
    return sorted(blows)


def strike(process: ProcessInfo, number: int) -> bool:
    """Sends the signal to this process and no other: its pid may be somebody else's by now."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if process.ipc_namespace() != ipc_namespace():
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def neighbours() -> list[ProcessInfo]:
    """All other processes of this IPC namespace."""
    here = ipc_namespace()
    return [each for each in processes().values() if each.pid != os.getpid() and each.ipc_namespace() == here]


class Storm(threading.Thread):
    """Strikes at members of the crew, or at what `find_victims` finds where a pool has started the processes itself."""

    def __init__(
        self, blows: list[Blow], crew: Crew | None, find_victims: Callable[[], list[ProcessInfo]] | None = None
    ) -> None:
        super().__init__(name="storm", daemon=True)
        self.blows, self.crew, self.find_victims = blows, crew, find_victims
        self.counts: Counter[str] = Counter()
        self.calm = threading.Event()
        self.stopped: list[tuple[float, Callable[[int], Any]]] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            began = time.monotonic()
            for blow in self.blows:
                self.wait_until(began + blow.at)
                if self.calm.is_set():
                    break
                self.do(blow)
        except BaseException as error:
            self.failure = error
        finally:
            for _, send in self.stopped:
                send(signal.SIGCONT)

    def wait_until(self, when: float) -> None:
        """Those that were stopped go on meanwhile."""
        while not self.calm.is_set():
            due = min([when, *(at for at, _ in self.stopped)])
            self.calm.wait(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            for each in [each for each in self.stopped if each[0] <= now]:
                self.stopped.remove(each)
                each[1](signal.SIGCONT)
            if now >= when:
                return

    def do(self, blow: Blow) -> None:
        if blow.what == "reaper":
            reapers = [each for each in neighbours() if each.name == "mpipc-reaper"]
            self.counts["reapers"] += sum(strike(each, signal.SIGKILL) for each in reapers)
            return
        if self.crew is not None:
            members = self.crew.alive()
            if not members:
                return
            member = members[int(blow.whom * len(members))]
            if blow.what == "kill":
                self.crew.kill(member)
                self.counts["kills"] += 1
                return
            send: Callable[[int], Any] = member.send
        else:
            victims = self.find_victims() if self.find_victims is not None else []
            if not victims:
                return
            victim = victims[int(blow.whom * len(victims))]
            send = lambda number: strike(victim, number)  # noqa: E731
            if blow.what == "kill":
                self.counts["kills"] += 1  # before: what it has broken may be seen at once
                send(signal.SIGKILL)
                return
        if blow.what == "stop":
            send(signal.SIGSTOP)
            self.counts["stops"] += 1
            self.stopped.append((time.monotonic() + blow.seconds, send))
        else:
            send(INTERRUPTION)

    def end(self) -> None:
        """Nobody is struck any more, and nobody stands still."""
        self.calm.set()
        self.join()
        if self.failure is not None:
            raise self.failure

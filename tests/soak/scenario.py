"""What a round is made of."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from support import dump_stacks

import mpipc
from soak.board import PAUSE, STOP, Board
from soak.crew import Crew
from soak.storm import Storm, forecast, neighbours

PATIENCE = float(os.environ.get("MPIPC_SOAK_PATIENCE", "40"))
"""Seconds that something may take that has to come at once. A process is stopped for 3 at most."""


class Wrong(AssertionError):
    """A check has failed."""


def expect(condition: object, text: str) -> None:
    if not condition:
        raise Wrong(text)


class Scenario:
    """One round of one kind. Subclasses say which objects there are, what the processes do with them, and what must be
    true at the end; `work` runs in the processes, all the rest in the runner."""

    roles: tuple[str, ...] = ("worker",)
    """What each of the processes is, as many as there are names; one that is killed is followed by one like it."""

    faults: tuple[str, ...] = ()
    """Ways to break the round on purpose: tests see to it that the checks find them."""

    def __init__(self, method: str, rng: random.Random, length: float, folder: Path, fault: str = "") -> None:
        self.method, self.rng, self.length, self.fault = method, rng, length, fault
        self.context: Any = mpipc.get_context(method)
        self.board = Board.make(folder)
        self.counts: Counter[str] = Counter()

    # --- for subclasses ---

    def make(self) -> dict[str, Any]:
        """The objects, by the names of the parameters of `work`."""
        raise NotImplementedError

    @staticmethod
    def work(me: Any, role: str, **objects: Any) -> None:
        raise NotImplementedError

    def tick(self) -> None:
        """Called all the time while the storm goes on."""

    def settle(self) -> None:
        """Called once, when the storm is over and everybody still works."""

    def let_go(self) -> None:
        """Called again and again, until all have seen that they are to end."""

    def check(self) -> None:
        raise NotImplementedError

    # --- the round ---

    def run(self) -> None:
        self.objects = self.make()
        self.crew = Crew(self.context, type(self).work, self.board, self.rng, self.fault, self.objects)
        for role in self.roles:
            self.crew.start(role)
        storm = Storm(forecast(self.rng, self.length, self.method != "fork"), self.crew)
        storm.start()
        until = time.monotonic() + self.length
        try:
            while time.monotonic() < until and not self.board.what_is_wrong():
                self.tick()
                self.crew.replace()
                time.sleep(0.005)
        finally:
            storm.end()
        self.crew.replace()
        self.counts += storm.counts
        self.report()
        self.settle()
        self.report()
        self.board.head[STOP] = 1
        self.wait_for(self.all_have_ended, "the end of the processes")
        complaints = self.crew.bury()
        self.report()
        expect(not complaints, "; ".join(complaints))
        self.check()
        self.counts["operations"] += self.board.sum(0)
        self.counts["exceptions"] += self.board.sum(4)
        self.counts["processes"] += self.crew.started

    def all_have_ended(self) -> bool:
        self.let_go()
        return not self.crew.alive()

    def report(self) -> None:
        expect(not self.board.what_is_wrong(), self.board.what_is_wrong())

    def wait_for(self, condition: Any, what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            self.report()
            if time.monotonic() > until:
                raise Hang(what)
            time.sleep(0.005)

    def pause_everybody(self) -> None:
        self.board.head[PAUSE] = 1

    def close(self) -> None:
        self.__dict__.pop("objects", None)
        self.__dict__.pop("crew", None)
        self.board.close()


class Hang(Wrong):
    """Something that should have come has not. To make one shows where everybody is at that moment."""

    def __init__(self, what: str) -> None:
        super().__init__(f"waited {PATIENCE:g} s in vain for {what}")
        print(dump_stacks([os.getpid(), *(each.pid for each in neighbours())]), file=sys.stderr, flush=True)

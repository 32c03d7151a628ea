"""RWLock against a model: processes acquire, wait, release, fork, end and are killed in an order that hypothesis
chooses, and after each step the lock says what the model says.

What must come out is said in the docstring of mpipc.synchronize.RWLock; here it stands once more, as a few lines of
Python. What happens when a process dies in the middle of an operation is the subject of native/rwlock_scenarios.h.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Client, Connection
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from support import wait_until
from support.agents import Agent, AgentMachine, run_machine


class Model:
    """What each process has. A process is named by its pid, and has one thread."""

    def __init__(self) -> None:
        self.reads: dict[int, int] = {}
        self.writer: int | None = None
        self.depth = 0
        self.died = False
        self.waits: tuple[int, str] | None = None
        """Who waits, and for what. A writer waits for readers only."""

    def acquire_read(self, pid: int) -> bool:
        has_it = self.reads.get(pid) or self.writer == pid
        if not has_it and (self.writer is not None or (self.waits is not None and self.waits[1] == "acquire_write")):
            return False
        self.reads[pid] = self.reads.get(pid, 0) + 1
        return True

    def acquire_write(self, pid: int) -> Any:
        if self.writer == pid:
            self.depth += 1
            return True
        if self.reads.get(pid):
            return "RuntimeError"
        if self.writer is not None or self.reads or self.waits is not None:
            return False
        self.writer, self.depth = pid, 1
        return True

    def release_read(self, pid: int) -> Any:
        if pid not in self.reads:
            return "RuntimeError"
        self.reads[pid] -= 1
        if self.reads[pid] == 0:
            del self.reads[pid]
        return None

    def release_write(self, pid: int) -> Any:
        if self.writer != pid:
            return "RuntimeError"
        self.depth -= 1
        if self.depth == 0:
            self.writer, self.died = None, False
        return None

    def dead(self, pid: int) -> None:
        self.reads.pop(pid, None)
        if self.writer == pid:
            self.writer, self.died = None, True
        if self.waits is not None and self.waits[0] == pid:
            self.waits = None

    def let_in(self) -> int | None:
        """The pid of the waiter, if it has it from now on."""
        if self.waits is None or self.writer is not None:
            return None
        pid, call = self.waits
        if call == "acquire_write":
            if self.reads:
                return None
            self.writer, self.depth = pid, 1
        else:
            self.reads[pid] = 1
        self.waits = None
        return pid

    def statistics(self) -> tuple[int, int | None, int, int]:
        kind = None if self.waits is None else self.waits[1]
        return len(self.reads), self.writer, int(kind == "acquire_read"), int(kind == "acquire_write")


def outcome(lock: Any, call: str, *args: Any) -> Any:
    try:
        return getattr(lock, call)(*args)
    except RuntimeError:
        return "RuntimeError"


def agent(lock: Any, connection: Connection) -> None:
    """Does with the lock what it is told to, and tells what came of it."""
    connection.send(os.getpid())
    forked = False
    while True:
        command, *arguments = connection.recv()
        if command == "fork":
            if os.fork() == 0:
                connection.close()
                connection, forked = Client(arguments[0]), True
                connection.send(os.getpid())
        elif command == "end" and not forked:
            return
        elif command == "end":  # nothing of pytest's is to be run
            os._exit(0)
        else:
            connection.send(outcome(lock, command, *arguments))


class RWLockMachine(AgentMachine):
    most = 5

    @initialize()
    def begin(self) -> None:
        self.model = Model()
        self.lock = self.begin_with(agent, lambda context: context.RWLock())

    def is_waiting(self, one: Agent) -> bool:
        return self.model.waits is not None and self.model.waits[0] == one.pid

    def waiter_may_go_on(self) -> None:
        pid = self.model.let_in()
        if pid is not None:
            assert next(one for one in self.agents if one.pid == pid).answer() is True

    @rule(number=AgentMachine.numbers, call=st.sampled_from(["acquire_read", "acquire_write"]))
    def acquires(self, number: int, call: str) -> None:
        one = self.idle(number)
        if one is None:
            assert outcome(self.lock, call, False) == getattr(self.model, call)(os.getpid())
        else:
            assert one.call(call, False) == getattr(self.model, call)(one.pid)

    @rule(number=AgentMachine.numbers, call=st.sampled_from(["release_read", "release_write"]), times=st.integers(1, 3))
    def releases(self, number: int, call: str, times: int) -> None:
        one = self.idle(number)
        for _ in range(times):
            if one is None:
                assert outcome(self.lock, call) == getattr(self.model, call)(os.getpid())
            else:
                assert one.call(call) == getattr(self.model, call)(one.pid)
        self.waiter_may_go_on()

    @precondition(lambda self: self.model.waits is None and (self.model.writer is not None or self.model.reads))
    @rule(number=AgentMachine.numbers)
    def begins_to_wait(self, number: int) -> None:
        one, model = self.idle(number), self.model
        if one is None or one.pid in model.reads or model.writer == one.pid:
            return
        model.waits = one.pid, "acquire_write" if model.writer is None else "acquire_read"
        one.connection.send((model.waits[1], True, 60))
        wait_until(lambda: self.lock.statistics().waiters == 1, timeout=60)

    @rule(number=AgentMachine.numbers)
    def ends(self, number: int) -> None:
        one = self.idle(number)
        if one is not None:
            self.agents.remove(one)
            one.connection.send(("end",))
            one.is_over()
            self.has_died(one)
            self.replace()

    def has_died(self, one: Agent) -> None:
        self.model.dead(one.pid)
        self.waiter_may_go_on()

    @invariant()
    def is_as_in_the_model(self) -> None:
        lock, model = self.lock, self.model
        assert lock.statistics() == model.statistics()
        assert lock.owner_died is model.died
        assert (lock._reads(), lock._is_writing()) == self.has(os.getpid())
        for one in self.agents:
            if not self.is_waiting(one):
                assert (one.call("_reads"), one.call("_is_writing")) == self.has(one.pid)

    def has(self, pid: int) -> tuple[int, bool]:
        return self.model.reads.get(pid, 0), self.model.writer == pid


@pytest.mark.slow_but("forkserver")
@pytest.mark.parametrize(
    ("method", "examples"), [("fork", 60), ("spawn", 2), ("forkserver", 2)], ids=["fork", "spawn", "forkserver"]
)
@pytest.mark.timeout(600)
def test_against_the_model(method: str, examples: int) -> None:
    run_machine(RWLockMachine, method, examples)

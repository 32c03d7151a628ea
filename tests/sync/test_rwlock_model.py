"""RWLock against a model: processes acquire, wait, release, fork, end and are killed in an order that hypothesis
chooses, and after each step the lock says what the model says.

What must come out is said in the docstring of mpipc.synchronize.RWLock; here it stands once more, as a few lines of
Python. What happens when a process dies in the middle of an operation is the subject of native/rwlock_scenarios.h.
"""

from __future__ import annotations

import os
import select
import signal
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import wait_until

import mpipc
from mpipc import _core as family

MOST_AGENTS = 5


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


class Agent:
    """A process, seen from here."""

    def __init__(self, connection: Connection, process: Any = None) -> None:
        self.connection, self.process = connection, process
        self.pid: int = self.answer()
        self.handle = os.pidfd_open(self.pid)

    def call(self, *command: Any) -> Any:
        self.connection.send(command)
        return self.answer()

    def answer(self) -> Any:
        assert self.connection.poll(60), "it hangs"
        return self.connection.recv()

    def is_over(self) -> None:
        """Returns when the process has gone and recovery has dealt with it."""
        assert select.select([self.handle], [], [], 60)[0]
        os.close(self.handle)
        self.connection.close()
        if self.process is not None:
            self.process.join()

        def recovered() -> bool:
            family.current().recover()
            return all(pid != self.pid for _, _, pid in family.current().processes())

        wait_until(recovered, timeout=60)

    def kill(self) -> None:
        signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        self.is_over()


class RWLockMachine(RuleBasedStateMachine):
    method = "fork"

    @initialize()
    def begin(self) -> None:
        self.context: Any = mpipc.get_context(self.method)
        self.lock = self.context.RWLock()
        self.model = Model()
        self.listener = Listener(family="AF_UNIX")
        self.agents: list[Agent] = []
        for _ in range(3):
            self.start()

    def start(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=agent, args=(self.lock, theirs))
        process.start()
        theirs.close()
        self.agents.append(Agent(ours, process))

    def waits(self, one: Agent) -> bool:
        return self.model.waits is not None and self.model.waits[0] == one.pid

    def idle(self, number: int) -> Agent | None:
        """One of the agents that does not wait; None is this process."""
        found = [each for each in self.agents if not self.waits(each)]
        return None if number % (len(found) + 1) == 0 else found[number % (len(found) + 1) - 1]

    def waiter_may_go_on(self) -> None:
        pid = self.model.let_in()
        if pid is not None:
            assert next(one for one in self.agents if one.pid == pid).answer() is True

    numbers = st.integers(0, 60)

    @rule(number=numbers, call=st.sampled_from(["acquire_read", "acquire_write"]))
    def acquires(self, number: int, call: str) -> None:
        one = self.idle(number)
        if one is None:
            assert outcome(self.lock, call, False) == getattr(self.model, call)(os.getpid())
        else:
            assert one.call(call, False) == getattr(self.model, call)(one.pid)

    @rule(number=numbers, call=st.sampled_from(["release_read", "release_write"]), times=st.integers(1, 3))
    def releases(self, number: int, call: str, times: int) -> None:
        one = self.idle(number)
        for _ in range(times):
            if one is None:
                assert outcome(self.lock, call) == getattr(self.model, call)(os.getpid())
            else:
                assert one.call(call) == getattr(self.model, call)(one.pid)
        self.waiter_may_go_on()

    @precondition(lambda self: self.model.waits is None and (self.model.writer is not None or self.model.reads))
    @rule(number=numbers)
    def begins_to_wait(self, number: int) -> None:
        one, model = self.idle(number), self.model
        if one is None or one.pid in model.reads or model.writer == one.pid:
            return
        model.waits = one.pid, "acquire_write" if model.writer is None else "acquire_read"
        one.connection.send((model.waits[1], True, 60))
        wait_until(lambda: self.lock.statistics().waiters == 1, timeout=60)

    @rule(number=numbers)
    def is_killed(self, number: int) -> None:
        """Waiting ones, too."""
        one = self.agents.pop(number % len(self.agents))
        one.kill()
        self.over(one)

    @rule(number=numbers)
    def ends(self, number: int) -> None:
        one = self.idle(number)
        if one is not None:
            self.agents.remove(one)
            one.connection.send(("end",))
            one.is_over()
            self.over(one)

    def over(self, one: Agent) -> None:
        self.model.dead(one.pid)
        self.waiter_may_go_on()
        if len(self.agents) < 2:
            self.start()

    @precondition(lambda self: len(self.agents) < MOST_AGENTS)
    @rule(number=numbers)
    def forks(self, number: int) -> None:
        one = self.idle(number)
        if one is not None:
            one.connection.send(("fork", self.listener.address))
            self.agents.append(Agent(self.listener.accept()))

    @invariant()
    def is_as_in_the_model(self) -> None:
        lock, model = self.lock, self.model
        assert lock.statistics() == model.statistics()
        assert lock.owner_died is model.died
        assert (lock._reads(), lock._is_writing()) == self.has(os.getpid())
        for one in self.agents:
            if not self.waits(one):
                assert (one.call("_reads"), one.call("_is_writing")) == self.has(one.pid)

    def has(self, pid: int) -> tuple[int, bool]:
        return self.model.reads.get(pid, 0), self.model.writer == pid

    def teardown(self) -> None:
        for one in getattr(self, "agents", []):
            one.kill()
        if hasattr(self, "listener"):
            self.listener.close()


class SpawnMachine(RWLockMachine):
    method = "spawn"


class ForkserverMachine(RWLockMachine):
    method = "forkserver"


@pytest.mark.slow_but("forkserver")
@pytest.mark.parametrize(
    ("machine", "examples"),
    [(RWLockMachine, 60), (SpawnMachine, 2), (ForkserverMachine, 2)],
    ids=["fork", "spawn", "forkserver"],
)
@pytest.mark.timeout(600)
def test_against_the_model(machine: type[RuleBasedStateMachine], examples: int) -> None:
    steps = int(os.environ.get("MPIPC_MODEL_EXAMPLES", examples))
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=steps,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )

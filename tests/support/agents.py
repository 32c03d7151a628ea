"""Processes that do with one object what they are told to, one step at a time, for tests against a model."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, Listener
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import mpipc
from mpipc import _core as family
from support.waiting import wait_until


class Agent:
    """A process, seen from here. The first thing that it sends is its pid."""

    def __init__(self, connection: Connection, process: Any = None) -> None:
        self.connection, self.process = connection, process
        self.waits = False
        """For what it was told to do, in a machine that keeps account of that here."""
        self.pid: int = self.answer()
        self.handle = os.pidfd_open(self.pid)

    def call(self, *command: Any) -> Any:
        self.connection.send(command)
        return self.answer()

    def answer(self) -> Any:
        assert self.connection.poll(60), "it hangs"
        return self.connection.recv()

    def is_over(self) -> None:
        """Returns when the process has gone and recovery has dealt with it. The kernel undoes, and says by that who is
        dead, before it lets anybody know by the pidfd."""
        assert select.select([self.handle], [], [], 60)[0]
        os.close(self.handle)
        self.connection.close()
        if self.process is not None:
            self.process.join()  # with a timeout it would wait for the end of a pipe, which forked children have, too

        def recovered() -> bool:
            family.current().recover()
            return all(pid != self.pid for _, _, pid in family.current().processes())

        wait_until(recovered, timeout=60)

    def kill(self) -> None:
        signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        self.is_over()


class AgentMachine(RuleBasedStateMachine):
    """Processes of one start method that are started, fork and are killed. A command is a tuple; ("fork", address) has
    an agent fork, and the child connect to the address."""

    method = "fork"
    most = 6
    """Processes at a time."""

    def begin_with(self, life: Callable[[Any, Connection], None], make: Callable[[Any], Any]) -> Any:
        """Starts three, whose life it is to do with the object what they are told to; the object that `make` gives."""
        self.context: Any = mpipc.get_context(self.method)
        self.life, self.object = life, make(self.context)
        self.listener = Listener(family="AF_UNIX")
        self.agents: list[Agent] = []
        for _ in range(3):
            self.start()
        return self.object

    def start(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=self.life, args=(self.object, theirs))
        process.start()
        theirs.close()
        self.agents.append(Agent(ours, process))

    def is_waiting(self, one: Agent) -> bool:
        return one.waits

    def idle(self, number: int) -> Agent | None:
        """One of the agents that does not wait; None is this process."""
        found = [each for each in self.agents if not self.is_waiting(each)]
        return None if number % (len(found) + 1) == 0 else found[number % (len(found) + 1) - 1]

    def has_died(self, one: Agent) -> None:
        """What follows from a death."""
        raise NotImplementedError

    def replace(self) -> None:
        if len(self.agents) < 2:
            self.start()

    numbers = st.integers(0, 60)

    @rule(number=numbers)
    def is_killed(self, number: int) -> None:
        """Waiting ones, too."""
        one = self.agents.pop(number % len(self.agents))
        one.kill()
        self.has_died(one)
        self.replace()

    @precondition(lambda self: len(self.agents) < self.most)
    @rule(number=numbers)
    def forks(self, number: int) -> None:
        one = self.idle(number)
        if one is not None:
            one.connection.send(("fork", self.listener.address))
            self.agents.append(Agent(self.listener.accept()))

    def teardown(self) -> None:
        for one in getattr(self, "agents", []):
            one.kill()
        if hasattr(self, "listener"):
            self.listener.close()


def run_machine(machine: type[AgentMachine], start_method: str, examples: int) -> None:
    """With the processes of that start method. MPIPC_MODEL_EXAMPLES sets another number."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        type(machine.__name__, (machine,), {"method": start_method}),
        settings=settings(
            max_examples=int(os.environ.get("MPIPC_MODEL_EXAMPLES", examples)),
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )

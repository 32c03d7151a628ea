"""Semaphore and BoundedSemaphore against a model: processes acquire, release, fork, end and are killed in an order that
hypothesis chooses, and after each step the semaphore's value, its debt and whether units come back are the model's.

What must come out is said at the head of _core/src/semaphore.c; here it stands once more, as a few lines of Python.
What happens when a process dies in the middle of an operation is the subject of native/semaphore_scenarios.h; the
storms at the end of this file kill in the middle, too, and check what can be known then.
"""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Callable
from multiprocessing.connection import Client, Connection
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from support import wait_until
from support.agents import Agent, AgentMachine, run_machine

import mpipc
from mpipc import _core as family
from mpipc.synchronize import SEM_VALUE_MAX

STORM_ROUNDS = int(os.environ.get("MPIPC_KILL_ROUNDS", "100")) // 2

# --- the model --------------------------------------------------------------------------------------------------------


class Model:
    """What a semaphore is, and what each process holds of it. A process is named by its pid."""

    def __init__(self, value: int, maximum: int, returns: bool | None) -> None:
        self.start = self.value = value
        self.maximum = maximum
        self.returns = returns
        self.debt = 0
        self.units: dict[int, int] = {}

    def acquire(self, pid: int) -> bool:
        if self.value == 0:
            return False
        self.value -= 1
        self.units[pid] = self.units.get(pid, 0) + 1
        return True

    def release(self, pid: int) -> bool:
        """False: it is one too many."""
        own, full = self.units.get(pid, 0) > 0, self.value >= self.maximum
        if self.debt and (full or not own):
            self.debt -= 1
        elif full:
            return False
        else:
            self.value += 1
        if own:
            self.units[pid] -= 1
        elif self.returns is None:
            self.returns = False
        return True

    def killed(self, pid: int) -> None:
        units = self.units.pop(pid, 0)
        if self.returns is not False:
            returned = min(units, self.maximum - self.value)
            self.value += returned
            self.debt += returned

    def ended(self, pid: int) -> None:
        self.units.pop(pid, None)


# --- the processes ----------------------------------------------------------------------------------------------------


class Forked(NamedTuple):
    """The answer of a process that has forked: it is in the child when `connection` is given."""

    pid: int
    connection: Connection | None = None


def in_a_thread(call: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def release(semaphore: Any) -> bool:
    try:
        semaphore.release()
    except ValueError:
        return False
    return True


def agent(semaphore: Any, connection: Connection) -> None:
    """Does with the semaphore what it is told to, and tells what came of it."""
    connection.send(os.getpid())
    forked = False
    while True:
        command, *arguments = connection.recv()
        if command == "acquire":
            act = lambda: semaphore.acquire(*arguments[1:])  # noqa: E731, B023
        elif command == "release":
            act = lambda: release(semaphore)  # noqa: E731
        elif command == "units":
            act = semaphore._units
        elif command == "fork":
            child = os.fork()
            if child == 0:
                connection.close()
                connection, forked = Client(arguments[0]), True
                connection.send(os.getpid())
            continue
        elif forked:  # nothing of pytest's is to be run
            if command == "end":
                family.leaving()
            os._exit(0)
        elif command == "end":
            return
        else:
            os._exit(0)
        connection.send(in_a_thread(act) if arguments[:1] == [True] else act())


class SemaphoreMachine(AgentMachine):
    @initialize(
        value=st.one_of(st.integers(0, 4), st.sampled_from([SEM_VALUE_MAX - 1, SEM_VALUE_MAX])),
        bounded=st.booleans(),
        returns=st.sampled_from([None, None, True, False]),
    )
    def begin(self, value: int, bounded: bool, returns: bool | None) -> None:
        kind = "BoundedSemaphore" if bounded else "Semaphore"
        self.model = Model(value, value if bounded else SEM_VALUE_MAX, returns)
        self.semaphore = self.begin_with(agent, lambda context: getattr(context, kind)(value, returns=returns))

    @rule(number=AgentMachine.numbers, thread=st.booleans())
    def acquires(self, number: int, thread: bool) -> None:
        one = self.idle(number)
        if one is None:
            assert self.semaphore.acquire(False) is self.model.acquire(os.getpid())
        else:
            assert one.call("acquire", thread, False) is self.model.acquire(one.pid)

    @rule(number=AgentMachine.numbers, thread=st.booleans(), times=st.integers(1, 2))
    def releases(self, number: int, thread: bool, times: int) -> None:
        one = self.idle(number)
        for _ in range(times):
            if one is None:
                assert release(self.semaphore) is self.model.release(os.getpid())
            else:
                assert one.call("release", thread) is self.model.release(one.pid)
            self.waiter_may_go_on()

    @precondition(lambda self: not any(each.waits for each in self.agents) and self.model.value == 0)
    @rule(number=AgentMachine.numbers)
    def waits(self, number: int) -> None:
        one = self.idle(number)
        if one is not None:
            one.connection.send(("acquire", False, True, 60))
            one.waits = True
            wait_until(lambda: self.semaphore.statistics().waiters == 1, timeout=60)

    def waiter_may_go_on(self) -> None:
        for one in self.agents:
            if one.waits and self.model.value > 0:
                assert one.answer() is self.model.acquire(one.pid) is True
                one.waits = False

    def has_died(self, one: Agent) -> None:
        self.model.killed(one.pid)
        self.waiter_may_go_on()

    @rule(number=AgentMachine.numbers, how=st.sampled_from(["end", "end", "_exit"]))
    def ends(self, number: int, how: str) -> None:
        """os._exit() is no normal end: nothing of the interpreter is run, and to recovery it is a death like others."""
        one = self.idle(number)
        if one is not None:
            self.agents.remove(one)
            one.connection.send((how,))
            one.is_over()
            self.model.ended(one.pid) if how == "end" else self.model.killed(one.pid)
            self.waiter_may_go_on()
        self.replace()

    @invariant()
    def is_as_in_the_model(self) -> None:
        semaphore, model = self.semaphore, self.model
        assert (semaphore.get_value(), semaphore.returns, semaphore._debt()) == (model.value, model.returns, model.debt)
        if model.returns is not False or model.debt:
            assert semaphore._units() == model.units.get(os.getpid(), 0)
            for one in self.agents:
                if not one.waits:
                    assert one.call("units") == model.units.get(one.pid, 0)
        if model.returns is None:
            assert model.value + sum(model.units.values()) <= model.start
        assert 0 <= model.value <= model.maximum


@pytest.mark.slow_but("forkserver")
@pytest.mark.parametrize(
    ("method", "examples"), [("fork", 60), ("spawn", 2), ("forkserver", 2)], ids=["fork", "spawn", "forkserver"]
)
@pytest.mark.timeout(600)
def test_against_the_model(method: str, examples: int) -> None:
    run_machine(SemaphoreMachine, method, examples)


# --- storms -----------------------------------------------------------------------------------------------------------


class Counts:
    """For each of the workers how many acquires and releases it has begun and ended: each number has one writer."""

    ACQUIRES, ACQUIRED, RELEASES, RELEASED = range(4)

    def __init__(self, workers: int) -> None:
        self.memory = mmap.mmap(-1, 32 * workers)
        self.numbers = memoryview(self.memory).cast("q")

    def of(self, worker: int) -> memoryview:
        return self.numbers[4 * worker : 4 * worker + 4]

    def total(self, which: int) -> int:
        return sum(self.numbers[which::4])


def mix(semaphore: Any, counts: memoryview, seed: int) -> None:
    """Acquires and releases at random, its own units and those of others."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.5:
            counts[Counts.ACQUIRES] += 1
            if semaphore.acquire(False):
                counts[Counts.ACQUIRED] += 1
            else:
                counts[Counts.ACQUIRES] -= 1
        else:
            counts[Counts.RELEASES] += 1
            semaphore.release()
            counts[Counts.RELEASED] += 1


def tidy(semaphore: Any, counts: memoryview, seed: int) -> None:
    """Holds up to two units and releases only what it holds."""
    rng = random.Random(seed)
    held = 0
    while True:
        if held < 2 and rng.random() < 0.6:
            held += semaphore.acquire(False)
        elif held:
            semaphore.release()
            held -= 1
        counts[Counts.RELEASED] += 1


def storm(semaphore: Any, work: Callable[..., None], seed: int) -> Counts:
    """Kills processes at random moments and starts others in their place, until all are killed."""
    print(f"seed {seed}, {STORM_ROUNDS} kills")
    rng = random.Random(seed)
    context = mpipc.get_context("fork")
    counts = Counts(STORM_ROUNDS)
    alive: list[tuple[Any, memoryview]] = []

    def kill_one() -> None:
        process, progress = alive.pop(rng.randrange(len(alive)))
        seen = progress[Counts.RELEASED]
        wait_until(lambda: progress[Counts.RELEASED] != seen, timeout=60, message="progress")
        for _ in range(rng.randrange(3000)):
            pass
        process.kill()
        process.join(60)

    for number in range(STORM_ROUNDS):
        progress = counts.of(number)
        process = context.Process(target=work, args=(semaphore, progress, rng.randrange(1 << 32)))
        process.start()
        alive.append((process, progress))
        if len(alive) == 3:
            kill_one()
    while alive:
        kill_one()
    here = family.current().slot
    try:
        wait_until(
            lambda: family.current().recover() >= 0 and [slot for slot, *_ in family.current().processes()] == [here]
        )
    except AssertionError as error:
        error.add_note(f"this is slot {here}; the family has {family.current().processes()}")
        raise
    return counts


@pytest.mark.slow_but("False")
@pytest.mark.parametrize("returns", [None, True, False])
def test_storm_of_own_and_foreign_releases(returns: bool | None) -> None:
    """Each unit that has come back is a debt until it is paid: so value - debt counts acquires and releases exactly,
    but for the one operation that each killed process may have had under way."""
    semaphore = mpipc.Semaphore(1000, returns=returns)
    counts = storm(semaphore, mix, random.SystemRandom().randrange(1 << 32))
    balance = semaphore.get_value() - semaphore._debt() - 1000
    lowest = counts.total(Counts.RELEASED) - counts.total(Counts.ACQUIRES)
    highest = counts.total(Counts.RELEASES) - counts.total(Counts.ACQUIRED)
    assert highest - lowest <= STORM_ROUNDS
    assert lowest <= balance <= highest
    assert semaphore.returns is bool(returns)
    if returns is False:
        assert semaphore._debt() == 0


@pytest.mark.slow_but("False-None")
@pytest.mark.parametrize("returns", [None, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_storm_of_holders(returns: bool | None, bounded: bool) -> None:
    """Who releases only what he holds leaves nothing: all units come back, each once."""
    semaphore = (mpipc.BoundedSemaphore if bounded else mpipc.Semaphore)(4, returns=returns)
    storm(semaphore, tidy, random.SystemRandom().randrange(1 << 32))
    assert semaphore.get_value() == 4
    assert semaphore.returns is returns
    assert semaphore.statistics() == (4, None, 0)

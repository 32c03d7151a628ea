"""mpipc._pool.schedule without processes: the tests do what workers do, or leave it undone, step by step.

The tasks of workers that do nothing, as they are stopped or do not get the processor, go to others, but not in circles.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from support import pool_tasks

import mpipc
from mpipc._pool.channel import Envelope
from mpipc._pool.codec import ITEM, Task
from mpipc._pool.engine import Engine
from mpipc._pool.options import WorkerOptions
from mpipc._pool.receiver import DIED
from mpipc._pool.tasks import DEEP, HORIZON, Function, Pace
from mpipc._pool.worker import BATCH, READY, RETURNED, UNKNOWN_FUNCTION, Worker
from mpipc._pool.worker_handle import Member

ENOUGH = 10_000
"""Steps of dispatch() after which it is taken to go on for ever."""


class Endless(Exception):
    pass


class Job:
    """A result. dispatch() asks at each of its steps whether it can be cancelled."""

    def __init__(self, number: int) -> None:
        self._job = number
        self.values: list[Any] = []
        self.asked = 0

    @property
    def cancellable(self) -> bool:
        self.asked += 1
        if self.asked > ENOUGH:
            raise Endless
        return False

    def _set(self, index: int, value: Any) -> None:
        self.values.append(value)


class Hand:
    """A worker of which the test says when it does something."""

    def __init__(self, crew: Crew, tag: int, quota: int | None) -> None:
        self.crew = crew
        self.member = Member(tag, quota)
        self.tasks: deque[Envelope] = deque()
        self.kinds: list[int] = []
        self.done = 0
        self.member.tasks.send = self.receive
        results: Any = type("Results", (), {"send": self.answer})()
        self.worker = Worker(tag, self.member.tasks, results, self.member.ledger, WorkerOptions())

    def receive(self, message: tuple[Any, ...]) -> None:
        envelopes = message[5] if message[0] == BATCH else [message]
        self.tasks.extend(Envelope._make(envelope) for envelope in envelopes)

    def answer(self, message: tuple[Any, ...]) -> None:
        self.kinds.append(message[0])
        self.crew.messages.append(message)

    def step(self) -> None:
        """Run the next task, or pass over it."""
        if self.tasks and not self.is_spent:
            self.done += self.worker._perform(self.tasks.popleft())

    @property
    def is_spent(self) -> bool:
        """It has run as many tasks as it may."""
        return self.done == self.member.quota

    @property
    def load(self) -> int:
        return len(self.member.window)


class Crew:
    """A pool of such workers, whose parent receives when it is told to."""

    def __init__(self, size: int, pace: Pace | None = None, quota: int | None = None) -> None:
        self.quota = quota
        self.engine = Engine(lambda *a, **k: None, mpipc.get_context("fork"), size, WorkerOptions(quota=quota))
        self.messages: list[tuple[Any, ...]] = []
        self.hands: list[Hand] = []
        self.pace = pace
        self.jobs: list[Job] = []
        self.function = Function(pool_tasks.square, 1)
        if pace is not None:
            self.function.pace = pace
        for tag in range(1, size + 1):
            self.enroll(tag)

    def enroll(self, tag: int) -> None:
        """A worker comes. It is ready."""
        hand = Hand(self, tag, self.quota)
        self.hands.append(hand)
        self.engine.enroll(hand.member)
        self.messages.append((READY, tag, 0, None, 0, None, None))
        self.receive()

    def replace(self, hand: Hand, tag: int) -> None:
        """A worker dies; there was none who ran a task."""
        self.engine.schedule.told += 1
        self.messages.append((DIED, hand.member.tag, 0, None, 0, -9, None))
        self.hands.remove(hand)
        self.receive()
        self.enroll(tag)

    def let(self, hand: Hand, ready: bool) -> None:
        """It is given tasks, or not."""
        hand.member.ready = ready
        self.engine.schedule.refresh(hand.member)

    def add(self, count: int, function: Function | None = None) -> None:
        for _ in range(count):
            job = Job(len(self.jobs) + 1)
            self.jobs.append(job)
            assert self.engine.schedule.add(job, Task(job, 0, ITEM, function or self.function, job._job))

    def receive(self) -> None:
        """What the parent's result thread does."""
        messages, self.messages = self.messages, []
        self.engine.receiver.handle_all(messages)

    def finish(self, tags: Iterator[int] | None = None) -> None:
        """All go on."""
        while any(hand.load for hand in self.hands) or self.messages:
            for hand in list(self.hands):
                hand.step()
                if hand.is_spent and tags is not None:
                    self.replace(hand, next(tags))
            self.receive()

    def check(self) -> None:
        """Each task was run once."""
        assert [job.values for job in self.jobs] == [[(True, job._job**2)] for job in self.jobs]
        assert not self.engine.schedule.backlog
        assert all(not hand.load for hand in self.hands)


def fast() -> Pace:
    """Of tasks of which a worker is given many at a time, however long they take in a test."""

    class Fast(Pace):
        __slots__ = ()

        def note(self, seconds: float, count: int) -> None:
            pass

    pace = Fast()
    pace.seconds = HORIZON / DEEP
    pace.depth = DEEP
    return pace


def leave_the_last(crew: Crew) -> list[Hand]:
    """Add tasks for four workers, which become ready one by one and take over half of what the one with most has. All
    answer. The first two then have messages left that they have to pass over."""
    first, second, third, fourth = crew.hands
    for hand in second, third, fourth:
        crew.let(hand, False)
    crew.add(24)
    loads = []
    for hand in crew.hands:
        crew.let(hand, True)
        crew.engine.schedule.dispatch()
        loads.append([each.load for each in crew.hands])
    assert loads == [[24, 0, 0, 0], [12, 12, 0, 0], [6, 12, 6, 0], [6, 6, 6, 6]]
    while any(hand.load for hand in crew.hands):
        for hand in crew.hands:
            if hand.load:
                hand.step()
        crew.receive()
    crew.check()
    crew.let(third, False)
    crew.let(fourth, False)
    return [first, second]


def test_tasks_do_not_go_in_circles_between_workers_that_do_nothing() -> None:
    """Of two workers each has yet to pass over what was last taken back from it, and whatever it is given now lies
    behind that. They are stopped there, and one would be idle if the other one took over all it has."""
    crew = Crew(4, fast())
    stopped = leave_the_last(crew)
    assert all(hand.tasks for hand in stopped)
    crew.add(24)
    crew.engine.schedule.dispatch()
    assert all(hand.load for hand in stopped)
    crew.engine.schedule.dispatch()
    assert sum(hand.load for hand in stopped) == 24
    crew.finish()
    crew.check()
    assert all(UNKNOWN_FUNCTION not in hand.kinds for hand in crew.hands)


def test_the_oldest_task_is_left_to_its_worker() -> None:
    """However often others take over from it. It runs that, and not the others."""
    crew = Crew(4, fast())
    first, second = leave_the_last(crew)
    crew.let(second, False)
    crew.add(8)
    crew.engine.schedule.dispatch()
    had = list(first.member.window)
    for tag in range(10, 16):  # others come
        crew.enroll(tag)
    assert list(first.member.window) == had[:1]
    assert first.member.slow
    ran = first.done
    while first.tasks:
        first.step()
    assert first.done == ran + 1
    assert first.member.ledger.started == first.member.ledger.finished == had[0]
    crew.finish()
    crew.check()


def test_tasks_behind_a_long_one_are_taken_over() -> None:
    """Also if the worker has not come yet to what was taken back from it before. Nothing happens afterwards at which
    somebody would look again."""
    crew = Crew(2, fast())
    first, second = crew.hands
    crew.let(second, False)
    crew.add(6)
    crew.engine.schedule.dispatch()
    crew.let(second, True)
    crew.engine.schedule.dispatch()
    assert (first.load, second.load) == (3, 3)
    crew.let(second, False)
    first.step()
    crew.receive()  # it is not slow
    crew.add(24)
    crew.engine.schedule.dispatch()
    assert first.load == 26
    assert first.member.ledger.start(2)  # which takes an hour
    while second.load:
        second.step()
        crew.receive()
    crew.let(second, True)
    crew.engine.schedule.dispatch()
    assert list(first.member.window) in ([2], [2, 3])
    while second.load or crew.messages:
        second.step()
        crew.receive()
    assert list(first.member.window) == [2]
    assert sum(len(job.values) for job in crew.jobs) == 29


def test_a_function_is_known_if_the_task_it_came_with_was_taken_back() -> None:
    """The tasks behind that one are sent without it."""
    crew = Crew(1, fast())
    (hand,) = crew.hands
    crew.add(4)
    crew.engine.schedule.dispatch()
    carrier, later = itertools.islice(hand.tasks, 2)
    assert carrier.function is not None
    assert later.function is None
    assert hand.member.ledger.revoke(carrier.number, carrier.number) == carrier.number
    task = hand.member.withdraw(carrier.number)
    assert task is not None
    crew.engine.schedule.put_back(task)
    hand.step()
    assert not hand.kinds
    hand.step()
    assert hand.kinds == [RETURNED]
    crew.receive()
    crew.finish()
    crew.check()


@pytest.mark.parametrize("quota", [None, 9])
def test_workers_that_stop_and_die_at_random(quota: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever workers do, are kept from doing, or have forgotten: dispatch() ends, and each task is run once."""
    monkeypatch.setattr(mpipc._pool.worker, "FUNCTIONS", 2)
    seed = random.randrange(1 << 30)
    print("seed", seed)
    choose = random.Random(seed)
    for _ in range(60):
        size = choose.randint(2, 5)
        crew = Crew(size, choose.choice((fast(), None)), quota)
        functions = [crew.function, *(Function(pool_tasks.square, 2 + n) for n in range(4))]
        if crew.pace is not None:
            for function in functions:
                function.pace = crew.pace
        tags = itertools.count(size + 1)
        for _ in range(choose.randint(50, 400)):
            for job in crew.jobs:
                job.asked = 0
            what = choose.random()
            if what < 0.2 and len(crew.jobs) < 2000:
                crew.add(choose.choice((1, 2, 5, 60)), choose.choice(functions))
                crew.engine.schedule.dispatch()
            elif what < 0.35:
                crew.receive()
            elif what < 0.4:  # answers do not come: all have waited for long
                for hand in crew.hands:
                    hand.member.progress = 0.0
                crew.engine.schedule.dispatch()
            elif what < 0.43:
                crew.replace(choose.choice(crew.hands), next(tags))
            else:
                hand = choose.choice(crew.hands[: choose.randint(1, len(crew.hands))])  # the last ones are stopped more
                for _ in range(choose.choice((1, 1, 3, 20))):
                    hand.step()
                    if hand.is_spent:
                        crew.replace(hand, next(tags))
                        break
        for job in crew.jobs:
            job.asked = 0
        crew.finish(tags)
        crew.check()

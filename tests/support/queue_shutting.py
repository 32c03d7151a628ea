"""Queues that are shut down at a random moment, while processes that use them are killed, and a ledger of what is true.

A round: producers and consumers are forked, and a process that shuts the queue down when so many messages have been
put; some of all three are killed, before or after that. Then:

* every message that a put() had accepted is got at most once, and missing only if a killed consumer had it in its hands
  (one for each of them; of get_many(), what one call takes). When the queue was shut down with immediate=True, what is
  missing was dropped;
* a put() that raised ShutDown has put nothing, but for the `sent` of put_many();
* when a get() has raised ShutDown nothing more comes;
* nobody hangs: producers and consumers that were not killed end by ShutDown, whoever else was killed;
* no memory of the queue is in use in the end, and no task is unfinished but those in the hands of the killed.

Run with `python -m support.queue_shutting MESSAGES [SEED]` in the folder of the tests, or by test_queues_shut_down.py.
`python -m support.queue_shutting 0 SEED ROUND` does one round of a seed again: its plan is the same; when the kernel
runs whom is not.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import time
from queue import Empty
from typing import Any, NamedTuple

from mpipc._core import current
from mpipc.queues import JoinableQueue, PriorityQueue, Queue, ShutDown, SimpleQueue
from support import dump_stacks
from support.queue_killing import PATIENCE, fork

PRODUCERS = 3
MOST = 10_000
"""Messages a producer puts at most in a round."""
BATCH = 24
"""Messages of a put_many(), or of a get_many(), at most."""

MAKERS: dict[str, Any] = {
    "unbounded": Queue,
    "bounded": lambda: Queue(7),
    "joinable": lambda: JoinableQueue(50),
    "priority": PriorityQueue,
    "simple": SimpleQueue,
}


class Ledger:
    """What was put and got, in memory shared by fork."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 64 + 8 * PRODUCERS + PRODUCERS * MOST)
        self.sent = memoryview(self.memory)[64 : 64 + 8 * PRODUCERS].cast("q")
        self.got = memoryview(self.memory)[64 + 8 * PRODUCERS :]

    def clear(self) -> None:
        self.memory[:] = bytes(len(self.memory))

    @property
    def nobody_puts(self) -> bool:
        return self.memory[0] != 0

    def wrong(self, text: str) -> None:
        """For processes whose exit status may be that of the kill."""
        self.memory[1] = 1
        print(text, file=sys.stderr, flush=True)

    def take(self, item: tuple[int, int, bytes]) -> None:
        producer, number, body = item
        if body != bytes([number & 255]) * len(body):
            self.wrong(f"torn: {producer} {number}")
        place = producer * MOST + number
        self.got[place] += 1  # a process takes what nobody else takes: no two add to the same byte
        if self.got[place] != 1:
            self.wrong(f"twice: {producer} {number}")


class Plan(NamedTuple):
    """A round, as its number and the seed say."""

    kind: str
    immediate: bool
    most: int  # messages of a producer
    puts: list[str]
    gets: list[str]
    shut_after: int  # messages
    killed: list[tuple[int, float]]  # whom, of all, and when: at this part of the messages; above 1: after the end


def plan_of(seed: int, number: int, kinds: tuple[str, ...]) -> Plan:
    chance = random.Random(f"{seed}:{number}")
    kind = chance.choice(kinds)
    many = kind != "simple"
    puts = [chance.choice(("put", "put_many") if many else ("put",)) for _ in range(chance.randint(1, PRODUCERS))]
    gets = [
        chance.choice(("untimed", "timed", "nowait", "many") if many else ("untimed",))
        for _ in range(chance.randint(1, 4))
    ]
    most = chance.choice((20, 300, 300, 3000, MOST))
    mortal = [*range(len(puts) + len(gets) + 1)]
    if kind in ("bounded", "joinable"):  # somebody has to make room
        mortal.remove(len(puts))
    killed = [(who, chance.uniform(0, 2)) for who in mortal if chance.random() < 0.5]
    shut_after = int(most * len(puts) * chance.choice((0, chance.random(), chance.random(), 1)))
    return Plan(kind, chance.random() < 0.25, most, puts, gets, shut_after, sorted(killed, key=lambda kill: kill[1]))


def produce(queue: Any, ledger: Ledger, plan: Plan, producer: int) -> None:
    chance = random.Random(producer)

    def message(number: int) -> tuple[int, int, bytes]:
        sizes = (0, 0, 0, 0, 10, 10, 500, 3000 if number % 8 == 0 else 9)
        return producer, number, bytes([number & 255]) * chance.choice(sizes)

    number = 0
    try:
        while number < plan.most:
            options: dict[str, Any] = {"priority": number % 3} if plan.kind == "priority" else {}
            if plan.puts[producer] == "put":
                queue.put(message(number), **options)
                number += 1
            else:
                count = min(chance.randint(1, BATCH), plan.most - number)
                number += queue.put_many([message(number + i) for i in range(count)], **options)
            ledger.sent[producer] = number
    except ShutDown as end:
        ledger.sent[producer] = number + getattr(end, "sent", 0)


def consume(queue: Any, ledger: Ledger, manner: str) -> None:
    try:
        while True:
            try:
                if manner == "many":
                    items = queue.get_many(BATCH)
                elif manner == "timed":
                    items = [queue.get(timeout=0.01)]
                else:
                    items = [queue.get_nowait() if manner == "nowait" else queue.get()]
            except Empty:
                continue
            for item in items:
                ledger.take(item)
                if isinstance(queue, JoinableQueue):
                    queue.task_done()
    except ShutDown:
        pass


def shut_down(queue: Any, ledger: Ledger, plan: Plan) -> None:
    while sum(ledger.sent) < plan.shut_after and not ledger.nobody_puts:
        time.sleep(0.0001)
    queue.shutdown(plan.immediate)


class Crew:
    """The processes of a round."""

    def __init__(self) -> None:
        self.alive: list[int] = []
        self.ends: dict[int, int] = {}

    def start(self, function: Any, *arguments: Any) -> int:
        pid = fork(function, *arguments)
        self.alive.append(pid)
        return pid

    def look(self) -> None:
        """Who has ended?"""
        for pid in list(self.alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.alive.remove(pid)
                self.ends[pid] = os.waitstatus_to_exitcode(status)
                assert self.ends[pid] in (0, -signal.SIGKILL), f"process {pid} ended with {self.ends[pid]}"

    def kill(self, pid: int) -> None:
        if pid in self.alive:
            os.kill(pid, signal.SIGKILL)
            while pid in self.alive:
                self.look()

    def was_killed(self, pid: int) -> bool:
        return self.ends[pid] != 0

    def hanging(self, deadline: float) -> list[int]:
        """Waits until all have ended; those that have not."""
        while self.alive and time.monotonic() < deadline:
            self.look()
            time.sleep(0.0001)
        return self.alive

    def clear_away(self) -> None:
        for pid in list(self.alive):
            print(dump_stacks([pid]), file=sys.stderr)
            self.kill(pid)


def one_round(ledger: Ledger, plan: Plan) -> tuple[int, int]:
    """How many messages were accepted, and how many processes killed."""
    ledger.clear()
    queue = MAKERS[plan.kind]()
    crew = Crew()
    deadline = time.monotonic() + PATIENCE + plan.most * PRODUCERS * 0.005
    try:
        producers = [crew.start(produce, queue, ledger, plan, number) for number in range(len(plan.puts))]
        consumers = [crew.start(consume, queue, ledger, manner) for manner in plan.gets]
        everybody = [*producers, *consumers, crew.start(shut_down, queue, ledger, plan)]

        def goes_on() -> bool:
            """Whether nobody has shut the queue down. If all producers are gone, it is time to."""
            crew.look()
            if not set(producers) & set(crew.alive):
                ledger.memory[0] = 1
            assert time.monotonic() < deadline, f"the queue has not been shut down: {list(ledger.sent)}"
            return not queue.is_shutdown

        for who, when in plan.killed:
            while goes_on() and not ledger.nobody_puts and (when > 1 or sum(ledger.sent) < when * plan.shut_after):
                time.sleep(0.0001)
            if when > 1:
                time.sleep((when - 1) / 500)
            crew.kill(everybody[who])
            if who == len(everybody) - 1 and goes_on():  # it has not come to it
                crew.start(shut_down, queue, ledger, plan._replace(shut_after=0))
        while goes_on():
            time.sleep(0.0001)
        hanging = list(crew.hanging(time.monotonic() + PATIENCE + plan.most * PRODUCERS * 0.005))
    finally:
        crew.clear_away()
    assert not hanging, f"hanging: {hanging}"
    check(queue, ledger, plan, list(map(crew.was_killed, producers)), list(map(crew.was_killed, consumers)))
    return sum(ledger.sent), sum(map(crew.was_killed, crew.ends))


def check(queue: Any, ledger: Ledger, plan: Plan, producers: list[bool], consumers: list[bool]) -> None:
    """What must be true when all have ended; of both, who was killed."""
    while True:
        try:
            item = queue.get()
        except ShutDown:
            break
        assert not plan.immediate, "it was dropped"
        ledger.take(item)
        if plan.kind == "joinable":
            queue.task_done()
    assert not ledger.memory[1], "see above"
    in_hands = sum(BATCH if plan.gets[n] == "many" else 1 for n, killed in enumerate(consumers) if killed)
    missing = 0
    for producer, killed in enumerate(producers):
        row = ledger.got[producer * MOST : (producer + 1) * MOST]
        sent = ledger.sent[producer]
        missing += row[:sent].tolist().count(0)
        extra = sum(row[sent:])
        most = 0 if not killed else BATCH if plan.puts[producer] == "put_many" else 1
        assert extra <= most, f"producer {producer} had put {sent}, {extra} more were got"
    assert plan.immediate or missing <= in_hands, f"{missing} messages missing, {in_hands} may be"
    current().recover()
    assert queue.empty()
    statistics = queue.statistics()
    assert statistics.messages == statistics.shared_bytes_in_use == 0, statistics
    if plan.kind == "joinable":
        unfinished = queue._messages.unfinished()
        assert unfinished <= in_hands, f"{unfinished} tasks unfinished, {in_hands} may be"
        for _ in range(unfinished):
            queue.task_done()
        queue.join()


def run(messages: int, seed: int, kinds: tuple[str, ...] = tuple(MAKERS), only: int | None = None) -> None:
    """Rounds until so many messages have been accepted; or one of them again."""
    ledger = Ledger()
    accepted = killed = 0
    number = only or 0
    started = time.monotonic()
    while True:
        plan = plan_of(seed, number, kinds)
        try:
            more, victims = one_round(ledger, plan)
        except BaseException:
            print(f"seed {seed}, round {number}: {plan}", file=sys.stderr)
            raise
        number += 1
        accepted += more
        killed += victims
        if accepted >= messages or only is not None:
            break
    print(
        f"{number} rounds, seed {seed}: {accepted} messages put, {killed} processes killed, none of them got twice, or"
        f" missing but in the hands of the killed; {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    run(
        int(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32),
        only=int(sys.argv[3]) if len(sys.argv) > 3 else None,
    )

"""Queues of all kinds."""

from __future__ import annotations

import struct
import time
from queue import Empty, Full
from typing import Any

from soak.board import AREA, WORKERS
from soak.crew import Interrupted, Worker
from soak.scenario import PATIENCE, Hang, Scenario, expect

MOST = AREA // (2 * WORKERS)
"""Messages of one producer. Of each there are two numbers in the area: what became of the put, how often it came."""

NEVER, BEGUN, PUT = range(3)
SIZES = (0, 10, 100, 100, 1000, 2040, 3000, 9000, 60_000)
HUGE = 700_000
LANES = 3


def message(producer: int, number: int, size: int) -> tuple[bytes, bytes]:
    return struct.pack("qqq", producer, number, size), bytes([(producer * 31 + number) & 255]) * size


class Receiver:
    """Checks what one process receives, and counts it."""

    def __init__(self, board: Any, lanes: int) -> None:
        self.board, self.lanes = board, lanes
        self.last: dict[tuple[int, int], int] = {}

    def take(self, item: tuple[bytes, bytes]) -> None:
        producer, number, size = struct.unpack("qqq", item[0])
        if item != message(producer, number, size):
            self.board.wrong(f"torn: message {number} of {producer}, {size} bytes")
        place = 2 * (producer * MOST + number)
        if self.board.area[place] == NEVER:
            self.board.wrong(f"message {number} of {producer} came and was never sent")
        self.board.area[place + 1] += 1
        if self.board.area[place + 1] != 1:
            self.board.wrong(f"message {number} of {producer} came twice")
        lane = (producer, number % self.lanes)
        if self.last.get(lane, -1) >= number:
            self.board.wrong(f"message {number} of {producer} came after {self.last[lane]}")
        self.last[lane] = number


def give(me: Worker, queue: Any, priorities: bool, bounded: bool, first: int) -> int:
    """Puts one message or some. Returns the number of the next."""
    area, base = me.board.area, me.index * MOST
    count = me.rng.randint(2, 20) if not priorities and me.rng.random() < 0.2 else 1
    count = min(count, MOST - first)
    sizes = [HUGE if me.rng.random() < 0.01 else me.rng.choice(SIZES) for _ in range(count)]
    items = [message(me.index, first + i, size) for i, size in enumerate(sizes)]
    for i in range(count):
        area[2 * (base + first + i)] = BEGUN
    sent = 0
    try:
        if count > 1:
            sent = me.call(queue.put_many, items, timeout=me.rng.choice((0, 0.05, 1.0)))
        elif me.rng.random() < 0.2:
            me.call(queue.put, items[0], False, **({"priority": first % LANES} if priorities else {}))
            sent = 1
        else:
            timeout = me.rng.choice((0.01, 0.2))
            me.call(queue.put, items[0], timeout=timeout, **({"priority": first % LANES} if priorities else {}))
            sent = 1
    except Full:
        if not bounded:
            me.board.wrong("a queue without a limit is full")
    except Interrupted:
        return first + count  # nobody knows how many
    for i in range(sent):
        area[2 * (base + first + i)] = PUT
    for i in range(sent, count):
        area[2 * (base + first + i)] = NEVER
    return first + sent


def take(me: Worker, queue: Any, receiver: Receiver, joinable: bool) -> None:
    most = me.rng.randint(2, 50) if me.rng.random() < 0.2 else 1
    me.about_to(most)
    try:
        if most > 1:
            items = me.call(queue.get_many, most, timeout=0.02)
        elif me.rng.random() < 0.3:
            items = [me.call(queue.get_nowait)]
        else:
            items = [me.call(queue.get, timeout=me.rng.choice((0, 0.01, 0.1)))]
    except Empty:
        me.gave_up()
        return
    except Interrupted:
        me.is_uncertain()
        return
    if me.fault == "loses one" and me.index == 2 and me.rng.random() < 0.2:
        items = items[1:]
    if me.fault == "gets one twice" and me.index == 2:
        items = items[:1] * 2
    if me.fault == "tears one" and me.index == 2 and len(items[0][1]) > 1:
        items[0] = (items[0][0], items[0][1][:-1] + b"!")
    for item in items:
        receiver.take(item)
        if joinable:
            queue.task_done()
    me.done(len(items))


class Queues(Scenario):
    """What was put is received: whole, once, in the order of its producer. What may be missing was in the hands of one
    who was struck."""

    roles = ("producer", "producer", "consumer", "consumer", "consumer")
    faults = ("loses one", "gets one twice", "tears one")
    maxsize = 0
    priorities = joinable = False

    def make(self) -> dict[str, Any]:
        from mpipc.queues import PriorityQueue

        self.maxsize = self.rng.choice((1, 5, 100)) if self.maxsize else 0
        if self.priorities:
            queue: Any = PriorityQueue(self.maxsize, ctx=self.context)
        else:
            queue = (self.context.JoinableQueue if self.joinable else self.context.Queue)(self.maxsize)
        return {"queue": queue, "kind": (self.priorities, self.joinable, bool(self.maxsize))}

    @staticmethod
    def work(me: Worker, role: str, queue: Any, kind: tuple[bool, bool, bool]) -> None:
        priorities, joinable, bounded = kind
        receiver, next_one = Receiver(me.board, LANES if priorities else 1), 0
        while me.running:
            if role == "producer" and next_one < MOST:
                next_one = give(me, queue, priorities, bounded, next_one)
            elif role == "producer":
                time.sleep(0.01)
            else:
                take(me, queue, receiver, joinable)
            me.pause()

    def tick(self) -> None:
        size = self.objects["queue"].qsize()
        expect(size <= self.maxsize or not self.maxsize, f"{size} in a queue of {self.maxsize}")

    def check(self) -> None:
        queue, area = self.objects["queue"], self.board.area
        receiver = Receiver(self.board, LANES if self.priorities else 1)
        while True:
            try:
                item = queue.get(timeout=0.01)
            except Empty:
                break
            receiver.take(item)
            if self.joinable:
                queue.task_done()
        self.report()
        missing = unsent = 0
        for i in range(self.crew.started * MOST):
            state, times = area[2 * i], area[2 * i + 1]
            missing += state == PUT and times == 0
            unsent += state == NEVER and times != 0
            self.counts["messages"] += times
        in_hands = self.crew.uncertain
        expect(missing <= in_hands, f"{missing} are missing, {in_hands} were in the hands of those that were struck")
        expect(unsent == 0, f"{unsent} came and were never sent")
        expect(queue.qsize() == 0 and queue.empty(), f"empty, but for {queue.qsize()}")
        if self.joinable:
            unfinished = queue.statistics().unfinished
            expect(unfinished <= in_hands, f"{unfinished} tasks unfinished, {in_hands} were in hands")
            for _ in range(unfinished):
                queue.task_done()
            queue.join()
        until = time.monotonic() + PATIENCE
        while (statistics := queue.statistics()).shared_bytes_in_use or statistics.overflow:
            if time.monotonic() > until:
                raise Hang(f"an empty queue to give back its memory: {statistics}")
            time.sleep(0.01)


class BoundedQueues(Queues):
    maxsize = 1


class PriorityQueues(Queues):
    priorities = True


class JoinableQueues(Queues):
    joinable = True


SCENARIOS = (Queues, BoundedQueues, PriorityQueues, JoinableQueues)

"""Processes that put into a queue and take from it, killed at random moments, and a ledger of what must be true.

A round: a few producers and consumers are forked, run for a moment, and some are killed; the others finish; what is
left in the queue is taken by the parent. Then, by the ledger, which lies in memory that all share:

* nothing was received twice, torn, or in an order other than its producer's;
* what a producer had put (put() had returned) was received, but for one message for each killed consumer, which that
  had in its hands;
* nobody hangs: whoever was not killed ends by itself.

Run with `python -m support.queue_killing ROUNDS [SEED]` in the folder of the tests, or by test_queues_killed.py.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
import zlib
from queue import Empty, Full
from typing import Any

from mpipc._core import current
from mpipc.queues import JoinableQueue, PriorityQueue, Queue
from support import dump_stacks

PRODUCERS = 3
CONSUMERS = 3
MOST = 4096
"""Messages a producer sends at most in a round."""

PATIENCE = 30.0
"""Seconds after which a process that has not ended counts as hanging."""


class Ledger:
    """What was put and received, in memory shared by fork."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 64 + 8 * PRODUCERS + PRODUCERS * MOST)
        self.sent = memoryview(self.memory)[64 : 64 + 8 * PRODUCERS].cast("q")
        self.received = memoryview(self.memory)[64 + 8 * PRODUCERS :]

    def clear(self) -> None:
        self.memory[:] = bytes(len(self.memory))

    @property
    def stopped(self) -> bool:
        return self.memory[0] != 0

    def stop(self) -> None:
        self.memory[0] = 1

    def wrong(self, text: str) -> None:
        """For consumers, whose exit status may be that of the kill."""
        self.memory[1] = 1
        print(text, file=sys.stderr, flush=True)


def message(producer: int, number: int, size: int) -> tuple[bytes, bytes]:
    body = struct.pack("qq", producer, number) + bytes([number & 255]) * size
    return body, struct.pack("I", zlib.crc32(body))


class Consumer:
    """Checks what one process receives."""

    def __init__(self, ledger: Ledger, priorities: bool) -> None:
        self.ledger = ledger
        self.priorities = priorities
        self.last: dict[tuple[int, int], int] = {}

    def take(self, item: tuple[bytes, bytes]) -> None:
        body, checksum = item
        producer, number = struct.unpack_from("qq", body)
        if struct.pack("I", zlib.crc32(body)) != checksum:
            self.ledger.wrong(f"torn: {producer} {number}")
        place = producer * MOST + number
        self.ledger.received[place] += 1  # a process takes what nobody else takes: no two add to the same byte
        if self.ledger.received[place] != 1:
            self.ledger.wrong(f"twice: {producer} {number}")
        lane = (producer, number % 3 if self.priorities else 0)
        if self.last.get(lane, -1) >= number:
            self.ledger.wrong(f"order: {producer} {number} after {self.last[lane]}")
        self.last[lane] = number


def produce(queue: Any, ledger: Ledger, producer: int, plan: random.Random, bursts: bool) -> None:
    for number in range(MOST):
        if ledger.stopped:
            return
        size = plan.choice((0, 10, 100, 1000, 3000, 3000, 20_000)) if plan.random() < 0.5 else 20
        options: dict[str, Any] = {"priority": number % 3} if isinstance(queue, PriorityQueue) else {}
        while True:
            try:
                queue.put(message(producer, number, size), timeout=0.05, **options)
                break
            except Full:
                if ledger.stopped:
                    return
        ledger.sent[producer] = number + 1
        if not bursts and plan.random() < 0.02:
            time.sleep(0.0005)


def consume(queue: Any, ledger: Ledger, manner: str) -> None:
    consumer = Consumer(ledger, isinstance(queue, PriorityQueue))
    while True:
        try:
            if manner == "untimed":
                item = queue.get()
            elif manner == "timed":
                item = queue.get(timeout=0.01)
            else:
                item = queue.get_nowait()
        except Empty:
            if ledger.stopped:
                return
            continue
        if item is not None:
            consumer.take(item)
        if isinstance(queue, JoinableQueue):
            queue.task_done()
        if item is None:
            return


def fork(function: Any, *arguments: Any) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def reap(pids: list[int], patience: float = PATIENCE) -> list[int]:
    """Waits until all have ended; returns those that have not."""
    left = list(pids)
    deadline = time.monotonic() + patience
    pause = 0.0001
    while left and time.monotonic() < deadline:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL):
                    raise AssertionError(f"process {pid} ended with {os.waitstatus_to_exitcode(status)}")
        if left:
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
    return left


def one_round(queue: Any, ledger: Ledger, chance: random.Random) -> tuple[int, int]:
    """Returns how many messages were received, and how many processes were killed."""
    ledger.clear()
    bursts = chance.random() < 0.3
    producers = [
        fork(produce, queue, ledger, n, random.Random(chance.random()), bursts)
        for n in range(chance.randint(1, PRODUCERS))
    ]
    manners = [chance.choice(("untimed", "timed", "nowait")) for _ in range(chance.randint(0, CONSUMERS))]
    consumers = [fork(consume, queue, ledger, manner) for manner in manners]
    victims = [pid for pid in producers + consumers if chance.random() < 0.6]
    chance.shuffle(victims)
    for pid in victims:
        time.sleep(chance.choice((0, chance.expovariate(2000), chance.expovariate(300))))
        os.kill(pid, signal.SIGKILL)
    lost = sum(1 for pid in consumers if pid in victims)
    ledger.stop()
    deadline = time.monotonic() + PATIENCE
    hanging = reap(victims) + reap([pid for pid in producers if pid not in victims])
    survivors = [pid for pid in consumers if pid not in victims]
    while survivors and time.monotonic() < deadline:
        with contextlib.suppress(Full):
            queue.put_nowait(None)  # one for each, but who takes it? Those who need none take some, too
        survivors = reap(survivors, 0.01)
    hanging += survivors
    for pid in hanging:
        print(dump_stacks([pid]), file=sys.stderr)
        os.kill(pid, signal.SIGKILL)
    assert not hanging, f"hanging: {hanging}"

    rest = Consumer(ledger, isinstance(queue, PriorityQueue))
    while True:
        try:
            item = queue.get(timeout=0.002)
        except Empty:
            break
        if isinstance(queue, JoinableQueue):
            queue.task_done()
        if item is not None:
            rest.take(item)
    assert not ledger.memory[1], "see above"
    missing = 0
    for producer in range(PRODUCERS):
        row = ledger.received[producer * MOST : (producer + 1) * MOST]
        missing += row[: ledger.sent[producer]].tolist().count(0)
        extra = sum(row[ledger.sent[producer] :])
        assert extra <= 1, f"producer {producer} had put {ledger.sent[producer]}, {extra} more were received"
    assert missing <= lost, f"{missing} messages missing, {lost} consumers killed"
    current().recover()
    assert queue.qsize() == 0, queue.statistics()
    assert queue.empty()
    if isinstance(queue, JoinableQueue):
        unfinished = queue._messages.unfinished()
        assert unfinished <= lost, f"{unfinished} tasks unfinished, {lost} consumers killed"
        for _ in range(unfinished):
            queue.task_done()
        queue.join()
    return sum(ledger.received), len(victims)


MAKERS: dict[str, Any] = {
    "unbounded": Queue,
    "bounded": lambda: Queue(5),
    "joinable": lambda: JoinableQueue(50),
    "priority": PriorityQueue,
}


def run(rounds: int, seed: int, kinds: tuple[str, ...] = tuple(MAKERS)) -> None:
    chance = random.Random(seed)
    ledger = Ledger()
    received = killed = 0
    started = time.monotonic()
    queues = {kind: MAKERS[kind]() for kind in kinds}
    for number in range(rounds):
        kind = chance.choice(kinds)
        try:
            more, victims = one_round(queues[kind], ledger, chance)
        except BaseException:
            print(f"round {number}, a {kind} queue, seed {seed}: {queues[kind].statistics()}", file=sys.stderr)
            raise
        received += more
        killed += victims
        if number % 20 == 19:  # a new one now and then, so that both a first and a later use of everything is met
            queues[kind] = MAKERS[kind]()
    for queue in queues.values():
        assert queue.statistics().shared_bytes_in_use == 0, queue.statistics()
    print(
        f"{rounds} rounds, seed {seed}: {killed} processes killed, {received} messages received, none torn or twice,"
        f" {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32))

"""Processes that send, receive, keep, view and inherit arrays in shared memory, killed at random moments; checksums in
all of them.

A round: some processes are forked, which have what their parent has (the *inheritors*); each of them does one thing
over and over, until it is told to end, and some are killed before. Then

* no array was wrong: each has its number in every element, from who has made it to who has it last;
* nothing that nobody holds is there a second after the last of them has ended, and the queues have been looked into (of
  what somebody was sending when he died, whoever has the queue's lock next decides): what this process still has is all
  that is in use;
* the memory of all rounds is that of the first few.

Run with `python -m support.array_killing ROUNDS [SEED]` in the folder of the tests, or by test_arrays_killed.py.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
import signal
import sys
import time
import traceback
from queue import Empty, Full
from typing import Any

import numpy

from mpipc import arrays
from mpipc._core import current
from mpipc._memory.memory import held
from mpipc.queues import JoinableQueue, PriorityQueue, Queue
from support import dump_stacks
from support.queue_killing import fork, reap

SIZES = (10, 100, 2000, 9000, 40_000, 200_000)
"""Elements of 8 bytes: from pieces of 256 bytes to those of 2 MB, above what travels apart from a pickle."""

SETTLED = 1.0
"""Seconds after which nothing may be there that nobody holds. A processor that others use meanwhile is given more."""

PATIENCE = 30.0

FEW = 300
"""Rounds after which memory does not grow any more."""


class Board:
    """What all see: whether to end, whether something was wrong, and how many arrays were checked."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4096)
        self.words = memoryview(self.memory).cast("q")

    @property
    def over(self) -> bool:
        return self.words[0] != 0

    @over.setter
    def over(self, value: bool) -> None:
        self.words[0] = value

    @property
    def wrong(self) -> bool:
        return self.words[1] != 0

    def check(self, item: tuple[int, Any], where: str) -> None:
        number, array = item
        right = bool((array == number).all())
        self.words[8 + os.getpid() % 500] += 1  # some are lost where two have the same: it is a figure for the reader
        if not right:
            self.words[1] = 1
            print(f"{where}: {number} expected, found {numpy.unique(array)[:5]}", file=sys.stderr, flush=True)

    @property
    def checked(self) -> int:
        return sum(self.words[8:508])


def new(chance: random.Random) -> tuple[int, Any]:
    """An array with its number in each element, or some view of one; an ordinary one now and then."""
    number = chance.getrandbits(40)
    size = chance.choice(SIZES)
    way = chance.random()
    if way < 0.2:
        return number, numpy.full(size, number, "int64")
    array = arrays.empty(size, "int64")
    array[...] = number
    return number, array if way < 0.6 else array[:: chance.choice((-1, 2, 3, -7))]


def send(queues: list[Any], board: Board, chance: random.Random, had: list[tuple[int, Any]]) -> None:
    """Arrays of its own, the same one to several queues, and what it has inherited."""
    while not board.over:
        item = new(chance) if chance.random() < 0.8 or not had else chance.choice(had)
        for queue in chance.sample(queues, chance.choice((1, 1, 1, 2))):
            try:
                if chance.random() < 0.2:
                    queue.put_many([item, item], timeout=0.01)
                else:
                    queue.put(item, timeout=0.01)
            except Full:
                pass


def receive(queues: list[Any], board: Board, chance: random.Random, had: list[tuple[int, Any]]) -> None:
    """Looks at what comes, keeps some of it, and passes some of it on."""
    kept: list[tuple[int, Any]] = []
    while not board.over:
        queue = chance.choice(queues)
        try:
            item = queue.get(timeout=0.002, copy=chance.choice((None, False, True)))
        except Empty:
            continue
        board.check(item, "received")
        if chance.random() < 0.3:
            kept.append(item)
        if chance.random() < 0.1:
            with contextlib.suppress(Full):
                chance.choice(queues).put(item, timeout=0.002)
        while kept and (len(kept) > 5 or chance.random() < 0.2):
            board.check(kept.pop(chance.randrange(len(kept))), "kept")


def inherit(queues: list[Any], board: Board, chance: random.Random, had: list[tuple[int, Any]]) -> None:
    """Reads what its parent had, gives it up, has children that die."""
    while not board.over:
        for item in had:
            board.check(item, "inherited")
        way = chance.random()
        if way < 0.3:
            mine = new(chance)
            pid = fork(board.check, mine, "inherited by a grandchild")
            if chance.random() < 0.5:
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            board.check(mine, "after fork")
        elif way < 0.4:
            had.clear()
            arrays.drop_inherited()
        else:
            time.sleep(0.001)


ROLES = (send, send, receive, receive, inherit)


def make_queues(chance: random.Random) -> list[Any]:
    makers = (Queue, lambda: Queue(4), lambda: Queue(copy=False), lambda: JoinableQueue(8), PriorityQueue)
    return [make() for make in chance.sample(makers, 3)]


def drained(queues: list[Any], board: Board) -> None:
    for queue in queues:
        while True:
            try:
                item = queue.get(timeout=0.002)
            except Empty:
                break
            board.check(item, "left in a queue")


def settle(expected: int) -> float:
    """Waits until no more than so many bytes are in use. How many seconds it took."""
    began = time.monotonic()
    while arrays.usage().in_use != expected:
        if time.monotonic() - began > SETTLED:
            current().recover()  # has the reaper been late, or is nobody there who does it at all?
            late = arrays.usage().in_use == expected
            raise AssertionError(
                f"{arrays.usage().in_use - expected} bytes that nobody holds are there after {SETTLED} s"
                + (", and the reaper did not come" if late else ", and recovery leaves them")
            )
        time.sleep(0.001)
    return time.monotonic() - began


def one_round(queues: list[Any], board: Board, chance: random.Random, own: list[tuple[int, Any]]) -> int:
    """How many were killed."""
    board.over = False
    pids = []
    for role in chance.choices(ROLES, k=chance.randint(2, 5)):
        had = list(own)
        pids.append(fork(role, queues, board, random.Random(chance.random()), had))
    if chance.random() < 0.3:
        own[chance.randrange(len(own))] = new(chance)  # children have what was there
    victims = [pid for pid in pids if chance.random() < 0.6]
    for pid in victims:
        time.sleep(chance.choice((0, chance.expovariate(1000), chance.expovariate(200))))
        os.kill(pid, signal.SIGKILL)
    board.over = True
    hanging = reap(pids, PATIENCE)
    for pid in hanging:
        print(dump_stacks([pid]), file=sys.stderr)
        os.kill(pid, signal.SIGKILL)
    assert not hanging, f"hanging: {hanging}"
    for item in own:
        board.check(item, "the parent's own")
    return len(victims)


def run(rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    board = Board()
    own = [new(chance) for _ in range(3)]
    queues = make_queues(chance)
    killed = most = 0
    slowest = 0.0
    began = time.monotonic()
    for number in range(rounds):
        try:
            killed += one_round(queues, board, chance, own)
            current().recover()
            way = chance.random()
            if way < 0.1:
                for queue in queues:
                    queue.shutdown(immediate=True)
            elif way < 0.8:
                drained(queues, board)
            if way < 0.1 or way >= 0.8:  # with whatever is in them
                queues = make_queues(chance)
            gc.collect()
            slowest = max(slowest, settle(held_by_us()))
            assert not board.wrong, "see above"
            if number < FEW:
                most = max(most, arrays.usage().bytes)
            else:
                # A round of senders alone takes what they put before they are stopped, on a busy machine much: what it
                # leaves is free, and kept for what comes next.
                if arrays.usage().bytes > 2 * most:
                    arrays.trim()
                assert arrays.usage().bytes <= 2 * most + (64 << 20), f"{arrays.usage()}, {most} before"
        except BaseException:
            traceback.print_exc()
            print(f"round {number}, seed {seed}: {arrays.usage()}", file=sys.stderr)
            raise
    print(
        f"{rounds} rounds, seed {seed}: {killed} processes killed, {board.checked} arrays checked, none wrong; all that"
        f" nobody held was free after {slowest * 1000:.0f} ms at most; {arrays.usage().bytes >> 20} MiB in the end,"
        f" {most >> 20} at most in the first {min(FEW, rounds)}; {time.monotonic() - began:.0f} s"
    )


def held_by_us() -> int:
    """Bytes of the pieces that this process holds."""
    return sum(piece(memory.nbytes) for memory in held())


def piece(nbytes: int) -> int:
    """The size of the piece for so many bytes: powers of two, above 1 MB with three steps between."""
    size = 256
    while size < nbytes:
        size *= 2
    if size > 1 << 20:
        step = size // 8
        size = -(-nbytes // step) * step
    return size


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32))

"""Broadcasts whose putters and subscribers are killed at random moments.

A round: putters number their messages, subscribers write down what they get. This process is a subscriber, too, and
what it gets is the truth; at some of its messages it kills somebody, or starts one more subscriber. Then:

* with slow="block" each subscriber that was not killed has got what this one has, from where it has begun, without a
  gap and in the same order, and nobody hangs, whoever was killed;
* with slow="drop" it has got a part of that in the same order, and `lost` counts the rest;
* of each putter the messages come in their order, without a gap, whole; of one that was not killed, all.

`MPIPC_KILL_ROUNDS` sets how many rounds there are, in all.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from support import wait_until
from support.rwlock_crew import LIMIT, finish, start

pytestmark = [pytest.mark.slow_with("spawn"), pytest.mark.timeout(1800)]

ROUNDS = int(os.environ.get("MPIPC_KILL_ROUNDS", "60"))
PUTTERS, SUBSCRIBERS, MESSAGES = 3, 4, 300


def message_of(putter: int, number: int) -> tuple[int, int, bytes]:
    sizes = (0, 1, 9, 30, 700, 3000)
    return putter, number, bytes([number & 255]) * sizes[(number * 7 + putter) % len(sizes)]


def put_all(channel: Any, putter: int) -> None:
    for number in range(MESSAGES):
        channel.put(message_of(putter, number))


def get_all(subscription: Any, results: Any) -> None:
    got = list(subscription)
    results.put((os.getpid(), got, subscription.lost))


def subscribe_and_get_all(channel: Any, results: Any) -> None:
    get_all(channel.subscribe(), results)


class Round:
    def __init__(self, ctx: Any, chance: random.Random, slow: str) -> None:
        self.ctx, self.chance, self.slow = ctx, chance, slow
        maxsize = chance.choice((1, 2, 5, 50))
        self.channel = ctx.Broadcast(maxsize=maxsize, maxbytes=chance.choice((4000, 9000, 100_000)), slow=slow)
        self.results = ctx.Queue()
        self.mine = self.channel.subscribe()
        subscriptions = [self.channel.subscribe() for _ in range(SUBSCRIBERS)]
        self.subscribers = [start(ctx, get_all, subscription, self.results) for subscription in subscriptions]
        for subscription in subscriptions:
            subscription.close()
        self.first = {child.pid for child in self.subscribers}
        self.putters = [start(ctx, put_all, self.channel, putter) for putter in range(PUTTERS)]
        self.killed: list[Any] = []
        self.truth: list[Any] = []

    def happens(self) -> None:
        """Somebody is killed, or one more comes."""
        if self.chance.random() < 0.25:
            self.subscribers.append(start(self.ctx, subscribe_and_get_all, self.channel, self.results))
            return
        child = self.chance.choice([*self.putters, *self.subscribers])
        child.kill()
        self.killed.append(child)

    def run(self) -> None:
        moments = set(self.chance.sample(range(PUTTERS * MESSAGES // 2), 4))
        ended = False
        while True:
            try:
                self.truth.append(self.mine.get(timeout=0.01))
            except Exception as error:
                if type(error).__name__ == "ShutDown":
                    break
                if not ended and not any(putter.is_alive() for putter in self.putters):
                    self.channel.shutdown()
                    ended = True
            if len(self.truth) in moments:
                moments.discard(len(self.truth))
                self.happens()
        self.verify()

    def verify(self) -> None:
        finish(*[child for child in [*self.putters, *self.subscribers] if child not in self.killed])
        for child in self.killed:
            child.join(LIMIT)
        living = [child.pid for child in self.subscribers if child not in self.killed]
        reports = {}
        while not set(living) <= set(reports):
            pid, got, lost = self.results.get(timeout=LIMIT)
            reports[pid] = got, lost
        self.verify_truth()
        for pid in living:
            self.verify_report(*reports[pid], began_first=pid in self.first)
        wait_until(lambda: len(self.channel.subscribers()) == 1, timeout=LIMIT)
        assert self.channel.statistics()[3:5] == (0, 0)

    def verify_truth(self) -> None:
        for putter in range(PUTTERS):
            numbers = [message[1] for message in self.truth if message[0] == putter]
            if self.slow == "block":
                assert numbers == list(range(len(numbers)))
                assert len(numbers) == MESSAGES or self.putters[putter] in self.killed
            else:
                assert numbers == sorted(set(numbers))
        assert all(message == message_of(*message[:2]) for message in self.truth)
        assert self.slow == "drop" or self.mine.lost == 0

    def verify_report(self, got: list[Any], lost: int, began_first: bool) -> None:
        assert all(message == message_of(*message[:2]) for message in got)
        if self.slow == "block":
            assert lost == 0
            assert got == (self.truth if began_first else self.truth[len(self.truth) - len(got) :])
            return
        if began_first:
            assert len(got) + lost == len(self.truth) + self.mine.lost
        both = {message[:2] for message in self.truth} & {message[:2] for message in got}
        in_truth, in_got = ([m[:2] for m in messages if m[:2] in both] for messages in (self.truth, got))
        assert in_truth == in_got


@pytest.mark.parametrize("slow", ["block", "drop"])
def test_killed_at_random(ctx: Any, start_method: str, slow: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    for number in range(max(1, ROUNDS // {"fork": 4, "forkserver": 15, "spawn": 60}[start_method])):
        Round(ctx, random.Random(f"{seed}:{number}"), slow).run()

"""Broadcasts."""

from __future__ import annotations

import time
from queue import Empty, Full
from typing import Any

from soak.board import AREA, WORKERS
from soak.crew import Interrupted, Worker
from soak.queues import message
from soak.scenario import PATIENCE, Hang, Scenario, expect

MOST = AREA // WORKERS
"""Messages of one producer. Of each there is a number in the area: what became of the put."""

NEVER, BEGUN, PUT = range(3)
SIZES = (0, 10, 100, 1000, 3000, 9000)


def give(me: Worker, channel: Any, number: int) -> int:
    """Puts a message, or finds no room. Returns the number of the next."""
    place = me.index * MOST + number
    me.board.area[place] = BEGUN
    try:
        me.call(channel.put, (me.index, number, message(me.index, number, me.rng.choice(SIZES))), timeout=0.05)
    except Full:
        me.board.area[place] = NEVER
        return number
    except Interrupted:
        return number + 1  # nobody knows
    me.board.area[place] = PUT
    return number + 1


class Hearer:
    """Checks what one subscription gets."""

    def __init__(self, me: Worker, drops: bool) -> None:
        self.me, self.drops = me, drops
        self.last: dict[int, int] = {}
        self.in_hand = 0
        """Messages that an interruption may have cost."""

    def hear(self, item: tuple[int, int, tuple[bytes, bytes]]) -> None:
        producer, number, body = item
        board = self.me.board
        if body != message(producer, number, len(body[1])):
            board.wrong(f"torn: message {number} of {producer}")
        last = self.last.get(producer, number - 1)
        if number <= last:
            board.wrong(f"message {number} of {producer} came after {last}")
        if not self.drops:
            missing = sum(board.area[producer * MOST + each] == PUT for each in range(last + 1, number))
            self.in_hand -= missing
            if self.in_hand < 0:
                board.wrong(f"{missing} messages of {producer} are missing before {number}")
        self.last[producer] = number


def listen(me: Worker, subscription: Any, hearer: Hearer) -> None:
    try:
        item = me.call(subscription.get, timeout=me.rng.choice((0, 0.01, 0.1)))
    except Empty:
        return
    except Interrupted:
        hearer.in_hand += 1
        return
    if me.fault == "loses one" and me.rng.random() < 0.2:
        return
    if me.fault == "tears one" and len(item[2][1]) > 1:
        item = (*item[:2], (item[2][0], item[2][1][:-1] + b"!"))
    hearer.hear(item)


class Broadcasts(Scenario):
    """Each subscription gets each message, whole, once, in the order of its producer. What may be missing was in the
    hands of one who was interrupted."""

    roles = ("producer", "producer", "subscriber", "subscriber", "subscriber")
    faults: tuple[str, ...] = ("loses one", "tears one")
    slow = "block"

    def make(self) -> dict[str, Any]:
        self.maxsize = self.rng.choice((1, 5, 100))
        channel = self.context.Broadcast(
            maxsize=self.maxsize, maxbytes=self.rng.choice((20_000, 1 << 20)), slow=self.slow
        )
        return {"channel": channel, "drops": self.slow == "drop"}

    @staticmethod
    def work(me: Worker, role: str, channel: Any, drops: bool) -> None:
        subscription = channel.subscribe() if role == "subscriber" else None
        hearer, next_one = Hearer(me, drops), 0
        while me.running:
            if subscription is not None:
                listen(me, subscription, hearer)
                if me.rng.random() < 0.001:
                    subscription.close()
                    subscription, hearer = channel.subscribe(), Hearer(me, drops)
            elif next_one < MOST:
                next_one = give(me, channel, next_one)
            else:
                time.sleep(0.01)
            me.pause()

    def tick(self) -> None:
        kept = self.objects["channel"].statistics().messages
        expect(kept <= self.maxsize, f"{kept} in a broadcast of {self.maxsize}")

    def check(self) -> None:
        channel = self.objects["channel"]
        until = time.monotonic() + PATIENCE
        while channel.subscribers():
            if time.monotonic() > until:
                raise Hang(f"the subscriptions of the dead to end: {channel.subscribers()}")
            time.sleep(0.01)
        expect(channel.statistics()[:5] == (0, 0, 0, 0, 0), f"nothing is kept, nobody waits: {channel.statistics()}")
        with channel.subscribe() as subscription:
            channel.put("last", timeout=1)
            expect(subscription.get(timeout=1) == "last" and subscription.empty(), "it works")
        self.counts["messages"] += sum(state == PUT for state in self.board.area[: self.crew.started * MOST])


class BroadcastsThatDrop(Broadcasts):
    faults = ("tears one",)
    slow = "drop"


SCENARIOS = (Broadcasts, BroadcastsThatDrop)

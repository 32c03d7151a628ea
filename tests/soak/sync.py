"""Locks, semaphores, events, conditions and barriers."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from soak.board import DONE, OWN, PAUSE
from soak.crew import Interrupted, Worker
from soak.scenario import Scenario, expect


def enter(me: Worker, lock: Any) -> bool:
    """Acquires the lock in one of the ways there are. An interruption leaves it held or not, which the lock itself
    knows; then it is given back. But not if its owner has died: the next one would not be told, and what the dead has
    left behind is to be seen to."""
    try:
        way = me.rng.random()
        if way < 0.4:
            return bool(me.call(lock.acquire))
        if way < 0.8:
            return bool(me.call(lock.acquire, timeout=me.rng.choice((0, 0.001, 0.05))))
        return bool(me.call(lock.acquire, False))
    except Interrupted:
        if lock._is_mine() and lock.owner_died:
            return True
        if lock._is_mine():
            lock.release()
        return False


class Inside:
    """Finds two in one place. The place knows who is in it; one that dies there is followed by one who is told."""

    def __init__(self, me: Worker, place: int) -> None:
        self.me, self.area, self.place = me, me.board.area, place

    def enter(self, owner_died: bool) -> None:
        if self.area[self.place] and not owner_died:
            pid = int(self.area[self.place])
            lives = "lives" if os.path.exists(f"/proc/{pid}") else "is dead"
            self.me.board.wrong(f"{pid}, which {lives}, is inside, and {os.getpid()} has the lock")
        self.area[self.place] = os.getpid()

    def leave(self) -> None:
        if self.area[self.place] != os.getpid():
            self.me.board.wrong(f"{os.getpid()} has the lock, and {self.area[self.place]} was inside")
        self.area[self.place] = 0


class Locks(Scenario):
    """Two counters that are equal whenever nobody is inside; as many in all as those who went in."""

    roles = ("worker",) * 4
    faults = ("enters without the lock", "keeps the lock")
    PLACE, FIRST, SECOND = range(3)

    def make(self) -> dict[str, Any]:
        return {"lock": self.context.RLock() if self.rng.random() < 0.5 else self.context.Lock()}

    @staticmethod
    def work(me: Worker, role: str, lock: Any) -> None:
        area, inside = me.board.area, Inside(me, Locks.PLACE)
        recursive = type(lock).__name__ == "RLock"
        while me.running:
            if not (me.fault == "enters without the lock" and me.index == 0) and not enter(me, lock):
                continue
            depth = 1
            while recursive and depth < 3 and me.rng.random() < 0.3:
                depth += bool(lock.acquire())
            inside.enter(lock.owner_died)
            if lock.owner_died:
                area[Locks.SECOND] = area[Locks.FIRST]
            elif area[Locks.FIRST] != area[Locks.SECOND]:
                me.board.wrong(f"half done by one who lives: {area[Locks.FIRST]}, {area[Locks.SECOND]}")
            me.about_to()
            area[Locks.FIRST] += 1
            me.pause()
            area[Locks.SECOND] += 1
            me.done()
            inside.leave()
            if me.fault == "keeps the lock" and me.index == 1 and me.row[DONE] > 3:
                threading.Event().wait()
            for left in range(depth, 0, -1):
                if left == 1 and not lock._is_mine() and not me.fault:
                    me.board.wrong("it is not mine any more")
                try:
                    me.call(lock.release)
                except Interrupted:
                    if lock._is_mine() and (not recursive or lock._count() == left):
                        lock.release()
                except (ValueError, AssertionError):
                    if not me.fault:
                        raise

    def check(self) -> None:
        lock = self.objects["lock"]
        expect(lock.acquire(timeout=20), "the lock is held by nobody that lives, and cannot be had")
        lock.release()
        expect(lock.statistics() == (1, None, 0), f"{lock.statistics()}")
        done = self.board.sum(DONE)
        total = int(self.board.area[self.FIRST])
        expect(done <= total <= done + self.crew.uncertain, f"{done} went in, {total} were counted")


class Limit(Scenario):
    """Semaphores of which each process releases only what it holds: never too many hold, and in the end all units are
    there."""

    roles = ("worker",) * 5
    faults = ("takes without asking", "releases too often")
    HELD, CHANGES = OWN, OWN + 1

    def make(self) -> dict[str, Any]:
        self.units = self.rng.randint(1, 4)
        self.returns = self.rng.choice((None, True))
        factory = self.context.BoundedSemaphore if self.rng.random() < 0.5 else self.context.Semaphore
        return {"semaphore": factory(self.units, returns=self.returns)}

    @staticmethod
    def work(me: Worker, role: str, semaphore: Any) -> None:
        row = me.row

        def show() -> None:  # fewer than are held, never more
            row[Limit.HELD] = held
            row[Limit.CHANGES] += 1

        held = 0
        while me.running or held:
            if held and (not me.running or me.rng.random() < 0.6):
                held -= 1
                show()
                try:
                    me.call(semaphore.release)
                except Interrupted:
                    if semaphore._units() == held + 1:
                        semaphore.release()
                continue
            if me.fault == "releases too often" and me.index == 0:
                semaphore.release()
            try:
                if me.fault == "takes without asking" and me.index < 3:
                    held = 5
                elif me.call(semaphore.acquire, timeout=me.rng.choice((0, 0.001, 0.02))):
                    held += 1
            except Interrupted:
                held = semaphore._units()
            show()
            me.pause()
            if me.fault == "takes without asking" and me.index < 3:
                held = 0

    def tick(self) -> None:
        """What is seen twice without a change in between was so at one moment. Units of one who is killed come back
        before it is seen from here that he is dead: so who has been struck by then does not count."""
        members = [member for member in self.crew.members if not member.killed]
        rows = [self.board.row(member.index) for member in members]

        def look() -> tuple[list[int], list[int]]:
            return [row[self.CHANGES] for row in rows], [row[self.HELD] for row in rows]

        before, after = look(), look()
        if before == after and not any(member.killed for member in members):
            expect(sum(after[1]) <= self.units, f"{after[1]} are held of {self.units}")

    def check(self) -> None:
        semaphore = self.objects["semaphore"]
        self.wait_for(lambda: semaphore.get_value() == self.units, f"all units: {semaphore} of {self.units}")
        expect(semaphore.returns is self.returns, f"it has become returns={semaphore.returns}")
        expect(semaphore._waiters() == 0, "somebody waits")
        for _ in range(self.units):
            expect(semaphore.acquire(False), "a unit cannot be had")
        expect(not semaphore.acquire(False), "there is one too many")


class Signal(Scenario):
    """Semaphores that are acquired and released by anybody, in each of the three modes. What came back is a debt until
    it is paid, so value - debt counts them all exactly; those under way when a process was killed are known."""

    roles = ("mixed", "mixed", "producer", "consumer")
    faults = ("releases in secret",)
    RELEASED, ACQUIRED, RELEASING, ACQUIRING = OWN, OWN + 1, OWN + 2, OWN + 3
    START = 50

    def make(self) -> dict[str, Any]:
        return {"semaphore": self.context.Semaphore(self.START, returns=self.rng.choice((None, True, False)))}

    @staticmethod
    def work(me: Worker, role: str, semaphore: Any) -> None:
        row = me.row
        while me.running:
            if role == "producer" or (role == "mixed" and me.rng.random() < 0.5):
                if semaphore.get_value() > 100_000:
                    me.pause()
                    continue
                row[Signal.RELEASING] += 1  # and it stays so if nobody knows
                try:
                    me.call(semaphore.release)
                except Interrupted:
                    continue
                row[Signal.RELEASED] += 1
                row[Signal.RELEASING] -= 1
                if me.fault and me.index == 0:
                    semaphore.release()
            else:
                row[Signal.ACQUIRING] += 1
                try:
                    taken = me.call(semaphore.acquire, timeout=me.rng.choice((0, 0, 0.001, 0.02)))
                except Interrupted:
                    continue
                row[Signal.ACQUIRED] += taken
                row[Signal.ACQUIRING] -= 1

    def check(self) -> None:
        semaphore, board = self.objects["semaphore"], self.board

        def balance() -> int:
            return int(semaphore.get_value() - semaphore._debt() - self.START)

        lowest = board.sum(self.RELEASED) - board.sum(self.ACQUIRED) - board.sum(self.ACQUIRING)
        highest = board.sum(self.RELEASED) - board.sum(self.ACQUIRED) + board.sum(self.RELEASING)
        # Between the two steps of a return, value - debt is off by the units for a moment.
        self.wait_for(lambda: lowest <= balance() <= highest, f"{lowest} to {highest}, it is {balance()}")
        expect(semaphore._waiters() == 0, "somebody waits")


class Events(Scenario):
    """One process sets and clears, the others wait."""

    roles = ("setter", "waiter", "waiter", "waiter")
    faults = ("forgets to set",)

    def make(self) -> dict[str, Any]:
        return {"event": self.context.Event()}

    @staticmethod
    def work(me: Worker, role: str, event: Any) -> None:
        while me.running:
            try:
                if role == "waiter":
                    timeout = me.rng.choice((None, None, 0, 0.001, 0.05))
                    if not me.call(event.wait, timeout) and timeout is None:
                        me.board.wrong("wait() has returned False")
                    continue
                me.call(event.set)
                if not event.is_set() or not event.wait(0):
                    me.board.wrong("it is not set")
                me.pause()
                me.call(event.clear)
                if (event.is_set() or event.wait(0)) and me.running:  # in the end it is set by another: let_go()
                    me.board.wrong("it is set")
                me.pause()
            except Interrupted:
                continue

    def let_go(self) -> None:
        if not self.fault:
            self.objects["event"].set()

    def check(self) -> None:
        event = self.objects["event"]
        expect(event.is_set() and event.wait(0), "it is not set")
        event.clear()
        expect(not event.is_set() and not event.wait(0), "it is set")
        expect(event.statistics().waiters == 0, "somebody waits")


class Conditions(Scenario):
    """Things that are made and used up under a condition's lock. Nobody is told in vain, and nobody is forgotten: when
    nothing is made any more, all that was made is used up."""

    roles = ("producer", "consumer", "consumer", "consumer")
    faults = ("does not notify", "uses up what is not there")
    PLACE, MADE, USED = range(3)

    def make(self) -> dict[str, Any]:
        lock = self.context.Lock() if self.rng.random() < 0.5 else None
        return {"condition": self.context.Condition(lock)}

    @staticmethod
    def work(me: Worker, role: str, condition: Any) -> None:
        area, inside, lock = me.board.area, Inside(me, Conditions.PLACE), condition._lock
        while me.running:
            if role == "producer" and (me.board.head[PAUSE] or area[Conditions.MADE] - area[Conditions.USED] > 20):
                me.rng.random()
                threading.Event().wait(0.001)
                continue
            if not enter(me, lock):
                continue
            inside.enter(lock.owner_died)
            if lock.owner_died:
                condition.notify_all()  # who died may have made one, and told nobody
            if role == "producer" and me.board.head[PAUSE]:
                pass  # since it looked
            elif role == "producer":
                me.about_to()
                area[Conditions.MADE] += 1
                if me.fault != "does not notify":
                    condition.notify()
                me.done()
            else:
                while area[Conditions.MADE] <= area[Conditions.USED] and me.running:
                    inside.leave()
                    with contextlib.suppress(Interrupted):
                        me.call(condition.wait, me.rng.choice((None, None, 0.02)) if not me.fault else None)
                    if not lock._is_mine() and not enter_for_sure(me, lock):
                        break
                    inside.enter(lock.owner_died)
                if lock._is_mine() and area[Conditions.MADE] > area[Conditions.USED]:
                    me.about_to()
                    area[Conditions.USED] += 1 + (me.fault == "uses up what is not there" and me.index == 1)
                    me.done()
            if lock._is_mine():
                inside.leave()
                lock.release()

    def tick(self) -> None:
        """One that was killed between making and telling has told nobody: who survives that looks after it."""
        if self.crew.to_replace:
            self.take_turn(tell_all=True)

    def take_turn(self, tell_all: bool) -> None:
        condition = self.objects["condition"]
        expect(condition.acquire(timeout=30), "the condition's lock cannot be had")
        if condition._lock.owner_died:  # the next one is not told any more
            self.board.area[self.PLACE] = 0
            tell_all = True
        if tell_all:
            condition.notify_all()
        condition.release()

    def settle(self) -> None:
        self.pause_everybody()
        # Who has the lock after this knows of the pause. Only if somebody was killed may another have been forgotten.
        self.take_turn(tell_all=bool(self.crew.lost))
        area = self.board.area
        self.wait_for(lambda: area[self.MADE] <= area[self.USED], f"{area[self.MADE]} made, {area[self.USED]} used up")

    def let_go(self) -> None:
        self.take_turn(tell_all=True)

    def check(self) -> None:
        made, used = int(self.board.area[self.MADE]), int(self.board.area[self.USED])
        expect(made == used, f"{made} made, {used} used up")
        done = self.board.sum(DONE)
        expect(done <= made + used <= done + self.crew.uncertain, f"{done} done, {made + used} counted")
        statistics = self.objects["condition"].statistics()
        expect(statistics == (1, None, 0), f"{statistics}")


def enter_for_sure(me: Worker, lock: Any) -> bool:
    """The wait was interrupted in the instant before it took the lock back."""
    while me.running:
        if lock.acquire(timeout=0.1):
            return True
    return False


class Barriers(Scenario):
    """As many pass as there are parties, in each cycle; whoever is killed or interrupted is as if he had not come."""

    roles = ("worker",) * 3
    faults = ("counts twice",)

    def make(self) -> dict[str, Any]:
        return {"barrier": self.context.Barrier(len(self.roles))}

    @staticmethod
    def work(me: Worker, role: str, barrier: Any) -> None:
        while me.running:
            me.about_to()
            try:
                place = me.call(barrier.wait)
            except Interrupted:
                me.is_uncertain()
                continue
            except threading.BrokenBarrierError:
                me.gave_up()
                if me.running:
                    me.board.wrong("the barrier is broken")
                return
            if not 0 <= place < 3:
                me.board.wrong(f"place {place}")
            me.done(1 + bool(me.fault))
            me.pause()

    def let_go(self) -> None:
        barrier = self.objects["barrier"]
        if not barrier.broken:
            barrier.abort()

    def check(self) -> None:
        barrier = self.objects["barrier"]
        passed, opened = self.board.sum(DONE), barrier._shared.generation - 1
        may_have = self.crew.uncertain
        expect(passed <= 3 * opened <= passed + may_have, f"opened {opened} times, {passed} and {may_have} passed")
        expect(barrier.n_waiting == 0, f"{barrier.n_waiting} wait")
        barrier.reset()
        expect(not barrier.broken, "it stays broken")


SCENARIOS = (Locks, Limit, Signal, Events, Conditions, Barriers)

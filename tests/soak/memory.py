"""Shared values and arrays, and named segments."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Any

from soak.board import DONE, OWN
from soak.crew import Interrupted, Worker
from soak.scenario import Scenario, expect


class Values(Scenario):
    """A Value that is counted up, and an Array whose elements are all the same, each under its own lock."""

    roles = ("worker",) * 4
    faults = ("counts without the lock",)

    def make(self) -> dict[str, Any]:
        kind = self.rng.choice(("q", "d"))
        return {"value": self.context.Value(kind, 0), "array": self.context.Array("i", self.rng.choice((8, 3000)))}

    @staticmethod
    def work(me: Worker, role: str, value: Any, array: Any) -> None:
        counter, elements = value.get_obj(), array.get_obj()
        while me.running:
            held = value.get_lock() if me.rng.random() < 0.5 else array.get_lock()
            try:
                if not me.call(held.acquire, timeout=me.rng.choice((0.01, 1.0))):
                    continue
            except Interrupted:
                while held._is_mine():
                    held.release()
                continue
            if held is value.get_lock():
                me.about_to()
                counter.value += 1 + (me.fault != "" and me.index == 0)
                me.done()
            else:
                if not held.owner_died and len({*elements[:]}) != 1:
                    me.board.wrong(f"half written by one who lives: {sorted({*elements[:]})}")
                one = me.rng.getrandbits(31)
                for i in range(len(elements)):
                    elements[i] = one
            held.release()

    def check(self) -> None:
        value, array = self.objects["value"], self.objects["array"]
        for shared in (value, array):
            expect(shared.get_lock().acquire(timeout=20), "a lock that nobody has cannot be had")
            shared.get_lock().release()
        done, total = self.board.sum(DONE), int(value.value)
        expect(done <= total <= done + self.crew.uncertain, f"{done} counted up, it is {total}")


class Names(Scenario):
    """Named segments: made, attached and unlinked by anybody. What a name leads to is one whole segment, or none."""

    roles = ("worker",) * 4
    faults = ("writes into a stranger's", "leaves a segment behind")
    NAMES, SIZE = 3, 20_000

    def make(self) -> dict[str, Any]:
        self.names = [f"soak-{os.getpid()}-{self.rng.getrandbits(40):x}-{i}" for i in range(self.NAMES)]
        return {"names": self.names}

    @staticmethod
    def work(me: Worker, role: str, names: list[str]) -> None:
        from mpipc.shared_memory import SharedMemory

        made = 0
        while me.running:
            name = me.rng.choice(names)
            memory = None
            try:
                way = me.rng.random()
                if way < 0.4:
                    memory = me.call(SharedMemory, name, True, Names.SIZE)
                    made += 1
                    number = struct.pack("q", (me.index + 1) << 32 | made)
                    memory.buf[8 : Names.SIZE] = number * (Names.SIZE // 8 - 1)
                    memory.buf[:8] = number  # last: now it is whole
                    me.row[OWN] += 1
                elif way < 0.8:
                    memory = me.call(SharedMemory, name)
                    if memory.size < Names.SIZE:
                        me.board.wrong(f"{memory.size} bytes of {Names.SIZE}")
                    first = bytes(memory.buf[:8])
                    if any(first) and bytes(memory.buf[8 : Names.SIZE]) != first * (Names.SIZE // 8 - 1):
                        me.board.wrong(f"{name} is not of one piece")
                    if me.fault == "writes into a stranger's":
                        memory.buf[16] = 255
                else:
                    memory = me.call(SharedMemory, name)
                    me.call(memory.unlink)
            except (FileExistsError, FileNotFoundError, Interrupted):
                pass
            finally:
                if memory is not None:
                    memory.close()
            me.pause()

    def check(self) -> None:
        from mpipc.shared_memory import SharedMemory

        for name in self.names:
            with contextlib.suppress(FileNotFoundError):
                memory = SharedMemory(name)
                memory.close()
                memory.unlink()
            with contextlib.suppress(FileNotFoundError):
                SharedMemory(name)
                expect(False, f"{name} is still there after unlink()")
        if self.fault == "leaves a segment behind":
            SharedMemory(self.names[0], create=True, size=10, track=False).close()
        self.counts["segments"] += self.board.sum(OWN)


SCENARIOS = (Values, Names)

"""Numbers that outlive the processes which write them: a file, mapped by all of them. Nothing of mpipc is in it."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

WORKERS = 64
"""Most processes in a round, those started in place of killed ones included."""

ROW = 16
"""Numbers that each of them has for itself; it is the only one that writes them."""

AREA = 1 << 19
"""Numbers of the scenario."""

STOP, PAUSE, WRONG = range(3)
_HEAD, _TEXT = 16, 4096

# What the numbers of a row are. From OWN on they are the scenario's.
OPERATIONS, IN_HAND, DONE, UNCERTAIN, INTERRUPTIONS, OWN = range(6)


class Board:
    """`head` has the three switches, `area` is the scenario's, `row(i)` belongs to worker i."""

    def __init__(self, path: str) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDWR)
        self.memory = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        numbers = memoryview(self.memory)[: 8 * (_HEAD + WORKERS * ROW + AREA)].cast("q")
        self.head = numbers[:_HEAD]
        self.rows = numbers[_HEAD : _HEAD + WORKERS * ROW]
        self.area = numbers[_HEAD + WORKERS * ROW :]

    @staticmethod
    def make(folder: Path) -> Board:
        path = folder / "board"
        with path.open("wb") as file:
            file.truncate(8 * (_HEAD + WORKERS * ROW + AREA) + _TEXT)
        return Board(str(path))

    def row(self, index: int) -> memoryview:
        return self.rows[index * ROW : (index + 1) * ROW]

    def sum(self, which: int) -> int:
        return sum(self.rows[which::ROW])

    def wrong(self, text: str) -> None:
        """The first one is kept: it is mostly the cause of the others."""
        if not self.head[WRONG]:
            self.head[WRONG] = 1
            data = text.encode(errors="replace")[: _TEXT - 1]
            self.memory[-_TEXT : -_TEXT + len(data)] = data

    def what_is_wrong(self) -> str:
        return self.memory[-_TEXT:].rstrip(b"\0").decode(errors="replace") if self.head[WRONG] else ""

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # a row is still looked at, by the traceback of a failure
            for view in (self.head, self.rows, self.area):
                view.release()
            self.memory.close()

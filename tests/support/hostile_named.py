"""What another user can put under the keys of a name: used by test_hostile_named.py, in processes of that user.

Segments are made by system calls (ctypes), because mpipc makes none of this kind.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
import sys
import time
import zlib
from collections.abc import Callable

NAME = b"dataset-42"
PROBES = 16
NEW, CANDIDATE, LIVE, GONE = range(4)
MAGIC = 0x656D616E6370696D
IPC_CREAT, IPC_EXCL, SHM_NORESERVE, IPC_RMID = 0o1000, 0o2000, 0o10000, 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
_libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]


def key(position: int, name: bytes = NAME) -> int:
    hashed = zlib.crc32(name) & 0xFFFFFF
    return 0x6E000000 | (hashed + position * 0x9E3779) & 0xFFFFFF


class Segment:
    """A segment under one of the name's keys, attached."""

    def __init__(self, position: int, size: int = 8192, mode: int = 0o666) -> None:
        self.id = _libc.shmget(key(position), size, IPC_CREAT | IPC_EXCL | mode)
        if self.id < 0:
            raise OSError(ctypes.get_errno(), "shmget")
        self.address = _libc.shmat(self.id, None, 0)
        if self.address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "shmat")
        self.size = size

    def write(
        self,
        state: int,
        *,
        name: bytes = NAME,
        size: int | None = None,
        token: int = 1,
        family: int = 0,
        block: int = 0,
        serial: int = 0,
        length: int | None = None,
        version: int = 1,
    ) -> Segment:
        header = struct.pack(
            "<IQQQQIII",
            version,
            MAGIC,
            self.size - 4096 if size is None else size,
            token,
            family,
            block,
            serial,
            len(name) if length is None else length,
        )
        ctypes.memmove(self.address + 4, header + name, len(header) + len(name))
        self.state = state
        return self

    @property
    def state(self) -> int:
        return ctypes.c_uint32.from_address(self.address).value

    @state.setter
    def state(self, value: int) -> None:
        ctypes.c_uint32.from_address(self.address).value = value

    def set_size(self, value: int) -> None:
        ctypes.c_uint64.from_address(self.address + 16).value = value

    def fill(self, byte: bytes) -> None:
        ctypes.memset(self.address + 4096, byte[0], self.size - 4096)

    def remove(self) -> None:
        _libc.shmctl(self.id, IPC_RMID, None)

    def detach(self) -> None:
        _libc.shmdt(ctypes.c_void_p(self.address))


Turn = Callable[[], object]


def candidate() -> Turn:
    """Stays a candidate, whatever anybody makes of it."""
    segment = Segment(0).write(CANDIDATE)
    return lambda: setattr(segment, "state", CANDIDATE)


def candidates_everywhere() -> Turn:
    segments = [Segment(position).write(CANDIDATE) for position in range(PROBES)]
    return lambda: [setattr(segment, "state", CANDIDATE) for segment in segments]


def flips() -> Turn:
    """Every state in turn, at several keys."""
    segments = [Segment(position).write(NEW) for position in range(6)]

    def turn() -> None:
        for segment in segments:
            segment.state = random.randrange(5)

    return turn


def flips_size() -> Turn:
    segment = Segment(0).write(LIVE)

    def turn() -> None:
        for _ in range(2000):
            segment.set_size(1 << 40)
            segment.set_size(100)

    return turn


def flips_header() -> Turn:
    segments = [Segment(position, random.choice([4096, 4097, 8192])).write(LIVE) for position in range(4)]

    def turn() -> None:
        for segment in segments:
            start = random.randrange(0, 300)
            noise = os.urandom(random.randrange(1, 64))
            ctypes.memmove(segment.address + start, noise, len(noise))
            if random.randrange(2):
                segment.write(random.randrange(5))

    return turn


def nobody_elses() -> Turn:
    """All keys, of no use to anybody."""
    for position in range(PROBES):
        Segment(position)
    return lambda: None


def unreadable() -> Turn:
    for position in range(PROBES):
        Segment(position, mode=0o600).write(LIVE)
    return lambda: None


def no_end() -> Turn:
    """A name without an end, and lengths without a bound."""
    for position, length in enumerate((0xFFFFFFFF, 256, 257, 4096, 0x80000000)):
        Segment(position).write(LIVE, name=NAME + b"x" * 3000, length=length)
    return lambda: None


def small() -> Turn:
    for position, size in enumerate((1, 100, 4095)):
        Segment(position, size).write(LIVE, size=1 << 40)
    Segment(3, 4096).write(LIVE, size=1)
    Segment(4, 5000).write(LIVE, size=1 << 63)
    return lambda: None


def enormous() -> Turn:
    Segment(0, 1 << 36, 0o666 | SHM_NORESERVE).write(LIVE)
    return lambda: None


def removed() -> Turn:
    """Always about to vanish: removed, and kept attached."""
    kept: list[Segment] = []

    def turn() -> None:
        for position in range(3):
            try:
                segment = Segment(position, random.choice([4096, 8192, 65536]))
            except OSError:
                continue
            segment.write(random.choice([CANDIDATE, LIVE, GONE]))
            segment.remove()
            kept.append(segment)
        while len(kept) > 50:
            kept.pop(0).detach()

    return turn


def comes_and_goes() -> Turn:
    """Takes each key as soon as it is free, in every size, and gives it up."""

    def turn() -> None:
        made = []
        for position in random.sample(range(PROBES), PROBES):
            try:
                made.append(Segment(position, random.choice([1, 4096, 8192, 1 << 20])))
            except OSError:
                continue
            if made[-1].size > 4096:
                made[-1].write(random.choice([NEW, CANDIDATE, LIVE, GONE]))
        for segment in made:
            segment.remove()
            segment.detach()

    return turn


ATTACKS: dict[str, Callable[[], Turn]] = {
    attack.__name__: attack
    for attack in (
        candidate,
        candidates_everywhere,
        flips,
        flips_size,
        flips_header,
        nobody_elses,
        unreadable,
        no_end,
        small,
        enormous,
        removed,
        comes_and_goes,
    )
}


def remove_all() -> None:
    for position in range(PROBES):
        found = _libc.shmget(key(position), 0, 0)
        if found >= 0:
            _libc.shmctl(found, IPC_RMID, None)


def attack() -> None:
    """Until stdin is closed. Arguments: which attack, a seed."""
    random.seed(int(sys.argv[2]))
    turn = ATTACKS[sys.argv[1]]()
    print("ready", flush=True)
    os.set_blocking(0, False)
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            turn()
            try:
                if sys.stdin.buffer.raw.read(1) == b"":  # type: ignore[attr-defined]
                    break
            except BlockingIOError:
                pass
            time.sleep(0.0002)
    finally:
        remove_all()

"""Every local mechanism there is, side by side, in C: see floor/mechanisms.c for what each one does exactly."""

from __future__ import annotations

from functools import partial

import native
from harness import Case

from . import CASES

MECHANISMS = {
    "SysV queue": "sysv-queue",
    "POSIX queue": "posix-queue",
    "pipe": "pipe",
    "FIFO": "fifo",
    "Unix socket": "unix-socket",
    "SysV shm": "sysv-shm",
    "SysV shm, semop": "sysv-shm-semop",
    "POSIX shm": "posix-shm",
    "mmap'd file": "file",
}

SIZES = {"64 B": 64, "1 KB": 1 << 10, "8 KB": 1 << 13, "64 KB": 1 << 16, "1 MB": 1 << 20}

TITLES = {"latency": "there and back", "throughput": "one way, a stream"}

for what, title in TITLES.items():
    for text, size in SIZES.items():
        CASES.add(
            Case(
                f"mechanisms/{what}-{text.replace(' ', '')}",
                f"{text}, {title}",
                {name: partial(native.operation, "mechanisms", key, what, size) for name, key in MECHANISMS.items()},
                amount=size if what == "throughput" else 0,
                speed=0.35,
                quick=(what, text) in (("latency", "64 B"), ("throughput", "64 KB")),
            )
        )

"""How much memory workers have, and what happens to those that have too much.

What counts is private memory: what the system would have back if the process ended. Shared memory does not count, nor
what a forked worker has inherited and nobody has written to since.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpipc._pool.worker_handle import Member

__all__ = ["INTERVAL", "MemoryWatch", "private_memory"]

INTERVAL = 0.05
"""Seconds between two looks at the workers that run tasks."""

PRIVATE = (b"Private_Clean:", b"Private_Dirty:", b"Private_Hugetlb:", b"Swap:")
"""Lines of /proc/PID/smaps_rollup (proc(5)), which the kernel adds up page by page."""
ANONYMOUS = (b"RssAnon:", b"VmSwap:")
ALL = (b"VmRSS:", b"VmSwap:", b"HugetlbPages:")
"""Lines of /proc/PID/status, which the kernel knows."""


def private_memory(pid: int | str, limit: int = 0) -> int:
    """Bytes that only this process has, in memory or in swap; 0 if it is gone. "self" is the calling process.

    If the process has no more than `limit` altogether, that is what is returned. Without smaps_rollup it is all its
    anonymous memory: what a forked process has inherited is in that, too.
    """
    try:
        everything = _sum(f"/proc/{pid}/status", ALL)
        if everything <= limit:
            return everything
        try:
            return _sum(f"/proc/{pid}/smaps_rollup", PRIVATE)
        except (FileNotFoundError, PermissionError):
            return _sum(f"/proc/{pid}/status", ANONYMOUS)
    except OSError:  # it has ended
        return 0


def _sum(path: str, names: tuple[bytes, ...]) -> int:
    with open(path, "rb") as file:
        fields = [line.split() for line in file.read().splitlines()]
    return sum(int(field[1]) * 1024 for field in fields if len(field) > 1 and field[0] in names)


class MemoryWatch:
    """Kills workers that have more private memory than `limit` bytes while they run a task. The supervisor's."""

    def __init__(self, limit: int, lock: Any, members: Callable[[], list[Member]]) -> None:
        self._limit = limit
        self._lock = lock
        self._members = members
        self._next = 0.0

    def look(self) -> float | None:
        """Look at those that run tasks; returns in how many seconds to do so again, None if none has any."""
        running: list[tuple[Member, int]] = []
        with self._lock:
            busy = [member for member in self._members() if member.window and not member.condemned]
            for member in busy:
                if member.ledger.running_for is not None:  # else it is about to begin the next one
                    running.append((member, member.ledger.started))
        if not busy:
            return None
        start = time.monotonic()
        if start < self._next:  # something else has woken the supervisor
            return self._next - start
        for member, number in running:
            self._look_at(member, number)
        # A large process takes a while to be looked at; that is not to be all that is done.
        end = time.monotonic()
        self._next = end + max(INTERVAL - (end - start), end - start)
        return self._next - end

    def _look_at(self, member: Member, number: int) -> None:
        used = private_memory(member.process.pid, self._limit)
        if used <= self._limit:
            return
        with self._lock:
            if number in member.window and not member.condemned and member.ledger.condemn(number):
                member.condemned = number
                member.excess = (self._limit, used)
                member.process.kill()

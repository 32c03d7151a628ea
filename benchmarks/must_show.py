"""What mpipc is to reach, as ratios to its peers in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness import Result, Summary

MET, MISSED, NOT_MEASURED = "met", "**missed**", "not measured"


@dataclass(frozen=True)
class Target:
    """At most: the time of mpipc is at most `bound` times the peer's. Otherwise: mpipc is at least `bound` times as
    fast, which is the peer's time divided by mpipc's."""

    title: str
    case: str
    peer: str
    bound: float
    at_most: bool = False
    contestant: str = "mpipc"

    def measured(self, results: Mapping[str, Result]) -> Summary | None:
        result = results.get(self.case)
        if result is None:
            return None
        if self.at_most:
            return result.ratio(self.contestant, self.peer)
        return result.ratio(self.peer, self.contestant)

    def verdict(self, measured: Summary | None) -> str:
        """By the median."""
        if measured is None:
            return NOT_MEASURED
        return MET if self._reached(measured.median) else MISSED

    def certain(self, measured: Summary) -> bool:
        """Whether every single repetition says the same as the median."""
        return self._reached(measured.low) == self._reached(measured.high)

    def _reached(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound


MP, FIFO = "multiprocessing", "faster-fifo"

TARGETS: list[Target] = [
    Target("Lock acquire and release, uncontended", "locks/Lock-1", MP, 1.2, at_most=True),
    *(Target(f"Lock, {n} processes", f"locks/Lock-{n}", MP, 1.5, at_most=True) for n in (2, 4, 8)),
    Target("Value increment under its lock", "locks/Value-1", MP, 1.6),
    Target("Queue put and get in one process", "queues/one-process", MP, 15),
    Target("Queue put and get in one process", "queues/one-process", FIFO, 2),
    Target("Queue 1:1 stream of small dicts", "streams/1-1", MP, 2.5),
    Target("Queue 1:1 stream of small dicts", "streams/1-1", FIFO, 2),
    *(
        Target(f"Queue {pair.replace('-', ':')} stream of small dicts", f"streams/{pair}", peer, bound)
        for pair in ("1-10", "10-1", "3-20", "20-3", "20-20")
        for peer, bound in ((MP, 2.5), (FIFO, 1.0))
    ),
    *(
        Target(f"{size} numpy arrays through a Queue", f"messages/array-{size.replace(' ', '')}", peer, bound)
        for size in ("1 MB", "16 MB")
        for peer, bound in ((MP, 5.0), (FIFO, 3.0))
    ),
    *(
        Target(f"{size} of bytes through a Queue", f"messages/bytes-{size.replace(' ', '')}", peer, bound)
        for size in ("64 KB", "1 MB", "16 MB")
        for peer, bound in ((MP, 4.0), (FIFO, 1.0))
    ),
    Target("A new array of 64 MB, filled and summed", "arrays/new-64MB", MP, 5, contestant="mpipc.arrays"),
    Target("64 MB by reference, and 64 KB", "arrays/by-reference", "64 KB", 2, True, "64 MB"),
    Target("16 MB numpy arrays, received as views", "arrays/ordinary-16MB", MP, 12, contestant="mpipc copy=False"),
    Target("16 MB numpy arrays", "arrays/ordinary-16MB", MP, 8),
    Target("16 MB received as views: one memcpy", "arrays/ordinary-16MB", "one memcpy", 1.5, True, "mpipc copy=False"),
    Target("16 MB: two memcpy", "arrays/ordinary-16MB", "two memcpy", 1.5, True),
    Target("Pool.map over 100 arrays of 8 MB", "arrays/map", MP, 10, contestant="mpipc.arrays"),
    Target("Pool.map, chunksize 1, trivial task", "pools/map-1", MP, 3),
    Target("Pool.apply", "pools/apply", MP, 2),
    *(
        Target(f"10,000 locks alive: {title}", f"objects/{key}", "mpipc, 10 alive", 1.1, True, "mpipc, 10,000 alive")
        for title, key in (("acquire and release of one", "one-lock"), ("a wake-up by semaphores", "wake-up"))
    ),
    Target("import", "footprint/import", MP, 1.3, at_most=True),
    Target("Queue 1:1 stream: C floor, then pickle", "streams/1-1", "C + pickle", 1.5, at_most=True),
]

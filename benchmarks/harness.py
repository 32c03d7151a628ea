"""What a benchmark is, and the arithmetic of its results; nothing here measures by itself.

A *case* is one operation ("Lock, 2 processes"); its *contestants* are the implementations of it ("mpipc",
"multiprocessing", "C"). On a shared machine an absolute time says little and drifts during a run, so the contestants of
a case take turns, A B A B ..., and what is judged is the ratio of neighbours: both had the same machine. Shown are the
median over the repetitions and the spread, lowest to highest; a ratio whose spread crosses 1 found nothing.

A contestant is a function that prepares: it imports what it measures (no module of the suite does at its top, so that
nothing is loaded into the process that measures another), makes the objects, starts the processes, and returns an
Operation. run.py says in which process that happens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["ns", "bytes"]

OK, MISSING, FAILED, SKIPPED = "ok", "not installed", "failed", "not run"


@dataclass
class Operation:
    """What a contestant does in its turns."""

    run: Callable[[int], float | None]
    """Does the operation so many times. Returns the nanoseconds that all of them took, or, where the unit of the case
    is bytes, the sum of the sizes; None leaves the timing to the caller."""
    step: int = 1
    """run() is called with multiples of this."""
    close: Callable[[], None] = lambda: None
    """Ends what was started. Not called if a turn failed: the whole process tree is killed then."""


Prepare = Callable[[], Operation]


@dataclass
class Case:
    """One operation and who does it."""

    key: str
    """Unique, "group/name": for choosing cases on the command line and in must_show.py."""
    title: str
    contestants: Mapping[str, Prepare]
    unit: Unit = "ns"
    shared_count: bool = False
    """All do the operation the same number of times in a turn, where the costs depend on how many there are: of a queue
    that fills, for instance."""
    quick: bool = False
    """Part of the quick run."""
    fixed_count: int | None = None
    """Operations in a turn; None: as many as fit into the time of a turn."""
    amount: int = 0
    """Bytes that one operation moves, for a throughput."""
    speed: float = 1.0
    """Length of a turn compared with that of the other cases."""

    @property
    def group(self) -> str:
        return self.key.partition("/")[0]


class Registry(dict[str, Case]):
    """All cases, in the order in which they run and are shown."""

    def add(self, case: Case) -> None:
        if case.key in self:
            raise ValueError(f"two cases have the key {case.key}")
        self[case.key] = case

    def select(self, patterns: Sequence[str], quick: bool) -> list[Case]:
        """The cases whose key contains one of the patterns, or all; for a quick run those that are part of it."""
        if patterns:
            return [case for case in self.values() if any(pattern in case.key for pattern in patterns)]
        return [case for case in self.values() if case.quick or not quick]


@dataclass
class Measurement:
    """One contestant in one case."""

    status: str = OK
    reason: str = ""
    """Why there are no values."""
    count: int = 0
    """Operations in a turn."""
    values: list[float] = field(default_factory=list)
    """Nanoseconds or bytes per operation, repetition by repetition."""

    def fail(self, status: str, reason: str) -> None:
        self.status, self.reason, self.values = status, reason, []


@dataclass(frozen=True)
class Summary:
    """Median and spread."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary:
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


@dataclass
class Result:
    """What came out for one case."""

    key: str
    title: str
    unit: Unit
    amount: int
    contestants: dict[str, Measurement]

    @property
    def group(self) -> str:
        return self.key.partition("/")[0]

    def summary(self, contestant: str) -> Summary | None:
        measurement = self.contestants.get(contestant)
        return Summary.of(measurement.values) if measurement and measurement.values else None

    def ratios(self, contestant: str, reference: str) -> list[float]:
        """Time of the one / time of the other, repetition by repetition: less than 1 is faster. Empty if one of them
        has no times."""
        pair = [self.contestants.get(name) for name in (contestant, reference)]
        if not all(measurement and measurement.values for measurement in pair):
            return []
        mine, other = (measurement.values for measurement in pair if measurement)
        return [a / b for a, b in zip(mine, other, strict=True)]

    def ratio(self, contestant: str, reference: str) -> Summary | None:
        ratios = self.ratios(contestant, reference)
        return Summary.of(ratios) if ratios else None


MOST_OPERATIONS = 1 << 24


def calibrated(run: Callable[[int], float], nanoseconds: float, step: int) -> int:
    """How many operations take about so long; a multiple of `step`, and not less than it. run(count) returns how long
    count operations took."""
    count = step
    while True:
        elapsed = run(count)
        if elapsed >= nanoseconds / 3 or count >= MOST_OPERATIONS:
            return max(1, round(count * nanoseconds / elapsed / step)) * step if elapsed > 0 else count
        # What takes next to no time says little about how long more of it takes.
        growth = min(16.0, nanoseconds / elapsed) if elapsed > 0 else 16.0
        count = max(2, int(growth * count / step)) * step


def common_count(counts: Mapping[str, int], steps: Mapping[str, int], most: float = 4.0) -> int:
    """A count that all contestants use, from those that would each fill one turn: the fastest one's, but not so many
    that the slowest takes more than `most` turns' time. A multiple of every step (the steps divide one another)."""
    step = max(steps.values())
    wanted = min(max(counts.values()), most * min(counts.values()))
    return max(1, round(wanted / step)) * step


def time_text(nanoseconds: float) -> str:
    """With a unit, three digits."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{_digits(nanoseconds / size)} {unit}"
    return f"{_digits(nanoseconds)} ns"


def size_text(size: float) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{_digits(size / factor)} {unit}"
    return f"{size:.0f} B"


def value_text(value: float, unit: Unit) -> str:
    return time_text(value) if unit == "ns" else size_text(value)


def ratio_text(ratio: float) -> str:
    return _digits(ratio)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"

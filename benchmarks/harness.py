"""Measuring two or more implementations of one operation in one run, interleaved, and reporting ratios.

On a shared machine an absolute time says little and drifts during a run. So the contestants take turns, A B A B ...,
and what is reported is the ratio of neighbours: both had the same machine. Medians and the spread (lowest and highest)
over the repetitions are shown; a spread that crosses 1 means that nothing was found.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What came out for one case: nanoseconds per operation by contestant, in the order of the repetitions."""

    case: str
    times: Mapping[str, Sequence[float]]

    def median(self, contestant: str) -> float:
        return statistics.median(self.times[contestant])

    def ratios(self, contestant: str, reference: str) -> list[float]:
        """Time of the contestant / time of the reference, repetition by repetition. Less than 1 is faster."""
        return [mine / other for mine, other in zip(self.times[contestant], self.times[reference], strict=True)]


def timed(operation: Callable[[int], None], count: int) -> float:
    """Nanoseconds per operation of `operation(count)`, which does it count times."""
    begin = time.perf_counter_ns()
    operation(count)
    return (time.perf_counter_ns() - begin) / count


def calibrated(operation: Callable[[int], None], seconds: float) -> int:
    """How many operations take about this long. What an operation costs is told by the difference of two runs, because
    some cases start processes first."""
    count = 1
    short = timed(operation, count) * count
    while True:
        count *= 4
        longer = timed(operation, count) * count
        if longer - short >= seconds * 1e9 / 4 or count >= 1 << 24:
            return max(1, int(count * seconds * 1e9 / max(longer - short, 1)))


def compare(
    case: str,
    contestants: Mapping[str, Callable[[int], None]],
    *,
    repeat: int,
    seconds: float,
    shared_count: bool = False,
) -> Result:
    """Runs the contestants in turns, `repeat` times each, each turn about `seconds` long; with `shared_count` each does
    as many operations as the fastest, which makes a fixed cost (starting processes) weigh the same on all."""
    counts = {name: calibrated(operation, seconds) for name, operation in contestants.items()}
    if shared_count:
        counts = dict.fromkeys(counts, max(counts.values()))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeat):
        for name, operation in contestants.items():
            times[name].append(timed(operation, counts[name]))
    return Result(case, times)


def table(results: Sequence[Result], contestant: str, reference: str) -> str:
    """A Markdown table of medians and ratios."""
    lines = [
        f"| case | {contestant} | {reference} | ratio (lowest to highest) |",
        "| --- | ---: | ---: | --- |",
    ]
    for result in results:
        ratios = result.ratios(contestant, reference)
        lines.append(
            f"| {result.case} | {_time(result.median(contestant))} | {_time(result.median(reference))} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.2f} {unit}"
    return f"{nanoseconds:.0f} ns"

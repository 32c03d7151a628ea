"""What the outcomes mean: the table, the comparison with expected.toml, and whether the run has passed."""

from __future__ import annotations

import fnmatch
import platform
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suites import Unit

Outcomes = dict[Unit, dict[str, dict[str, dict[str, Any]]]]
"""unit -> side -> test -> outcome"""


@dataclass
class Entry:
    """A test that mpipc does not pass, and why that is so."""

    test: str
    """CLASS.TEST, with the patterns of fnmatch."""
    private_detail: str
    """The detail of CPython's implementation that the test looks at."""
    reason: str
    line: str
    """The line of CPython's file of tests that looks at it."""
    python: list[str] = field(default_factory=list)
    """Versions that have the test; without, all."""
    seen: set[str] = field(default_factory=set)
    passed: list[str] = field(default_factory=list)

    def matches(self, unit: Unit, test: str) -> bool:
        return fnmatch.fnmatchcase(f"{unit.class_name}.{test}", self.test)


def read_expected(path: Path) -> list[Entry]:
    """The entries for this version of Python. ValueError for an entry that does not say why."""
    entries = []
    for table in tomllib.loads(path.read_text()).get("test", []):
        needed = ("name", "line", "private_detail", "reason")
        if table.keys() - {*needed, "python"} or not all(table.get(key, "").strip() for key in needed):
            raise ValueError(f"{path}: an entry needs {', '.join(needed)}, may have python: {table}")
        entry = Entry(table["name"], table["private_detail"], table["reason"], table["line"], table.get("python", []))
        if not entry.python or ".".join(platform.python_version_tuple()[:2]) in entry.python:
            entries.append(entry)
    return entries


def table(outcomes: Outcomes, sides: tuple[str, ...]) -> Iterable[str]:
    """A line a class, with sums for each start method."""
    width = max((len(unit.name) for unit in outcomes), default=0)
    columns = "".join(f"  {side:^24}" for side in sides)
    words = "".join(f"  {'passed':>7} {'failed':>7} {'skipped':>8}" for _ in sides)
    for method in dict.fromkeys(unit.method for unit in outcomes):
        yield ""
        yield f"{method or 'other tests':<{width}}{columns}"
        yield f"{'':<{width}}{words}"
        total = {side: Counter[str]() for side in sides}
        for unit, by_side in outcomes.items():
            if unit.method == method:
                counts = {side: Counter(o["outcome"] for o in by_side.get(side, {}).values()) for side in sides}
                for side in sides:
                    total[side] += counts[side]
                yield f"{unit.name:<{width}}{_numbers(counts, sides)}"
        yield f"{'sum':<{width}}{_numbers(total, sides)}"


def _numbers(counts: dict[str, Counter[str]], sides: tuple[str, ...]) -> str:
    return "".join(f"  {counts[s]['passed']:>7} {counts[s]['failed']:>7} {counts[s]['skipped']:>8}" for s in sides)


ROUNDS = 40
"""How often a test that failed on mpipc is repeated on each side, at most."""


def unreliable(passes: Callable[[str], bool]) -> bool:
    """Whether a test that failed on mpipc, and passed on multiprocessing, fails at times on both: a race in the test.

    `passes` runs it on a side. It says nothing of mpipc if multiprocessing fails it, too, and mpipc passes it. That it
    passes when repeated is not enough, nor that multiprocessing fails it once if mpipc does again and again.
    """
    standard_failed = ours_passed = False
    for round in range(ROUNDS):
        standard_failed = standard_failed or not passes("multiprocessing")
        ours_passed = ours_passed or passes("mpipc")
        if standard_failed and ours_passed:
            return True
        if not ours_passed and round >= 2:
            break
    return False


def failures(outcomes: Outcomes, expected: list[Entry]) -> Iterator[tuple[Unit, str]]:
    """The tests that multiprocessing has passed and mpipc has failed, unexpectedly."""
    for unit, by_side in outcomes.items():
        standard = by_side.get("multiprocessing", {})
        for test, outcome in by_side.get("mpipc", {}).items():
            if (outcome["outcome"], standard.get(test, {}).get("outcome")) == ("failed", "passed") and not any(
                entry.matches(unit, test) for entry in expected
            ):
                yield unit, test


def judge(outcomes: Outcomes, expected: list[Entry], complete: bool) -> tuple[list[str], list[str]]:
    """What speaks against mpipc, and what is worth knowing. With the former empty the run has passed.

    A test that multiprocessing does not pass either, or not always, speaks against nobody. One that is skipped on mpipc
    only is as bad as one that fails. If the run was not complete, entries of the list that no test matched are nothing
    to complain of.
    """
    against: list[str] = []
    notes: list[str] = []
    failed: dict[tuple[str, str], list[str]] = {}  # (outcome, detail) -> tests: what broke them all is told once
    for unit, by_side in outcomes.items():
        standard, ours = by_side.get("multiprocessing", {}), by_side.get("mpipc", {})
        for test, outcome in ours.items():
            name = " ".join(filter(None, (unit.method, f"{unit.name}.{test}")))
            reference = standard.get(test, {}).get("outcome")
            entries = [entry for entry in expected if entry.matches(unit, test)]
            passed = outcome["outcome"] == "passed" or outcome["outcome"] == reference == "skipped"
            for entry in entries:
                entry.seen.add(test)
                if passed and reference != "skipped":
                    entry.passed.append(name)
            if passed or (outcome["outcome"] == "skipped" and not standard):
                if reference == "failed":
                    notes.append(f"fails on multiprocessing only: {name}")
            elif reference == "failed":
                notes.append(f"fails on both: {name}")
            elif outcome.get("unreliable"):
                notes.append(f"fails at times on both, and has failed on mpipc this time: {name}")
            elif entries:
                notes.append(f"expected: {name}: {entries[0].private_detail}")
            else:
                failed.setdefault((outcome["outcome"], outcome.get("detail", "")), []).append(name)
    for (what, detail), names in failed.items():
        against += [f"{what}: {name}" for name in names]
        against[-1] += f"\n{detail}".rstrip()
    for entry in expected:
        if entry.passed:
            against.append(f"expected to fail, and passed: {', '.join(entry.passed)}")
        elif not entry.seen and complete:
            against.append(f"expected to fail, and not found: {entry.test}")
    return against, notes

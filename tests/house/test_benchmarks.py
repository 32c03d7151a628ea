"""The benchmark suite: its arithmetic, that contestants which fail are told from those that do not, one real case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import processes, wait_until

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

sys.path.append(str(BENCHMARKS))

import lanes  # noqa: E402
import must_show  # noqa: E402
import tables  # noqa: E402
from cases import CASES  # noqa: E402
from harness import (  # noqa: E402
    FAILED,
    MISSING,
    OK,
    SKIPPED,
    Case,
    Measurement,
    Operation,
    Result,
    Summary,
    calibrated,
    common_count,
    size_text,
    time_text,
)
from must_show import MISSED, NOT_MEASURED, TARGETS, Target  # noqa: E402


def result(**times: list[float]) -> Result:
    return Result("a/case", "a case", "ns", 0, {name: Measurement(OK, "", 1, values) for name, values in times.items()})


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_a_ratio_is_that_of_neighbours_not_of_medians() -> None:
    drifting = result(a=[10.0, 20.0, 90.0], b=[5.0, 10.0, 30.0])
    assert drifting.summary("a") == Summary(20.0, 10.0, 90.0)
    assert drifting.ratios("a", "b") == [2.0, 2.0, 3.0]
    assert drifting.ratio("a", "b") == Summary(2.0, 2.0, 3.0)
    assert drifting.ratio("b", "a") == Summary(0.5, 1 / 3, 0.5)


def test_what_has_no_values_has_no_ratio() -> None:
    broken = result(a=[1.0, 2.0], b=[1.0, 2.0])
    broken.contestants["b"].fail(FAILED, "why")
    assert broken.ratio("a", "b") is None and broken.ratio("a", "nobody") is None
    assert broken.summary("b") is None


@pytest.mark.parametrize(("cost", "step"), [(10.0, 1), (1e3, 7), (1e6, 400), (1e9, 3)])
def test_calibration_fills_a_turn(cost: float, step: int) -> None:
    """With operations of a known cost after a start of a known cost, on a clock that only they move."""
    used = []

    def run(count: int) -> float:
        assert count % step == 0
        used.append(count)
        return count * cost

    count = calibrated(run, 1e8, step)
    assert count % step == 0
    assert count == step or count * cost == pytest.approx(1e8, rel=0.6)
    assert sum(used) * cost <= 2e8 or used == [step], "calibration is not to take longer than what it is for"


def test_a_common_count_bounds_the_slowest() -> None:
    assert common_count({"fast": 1000, "slow": 500}, {"fast": 1, "slow": 1}) == 1000
    assert common_count({"fast": 100_000, "slow": 500}, {"fast": 1, "slow": 1}) == 2000
    assert common_count({"fast": 1000, "slow": 333}, {"fast": 1, "slow": 60}) == 1020
    assert common_count({"fast": 5, "slow": 5}, {"fast": 1, "slow": 60}) == 60


def test_texts() -> None:
    times = {3.14159: "3.14 ns", 12.3456: "12.3 ns", 1234.5: "1.23 µs", 1.5e6: "1.50 ms", 2e9: "2.00 s"}
    assert {time: time_text(time) for time in times} == times
    assert [size_text(s) for s in (12, 1536, 3 << 20)] == ["12 B", "1.50 KiB", "3.00 MiB"]


def test_targets() -> None:
    results = {"a/case": result(mpipc=[10.0, 10.0, 10.0], peer=[19.0, 20.0, 21.0])}
    twice, thrice = Target("t", "a/case", "peer", 2), Target("t", "a/case", "peer", 3)
    at_most = Target("t", "a/case", "peer", 0.4, at_most=True)
    measured = twice.measured(results)
    assert measured == Summary(2.0, 1.9, 2.1)
    assert twice.verdict(measured) == must_show.MET and not twice.certain(measured)
    assert thrice.verdict(measured) == MISSED and thrice.certain(measured)
    assert at_most.measured(results) == Summary(0.5, 10 / 21, 10 / 19)
    assert at_most.verdict(at_most.measured(results)) == MISSED
    assert twice.verdict(twice.measured({})) == NOT_MEASURED


def test_every_target_names_what_is_measured() -> None:
    for target in TARGETS:
        assert {target.contestant, target.peer} <= set(CASES[target.case].contestants), target


def test_every_case_has_a_group_that_is_reported() -> None:
    assert {case.group for case in CASES.values()} == set(tables.GROUPS)
    assert any(case.quick for case in CASES.values())


# --- contestants that go wrong ----------------------------------------------------------------------------------------

CONTESTANTS = """
import os, signal
from cases import CASES
from harness import Case, Operation

def chatty():
    print("not an answer")
    return Operation(lambda count: print("nor this") or 5.0 * count)

def missing():
    import no_such_peer

def raising():
    def run(count):
        raise ValueError("a mistake")
    return Operation(run)

def dying():
    def run(count):
        os._exit(3)
    return Operation(run)

def hanging():
    child = os.fork()
    if child == 0:
        signal.pause()
    with open(os.environ["CHILD_FILE"], "w") as file:
        file.write(str(child))
    return Operation(lambda count: signal.pause())

CASES.add(Case("test/wrong", "things that go wrong", {
    name: globals()[name] for name in ("chatty", "missing", "raising", "dying", "hanging")
}))
"""


def test_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "wrong_contestants.py"
    module.write_text(CONTESTANTS)
    child_file = tmp_path / "child"
    monkeypatch.setenv("CHILD_FILE", str(child_file))
    names = ["chatty", "missing", "raising", "dying", "hanging"]
    case = Case("test/wrong", "things that go wrong", {name: lambda: Operation(lambda count: None) for name in names})
    outcome = lanes.measure(case, repeat=3, seconds=1e-6, timeout=3, modules=[str(module)])
    found = {name: (m.status, m.reason) for name, m in outcome.contestants.items()}
    assert found == {
        "chatty": (OK, ""),
        "missing": (MISSING, "No module named 'no_such_peer'"),
        "raising": (FAILED, "ValueError: a mistake"),
        "dying": (FAILED, "ended with status 3"),
        "hanging": (FAILED, "no answer within 3 s"),
    }
    assert outcome.contestants["chatty"].values == [5.0, 5.0, 5.0]
    child = int(child_file.read_text())
    wait_until(lambda: child not in processes() or processes()[child].state == "Z")
    told = list(tables.problems({"test/wrong": outcome}))
    assert told[0] == "missing: not installed in test/wrong: No module named 'no_such_peer'"
    assert "| missing | not installed |" in tables.table([outcome])


def test_nothing_is_begun_when_the_time_is_over() -> None:
    outcome = lanes.measure(CASES["locks/Lock-1"], repeat=1, seconds=1, timeout=1, deadline=time.monotonic() - 1)
    assert {measurement.status for measurement in outcome.contestants.values()} == {SKIPPED}


# --- the real thing ---------------------------------------------------------------------------------------------------


def run_suite(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "MPLCONFIGDIR": os.environ.get("TMPDIR", "/tmp")},
    )


@pytest.mark.compares
@pytest.mark.timeout(300)
def test_one_case_and_its_page(tmp_path: Path) -> None:
    cases = ("locks/Lock-1", "wakeups/semaphore", "footprint/import")
    run = run_suite("--repeat", 2, "--seconds", 0.002, "--output", tmp_path, *cases)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    found: dict[str, Any] = {result["key"]: result["contestants"] for result in results}
    assert set(found) == set(cases)
    for key, contestants in found.items():
        for name in ("mpipc", "multiprocessing"):
            assert contestants[name]["status"] == OK, contestants[name]["reason"]
            assert len(contestants[name]["values"]) == 2 and min(contestants[name]["values"]) > 0
        for name, measurement in contestants.items():
            assert measurement["status"] in (OK, MISSING), (key, name, measurement["reason"])
    page = (tmp_path / "results.md").read_text()
    assert "| Lock acquire and release, uncontended | multiprocessing | at most 1.2 times its time |" in page
    assert "| Semaphore: release to acquire, there and back | mpipc |" in page


def test_publishing_replaces_what_is_between_the_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    run = {
        "machine": {
            "date": "2020-01-01 00:00 UTC",
            "python": "CPython",
            "kernel": "Linux",
            "virtual machine": False,
            "processors": 2,
            "processor": "a processor",
        },
        "settings": {"repetitions": 5},
    }
    for _ in range(2):
        tables.publish(readme, run, {"locks/Lock-1": result(mpipc=[1.0], multiprocessing=[1.0])})
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("Measured on 2020-01-01") == 1
    with pytest.raises(SystemExit):
        (tmp_path / "none.md").write_text("nothing\n")
        tables.publish(tmp_path / "none.md", run, {})


def test_the_readme_has_the_marks() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.index(tables.BEGIN) < text.index(tables.END)

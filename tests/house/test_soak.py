"""The soak (`make soak`) finds what it is made to find: each of its scenarios, broken on purpose, fails."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from soak.runner import SCENARIOS, plan
from soak.storm import forecast
from support import TESTS, package_folder

SEED = 20

FAULTS = [f"{scenario.__name__}:{fault}" for scenario in SCENARIOS for fault in scenario.faults]
QUICK = (
    "Limit:takes without asking",
    "Queues:tears one",
    "Locks:enters without the lock",
    "Names:writes into a stranger's",
)


def soak(*options: str, patience: float = 15.0) -> subprocess.CompletedProcess[str]:
    package = package_folder()
    assert package is not None
    return subprocess.run(
        [sys.executable, "-m", "soak", "--seed", str(SEED), "--patience", str(patience), *options],
        cwd=TESTS,
        env={
            "PATH": str(Path(sys.executable).parent),
            "PYTHONPATH": f"{TESTS}:{package.parent}",
            "MPIPC_SOAK_PATIENCE": "6",
        },
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_few_rounds() -> None:
    result = soak("--rounds", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 rounds" in result.stdout
    assert "nothing is left" in result.stdout


@pytest.mark.slow_but(*QUICK)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_on_purpose_is_found(fault: str) -> None:
    result = soak("--round", "5", "--fault", fault)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAILED: " in result.stdout
    assert "FAILED: Traceback" not in result.stdout, "found by a check, not by chance"
    assert f"make soak SEED={SEED} ROUND=5" in result.stdout


def test_every_scenario_can_fail() -> None:
    assert all(scenario.faults for scenario in SCENARIOS if "Queues" not in scenario.__name__[1:])


def test_a_round_is_decided_by_its_seed() -> None:
    for number in range(3 * len(SCENARIOS)):
        first, again = plan(SEED, number), plan(SEED, number)
        assert first[:3] == again[:3]
        assert forecast(first.rng, 3.0, False) == forecast(again.rng, 3.0, False)
    each = {plan(SEED, number).scenario for number in range(len(SCENARIOS))}
    assert each == set(SCENARIOS), "a pass has them all"
    assert forecast(random.Random(1), 100.0, False) != forecast(random.Random(2), 100.0, False)

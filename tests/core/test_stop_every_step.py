"""A process that stands still, for ticks, after any instruction of an operation leaves everybody else waiting or
served, and never failing: see native/stop_scenarios.h."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.native_programs import NATIVE, compile_with_core, run_scenario, stepping

SCENARIOS = re.findall(r'^    \{"([a-z0-9-]+)", ', (NATIVE / "stop_scenarios.h").read_text(), re.MULTILINE)

pytestmark = stepping


@pytest.fixture(scope="module")
def stop_every_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_with_core(
        NATIVE / "kill_every_step.c",
        tmp_path_factory.mktemp("native") / "stop_every_step",
        "-DMP_TICK_NS=10000000ll",
        "-DMP_PATIENCE_NS=3000000ll",
        "-DMP_POST_AFTER_NS=1000000ll",
        "-DMP_SUSPICION_MS=2",
        "-DMP_BANK=256u",
    )


def test_all_scenarios_are_run_here(stop_every_step: Path) -> None:
    command = [stop_every_step, "--stop", "--list"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == SCENARIOS


QUICK = """
    count heal lock task-done get mend ledger-start cell-notify semaphore event put rw-read shutdown broadcast-get
""".split()  # noqa: SIM905
"""One or more of everything that is shared."""


@pytest.mark.slow_but(*QUICK)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stopped_after_every_step(stop_every_step: Path, scenario: str) -> None:
    run_scenario(stop_every_step, "--stop", scenario)

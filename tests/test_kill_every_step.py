"""SIGKILL after every single instruction of every operation of the C core: see native/kill_every_step.c."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from native_programs import NATIVE, compile_with_core, run_scenario, stepping

SOURCE = NATIVE / "kill_every_step.c"
SCENARIOS = re.findall(r'^    \{"([a-z0-9-]+)", ', SOURCE.read_text(), re.MULTILINE)

pytestmark = stepping


@pytest.fixture(scope="module")
def kill_every_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_with_core(
        SOURCE,
        tmp_path_factory.mktemp("native") / "kill_every_step",
        "-DMP_TICK_NS=3600000000000ll",  # nothing is put right by looking again
        "-DMP_SUSPICION_MS=2",
    )


def test_all_scenarios_are_run_here(kill_every_step: Path) -> None:
    listed = subprocess.run([kill_every_step, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert listed == SCENARIOS


# Those in which what rests on SEM_UNDO is changed, and one of each kind of recovery.
WITHOUT_UNDO = """
    recover found sweep join fork-prepare start arrive transit lock-acquire notify-1-of-2 semaphore-return
    semaphore-return-to-sleeper queue-take-from-both block-drop-with-chunks
""".split()  # noqa: SIM905  (a list of them is longer than what it is for)


@pytest.fixture(scope="module")
def without_undo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a kernel that accepts SEM_UNDO and ignores it."""
    return compile_with_core(
        SOURCE,
        tmp_path_factory.mktemp("native") / "kill_every_step",
        *("-DMP_TICK_NS=3600000000000ll", "-DMP_SUSPICION_MS=2", "-DUNDO_IGNORED", str(NATIVE / "ignore_undo.c")),
    )


@pytest.mark.parametrize("scenario", WITHOUT_UNDO)
def test_killed_after_every_step_without_undo(without_undo: Path, scenario: str) -> None:
    run_scenario(without_undo, scenario)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_after_every_step(kill_every_step: Path, scenario: str) -> None:
    run_scenario(kill_every_step, scenario)

"""SIGKILL after every single instruction of every operation of the C core: see native/kill_every_step.c."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest
from helpers import CORE, build_native

SOURCE = Path(__file__).with_name("native") / "kill_every_step.c"
SCENARIOS = re.findall(r'^    \{"([a-z0-9-]+)", ', SOURCE.read_text(), re.MULTILINE)

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="atomics of other processors cannot be single-stepped"),
    pytest.mark.skipif(not CORE.is_dir(), reason="the C sources are not here"),
]


@pytest.fixture(scope="module")
def kill_every_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, linked with the C core as it is in the source tree."""
    return build_native(
        "kill_every_step.c",
        tmp_path_factory.mktemp("native"),
        "-Wl,-z,now",  # no steps of the dynamic linker in between
        "-DMP_TICK_NS=3600000000000ll",  # nothing is put right by looking again
        "-DMP_SUSPICION_MS=2",
    )


def test_all_scenarios_are_run_here(kill_every_step: Path) -> None:
    listed = subprocess.run([kill_every_step, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert listed == SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_after_every_step(kill_every_step: Path, scenario: str) -> None:
    result = subprocess.run([kill_every_step, scenario], capture_output=True, text=True, timeout=100)
    print(result.stdout)
    if "ptrace" in result.stderr and "Operation not permitted" in result.stderr:
        pytest.skip("ptrace(2) is not permitted here")
    assert result.returncode == 0, result.stderr

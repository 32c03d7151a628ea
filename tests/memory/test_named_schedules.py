"""Names settled in every order of the rivals' system calls: see native/named_schedules.c."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from support.native_programs import CORE, NATIVE, compile_with_core

pytestmark = pytest.mark.skipif(not CORE.is_dir(), reason="the C sources are not here")


@pytest.fixture(scope="module")
def named_schedules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, linked with the C core as it is in the source tree."""
    return compile_with_core(
        NATIVE / "named_schedules.c", tmp_path_factory.mktemp("native") / "named_schedules", "-DMP_SUSPICION_MS=2"
    )


@pytest.mark.slow_but("known")
@pytest.mark.parametrize("first", [0, random.randrange(1 << 40)], ids=["known", "new"])
def test_one_live_segment_of_a_name_in_every_order(named_schedules: Path, first: int) -> None:
    """Without step 2 of the protocol this fails at schedule 1, without one of its three cases at 18 and 145."""
    result = subprocess.run([named_schedules, str(first), "160"], capture_output=True, text=True, timeout=100)
    if "ptrace" in result.stderr:
        pytest.skip("ptrace(2) is not permitted here")
    assert result.returncode == 0, result.stderr

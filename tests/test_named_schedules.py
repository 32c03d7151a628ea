"""Names settled in every order of the rivals' system calls: see native/named_schedules.c."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("native") / "named_schedules.c"
CORE = Path(__file__).resolve().parent.parent / "mpipc/family/src"

pytestmark = pytest.mark.skipif(not CORE.is_dir(), reason="the C sources are not here")


@pytest.fixture(scope="module")
def named_schedules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, linked with the C core as it is in the source tree."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        compiler = shutil.which("cc") or pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("native") / "named_schedules"
    core = [path for path in sorted(CORE.glob("*.c")) if path.name != "reaper.c"]
    result = subprocess.run(
        [
            compiler,
            *("-O2", "-std=gnu11", "-DMP_SUSPICION_MS=2"),
            *("-I", str(CORE), "-o", str(program), str(SOURCE), *map(str, core), "-lpthread"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return program


@pytest.mark.parametrize("first", [0, random.randrange(1 << 40)], ids=["known", "new"])
def test_one_live_segment_of_a_name_in_every_order(named_schedules: Path, first: int) -> None:
    """Without step 2 of the protocol this fails at schedule 1, without one of its three cases at 18 and 145."""
    result = subprocess.run([named_schedules, str(first), "160"], capture_output=True, text=True, timeout=100)
    if "ptrace" in result.stderr:
        pytest.skip("ptrace(2) is not permitted here")
    assert result.returncode == 0, result.stderr

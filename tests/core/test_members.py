"""How many processes a family has room for, and deaths that are told in another order than the kernel promises.

See native/members.c.
"""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest
from support import package_folder
from support.native_programs import CORE, NATIVE, compile_with_core

ROOM = 8192

pytestmark = pytest.mark.skipif(not CORE.is_dir(), reason="the C sources are not here")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_with_core(NATIVE / "members.c", tmp_path_factory.mktemp("native") / "members")


def run(program: Path, *arguments: str) -> str:
    package = package_folder()
    assert package is not None
    reaper = package / "family/mpipc-reaper"
    result = subprocess.run(
        [program, arguments[0], reaper, *arguments[1:]], capture_output=True, text=True, timeout=100
    )
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    return result.stdout


def most_processes() -> float:
    limits: list[float] = [float(Path("/proc/sys/kernel/pid_max").read_text())]
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    for name in ("pids.max", "pids/pids.max"):
        path = Path("/sys/fs/cgroup") / name
        if path.exists() and (text := path.read_text().strip()) != "max":
            limits.append(int(text))
    return min(limits)


@pytest.mark.slow
@pytest.mark.skipif(most_processes() < 2 * ROOM, reason=f"fewer than {2 * ROOM} processes are permitted here")
def test_a_family_takes_as_many_as_it_says_and_refuses_one_more(members: Path) -> None:
    output = run(members, "fill").splitlines()
    assert output[0].startswith(f"{ROOM - 1} members and their parent")
    assert output[1].startswith("one more:")
    assert output[2].startswith("all killed and cleared")


def test_a_death_that_rings_before_it_can_be_seen(members: Path) -> None:
    assert run(members, "reversed", "20").startswith("20 deaths in the wrong order")

"""Programs that use torch.multiprocessing and DataLoader (compat/torch_programs.py) come out the same on either
package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import package_folder

pytestmark = [
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed (make test-torch)"),
    pytest.mark.slow_with("spawn", "forkserver"),
    pytest.mark.timeout(1200),
]

PROGRAMS = Path(__file__).resolve().parents[2] / "compat" / "torch_programs.py"


def outcomes(options: list[str], method: str, folder: Path) -> dict[str, list[str]]:
    """By program: the lines that it has put out."""
    package = package_folder()
    path = [str(package.parent) if package else "", os.environ.get("PYTHONPATH", "")]
    found = subprocess.run(
        [sys.executable, *options, str(PROGRAMS), method],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "TMPDIR": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    programs: dict[str, list[str]] = {}
    for line in found.stdout.splitlines():
        if line.startswith("== "):
            lines = programs[line[3:]] = []
        else:
            lines.append(line)
    return programs


def test_the_same_outcomes(start_method: str, tmp_path: Path) -> None:
    plain = outcomes([], start_method, tmp_path)
    ours = outcomes(["-m", "mpipc", "run"], start_method, tmp_path)
    assert len(plain) > 30 and "end" in plain
    assert not [name for name, lines in plain.items() if any(line.startswith("FAILED") for line in lines)]
    assert ours == plain

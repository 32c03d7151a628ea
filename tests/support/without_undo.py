"""Programs on a kernel that ignores SEM_UNDO: see .ci/without-undo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import TESTS, package_folder

WITHOUT_UNDO = TESTS.parent / ".ci" / "without-undo"
AS_ROOT = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]


def _can(*unshare: str) -> bool:
    return subprocess.run(["unshare", *unshare, "true"], check=False, stderr=subprocess.DEVNULL).returncode == 0


can_ignore_undo = pytest.mark.skipif(
    not (WITHOUT_UNDO.exists() and shutil.which("cc") and _can(*AS_ROOT, "--ipc", "--mount")),
    reason="it takes a source tree, a C compiler, and root or user namespaces to preload a library into everything",
)


def run_without_undo(script: str, *folders: Path) -> str:
    """What a script prints on a kernel that ignores SEM_UNDO; it can import what is in the folders."""
    path = (*folders, TESTS, package_folder().parent)  # type: ignore[union-attr]
    result = subprocess.run(
        [WITHOUT_UNDO, sys.executable, "-c", textwrap.dedent(script)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        cwd="/",
    )
    assert result.returncode == 0, result.stderr
    return result.stdout

"""Compiles the C programs in tests/native/ with the C core as it is in the source tree."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from support import TESTS

__all__ = ["CORE", "NATIVE", "compile_with_core", "run_scenario", "stepping"]

NATIVE = TESTS / "native"
CORE = TESTS.parent / "mpipc/_core/src"

stepping = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="atomics of other processors cannot be single-stepped"),
    pytest.mark.skipif(not CORE.is_dir(), reason="the C sources are not here"),
]
"""Marks of tests whose program steps through another one."""


def compile_with_core(source: Path, program: Path, *flags: str) -> Path:
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        compiler = [shutil.which("cc") or pytest.skip("no C compiler")]
    core = [path for path in sorted(CORE.glob("*.c")) if path.name != "mpipc-reaper.c"]
    result = subprocess.run(
        [
            *compiler,
            *("-O2", "-std=gnu11", "-Wl,-z,now", *flags),  # -z now: no steps of the dynamic linker in between
            *("-iquote", str(CORE), "-o", str(program), str(source), *map(str, core), "-lpthread"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return program


def run_scenario(program: Path, *arguments: str) -> None:
    result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=100)
    print(result.stdout)
    if "ptrace" in result.stderr and "Operation not permitted" in result.stderr:
        pytest.skip("ptrace(2) is not permitted here")
    assert result.returncode == 0, result.stderr

"""The floor: programs in C that do the same operation, compiled by the system's compiler for this run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from harness import Operation

SOURCES = Path(__file__).resolve().parent / "floor"
FOLDER = "MPIPC_BENCHMARK_FLOOR"
"""Environment variable that names the folder of the programs."""

FLAGS = ["-O2", "-std=gnu11", "-Wall", "-Wextra"]
LIBRARIES = ["-pthread", "-lrt"]


def compiler() -> list[str]:
    """The compiler that CC names, or that Python was built with."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def build(folder: Path) -> str:
    """Compiles what has changed and tells lanes where to find it. Returns what the compiler said if it did not work."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[FOLDER] = str(folder)
    newest_header = max(header.stat().st_mtime for header in SOURCES.glob("*.h"))
    for source in sorted(SOURCES.glob("*.c")):
        program = folder / source.stem
        if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime, newest_header):
            continue
        command = [*compiler()[:1], *FLAGS, "-o", str(program), str(source), *LIBRARIES]
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return str(error)
        if result.returncode != 0:
            return result.stderr
    return ""


def run(program: str, *arguments: object) -> float:
    """The nanoseconds that the program prints."""
    path = Path(os.environ[FOLDER], program)
    if not path.exists():
        raise ModuleNotFoundError(f"{program}.c could not be compiled")
    result = subprocess.run([str(path), *map(str, arguments)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stderr.strip() or f"{program} ended with status {result.returncode}")
    return float(result.stdout)


def operation(program: str, *arguments: object, step: int = 1) -> Operation:
    """program ARGUMENTS... COUNT; what it prints is the time of the operations alone, without its start."""
    if not Path(os.environ[FOLDER], program).exists():
        raise ModuleNotFoundError(f"{program}.c could not be compiled")
    return Operation(lambda count: run(program, *arguments, count), step=step)

"""One process of tests: started in a session and, where permitted, an IPC namespace of its own; ended with all it left.

A test that hangs costs itself only: the stacks of all processes of its session are taken, they are killed, and the
tests that were still to come run in another process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from suites import Unit
from worker import STARTUP

HERE = Path(__file__).resolve().parent

SIDES = ("multiprocessing", "mpipc")

STACKS = 3.0  # seconds for the processes of a session to write their stacks


@cache
def isolation() -> tuple[str, ...]:
    """What to put before a command so that it has an IPC namespace of its own; nothing if that is not permitted."""
    unshare = shutil.which("unshare")
    if unshare is not None and subprocess.run([unshare, "--ipc", "true"], capture_output=True).returncode == 0:
        return (unshare, "--ipc")
    return ()


@contextlib.contextmanager
def interpreter(package_folder: Path) -> Iterator[Path]:
    """A Python in a virtual environment that has mpipc, and startup.py in its site-packages."""
    with tempfile.TemporaryDirectory(prefix="mpipc-compat-") as folder:
        venv.EnvBuilder(symlinks=True).create(folder)
        site = next(Path(folder).glob("lib/python*/site-packages"))
        shutil.copy(HERE / "startup.py", site / "mpipc_compat_startup.py")
        (site / "mpipc_compat.pth").write_text(f"{package_folder}\nimport mpipc_compat_startup\n")
        yield Path(folder, "bin", "python")


_leaders: set[int] = set()
_broken_off = threading.Event()


def kill_all() -> None:
    """Kill all that is running, and start nothing more: the run is broken off."""
    _broken_off.set()
    for leader in list(_leaders):
        _signal(leader, signal.SIGKILL)


def run_unit(python: Path, side: str, unit: Unit, timeout: float) -> dict[str, dict[str, Any]]:
    """What became of each test of a unit: {test: {"outcome": "passed" | "failed" | "skipped", "detail", "seconds"}}."""
    outcomes: dict[str, dict[str, Any]] = {}
    while (left := [test for test in unit.tests if test not in outcomes]) and not _broken_off.is_set():
        with tempfile.TemporaryDirectory(prefix="mpipc-compat-") as folder:
            results, output = Path(folder, "results"), Path(folder, "output")
            work = Path(folder, "work")
            work.mkdir()
            command = [*isolation(), str(python)]
            if side == "mpipc":
                command += ["-m", "mpipc", "run"]
            command += [str(HERE / "worker.py"), str(results), unit.module, unit.class_name, *left]
            environment = {
                name: value
                for name, value in os.environ.items()
                if name == "PYTHONPATH" or not name.startswith(("PYTHON", STARTUP))  # they change what is tested
            }
            environment |= {"PYTHONFAULTHANDLER": "1"}
            ended = _run(command, work, environment, output, results, timeout)
            _collect(unit, left, outcomes, results, output, side, ended)
    return outcomes


def _run(
    command: list[str], folder: Path, environment: dict[str, str], output: Path, results: Path, timeout: float
) -> str:
    """Run until it ends, or no test has ended for `timeout` seconds. How it ended, as a sentence."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _leaders.add(process.pid)
        while True:
            began = time.monotonic()
            with contextlib.suppress(FileNotFoundError):
                began -= time.time() - results.stat().st_mtime
            try:
                status = process.wait(max(0.1, timeout - (time.monotonic() - began)))
                ended = f"the process of the test ended with status {status}"
                break
            except subprocess.TimeoutExpired:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - results.stat().st_mtime < timeout:
                        continue
                ended = f"no end after {timeout:g} s; stacks of {len(_session(process.pid))} processes:"
                _signal(process.pid, signal.SIGABRT)  # faulthandler's
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STACKS)
                break
        _signal(process.pid, signal.SIGKILL)
        process.wait()
        _leaders.discard(process.pid)
    return ended


def _session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, session = (
                    Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
                )
                if int(session) == leader and state != "Z":
                    found.append(int(entry.name))
    return found


def _signal(leader: int, number: signal.Signals) -> None:
    for pid in _session(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _collect(
    unit: Unit,
    tests: list[str],
    outcomes: dict[str, dict[str, Any]],
    results: Path,
    output: Path,
    side: str,
    ended: str,
) -> None:
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    text = output.read_text(errors="replace")
    running, fixture, finished = None, None, False
    for line in lines:
        if "package" in line and line["package"] != side:
            sys.exit(f"the tests ran on {line['package']}, and should have on {side}")
        if line.get("outcome") == "started":
            running = line["test"]
        elif "test" in line:
            outcomes[line.pop("test")] = line
            running = None
        elif "fixture" in line:
            fixture = line
        elif "finished" in line:
            finished = True
    for test in tests:
        if test not in outcomes and finished and fixture is not None:  # the class, or the module, could not be set up
            outcomes[test] = {"outcome": fixture["outcome"], "detail": fixture["detail"], "seconds": 0}
    if not finished:  # of the test that was running, or of all if it was none
        for test in [running] if running is not None else [test for test in tests if test not in outcomes]:
            outcomes[test] = {"outcome": "failed", "detail": f"{ended}\n{text[-20000:]}", "seconds": 0}

"""An IPC namespace for the tests, and what the output says first.

Each pytest-xdist worker, or pytest itself when it runs alone, moves into an IPC namespace of its own where that is
permitted (see support/privileges.py). Then the check for leftovers is exact. Where it is not permitted the machine's
namespace is shared with everybody, nobody can tell whose an object is, and objects are counted once, for the whole
session, by the process that started it. The first lines of the output say which of the two it is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.machinery
import os
import signal
import sys
import uuid
from typing import Any, TextIO

import pytest
from support import TESTS, KernelObjects, kernel_objects, package_folder
from support.privileges import isolate_ipc

RUN_ID_VARIABLE = "MPIPC_TEST_RUN"
"""Environment variable that names the run of pytest; every program started by a test inherits it."""

ROOT = TESTS.parent


class State:
    """What the hooks below share; one instance a process."""

    isolated = False
    controller = False
    terminal: TextIO = sys.__stderr__  # type: ignore[assignment]
    before_session: KernelObjects | None = None


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not is_worker(config):
        os.environ[RUN_ID_VARIABLE] = uuid.uuid4().hex
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Inherited from a shell that runs us in the background; the tests press Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    State.controller = not is_worker(config) and config.getoption("dist", "no") != "no"
    State.isolated = isolate_ipc(parent_of_workers=State.controller)
    if not is_worker(config):
        State.before_session = kernel_objects(uid=os.geteuid())
    State.terminal = _uncaptured_stderr(config)
    faulthandler.register(signal.SIGUSR1, file=State.terminal, all_threads=True)


def _uncaptured_stderr(config: pytest.Config) -> TextIO:
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
        return os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")


def pytest_report_header(config: pytest.Config) -> list[str]:
    if State.isolated:
        isolation = "a namespace of its own for every process that runs tests, checked after each test"
    else:
        isolation = "no permission to make a namespace: the machine's is used, and checked once, at the end"
    lines = [f"ipc: {isolation}", f"mpipc: {package_folder() or 'not found'}"]
    stale = _stale_modules()
    if stale:
        lines.append(f"mpipc: NOT BUILT or older than its source (run make build): {', '.join(stale)}")
    return lines


def _stale_modules() -> list[str]:
    """The compiled modules of the source tree that the package under test does not have in their present state."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    package = package_folder() or ROOT / "mpipc"
    stale = []
    for source in sorted((ROOT / "mpipc").rglob("*.pyx")):
        inputs = [source, *source.parent.glob("*.pxd")]
        if source.parent.name != "sysv":
            inputs += (ROOT / "mpipc/_core/src").glob("*.[ch]")
        built = (package / source.relative_to(ROOT / "mpipc")).with_name(source.stem + suffix)
        if not built.exists() or built.stat().st_mtime < max(path.stat().st_mtime for path in inputs):
            stale.append(".".join(source.relative_to(ROOT).with_suffix("").parts))
    return stale

"""What the tests share: polling, what the kernel holds, which processes exist, and scripts run in a fresh interpreter.

`from support import ...` works in every test, and in the scripts that `run_script` runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from support.privileges import NOBODY, become, can_become

__all__ = [
    "NOBODY",
    "SANITIZED",
    "START_METHODS",
    "TESTS",
    "TEST_ID_VARIABLE",
    "KernelObjects",
    "ProcessInfo",
    "Script",
    "ScriptTimeout",
    "become",
    "can_become",
    "child_processes",
    "descendants",
    "describe_object",
    "dump_stacks",
    "ipc_namespace",
    "kernel_objects",
    "kernel_rows",
    "kill_process",
    "package_folder",
    "processes",
    "run_script",
    "start_script",
    "sysctl",
    "wait_until",
]

T = TypeVar("T")

TEST_ID_VARIABLE = "MPIPC_TEST_ID"
"""Environment variable that names the running test; every program started by the test inherits it."""

START_METHODS = ("fork", "spawn", "forkserver")

TESTS = Path(__file__).resolve().parents[1]

SANITIZED = "MPIPC_SANITIZED" in os.environ
"""Whether this is `make sanitize`: the address sanitizer takes terabytes of address space."""


@contextlib.contextmanager
def sysctl(name: str, value: str | int) -> Iterator[None]:
    """Sets kernel.`name` of this IPC namespace for a while. The test is skipped where that is not permitted."""
    import pytest  # scripts import this module where there is no pytest

    path = Path("/proc/sys/kernel", name)
    old = path.read_text()
    try:
        path.write_text(str(value))
    except OSError as error:
        pytest.skip(f"needs to set kernel.{name}: {error}")
    try:
        yield
    finally:
        path.write_text(old)


def wait_until(predicate: Callable[[], T], *, timeout: float = 10.0, message: str = "") -> T:
    """Poll until `predicate()` is true and return its value; AssertionError after `timeout` seconds.

    For conditions that nothing announces. `timeout` is how long a hung test may take to fail, not an expectation of
    speed: be generous.
    """
    deadline = time.monotonic() + timeout
    pause = 0.0005
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            what = message or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"still not true after {timeout:g} s: {what} (last value {value!r})")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


# --- kernel objects ---------------------------------------------------------------------------------------------------

_ID_COLUMN = {"msg": "msqid", "sem": "semid", "shm": "shmid"}


def kernel_rows(kind: str) -> dict[int, dict[str, int]]:
    """`/proc/sysvipc/<kind>` of the caller's IPC namespace: id -> {column: value}; "perms" is decoded from octal."""
    header, *lines = Path("/proc/sysvipc", kind).read_text().splitlines()
    columns = header.split()
    rows = {}
    for line in lines:
        row = {
            column: int(field, 8 if column == "perms" else 10)
            for column, field in zip(columns, line.split(), strict=True)
        }
        rows[row[_ID_COLUMN[kind]]] = row
    return rows


class KernelObjects(NamedTuple):
    """The ids of all System V objects that exist in the caller's IPC namespace."""

    msg: frozenset[int]
    sem: frozenset[int]
    shm: frozenset[int]

    def minus(self, *others: KernelObjects | Mapping[str, Iterable[int]]) -> KernelObjects:
        """Those that are in none of the others; a mapping like {"shm": {1, 2}} will do as well."""
        kept = self
        for other in others:
            ids = other._asdict() if isinstance(other, KernelObjects) else other
            kept = KernelObjects(*(mine.difference(ids.get(kind, ())) for kind, mine in kept._asdict().items()))
        return kept

    @property
    def count(self) -> int:
        return len(self.msg) + len(self.sem) + len(self.shm)

    def describe(self) -> list[str]:
        """One line an object, as `/proc/sysvipc` shows it now."""
        return [describe_object(kind, number) for kind, ids in self._asdict().items() for number in sorted(ids)]


def describe_object(kind: str, number: int) -> str:
    row = kernel_rows(kind).get(number)
    if row is None:
        return f"{kind} {number}: gone by now"
    fields = " ".join(f"{name}={value:#o}" if name == "perms" else f"{name}={value}" for name, value in row.items())
    return f"{kind} {number}: {fields}"


def kernel_objects(*, uid: int | None = None) -> KernelObjects:
    """A snapshot of what exists; with `uid`, of that owner's objects only."""
    return KernelObjects(
        *(
            frozenset(number for number, row in kernel_rows(kind).items() if uid is None or row["uid"] == uid)
            for kind in KernelObjects._fields
        )
    )


# --- processes --------------------------------------------------------------------------------------------------------


class ProcessInfo(NamedTuple):
    """A line of /proc; (pid, start) is unique while the machine is up, a pid alone is not."""

    pid: int
    start: int
    ppid: int
    session: int
    state: str
    name: str

    def command(self) -> str:
        try:
            arguments = Path(f"/proc/{self.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:
            arguments = []
        line = " ".join(argument.decode(errors="replace") for argument in arguments)
        return line or f"[{self.name}]"

    def environment(self) -> dict[str, str]:
        """The environment that its program was started with; empty if it may not be read."""
        try:
            entries = Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return {}
        pairs = (entry.decode(errors="replace").partition("=") for entry in entries if entry)
        return {name: value for name, _, value in pairs}

    def ipc_namespace(self) -> str | None:
        return ipc_namespace(self.pid)

    def is_reaper_of(self, ticket: str) -> bool:
        """Of the family with this ticket; its nonce, in the environment, tells it from those of other tests."""
        shmid, _, nonce = ticket.partition(":")
        return (
            self.name == "mpipc-reaper"
            and self.command().split()[1:] == [shmid]
            and self.environment().get("MPIPC_NONCE") == nonce
        )

    def describe(self) -> str:
        return f"pid {self.pid} (parent {self.ppid}, state {self.state}, {self.name}): {self.command()[:200]}"


def ipc_namespace(pid: int | str = "thread-self") -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/ipc")
    except OSError:
        return None


def _process(pid: int) -> ProcessInfo | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may hold any character, so split at the last one (proc_pid_stat(5)).
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return ProcessInfo(
        pid=pid,
        start=int(fields[19]),
        ppid=int(fields[1]),
        session=int(fields[3]),
        state=fields[0],
        name=head.partition("(")[2],
    )


def processes() -> dict[int, ProcessInfo]:
    """Every process that /proc shows, zombies included."""
    found = (_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(pid: int | None = None, among: Mapping[int, ProcessInfo] | None = None) -> list[ProcessInfo]:
    """Children of `pid` (by default the caller), their children and so on; zombies included."""
    everything = processes() if among is None else among
    children: dict[int, list[ProcessInfo]] = {}
    for process in everything.values():
        children.setdefault(process.ppid, []).append(process)
    found: list[ProcessInfo] = []
    pending = [os.getpid() if pid is None else pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += [process.pid for process in below]
    return found


def child_processes(pid: int | None = None) -> list[ProcessInfo]:
    """The direct children only."""
    parent = os.getpid() if pid is None else pid
    return [process for process in processes().values() if process.ppid == parent]


def kill_process(process: ProcessInfo) -> None:
    """SIGKILL, unless the process has gone in the meantime and its pid may be someone else's."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        now = _process(process.pid)
        if now is not None and now.start == process.start:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)


def dump_stacks(pids: Iterable[int]) -> str:
    """Where each process is: the kernel function it sleeps in, and its Python stacks where py-spy is installed."""
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    parts = []
    for pid in pids:
        process = _process(pid)
        if process is None:
            parts.append(f"pid {pid}: gone")
            continue
        threads = []
        for task in sorted(Path(f"/proc/{pid}/task").glob("*"), key=lambda path: int(path.name)):
            with contextlib.suppress(OSError):
                threads.append(f"    thread {task.name} in {(task / 'wchan').read_text() or '?'}")
        parts.append("\n".join([process.describe(), *threads]))
        if spy is not None and "python" in process.command():
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                dump = subprocess.run(
                    [spy, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True, timeout=10
                )
                parts.append(textwrap.indent(dump.stdout or dump.stderr, "    "))
    return "\n".join(parts)


def package_folder() -> Path | None:
    """Where `import mpipc` finds the package, without importing it."""
    spec = importlib.util.find_spec("mpipc")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


# --- scripts ----------------------------------------------------------------------------------------------------------


class ScriptTimeout(AssertionError):
    """A script did not end in time; the message has its output so far and the stacks of its processes."""


class Script(subprocess.Popen[str]):
    """A Python program in an interpreter, a session and a directory of its own, with text pipes.

    Leaving the `with` block kills what is left of the session.
    """

    def __init__(
        self,
        source: str,
        *,
        arguments: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        user: int | None = None,
        options: Iterable[str] = (),
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mpipc-script-")
        folder = Path(self._folder.name)
        path = folder / "script.py"
        path.write_text(textwrap.dedent(source))
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1", "TMPDIR": str(folder)}
        if user is not None:
            os.chown(folder, user, user)
            environment["HOME"] = str(folder)
        environment.update(env or {})
        # The script is to import the same mpipc as the test, and the test's helpers.
        package = package_folder()
        path_entries = [str(TESTS), str(package.parent) if package else "", environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path_entries))
        super().__init__(
            [sys.executable, *options, str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=None if user is None else lambda: become(user),
        )

    def members(self) -> list[ProcessInfo]:
        """Its descendants, and whoever else is in the session that it leads; itself first."""
        everything = processes()
        found = {process.pid: process for process in descendants(self.pid, everything)}
        found.update({pid: process for pid, process in everything.items() if process.session == self.pid})
        return sorted(found.values(), key=lambda process: (process.pid != self.pid, process.pid))

    def kill_session(self) -> None:
        """SIGKILL for the script and for all its processes."""
        for process in self.members():
            kill_process(process)

    def finish(self, input: str | None = None, *, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Wait until the script has ended and nobody holds its pipes any more; ScriptTimeout after `timeout` s."""
        try:
            out, err = self.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            stacks = dump_stacks(process.pid for process in self.members())
            self.kill_session()
            out, err = self._output_after_kill()
            raise ScriptTimeout(
                f"script not finished after {timeout:g} s\n"
                f"--- processes\n{stacks}\n--- stdout\n{out}\n--- stderr\n{err}"
            ) from None
        return subprocess.CompletedProcess(self.args, self.returncode, out, err)

    def _output_after_kill(self) -> tuple[str, str]:
        try:
            return self.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            return "", "(the pipes are still held by a process outside the script's session)"

    def __exit__(self, *details: Any) -> None:
        self.kill_session()
        super().__exit__(*details)
        self._folder.cleanup()


def start_script(source: str, **options: Any) -> Script:
    """A script to talk with: `with start_script("...") as script: script.stdout.readline() ... script.finish()`."""
    return Script(source, **options)


def run_script(
    source: str, *, timeout: float = 60.0, check: bool = True, input: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `source` (dedented) as a program in a fresh interpreter and return its result.

    `env` adds to the environment, `arguments` become sys.argv[1:], `options` go to the interpreter. `user` (an id;
    needs `can_become(user)`) runs it as that user without privileges, except for reading files. With `check` a non-zero
    exit is an AssertionError that shows the output.
    """
    with Script(source, **options) as script:
        result = script.finish(input, timeout=timeout)
    if check and result.returncode != 0:
        raise AssertionError(
            f"script ended with {result.returncode}\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}"
        )
    return result

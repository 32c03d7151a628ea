"""Which processes exist, what each of them does, and the end of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


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

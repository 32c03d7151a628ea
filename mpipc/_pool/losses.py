"""Why a worker was lost: as much as can be found out about a process that is dead.

how it ended    its exit code: a signal, os._exit(n), sys.exit(n)
where           the report of faulthandler, which a worker writes to a file without a name (memfd_create(2)) that the
                pool has open, too: on a fatal signal, and for a task that is about to run out of time
how large       the peak of its resident memory, which the kernel keeps for who waits for the process (getrusage(2))
by whom         for SIGKILL, whether the kernel has killed somebody in the cgroup for want of memory meanwhile
                (memory.events), and, where its log may be read, whom
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import re
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpipc._pool.worker_handle import Member


__all__ = ["CrashReport", "OutOfMemoryKills", "crash_of", "explain", "killed_by_kernel", "open_report", "stack_of"]

LONGEST_REPORT = 1 << 16
"""Bytes of a report that are read."""

HEADLINES = {
    "Segmentation fault": "segmentation fault",
    "Aborted": "abort",
    "Floating point exception": "floating-point exception",
    "Floating-point exception": "floating-point exception",
    "Bus error": "bus error",
    "Illegal instruction": "illegal instruction",
}
"""faulthandler's, in its report after "Fatal Python error: "."""

OURS = re.compile(r'^  File ".*[/\\]_pool[/\\]worker\.py", line \d+ in _call')
"""The frame that calls the task's function."""
THREADING = re.compile(r'^  File ".*[/\\]threading\.py", ')

FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$', re.MULTILINE)


class CrashReport:
    """In a worker: the file for faulthandler's reports. The parent opens it by its number, in /proc/PID/fd."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The descriptor; None if the program looks after crashes itself, or if there can be no such file."""
        if not faulthandler.is_enabled() and signal.getsignal(signal.SIGSEGV) is signal.SIG_DFL:
            with contextlib.suppress(OSError):
                self.number = os.memfd_create("mpipc-crash-report")
                faulthandler.enable(self.number)

    def arm(self, seconds: float) -> None:
        """Have the stacks written down in so many seconds, by a thread that needs no GIL. Once for each task."""
        if self.number is not None:
            os.ftruncate(self.number, 0)
            os.lseek(self.number, 0, os.SEEK_SET)
            # Too long or too short for faulthandler, or there can be no thread: then there will be no report.
            with contextlib.suppress(OverflowError, ValueError, RuntimeError):
                faulthandler.dump_traceback_later(seconds, file=self.number)

    def disarm(self) -> None:
        """The task has ended."""
        if self.number is not None:
            faulthandler.cancel_dump_traceback_later()


def open_report(pid: int, number: int) -> int:
    """In the parent: a descriptor of a worker's file; -1 if it is gone, or is not to be looked into."""
    try:
        return os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _read(descriptor: int) -> str:
    if descriptor < 0:
        return ""
    with contextlib.suppress(OSError):
        return os.pread(descriptor, LONGEST_REPORT, 0).decode(errors="replace")
    return ""


def stack_of(descriptor: int) -> str | None:
    """Where a worker was when its task was about to run out of time: the stack of the task, then those of other threads
    that it has started. None if it has written none."""
    stacks: list[str] = []
    for stack in _read(descriptor).split("\n\n"):
        first, *frames = [line for line in stack.splitlines() if not line.startswith("Timeout (")] or [""]
        inside = [OURS.search(frame) is not None for frame in frames]
        if True in inside:
            stacks.insert(0, "\n".join([first, *frames[: inside.index(True)]]))
        elif any(THREADING.search(frame) is None for frame in frames):  # else a thread of the worker's own, in C
            stacks.append("\n".join([first, *frames]))
    return "\n\n".join(stacks) or None


def crash_of(text: str) -> str | None:
    """What faulthandler's report of a fatal signal says, in a few words: "segmentation fault in f (file.py:3)"."""
    _, found, report = text.rpartition("Fatal Python error: ")
    if not found:
        return None
    headline, _, rest = report.partition("\n")
    what = HEADLINES.get(headline.strip(), headline.strip().lower())
    # Of several threads, that in which it was is "Current thread", and comes first or last.
    _, marker, current = rest.partition("Current thread")
    frame = FRAME.search(current if marker else rest)
    return what if frame is None else f"{what} in {frame['function']} ({frame['file']}:{frame['line']})"


class OutOfMemoryKills:
    """Counts what the kernel's out-of-memory killer has done in this process's cgroup."""

    def __init__(self, path: str | None = None) -> None:
        self._path = _memory_events() if path is None else path
        self._seen = self._count()

    def _count(self) -> int:
        if self._path is None:
            return 0
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except (OSError, ValueError, IndexError):
            return 0

    def happened(self) -> bool:
        """Whether there was one since the last call, or since this was made."""
        count = self._count()
        happened = count > self._seen
        self._seen = count
        return happened


def _memory_events() -> str | None:
    """memory.events of this process's cgroup (cgroups(7), version 2); None if there is none."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("0::"):
                path = f"/sys/fs/cgroup{line[3:].strip()}/memory.events"
                return path if os.path.exists(path) else None
    return None


KILLED = re.compile(r"Killed process (?P<pid>\d+) ")


def killed_by_kernel(pid: int, messages: Iterable[str] | None = None) -> bool:
    """Whether the kernel's log says that it has killed this process for want of memory. Mostly root may read it."""
    matches = map(KILLED.search, _kernel_log() if messages is None else messages)
    return any(match is not None and int(match["pid"]) == pid for match in matches)


def _kernel_log() -> list[str]:
    lines = []
    with contextlib.suppress(OSError):
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                try:
                    lines.append(os.read(descriptor, 8192).decode(errors="replace"))
                except OSError as error:
                    if error.errno != errno.EPIPE:  # EPIPE: overwritten meanwhile; EAGAIN: all was read
                        raise
        finally:
            os.close(descriptor)
    return lines


def explain(member: Member, exitcode: int | None, kills: OutOfMemoryKills) -> str | None:
    """Why a worker that was killed by a signal is dead, as far as is known; None if there is nothing to say."""
    if exitcode is None or exitcode >= 0:
        return None
    crash = crash_of(_read(member.crash_report))
    if crash is not None:
        return crash
    if exitcode == -9 and kills.happened():
        if killed_by_kernel(member.process.pid):
            return "by the kernel's out-of-memory killer"
        return "probably by the kernel's out-of-memory killer"
    return None

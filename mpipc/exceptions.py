"""Exceptions that multiprocessing does not have."""

from __future__ import annotations

import signal
from multiprocessing.context import ProcessError
from multiprocessing.context import TimeoutError as _StandardTimeoutError

TYPE_CHECKING = False  # as type checkers understand it; `import mpipc` need not load typing
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BrokenPoolError", "MemoryLimitError", "ObjectsRemovedError", "TaskTimeoutError", "WorkerLostError"]


def exit_reason(exitcode: int | None) -> str:
    """How a process ended, in words, from Process.exitcode."""
    if exitcode is None:
        return "ended, and somebody else took its exit status (os.wait() in this program?)"
    if exitcode < 0:
        return f"was killed by {_signal_name(exitcode)}"
    return f"exited with code {exitcode}"


def _signal_name(exitcode: int | None) -> str | None:
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


class ObjectsRemovedError(BrokenPipeError, EOFError):
    """The System V objects that a call needs were removed, which nobody in the program has done.

    Raised by whatever uses the objects of before: `put()`, where multiprocessing's users catch BrokenPipeError (or
    OSError), `get()`, where they catch EOFError, and locks, events, and starting a process with them as arguments. What
    is made afterwards has new objects and works.
    """


class WorkerLostError(ProcessError):
    """The worker process of a pool died (SIGKILL, out of memory, a crash, os._exit) while it was running this task.

    The other tasks of the pool are not affected. Whether the task had any effect before the worker died, nobody knows.
    """

    pid: int | None
    """Of the worker."""
    exitcode: int | None
    """As Process.exitcode: negative for a signal; None if somebody else took the exit status."""
    function: str
    """Qualified name of the function that was running."""
    index: int
    """Which item of the iterable it was working on, from 0; always 0 for apply()."""
    attempts: int
    """How many times the task has been started."""
    explanation: str | None
    """Where it crashed ("segmentation fault in f (file.py:3)"), or who killed it; None if that is not known."""
    peak: int | None
    """The most memory that it has had at a time, in bytes: what was resident, shared or not; None if not known."""

    def __init__(
        self,
        pid: int | None,
        exitcode: int | None,
        function: str = "?",
        index: int = 0,
        attempts: int = 1,
        explanation: str | None = None,
        peak: int | None = None,
    ) -> None:
        super().__init__(pid, exitcode, function, index, attempts, explanation, peak)
        self.pid = pid
        self.exitcode = exitcode
        self.function = function
        self.index = index
        self.attempts = attempts
        self.explanation = explanation
        self.peak = peak

    @property
    def signal(self) -> str | None:
        """Name of the signal that killed the worker, such as "SIGKILL"; None if it was none."""
        return _signal_name(self.exitcode)

    def __str__(self) -> str:
        tries = (
            f", at the {self.attempts}th attempt"
            if self.attempts > 3
            else ("", "", ", at the second attempt", ", at the third attempt")[self.attempts]
        )
        why = f" ({self.explanation})" if self.explanation is not None else ""
        size = f"; it has had up to {megabytes(self.peak)} of memory" if self.peak is not None else ""
        return (
            f"worker {self.pid} {exit_reason(self.exitcode)}{why} while it was running {self.function} on item"
            f" {self.index}{tries}{size}"
        )


def megabytes(count: int) -> str:
    """A number of bytes for people to read."""
    return f"{count / 1e6:.0f} MB" if count >= 10_000_000 else f"{count / 1e6:.1f} MB"


class MemoryLimitError(WorkerLostError, MemoryError):
    """A task has taken more memory than it may (`memory_limit=`), and its worker was killed for that.

    `peak` is here the private memory that the worker was found to have. The other tasks of the pool are not affected.
    """

    limit: int
    """Bytes of private memory that a worker may have."""

    def __init__(
        self, pid: int | None, function: str = "?", index: int = 0, attempts: int = 1, limit: int = 0, peak: int = 0
    ) -> None:
        super().__init__(pid, -signal.SIGKILL, function, index, attempts, None, peak)
        self.args = (pid, function, index, attempts, limit, peak)
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"worker {self.pid} had {megabytes(self.peak or 0)} of private memory, and memory_limit is"
            f" {megabytes(self.limit)}, while it was running {self.function} on item {self.index}"
        )


class TaskTimeoutError(_StandardTimeoutError, TimeoutError):
    """A task has run longer than it may, and its worker was killed for that.

    Both multiprocessing.TimeoutError, as users of a Pool expect, and TimeoutError, as users of futures do.
    """

    stack: str | None
    """Where the worker's threads were shortly before that, as faulthandler writes it; None if it is not known."""

    def __init__(self, *args: Any, stack: str | None = None) -> None:
        super().__init__(*args)
        self.stack = stack
        if stack is not None:
            self.add_note(f"Where it was then:\n{stack}")  # shown with the traceback; str() is one line


class BrokenPoolError(ProcessError, ValueError):
    """The pool cannot go on: its workers die before they have run the initializer, or it was terminated.

    A ValueError too, as multiprocessing raises for a pool that is not running.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

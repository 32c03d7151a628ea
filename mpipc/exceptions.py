"""Exceptions that multiprocessing does not have."""

from __future__ import annotations

import signal
from multiprocessing.context import ProcessError
from multiprocessing.context import TimeoutError as _StandardTimeoutError

TYPE_CHECKING = False  # as type checkers understand it; `import mpipc` need not load typing
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BrokenPoolError", "ObjectsRemovedError", "TaskTimeoutError", "WorkerLostError"]


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

    def __init__(
        self, pid: int | None, exitcode: int | None, function: str = "?", index: int = 0, attempts: int = 1
    ) -> None:
        super().__init__(pid, exitcode, function, index, attempts)
        self.pid = pid
        self.exitcode = exitcode
        self.function = function
        self.index = index
        self.attempts = attempts

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
        return (
            f"worker {self.pid} {exit_reason(self.exitcode)} while it was running {self.function} on item"
            f" {self.index}{tries}"
        )


class TaskTimeoutError(_StandardTimeoutError, TimeoutError):
    """A task has run longer than it may, and its worker was killed for that.

    Both multiprocessing.TimeoutError, as users of a Pool expect, and TimeoutError, as users of futures do.
    """


class BrokenPoolError(ProcessError, ValueError):
    """The pool cannot go on: its workers die before they have run the initializer, or it was terminated.

    A ValueError too, as multiprocessing raises for a pool that is not running.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

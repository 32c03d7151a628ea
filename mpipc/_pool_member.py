"""A worker process, as its pool sees it."""

from __future__ import annotations

import os
from typing import Any

from mpipc._pool_channel import WINDOW, Channel, OwnReducers
from mpipc._pool_ledger import Ledger
from mpipc._pool_tasks import Task
from mpipc._pool_worker import FUNCTIONS, QUIT

__all__ = ["SHUT", "Member"]

SHUT = WINDOW + 1


class Member:
    """A worker process with its task queue and its ledger. Guarded by the engine's lock, but for `process` and `pidfd`.

    A member goes from starting to ready (its initializer has returned) to dead; only a ready one is sent tasks. At the
    end of the pool, or when its quota is used up, it quits by itself.
    """

    def __init__(self, tag: int, quota: int | None, own_reducers: OwnReducers | None = None) -> None:
        self.tag = tag
        """Number of this worker; never used again in this pool."""
        self.quota = quota
        """How many tasks it may run in all; None if that is not limited."""
        self.own_reducers = own_reducers
        """Of tasks."""
        self.tasks = Channel()
        self.ledger = Ledger()
        self.process: Any = None
        self.pidfd = -1
        self.window: dict[int, Task] = {}
        """Tasks given to it and not answered, by number, in the order in which they are sent."""
        self.packing = False
        """A thread is about to send it the last one in the window. It gets no other task until that is done, so that
        the order of the numbers is that of the messages."""
        self.sequence = 0
        """Number of the last task."""
        self.charged = 0
        """Tasks given to it and not taken back."""
        self.known: dict[int, None] = {}
        """Functions that it has used last, so it has them (unless it has forgotten them, which it will say)."""
        self.full_since = 0.0
        """When its window was last filled, time.monotonic()."""
        self.slow = False
        """Its task was waited for in vain: there is no point in having another one wait behind it."""
        self.ready = False
        self.quitting = False
        self.dead = False
        self.condemned = 0
        """Number of the task that it is killed for; 0 if none."""
        self.bucket: int | None = None
        self.done = 0
        """Tasks that it has answered."""

    @property
    def place(self) -> int | None:
        """How many tasks it has; SHUT if fewer than WINDOW and it is to get none; None if it is not to be touched."""
        if not self.ready or self.dead or self.quitting or self.packing:
            return None
        load = len(self.window)
        if load < WINDOW and ((self.slow and load) or (self.quota is not None and self.charged >= self.quota)):
            return SHUT
        return load

    def assign(self, task: Task) -> int:
        """Put a task into the window, and return its number; `send()` has to follow."""
        self.packing = True
        self.sequence += 1
        self.charged += 1
        task.attempts += 1
        self.window[self.sequence] = task
        return self.sequence

    def send(self, task: Task, number: int) -> None:
        """Send a task. Without the lock, because it runs code of the user. Raises what pickling raises, and OSError."""
        self.tasks.send(task.envelope(self.tag, number, self.known, self.own_reducers))

    def withdraw(self, number: int) -> Task | None:
        """Remove a task from the window as if it had not been there; None if it is not there any more."""
        task = self.window.pop(number, None)
        if task is not None:
            task.attempts -= 1
            self.charged -= 1
        return task

    def take_back(self) -> Task | None:
        """A task that it has not fetched yet, which is then not its task any more."""
        message = self.tasks.take()
        return None if message is None else self.withdraw(message.number)

    def answered(self, number: int) -> Task | None:
        """Remove a task from the window, whose result was received."""
        task = self.window.pop(number, None)
        if task is not None:
            if task.function.lasting:
                self.known[task.function.id] = None
                if len(self.known) > FUNCTIONS:
                    del self.known[next(iter(self.known))]
            self.done += 1
            self.slow = False
        return task

    def quit(self) -> None:
        """Tell it that nothing more will come."""
        self.quitting = True
        self.tasks.send((QUIT, self.tag, 0, None, 0, None, None))

    def watch(self) -> None:
        """Get a descriptor that tells of its death, besides Process.sentinel.

        The pipe behind the sentinel stays open as long as anybody who has inherited it lives. A pidfd does not, and is
        safe where the process is our own child.
        """
        if getattr(getattr(self.process, "_popen", None), "method", None) in ("fork", "spawn"):
            try:
                self.pidfd = os.pidfd_open(self.process.pid)
            except OSError:  # ENOSYS before Linux 5.3, EPERM in some sandboxes
                self.pidfd = -1

    def unwatch(self) -> None:
        """Give the descriptor back."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def exitcode(self) -> int | None:
        """Exit code of the process, which is dead; None if somebody else took it."""
        if self.process.exitcode is None:
            self.process.join(0.5)  # the fork server may not have passed it on yet
        return self.process.exitcode  # type: ignore[no-any-return]

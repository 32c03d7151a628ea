"""A worker process, as its pool sees it."""

from __future__ import annotations

import os
from typing import Any

from mpipc._pool_channel import NOTICE, TASK, Channel, Parcel
from mpipc._pool_ledger import Ledger
from mpipc._pool_tasks import Task
from mpipc._pool_worker import QUIT, RELEASE

__all__ = ["Member"]


class Member:
    """A worker process with its task queue and its ledger. Guarded by the engine's lock, but for `process` and `pidfd`.

    A member goes from starting to ready (its initializer has returned) to dead; only a ready one is sent tasks. At the
    end of the pool, or when its quota is used up, it quits by itself.
    """

    def __init__(self, tag: int, quota: int | None) -> None:
        self.tag = tag
        """Number of this worker; never used again in this pool."""
        self.quota = quota
        """How many tasks it may run in all; None if that is not limited."""
        self.tasks = Channel()
        self.ledger = Ledger()
        self.process: Any = None
        self.pidfd = -1
        self.window: dict[int, Task] = {}
        """Tasks sent and not answered, by number, in the order in which they were sent."""
        self.reserved = 0
        """Places in the window for tasks that are being packed."""
        self.sequence = 0
        """Number of the task sent last."""
        self.charged = 0
        """Tasks sent and not taken back."""
        self.known: set[int] = set()
        """Functions that it has used, so it has them (unless it has forgotten them, which it will say)."""
        self.ready = False
        self.quitting = False
        self.dead = False
        self.condemned = 0
        """Number of the task that it is killed for; 0 if none."""
        self.bucket: int | None = None
        self.done = 0
        """Tasks that it has answered."""

    @property
    def load(self) -> int:
        """Tasks that it has, and is about to get."""
        return len(self.window) + self.reserved

    def send(self, task: Task, function: Parcel | None, payload: Parcel) -> None:
        """Send a task; BlockingIOError if the queue is full, which WINDOW and the size of parcels rule out."""
        number = self.sequence + 1
        id = task.function.id
        first = b"" if function is None or id in self.known else function.wire
        if not self.tasks.send(task.kind, number, id, first, payload.wire, wait=False):
            raise BlockingIOError("the task queue of a worker is full; was its msg_qbytes changed?")
        task.parcel = payload if payload.in_shared_memory else None
        task.attempts += 1
        self.sequence = number
        self.charged += 1
        self.window[number] = task

    def take_back(self) -> Task | None:
        """A task that it has not fetched yet, which is then not its task any more."""
        message = self.tasks.take(TASK)
        return None if message is None else self.not_begun(message.number)

    def not_begun(self, number: int) -> Task:
        """Remove a task from the window as if it had not been sent."""
        task = self.window.pop(number)
        task.attempts -= 1
        task.parcel = None
        self.charged -= 1
        return task

    def answered(self, number: int) -> Task:
        """Remove a task from the window, whose result was received."""
        task = self.window.pop(number)
        task.parcel = None
        self.known.add(task.function.id)
        self.done += 1
        return task

    def release(self, number: int) -> None:
        """Tell it that the result of this number has been unpacked."""
        self.tasks.send(RELEASE, number, type=NOTICE, wait=False)

    def quit(self) -> None:
        """Tell it that nothing more will come."""
        self.quitting = True
        self.tasks.send(QUIT, 0, type=NOTICE, wait=False)

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

"""A worker process, as its pool sees it."""

from __future__ import annotations

import os
import time
from typing import Any

from mpipc._pool_channel import Channel, OwnReducers
from mpipc._pool_hot import Task
from mpipc._pool_ledger import Ledger
from mpipc._pool_worker import BATCH, FUNCTIONS, QUIT

__all__ = ["Member"]

BULK = 1 << 16
"""Bytes of arguments from which a message gets no more tasks."""


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
        """A thread is about to send it the last ones in the window. It gets no other task until that is done, so that
        the order of the numbers is that of the messages."""
        self.sequence = 0
        """Number of the last task."""
        self.charged = 0
        """Tasks given to it and not taken back."""
        self.known: dict[int, None] = {}
        """Functions that it has used last, so it has them (unless it has forgotten them, which it will say)."""
        self.progress = 0.0
        """When it has last answered, or was given something after it had nothing to do; time.monotonic()."""
        self.busy = 0.0
        """Its ledger's `busy` at that time."""
        self.slow = False
        """Its task was waited for in vain: there is no point in having another one wait behind it."""
        self.ready = False
        self.quitting = False
        self.dead = False
        self.condemned = 0
        """Number of the task that it is killed for; 0 if none."""
        self.done = 0
        """Tasks that it has answered."""

    @property
    def is_open(self) -> bool:
        """Whether it may be given tasks at all."""
        return self.ready and not (self.dead or self.quitting or self.packing)

    def room(self, depth: int) -> int:
        """How many tasks it can be given if it is to have so many at a time."""
        load = len(self.window)
        if load and self.slow:
            return 0
        if self.quota is None:
            return depth - load
        return min(depth - load, self.quota - self.charged)

    def assign(self, tasks: list[Task]) -> list[tuple[int, Task]]:
        """Put tasks into the window, and return them with their numbers; `send()` has to follow."""
        self.packing = True
        if not self.window:
            self.progress = time.monotonic()
        self.charged += len(tasks)
        numbered = list(enumerate(tasks, self.sequence + 1))
        self.sequence += len(tasks)
        for task in tasks:
            task.attempts += 1
        self.window.update(numbered)
        return numbered

    def send(self, batch: list[tuple[int, Task]]) -> list[tuple[int, BaseException]]:
        """Send tasks. Without the lock, because it runs code of the user.

        Returns the numbers of those that could not be sent, with the reason; that is all the others if the reason is no
        Exception.
        """
        failures: list[tuple[int, BaseException]] = []
        envelopes: list[tuple[Any, ...]] = []
        numbers: list[int] = []
        has = 0
        bulk = 0
        count = len(batch)
        try:
            for place, (number, task) in enumerate(batch, 1):
                try:
                    function = task.function
                    known = function.id == has or function.id in self.known
                    envelope = task.envelope(self.tag, number, known, self.own_reducers)
                    if function.lasting:
                        has = function.id
                    body = envelope[5]
                    if type(body) is bytes:
                        bulk += len(body)
                    numbers.append(number)
                    envelopes.append(envelope)
                except Exception as error:
                    failures.append((number, error))
                if envelopes and (place == count or bulk >= BULK):
                    try:
                        if len(envelopes) == 1:
                            self.tasks.send(envelopes[0])
                        else:
                            self.tasks.send((BATCH, self.tag, 0, None, 0, envelopes, None))
                    except Exception as error:
                        failures += [(number, error) for number in numbers]
                    numbers, envelopes, bulk = [], [], 0
        except BaseException as error:  # KeyboardInterrupt
            failures += [(number, error) for number, _ in batch if number >= (numbers[0] if numbers else number)]
        return failures

    def withdraw(self, number: int) -> Task | None:
        """Remove a task from the window as if it had not been there; None if it is not there any more."""
        task = self.window.pop(number, None)
        if task is not None:
            task.attempts -= 1
            self.charged -= 1
        return task

    def take_back(self, count: int) -> list[Task]:
        """Up to `count` tasks, the last ones that it was given, which it has not begun. (More, in a rare case.)"""
        waiting = [number for number in self.window if number > self.ledger.started]
        if not waiting:
            return []
        return self.take_back_from(waiting[-min(count, len(waiting))])

    def take_back_from(self, number: int) -> list[Task]:
        """The tasks from this number on that it has not begun."""
        start = self.ledger.revoke(number, self.sequence)
        taken = [self.withdraw(number) for number in list(self.window) if number >= start]
        return [task for task in taken if task is not None]

    def answered(self, number: int) -> Task | None:
        """Remove a task from the window, whose result was received."""
        task = self.window.pop(number, None)
        if task is not None:
            function = task.function
            if function.lasting and function.id not in self.known:
                self.known[function.id] = None
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

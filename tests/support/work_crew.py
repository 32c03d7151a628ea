"""Takers of a WorkQueue, in processes that any start method can start: what they do, and what must be true of it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from mpipc.queues import ShutDown

PF_EXITING = 4


def has_ended(pid: int) -> bool:
    """Or is in its exit: there the kernel undoes its semaphores, by which others see that it is dead. Later it is a
    zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state, *_ids, flags = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:7]
        return state in "ZX" or int(flags) & PF_EXITING != 0
    return True


def take_and_wait(queue: Any, taken: Any, go_on: Any) -> None:
    """Has a job until it is told to go on, and then acknowledges it."""
    with queue.take() as job:
        taken.put((job.value, job.attempts))
        go_on.get()


def take_and_die(queue: Any, taken: Any) -> None:
    job = queue.take()
    taken.put((job.value, job.attempts))
    os.kill(os.getpid(), signal.SIGKILL)


def take_and_end(queue: Any, taken: Any) -> None:
    """Ends as programs do that have forgotten something."""
    job = queue.take()
    taken.put((job.value, job.attempts))
    os._exit(0)


def take_until_shut(queue: Any, done: Any) -> None:
    with contextlib.suppress(ShutDown):
        while True:
            with queue.take() as job:
                done.put((job.value, job.attempts))


def join_and_tell(queue: Any, told: Any) -> None:
    told.put("waiting")
    told.put(queue.join())


class Explosive:
    """Unpickled, it kills the process."""

    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def take(queue: Any) -> None:
    queue.take()


class Unpicklable:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> None:
    raise LookupError("cannot be unpickled")


class Book:
    """Of numbered jobs: how often each was taken and done, and who has it. One process at a time has a job, so nobody
    writes what somebody else does."""

    def __init__(self, ctx: Any, jobs: int) -> None:
        self.taken = ctx.RawArray("i", jobs)
        self.done = ctx.RawArray("i", jobs)
        self.hands = ctx.RawArray("i", jobs)
        self.wrong = ctx.RawArray("i", 3)

    def work(self, queue: Any) -> None:
        """Until the end."""
        me = os.getpid()
        with contextlib.suppress(ShutDown):
            while True:
                with queue.take() as job:
                    number = job.value[0]
                    before = self.hands[number]
                    if before not in (0, me) and not has_ended(before):
                        self.wrong[0] = number + 1  # two have it
                    self.hands[number] = me
                    self.taken[number] += 1
                    if job.attempts < self.taken[number]:
                        self.wrong[1] = number + 1
                    if job.value[1] != bytes(len(job.value[1])):
                        self.wrong[2] = number + 1
                    sum(range(500))  # so that there is something to be killed in
                    self.done[number] += 1
                    self.hands[number] = 0


def work(book: Book, queue: Any) -> None:
    book.work(queue)

"""The arguments of an imap() over an iterator of the user, which a thread of its own runs: a *feeder*."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from mpipc._pool.codec import Task
from mpipc._pool.life import Life
from mpipc._pool.receiver import Receiver
from mpipc._pool.results import Last
from mpipc._pool.schedule import Schedule
from mpipc._pool.tasks import Feed

__all__ = ["Feeders", "Taken"]


class Feeders:
    """The feeders of one pool. Each takes on a few tasks at a time, as there is room for them."""

    def __init__(self, life: Life, schedule: Schedule, receiver: Receiver) -> None:
        self._life = life
        self._schedule = schedule
        self._receiver = receiver
        self._threads: set[threading.Thread] = set()
        self._reading: set[threading.Thread] = set()
        """Those that wait for the user's iterator; guarded by the lock of the pool's life."""

    def start(self, job: Any, tasks: Iterator[Task], feed: Feed) -> None:
        """Take on the tasks that an iterator of the user gives, in a thread of their own."""
        thread = threading.Thread(target=self._feed, args=(job, tasks, feed), name="mpipc-pool-feeder", daemon=True)
        try:
            self._schedule.cache.enter(job)
            self._threads.add(thread)  # without the lock: this may be interrupted between any two bytecodes
            thread.start()
        except BaseException:
            if thread.ident is None:
                self._threads.discard(thread)
                self._schedule.cache.pop(job._job, None)
            raise

    def join(self) -> None:
        """Wait until they have ended: after the end of the pool none asks for another item. While one waits for
        an item, it cannot be ended."""
        for thread in list(self._threads):
            if thread.is_alive() and not self._is_reading(thread):
                thread.join()

    def _is_reading(self, feeder: threading.Thread) -> bool:
        with self._life.lock:
            return feeder in self._reading or feeder is threading.current_thread()

    def _feed(self, job: Any, tasks: Iterator[Task], feed: Feed) -> None:
        """The thread."""
        for other in list(self._threads):
            if other.ident is not None and not other.is_alive():
                self._threads.discard(other)
        schedule = self._schedule
        count = 0
        error: BaseException | None = None
        try:
            while (task := self._read(tasks, feed)) is not None:
                feed.read += 1
                feed.low = task.function.pace.depth * schedule.size
                if feed.waiting >= 2 * feed.low:
                    # Woken up for each task, this thread would take more time than the tasks do.
                    while schedule.wait_for_room(feed):
                        feed.bell.acquire()
                if not schedule.add_fed(task):
                    break
                del task
                count += 1
                schedule.dispatch()
        except BaseException as raised:
            error = raised
        if self._life.is_over:
            self._receiver.await_conclusion()
            if job._job in schedule.cache:  # what is not complete is completed there; taken on after that
                self._receiver.refuse(job)
            return
        if error is not None:
            self._receiver.fail(Last(job), count, error)
            count += 1
        job._set_length(count)

    def _read(self, tasks: Iterator[Task], feed: Feed) -> Task | None:
        """The next task that a user's iterator gives; None if there is none, the pool is over, or nobody wants it."""
        thread = threading.current_thread()
        while feed.most is not None and self._schedule.wait_for_taker(feed):
            feed.bell.acquire()
        if feed.left:
            return None
        with self._life.lock:
            if self._life.is_over:
                return None
            self._reading.add(thread)
        try:
            return next(tasks, None)
        finally:
            with self._life.lock:
                self._reading.discard(thread)


class _Results(deque[Any]):
    """What an IMapIterator has and nobody has taken yet."""

    def __init__(self, schedule: Schedule, feed: Feed) -> None:
        super().__init__()
        self._schedule = schedule
        self._feed = feed

    def popleft(self) -> Any:
        result = super().popleft()
        self._schedule.took(self._feed)
        return result


class Taken:
    """An iterator over the results of an imap() that is to read only so much ahead of them. When nobody has it any
    more, nothing more is read."""

    def __init__(self, job: Any, schedule: Schedule, feed: Feed) -> None:
        self._job = job
        self._schedule = schedule
        self._feed = feed
        self._pid = os.getpid()
        job._items = _Results(schedule, feed)  # nothing was read so far

    def __iter__(self) -> Taken:
        return self

    def __next__(self) -> Any:
        return self._job.next()

    def next(self, timeout: float | None = None) -> Any:
        """See IMapIterator.next."""
        return self._job.next(timeout)

    def __del__(self) -> None:
        if os.getpid() == self._pid:  # in a child somebody may have had the lock when it was forked
            self._schedule.leave(self._feed)

"""The engine of a pool: which worker has which task, and what happens when a worker dies.

States of the engine: RUN -> CLOSE -> (no result is outstanding) winding down -> ended
                      RUN or CLOSE -> TERMINATE -> winding down -> ended
A pool that cannot start workers goes to TERMINATE by itself, with `broken` saying why.

A task is new, in the backlog, or in the window of one worker, until its result is set. It gets into the window just
before a thread packs and sends it; if that fails, so does the task. What happens to those in the window of a worker
that dies is told by its ledger:

    result received     done; the message had been in the queue before the death was announced in it
    number > started    back to the front of the backlog: it was not begun
    otherwise           lost: retried if it has a retry left, else WorkerLostError, or TimeoutError if it was condemned

Threads:

- Any thread of the user submits: it adds to the backlog and runs `dispatch()`, which sends to workers.
- The *result thread* receives from the workers. It makes room in the worker's window, runs dispatch(), and sets the
  result; it alone sets results, so that callbacks do not run at the same time. It learns of a death from a message
  that the supervisor puts into the result queue, behind everything that the dead worker had put there.
- The *supervisor* starts workers, waits for one to die, announces that, starts another one, enforces timeouts, and
  winds down. It never waits for the result thread.
- A *feeder* for each imap() over an iterator of the user: it alone runs the iterator.

`lock` guards everything below "guarded by lock". It is reentrant because garbage collection, thus a finalizer that
terminates the pool, may come at any point. No code of the user runs under it (no pickling, no callback), and nothing
waits under it.

Why no wake-up is lost: "the backlog is not empty and a worker has room" is looked at under `lock`, and every thread
that adds to the backlog or makes room calls dispatch() afterwards, which goes on until that is false. "No result is
outstanding" is looked at by the supervisor after every wake-up, and the cache wakes it when its last result is
complete.

Tasks are only sent to workers that are ready, so a task never waits for a slow initializer. A worker that has room
takes over what has waited behind a busy one for a while, and one that has nothing to do whatever waits: the parent
takes the message out of the busy worker's queue. It is given to one of the two, so it is not run twice.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import CLOSE, RUN, TERMINATE
from typing import Any

from mpipc._pool_channel import WINDOW, Channel, Envelope, OwnReducers, unpack
from mpipc._pool_member import SHUT, Member
from mpipc._pool_results import Cache
from mpipc._pool_supervisor import Supervisor
from mpipc._pool_tasks import Feed, Source, Task
from mpipc._pool_worker import FAILED, INITIALIZER_FAILED, READY, RETURNED, UNKNOWN_FUNCTION
from mpipc.exceptions import BrokenPoolError, TaskTimeoutError, WorkerLostError

__all__ = ["Engine"]

# Kinds of messages to the result thread from this process.
DIED = 30  # body: the exit code
LOOK = 31  # there is something in `_failures`
STOP = 32

PATIENCE = 0.01
"""Seconds that a task waits behind another one before any worker that has room takes it over. What takes that long
is not worth having the next task at hand."""


class Engine:
    """Workers and tasks of one pool. Holds no reference to the pool, which may be collected while its threads run."""

    def __init__(
        self,
        make_process: Callable[..., Any],
        context: Any,
        size: int,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        maxtasksperchild: int | None,
        *,
        daemon: bool = True,
        task_reducers: OwnReducers | None = None,
        result_reducers: OwnReducers | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._low_water = 2 * size
        """Tasks from one iterator in the backlog when its feeder goes on; twice as many when it stops."""
        self.results = Channel()
        self.lock = threading.RLock()
        # --- guarded by lock
        self._room = threading.Condition(self.lock)
        self.state = RUN
        self.broken: BrokenPoolError | None = None
        """Why the pool came to an end by itself."""
        self._ended = False
        """The result thread is through: whoever submits has to abort the result."""
        self.cache = Cache(self._on_empty)
        """The results that are not complete; what Pool._cache is."""
        self.members: dict[int, Member] = {}
        """The workers, until all that they have sent was received, by tag."""
        self.replaced = 0
        """How many workers have died."""
        self._buckets: list[dict[Member, None]] = [{} for _ in range(SHUT + 1)]
        """Ready workers by Member.place; in each, the one that has been there longest comes first."""
        self._unready = 0
        """Workers that are being started."""
        self._backlog: deque[Task | Source] = deque()
        # --- not guarded: append() and popleft() are atomic
        self._failures: deque[tuple[Any, int, BaseException]] = deque()

        self.supervisor = Supervisor(
            self,
            make_process,
            context,
            size,
            initializer,
            initargs,
            maxtasksperchild,
            daemon,
            task_reducers,
            result_reducers,
        )
        self._receiver = threading.Thread(target=self._receive, name="mpipc-pool-results", daemon=True)
        _engines.add(self)

    # --- what a pool calls --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers, then the threads. If a process cannot be started, the others are ended."""
        try:
            self.supervisor.populate()
            self._receiver.start()
            self.supervisor.thread.start()
        except BaseException:
            self.state = TERMINATE
            self.supervisor.abandon()
            raise

    def submit(self, job: Any, work: Task | Source) -> None:
        """Take on a task or a map's chunks."""
        with self.lock:
            ended = self._ended
            if not ended:
                self._backlog.append(work)
        if ended:
            self._refuse(job)
        else:
            self.dispatch()

    def submit_many(self, tasks: list[Task]) -> None:
        """Take on tasks that are each a job of its own."""
        with self.lock:
            ended = self._ended
            if not ended:
                self._backlog.extend(tasks)
        if ended:
            for task in tasks:
                self._refuse(task.job)
        else:
            self.dispatch()

    def cancel_backlog(self) -> None:
        """Cancel what can be cancelled and no worker has been given."""
        with self.lock:
            waiting = [task for task in self._backlog if isinstance(task, Task) and task.job.cancellable]
        cancelled = {task for task in waiting if task.job.future.cancel()}
        with self.lock:
            # Those that a thread has taken out in between, it finds to be cancelled.
            cancelled.intersection_update(self._backlog)
            self._backlog = deque(task for task in self._backlog if task not in cancelled)
        for task in cancelled:
            task.job._begin()

    def _refuse(self, job: Any) -> None:
        """Complete a result that came too late, if the result thread has not done so."""
        if threading.current_thread() is not self._receiver:
            self._receiver.join()
        if job._job in self.cache:
            job._abort(self._end_error(), callback=False)

    def feed(self, job: Any, tasks: Iterator[Task], feed: Feed) -> None:
        """Take on the tasks that an iterator of the user gives, a few at a time, in a thread of their own."""
        threading.Thread(target=self._feed, args=(job, tasks, feed), name="mpipc-pool-feeder", daemon=True).start()

    def close(self) -> None:
        """Wind down when all that was submitted is done."""
        with self.lock:
            if self.state == RUN:
                self.state = CLOSE
        self.supervisor.wake()

    def terminate(self) -> None:
        """End the workers, and wait until all is over unless this is called by a thread of the engine (a callback)."""
        if os.getpid() != self._pid:
            return
        with self.lock:
            self.state = TERMINATE
            self._room.notify_all()
        self.supervisor.wake()
        if threading.current_thread() not in (self.supervisor.thread, self._receiver):
            self.join()

    def join(self) -> None:
        """Wait until all is over."""
        self.supervisor.thread.join()
        self._receiver.join()

    # --- sending ------------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Send tasks to workers until there is no task, or no worker that has room."""
        while True:
            with self.lock:
                match = self._match()
            if match is None:
                return
            worker, number, task = match
            if task.job.cancellable and not task.job._begin():
                with self.lock:
                    worker.packing = False
                    worker.withdraw(number)
                    self._place(worker)
                continue
            self._send(*match)

    def _match(self) -> tuple[Member, int, Task] | None:
        """Give a task to a worker; the caller has to send it."""
        if self.state == TERMINATE:
            return None
        worker = next(iter(self._buckets[0]), None)
        if worker is not None:
            task = self._take_over(PATIENCE) or self._next_task() or self._take_over(0.0)
        elif self._unready or not self._backlog:
            return None  # a worker that is about to be ready will run the next task sooner than one that is busy
        else:
            worker = next(itertools.chain.from_iterable(self._buckets[1:WINDOW]), None)
            if worker is None:
                return None
            task = self._take_over(PATIENCE) or self._next_task()
        if task is None:
            return None
        number = worker.assign(task)
        self._place(worker)
        return worker, number, task

    def _next_task(self) -> Task | None:
        while self._backlog:
            head = self._backlog[0]
            if isinstance(head, Task):
                self._backlog.popleft()
                if head.feed is not None:
                    head.feed.waiting -= 1
                    if head.feed.waiting == self._low_water:
                        self._room.notify_all()
                return head
            task = head.draw()
            if head.exhausted:
                self._backlog.popleft()
            if task is not None:
                return task
        return None

    def _put_back(self, task: Task) -> None:
        if task.feed is not None:
            task.feed.waiting += 1
        self._backlog.appendleft(task)

    def _take_over(self, waiting: float) -> Task | None:
        """A task that has been waiting so many seconds behind another one, the oldest."""
        for victim in self._buckets[WINDOW]:
            if waiting and time.monotonic() - victim.full_since < waiting:
                return None
            task = victim.take_back()
            if task is not None:
                victim.slow = True
                self._place(victim)
                return task
        return None

    def _place(self, worker: Member) -> None:
        """Put a worker into the bucket where it belongs now."""
        bucket = worker.place
        if bucket == worker.bucket:
            return
        if worker.bucket is not None:
            del self._buckets[worker.bucket][worker]
        if bucket is not None:
            self._buckets[bucket][worker] = None
            if bucket == WINDOW:
                worker.full_since = time.monotonic()
        worker.bucket = bucket

    def _send(self, worker: Member, number: int, task: Task) -> None:
        try:
            worker.send(task, number)
        except BaseException as error:
            with self.lock:
                worker.packing = False
                mine = worker.withdraw(number) is not None  # else the worker has died, and the task was put back
                self._place(worker)
                if not isinstance(error, Exception):
                    if mine:
                        self._put_back(task)
                    raise
            if mine:
                self.fail(task.job, task.index, error)
            return
        with self.lock:
            worker.packing = False
            self._place(worker)
        if task.timeout is not None:
            self.supervisor.expect(task.timeout)

    def fail(self, job: Any, index: int, error: BaseException) -> None:
        """Have the result thread set an error that came up here."""
        self._failures.append((job, index, error))
        try:
            self._tell(LOOK, 0)
        except BrokenPipeError:
            self._refuse(job)

    def _tell(self, kind: int, tag: int, body: Any = None) -> None:
        """Send to the result thread."""
        self.results.send((kind, tag, 0, None, 0, body, None))

    def _feed(self, job: Any, tasks: Iterator[Task], feed: Feed) -> None:
        count = 0
        try:
            for task in tasks:
                with self._room:
                    if feed.waiting >= 2 * self._low_water:
                        # Woken up for each task, this thread would take more time than the tasks do.
                        while feed.waiting > self._low_water and not self._ended and self.state != TERMINATE:
                            self._room.wait()
                    ended = self._ended
                    if not ended and self.state != TERMINATE:
                        feed.waiting += 1
                        self._backlog.append(task)
                del task
                if ended:
                    self._refuse(job)
                if ended or self.state == TERMINATE:
                    return  # the result thread completes what is not complete
                count += 1
                self.dispatch()
        except BaseException as error:
            self.fail(job, count, error)
            count += 1
        job._set_length(count)

    # --- receiving ----------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """The result thread."""
        while True:
            try:
                message = Envelope._make(self.results.receive())
                if message.kind == STOP:
                    break
                self._handle(message)
                del message
                while self._failures:
                    job, index, failure = self._failures.popleft()
                    if self.state != TERMINATE:
                        job._set(index, (False, failure))
                    del job, failure
            except Exception as error:
                self.fail_all(f"the pool's result thread failed: {error!r}", error)
                if isinstance(error, EOFError):  # somebody has removed the queue
                    break
        with self.lock:
            self._ended = True
            self._backlog.clear()
            unfinished = list(self.cache.values())
            self._room.notify_all()
            # Results refer to the cache and so to this engine: the queues do not live as long as they do.
            for worker in self.members.values():
                worker.tasks.close()
            self.members = {}
            self.results.close()
        for job in unfinished:
            if job._job in self.cache:  # a callback may have submitted something, and been refused
                job._abort(self._end_error(), callback=self.broken is not None)

    def _end_error(self) -> BrokenPoolError:
        return self.broken or BrokenPoolError("the pool was terminated before this was done")

    def _handle(self, message: Envelope) -> None:
        kind = message.kind
        with self.lock:
            worker = self.members.get(message.tag)
        if worker is None:
            return  # LOOK
        if kind in (RETURNED, FAILED):
            self._take_result(worker, message)
        elif kind == READY:
            with self.lock:
                worker.ready = True
                self._unready -= 1
                self._place(worker)
            self.dispatch()
        elif kind == UNKNOWN_FUNCTION:
            with self.lock:
                task = worker.withdraw(message.number)
                if task is not None:
                    worker.known.pop(task.function.id, None)
                    self._put_back(task)
                    self._place(worker)
            self.dispatch()
        elif kind == DIED:
            self._bury(worker, message.body)
        elif kind == INITIALIZER_FAILED:
            with contextlib.suppress(Exception):  # the exception can be unpickled in the worker only
                self.supervisor.start_error = unpack(message.body, message.buffers)

    def _take_result(self, worker: Member, message: Envelope) -> None:
        """Give the worker its next task, then the user the result of this one."""
        with self.lock:
            task = worker.answered(message.number)
            self._place(worker)
        self.dispatch()
        if task is None or self.state == TERMINATE:
            return
        ok = message.kind == RETURNED
        try:
            value = unpack(message.body, message.buffers)
        except Exception as error:
            ok, value = False, error
        task.job._set(task.index, (ok, value))

    def _bury(self, worker: Member, exitcode: int | None) -> None:
        """A worker has died, and all that it had sent has been received."""
        lost: list[tuple[Task, Exception]] = []
        with self.lock:
            del self.members[worker.tag]
            self._unready -= not worker.ready
            self.replaced += 1
            worker.dead = True
            self._place(worker)
            started = worker.ledger.started
            item = worker.ledger.current_item
            for number, task in reversed(worker.window.items()):
                if number > started:
                    task.attempts -= 1
                    self._put_back(task)
                elif number == worker.condemned:
                    index = task.first + item
                    late = TaskTimeoutError(f"{task.name} did not end within {task.timeout:g} s on item {index}")
                    lost.append((task, late))
                elif task.retries > 0:
                    task.retries -= 1
                    self._put_back(task)
                else:
                    index = task.first + (item if number == started else 0)
                    error = WorkerLostError(worker.process.pid, exitcode, task.name, index, task.attempts)
                    lost.append((task, error))
            worker.window.clear()
        self.dispatch()
        for task, failure in lost:
            if self.state != TERMINATE:
                task.job._set(task.index, (False, failure))

    # --- what the supervisor calls ------------------------------------------------------------------------------------

    def enroll(self, worker: Member) -> None:
        """A worker is about to be started."""
        with self.lock:
            self.members[worker.tag] = worker
            self._unready += 1

    def strike_off(self, worker: Member) -> None:
        """It could not be started."""
        with self.lock:
            del self.members[worker.tag]
            self._unready -= 1

    def announce_death(self, worker: Member, exitcode: int | None) -> None:
        """Tell the result thread, after all that the worker has sent."""
        self._tell(DIED, worker.tag, exitcode)

    def fail_all(self, reason: str, cause: BaseException | None) -> None:
        """The pool cannot go on."""
        with self.lock:
            if self.broken is None and not self._ended:
                self.broken = BrokenPoolError(reason)
                self.broken.__cause__ = cause
            self.state = TERMINATE
            self._room.notify_all()
        self.supervisor.wake()

    def quit_all(self) -> None:
        """Nothing is left to do: tell the workers."""
        with self.lock:
            for worker in self.members.values():
                worker.quit()
                self._place(worker)

    def end(self) -> None:
        """No worker is left: end the result thread."""
        with contextlib.suppress(BrokenPipeError):
            self._tell(STOP, 0)

    def _on_empty(self) -> None:
        if self.state != RUN:  # else close() is yet to come, and will look
            self.supervisor.wake()

    def forget(self) -> None:
        """In a forked child: give up what is the parent's."""
        self.members = {}
        self._buckets = []
        self._backlog = deque()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_engines() -> None:
    for engine in list(_engines):
        engine.forget()


os.register_at_fork(after_in_child=_forget_engines)

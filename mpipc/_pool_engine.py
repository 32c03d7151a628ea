"""The engine of a pool: which worker has which task, and what happens when a worker dies.

States of the engine: RUN -> CLOSE -> (no result is outstanding) winding down -> ended
                      RUN or CLOSE -> TERMINATE -> winding down -> ended
A pool that cannot start workers goes to TERMINATE by itself, with `broken` saying why.

A task is new, in the backlog, in flight (in the hands of a thread that is packing it for a worker, for which a place
in that worker's window is `reserved`), or in the window of one worker, until its result is set. What happens to those
in the window of a worker that dies is told by its ledger:

    result received     done; the message had been in the queue before the death was announced in it
    number > started    back to the front of the backlog: it was not begun
    otherwise           lost: retried if it has a retry left, else WorkerLostError, or TimeoutError if it was condemned

Threads:

- Any thread of the user submits: it adds to the backlog and runs `dispatch()`, which sends to workers.
- The *result thread* receives from the workers. It makes room in the worker's window, runs dispatch(), and sets the
  result; it alone sets results, so that callbacks do not run at the same time. It learns of a death from a message
  that the supervisor puts into the result queue, behind everything that the dead worker had put there.
- The *supervisor* starts workers, waits for one to die, announces that, starts another one, enforces timeouts, and
  winds down. It never waits for the result thread, except while the result queue is full.
- A *feeder* for each imap() over an iterator of the user: it alone runs the iterator.

`lock` guards everything below "guarded by lock". It is reentrant because garbage collection, thus a finalizer that
terminates the pool, may come at any point. No code of the user runs under it (no pickling, no callback), and nothing
waits under it.

Why no wake-up is lost: "the backlog is not empty and a worker has room" is looked at under `lock`, and every thread
that adds to the backlog or makes room calls dispatch() afterwards, which goes on until that is false. "No result is
outstanding" is looked at by the supervisor after every wake-up, and the cache wakes it when its last result is
complete.

Tasks are only sent to workers that are ready, so a task never waits for a slow initializer. A worker that has nothing
to do takes over what waits behind a busy one: the parent takes the message out of that worker's queue. The kernel
gives it to one of the two, so it is not run twice.
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
from multiprocessing import TimeoutError, util
from multiprocessing.connection import wait
from multiprocessing.pool import CLOSE, RUN, TERMINATE
from typing import Any

from mpipc import family
from mpipc._pool_channel import NOTICE, TASK, WINDOW, Channel, Message, Parcel, Vanished, unpack
from mpipc._pool_ledger import Ledger
from mpipc._pool_results import Cache
from mpipc._pool_tasks import CALL, Feed, Source, Task
from mpipc._pool_worker import (
    FAILED,
    INITIALIZER_FAILED,
    QUIT,
    READY,
    RELEASE,
    RETURNED,
    UNKNOWN_FUNCTION,
    work,
)
from mpipc.exceptions import BrokenPoolError, WorkerLostError, exit_reason
from mpipc.sysv.errors import RemovedError

__all__ = ["Engine", "Worker"]

# Kinds of messages to the result thread from this process.
DIED = 30  # tag: worker; number: exit code + 1 << 16, 0 if it is not known
LOOK = 31  # there is something in `_failures`
STOP = 32

GRACE = 5.0
"""Seconds that terminated workers have to end after SIGTERM before they get SIGKILL."""

FAILED_STARTS = 3
"""How often in a row, besides once for each worker, the start of a worker may fail by an exception or an exit."""

KILLED_STARTS = 30
"""The same where it is a signal that ends it, which may come from anywhere and mean nothing."""


class Worker:
    """A worker process as the parent sees it. Guarded by the engine's lock, but for the process."""

    def __init__(self, tag: int, quota: int | None) -> None:
        self.tag = tag
        self.quota = quota
        """How many tasks it may be sent in all; None if that is not limited."""
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
        """Functions that it has answered for, so it has them."""
        self.ready = False
        self.quitting = False
        self.dead = False
        self.condemned = 0
        """Number of the task that it is to be killed for; 0 if none."""
        self.bucket: int | None = None
        self.done = 0

    @property
    def load(self) -> int:
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

    def close_pidfd(self) -> None:
        """Nobody waits for the process any more."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def take_back(self) -> Task | None:
        """A task that it has not fetched yet, which is then not its task any more."""
        message = self.tasks.take(TASK)
        if message is None:
            return None
        task = self.window.pop(message.number)
        task.attempts -= 1
        task.parcel = None
        self.charged -= 1
        return task


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
    ) -> None:
        self._make_process = make_process
        self._context = context
        self._size = size
        self._initializer = initializer
        self._initargs = initargs
        self._quota = maxtasksperchild
        self.processes: list[Any] = []
        """The Process objects of the workers; what Pool._pool is. Changed under `_starting`."""
        self._starting = threading.RLock()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._close_wakeup = weakref.finalize(self, os.close, self._wakeup)
        self._close_wakeup.atexit = False
        self._pid = os.getpid()
        self._tags = itertools.count(1)
        self.results = Channel()
        member = family.current()
        self._parent = (member.semid, member.slot)

        self.lock = threading.RLock()
        # --- guarded by lock
        self._room = threading.Condition(self.lock)
        self.state = RUN
        self.broken: BrokenPoolError | None = None
        self._winding_down = False
        self._ended = False
        self.cache = Cache(self._on_empty)
        self.workers: dict[int, Worker] = {}
        self._buckets: list[dict[Worker, None]] = [{} for _ in range(WINDOW + 1)]
        """Ready workers by the tasks they have. One whose quota is used up counts as having WINDOW."""
        self._backlog: deque[Task | Source] = deque()
        self.restarts = 0
        # --- not guarded: appending and popleft are atomic
        self._failures: deque[tuple[Any, int, BaseException]] = deque()
        # --- the supervisor's
        self._failed_starts = 0
        self._first_failed = 0
        self._start_error: BaseException | None = None

        self._supervisor = threading.Thread(target=self._supervise, name="mpipc-pool-supervisor", daemon=True)
        self._receiver = threading.Thread(target=self._receive, name="mpipc-pool-results", daemon=True)
        _engines.add(self)

    # --- what a pool calls --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers, then the threads. If a process cannot be started, the others are ended."""
        try:
            self.populate()
            self._receiver.start()
            self._supervisor.start()
        except BaseException:
            self.state = TERMINATE
            for process in self.processes:
                if process.exitcode is None:
                    process.terminate()
            for process in self.processes:
                process.join()
            raise

    def populate(self) -> None:
        """Start as many workers as are missing."""
        with self._starting:
            while len(self.processes) < self._size and not self._winding_down and self.state != TERMINATE:
                self._start_worker()

    def submit(self, job: Any, work: Task | Source) -> None:
        """Take on a task or a map's chunks."""
        with self.lock:
            if not self._ended:
                self._backlog.append(work)
                work = None  # type: ignore[assignment]
        if work is not None:
            job._abort(self._end_error(), callback=False)
            return
        self.dispatch()

    def feed(self, job: Any, tasks: Iterator[Task], feed: Feed) -> None:
        """Take on the tasks that an iterator of the user gives, a few at a time, in a thread of their own."""
        threading.Thread(target=self._feed, args=(job, tasks, feed), name="mpipc-pool-feeder", daemon=True).start()

    def close(self) -> None:
        """Wind down when all that was submitted is done."""
        with self.lock:
            if self.state == RUN:
                self.state = CLOSE
        self._wake()

    def terminate(self) -> None:
        """End the workers, and wait until all is over unless this is called by a thread of the engine (a callback)."""
        if os.getpid() != self._pid:
            return
        with self.lock:
            self.state = TERMINATE
            self._room.notify_all()
        self._wake()
        if threading.current_thread() not in (self._supervisor, self._receiver):
            self.join()

    def join(self) -> None:
        """Wait until all is over."""
        self._supervisor.join()
        self._receiver.join()

    # --- sending ------------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Send tasks to workers until there is no task, or no worker that has room."""
        while True:
            with self.lock:
                match = self._match()
            if match is None:
                return
            self._send(*match)

    def _match(self) -> tuple[Worker, Task] | None:
        if self.state == TERMINATE:
            return None
        worker = next(iter(self._buckets[0]), None)
        if worker is None:
            if not self._backlog:
                return None
            worker = next(itertools.chain.from_iterable(self._buckets[1:WINDOW]), None)
            if worker is None:
                return None
            task = self._next_task()
        else:
            task = self._next_task() or self._take_over()
        if task is None:
            return None
        worker.reserved += 1
        self._place(worker)
        return worker, task

    def _next_task(self) -> Task | None:
        while self._backlog:
            head = self._backlog[0]
            if isinstance(head, Task):
                self._backlog.popleft()
                if head.feed is not None:
                    head.feed.waiting -= 1
                    self._room.notify_all()
                return head
            task = head.draw()
            if head.exhausted:
                self._backlog.popleft()
            if task is not None:
                return task
        return None

    def _put_back(self, task: Task) -> None:
        task.parcel = None
        if task.feed is not None:
            task.feed.waiting += 1
        self._backlog.appendleft(task)

    def _take_over(self) -> Task | None:
        """A task that waits behind another one."""
        for victim in self._buckets[WINDOW]:
            task = victim.take_back() if len(victim.window) > 1 else None
            if task is not None:
                self._place(victim)
                return task
        return None

    def _place(self, worker: Worker) -> None:
        """Put a worker into the bucket where it belongs now."""
        bucket = None
        if worker.ready and not worker.dead and not worker.quitting:
            used_up = worker.quota is not None and worker.charged + worker.reserved >= worker.quota
            bucket = WINDOW if used_up else min(worker.load, WINDOW)
        if bucket == worker.bucket:
            return
        if worker.bucket is not None:
            del self._buckets[worker.bucket][worker]
        if bucket is not None:
            self._buckets[bucket][worker] = None
        worker.bucket = bucket

    def _send(self, worker: Worker, task: Task) -> None:
        try:
            function, payload = task.pack(worker.tasks)
        except BaseException as error:
            with self.lock:
                worker.reserved -= 1
                self._place(worker)
                if not isinstance(error, Exception):
                    self._put_back(task)
                    raise
            self.fail(task.job, task.index, error)
            return
        failure = None
        with self.lock:
            worker.reserved -= 1
            if worker.dead or self.state == TERMINATE:
                self._put_back(task)
            else:
                try:
                    worker.send(task, function, payload)
                except Exception as error:
                    failure = error
            self._place(worker)
        if failure is not None:
            self.fail(task.job, task.index, failure)

    def fail(self, job: Any, index: int, error: BaseException) -> None:
        """Have the result thread set an error that came up here."""
        self._failures.append((job, index, error))
        # If the queue is full, the result thread is about to receive from it, and looks afterwards.
        with contextlib.suppress(RemovedError):
            self.results.send(LOOK, 0, wait=False)

    def _feed(self, job: Any, tasks: Iterator[Task], feed: Feed) -> None:
        count = 0
        try:
            for task in tasks:
                with self._room:
                    while feed.waiting >= max(2, self._size) and not self._ended and self.state != TERMINATE:
                        self._room.wait()
                    if self._ended or self.state == TERMINATE:
                        return  # the result thread aborts what is not complete
                    feed.waiting += 1
                    self._backlog.append(task)
                count += 1
                del task
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
                message = self.results.receive()
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
                self._break(f"the pool's result thread failed: {error!r}", error)
                if isinstance(error, RemovedError):
                    break
        with self.lock:
            self._ended = True
            self._backlog.clear()
            unfinished = list(self.cache.values())
            self._room.notify_all()
        for job in unfinished:
            job._abort(self._end_error(), callback=self.broken is not None)

    def _end_error(self) -> BrokenPoolError:
        return self.broken or BrokenPoolError("the pool was terminated before this was done")

    def _handle(self, message: Message) -> None:
        kind = message.kind
        if kind in (RETURNED, FAILED):
            self._take_result(message)
        elif kind == READY:
            with self.lock:
                worker = self.workers.get(message.tag)
                if worker is not None:
                    worker.ready = True
                    self._place(worker)
            self.dispatch()
        elif kind == UNKNOWN_FUNCTION:
            with self.lock:
                worker = self.workers.get(message.tag)
                if worker is not None:
                    task = worker.window.pop(message.number)
                    worker.known.discard(task.function.id)
                    worker.charged -= 1
                    self._put_back(task)
                    self._place(worker)
            self.dispatch()
        elif kind == DIED:
            self._bury(message.tag, message.number - (1 << 16) if message.number else None)
        elif kind == INITIALIZER_FAILED:
            with contextlib.suppress(Exception):
                self._start_error = unpack(message.second)
                self._release(message)

    def _take_result(self, message: Message) -> None:
        """Give the worker its next task, then the user the result of this one."""
        with self.lock:
            worker = self.workers.get(message.tag)
            if worker is None or message.number not in worker.window:
                return
        value: Any
        ok = message.kind == RETURNED
        if message.second[:1] != b"P":
            # It lies in the worker's shared memory; if the worker is dead, it is lost like a result that was not sent.
            try:
                value = unpack(message.second)
            except Vanished:
                return
            except BaseException as error:
                ok, value = False, error
            self._release(message)
            unpacked = True
        else:
            value, unpacked = None, False
        with self.lock:
            task = worker.window.pop(message.number)
            task.parcel = None
            worker.done += 1
            if task.kind != CALL:
                worker.known.add(task.function.id)
            self._place(worker)
        self.dispatch()
        if not unpacked:
            try:
                value = unpack(message.second)
            except BaseException as error:
                ok, value = False, error
        if self.state != TERMINATE:
            task.job._set(task.index, (ok, value))

    def _release(self, message: Message) -> None:
        with self.lock:
            worker = self.workers.get(message.tag)
            if worker is not None:
                worker.tasks.send(RELEASE, message.number, type=NOTICE, wait=False)

    def _bury(self, tag: int, exitcode: int | None) -> None:
        """A worker has died, and all that it had sent has been received."""
        lost: list[tuple[Task, BaseException]] = []
        with self.lock:
            worker = self.workers.pop(tag, None)
            if worker is None:
                return
            worker.dead = True
            self._place(worker)
            started = worker.ledger.started
            item = worker.ledger.current_item
            for number, task in reversed(worker.window.items()):
                if number > started:
                    task.attempts -= 1
                    self._put_back(task)
                elif number == worker.condemned:
                    lost.append((task, TimeoutError(f"{task.name} did not end within {task.timeout:g} s")))
                elif task.retries > 0:
                    task.retries -= 1
                    self._put_back(task)
                else:
                    index = task.first + (item if number == started else 0)
                    pid = getattr(worker.process, "pid", None)
                    lost.append((task, WorkerLostError(pid, exitcode, task.name, index, task.attempts)))
            worker.window.clear()
        self.dispatch()
        for task, error in lost:
            if self.state != TERMINATE:
                task.job._set(task.index, (False, error))

    # --- supervising --------------------------------------------------------------------------------------------------

    def _on_empty(self) -> None:
        if self.state != RUN:  # else close() is yet to come, and will look
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wakeup, 1)

    def _start_worker(self) -> None:
        worker = Worker(next(self._tags), self._quota)
        process = self._make_process(
            self._context,
            target=work,
            args=(
                worker.tag,
                worker.tasks,
                self.results,
                worker.ledger,
                self._parent,
                self._initializer,
                self._initargs,
                self._quota,
            ),
        )
        process.name = process.name.replace("Process", "PoolWorker")
        process.daemon = True
        worker.process = process
        with self.lock:
            self.workers[worker.tag] = worker
        try:
            process.start()
        except BaseException:
            with self.lock:
                self.workers.pop(worker.tag, None)
            raise
        self.processes.append(process)
        if getattr(getattr(process, "_popen", None), "method", None) in ("fork", "spawn"):
            # The pipe behind Process.sentinel stays open as long as anybody who has inherited it lives. A pidfd does
            # not, and is safe where the process is our own child.
            with contextlib.suppress(OSError):
                worker.pidfd = os.pidfd_open(process.pid)
        util.debug("added worker")
        self._wake()

    def _supervise(self) -> None:
        """The supervisor."""
        try:
            while True:
                with self.lock:
                    if self.state == TERMINATE or (self.state == CLOSE and not self.cache):
                        break
                try:
                    self.populate()
                except Exception as error:
                    self._start_error = error
                    self._count_failed_start(None)
                with self._starting, self.lock:
                    watched = [worker for worker in self.workers.values() if worker.process in self.processes]
                timeout = self._enforce_timeouts()
                if len(watched) < self._size:
                    timeout = 1.0 if timeout is None else min(timeout, 1.0)  # then it is tried again to start one
                self._collect(self._wait(watched, timeout))
        except BaseException as error:
            self._break(f"the pool's supervisor failed: {error!r}", error)
        self._wind_down()

    def _wait(self, workers: Iterable[Worker], timeout: float | None) -> list[Worker]:
        """Wait for something to happen; return those of the workers that are dead."""
        handles = {}
        for worker in workers:
            handles[worker.process.sentinel] = worker
            if worker.pidfd >= 0:
                handles[worker.pidfd] = worker
        found = wait([*handles, self._wakeup], timeout)
        if self._wakeup in found:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wakeup)
        return list({handles[handle]: None for handle in found if handle != self._wakeup})

    def _collect(self, dead: list[Worker]) -> None:
        """Announce deaths to the result thread."""
        for worker in dead:
            exitcode = _exitcode(worker.process)
            util.debug("worker %s %s", worker.process.pid, exit_reason(exitcode))
            with self._starting, self.lock:
                if worker.process in self.processes and not self._winding_down:
                    self.processes.remove(worker.process)
                    self.restarts += 1
                worker.close_pidfd()
            if not worker.ledger.is_ready and not self._winding_down:
                self._count_failed_start(worker, exitcode)
            number = 0 if exitcode is None else exitcode + (1 << 16)
            while not self.results.send(DIED, number, worker.tag, wait=False):
                if self.state == TERMINATE:
                    break
                time.sleep(0.005)  # the result thread makes room, unless it is in a callback of the user

    def _count_failed_start(self, worker: Worker | None, exitcode: int | None = None) -> None:
        with self.lock:
            if self._first_failed and any(
                other.tag > self._first_failed and other.ledger.is_ready for other in self.workers.values()
            ):
                self._failed_starts = 0
            if not self._failed_starts:
                self._first_failed = worker.tag if worker is not None else 0
            self._failed_starts += 1
        limit = KILLED_STARTS if exitcode is not None and exitcode < 0 else FAILED_STARTS
        if self._failed_starts < limit + self._size and (worker is not None or self.processes):
            return
        if worker is None:
            reason = f"a worker could not be started: {self._start_error!r}"
        else:
            count, end = self._failed_starts, exit_reason(exitcode)
            reason = f"workers die before they are ready, {count} in a row; the last one {end}"
            if self._initializer is not None:
                reason += f". The initializer is {self._initializer!r}"
        self._break(reason, self._start_error)

    def _break(self, reason: str, cause: BaseException | None) -> None:
        with self.lock:
            if self.broken is None and not self._ended:
                self.broken = BrokenPoolError(reason)
                self.broken.__cause__ = cause
            self.state = TERMINATE
            self._room.notify_all()
        self._wake()

    def _enforce_timeouts(self) -> float | None:
        """Kill the workers whose tasks have run too long; return in how many seconds the next one may be due."""
        due: float | None = None
        with self.lock:
            for worker in self.workers.values():
                if not worker.window or worker.condemned:
                    continue
                started = worker.ledger.started
                running = worker.ledger.running_for
                for number, task in worker.window.items():
                    if task.timeout is None:
                        continue
                    left = task.timeout
                    if number == started and running is not None:
                        left -= running
                    if left <= 0 and worker.ledger.condemn(number):
                        worker.condemned = number
                        worker.process.kill()
                        break
                    due = max(left, 0.001) if due is None else max(min(due, left), 0.001)
        return due

    def _wind_down(self) -> None:
        """No more work: end the workers, gently if all is done, then the result thread."""
        with self.lock:
            self._winding_down = True
            if self.state != TERMINATE:
                for worker in self.workers.values():
                    worker.quitting = True
                    self._place(worker)
                    worker.tasks.send(QUIT, 0, type=NOTICE, wait=False)
        with self._starting, self.lock:
            processes = list(self.processes)
            left = {worker for worker in self.workers.values() if worker.process in processes}
            workers = list(left)
        while left and self.state != TERMINATE:
            for worker in self._wait(left, None):
                left.discard(worker)
                _exitcode(worker.process)
        if self.state == TERMINATE:
            self._kill(processes)
        for worker in workers:
            _exitcode(worker.process)
            worker.close_pidfd()
        with contextlib.suppress(RemovedError):
            while not self.results.send(STOP, 0, wait=False):
                self.results.take()  # nobody wants it any more
        util.debug("supervisor exiting")

    def _kill(self, processes: list[Any]) -> None:
        for process in processes:
            if process.exitcode is None:
                process.terminate()
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0))
        for process in processes:
            if process.exitcode is None:
                process.kill()

    def _forget(self) -> None:
        """In a forked child: give up what is the parent's."""
        self.workers = {}
        self._buckets = []
        self._backlog = deque()


def _exitcode(process: Any) -> int | None:
    """The exit code of a process that is dead; None if somebody else took it."""
    if process.exitcode is None:
        process.join(0.5)  # the fork server may not have passed it on yet
    return process.exitcode  # type: ignore[no-any-return]


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_engines() -> None:
    for engine in list(_engines):
        engine._forget()


os.register_at_fork(after_in_child=_forget_engines)

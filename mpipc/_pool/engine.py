"""The engine of a pool: its threads, and what happens when a worker dies. Which worker has which task is the business
of _pool/schedule.pyx.

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
- The *result thread* receives from the workers, as many results at once as there are. It makes room in the workers'
  windows, runs dispatch(), and sets the results; it alone sets results, so that callbacks do not run at the same time.
  It learns of a death from a message that the supervisor puts into the result queue, behind everything that the dead
  worker had put there.
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

Switching between threads costs as much. So a thread that asks for one call and waits for it, while nothing else is
going on, receives from the workers itself: the result thread *parks*, when it has nothing to do and a call was the last
thing that was asked for. Only one of the two receives at a time. Whatever the caller receives that is not its result,
it leaves to the result thread, and waits as anybody else does; so callbacks never run in it. Whoever asks for something
else, or tells the result thread something, wakes that up, or the caller does so at its end. A caller that is
interrupted leaves a state in which the result thread can go on.

Tasks are only sent to workers that are ready, so a task never waits for a slow initializer. A worker that has room
takes over what has waited behind a busy one for a while, and one that has nothing to do half of what waits anywhere:
the parent takes back, in the busy worker's ledger, what that has not begun, so no task is run twice.

Switching between processes costs more than a small task does. So the faster the tasks of a function are, the more of
them a worker is given at a time (Pace), in one message; and while such results are coming in, the result thread does
not let each of them wake it up, but sleeps for a moment (NAP) and then takes all that are there. A result that comes
alone finds it waiting in msgrcv(2).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import CLOSE, RUN, TERMINATE
from typing import Any

from mpipc._pool.channel import DRAUGHT, Channel, Envelope, OwnReducers
from mpipc._pool.codec import Source, Task, unpack
from mpipc._pool.results import Cache, Last, opened
from mpipc._pool.schedule import LOOK, Schedule
from mpipc._pool.supervisor import GRACE, Supervisor
from mpipc._pool.tasks import Feed, function_name
from mpipc._pool.worker import (
    FAILED,
    INITIALIZER_FAILED,
    PASSING,
    PAUSE,
    READY,
    RETURNED,
    UNKNOWN_FUNCTION,
)
from mpipc._pool.worker_handle import Member
from mpipc._stdlib.private import is_owned
from mpipc.exceptions import BrokenPoolError, TaskTimeoutError, WorkerLostError

__all__ = ["Engine"]

# Kinds of messages to the result thread from this process, besides LOOK.
DIED = 30  # body: the exit code
STOP = 32

NAP = 0.0001
"""Seconds that the result thread sleeps while fast tasks are under way, if there are at least so many for a worker:"""
NAP_DEPTH = 8


class Engine(Schedule):
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
        super().__init__(size, Cache(self._on_empty), Channel())
        self._pid = os.getpid()
        # --- guarded by lock
        self.broken: BrokenPoolError | None = None
        """Why the pool came to an end by itself."""
        self.replaced = 0
        """How many workers have died."""

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
        self._feeders: set[threading.Thread] = set()
        self._reading: set[threading.Thread] = set()
        """Those that wait for the user's iterator."""
        self._running = 2
        """Threads that have not left: the result thread and the supervisor."""
        # ---
        self._receiver = threading.Thread(target=self._receive, name="mpipc-pool-results", daemon=True)
        self._stop = False
        """The result thread is to end, even if it cannot be told."""
        self._receiving = False
        """It may be asleep in a system call."""
        self._abandoned = False
        """It is, and nothing can wake it up: the supervisor does the rest in its place."""
        self._concluded = threading.Event()
        """Every result is complete."""
        self._concluder = 0
        """The thread that sees to that: the result thread."""
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
            if self.supervisor.thread.ident is not None:  # an interruption, after all had been started
                self.wake()
                self.join()
            else:
                self.supervisor.abandon()
                if self._receiver.ident is not None:
                    self.end()
                    self._receiver.join()
                else:
                    self.leave()
                self.leave()
            raise

    def run(self, job: Any, task: Task) -> Any:
        """Take on a task, wait for its result, and return it or raise it."""
        message = self.call(job, task)
        if message is None:
            self.take_on(job, task)
            self.called = True
        if not message:
            return job.get()
        ok, value = opened(message, task)
        if ok:
            return value
        raise value

    def take_on(self, job: Any, work: Task | Source) -> None:
        """Take on a task or a map's chunks."""
        if not self.submit(job, work):
            self.refuse(job)

    def take_on_failure(self, job: Any, error: Exception) -> None:
        """Take on a job whose result is an exception."""
        with self.lock:
            ended = self.ended
            if not ended:
                self.cache.enter(job)
        if ended:
            self.refuse(job)
        else:
            self.fail(job, 0, error)

    def cancel_backlog(self) -> None:
        """Cancel what can be cancelled and no worker has been given."""
        with self.lock:
            waiting = [task for task in self.backlog if isinstance(task, Task) and task.job.cancellable]
        self.drop({task for task in waiting if task.job.future.cancel()})

    def refuse(self, job: Any) -> None:
        """Complete a result that came too late."""
        if threading.get_ident() != self._concluder:
            self._concluded.wait()
        job._abort(self._end_error(), callback=False)

    def feed(self, job: Any, tasks: Iterator[Task], feed: Feed) -> None:
        """Take on the tasks that an iterator of the user gives, a few at a time, in a thread of their own."""
        thread = threading.Thread(target=self._feed, args=(job, tasks, feed), name="mpipc-pool-feeder", daemon=True)
        try:
            self.cache.enter(job)
            self._feeders.add(thread)  # without the lock: this may be interrupted between any two bytecodes
            thread.start()
        except BaseException:
            if thread.ident is None:
                self._feeders.discard(thread)
                self.cache.pop(job._job, None)
            raise

    def close(self) -> None:
        """Wind down when all that was submitted is done."""
        if os.getpid() != self._pid:
            return
        with self.lock:
            if self.state == RUN:
                self.state = CLOSE
        self.wake()

    def terminate(self) -> None:
        """End the workers, and wait until all is over.

        Not if that waits for this: in a thread of the engine (a callback), and in a signal handler or a finalizer that
        has come while its thread held the lock.
        """
        if os.getpid() != self._pid:
            return
        nested = is_owned(self.lock)
        with self.lock:
            self.state = TERMINATE
            self.ring_all()
        self.wake()
        if threading.current_thread() not in (self.supervisor.thread, self._receiver) and not nested:
            self.join()

    def join(self) -> None:
        """Wait until all is over. Then nothing of the pool is left: no process, thread, descriptor or kernel object."""
        self.hand_over()
        supervisor = self.supervisor.thread
        if self.state == TERMINATE:
            supervisor.join(GRACE)
            if supervisor.is_alive():
                self.supervisor.kill()
        supervisor.join()
        self._concluded.wait()
        if not self._abandoned:
            self._receiver.join()
        for thread in list(self._feeders):
            # After the end a feeder asks for no other item. While it waits for one, it cannot be ended.
            if thread.is_alive() and not self._is_reading(thread):
                thread.join()

    def _is_reading(self, feeder: threading.Thread) -> bool:
        with self.lock:
            return feeder in self._reading or feeder is threading.current_thread()

    # --- sending ------------------------------------------------------------------------------------------------------

    def fail(self, job: Any, index: int, error: BaseException) -> None:
        """Have the result thread set an error that came up here."""
        self.failures.append((job, index, error))
        with contextlib.suppress(BrokenPipeError):  # it is through: it has set that, or does not set anything any more
            self._tell(LOOK, 0)

    def _tell(self, kind: int, tag: int, body: Any = None) -> None:
        """Send to the result thread."""
        with self.lock:
            self.told += 1
            self.unpark()
        try:
            self.results.send((kind, tag, 0, None, 0, body, None))
        except BaseException:
            with self.lock:
                self.told -= 1
            raise

    def _feed(self, job: Any, tasks: Iterator[Task], feed: Feed) -> None:
        for other in list(self._feeders):
            if other.ident is not None and not other.is_alive():
                self._feeders.discard(other)
        count = 0
        error: BaseException | None = None
        try:
            while (task := self._read(tasks)) is not None:
                feed.low = task.function.pace.depth * self.size
                if feed.waiting >= 2 * feed.low:
                    # Woken up for each task, this thread would take more time than the tasks do.
                    while self.wait_for_room(feed):
                        feed.bell.acquire()
                if not self.add_fed(task):
                    break
                del task
                count += 1
                self.dispatch()
        except BaseException as raised:
            error = raised
        if self._is_over():
            self._concluded.wait()  # what is not complete is completed there
            if job._job in self.cache:  # taken on after that
                self.refuse(job)
            return
        if error is not None:
            self.fail(Last(job), count, error)
            count += 1
        job._set_length(count)

    def _read(self, tasks: Iterator[Task]) -> Task | None:
        """The next task that a user's iterator gives; None if there is none, or the pool has ended."""
        thread = threading.current_thread()
        with self.lock:
            if self._is_over():
                return None
            self._reading.add(thread)
        try:
            return next(tasks, None)
        finally:
            with self.lock:
                self._reading.discard(thread)

    def _is_over(self) -> bool:
        return self.ended or self.state == TERMINATE

    # --- receiving ----------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """The result thread."""
        over = False
        while not over:
            try:
                over = self._receive_some()
                while self.failures:
                    job, index, failure = self.failures.popleft()
                    if self.state != TERMINATE:
                        job._set(index, (False, failure))
                    del job, failure
            except BaseException as error:
                self.fail_all(f"the pool's result thread failed: {error!r}", error)
        if not self._abandoned:
            self._conclude()
            self.leave()

    def _receive_some(self) -> bool:
        """Handle the messages that are there, or the next ones that come; True if the thread is to end."""
        over = False
        if self._park():
            self.wanted.acquire()
            if self.inbox:
                messages, self.inbox = self.inbox, []
                over = self._handle_all(messages)
            self.dispatch()
            return over
        if self.may_nap(NAP_DEPTH):
            time.sleep(NAP)
        self._receiving = True
        try:
            messages = self.results.receive_many(DRAUGHT)
        except Exception as error:
            self._receiving = False
            received = getattr(error, "received", None)
            if received is None and isinstance(error, PASSING):
                time.sleep(PAUSE)
                return self._stop
            self.fail_all(f"the pool's result thread cannot receive: {error!r}", error)
            if received is None:  # somebody has removed the queue, or this process may not use it any more
                return True
            messages = received  # one among them could not be read: whose it was, nobody knows
        self._receiving = False
        return self._handle_all(messages)

    def _conclude(self) -> None:
        """Complete what is not complete. The last thing that the result thread does."""
        with self.lock:
            if self.ended:
                return
            self.ended = True
            self._concluder = threading.get_ident()
            self.backlog.clear()
            unfinished = list(self.cache.values())
            self.ring_all()
        for job in unfinished:
            if job._job in self.cache:  # a callback may have submitted something, and been refused
                try:
                    job._abort(self._end_error(), callback=self.broken is not None)
                except BaseException:
                    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
        self._concluded.set()

    def leave(self) -> None:
        """A thread of the engine ends. The last of them leaves nothing behind.

        Results refer to the engine, and nobody should have to wait for the garbage collection. Other children of this
        process may have inherited the queues, so these are removed, and not only let go of.
        """
        with self.lock:
            self._running -= 1
            if self._running != 0:
                return
            for worker in self.members.values():
                worker.tasks.remove()
                worker.let_go()
            self.members = {}
            self.idle = {}
            self.results.remove()
            self.results.close()
            self.close_wakeup()
            self.cache.detach()
        self.supervisor.let_go()

    def _end_error(self) -> BrokenPoolError:
        return self.broken or BrokenPoolError("the pool was terminated before this was done")

    def _park(self) -> bool:
        """Whether to leave receiving to a call()."""
        with self.lock:
            idle = not (self.cache or self.unready or self.told or self.failures or self.inbox)
            self.parked = self.called and idle and self.state == RUN
            return self.parked

    def _handle_all(self, messages: list[Any]) -> bool:
        """Handle messages in their order; True if they end the thread."""
        results: list[tuple[Any, ...]] = []
        messages.reverse()
        while messages:
            message = messages.pop()
            kind = message[0]
            if kind in (RETURNED, FAILED):
                results.append(message)
                continue
            if kind in (DIED, LOOK, STOP):
                with self.lock:
                    self.told -= 1
            self._take_results(results)
            if kind == STOP:
                return True
            self._handle(Envelope._make(message))
        self._take_results(results)
        return False

    def _handle(self, message: Envelope) -> None:
        kind = message.kind
        with self.lock:
            worker = self.members.get(message.tag)
        if worker is None:
            return  # LOOK
        if kind == READY:
            with self.lock:
                worker.ready = True
                self.unready -= 1
                self.refresh(worker)
            self.dispatch()
        elif kind == UNKNOWN_FUNCTION:
            with self.lock:
                task = worker.withdraw(message.number)
                if task is not None:
                    worker.known.pop(task.function.id, None)
                    self.put_back(task)
                    self.refresh(worker)
            self.dispatch()
        elif kind == DIED:
            self._bury(worker, message.body)
        elif kind == INITIALIZER_FAILED:
            with contextlib.suppress(Exception):  # the exception can be unpickled in the worker only
                self.supervisor.start_error = unpack(message.body, message.buffers)

    def _take_results(self, messages: list[tuple[Any, ...]]) -> None:
        """Give the workers their next tasks, then the user the results of these, which are removed from the list."""
        if not messages:
            return
        done = self.take_answers(messages)
        self.dispatch()
        done.reverse()
        while done:
            task, message = done.pop()
            if self.state == TERMINATE:
                continue
            ok, value = opened(message, task, BaseException)  # nobody has asked this thread to exit
            task.job._set(task.index, (ok, value))
            del task, message, value

    def _bury(self, worker: Member, exitcode: int | None) -> None:
        """A worker has died, and all that it had sent has been received."""
        lost: list[tuple[Task, Exception]] = []
        with self.lock:
            del self.members[worker.tag]
            self.unready -= not worker.ready
            self.replaced += 1
            worker.dead = True
            self.refresh(worker)
            started = worker.ledger.started
            item = worker.ledger.current_item
            for number, task in reversed(worker.window.items()):
                if number > started:
                    task.attempts -= 1
                    self.put_back(task)
                elif number == worker.condemned:
                    name, index = function_name(task.function.call), task.first + item
                    late = TaskTimeoutError(f"{name} did not end within {task.timeout:g} s on item {index}")
                    lost.append((task, late))
                elif task.retries > 0:
                    task.retries -= 1
                    self.put_back(task)
                else:
                    name, index = function_name(task.function.call), task.first + (item if number == started else 0)
                    error = WorkerLostError(worker.process.pid, exitcode, name, index, task.attempts)
                    lost.append((task, error))
            worker.window.clear()
            worker.tasks.remove()
            worker.let_go()
        self.dispatch()
        for task, failure in lost:
            if self.state != TERMINATE:
                task.job._set(task.index, (False, failure))

    # --- what the supervisor calls ------------------------------------------------------------------------------------

    def enroll(self, worker: Member) -> None:
        """A worker is about to be started."""
        with self.lock:
            self.members[worker.tag] = worker
            self.unready += 1

    def strike_off(self, worker: Member) -> None:
        """It could not be started."""
        with self.lock:
            del self.members[worker.tag]
            self.unready -= 1

    def announce_death(self, worker: Member, exitcode: int | None) -> None:
        """Tell the result thread, after all that the worker has sent."""
        while self.state != TERMINATE:
            try:
                return self._tell(DIED, worker.tag, exitcode)
            except PASSING:
                time.sleep(PAUSE)

    def fail_all(self, reason: str, cause: BaseException | None) -> None:
        """The pool cannot go on."""
        with self.lock:
            if self.broken is None and not self.ended:
                self.broken = BrokenPoolError(reason)
                self.broken.__cause__ = cause
            self.state = TERMINATE
            self.ring_all()
        self.wake()

    def quit_all(self) -> None:
        """Nothing is left to do: tell the workers. Without the lock: who is stopped may have that of its queue."""
        with self.lock:
            workers = list(self.members.values())
            for worker in workers:
                worker.quitting = True
                self.refresh(worker)
        for worker in workers:
            try:
                worker.quit()
            except (OSError, MemoryError):  # somebody has removed its queue, or there is no memory
                with contextlib.suppress(OSError):
                    worker.process.kill()

    def end(self) -> None:
        """No worker is left: end the result thread, whatever fails."""
        self._stop = True
        try:
            self._tell(STOP, 0)
        except Exception:
            self.results.remove()  # it wakes from that
            deadline = time.monotonic() + GRACE
            while not self._concluded.wait(0.02):
                if self._receiving and time.monotonic() > deadline:
                    # It sleeps in a queue that this process has no access to any more.
                    self._abandoned = True
                    self._conclude()
                    self.leave()

    def _on_empty(self) -> None:
        if self.state != RUN:  # else close() is yet to come, and will look
            self.wake()

    def forget(self) -> None:
        """In a forked child: give up what is the parent's. The child may be one of the workers, and needs its own."""
        own = self.supervisor.launching
        for worker in self.members.values():
            if worker is not own:
                worker.let_go()
        if own is None:
            self.results.close()
        self.members = {}
        self.idle = {}
        self.backlog = deque()
        self.close_wakeup()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_engines() -> None:
    for engine in list(_engines):
        engine.forget()


os.register_at_fork(after_in_child=_forget_engines)

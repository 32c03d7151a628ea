"""The result thread of a pool: it receives what the workers send, and sets results.

It receives as many results at once as there are, makes room in the workers' windows, runs dispatch(), and sets the
results; it alone sets results, so that callbacks do not run at the same time. It learns of a death from a message that
the supervisor puts into the result queue, behind everything that the dead worker had put there. What happens then to
the tasks in that worker's window is told by its ledger:

    result received     done; the message had been in the queue before the death was announced in it
    number > started    back to the front of the backlog: it was not begun
    otherwise           lost: retried if it has a retry left, else WorkerLostError, or TimeoutError if it was condemned

Switching between threads costs as much as a small task. So a thread that asks for one call and waits for it, while
nothing else is going on, receives from the workers itself: the result thread *parks*, when it has nothing to do and a
call was the last thing that was asked for. Only one of the two receives at a time. Whatever the caller receives that is
not its result, it leaves to the result thread, and waits as anybody else does; so callbacks never run in it. Whoever
asks for something else, or tells the result thread something, wakes that up, or the caller does so at its end. A caller
that is interrupted leaves a state in which the result thread can go on.

Switching between processes costs more than a small task does. So the faster the tasks of a function are, the more of
them a worker is given at a time (Pace), in one message; and while such results are coming in, the result thread does
not let each of them wake it up, but sleeps for a moment (NAP) and then takes all that are there. A result that comes
alone finds it waiting in msgrcv(2).
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import Any, Protocol

from mpipc._core.greenlets import are_here
from mpipc._pool.cancel import WHOLE, cancelled_error
from mpipc._pool.channel import DRAUGHT, Envelope
from mpipc._pool.codec import Task, unpack
from mpipc._pool.life import Life
from mpipc._pool.losses import open_report, stack_of
from mpipc._pool.report import Accounts
from mpipc._pool.results import opened
from mpipc._pool.schedule import LOOK, Schedule
from mpipc._pool.states import State
from mpipc._pool.tasks import function_name
from mpipc._pool.worker import (
    FAILED,
    INITIALIZER_FAILED,
    LONG,
    PASSING,
    PAUSE,
    READY,
    RETURNED,
    UNKNOWN_FUNCTION,
)
from mpipc._pool.worker_handle import Member
from mpipc.exceptions import BrokenPoolError, MemoryLimitError, TaskTimeoutError, WorkerLostError

__all__ = ["DIED", "Owner", "Receiver"]

# Kinds of messages to the result thread from this process, besides LOOK.
DIED = 30  # body: the exit code
STOP = 32

NAP = 0.0001
"""Seconds that the result thread sleeps while fast tasks are under way, if there are at least so many for a worker:"""
NAP_DEPTH = 8

LAST_WORD = 1.0
"""Seconds that it has to end when it cannot be told to."""


class Owner(Protocol):
    """What the result thread needs of the engine that it is a part of, besides the pool's life and schedule."""

    broken: BrokenPoolError | None
    """Why the pool came to its end by itself, if it did."""
    replaced: int
    """How many workers have died; counted here."""
    accounts: Accounts
    """What is to be reported; written here."""

    def fail_all(self, reason: str, cause: BaseException | None) -> None:
        """The pool cannot go on."""

    def blame(self, error: BaseException) -> None:
        """Why a worker could not be started, in case that goes on."""

    def leave(self) -> None:
        """This thread does nothing more."""


class Receiver:
    """The result thread of one pool.

    Its own states: it receives, or is parked (Schedule.parked), until STOP. Then, or if it finds the queue removed, it
    concludes (the pool is CONCLUDING, then ENDED) and leaves. If it can neither be told nor woken, it is abandoned, and
    the supervisor's thread concludes in its place.
    """

    def __init__(self, owner: Owner, life: Life, schedule: Schedule) -> None:
        self._owner = owner
        self._life = life
        self._schedule = schedule
        self.thread = threading.Thread(target=self._run, name="mpipc-pool-results", daemon=True)
        self._stop = False
        """The thread is to end, even if it cannot be told."""
        self._receiving = False
        """It may be asleep in a system call."""
        self._abandoned = False
        """It is, and nothing can wake it up: the supervisor does the rest in its place."""
        self._concluded = threading.Event()
        """The pool is ENDED."""
        self._concluder = 0
        """The thread that sees to that: the result thread."""

    # --- for any thread -----------------------------------------------------------------------------------------------

    def fail(self, job: Any, index: int, error: BaseException) -> None:
        """Have the result thread set an error that came up elsewhere."""
        self._schedule.failures.append((job, index, error))
        with contextlib.suppress(BrokenPipeError):  # it is through: it has set that, or does not set anything any more
            self._tell(LOOK, 0)

    def announce_death(self, worker: Member, exitcode: int | None) -> None:
        """Tell the result thread, after all that the worker has sent."""
        while not self._life.is_over:
            try:
                return self._tell(DIED, worker.tag, exitcode)
            except PASSING:
                time.sleep(PAUSE)

    def _tell(self, kind: int, tag: int, body: Any = None) -> None:
        """Send to the result thread."""
        schedule = self._schedule
        with schedule.lock:
            schedule.told += 1
            schedule.unpark()
        try:
            schedule.results.send((kind, tag, 0, None, 0, body, None))
        except BaseException:
            with schedule.lock:
                schedule.told -= 1
            raise

    def await_conclusion(self) -> None:
        """Wait until the pool is ENDED; not in the thread that sees to that, in which a callback may ask for it."""
        if threading.get_ident() != self._concluder:
            self._concluded.wait()

    def refuse(self, job: Any) -> None:
        """Complete a result that came too late."""
        self.await_conclusion()
        job._abort(self._end_error(), callback=False)

    def _end_error(self) -> BrokenPoolError:
        return self._owner.broken or BrokenPoolError("the pool was terminated before this was done")

    def join(self) -> None:
        """Wait until every result is complete, and the thread has ended, if it can."""
        self._concluded.wait()
        if not self._abandoned:
            self.thread.join()

    def end(self) -> None:
        """No worker is left: end the thread, whatever fails."""
        self._stop = True
        try:
            self._tell(STOP, 0)
        except Exception:
            self._schedule.results.remove()  # it wakes from that
            deadline = time.monotonic() + LAST_WORD
            while not self._concluded.wait(0.02):
                if self._receiving and time.monotonic() > deadline:
                    # It sleeps in a queue that this process has no access to any more.
                    self._abandoned = True
                    self.conclude()
                    self._owner.leave()

    def conclude(self) -> None:
        """Complete what is not complete. The last thing that the result thread does."""
        with self._life.lock:
            if self._life.is_concluding:
                return
            self._concluder = threading.get_ident()
            self._life.enter(State.CONCLUDING)
            unfinished = self._schedule.give_up()
        cache = self._schedule.cache
        for job in unfinished:
            if job._job in cache:  # a callback may have submitted something, and been refused
                try:
                    job._abort(self._end_error(), callback=self._owner.broken is not None)
                except BaseException:
                    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
        self._life.enter(State.ENDED)
        self._concluded.set()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        life = self._life
        failures = self._schedule.failures
        over = False
        while not over:
            try:
                over = self._receive_some()
                while failures:
                    job, index, failure = failures.popleft()
                    if life.is_over:
                        pass
                    elif index == WHOLE:
                        job._abort(failure, callback=True)
                    else:
                        job._set(index, (False, failure))
                    del job, failure
            except BaseException as error:
                self._owner.fail_all(f"the pool's result thread failed: {error!r}", error)
        if not self._abandoned:
            self.conclude()
            self._owner.leave()

    def _receive_some(self) -> bool:
        """Handle the messages that are there, or the next ones that come; True if the thread is to end."""
        schedule = self._schedule
        if not are_here() and schedule.park():  # greenlets of a thread cannot be told apart by who calls
            schedule.wanted.acquire()
            over = self.handle_all(schedule.take_inbox())
            schedule.dispatch()
            return over
        if schedule.may_nap(NAP_DEPTH):
            time.sleep(NAP)
        self._receiving = True
        try:
            messages = schedule.results.receive_many(DRAUGHT)
        except Exception as error:
            self._receiving = False
            received = getattr(error, "received", None)
            if received is None and isinstance(error, PASSING):
                time.sleep(PAUSE)
                return self._stop
            self._owner.fail_all(f"the pool's result thread cannot receive: {error!r}", error)
            if received is None:  # somebody has removed the queue, or this process may not use it any more
                return True
            messages = received  # one among them could not be read: whose it was, nobody knows
        self._receiving = False
        return self.handle_all(messages)

    def handle_all(self, messages: list[Any]) -> bool:
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
                with self._schedule.lock:
                    self._schedule.told -= 1
            self._take_results(results)
            if kind == STOP and self._stop:
                return True
            self._handle(Envelope._make(message))
        self._take_results(results)
        return False

    def _handle(self, message: Envelope) -> None:
        kind = message.kind
        schedule = self._schedule
        with schedule.lock:
            worker = schedule.members.get(message.tag)
        if worker is None:
            return  # LOOK
        if kind == READY:
            if message.body is not None:
                worker.take_report(open_report(worker.process.pid, message.body))
            schedule.admit(worker)
            schedule.dispatch()
        elif kind == UNKNOWN_FUNCTION:
            with schedule.lock:
                task = worker.withdraw(message.number)
                if task is not None:
                    worker.known.pop(task.function.id, None)
                    schedule.put_back(task)
                    schedule.refresh(worker)
            schedule.dispatch()
        elif kind == LONG:
            with schedule.lock:
                self._owner.accounts.note(worker, message.number, *message.body)
        elif kind == DIED:
            self._bury(worker, message.body)
        elif kind == INITIALIZER_FAILED:
            with contextlib.suppress(Exception):  # the exception can be unpickled in the worker only
                self._owner.blame(unpack(message.body, message.buffers))

    def _take_results(self, messages: list[tuple[Any, ...]]) -> None:
        """Give the workers their next tasks, then the user the results of these, which are removed from the list."""
        if not messages:
            return
        life = self._life
        done = self._schedule.take_answers(messages)
        self._schedule.dispatch()
        done.reverse()
        while done:
            task, message = done.pop()
            if life.is_over:
                continue
            ok, value = opened(message, task, BaseException)  # nobody has asked this thread to exit
            task.job._set(task.index, (ok, value))
            del task, message, value

    def _bury(self, worker: Member, exitcode: int | None) -> None:
        """A worker has died, and all that it had sent has been received."""
        lost: list[tuple[Task, Exception]] = []
        schedule = self._schedule
        with schedule.lock:
            schedule.strike_off(worker)
            self._owner.replaced += 1
            started = worker.ledger.started
            item = worker.ledger.current_item
            for number, task in reversed(worker.window.items()):
                if number > started:
                    task.attempts -= 1
                    schedule.put_back(task)
                elif number == worker.condemned:
                    name, index = function_name(task.function.call), task.first + item
                    lost.append((task, _sentence(worker, task, name, index)))
                elif task.retries > 0:
                    task.retries -= 1
                    schedule.put_back(task)
                else:
                    name, index = function_name(task.function.call), task.first + (item if number == started else 0)
                    error = WorkerLostError(
                        worker.process.pid, exitcode, name, index, task.attempts, worker.explanation, worker.peak
                    )
                    lost.append((task, error))
            worker.window.clear()
            if exitcode != 0:
                schedule.backlog.worker_died(worker.tag, [task for task, _ in lost])
            worker.tasks.remove()
            self._owner.accounts.close(worker)
            worker.let_go()
        schedule.dispatch()
        for task, failure in lost:
            if not self._life.is_over:
                task.job._set(task.index, (False, failure))


def _sentence(worker: Member, task: Task, name: str, index: int) -> Exception:
    """Why a task has failed whose worker was killed for it."""
    if worker.excess is not None:
        return MemoryLimitError(worker.process.pid, name, index, task.attempts, *worker.excess)
    if task.timeout is None:
        return cancelled_error()  # which the job knows already
    return TaskTimeoutError(
        f"{name} did not end within {task.timeout:g} s on item {index}", stack=stack_of(worker.crash_report)
    )

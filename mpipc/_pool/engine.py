"""The engine of a pool: what its parts are, what the faces call, and what the parts call of each other.

    life          the state of the pool, and the lock                                   _pool/life.pyx, states.py
    schedule      which worker has which task                                           _pool/schedule.pyx, backlog.pyx
    receiver      the *result thread*: receives, sets results, buries dead workers      _pool/receiver.py
    supervisor    a thread that starts workers, waits for one to die, announces that to the result thread, starts
                  another one, enforces timeouts, and winds down. It never waits for the result thread
                                                                                        _pool/supervisor.py
    feeders       a thread for each imap() over an iterator of the user                 _pool/feed.py

Any thread of the user submits: it adds to the backlog and runs `dispatch()`, which sends to workers. A task is new, in
the backlog, or in the window of one worker, until its result is set. It gets into the window just before a thread packs
and sends it; if that fails, so does the task.

`life.lock` guards the state and the schedule, and what is said to be guarded by it here.

Why no wake-up is lost: "the backlog is not empty and a worker has room" is looked at under the lock, and every thread
that adds to the backlog or makes room calls dispatch() afterwards, which goes on until that is false. "No result is
outstanding" is looked at by the supervisor after every wake-up, and the cache wakes it when its last result is
complete.

Tasks are only sent to workers that are ready, so a task never waits for a slow initializer. A worker that has room
takes over what has waited behind a busy one for a while, and one that has nothing to do half of what waits anywhere:
the parent takes back, in the busy worker's ledger, what that has not begun, so no task is run twice.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from mpipc._pool.backlog import Broadcast
from mpipc._pool.cancel import cancel
from mpipc._pool.channel import Channel
from mpipc._pool.codec import Source, Task
from mpipc._pool.feed import Feeders, Taken
from mpipc._pool.life import Life
from mpipc._pool.memory import INTERVAL
from mpipc._pool.options import WorkerOptions
from mpipc._pool.receiver import Receiver
from mpipc._pool.report import Accounts
from mpipc._pool.results import Cache, opened
from mpipc._pool.schedule import Schedule
from mpipc._pool.states import State
from mpipc._pool.supervisor import GRACE, Supervisor
from mpipc._pool.tasks import Feed
from mpipc._pool.worker_handle import Member
from mpipc._stdlib.private import is_owned
from mpipc.exceptions import BrokenPoolError

__all__ = ["Engine"]


class Engine:
    """Workers and tasks of one pool. Holds no reference to the pool, which may be collected while its threads run.

    It is the Owner of its receiver, and what its supervisor supervises (Supervised).
    """

    def __init__(
        self,
        make_process: Callable[..., Any],
        context: Any,
        size: int,
        options: WorkerOptions,
    ) -> None:
        self._pid = os.getpid()
        self.life = Life()
        self.results = Channel(not options.copy)
        self.schedule = Schedule(self.life, size, Cache(self._on_empty), self.results)
        self.schedule.interval = INTERVAL if options.memory_limit is not None else None
        self.receiver = Receiver(self, self.life, self.schedule)
        self.supervisor = Supervisor(self, make_process, context, size, options)
        self._feeders = Feeders(self.life, self.schedule, self.receiver)
        # --- guarded by the lock
        self.broken: BrokenPoolError | None = None
        """Why the pool came to an end by itself."""
        self.replaced = 0
        """How many workers have died."""
        self.accounts = Accounts()
        self._running = 2
        """Threads that have not left: the result thread and the supervisor."""
        # ---
        _engines.add(self)

    # --- what a pool calls --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers, then the threads. If a process cannot be started, the others are ended."""
        try:
            self.supervisor.populate()
            self.receiver.thread.start()
            self.supervisor.thread.start()
        except BaseException:
            self._give_up()
            if self.supervisor.thread.ident is not None:  # an interruption, after all had been started
                self.life.wake()
                self.join()
            else:
                self.supervisor.abandon()
                if self.receiver.thread.ident is not None:
                    self.receiver.end()
                    self.receiver.join()
                else:
                    self.receiver.conclude()
                    self.leave()
                self.leave()
            raise

    def run(self, job: Any, task: Task) -> Any:
        """Take on a task, wait for its result, and return it or raise it."""
        message = self.schedule.call(job, task)
        if message is None:
            self.take_on(job, task)
            self.schedule.called = True
        if not message:
            return job.get()
        ok, value = opened(message, task)
        if ok:
            return value
        raise value

    def take_on(self, job: Any, work: Task | Source | Broadcast) -> None:
        """Take on a task, a map's chunks, or what each worker is to do."""
        if not self.schedule.submit(job, work):
            self.receiver.refuse(job)

    def take_on_failure(self, job: Any, error: Exception) -> None:
        """Take on a job whose result is an exception."""
        with self.life.lock:
            late = self.life.is_concluding
            if not late:
                self.schedule.cache.enter(job)
        if late:
            self.receiver.refuse(job)
        else:
            self.receiver.fail(job, 0, error)

    def feed(self, job: Any, tasks: Iterator[Task], feed: Feed) -> Any:
        """Take on the tasks that an iterator of the user gives, a few at a time, in a thread of their own. Returns an
        iterator over the results."""
        results = job if feed.most is None else Taken(job, self.schedule, feed)
        self._feeders.start(job, tasks, feed)
        return results

    def cancel(self, job: Any) -> bool:
        """Have a job end with CancelledError, wherever its tasks are. False if it is complete already."""
        return os.getpid() == self._pid and cancel(self.schedule, self.receiver, job)

    def cancel_backlog(self) -> None:
        """Cancel what can be cancelled and no worker has been given."""
        with self.life.lock:
            waiting = [
                task for task in self.schedule.backlog.waiting if isinstance(task, Task) and task.job.cancellable
            ]
        self.schedule.drop({task for task in waiting if task.job.future.cancel()})

    def populate(self) -> None:
        """Start as many workers as are missing."""
        self.supervisor.populate()

    @property
    def processes(self) -> list[Any]:
        """The Process objects of the workers that are to be there: the list itself."""
        return self.supervisor.processes

    def close(self) -> None:
        """Wind down when all that was submitted is done."""
        if os.getpid() != self._pid:
            return
        with self.life.lock:
            if self.life.may_enter(State.CLOSED):
                self.life.enter(State.CLOSED)
                self.schedule.backlog.ring_all()
        self.life.wake()

    def terminate(self, *, mercy: bool = True) -> None:
        """End the workers, and wait until all is over. Without `mercy` they get no SIGTERM before they are killed.

        Not if that waits for this: in a thread of the engine (a callback), and in a signal handler or a finalizer that
        has come while its thread held the lock.
        """
        if os.getpid() != self._pid:
            return
        self.supervisor.mercy = mercy
        nested = is_owned(self.life.lock)
        self._give_up()
        self.life.wake()
        if threading.current_thread() not in (self.supervisor.thread, self.receiver.thread) and not nested:
            self.join()

    def _give_up(self) -> None:
        with self.life.lock:
            if self.life.may_enter(State.TERMINATING):
                self.life.enter(State.TERMINATING)
            self.schedule.backlog.ring_all()

    def join(self) -> None:
        """Wait until all is over. Then nothing of the pool is left: no process, thread, descriptor or kernel object."""
        self.schedule.hand_over()
        supervisor = self.supervisor.thread
        if self.life.is_over:
            supervisor.join(GRACE)
            if supervisor.is_alive():
                self.supervisor.kill()
        supervisor.join()
        self.receiver.join()
        self._feeders.join()

    # --- what the supervisor and the result thread call ---------------------------------------------------------------

    def members(self) -> list[Member]:
        """The workers: those that are being started, those that are there, and those whose death is not dealt with."""
        with self.life.lock:
            return list(self.schedule.members.values())

    def enroll(self, worker: Member) -> None:
        """A worker is about to be started."""
        self.schedule.enroll(worker)

    def strike_off(self, worker: Member) -> None:
        """It could not be started."""
        self.schedule.strike_off(worker)

    def announce_death(self, worker: Member, exitcode: int | None) -> None:
        """Tell the result thread, after all that the worker has sent."""
        self.receiver.announce_death(worker, exitcode)

    def expect(self, due: float | None) -> None:
        """When the supervisor looks at timeouts again, if nothing wakes it; a task that has less time does."""
        self.schedule.due = due

    def dispatch(self) -> None:
        """Send tasks to workers.

        For who was interrupted between adding a task and sending it, and has left it to whoever comes next.
        """
        self.schedule.dispatch()

    def goes_on(self) -> bool:
        """Whether there is or may be work: else the workers are to be ended. From then on none is started.

        A closed pool whose results are all complete gets QUITTING here.
        """
        with self.life.lock:
            if self.life.state is State.CLOSED and not self.schedule.cache:
                self.life.enter(State.QUITTING)
            return self.life.is_staffed

    def blame(self, error: BaseException) -> None:
        """Why a worker could not be started, in case that goes on."""
        self.supervisor.start_error = error

    def fail_all(self, reason: str, cause: BaseException | None) -> None:
        """The pool cannot go on."""
        with self.life.lock:
            if self.life.may_enter(State.BROKEN):
                self.broken = BrokenPoolError(reason)
                self.broken.__cause__ = cause
                self.life.enter(State.BROKEN)
            self.schedule.backlog.ring_all()
        self.life.wake()

    def quit_all(self) -> None:
        """Nothing is left to do: tell the workers. Without the lock: who is stopped may have that of its queue."""
        with self.life.lock:
            workers = self.members()
            for worker in workers:
                worker.quitting = True
                self.schedule.refresh(worker)
        for worker in workers:
            try:
                worker.quit()
            except (OSError, MemoryError):  # somebody has removed its queue, or there is no memory
                with contextlib.suppress(OSError):
                    worker.process.kill()

    def end(self) -> None:
        """No worker is left: end the result thread, whatever fails."""
        self.receiver.end()

    def leave(self) -> None:
        """A thread of the engine ends. The last of them leaves nothing behind.

        Results refer to the engine, and nobody should have to wait for the garbage collection. Other children of this
        process may have inherited the queues, so these are removed, and not only let go of.
        """
        with self.life.lock:
            self._running -= 1
            if self._running != 0:
                return
            for worker in self.members():
                worker.tasks.remove()
                self.accounts.close(worker)
                worker.let_go()
            self.schedule.clear()
            self.results.remove()
            self.results.close()
            self.life.close()
            self.schedule.cache.detach()
        self.supervisor.let_go()

    def _on_empty(self) -> None:
        if not self.life.is_running:  # else close() is yet to come, and will look
            self.life.wake()

    def forget(self) -> None:
        """In a forked child: give up what is the parent's. The child may be one of the workers, and needs its own."""
        own = self.supervisor.launching
        for worker in self.schedule.members.values():
            if worker is not own:
                worker.let_go()
        if own is None:
            self.results.close()
        self.schedule.clear()
        self.life.close()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_engines() -> None:
    for engine in list(_engines):
        engine.forget()


os.register_at_fork(after_in_child=_forget_engines)

"""The supervisor of a pool: a thread that starts the workers, notices their deaths, and ends them.

It owns the processes; tasks are the engine's (_pool_engine.py), of which it calls what is public. Its lock `_starting`
is taken before the engine's lock, never after it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import wait
from multiprocessing.pool import CLOSE, TERMINATE
from typing import TYPE_CHECKING, Any

from mpipc import family
from mpipc._pool_channel import OwnReducers
from mpipc._pool_member import Member
from mpipc._pool_worker import work
from mpipc.exceptions import exit_reason

if TYPE_CHECKING:
    from mpipc._pool_engine import Engine

__all__ = ["Supervisor"]

GRACE = 5.0
"""Seconds that terminated workers have to end after SIGTERM before they get SIGKILL."""

# How often in a row, besides once for each worker, a worker may die before its initializer has returned.
FAILED_STARTS = 3  # by an exception or an exit
KILLED_STARTS = 30  # by a signal in the initializer
EARLY_KILLS = 1000  # by a signal before that: it came from outside, and the next may be luckier

LONGEST_WAIT = 3600.0
"""Seconds; poll(2) takes no more than 24 days."""

RETRY_START = 1.0
"""Seconds after which it is tried again to start a worker if the system had no process for it."""


class Supervisor:
    """The processes of one pool.

    `processes` changes with both `_starting` and the engine's lock held. `_winding_down` is set once, by the
    supervisor; after that no worker is started or replaced.
    """

    def __init__(
        self,
        engine: Engine,
        make_process: Callable[..., Any],
        context: Any,
        size: int,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        maxtasksperchild: int | None,
        daemon: bool,
        task_reducers: OwnReducers | None,
        result_reducers: OwnReducers | None,
    ) -> None:
        self._engine = engine
        self._make_process = make_process
        self._context = context
        self._size = size
        self._initializer = initializer
        self._initargs = initargs
        self._quota = maxtasksperchild
        self._daemon = daemon
        self._task_reducers = task_reducers
        self._result_reducers = result_reducers
        member = family.current()
        self._parent = (member.semid, member.slot, member.generation)
        self._tags = itertools.count(1)
        self.processes: list[Any] = []
        """The Process objects of the workers that are to be there; what Pool._pool is."""
        self._starting = threading.RLock()
        self._winding_down = False
        self.start_error: BaseException | None = None
        """Why the last start failed, as far as known."""
        self._failed_starts = 0
        self._first_failed = 0
        self.thread = threading.Thread(target=self._run, name="mpipc-pool-supervisor", daemon=True)

    # --- for any thread -----------------------------------------------------------------------------------------------

    def populate(self) -> None:
        """Start as many workers as are missing."""
        started = False
        with self._starting:
            while len(self.processes) < self._size and not self._winding_down and self._engine.state != TERMINATE:
                self._start_worker()
                started = True
        if started:
            self._engine.wake()

    def abandon(self) -> None:
        """End the workers after the pool could not be started."""
        for process in self.processes:
            if process.exitcode is None:
                process.terminate()
        for process in self.processes:
            process.join()
        for member in self._engine.members.values():
            member.unwatch()

    def _start_worker(self) -> None:
        engine = self._engine
        method = self._context.get_start_method()
        if method != "fork":
            resource_tracker.ensure_running()  # now, because it unblocks SIGINT when it starts its process
        if method == "forkserver":
            forkserver.ensure_running()  # now: all its children would inherit the mask from below
        member = Member(next(self._tags), self._quota, self._task_reducers)
        member.process = self._make_process(
            self._context,
            target=work,
            args=(
                member.tag,
                member.tasks,
                engine.results,
                member.ledger,
                self._parent,
                self._initializer,
                self._initargs,
                self._quota,
                signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []),
                self._result_reducers,
            ),
        )
        member.process.name = member.process.name.replace("Process", "PoolWorker")
        member.process.daemon = self._daemon
        engine.enroll(member)
        # Ctrl-C in a terminal is sent to all its processes. A child that gets it before its work() can deal with it
        # would show a traceback, so it inherits it blocked. (From the fork server, it inherits the fork server's mask.)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            member.process.start()
            member.watch()
            with engine.lock:
                self.processes.append(member.process)
        except BaseException:
            engine.strike_off(member)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # Ctrl-C comes here, and finds the worker in its place
        util.debug("added worker")

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        engine = self._engine
        try:
            while True:
                with engine.lock:
                    if engine.state == TERMINATE or (engine.state == CLOSE and not engine.cache):
                        break
                self._look_after_workers()
        except BaseException as error:
            engine.fail_all(f"the pool's supervisor failed: {error!r}", error)
        self._wind_down()

    def _look_after_workers(self) -> None:
        try:
            self.populate()
        except Exception as error:
            self.start_error = error
            self._count_failed_start(None, None)
        if self._engine.state == CLOSE:
            # Who was interrupted between adding a task and sending it has left it to whoever comes next.
            self._engine.dispatch()
        with self._starting, self._engine.lock:
            watched = [member for member in self._engine.members.values() if member.process in self.processes]
            # Before it is looked for what is due: a task that is sent from now on wakes the supervisor.
            self._engine.due = None
        timeout = self._enforce_timeouts()
        if timeout is not None:
            self._engine.due = time.monotonic() + timeout
        if len(watched) < self._size:
            timeout = RETRY_START if timeout is None else min(timeout, RETRY_START)
        for member in self._wait(watched, timeout):
            self._report_death(member)

    def _wait(self, members: Iterable[Member], timeout: float | None) -> list[Member]:
        """Wait for something to happen; return those of the workers that are dead."""
        handles = {}
        for member in members:
            handles[member.process.sentinel] = member
            if member.pidfd >= 0:
                handles[member.pidfd] = member
        found = wait([*handles, self._engine.wakeup], timeout if timeout is None else min(timeout, LONGEST_WAIT))
        if self._engine.wakeup in found:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._engine.wakeup)
        return list({handles[handle]: None for handle in found if handle in handles})

    def _report_death(self, member: Member) -> None:
        exitcode = member.exitcode()
        util.debug("worker %s %s", member.process.pid, exit_reason(exitcode))
        with self._starting, self._engine.lock:
            self.processes.remove(member.process)
            member.unwatch()
        if not member.ledger.is_ready:
            self._count_failed_start(member, exitcode)
        self._engine.announce_death(member, exitcode)

    def _count_failed_start(self, member: Member | None, exitcode: int | None) -> None:
        """A worker could not be started, or died before it was ready. Too many such in a row end the pool."""
        engine = self._engine
        with engine.lock:
            if any(other.tag > self._first_failed and other.ledger.is_ready for other in engine.members.values()):
                self._failed_starts = 0
        if not self._failed_starts:
            self._first_failed = member.tag if member is not None else 0
        self._failed_starts += 1
        count = self._failed_starts
        if member is None:
            if count < FAILED_STARTS + self._size and self.processes:
                return
            reason = f"a worker could not be started: {self.start_error!r}"
        else:
            limit = FAILED_STARTS
            if exitcode is not None and exitcode < 0:
                limit = KILLED_STARTS if member.ledger.has_arrived else EARLY_KILLS
            if count < self._size + limit:
                return
            what = "" if self._initializer is None else f", which means that {self._initializer!r} has returned"
            reason = f"{count} workers in a row were not ready{what}; the last one {exit_reason(exitcode)}"
        engine.fail_all(reason, self.start_error)

    def _enforce_timeouts(self) -> float | None:
        """Kill the workers whose tasks have run too long; return in how many seconds the next one may be due."""
        due: float | None = None
        with self._engine.lock:
            for member in self._engine.members.values():
                if member.condemned:
                    continue
                started = member.ledger.started
                running = member.ledger.running_for
                for number, task in member.window.items():
                    if task.timeout is None:
                        continue
                    left = task.timeout
                    if number == started and running is not None:
                        left -= running
                    if left <= 0 and member.ledger.condemn(number):
                        member.condemned = number
                        member.process.kill()
                        break
                    due = max(min(due or left, left), 0.01)
        return due

    def _wind_down(self) -> None:
        """No more work: end the workers, gently if all is done, then the result thread."""
        engine = self._engine
        with self._starting, engine.lock:
            self._winding_down = True
            processes = list(self.processes)
            members = [member for member in engine.members.values() if member.process in processes]
        left = set(members)
        try:
            if engine.state != TERMINATE:
                engine.quit_all()
            while left and engine.state != TERMINATE:
                for member in self._wait(left, None):
                    left.discard(member)
                    member.exitcode()
            if left:
                _kill(processes)
            for member in members:
                member.exitcode()
                member.unwatch()
        finally:
            engine.end()
        util.debug("supervisor exiting")


def _kill(processes: list[Any]) -> None:
    for process in processes:
        if process.exitcode is None:
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()

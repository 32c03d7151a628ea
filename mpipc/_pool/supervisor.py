"""The supervisor of a pool: a thread that starts the workers, notices their deaths, and ends them.

It owns the processes; tasks and results are the engine's (_pool/engine.py), of which it needs what `Supervised` says.
Its lock `_starting` is taken before that of the pool's life, never after it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import util
from multiprocessing.connection import wait
from typing import Any, Protocol

from mpipc import _core as family
from mpipc._pool.channel import Channel
from mpipc._pool.life import Life
from mpipc._pool.losses import OutOfMemoryKills, explain
from mpipc._pool.memory import MemoryWatch
from mpipc._pool.options import WorkerOptions
from mpipc._pool.placing import Places
from mpipc._pool.states import State
from mpipc._pool.worker import work
from mpipc._pool.worker_handle import Member
from mpipc._stdlib.private import forget_sentinel, popen_of
from mpipc.exceptions import exit_reason

__all__ = ["Supervised", "Supervisor"]

# A pool that is terminated sends its workers SIGTERM, as multiprocessing does, which then waits for them, however long
# it takes. Here those without a task leave by themselves, whatever they do about the signal; the others get SIGKILL,
# after so many seconds:
DEAF = 0.1
"""if SIGTERM does nothing to them: it is ignored, or blocked, or the process is stopped;"""
GRACE = 1.0
"""if they handle it, for the handler and the `finally` clauses of what they run."""

ARRIVAL = 0.5
"""Seconds that a worker has, which was just forked, to become a member of the family: what it has inherited can be
taken back at once if it is killed after that, and not before."""

LAST = 5.0
"""Seconds after which nobody waits for workers any more that are still there after SIGKILL, or cannot be sent one."""

# How often in a row, besides once for each worker, a worker may die before its initializer has returned.
FAILED_STARTS = 3  # by an exception or an exit
KILLED_STARTS = 30  # by a signal in the initializer
EARLY_KILLS = 1000  # by a signal before that: it came from outside, and the next may be luckier

LONGEST_WAIT = 3600.0
"""Seconds; poll(2) takes no more than 24 days."""

RETRY_START = 1.0
"""Seconds after which it is tried again to start a worker if the system had no process for it."""


class Supervised(Protocol):
    """What a supervisor needs of the pool whose processes it looks after. An Engine has it."""

    life: Life
    """The pool's state, the lock that guards it, and the descriptor by which the supervisor is woken."""
    results: Channel
    """To which the workers send."""

    # --- the workers

    def members(self) -> list[Member]:
        """The workers: those that are being started, those that are there, and those whose death is not dealt with."""

    def enroll(self, worker: Member) -> None:
        """A worker is about to be started."""

    def strike_off(self, worker: Member) -> None:
        """It could not be started."""

    def announce_death(self, worker: Member, exitcode: int | None) -> None:
        """A worker that had been started is dead. Its tasks are lost, or go to others."""

    def quit_all(self) -> None:
        """Tell the workers that nothing more will come."""

    # --- the tasks

    def goes_on(self) -> bool:
        """Whether there is or may be work. If not, the pool is QUITTING, TERMINATING or BROKEN."""

    def dispatch(self) -> None:
        """Send tasks to workers. To be called now and then while the pool is CLOSED, when nobody else may do that."""

    def expect(self, due: float | None) -> None:
        """When timeouts will be looked at again, time.monotonic(). Whoever sends a task that has less time than that
        wakes the supervisor; with None, whoever sends one that has a timeout."""

    # --- the end

    def fail_all(self, reason: str, cause: BaseException | None) -> None:
        """The pool cannot go on."""

    def end(self) -> None:
        """No worker is left: every result is to be completed."""

    def leave(self) -> None:
        """The supervisor does nothing more."""


class Supervisor:
    """The processes of one pool.

    `processes` changes with both `_starting` and the lock of the pool's life held. Workers are started with `_starting`
    held, while the pool is RUNNING or CLOSED.
    """

    def __init__(
        self,
        engine: Supervised,
        make_process: Callable[..., Any],
        context: Any,
        size: int,
        options: WorkerOptions,
    ) -> None:
        self._engine = engine
        self._life = engine.life
        self._make_process = make_process
        self._context = context
        self._size = size
        self._options = options
        member = family.current()
        self._family = member
        self._parent = (member.semid, member.slot, member.generation)
        self._tags = itertools.count(1)
        self._places = Places(options.cpu_affinity)
        self.processes: list[Any] = []
        """The Process objects of the workers that are to be there; what Pool._pool is."""
        self._starting = threading.RLock()
        self._ending = False
        """The workers that are left are being ended, by the supervisor."""
        self.mercy = True
        """Workers that are to be ended get SIGTERM first."""
        self.launching: Member | None = None
        """The worker whose process is being made."""
        self.start_error: BaseException | None = None
        """Why the last start failed, as far as known."""
        self._failed_starts = 0
        self._first_failed = 0
        limit = options.memory_limit
        self._memory = MemoryWatch(limit, engine.life.lock, engine.members) if limit is not None else None
        self._kills = OutOfMemoryKills()
        self.thread = threading.Thread(target=self._run, name="mpipc-pool-supervisor", daemon=True)

    # --- for any thread -----------------------------------------------------------------------------------------------

    def populate(self) -> None:
        """Start as many workers as are missing."""
        started = False
        with self._starting:
            while len(self.processes) < self._size and self._life.is_staffed:
                self._start_worker()
                started = True
        if started:
            self._life.wake()

    def abandon(self) -> None:
        """End the workers after the pool could not be started."""
        self._ending = True
        members = self._engine.members()
        # What a context gives us need not be multiprocessing's: then nothing but these methods can be relied on.
        strange = [member for member in members if not hasattr(type(member.process), "sentinel")]
        for member in strange:
            member.process.terminate()
        for member in strange:
            member.process.join()
        self._end([member for member in members if member not in strange])

    def let_go(self) -> None:
        """All is over: give back the descriptors of the workers, and what dead ones had in their hands."""
        for process in self.processes:
            let_go_of_process(process)
        for _ in range(200):
            if self._family.recover() >= 0:
                break
            time.sleep(0.001)  # the reaper is at it

    def kill(self) -> None:
        """Kill the workers from another thread, because that of the supervisor has not come to it.

        It may be waiting for a worker: to let go of a queue's lock, if the worker is stopped.
        """
        if not self._ending:
            for process in list(self.processes):
                _signal(process.kill)

    def _start_worker(self) -> None:
        engine = self._engine
        method = self._context.get_start_method()
        if method != "fork":
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()  # now, because it unblocks SIGINT when it starts its process
        if method == "forkserver":
            from mpipc._stdlib import fork_server

            fork_server.ensure_running()  # now: all its children would inherit the mask from below
        options = self._options
        member = Member(next(self._tags), options.quota, options.task_reducers, not options.copy)
        with self._life.lock:
            others = {other.tag for other in engine.members() if other.process in self.processes}
        options = self._options._replace(cpu_affinity=self._places.take(member.tag, others))
        member.process = self._make_process(
            self._context,
            target=work,
            args=(
                member.tag,
                member.tasks,
                engine.results,
                member.ledger,
                self._parent,
                options.for_worker(),
                signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []),
            ),
        )
        self.launching = member
        member.process.name = member.process.name.replace("Process", "PoolWorker")
        member.process.daemon = options.daemon
        if options.end_with_parent:
            member.process.end_with_parent = True
        engine.enroll(member)
        # Ctrl-C in a terminal is sent to all its processes. A child that gets it before its work() can deal with it
        # would show a traceback, so it inherits it blocked. (From the fork server, it inherits the fork server's mask.)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        member.launched = time.monotonic()
        try:
            member.process.start()
            member.watch()
            with self._life.lock:
                self.processes.append(member.process)
        except BaseException:
            engine.strike_off(member)
            raise
        finally:
            self.launching = None
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # Ctrl-C comes here, and finds the worker in its place
        util.debug("added worker")

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        engine = self._engine
        try:
            while engine.goes_on():
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
        if self._life.state is State.CLOSED:
            # Who was interrupted between adding a task and sending it has left it to whoever comes next.
            self._engine.dispatch()
        with self._starting, self._life.lock:
            watched = [member for member in self._engine.members() if member.process in self.processes]
            # Before it is looked for what is due: a task that is sent from now on wakes the supervisor.
            self._engine.expect(None)
        timeout = self._enforce_timeouts()
        if self._memory is not None:
            again = self._memory.look()
            if again is not None:
                timeout = again if timeout is None else min(timeout, again)
        if timeout is not None:
            self._engine.expect(time.monotonic() + timeout)
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
        found = wait([*handles, self._life.wakeup], timeout if timeout is None else min(timeout, LONGEST_WAIT))
        if self._life.wakeup in found:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._life.wakeup)
        return list({handles[handle]: None for handle in found if handle in handles})

    def _report_death(self, member: Member) -> None:
        member.ended = time.monotonic()
        if member.pidfd >= 0:
            wait([member.pidfd], 0.5)  # a process closes its pipes, which is the sentinel, before it is dead
        member.find_peak()  # before its exit code is fetched
        exitcode = member.exitcode()
        member.explanation = explain(member, exitcode, self._kills)
        util.debug("worker %s %s", member.process.pid, exit_reason(exitcode))
        with self._starting, self._life.lock:
            self.processes.remove(member.process)
            member.unwatch()
        let_go_of_process(member.process)
        if not member.ledger.is_ready:
            self._count_failed_start(member, exitcode)
        self._engine.announce_death(member, exitcode)

    def _count_failed_start(self, member: Member | None, exitcode: int | None) -> None:
        """A worker could not be started, or died before it was ready. Too many such in a row end the pool."""
        with self._life.lock:
            if any(other.tag > self._first_failed and other.ledger.is_ready for other in self._engine.members()):
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
            initializer = self._options.initializer
            what = "" if initializer is None else f", which means that {initializer!r} has returned"
            reason = f"{count} workers in a row were not ready{what}; the last one {exit_reason(exitcode)}"
        self._engine.fail_all(reason, self.start_error)

    def _enforce_timeouts(self) -> float | None:
        """Kill the workers whose tasks have run too long; return in how many seconds the next one may be due."""
        due: float | None = None
        with self._life.lock:
            for member in self._engine.members():
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
        with self._starting, self._life.lock:
            members = [member for member in engine.members() if member.process in self.processes]
        left = set(members)
        try:
            if self._life.state is State.QUITTING:
                engine.quit_all()
            while left and self._life.state is State.QUITTING:
                for member in self._wait(left, None):
                    left.discard(member)
                    member.exitcode()
        except Exception as error:
            engine.fail_all(f"the pool's supervisor failed: {error!r}", error)
        try:
            self._ending = True
            self._end(list(left))
        except Exception as error:
            engine.fail_all(f"the pool's workers could not be ended: {error!r}", error)
        finally:
            engine.end()
            engine.leave()
        util.debug("supervisor exiting")

    def _end(self, members: list[Member]) -> None:
        """End workers, whatever they are doing."""
        for member in members:
            member.ledger.end()
        self._await_arrival(members)
        for member in members:
            _signal(member.process.terminate if self.mercy else member.process.kill)
            member.tasks.remove()  # it need not wait for another one
        left = set(members)
        start = time.monotonic()
        while left:
            passed = time.monotonic() - start
            if passed > GRACE + LAST:
                pids = ", ".join(str(member.process.pid) for member in left)
                self._engine.fail_all(f"workers have not ended, and cannot be killed: {pids}", None)
                return
            for member in left:
                if passed >= GRACE or (passed >= DEAF and _is_deaf(member.process.pid)):
                    _signal(member.process.kill)
            timeout = max((DEAF if passed < DEAF else GRACE) - passed, DEAF)
            for member in self._wait(left, timeout):
                left.discard(member)
                member.exitcode()

    def _await_arrival(self, members: list[Member]) -> None:
        if self._context.get_start_method() != "fork":
            return
        deadline = time.monotonic() + ARRIVAL
        while (
            any(not member.ledger.has_arrived and member.process.exitcode is None for member in members)
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)


def _signal(send: Callable[[], object]) -> None:
    """Process.terminate() or kill(). It may not be permitted: this process has changed its user id since."""
    with contextlib.suppress(OSError):
        send()


def _is_deaf(pid: int) -> bool:
    """Whether SIGTERM, which was sent, does nothing to a process."""
    fields = {}
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        bit = 1 << signal.SIGTERM - 1
        ignored, blocked, pending = (int(fields[key], 16) & bit for key in ("SigIgn", "SigBlk", "ShdPnd"))
    except (OSError, KeyError, ValueError):
        return False
    return bool(ignored or (blocked and pending)) or fields.get("State", "?")[0] in "Tt"


def let_go_of_process(process: Any) -> None:
    """Close the descriptors by which an ended process was watched. How it ended is known and stays known."""
    popen = popen_of(process)
    if popen is None or process.exitcode is None:
        if not _has_been_reaped(popen):
            return
        popen.returncode = 255  # which the fork server gives where it does not know better
        process.join(0)
    close = getattr(popen, "close", None)
    if close is not None:
        forget_sentinel(process)
        close()


def _has_been_reaped(popen: Any) -> bool:
    """Whether somebody else has waited for this child of ours, so that nobody will ever know its exit code."""
    if getattr(popen, "method", None) not in ("fork", "spawn"):
        return False
    try:
        os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False

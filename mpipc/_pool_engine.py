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
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import CLOSE, RUN, TERMINATE
from typing import Any

from mpipc._pool_channel import DRAUGHT, Channel, Envelope, OwnReducers
from mpipc._pool_hot import Source, Task, receive_into, settle, unpack
from mpipc._pool_member import Member
from mpipc._pool_results import Cache
from mpipc._pool_supervisor import Supervisor
from mpipc._pool_tasks import SHALLOW, Feed, function_name
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

NAP = 0.0001
"""Seconds that the result thread sleeps while fast tasks are under way, if there are at least so many for a worker:"""
NAP_DEPTH = 8


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
        self._size = size
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
        self._idle: dict[Member, None] = {}
        """Workers that are open and have nothing to do, the one that has been waiting longest first."""
        self._full = False
        """No worker has room, and none has got any since that was found."""
        self._depth = SHALLOW
        """Pace.depth of the last result."""
        self._unready = 0
        """Workers that are being started."""
        self._backlog: deque[Task | Source] = deque()
        self._told = 0
        """Messages to the result thread from this process that it has not received."""
        self._called = False
        """The last thing that was asked for was a call(), so another one may follow."""
        self._parked = False
        """The result thread waits for `_wanted`, and does not receive: a call() may."""
        self._calling = False
        """One does. It does not give up before it has received something."""
        self._inbox: list[Any] = []
        """What a call() has received; the result thread handles what that leaves there."""
        self._wanted = threading.Lock()
        self._wanted.acquire()
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

    def call(self, job: Any, task: Task) -> Any:
        """Take on a task and wait for its result.

        If nothing else is going on, this thread receives the result itself. See the comment at the top.
        """
        worker: Member | None = None
        number = 0
        message: Envelope | None = None
        try:
            with self.lock:
                idle = next(iter(self._idle), None)
                alone = self._parked and not self._calling and len(self.cache) == 1
                if idle is not None and alone and task.timeout is None and self.state == RUN:
                    worker, number = idle, idle.sequence + 1
                    self._calling = True
                    batch = worker.assign([task])
                    del self._idle[worker]
            if worker is not None:
                self._send(worker, batch)
                if number in worker.window:  # else it could not be sent
                    receive_into(self.results.receive, self._inbox)
                    first = self._inbox[0]
                    if first[0] in (RETURNED, FAILED) and first[1] == worker.tag and first[2] == number:
                        with self.lock:
                            if number in worker.window:
                                message = Envelope._make(settle(worker, number, self.cache, job._job, self._inbox))
        finally:
            if worker is not None:
                self._end_call(worker, number, orderly=message is not None)
        if message is None:
            if worker is None:
                self.submit(job, task)
                self._called = True
            return job.get()
        value = unpack(message.body, message.buffers)
        if message.kind == RETURNED:
            return value
        raise value

    def _end_call(self, worker: Member, number: int, *, orderly: bool) -> None:
        """Let the result thread go on if there is anything for it to do."""
        with self.lock:
            self._calling = False
            if worker.packing:  # interrupted before the task was sent, or just after that
                worker.packing = False
                for task in worker.take_back_from(number):
                    self._put_back(task)
            self._refresh(worker)
            if not orderly or self.cache or self._failures or self._told or self.state != RUN:
                self._unpark()
        if self.state != RUN:
            self.supervisor.wake()

    def _unpark(self) -> None:
        """Have the result thread receive again, if it does not; a call() that is under way sees to that at its end."""
        if self._parked and not self._calling:
            self._parked = False
            self._wanted.release()

    def submit(self, job: Any, work: Task | Source) -> None:
        """Take on a task or a map's chunks."""
        with self.lock:
            self._called = False
            self._unpark()
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
            self._unpark()
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
            worker, batch = match
            if batch[0][1].job.cancellable:
                batch = self._without_cancelled(worker, batch)
            self._send(worker, batch)

    def _match(self) -> tuple[Member, list[tuple[int, Task]]] | None:
        """Give tasks to a worker; the caller has to send them."""
        if self.state == TERMINATE:
            return None
        worker = next(iter(self._idle), None)
        if worker is not None:
            tasks = self._take_over(PATIENCE, worker) or self._next_tasks(worker) or self._take_over(0.0, worker)
        elif self._full or self._unready or not self._backlog:
            return None  # a worker that is about to be ready will run the next task sooner than one that is busy
        else:
            depth = self._depth_wanted()
            room = 0
            for member in self.members.values():
                if member.is_open and member.room(depth) > room:
                    worker, room = member, member.room(depth)
            if worker is None or room * 4 < depth:  # one or two are not worth a message if there can soon be many
                self._full = True
                return None
            tasks = self._take_over(PATIENCE, worker) or self._next_tasks(worker)
        if not tasks:
            return None
        self._idle.pop(worker, None)
        return worker, worker.assign(tasks)

    def _depth_wanted(self) -> int:
        """How many of the tasks at the front of the backlog a worker should have."""
        head = self._backlog[0]
        depth = head.function.pace.depth
        if depth > SHALLOW and isinstance(head, Task) and head.job.cancellable:
            # What a worker has been given cannot be cancelled any more. (Of a map, nobody sees the futures.)
            depth = min(depth, NAP_DEPTH) if head.function.lasting else SHALLOW
        return depth

    def _next_tasks(self, worker: Member) -> list[Task]:
        """Tasks from the backlog for a worker: so many that something is left for the others, if they have room too."""
        backlog = self._backlog
        tasks: list[Task] = []
        if not backlog:
            return tasks
        head = backlog[0]
        waiting = len(backlog) if isinstance(head, Task) else head.remaining
        depth = self._depth_wanted()
        most = 1
        if depth > SHALLOW:
            most = max(min(worker.room(depth), waiting // (2 * self._size)), 1)
        while backlog and len(tasks) < most:
            head = backlog[0]
            if isinstance(head, Task):
                backlog.popleft()
                if head.feed is not None:
                    head.feed.waiting -= 1
                    if head.feed.waiting == head.feed.low:
                        self._room.notify_all()
                tasks.append(head)
                continue
            tasks.append(head.draw())
            if not head.remaining:
                backlog.popleft()
        return tasks

    def _put_back(self, task: Task) -> None:
        if task.feed is not None:
            task.feed.waiting += 1
        self._backlog.appendleft(task)

    def _take_over(self, waiting: float, worker: Member) -> list[Task]:
        """Tasks for a worker that have been waiting behind another one.

        All of those where nothing has been answered for so many seconds; if that is 0, half of those of the worker that
        has most. One is left to it in any case, begun or not, and no more given to it until it has answered: else tasks
        would wander forever among workers that are dead, or do not get the processor.
        """
        victim: Member | None = None
        since = time.monotonic() - waiting
        most = 1
        for member in self.members.values():
            load = len(member.window)
            if load > most and not member.packing and member.progress <= since:
                victim, most = member, load
        if victim is None:
            return []
        tasks = victim.take_back(most - 1 if waiting else most // 2)
        if tasks:
            victim.slow = True
            self._refresh(victim)
        room = worker.room(len(worker.window) + len(tasks))
        while len(tasks) > room:
            self._put_back(tasks.pop())
        return tasks

    def _refresh(self, worker: Member) -> None:
        """To be called when anything has changed for a worker."""
        if not worker.window and worker.is_open and worker.room(1) > 0:
            self._idle.setdefault(worker)
        else:
            self._idle.pop(worker, None)
        self._full = False

    def _without_cancelled(self, worker: Member, batch: list[tuple[int, Task]]) -> list[tuple[int, Task]]:
        """Tell the futures that they run. What was cancelled is not sent."""
        begun = [(number, task) for number, task in batch if task.job._begin()]
        if len(begun) < len(batch):
            numbers = {number for number, _ in batch}.difference(number for number, _ in begun)
            with self.lock:
                for number in numbers:
                    worker.withdraw(number)
        return begun

    def _send(self, worker: Member, batch: list[tuple[int, Task]]) -> None:
        failures = worker.send(batch)
        lost: list[tuple[Task, BaseException]] = []
        interrupt: BaseException | None = None
        with self.lock:
            worker.packing = False
            for number, error in failures:
                if isinstance(error, Exception):
                    task = worker.withdraw(number)
                    if task is not None:  # else the worker has died, and the task was put back
                        lost.append((task, error))
                elif interrupt is None:
                    # It may have been sent, or not; what the worker has not begun can be had back in either case.
                    interrupt = error
                    for task in reversed(worker.take_back_from(number)):
                        self._put_back(task)
            self._refresh(worker)
        for task, error in lost:
            self.fail(task.job, task.index, error)
        if interrupt is not None:
            raise interrupt
        timeout = min((task.timeout for _, task in batch if task.timeout is not None), default=None)
        if timeout is not None:
            self.supervisor.expect(timeout)

    def fail(self, job: Any, index: int, error: BaseException) -> None:
        """Have the result thread set an error that came up here."""
        self._failures.append((job, index, error))
        try:
            self._tell(LOOK, 0)
        except BrokenPipeError:
            self._refuse(job)

    def _tell(self, kind: int, tag: int, body: Any = None) -> None:
        """Send to the result thread."""
        with self.lock:
            self._told += 1
            self._unpark()
        self.results.send((kind, tag, 0, None, 0, body, None))

    def _feed(self, job: Any, tasks: Iterator[Task], feed: Feed) -> None:
        count = 0
        try:
            for task in tasks:
                with self._room:
                    feed.low = task.function.pace.depth * self._size
                    if feed.waiting >= 2 * feed.low:
                        # Woken up for each task, this thread would take more time than the tasks do.
                        while feed.waiting > feed.low and not self._ended and self.state != TERMINATE:
                            self._room.wait()
                    ended = self._ended
                    if not ended and self.state != TERMINATE:
                        self._called = False
                        self._unpark()
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
        over = False
        while not over:
            try:
                if self._park():
                    self._wanted.acquire()
                    if self._inbox:
                        messages, self._inbox = self._inbox, []
                        over = self._handle_all(messages)
                    self.dispatch()
                else:
                    if self._may_nap():
                        time.sleep(NAP)
                    over = self._handle_all(self.results.receive_many(DRAUGHT))
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

    def _park(self) -> bool:
        """Whether to leave receiving to a call()."""
        with self.lock:
            idle = not (self.cache or self._unready or self._told or self._failures or self._inbox)
            self._parked = self._called and idle and self.state == RUN
            return self._parked

    def _may_nap(self) -> bool:
        """Whether many results are about to come."""
        if self._depth < NAP_DEPTH:
            return False
        with self.lock:
            return sum([len(worker.window) for worker in self.members.values()]) >= self._size * NAP_DEPTH

    def _handle_all(self, messages: list[Any]) -> bool:
        """Handle messages in their order; True if they end the thread."""
        results: list[Envelope] = []
        messages.reverse()
        while messages:
            message = Envelope._make(messages.pop())
            if message.kind in (DIED, LOOK, STOP):
                with self.lock:
                    self._told -= 1
            if message.kind in (RETURNED, FAILED):
                results.append(message)
                continue
            self._take_results(results)
            if message.kind == STOP:
                return True
            self._handle(message)
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
                self._unready -= 1
                self._refresh(worker)
            self.dispatch()
        elif kind == UNKNOWN_FUNCTION:
            with self.lock:
                task = worker.withdraw(message.number)
                if task is not None:
                    worker.known.pop(task.function.id, None)
                    self._put_back(task)
                    self._refresh(worker)
            self.dispatch()
        elif kind == DIED:
            self._bury(worker, message.body)
        elif kind == INITIALIZER_FAILED:
            with contextlib.suppress(Exception):  # the exception can be unpickled in the worker only
                self.supervisor.start_error = unpack(message.body, message.buffers)

    def _take_results(self, messages: list[Envelope]) -> None:
        """Give the workers their next tasks, then the user the results of these, which are removed from the list."""
        if not messages:
            return
        done: list[tuple[Task, Envelope]] = []
        answers: dict[Member, int] = {}
        with self.lock:
            for message in messages:
                worker = self.members.get(message.tag)
                task = None if worker is None else worker.answered(message.number)
                if worker is not None and task is not None:
                    answers[worker] = answers.get(worker, 0) + 1
                    done.append((task, message))
            messages.clear()
            if done:
                now = time.monotonic()
                pace = done[-1][0].function.pace
                for worker, count in answers.items():
                    busy = worker.ledger.busy
                    pace.note(busy - worker.busy, count)
                    worker.busy = busy
                    worker.progress = now
                    self._refresh(worker)
                self._depth = pace.depth
        self.dispatch()
        done.reverse()
        while done:
            task, message = done.pop()
            if self.state == TERMINATE:
                continue
            ok = message.kind == RETURNED
            try:
                value = unpack(message.body, message.buffers)
            except Exception as error:
                ok, value = False, error
            task.job._set(task.index, (ok, value))
            del task, message, value

    def _bury(self, worker: Member, exitcode: int | None) -> None:
        """A worker has died, and all that it had sent has been received."""
        lost: list[tuple[Task, Exception]] = []
        with self.lock:
            del self.members[worker.tag]
            self._unready -= not worker.ready
            self.replaced += 1
            worker.dead = True
            self._refresh(worker)
            started = worker.ledger.started
            item = worker.ledger.current_item
            for number, task in reversed(worker.window.items()):
                if number > started:
                    task.attempts -= 1
                    self._put_back(task)
                elif number == worker.condemned:
                    name, index = function_name(task.function.call), task.first + item
                    late = TaskTimeoutError(f"{name} did not end within {task.timeout:g} s on item {index}")
                    lost.append((task, late))
                elif task.retries > 0:
                    task.retries -= 1
                    self._put_back(task)
                else:
                    name, index = function_name(task.function.call), task.first + (item if number == started else 0)
                    error = WorkerLostError(worker.process.pid, exitcode, name, index, task.attempts)
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
                self._refresh(worker)

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
        self._idle = {}
        self._backlog = deque()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_engines() -> None:
    for engine in list(_engines):
        engine.forget()


os.register_at_fork(after_in_child=_forget_engines)

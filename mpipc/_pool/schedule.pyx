# distutils: language = c
"""Which worker of a pool has which task, and how tasks get from the backlog to a worker.

Compiled, and not for speed alone. Whoever submits may be the main thread, in which a signal handler of Python's may
raise (KeyboardInterrupt, an alarm's timeout) between any two bytecodes: in between taking a task out of the backlog and
sending it, say, and then nobody would ever run it. Compiled code is not interrupted. What it calls may be, and
is looked after here:

    waiting for the lock            nothing has changed before it is held; where something has to be done, `hold()` goes
                                    on waiting, and what the handler raised is raised afterwards
    pickling, Future's methods      Python code, the user's for one: whatever it raises is caught for each task
    waiting for a call's result     nothing was received; the call's end is in a `finally`

So a function of this module does what it says or nothing, and in either case tasks are where they belong. Under the
lock nothing that submits calls anything that is written in Python. A handler may also use the pool, and wait for
something that the function it interrupts is in the way of: see hand_over().
"""

import os
import threading

from cpython.dict cimport PyDict_DelItem, PyDict_SetItem
from cpython.pythread cimport PyThread_get_thread_ident

from mpipc._pool.backlog cimport Backlog
from mpipc._pool.codec cimport Task
from mpipc._pool.life cimport Life
from mpipc._pool.worker_handle cimport Member, monotonic

from collections import deque

from mpipc._pool.tasks import SHALLOW as _SHALLOW
from mpipc._pool.worker import FAILED as _FAILED
from mpipc._pool.worker import RETURNED as _RETURNED

cdef int RETURNED = _RETURNED
cdef int FAILED = _FAILED
cdef Py_ssize_t SHALLOW = _SHALLOW
cdef unsigned long main_thread = threading.main_thread().ident  # in which signal handlers run

# Seconds that a task waits behind another one before any worker that has room takes it over. What takes that long is
# not worth having the next task at hand.
cdef double PATIENCE = 0.01

# A kind of message to the result thread: there is something in `failures`.
LOOK = 31


cdef class Schedule:
    """The tasks of a pool and the workers that run them. What the engine does with it stands in _pool/engine.py.

    Everything is guarded by `lock`, that of the pool's life, but for `failures`, whose append() and popleft() are
    atomic.

    results     the channel on which the workers answer
    cache       the results that are not complete, by job
    members     the workers, until all that they have sent was received, by tag
    idle        workers that are open and have nothing to do, the one that has been waiting longest first
    full        no worker has room, and none has got any since that was found
    depth       Pace.depth of the last result
    unready     workers that are being started
    backlog     what no worker has
    told        messages to the result thread from this process that it has not received
    called      the last thing that was asked for was a call(), so another one may follow
    parked      the result thread waits for `wanted`, and does not receive: a call() may
    calling     one does, in thread `caller`; it does not give up before it has received something, but where a signal
                handler, which runs on top of it, wants something of the pool (hand_over)
    inbox       what a call() has received; the result thread handles what that leaves there
    due         when the supervisor is going to look after timeouts; time.monotonic()
    interval    seconds after which it looks at any task that runs; None if it need not
    failures    (job, index, exception) that came up here, for the result thread to set
    """

    cdef Life life
    cdef readonly object lock
    cdef readonly object cache
    cdef readonly object results
    cdef readonly object wanted
    cdef readonly object failures
    cdef readonly Py_ssize_t size
    cdef readonly dict members
    cdef readonly Backlog backlog
    cdef readonly dict idle
    cdef bint full
    cdef Py_ssize_t depth
    cdef readonly Py_ssize_t unready
    cdef public Py_ssize_t told
    cdef public bint called
    cdef readonly bint parked
    cdef readonly bint calling
    cdef unsigned long caller
    cdef list inbox
    cdef public object due
    cdef public object interval

    def __init__(self, Life life, Py_ssize_t size, cache, results):
        self.life = life
        self.lock = life.lock
        self.size = size
        self.cache = cache
        self.results = results
        self.members = {}
        self.idle = {}
        self.backlog = Backlog()
        self.depth = SHALLOW
        self.inbox = []
        self.failures = deque()
        self.wanted = threading.Lock()
        self.wanted.acquire()

    cdef object hold(self):
        """Take the lock, come what may. Returns what a signal handler raised meanwhile, or None."""
        cdef object raised = None
        while True:
            try:
                self.lock.acquire()
                return raised
            except BaseException as error:
                raised = error

    cpdef unpark(self):
        """Have the result thread receive again, if it does not; a call() that is under way sees to that at its end."""
        if self.parked and not self.calling:
            self.parked = False
            self.wanted.release()

    cpdef hand_over(self):
        """This thread is about to wait for the result thread, or to give it work. If that is in a signal handler that
        runs on top of a call(), the call gives up receiving by itself."""
        with self.lock:
            self.step_aside()

    cdef step_aside(self):
        if self.calling and self.caller == PyThread_get_thread_ident():
            self.calling = False
            self.unpark()

    # ---- submitting

    cpdef bint add(self, object job, object work) except -1:
        """Take on a task or a map's chunks; dispatch() has to follow. False if it is too late for that."""
        with self.lock:
            self.called = False
            self.step_aside()
            self.unpark()
            if self.life.refuses():
                return False
            PyDict_SetItem(self.cache, job._job, job)
            self.backlog.add(work)
        return True

    def submit(self, job, work):
        """add() and dispatch()."""
        if not self.add(job, work):
            return False
        self.dispatch()
        return True

    def add_many(self, list tasks):
        """As add(), for tasks that are each a job of its own."""
        cdef Task task
        with self.lock:
            self.step_aside()
            self.unpark()
            if self.life.refuses():
                return False
            for task in tasks:
                PyDict_SetItem(self.cache, task.job._job, task.job)
            self.backlog.add_all(tasks)
        return True

    def add_fed(self, Task task):
        """As add(), for a task that was made from an iterator of the user, whose job is outstanding already."""
        with self.lock:
            if self.life.over():
                return False
            self.called = False
            self.unpark()
            task.feed.waiting += 1
            self.backlog.add(task)
        return True

    def call(self, job, Task task):
        """Take on a task and receive its result in this thread, if nothing else is going on; see the comment at the top
        of the receiver.

        Returns the message with the result; () if it was not the next one, and will be set by the result thread; None
        if the task was not taken on.
        """
        cdef Member worker = None
        cdef list batch
        cdef tuple message = (), first
        cdef object number = None
        with self.lock:
            if (
                self.parked and not self.calling and not self.cache and task.timeout is None and self.interval is None
                and self.life.runs() and self.idle
            ):
                PyDict_SetItem(self.cache, job._job, job)
                worker = next(iter(self.idle))
                self.calling = True
                self.caller = PyThread_get_thread_ident()
                batch = worker.assign([task])
                number = batch[0][0]
                del self.idle[worker]
        if worker is None:
            return None
        try:
            self.send(worker, batch)
            if number in worker.window and self.receive():  # else it could not be sent, or this has given up
                first = self.inbox[0]
                if (first[0] == RETURNED or first[0] == FAILED) and first[1] == worker.tag and first[2] == number:
                    with self.lock:
                        if worker.answered(number) is not None:
                            PyDict_DelItem(self.cache, job._job)
                            message = self.inbox.pop()
        finally:
            self.end_call(worker, len(message) != 0)
        return message

    cdef bint receive(self) except -1:
        """Receive the next message into the inbox. False if that is left to the result thread."""
        cdef object message
        while True:
            with self.lock:
                if not self.calling or self.caller != PyThread_get_thread_ident():
                    return False
            try:
                message = self.results.receive_unless_interrupted()
            except (EOFError, OSError):  # the result thread will find the same, and say so
                return False
            if message is not None:
                self.inbox.append(message)
                return True

    cdef end_call(self, Member worker, bint orderly):
        """Let the result thread go on if there is anything for it to do."""
        cdef object raised = self.hold()
        try:
            if self.caller == PyThread_get_thread_ident():
                self.calling = False  # if it has not been handed over
            self.refresh(worker)
            if not orderly or self.cache or self.failures or self.told or not self.life.runs():
                self.unpark()
        finally:
            self.lock.release()
        if not self.life.runs():
            self.life.wake()
        if raised is not None:
            raise raised

    # ---- sending

    cpdef dispatch(self):
        """Send tasks to workers until there is no task, or no worker that has room."""
        cdef list batch, matched
        cdef Member worker
        cdef object raised = None
        # This comes to an end without any worker's doing anything, for they may all be stopped; and so do several
        # threads in here. Call a worker spent if it is `slow` and has a task: it has no room, until it answers, dies,
        # or a task that it has cannot be sent. Without such an event each step makes these smaller, in the order of a
        # dictionary:
        #
        #   how many workers are not spent     one less where tasks are taken over from such a one, for take_back()
        #                                      leaves it the oldest task that it has; and a spent one stays so
        #   how many tasks the spent ones have less where they are taken over from a spent one: who gets them is none
        #   how many tasks the backlog has     less otherwise
        while True:
            with self.lock:
                matched = self.match()
            if matched is None:
                return
            worker, batch = matched
            if (<Task> batch[0][1]).job.cancellable:
                batch, raised = self.begin(worker, batch)
            self.send(worker, batch)
            if raised is not None:
                raise raised

    cdef list match(self):
        """Give tasks to a worker: [worker, batch]. The caller has to send them."""
        cdef Member worker = None, member
        cdef list tasks, pinned
        cdef Py_ssize_t depth, most = 0, room
        if self.life.over():
            return None
        pinned = self.backlog.match(self.members, self.idle)
        if pinned is not None:
            return pinned
        if self.idle:
            worker = next(iter(self.idle))
            tasks = (
                self.take_over(PATIENCE, worker) or self.next_tasks(worker) or self.take_over(0.0, worker))
        elif self.full or self.unready or not self.backlog.waiting:
            return None  # a worker that is about to be ready will run the next task sooner than one that is busy
        else:
            depth = self.backlog.depth_wanted()
            for member in self.members.values():
                room = member.room(depth) if member.is_open() else 0
                if room > most:
                    worker, most = member, room
            if worker is None or most * 4 < depth:  # one or two are not worth a message if there can soon be many
                self.full = True
                return None
            tasks = self.take_over(PATIENCE, worker) or self.next_tasks(worker)
        if not tasks:
            return self.backlog.match(self.members, self.idle)  # something was taken back
        self.idle.pop(worker, None)
        return [worker, worker.assign(tasks)]

    cdef list next_tasks(self, Member worker):
        """Tasks from the backlog for a worker: so many that something is left for the others, if they have room too."""
        cdef Py_ssize_t depth, most = 1
        if not self.backlog.waiting:
            return []
        depth = self.backlog.depth_wanted()
        if depth > SHALLOW:
            most = max(min(worker.room(depth), self.backlog.count_at_front() // (2 * self.size)), 1)
        return self.backlog.take(most)

    cpdef put_back(self, Task task):
        """To the front of the backlog."""
        self.backlog.put_back(task)

    cdef list take_over(self, double waiting, Member worker):
        """Tasks for a worker that have been waiting behind another one.

        All of those where nothing has been answered for so many seconds; if that is 0, half of those of the worker that
        has most of whom any can be had. One is left to it in any case, begun or not, and no more given to it until it
        has answered: else tasks would wander forever among workers that are dead, or do not get the processor.
        """
        cdef Member victim, member
        cdef double since = 0.0
        cdef Py_ssize_t most, load, room
        cdef list tasks, others = None
        while True:
            victim, most = None, 1
            for member in self.members.values():
                load = len(member.window)
                if load > most and not member.packing and member is not worker:
                    if since == 0.0:
                        since = monotonic() - waiting
                    if member.progress <= since and (others is None or member not in others):
                        victim, most = member, load
            if victim is None:
                return []
            tasks = self.backlog.unpinned(victim.take_back(most - 1 if waiting else most // 2))
            if tasks:
                break
            others = others or []  # it has begun or ended all of them
            others.append(victim)
        victim.slow = True
        self.refresh(victim)
        room = worker.room(len(worker.window) + len(tasks))
        while len(tasks) > room:
            self.backlog.put_back(tasks.pop())
        return tasks

    cpdef refresh(self, Member worker):
        """To be called when anything has changed for a worker."""
        if not worker.window and worker.is_open() and worker.room(1) > 0:
            self.idle.setdefault(worker)
        else:
            self.idle.pop(worker, None)
        self.full = False

    def drop(self, set cancelled):
        """Take tasks whose futures were cancelled out of the backlog, and tell these."""
        cdef list dropped
        cdef object raised = None
        with self.lock:
            dropped = self.backlog.remove(cancelled)  # what a thread has taken out in between, it finds to be cancelled
        for work in dropped:
            try:
                (<Task> work).job._begin()
            except BaseException as error:
                raised = error
                (<Task> work).job._begin()
        if raised is not None:
            raise raised

    cdef tuple begin(self, Member worker, list batch):
        """Tell the futures that they run. What was cancelled is not sent.

        Returns what is, and None or what a signal handler raised; then the rest has gone back.
        """
        cdef list begun = [], dropped = [], rest = []
        cdef object raised = None, number
        cdef Task task
        for number, task in batch:
            if raised is not None:
                rest.append(number)
                continue
            try:
                if task.job._begin():
                    begun.append((number, task))
                else:
                    dropped.append(number)
            except BaseException as error:
                raised = error
                rest.append(number)
        if len(begun) < len(batch):
            raised = self.hold() or raised
            try:
                for number in dropped:
                    worker.withdraw(number)
                for number in reversed(rest):
                    task = worker.withdraw(number)
                    if task is not None:  # else the worker has died, and the task was put back
                        self.backlog.put_back(task)
            finally:
                self.lock.release()
        return begun, raised

    cdef send(self, Member worker, list batch):
        """Send what was assigned. Raises what a signal handler raises."""
        cdef list failures = worker.send(batch), lost = [], unsent = []
        cdef object raised = self.hold(), number, timeout = self.interval, _
        cdef Task task
        try:
            worker.packing = False
            if failures:
                for number, error in failures:
                    if isinstance(error, Exception) or PyThread_get_thread_ident() != main_thread:
                        task = worker.withdraw(number)
                        if task is None:  # the worker has died, and the task was put back
                            pass
                        elif worker.quitting:  # its queue was removed: it will end
                            unsent.append(task)
                        else:
                            lost.append((task.job, task.index, error))
                    else:
                        # It may have been sent, or not; what the worker has not begun can be had back in either case.
                        raised = error
                        self.backlog.put_all_back(worker.take_back_from(number))
                        break
            self.backlog.put_all_back(unsent)
            self.refresh(worker)
            if lost:
                self.failures.extend(lost)
                self.told += 1
                self.unpark()
        finally:
            self.lock.release()
        if lost:
            self.look()
        for _, task in batch:
            if task.timeout is not None and (timeout is None or task.timeout < timeout):
                timeout = task.timeout
        if timeout is not None and (self.due is None or monotonic() + <double> timeout < self.due):
            self.life.wake()
        if raised is not None:
            raise raised

    cdef look(self):
        """Tell the result thread of `failures`."""
        try:
            self.results.send((LOOK, 0, 0, None, 0, None, None))
        except (OSError, MemoryError):  # it is through, or about to be: it sets what is left; or with the next one
            with self.lock:
                self.told -= 1

    # ---- workers

    def enroll(self, Member worker):
        """A worker is about to be started."""
        with self.lock:
            self.members[worker.tag] = worker
            self.unready += 1

    def admit(self, Member worker):
        """It can be given tasks; dispatch() has to follow."""
        with self.lock:
            worker.ready = True
            self.unready -= 1
            self.refresh(worker)

    def strike_off(self, Member worker):
        """It could not be started, or is dead. What is in its window is for the caller to look after."""
        with self.lock:
            del self.members[worker.tag]
            self.unready -= not worker.ready
            worker.dead = True
            self.refresh(worker)

    # ---- receiving

    def park(self):
        """Whether to leave receiving to a call(); then the result thread has to wait for `wanted`."""
        with self.lock:
            idle = not (self.cache or self.unready or self.told or self.failures or self.inbox)
            self.parked = self.called and idle and self.life.runs()
            return self.parked

    def take_inbox(self):
        """What a call() has received and left."""
        messages, self.inbox = self.inbox, []
        return messages

    def take_answers(self, list messages):
        """Remove answered tasks from the windows: [(task, message)], in their order."""
        cdef list done = []
        cdef dict answers = {}
        cdef Member worker
        cdef Task task
        cdef tuple message
        cdef double now
        cdef Py_ssize_t count
        cdef bint mixed = False
        cdef object pace = None, before = None
        with self.lock:
            for message in messages:
                worker = self.members.get(message[1])
                if worker is None:
                    continue
                task = worker.answered(message[2])
                if task is not None:
                    pace = task.function.pace
                    answers[worker] = answers.get(worker, 0) + 1
                    mixed = mixed or (done and pace is not before)
                    before = pace
                    done.append((task, message))
            messages.clear()
            if done:
                now = monotonic()
                for worker, count in answers.items():
                    busy = worker.ledger.busy
                    if not mixed:  # else nobody knows which function took how long
                        pace.note(busy - worker.busy, count)
                    worker.busy = busy
                    worker.progress = now
                    self.refresh(worker)
                self.depth = pace.depth
        return done

    def may_nap(self, Py_ssize_t depth):
        """Whether many results are about to come: so many for each worker."""
        cdef Py_ssize_t load = 0
        cdef Member worker
        if self.depth < depth:
            return False
        with self.lock:
            for worker in self.members.values():
                load += len(worker.window)
        return load >= self.size * depth

    def wait_for_room(self, feed):
        """A feeder is to wait at its bell: True, else False."""
        with self.lock:
            return not self.life.over() and self.backlog.await_room(feed)

    def wait_for_taker(self, feed):
        """The same, before it reads on, if results of what it has read are to be taken first. Once the pool is closed,
        all is read, as join() waits for it."""
        with self.lock:
            if feed.left or not self.life.runs() or feed.read - feed.taken < feed.most:
                return False
            self.backlog.feeds.add(feed)
            return True

    def took(self, feed):
        """A result was taken of what a feeder has read."""
        with self.lock:
            feed.taken += 1
            self.backlog.ring(feed)

    def leave(self, feed):
        """Nobody will take any more."""
        with self.lock:
            feed.left = True
            self.backlog.ring(feed)

    def count_waiting(self):
        """How many tasks no worker has."""
        with self.lock:
            return self.backlog.count()

    # ---- the end

    def give_up(self):
        """Let go of the tasks that nobody will run: the results that are not complete."""
        with self.lock:
            self.backlog.clear()
            return list(self.cache.values())

    def clear(self):
        """Let go of everything."""
        self.members = {}
        self.idle = {}
        self.backlog = Backlog()


def _become_main_thread():
    global main_thread
    main_thread = PyThread_get_thread_ident()


os.register_at_fork(after_in_child=_become_main_thread)

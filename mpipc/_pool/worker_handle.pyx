# distutils: language = c
"""A worker process, as its pool sees it.

Compiled, as _pool/schedule.pyx is, which says why.
"""

import os

from libc.string cimport memset
from posix.resource cimport rusage
from posix.signal cimport siginfo_t
from posix.unistd cimport close

from mpipc._pool.codec cimport Task
from mpipc.sysv._waits cimport now_ns

from mpipc._pool.channel import Channel
from mpipc._pool.ledger import Ledger
from mpipc._pool.worker import BATCH as _BATCH
from mpipc._pool.worker import FUNCTIONS as _FUNCTIONS
from mpipc._pool.worker import QUIT
from mpipc._stdlib.private import popen_of

cdef extern from "<sys/wait.h>" nogil:
    int P_PID, WEXITED, WNOHANG, WNOWAIT

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_waitid

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef object BATCH = _BATCH
cdef Py_ssize_t FUNCTIONS = _FUNCTIONS

# Bytes of arguments from which a message gets no more tasks.
cdef Py_ssize_t BULK = 1 << 16


cdef double monotonic() noexcept nogil:
    """time.monotonic()"""
    return now_ns() * 1e-9


cdef class Member:
    """A worker process with its task queue and its ledger. Guarded by the lock of the pool's life, but for
    `process` and `pidfd`.

    A member goes from starting to ready (its initializer has returned) to dead; only a ready one is sent tasks. At the
    end of the pool, or when its quota is used up, it quits by itself.

    tag             number of this worker; never used again in this pool
    quota           how many tasks it may run in all; None if that is not limited
    own_reducers    of tasks
    window          tasks given to it and not answered, by number, in the order in which they are sent
    packing         a thread is about to send it the last ones in the window; it gets no other task until that is done,
                    so that the order of the numbers is that of the messages
    sequence        number of the last task
    charged         tasks given to it and not taken back
    known           functions that it has used last, so it has them (unless it has forgotten them, which it will say)
    progress        when it has last answered, or was given something after it had nothing to do; time.monotonic()
    busy            its ledger's `busy` at that time
    slow            its task was waited for in vain: there is no point in having another one wait behind it
    condemned       number of the task that it is killed for; 0 if none
    excess          if that has taken too much memory: the limit, and how much; in bytes
    explanation     why it is dead, as far as the supervisor has found that out; None if it has not
    peak            the most memory that it has had, in bytes; None if that is not known
    done            tasks that it has answered
    launched        when its process was started; time.monotonic()
    ended           when the supervisor has found it to be dead; 0.0 before, and if that was at the end of the pool
    """

    def __cinit__(self, *arguments, **options):
        self.pidfd_ = self.report_ = -1

    def __dealloc__(self):
        if self.pidfd_ >= 0:
            close(self.pidfd_)
        if self.report_ >= 0:
            close(self.report_)

    def __init__(self, tag, quota, own_reducers=None, views=False):
        self.tag = tag
        self.quota = quota
        self.own_reducers = own_reducers
        self.tasks = Channel(views)
        self.ledger = Ledger()
        self.window = {}
        self.known = {}
        self.condemned = 0

    cdef bint is_open(self):
        """Whether it may be given tasks at all."""
        return self.ready and not (self.dead or self.quitting or self.packing)

    cdef Py_ssize_t room(self, Py_ssize_t depth):
        """How many tasks it can be given if it is to have so many at a time."""
        cdef Py_ssize_t load = len(self.window)
        if load and self.slow:
            return 0
        if self.quota is None:
            return depth - load
        return min(depth - load, <Py_ssize_t> self.quota - self.charged)

    cdef list assign(self, list tasks):
        """Put tasks into the window, and return them with their numbers; `send()` has to follow."""
        cdef list batch = []
        cdef Task task
        cdef object number
        self.packing = True
        if not self.window:
            self.progress = monotonic()
        for task in tasks:
            self.sequence += 1
            number = self.sequence
            task.attempts += 1
            self.window[number] = task
            batch.append((number, task))
        self.charged += len(tasks)
        return batch

    cdef list send(self, list batch):
        """Send tasks. Without the lock, because it runs code of the user.

        Returns the numbers of those that could not be sent, with the reason; that is all the others if the reason is no
        Exception.
        """
        cdef list failures = []
        cdef list envelopes = []
        cdef list numbers = []
        cdef Py_ssize_t bulk = 0, place = 0, count = len(batch)
        cdef object number, function, has = None, body, unsent
        cdef tuple envelope
        cdef Task task
        for number, task in batch:
            place += 1
            try:
                function = task.function
                envelope = task.envelope(
                    self.tag, number, function is has or function.id in self.known, self.own_reducers)
                if function.lasting:
                    has = function
                body = envelope[5]
                if type(body) is tuple and task.timeout is not None:
                    body = (<tuple> body)[1]
                if type(body) is bytes:
                    bulk += len(<bytes> body)
                numbers.append(number)
                envelopes.append(envelope)
            except Exception as error:
                failures.append((number, error))
            except BaseException as error:  # KeyboardInterrupt
                unsent = numbers[0] if numbers else number
                return failures + [(n, error) for n, _ in batch if n >= unsent]
            if envelopes and (place == count or bulk >= BULK):
                try:
                    if len(envelopes) == 1:
                        self.tasks.send(envelopes[0])
                    else:
                        self.tasks.send((BATCH, self.tag, 0, None, 0, envelopes, None))
                except BrokenPipeError as error:  # the queue was removed, and the worker is about to find that
                    self.quitting = True
                    return failures + [(n, error) for n, _ in batch if n >= numbers[0]]
                except Exception as error:
                    failures.extend([(n, error) for n in numbers])
                except BaseException as error:
                    return failures + [(n, error) for n, _ in batch if n >= numbers[0]]
                numbers, envelopes, bulk = [], [], 0
        return failures

    cpdef Task withdraw(self, object number):
        """Remove a task from the window as if it had not been there; None if it is not there any more."""
        cdef Task task = self.window.pop(number, None)
        if task is not None:
            task.attempts -= 1
            self.charged -= 1
        return task

    cdef list take_back(self, Py_ssize_t count):
        """Up to `count` tasks, fewer than it has, from the last ones that it was given, which it has not begun.

        They are more if it has not come to what was taken back from it before, and has older tasks than that; but never
        the oldest that it has.
        """
        cdef object started = self.ledger.started
        cdef list waiting = [number for number in self.window if number > started]
        while waiting and (<Task> self.window[waiting[-1]]).pinned is not None:
            waiting.pop()  # which would come back to it
        if not waiting:
            return []
        return self.take_back_from(waiting[len(waiting) - min(count, len(waiting))])

    cpdef list take_back_from(self, object number):
        """The tasks from this number on that it has not begun."""
        cdef object start
        if not self.window:  # it may be dead
            return []
        start = self.ledger.revoke(number, self.sequence, next(iter(self.window)))
        cdef list numbers = [number for number in self.window if number >= start]
        return [self.withdraw(number) for number in numbers]

    cdef Task answered(self, object number):
        """Remove a task from the window, whose result was received."""
        cdef Task task = self.window.pop(number, None)
        cdef object function
        if task is not None:
            function = task.function
            if function.lasting and function.id not in self.known:
                self.known[function.id] = None
                if len(self.known) > FUNCTIONS:
                    del self.known[next(iter(self.known))]
            self.done += 1
            self.slow = False
        return task

    def quit(self):
        """Tell it that nothing more will come."""
        self.quitting = True
        self.tasks.send((QUIT, self.tag, 0, None, 0, None, None))

    def watch(self):
        """Get a descriptor that tells of its death, besides Process.sentinel.

        The pipe behind the sentinel stays open as long as anybody who has inherited it lives. A pidfd does not, and is
        safe where the process is our own child.
        """
        if getattr(popen_of(self.process), "method", None) in ("fork", "spawn"):
            try:
                self.pidfd_ = os.pidfd_open(self.process.pid)
            except OSError:  # ENOSYS before Linux 5.3, EPERM in some sandboxes
                self.pidfd_ = -1

    @property
    def pidfd(self):
        """The descriptor; -1 if there is none."""
        return self.pidfd_

    def unwatch(self):
        """Give the descriptor back."""
        if self.pidfd_ >= 0:
            close(self.pidfd_)
            self.pidfd_ = -1

    def take_report(self, int descriptor):
        """This is the file to which it writes where it was when it crashed (losses.py)."""
        if self.report_ >= 0:
            close(self.report_)
        self.report_ = descriptor

    @property
    def crash_report(self):
        """The descriptor; -1 if there is none."""
        return self.report_

    def find_peak(self):
        """Learn `peak` of a process that is dead and has not been waited for. Only of a child of this process."""
        cdef siginfo_t found
        cdef rusage used
        memset(&used, 0, sizeof(used))
        if syscall(SYS_waitid, P_PID, <long> self.process.pid, &found, WEXITED | WNOHANG | WNOWAIT, &used) == 0:
            if used.ru_maxrss > 0:
                self.peak = used.ru_maxrss * 1024

    def let_go(self):
        """It has ended, or is none of this process's workers: give back what is kept for it here."""
        self.unwatch()
        self.take_report(-1)
        self.tasks.close()
        self.ledger = None

    def exitcode(self):
        """Exit code of the process, which is dead; None if somebody else took it."""
        if self.process.exitcode is None:
            self.process.join(0.5)  # the fork server may not have passed it on yet
        return self.process.exitcode

"""The compiled half of mpipc.work_queue: jobs into a queue, into a process's hands, and back.

What becomes of a job, and when a process dies, stands in _core/src/jobs.c and work.c.
"""

import pickle
from queue import Empty

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mpipc._core.family cimport (
    MP_BUSY, MP_CORRUPT, MP_EMPTY, MP_OK, MP_SHUT_DOWN, MP_TIMED_OUT, Block, look_after
)
from mpipc._core.queue cimport (
    MP_BODY_INLINE, MP_BODY_PIECE, MP_BODY_PLAIN, MP_QUEUE_INLINE, mp_item, mp_job_begin, mp_job_count, mp_joiners,
    mp_piece, mp_piece_claim, mp_queue_is_shut, mp_queue_soon, mp_queue_try_send, mp_room_count, mp_room_ring,
    mp_work_acknowledge, mp_work_give_back, mp_work_linger, mp_work_take, mp_work_try_take, mp_work_unfinished,
)
from mpipc._core.waits cimport deadline_after, deadline_if, must_go_on, wait_for
from mpipc._queue.batch cimport BatchQueue
from mpipc._queue.calls cimport waiting
from mpipc._queue.carried cimport unpack_carried
from mpipc._queue.plain cimport read_plain, write_plain
from mpipc._queue.serializer cimport Serializer, claim, give_back, is_replaced, take_serializer

from mpipc._core.errors import queue_error

cdef object loads = pickle.loads


# ---- calls of the core that may sleep, and looks: see _core/waits.pxd -----------------------------------------------

cdef int take_job(void *what, int64_t deadline) noexcept nogil:
    cdef waiting *w = <waiting *> what
    return mp_work_take(w.v, w.item, w.level, deadline)


cdef int count_jobs(void *what, int64_t deadline) noexcept nogil:
    cdef waiting *w = <waiting *> what
    w.unfinished = mp_work_unfinished(w.v, deadline)
    return errno if w.unfinished < 0 else MP_OK


cdef bint job_is_taken(void *what) except -1:
    """Or cannot be, but for lack of one: as `outcome` says."""
    cdef waiting *w = <waiting *> what
    w.outcome = MP_BUSY  # should a signal handler raise: we may have heard a ring
    w.outcome = (<WorkMessages> w.queue).finish(w.item, mp_work_try_take(w.v, w.item), w.deadline)
    return w.outcome != MP_EMPTY


cdef bint all_is_over(void *what) except -1:
    cdef WorkMessages queue = <WorkMessages> (<waiting *> what).queue
    queue.bury_exhausted()
    return queue.unacknowledged() == 0


# ---- a job in this process's hands -----------------------------------------------------------------------------------

cdef class JobBase:
    """A job that this process has taken. When nobody has it any more, it is given back."""

    cdef WorkMessages queue
    cdef mp_piece piece
    cdef unsigned char *data
    cdef uint64_t size
    cdef uint32_t kind
    cdef int pid
    cdef bint is_over
    cdef readonly object value
    cdef readonly uint32_t attempts

    def __init__(self):
        raise TypeError("a job is taken from a queue")

    cdef bint is_mine(self) noexcept:
        """Whether this process has taken it, of which a forked child is another one."""
        return self.pid == self.queue.v.f.pid

    cdef int check(self) except -1:
        if not self.is_mine():
            raise RuntimeError(
                f"this job is process {self.pid}'s, which has taken it: a forked child can neither acknowledge it nor"
                " give it back. Take a job in the process that does it")
        if self.is_over:
            raise ValueError("this job has been acknowledged or given back already")
        return 0

    cdef int end(self) except -1:
        """It is done."""
        self.is_over = True
        if not mp_work_acknowledge(&self.queue.v, &self.piece):
            raise RuntimeError("this job is not in the hands of its process any more: was its memory written to?")
        return 0

    cdef int leave(self) except -1:
        """Somebody else may take it."""
        self.is_over = True
        mp_work_give_back(&self.queue.v, &self.piece)
        return 0

    def ack(self):
        """The job is done, and taken by nobody any more.

        ValueError: it has been settled already; RuntimeError: another process has taken it, of which this one is a
        forked child."""
        self.check()
        self.end()

    def give_back(self):
        """The job is to be taken again, by anybody, before those that were put later; or, if it was taken max_attempts
        times, it goes to the queue's `failed`. Raises as ack() does."""
        self.check()
        self.queue.has_failed(self, None)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, where):
        if self.is_over or not self.is_mine():
            return
        if kind is None:
            self.end()
        else:
            self.queue.has_failed(self, error)

    def __del__(self):
        if self.queue is not None and not self.is_over and self.is_mine():
            self.leave()

    def __repr__(self):
        return f"<{type(self).__name__}(attempts={self.attempts}{', settled' if self.is_over else ''})>"

    # ---- for who moves it to those that have failed

    def unpickled(self):
        """The object. Raises what unpickling raises."""
        cdef WorkMessages queue = self.queue
        cdef mp_item item  # its message is of no use
        if self.kind == MP_BODY_PLAIN:
            try:
                return read_plain(self.data, self.size)
            except MemoryError:
                raise
            except Exception as e:
                raise queue_error(MP_CORRUPT, False, queue.v.id) from e
        if self.piece.carrier != 0:
            item.piece = self.piece
            item.data = self.data
            item.size = self.size
            return unpack_carried(&queue.v, queue.block.family, &item, False, &queue.copied, False)
        return loads(PyMemoryView_FromMemory(<char *> self.data, self.size, PyBUF_READ))

    def pickled(self):
        """The object's pickle; None if it has none, or refers to memory."""
        if self.kind == MP_BODY_PLAIN or self.piece.carrier != 0:
            return None
        return PyBytes_FromStringAndSize(<char *> self.data, self.size)


# ---- the queue -------------------------------------------------------------------------------------------------------

cdef class WorkMessages(BatchQueue):
    """A queue of jobs. What was taken `most` times (0: there is no limit) is for bury(job, error), which moves it to
    those that have failed."""

    cdef uint32_t most
    cdef object bury

    def __init__(self, uint64_t maxsize=0, Block block=None, uint32_t most=0, bury=None):
        BatchQueue.__init__(self, maxsize, block=block, work=True)
        self.most = most
        self.bury = bury

    def put(self, obj, bint block=True, timeout=None, owner=None, int64_t level=-1):
        """Puts a job, as MessageQueue.put(): whether there was room. Raises ShutDown, and what pickling raises."""
        cdef mp_item item  # for its message
        cdef Serializer serializer
        cdef Py_ssize_t length
        cdef int64_t deadline = deadline_if(block, timeout)
        cdef int outcome
        self.ensure()
        if mp_queue_is_shut(&self.v):
            self.failed(MP_SHUT_DOWN, True)
        if self.v.b.size != 0 and not self.has_room(deadline):
            return False
        length = 0 if is_replaced else write_plain(obj, item.message.data, MP_QUEUE_INLINE)
        if length != 0:
            self.claim_plain(&item, length)
            mp_job_begin(&self.v, &item.piece, MP_BODY_PLAIN)
        else:
            serializer = take_serializer()
            serializer.goes_to(self.block.family, False)
            try:
                serializer.write_pickle_of(obj)
                claim(&self.v, serializer, &item.piece)
            finally:
                give_back(serializer)
            mp_job_begin(&self.v, &item.piece, MP_BODY_INLINE)
        item.message.kind = MP_BODY_PIECE
        memcpy(item.message.data, &item.piece, sizeof(mp_piece))
        outcome = mp_queue_try_send(&self.v, &item.message, sizeof(mp_piece), 0)
        return self.send(&item, sizeof(mp_piece), 0, outcome, deadline) == 1

    cdef int claim_plain(self, mp_item *item, Py_ssize_t length) except -1:
        """A piece with what is in the item's message."""
        cdef unsigned char *data
        cdef int error = mp_piece_claim(&self.v, length, &item.piece, &data)
        if error != MP_OK:
            raise queue_error(error, True, self.v.id, length)
        memcpy(data, item.message.data, length)
        item.piece.carrier = 0
        return 0

    # ---- taking

    def next_job(self, cls, bint block=True, timeout=None):
        """The next job, waited for as get() does; of a class that is derived from JobBase. Raises Empty; ShutDown, when
        nobody has one that may come back, either; EOFError if the queue was removed; and what unpickling raises: then
        it is as if this process had failed with it."""
        cdef JobBase job
        cdef int64_t deadline = deadline_if(block, timeout)
        self.ensure()
        while True:
            job = self.new_job(cls)
            self.take_into(job, deadline)
            if self.most == 0 or job.attempts <= self.most:
                break
            self.bury(job, None)
            job.end()
        try:
            job.value = job.unpickled()
        except Exception as e:
            self.has_failed(job, e)
            raise
        return job

    cdef int take_into(self, JobBase job, int64_t deadline) except -1:
        cdef mp_item item
        cdef int outcome = mp_work_try_take(&self.v, &item)
        if outcome != MP_OK:
            outcome = self.finish(&item, outcome, deadline if deadline != 0 else mp_queue_soon())
        if outcome == MP_EMPTY and deadline == 0:
            look_after(self.v.f)
        elif outcome == MP_EMPTY:
            outcome = self.wait_for_job(&item, deadline)
        if outcome == MP_EMPTY or outcome == MP_TIMED_OUT:
            raise Empty
        if outcome != MP_OK:
            self.failed(outcome, False)
        return self.has_taken(job, &item)

    cdef JobBase new_job(self, cls):
        cdef JobBase job = cls.__new__(cls)
        job.is_over = True  # there is nothing to give back yet
        job.pid = self.v.f.pid
        job.queue = self
        return job

    cdef int has_taken(self, JobBase job, mp_item *item) noexcept:
        job.piece = item.piece
        job.data = item.data
        job.size = item.size
        job.kind = item.job_kind
        job.attempts = item.attempts
        job.is_over = False
        return 0

    cdef int has_failed(self, JobBase job, error) except -1:
        """By the process that has it."""
        if self.most == 0 or job.attempts < self.most:
            return job.leave()
        self.bury(job, error)
        return job.end()

    cdef int bury_exhausted(self) except -1:
        """Those whose last taker was killed, and which nobody takes."""
        cdef JobBase job
        cdef mp_item item
        cdef waiting w
        while self.most != 0 and mp_job_count(&self.v, False, True) != 0:
            job = self.new_job(JobBase)
            w = self.wait(&item)
            w.level = self.most
            if wait_for(take_job, &w, mp_queue_soon()) != MP_OK:
                break
            self.has_taken(job, &item)
            self.bury(job, None)
            job.end()
        return 0

    cdef int finish(self, mp_item *item, int outcome, int64_t deadline) except -1:
        """What mp_work_try_take() has begun; waits for the lock, and not for a job."""
        cdef waiting w
        if outcome != MP_BUSY and not must_go_on(outcome):
            return outcome
        w = self.wait(item)
        return wait_for(take_job, &w, deadline)

    cdef int wait_for_job(self, mp_item *item, int64_t deadline) except -1:
        """As finish(), waiting for a job among the getters."""
        cdef waiting w = self.wait(item)
        cdef bint soon
        with nogil:
            soon = mp_work_linger(&self.v)
        if soon:
            w.outcome = self.finish(item, mp_work_try_take(&self.v, item), deadline)
            if w.outcome != MP_EMPTY:
                return w.outcome
        w.outcome = MP_EMPTY
        try:
            self.wait_in_room(&self.v.q.getters, job_is_taken, &w, deadline)
        finally:
            if w.outcome != MP_OK and w.outcome != MP_EMPTY:  # a ring that we may have heard was for somebody who takes
                mp_room_ring(self.v.f, &self.v.q.getters, False)
        return w.outcome

    # ---- what there is

    cpdef int64_t unacknowledged(self) except -1:
        """Jobs that were put and are not over."""
        cdef waiting w
        cdef int outcome
        self.ensure()
        w = self.wait(NULL)
        outcome = wait_for(count_jobs, &w, -1)
        if outcome != MP_OK:
            self.failed(outcome, False)
        return w.unfinished

    def join_jobs(self, timeout=None):
        """Waits until there is none, at most `timeout` seconds; whether that is so."""
        cdef waiting w = self.wait(NULL)
        return self.wait_in_room(mp_joiners(self.v.b), all_is_over, &w, deadline_after(timeout))

    def counts(self):
        """(jobs in somebody's hands, threads that wait for a job, for room, for the end of all)"""
        self.ensure()
        return (
            mp_job_count(&self.v, True, False), mp_room_count(&self.v.q.getters), mp_room_count(&self.v.q.putters),
            mp_room_count(mp_joiners(self.v.b)))

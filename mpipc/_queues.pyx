"""The compiled half of mpipc.queues: objects in and out of a message queue.

How messages travel, and what happens when a process dies on the way, stands in family/src: queue.c, spill.c, arena.c,
waiting.c. Here is what those know nothing of: pickling, exceptions, signal handlers and the GIL, which is released
where a call waits or copies much. Signal handlers run after every interrupted sleep, and on every tick of a timed one.
"""

import copyreg
import os
import pickle
from multiprocessing import reduction
from queue import Empty

cimport cython
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_READ, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EAGAIN, EBUSY, EIDRM, EINTR, ENOMEM, ENOMSG, ENOSPC, ERANGE, ETIMEDOUT, errno
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.string cimport memcpy, memmove

from mpipc._plain cimport read_plain, write_plain
from mpipc.family._core cimport (
    MP_KIND_QUEUE,
    MP_OK,
    deadline_after,
    fail,
    fail_call,
    mp_block,
    mp_block_abandon,
    mp_block_msgget,
    new_block,
    seal,
)

cdef extern from "family.h" nogil:
    void mp_block_remove_kernel_object(mp_block *b)

LEVELS = MP_QUEUE_LEVELS
INLINE = MP_QUEUE_INLINE

# Copying this much takes longer than giving up the GIL and getting it back.
cdef Py_ssize_t LONG_COPY = 1 << 18
# What a serializer keeps of its buffers between messages.
cdef Py_ssize_t LARGE_PICKLE = 1 << 20

cdef object loads = pickle.loads
cdef dict extra_reducers = reduction.ForkingPickler._extra_reducers
cdef dict copyreg_reducers = copyreg.dispatch_table


# ---- pickling --------------------------------------------------------------------------------------------------------

cdef class Reducers:
    """The dispatch table of ForkingPickler: its registered reducers, then copyreg's. Both may change at any time."""

    def __getitem__(self, cls):
        reducer = extra_reducers.get(cls)
        if reducer is not None:
            return reducer
        return copyreg_reducers[cls]


cdef Reducers reducers = Reducers()
cdef list serializers = []  # that nobody is using


@cython.final
cdef class Serializer:
    """A reusable C pickler (protocol 5) that does not gather its output.

    A pickler that writes to a file hands over large bytes, bytearrays and the buffers of PickleBuffers (numpy's arrays)
    as they are, without copying them into the stream. So they are copied once, to shared memory; and
    reading the stream from there copies them once more, to where they stay.
    """

    def __cinit__(self):
        self.chunks = []
        self.pickler = pickle.Pickler(self, 5)
        self.pickler.dispatch_table = reducers
        self.dump = self.pickler.dump
        self.clear_memo = self.pickler.clear_memo

    def write(self, data):
        if not PyBytes_CheckExact(data):
            data = memoryview(data)  # from now on the object cannot be resized
            self.total += data.nbytes
        else:
            self.total += PyBytes_GET_SIZE(data)
        self.chunks.append(data)

    cdef int write_pickle_of(self, object obj) except -1:
        self.total = 0
        self.dump(obj)
        return 0

    cdef int copy_to(self, unsigned char *target) except -1:
        cdef Py_buffer view
        for chunk in self.chunks:
            if PyBytes_CheckExact(chunk) and PyBytes_GET_SIZE(chunk) < LONG_COPY:
                memcpy(target, PyBytes_AS_STRING(chunk), PyBytes_GET_SIZE(chunk))
                target += PyBytes_GET_SIZE(chunk)
                continue
            PyObject_GetBuffer(chunk, &view, PyBUF_ANY_CONTIGUOUS)
            with nogil:
                memcpy(target, view.buf, view.len)
            target += view.len
            PyBuffer_Release(&view)
        return 0

    cdef void reset(self):
        self.chunks.clear()
        self.clear_memo()


cdef Serializer take_serializer():
    return serializers.pop() if serializers else Serializer()


cdef int give_back(Serializer serializer) except -1:
    # A pickler keeps a memo as large as its largest object needed.
    large = serializer.total > LARGE_PICKLE
    serializer.reset()
    if not large and len(serializers) < 8:
        serializers.append(serializer)
    return 0


def dumps(obj):
    """The bytes that obj travels as."""
    cdef Serializer serializer = take_serializer()
    try:
        serializer.write_pickle_of(obj)
        return b"".join(serializer.chunks)
    finally:
        give_back(serializer)


# ---- several messages ------------------------------------------------------------------------------------------------

# As many go at once: the lock is held while they are copied.
cdef Py_ssize_t BATCH = 128
# And not more than this much shared memory is filled before the first of them is sent.
cdef uint64_t LARGE_BUNDLE = 8 << 20


cdef class Bundle:

    def __cinit__(self):
        self.pieces = []

    def __dealloc__(self):
        PyMem_Free(self.bodies)

    def fill(self, MessageQueue queue, Serializer serializer, objects, owner):
        self.large = 0
        for obj in objects:
            if not self.add_plain(obj):
                try:
                    serializer.write_pickle_of(obj)
                    self.add(queue, serializer)
                except MemoryError:
                    raise
                except Exception as e:
                    if owner is None:
                        raise
                    owner._on_queue_feeder_error(e, obj)
                serializer.reset()
            if len(self.pieces) == BATCH or self.large > LARGE_BUNDLE:
                break

    cdef mp_body *next_body(self, uint32_t length) except NULL:
        """Room for a message of `length` bytes."""
        cdef unsigned char *grown
        if self.used + mp_body_size(1 + length) > self.room:
            grown = <unsigned char *> PyMem_Realloc(self.bodies, 2 * self.room + 2 * mp_body_size(1 + MP_QUEUE_INLINE))
            if grown == NULL:
                raise MemoryError
            self.bodies = grown
            self.room = 2 * self.room + 2 * mp_body_size(1 + MP_QUEUE_INLINE)
        return <mp_body *> (self.bodies + self.used)

    cdef bint add_plain(self, object obj) except -1:
        cdef mp_body *body = self.next_body(MP_QUEUE_INLINE)
        cdef uint32_t length = <uint32_t> write_plain(obj, body.body + 1, MP_QUEUE_INLINE)
        if length == 0:
            return False
        body.length = 1 + length
        body.body[0] = MP_BODY_PLAIN
        self.pieces.append(None)
        self.used += mp_body_size(1 + length)
        return True

    cdef int add(self, MessageQueue queue, Serializer serializer) except -1:
        cdef mp_piece piece
        cdef uint32_t length = sizeof(mp_piece)
        cdef mp_body *body
        if serializer.total <= MP_QUEUE_INLINE:
            length = <uint32_t> serializer.total
        body = self.next_body(length)
        body.length = 1 + length
        if serializer.total <= MP_QUEUE_INLINE:
            body.body[0] = MP_BODY_INLINE
            serializer.copy_to(body.body + 1)
            self.pieces.append(None)
        else:
            queue.claim(serializer, &piece)
            self.large += piece.length
            body.body[0] = MP_BODY_PIECE
            memcpy(body.body + 1, &piece, length)
            self.pieces.append(PyBytes_FromStringAndSize(<char *> &piece, length))
        self.used += mp_body_size(1 + length)
        return 0

    cdef int send(self, MessageQueue queue, uint32_t level) except -1:
        """Sends as many as there is room for, and keeps the others."""
        cdef uint64_t sent, count = len(self.pieces)
        cdef size_t offset = 0
        cdef int error
        if count == 0:
            return 0
        with nogil:
            sent = mp_queue_send_many(&queue.v, self.bodies, count, level, &error)
        for piece in self.pieces[:sent]:
            offset += mp_body_size((<mp_body *> (self.bodies + offset)).length)
            if piece is not None:
                mp_piece_sent(&queue.v, <mp_piece *> PyBytes_AS_STRING(piece))
        del self.pieces[:sent]
        memmove(self.bodies, self.bodies + offset, self.used - offset)
        self.used -= offset
        if error != MP_OK:
            fail_sending(error)
        return 0

    def discard(self, MessageQueue queue):
        for piece in self.pieces:
            if piece is not None:
                mp_piece_free(&queue.v, <mp_piece *> PyBytes_AS_STRING(piece))
        self.pieces.clear()
        self.used = 0


# ---- the queue -------------------------------------------------------------------------------------------------------

cdef extern from "<errno.h>" nogil:
    enum:
        EXFULL


cdef int fail_sending(int error, uint64_t size=0) except -1:
    """`size`: of the message, where shared memory was wanted for it."""
    if error == EIDRM:
        raise BrokenPipeError(error, "mpipc: the message queue was removed (ipcrm), nobody can receive from it")
    if error == ENOMEM:
        raise MemoryError("mpipc: there is no memory for the message; nothing was sent")
    if error == ENOSPC:
        fail_call(error, "shmget", {"key": 0, "size": size, "shmflg": 0o3600})
    fail(error, "sending a message")


cdef int fail_receiving(int error) except -1:
    if error == EIDRM:
        raise EOFError("mpipc: the message queue was removed (ipcrm), nothing will arrive any more")
    if error == ENOMEM:
        raise MemoryError("mpipc: there is no room in this process's address space for the shared memory of the queue")
    fail(error, "receiving a message")


cdef class MessageQueue:
    """A queue of pickled objects; what mpipc.queues are made of.

    `maxsize` 0 means without limit. With `priority`, put() takes a level from 0 to LEVELS - 1, the default, and
    lower levels come first. With `counted`, what was taken counts as unfinished until task_done().
    """

    def __init__(self, uint64_t maxsize=0, bint priority=False, bint counted=False, Block block=None):
        cdef int error
        if block is None:
            block = new_block(MP_KIND_QUEUE)
            if mp_block_msgget(block.family.f, block.index, 0o600) < 0:
                error = errno
                mp_block_abandon(block.family.f, block.index)
                fail_call(error, "msgget", {"key": 0, "msgflg": 0o3600})
            error = mp_queue_make(
                block.family.f, block.index, maxsize,
                (MP_QUEUE_PRIORITY if priority else 0) | (MP_QUEUE_COUNTED if counted else 0))
            if error != MP_OK:
                mp_block_abandon(block.family.f, block.index)
                fail(error, "creating a message queue")
            seal(block)
        self.block = block
        if mp_queue_open(&self.v, block.f, block.index) != MP_OK:
            raise MemoryError
        self.opened = True
        self.last_level = MP_QUEUE_LEVELS - 1 if self.v.flags & MP_QUEUE_PRIORITY else 0

    def __dealloc__(self):
        if self.opened:
            mp_queue_close(&self.v)

    cdef int ensure(self) except -1:
        if self.v.f.slot < 0:
            self.block.ensure()
        return 0

    # ---- sending

    cdef int claim(self, Serializer serializer, mp_piece *piece) except -1:
        """Copies a large message into a piece, which is the caller's to send or free."""
        cdef unsigned char *data
        cdef int error
        with nogil:
            error = mp_piece_claim(&self.v, serializer.total, False, piece, &data)
        if error != MP_OK:
            fail_sending(error, serializer.total)
        try:
            serializer.copy_to(data)
        except BaseException:
            mp_piece_free(&self.v, piece)
            raise
        return 0

    cdef int send(self, Serializer serializer, mp_item *item, uint32_t length, uint32_t level) except -1:
        """Sends what `serializer` has, or if that is None the item's message of `length` bytes. 1 if sent, 0 if a
        bounded queue is full."""
        cdef mp_message *m = &item.message
        cdef int error
        if serializer is not None:
            if serializer.total <= MP_QUEUE_INLINE:
                m.kind = MP_BODY_INLINE
                length = <uint32_t> serializer.total
                serializer.copy_to(m.data)
            else:
                self.claim(serializer, &item.piece)
                m.kind = MP_BODY_PIECE
                length = sizeof(mp_piece)
                memcpy(m.data, &item.piece, sizeof(mp_piece))
        error = mp_queue_try_send(&self.v, m, length, level)
        if error == EBUSY:
            with nogil:
                error = mp_queue_send(&self.v, m, length, level)
        if m.kind == MP_BODY_PIECE:
            if error == MP_OK:
                mp_piece_sent(&self.v, &item.piece)
            else:
                mp_piece_free(&self.v, &item.piece)
        if error == MP_OK:
            return 1
        if error == EAGAIN:
            return 0
        return fail_sending(error)

    cdef int put_item(
        self, Serializer serializer, mp_item *item, uint32_t length, uint32_t level, bint block, object timeout
    ) except -1:
        """As send(), waiting for room."""
        cdef int64_t deadline
        cdef uint32_t epoch
        if self.send(serializer, item, length, level):
            return 1
        if not block:
            return 0
        deadline = deadline_after(timeout)
        epoch = mp_room_enter(&self.v.q.putters)
        try:
            while not self.send(serializer, item, length, level):
                if self.await_room(&self.v.q.putters, deadline, &epoch) == 0:
                    return self.send(serializer, item, length, level)
            return 1
        finally:
            mp_room_leave(&self.v.q.putters, epoch)

    def put(self, obj, bint block=True, timeout=None, owner=None, int64_t level=-1):
        """Sends obj; returns whether there was room for it, waiting for that if `block`, at most `timeout` seconds.

        What cannot be pickled is told to owner._on_queue_feeder_error(exception, obj), or raised if owner is None.
        """
        cdef mp_item item  # for its message
        cdef uint32_t length
        cdef Serializer serializer
        self.ensure()
        if level < 0:
            level = self.last_level
        length = <uint32_t> write_plain(obj, item.message.data, MP_QUEUE_INLINE)
        if length != 0:
            item.message.kind = MP_BODY_PLAIN
            return self.put_item(None, &item, length, <uint32_t> level, block, timeout) == 1
        serializer = take_serializer()
        try:
            try:
                serializer.write_pickle_of(obj)
            except MemoryError:
                raise
            except Exception as e:
                if owner is None:
                    raise
                owner._on_queue_feeder_error(e, obj)
                return True
            return self.put_item(serializer, &item, 0, <uint32_t> level, block, timeout) == 1
        finally:
            give_back(serializer)

    def put_many(self, objects, block=True, timeout=None, owner=None, int64_t level=-1):
        """Sends the objects in their order, many with one system call. As put(); returns how many were sent, which are
        fewer than all if there was not room for all."""
        cdef Bundle bundle = Bundle()
        cdef int64_t deadline = deadline_after(timeout) if block else 0
        cdef Py_ssize_t sent = 0, before
        cdef uint32_t epoch
        cdef Serializer serializer
        self.ensure()
        if level < 0:
            level = self.last_level
        objects = iter(objects)
        while True:
            serializer = take_serializer()
            try:
                bundle.fill(self, serializer, objects, owner)
            except BaseException:
                bundle.send(self, <uint32_t> level)  # what came before it
                bundle.discard(self)
                raise
            finally:
                give_back(serializer)
            before = len(bundle.pieces)
            if before == 0:
                return sent
            bundle.send(self, <uint32_t> level)
            if bundle.pieces and block:
                epoch = mp_room_enter(&self.v.q.putters)
                try:
                    while bundle.pieces and self.await_room(&self.v.q.putters, deadline, &epoch):
                        bundle.send(self, <uint32_t> level)
                    bundle.send(self, <uint32_t> level)
                except BaseException:
                    bundle.discard(self)
                    raise
                finally:
                    mp_room_leave(&self.v.q.putters, epoch)
            sent += before - len(bundle.pieces)
            if bundle.pieces:
                bundle.discard(self)
                return sent

    # ---- receiving

    cdef object unpack(self, mp_item *item):
        cdef object view
        if item.message.kind == MP_BODY_PLAIN:
            return read_plain(item.data, item.size)
        if item.message.kind == MP_BODY_INLINE:
            return loads(PyBytes_FromStringAndSize(<char *> item.data, item.size))
        try:
            view = PyMemoryView_FromMemory(<char *> item.data, item.size, PyBUF_READ)
            return loads(view)
        finally:
            mp_piece_free(&self.v, &item.piece)

    cdef int await_room(self, mp_room *room, int64_t deadline, uint32_t *epoch) except -1:
        """Waits for a ring; 0 if the deadline has passed."""
        cdef int error
        with nogil:
            error = mp_room_wait(self.v.f, room, deadline)
        if error == ETIMEDOUT:
            return 0
        if error == EINTR or error == EAGAIN:
            PyErr_CheckSignals()
        elif error != MP_OK:
            fail(error, "waiting at a bell of the family")
        epoch[0] = mp_room_stay(room, epoch[0])
        return 1

    def get_unless_interrupted(self):
        """As get(); None when a signal handler has run. For messages that are not None, and queues without tasks."""
        cdef mp_item item
        cdef int error
        self.ensure()
        error = self.take(&item)
        while error == ENOMSG:
            with nogil:
                error = mp_queue_await(&self.v, &item)
        if error == EINTR:
            PyErr_CheckSignals()
            return None
        if error != MP_OK:
            fail_receiving(error)
        return self.unpack(&item)

    def get(self, block=True, timeout=None):
        """The next object, waited for if `block`, at most `timeout` seconds. Raises Empty; EOFError if the queue was
        removed. An error in unpickling is raised, too; the message is gone then."""
        cdef mp_item item
        cdef int64_t deadline
        cdef uint32_t epoch
        cdef int error
        self.ensure()
        error = self.take(&item)
        if error == ENOMSG:
            if not block:
                raise Empty
            if timeout is None and not self.v.flags & MP_QUEUE_COUNTED:
                while error == ENOMSG or error == EINTR:
                    with nogil:
                        error = mp_queue_await(&self.v, &item)
                    if error == EINTR:
                        PyErr_CheckSignals()
            else:
                deadline = deadline_after(timeout)
                epoch = mp_room_enter(&self.v.q.getters)
                try:
                    while True:
                        error = self.take(&item)
                        if error != ENOMSG:
                            break
                        if not self.await_room(&self.v.q.getters, deadline, &epoch):
                            error = self.take(&item)
                            break
                finally:
                    mp_room_leave(&self.v.q.getters, epoch)
                if error == ENOMSG:
                    raise Empty
        if error != MP_OK:
            fail_receiving(error)
        try:
            return self.unpack(&item)
        finally:
            if self.watch is not None:
                self.watch.look_again()

    def get_many(self, uint32_t most, block=True, timeout=None):
        """The next objects, up to `most`: what is there, or if there is nothing, the first that comes. As get().

        If unpickling one fails, what it raised is raised, with the other objects in its attribute `received`.
        """
        cdef uint32_t n, i
        cdef int error
        if most == 0:
            return []
        self.ensure()
        cdef uint32_t batch = min(most, BATCH)
        cdef mp_item *items = <mp_item *> PyMem_Malloc(batch * sizeof(mp_item))
        cdef list objects
        if items == NULL:
            raise MemoryError
        failure = None
        try:
            with nogil:
                error = mp_queue_take_many(&self.v, items, batch, &n)
            if error == ENOMSG:
                objects = [self.get(block, timeout)]
                n = 0
                if most > 1:
                    with nogil:
                        error = mp_queue_take_many(&self.v, items, min(batch, most - 1), &n)
            else:
                objects = []
            if error != MP_OK and error != ENOMSG and not objects:  # else the next call will meet it
                fail_receiving(error)
            for i in range(n):
                try:
                    objects.append(self.unpack(&items[i]))
                except BaseException as e:
                    failure = failure or e
        finally:
            PyMem_Free(items)
        if self.watch is not None:
            self.watch.look_again()
        if failure is not None:
            failure.received = objects
            raise failure
        return objects

    cdef int take(self, mp_item *item) except -1:
        cdef int error
        error = mp_queue_try_take(&self.v, item)
        if error == EAGAIN:
            with nogil:
                error = mp_queue_take(&self.v, item)
        if error == ENOMSG and self.watch is not None:
            self.watch.look_again()
        return error

    def poll(self, timeout=0.0):
        """Whether there is something in the queue, waited for at most `timeout` seconds (None: without a limit)."""
        cdef int64_t deadline
        cdef uint32_t epoch
        if self.size() != 0:
            return True
        deadline = deadline_after(timeout)
        if deadline == 0 or timeout == 0:
            return False
        epoch = mp_room_enter(&self.v.q.getters)
        try:
            while self.size() == 0:
                if not self.await_room(&self.v.q.getters, deadline, &epoch):
                    return self.size() != 0
            return True
        finally:
            mp_room_leave(&self.v.q.getters, epoch)
            mp_room_ring(self.v.f, &self.v.q.getters, False)  # the ring we may have heard, for somebody who takes

    # ---- tasks

    def task_done(self):
        """One of the taken objects is done. ValueError if none is unfinished."""
        cdef int error
        self.ensure()
        with nogil:
            error = mp_queue_task_done(&self.v)
        if error == ERANGE:
            raise ValueError("task_done() called too many times")
        if error != MP_OK:
            fail_receiving(error)

    def unfinished(self):
        """Objects in the queue, and those taken and not done."""
        cdef int64_t n
        self.ensure()
        with nogil:
            n = mp_queue_unfinished(&self.v)
        if n < 0:
            fail_receiving(errno)
        return n

    def join(self):
        """Waits until no task is unfinished, or has come to that since the call."""
        cdef mp_room *room = mp_joiners(self.v.b)
        cdef uint32_t zeros = self.v.q.zeros
        cdef uint32_t epoch = mp_room_enter(room)
        try:
            while self.unfinished() > 0 and self.v.q.zeros == zeros:
                self.await_room(room, -1, &epoch)
        finally:
            mp_room_leave(room, epoch)

    # ---- what there is

    def size(self):
        """The number of objects in the queue."""
        cdef int64_t n
        self.ensure()
        n = mp_queue_size(&self.v)
        if n < 0:
            fail_receiving(errno)
        return n

    @property
    def maxsize(self):
        return self.v.b.size

    def trim(self, double idle=0.0):
        """Returns the memory of shared blocks that nobody has used for `idle` seconds to the system: how many bytes."""
        cdef int64_t n
        self.ensure()
        with nogil:
            n = mp_arena_trim(&self.v, <int64_t> (idle * 1e9))
        return n

    def remove(self):
        """Takes the kernel's queue away from everybody who uses it: who waits for a message gets EOFError. Waits for
        nobody, and does nothing if that is not permitted."""
        mp_block_remove_kernel_object(self.v.b)

    def usage(self):
        """(messages in the spill, bytes of shared blocks that have memory, of those in use, segments, waiting getters,
        waiting putters, waiting joiners, tasks taken and not done)"""
        cdef uint64_t nbytes, in_use, segments
        mp_arena_usage(&self.v, &nbytes, &in_use, &segments)
        return (
            self.v.q.spilled, nbytes, in_use, segments,
            mp_room_count(&self.v.q.getters) + mp_sleepers(self.v.f, self.v.index),
            mp_room_count(&self.v.q.putters), mp_room_count(mp_joiners(self.v.b)), self.v.q.pending)

    # ---- a file descriptor

    def watched_by(self, Watch watch):
        """`watch`, or None, is told when somebody of this process finds the queue empty."""
        self.watch = watch


cdef class Watch:
    """A file descriptor (eventfd) that is readable while the queue is not empty, kept so by a thread that runs run().

    It does not keep the queue's Python object alive beyond stop().
    """

    def __init__(self, MessageQueue queue):
        self.pid = os.getpid()
        self.queue = queue
        queue.ensure()
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        cdef int error = mp_watch_start(&self.w, self.fd)
        if error != MP_OK:
            os.close(self.fd)
            fail(error, "watching a queue")

    def run(self):
        cdef MessageQueue queue = self.queue
        with nogil:
            mp_watch_run(&queue.v, &self.w)

    cdef int look_again(self) except -1:
        if self.pid == os.getpid():
            mp_watch_look_again(&self.queue.v, &self.w)
        return 0

    def stop(self):
        """Ends run(). Only in the process that made it."""
        # Not a cycle any more: nobody need wait for the garbage collection to let go of the queue.
        self.queue.watch = None
        if self.pid == os.getpid():
            mp_watch_stop(&self.queue.v, &self.w)

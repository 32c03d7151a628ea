"""The compiled half of mpipc.queues: objects in and out of a message queue.

How messages travel, and what happens when a process dies on the way, stands in _core/src: queue.c, spill.c, pieces.c,
rooms.c. Here is what those know nothing of: pickling, exceptions, signal handlers and the GIL, which is released
where a call waits or copies much. Signal handlers run after every interrupted sleep, and on every tick of a longer one:
also while somebody who does not run has the queue's lock. Whatever the core answers with MP_TICK or MP_INTERRUPTED has
not been done, and nothing is in our hands.
"""

import copyreg
import os
import pickle
import weakref
from queue import Empty

cimport cython
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_READ, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport errno
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.string cimport memcpy, memmove

from mpipc._queue.plain cimport read_plain, write_plain
from mpipc._core.errors import queue_error
from mpipc._stdlib.private import extra_reducers as _extra_reducers
from mpipc._core.family cimport (
    MP_BUSY,
    MP_CORRUPT,
    MP_EMPTY,
    MP_FULL,
    MP_INTERRUPTED,
    MP_KIND_QUEUE,
    MP_NONE_LEFT,
    MP_OK,
    MP_TICK,
    MP_TIMED_OUT,
    deadline_if,
    fail,
    fail_bell,
    fail_call,
    look_after,
    mp_block,
    mp_block_abandon,
    mp_block_msgget,
    mp_now_ns,
    new_block,
    seal,
)

cdef extern from "core.h" nogil:
    void mp_kind_remove(mp_block *b)

LEVELS = MP_QUEUE_LEVELS
INLINE = MP_QUEUE_INLINE

# Copying this much takes longer than giving up the GIL and getting it back.
cdef Py_ssize_t LONG_COPY = 1 << 18
# What a serializer keeps of its buffers between messages.
cdef Py_ssize_t LARGE_PICKLE = 1 << 20

cdef object loads = pickle.loads
cdef object UnpicklingError = pickle.UnpicklingError
cdef dict extra_reducers = _extra_reducers
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

cdef object NOTHING = object()


cdef class Bundle:

    def __cinit__(self):
        self.pieces = []
        self.held = NOTHING

    def __dealloc__(self):
        PyMem_Free(self.bodies)

    def fill(self, MessageQueue queue, Serializer serializer, objects, owner, int64_t room):
        """Adds objects, as an iterator gives them. One that costs more than a copy is held back if it is not among the
        first `room`."""
        self.large = 0
        while len(self.pieces) < BATCH and self.large <= LARGE_BUNDLE:
            obj, self.held = self.held, NOTHING
            if obj is NOTHING:
                obj = next(objects, NOTHING)
            if obj is NOTHING:
                return
            if not self.add_plain(obj):
                if len(self.pieces) >= room:
                    self.held = obj
                    return
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

    cdef int send(self, MessageQueue queue, uint32_t level, int64_t deadline) except -1:
        """Sends as many as there is room for, and keeps the others. Waits for the lock only."""
        cdef uint64_t sent, count
        cdef size_t offset
        cdef int outcome = MP_TICK
        while self.pieces and (outcome == MP_TICK or outcome == MP_INTERRUPTED):
            count = len(self.pieces)
            offset = 0
            with nogil:
                sent = mp_queue_send_many(&queue.v, self.bodies, count, level, deadline, &outcome)
            for piece in self.pieces[:sent]:
                offset += mp_body_size((<mp_body *> (self.bodies + offset)).length)
                if piece is not None:
                    mp_piece_sent(&queue.v, <mp_piece *> PyBytes_AS_STRING(piece))
            del self.pieces[:sent]
            memmove(self.bodies, self.bodies + offset, self.used - offset)
            self.used -= offset
            if outcome == MP_TICK or outcome == MP_INTERRUPTED:
                PyErr_CheckSignals()
            elif outcome != MP_OK and outcome != MP_FULL and outcome != MP_TIMED_OUT:
                queue.failed(outcome, True)
        return 0

    def discard(self, MessageQueue queue):
        for piece in self.pieces:
            if piece is not None:
                mp_piece_free(&queue.v, <mp_piece *> PyBytes_AS_STRING(piece))
        self.pieces.clear()
        self.used = 0


# ---- the queue -------------------------------------------------------------------------------------------------------

_all = weakref.WeakSet()


def await_hearing():
    """Before this process ends in the normal way: what it has put is known to those who wait for it, unless that takes
    more than a second. See mp_queue_await_hearing() in watch.c."""
    cdef int64_t deadline = mp_now_ns() + 1000000000
    for queue in list(_all):
        (<MessageQueue> queue).await_hearing(deadline)


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
            raise MemoryError("mpipc: there is no memory for one more queue in this process")
        self.opened = True
        self.sender = -1
        _all.add(self)
        self.last_level = MP_QUEUE_LEVELS - 1 if self.v.flags & MP_QUEUE_PRIORITY else 0

    def __dealloc__(self):
        if self.opened:
            mp_queue_close(&self.v)

    cdef int ensure(self) except -1:
        if self.v.f.slot < 0:
            self.block.ensure()
        return 0

    cdef int failed(self, int error, bint sending, uint64_t size=0) except -1:
        """`size`: of the message, where shared memory was wanted for it."""
        raise queue_error(error, sending, self.v.id, size)

    # ---- sending

    cdef int claim(self, Serializer serializer, mp_piece *piece) except -1:
        """Copies a large message into a piece, which is the caller's to send or free."""
        cdef unsigned char *data
        cdef int error
        with nogil:
            error = mp_piece_claim(&self.v, serializer.total, piece, &data)
        if error != MP_OK:
            self.failed(error, True, serializer.total)
        try:
            serializer.copy_to(data)
        except BaseException:
            mp_piece_free(&self.v, piece)
            raise
        return 0

    cdef int has_room(self, int64_t deadline) except -1:
        """Whether a bounded queue has room, waited for until the deadline (0: not at all): what is large is not pickled
        and copied before there is. Somebody else may be faster then."""
        cdef int64_t room = mp_queue_room(&self.v)
        cdef uint32_t epoch
        if room == 0 and deadline != 0:
            epoch = mp_room_enter(&self.v.q.putters)
            try:
                while True:
                    room = mp_queue_room(&self.v)
                    if room != 0:
                        break
                    if not self.await_room(&self.v.q.putters, deadline, &epoch):
                        room = mp_queue_room(&self.v)
                        break
            finally:
                mp_room_leave(&self.v.q.putters, epoch)
        if room < 0:
            self.failed(errno, True)
        return room != 0

    cdef int finish_send(self, mp_item *item, uint32_t length, uint32_t level, int outcome, int64_t deadline) except -1:
        """What mp_queue_try_send() has begun; waits for the lock, and not for room."""
        while outcome == MP_BUSY or outcome == MP_TICK or outcome == MP_INTERRUPTED:
            if outcome != MP_BUSY:
                PyErr_CheckSignals()
            with nogil:
                outcome = mp_queue_send(&self.v, &item.message, length, level, deadline)
        return outcome

    cdef int wait_and_send(self, mp_item *item, uint32_t length, uint32_t level, int64_t deadline) except -1:
        """As finish_send(), waiting for room."""
        cdef int outcome = MP_FULL
        cdef uint32_t epoch = mp_room_enter(&self.v.q.putters)
        try:
            while True:
                outcome = mp_queue_try_send(&self.v, &item.message, length, level)
                outcome = self.finish_send(item, length, level, outcome, deadline)
                if outcome != MP_FULL:
                    return outcome
                if not self.await_room(&self.v.q.putters, deadline, &epoch):
                    outcome = mp_queue_try_send(&self.v, &item.message, length, level)
                    outcome = self.finish_send(item, length, level, outcome, deadline)
                    return outcome
        finally:
            mp_room_leave(&self.v.q.putters, epoch)
            if outcome != MP_OK and outcome != MP_FULL:  # a ring that we may have heard was for somebody who sends
                mp_room_ring(self.v.f, &self.v.q.putters, False)

    cdef int send(self, mp_item *item, uint32_t length, uint32_t level, int outcome, int64_t deadline) except -1:
        """Ends what mp_queue_try_send() has begun with the item's message of `length` bytes. 1 if it was sent, 0 if it
        could not be before the deadline (0: now). A piece that was not sent is freed."""
        try:
            if outcome != MP_OK:
                outcome = self.finish_send(item, length, level, outcome, deadline if deadline != 0 else mp_queue_soon())
            if outcome == MP_FULL and deadline == 0:
                look_after(self.v.f)
            elif outcome == MP_FULL:
                outcome = self.wait_and_send(item, length, level, deadline)
        except BaseException:
            if item.message.kind == MP_BODY_PIECE:
                mp_piece_free(&self.v, &item.piece)
            raise
        if item.message.kind == MP_BODY_PIECE:
            if outcome == MP_OK:
                mp_piece_sent(&self.v, &item.piece)
            else:
                mp_piece_free(&self.v, &item.piece)
        if outcome == MP_OK:
            return 1
        if outcome == MP_FULL or outcome == MP_TIMED_OUT:
            return 0
        return self.failed(outcome, True)

    def put(self, obj, bint block=True, timeout=None, owner=None, int64_t level=-1):
        """Sends obj; returns whether there was room for it, waiting for that if `block`, at most `timeout` seconds.

        What cannot be pickled is told to owner._on_queue_feeder_error(exception, obj), or raised if owner is None.
        """
        cdef mp_item item  # for its message
        cdef uint32_t length
        cdef int outcome
        cdef int64_t deadline
        cdef Serializer serializer
        self.ensure()
        self.sender = self.v.f.slot
        if level < 0:
            level = self.last_level
        length = <uint32_t> write_plain(obj, item.message.data, MP_QUEUE_INLINE)
        if length != 0:
            item.message.kind = MP_BODY_PLAIN
            outcome = mp_queue_try_send(&self.v, &item.message, length, <uint32_t> level)
            if outcome == MP_OK:
                return True
            return self.send(&item, length, <uint32_t> level, outcome, deadline_if(block, timeout)) == 1
        deadline = deadline_if(block, timeout)
        if self.v.b.size != 0 and not self.has_room(deadline):
            return False
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
            if serializer.total <= MP_QUEUE_INLINE:
                item.message.kind = MP_BODY_INLINE
                length = <uint32_t> serializer.total
                serializer.copy_to(item.message.data)
            else:
                self.claim(serializer, &item.piece)
                item.message.kind = MP_BODY_PIECE
                length = sizeof(mp_piece)
                memcpy(item.message.data, &item.piece, sizeof(mp_piece))
        finally:
            give_back(serializer)
        outcome = mp_queue_try_send(&self.v, &item.message, length, <uint32_t> level)
        return self.send(&item, length, <uint32_t> level, outcome, deadline) == 1

    def put_many(self, objects, block=True, timeout=None, owner=None, int64_t level=-1):
        """Sends the objects in their order, many with one system call. As put(); returns how many were sent, which are
        fewer than all if there was not room for all."""
        cdef Bundle bundle = Bundle()
        cdef int64_t deadline = deadline_if(block, timeout), room, lock_deadline
        cdef Py_ssize_t sent = 0, before
        cdef uint32_t epoch
        cdef Serializer serializer
        self.ensure()
        self.sender = self.v.f.slot
        if level < 0:
            level = self.last_level
        objects = iter(objects)
        while True:
            room = mp_queue_room(&self.v)
            if room < 0:
                self.failed(errno, True)
            lock_deadline = deadline if deadline != 0 else mp_queue_soon()
            serializer = take_serializer()
            try:
                bundle.fill(self, serializer, objects, owner, room)
            except BaseException:
                try:
                    bundle.send(self, <uint32_t> level, lock_deadline)  # what came before it
                finally:
                    bundle.discard(self)
                raise
            finally:
                give_back(serializer)
            before = len(bundle.pieces)
            if before == 0 and (bundle.held is NOTHING or not self.has_room(deadline)):
                return sent
            try:
                bundle.send(self, <uint32_t> level, lock_deadline)
                if bundle.pieces and deadline != 0:
                    epoch = mp_room_enter(&self.v.q.putters)
                    try:
                        while bundle.pieces and self.await_room(&self.v.q.putters, deadline, &epoch):
                            bundle.send(self, <uint32_t> level, deadline)
                        bundle.send(self, <uint32_t> level, deadline)
                    finally:
                        mp_room_leave(&self.v.q.putters, epoch)
            except BaseException:
                bundle.discard(self)
                raise
            sent += before - len(bundle.pieces)
            if bundle.pieces:
                bundle.discard(self)
                return sent

    # ---- receiving

    cdef object unpack(self, mp_item *item):
        cdef object view
        if item.message.kind == MP_BODY_PLAIN:
            try:
                return read_plain(item.data, item.size)
            except MemoryError:
                raise
            except Exception as e:
                raise queue_error(MP_CORRUPT, False, self.v.id) from e
        try:
            if item.message.kind == MP_BODY_INLINE:
                return loads(PyBytes_FromStringAndSize(<char *> item.data, item.size))
            try:
                view = PyMemoryView_FromMemory(<char *> item.data, item.size, PyBUF_READ)
                return loads(view)
            finally:
                mp_piece_free(&self.v, &item.piece)
        except EOFError as e:
            # Of pickle itself, which says so where a pickle is cut off; from us it would mean that the queue is gone.
            if type(e) is EOFError and (e.__traceback__ is None or e.__traceback__.tb_next is None):
                raise queue_error(MP_CORRUPT, False, self.v.id) from e
            raise
        except UnpicklingError as e:
            e.add_note(f"received from message queue {self.v.id} (as ipcs -q shows it)")
            raise

    cdef int await_room(self, mp_room *room, int64_t deadline, uint32_t *epoch) except -1:
        """Waits for a ring; 0 if the deadline has passed."""
        cdef int outcome
        with nogil:
            outcome = mp_room_wait(self.v.f, room, deadline)
        if outcome == MP_TIMED_OUT:
            return 0
        if outcome == MP_INTERRUPTED or outcome == MP_TICK:
            PyErr_CheckSignals()
        elif outcome == MP_CORRUPT:
            self.failed(outcome, False)
        elif outcome != MP_OK:
            fail_bell(outcome)
        epoch[0] = mp_room_stay(room, epoch[0])
        return 1

    def get_unless_interrupted(self):
        """As get(); None when a signal handler has run. For messages that are not None, and queues without tasks."""
        cdef mp_item item
        cdef int outcome
        self.ensure()
        outcome = mp_queue_try_take(&self.v, &item)
        if outcome == MP_BUSY:
            with nogil:
                outcome = mp_queue_take(&self.v, &item, -1)
        while outcome == MP_EMPTY or outcome == MP_TICK:
            if outcome == MP_TICK:
                PyErr_CheckSignals()
            with nogil:
                outcome = mp_queue_await(&self.v, &item)
        if outcome == MP_INTERRUPTED:
            PyErr_CheckSignals()
            return None
        if outcome != MP_OK:
            self.failed(outcome, False)
        return self.unpack(&item)

    def get(self, block=True, timeout=None):
        """The next object, waited for if `block`, at most `timeout` seconds. Raises Empty; EOFError if the queue was
        removed. An error in unpickling is raised, too; the message is gone then."""
        cdef mp_item item
        cdef int outcome
        self.ensure()
        outcome = mp_queue_try_take(&self.v, &item)
        if outcome != MP_OK:
            outcome = self.take(&item, outcome, block, timeout)
            if outcome == MP_EMPTY or outcome == MP_TIMED_OUT:
                raise Empty
            if outcome != MP_OK:
                self.failed(outcome, False)
        if self.watch is None:
            return self.unpack(&item)
        try:
            return self.unpack(&item)
        finally:
            self.watch.look_again()

    cdef int take(self, mp_item *item, int outcome, object block, object timeout) except -1:
        """Ends what mp_queue_try_take() has begun."""
        cdef int64_t deadline
        try:
            deadline = deadline_if(block, timeout)
        except BaseException:
            mp_queue_return_token(&self.v, item)
            raise
        outcome = self.finish_take(item, outcome, deadline if deadline != 0 else mp_queue_soon())
        if outcome == MP_EMPTY and self.watch is not None:
            self.watch.look_again()
        if outcome == MP_EMPTY and deadline == 0:
            look_after(self.v.f)
        if outcome != MP_EMPTY or deadline == 0:
            return outcome
        if deadline > 0 or self.v.flags & MP_QUEUE_COUNTED:
            return self.wait_and_take(item, deadline)
        while outcome == MP_EMPTY or outcome == MP_TICK or outcome == MP_INTERRUPTED:
            if outcome != MP_EMPTY:
                PyErr_CheckSignals()
            with nogil:
                outcome = mp_queue_await(&self.v, item)
        return outcome

    cdef int finish_take(self, mp_item *item, int outcome, int64_t deadline) except -1:
        """What mp_queue_try_take() has begun; waits for the lock, and not for a message."""
        while outcome == MP_BUSY or outcome == MP_TICK or outcome == MP_INTERRUPTED:
            if outcome != MP_BUSY:
                PyErr_CheckSignals()
            with nogil:
                outcome = mp_queue_take(&self.v, item, deadline)
        return outcome

    cdef int wait_and_take(self, mp_item *item, int64_t deadline) except -1:
        """As finish_take(), waiting for a message in a room."""
        cdef int outcome = MP_EMPTY
        cdef uint32_t epoch = mp_room_enter(&self.v.q.getters)
        try:
            while True:
                outcome = MP_BUSY  # should a signal handler raise: we may have heard a ring
                outcome = self.finish_take(item, mp_queue_try_take(&self.v, item), deadline)
                if outcome != MP_EMPTY:
                    return outcome
                if self.watch is not None:
                    self.watch.look_again()
                if not self.await_room(&self.v.q.getters, deadline, &epoch):
                    outcome = MP_BUSY
                    outcome = self.finish_take(item, mp_queue_try_take(&self.v, item), deadline)
                    return outcome
        finally:
            mp_room_leave(&self.v.q.getters, epoch)
            if outcome != MP_OK and outcome != MP_EMPTY:  # a ring that we may have heard was for somebody who takes
                mp_room_ring(self.v.f, &self.v.q.getters, False)

    def get_many(self, uint32_t most, block=True, timeout=None):
        """The next objects, up to `most`: what is there, or if there is nothing, the first that comes. As get().

        If unpickling one fails, what it raised is raised, with the other objects in its attribute `received`.
        """
        cdef uint32_t n = 0, i
        cdef int outcome
        cdef int64_t deadline
        if most == 0:
            return []
        self.ensure()
        cdef uint32_t batch = min(most, BATCH)
        cdef mp_item *items = <mp_item *> PyMem_Malloc(batch * sizeof(mp_item))
        cdef list objects = []
        if items == NULL:
            raise MemoryError
        failure = None
        try:
            deadline = deadline_if(block, timeout)
            outcome = self.take_many(items, batch, &n, deadline if deadline != 0 else mp_queue_soon())
            if outcome == MP_EMPTY or outcome == MP_TIMED_OUT:
                if deadline > 0:
                    timeout = (deadline - mp_now_ns()) / 1e9
                objects.append(self.get(block, timeout))
                outcome = MP_OK
                if most > 1:
                    outcome = self.take_many(items, min(batch, most - 1), &n, mp_queue_soon())
                    if outcome != MP_CORRUPT:
                        outcome = MP_OK  # of an error the next call will hear
            if outcome != MP_OK:
                failure = queue_error(outcome, False, self.v.id)
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

    cdef int take_many(self, mp_item *items, uint32_t most, uint32_t *n, int64_t deadline) except -1:
        cdef int outcome = MP_TICK
        while outcome == MP_TICK or outcome == MP_INTERRUPTED:
            with nogil:
                outcome = mp_queue_take_many(&self.v, items, most, n, deadline)
            if outcome == MP_TICK or outcome == MP_INTERRUPTED:
                PyErr_CheckSignals()
        return outcome

    def poll(self, timeout=0.0):
        """Whether there is something in the queue, waited for at most `timeout` seconds (None: without a limit)."""
        cdef int64_t deadline
        cdef uint32_t epoch
        if self.size() != 0:
            return True
        deadline = deadline_if(True, timeout)
        if deadline == 0:
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
        cdef int outcome = MP_BUSY
        self.ensure()
        while outcome == MP_BUSY or outcome == MP_TICK or outcome == MP_INTERRUPTED:
            if outcome != MP_BUSY:
                PyErr_CheckSignals()
            with nogil:
                outcome = mp_queue_task_done(&self.v, -1)
        if outcome == MP_NONE_LEFT:
            raise ValueError("task_done() called too many times")
        if outcome != MP_OK:
            self.failed(outcome, False)

    def unfinished(self):
        """Objects in the queue, and those taken and not done."""
        cdef int64_t n = -1
        cdef int outcome = MP_BUSY
        self.ensure()
        while outcome == MP_BUSY or outcome == MP_TICK or outcome == MP_INTERRUPTED:
            if outcome != MP_BUSY:
                PyErr_CheckSignals()
            with nogil:
                n = mp_queue_unfinished(&self.v, -1)
                outcome = errno if n < 0 else MP_OK
        if outcome != MP_OK:
            self.failed(outcome, False)
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
        look_after(self.v.f)
        n = mp_queue_size(&self.v)
        if n < 0:
            self.failed(errno, False)
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
        mp_kind_remove(self.v.b)

    def usage(self):
        """(messages in the spill, bytes of shared blocks that have memory, of those in use, segments, waiting getters,
        waiting putters, waiting joiners, tasks taken and not done)"""
        cdef uint64_t nbytes, in_use, segments
        mp_arena_usage(&self.v, &nbytes, &in_use, &segments)
        return (
            self.v.q.spilled, nbytes, in_use, segments,
            mp_room_count(&self.v.q.getters) + mp_sleepers(self.v.f, self.v.index),
            mp_room_count(&self.v.q.putters), mp_room_count(mp_joiners(self.v.b)), self.v.q.pending)

    # ---- the end of the process

    cdef int await_hearing(self, int64_t deadline) except -1:
        """If this process has put something: until all who wait for a message know of it."""
        if self.sender >= 0 and self.sender == self.v.f.slot:
            with nogil:
                mp_queue_await_hearing(&self.v, deadline)
        return 0

    # ---- a file descriptor

    def watched_by(self, Watch watch):
        """`watch`, or None, is told when somebody of this process finds the queue empty."""
        self.watch = watch

    # ---- for tests

    def hold(self):
        """Takes the queue's lock, as every call does for a moment; 0, or why not. This process must not use the queue
        until it lets go."""
        self.ensure()
        return mp_queue_lock(&self.v, -1)

    def let_go(self):
        """After hold()."""
        mp_queue_unlock(&self.v)


cdef class Watch:
    """A file descriptor (eventfd) that is readable while the queue is not empty, kept so by a thread that runs run().

    It does not keep the queue's Python object alive beyond stop().
    """

    def __init__(self, MessageQueue queue):
        self.pid = os.getpid()
        self.queue = queue
        queue.ensure()
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        cdef int error = mp_watch_start(&queue.v, &self.w, self.fd)
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

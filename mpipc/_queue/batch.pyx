"""Several messages at once, with one lock and one token for all; what else queues do that is seldom done."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from mpipc._core.family cimport MP_CORRUPT, MP_EMPTY, MP_FULL, MP_OK, MP_TIMED_OUT
from mpipc._core.memory cimport mp_message_end
from mpipc._core.queue cimport (
    MP_BODY_INLINE,
    MP_BODY_PIECE,
    MP_BODY_PLAIN,
    MP_QUEUE_INLINE,
    MP_WAIT_MESSAGE,
    mp_arena_usage,
    mp_body,
    mp_body_size,
    mp_item,
    mp_joiners,
    mp_piece,
    mp_piece_free,
    mp_piece_sent,
    mp_queue_is_shut,
    mp_queue_send_many,
    mp_queue_soon,
    mp_queue_take_many,
    mp_queue_try_send,
    mp_queue_try_take,
    mp_queue_view,
    mp_room_count,
    mp_waits_count,
)
from mpipc._core.waits cimport deadline_if, wait_for
from mpipc._queue.calls cimport shut_down, waiting
from mpipc._queue.message_queue cimport MessageQueue
from mpipc._queue.plain cimport write_plain
from mpipc._queue.serializer cimport Serializer, claim, give_back, is_replaced, take_serializer

from mpipc._core.errors import queue_error
from mpipc._queue.serializer import dumps
from mpipc._stdlib.shut_down import ShutDown

# As many go at once: the lock is held while they are copied.
cdef uint32_t BATCH = 128
# And not more than this much shared memory is filled before the first of them is sent.
cdef uint64_t LARGE_BUNDLE = 8 << 20

cdef object NOTHING = object()

cdef struct sending:
    mp_queue_view *v
    const unsigned char *bodies
    uint64_t count
    uint32_t level
    uint64_t sent


cdef int send_bodies(void *what, int64_t deadline) noexcept nogil:
    cdef sending *s = <sending *> what
    cdef int outcome
    s.sent = mp_queue_send_many(s.v, s.bodies, s.count, s.level, deadline, &outcome)
    return outcome


cdef struct taking:
    mp_queue_view *v
    mp_item *items
    uint32_t most
    uint32_t count


cdef int take_messages(void *what, int64_t deadline) noexcept nogil:
    cdef taking *t = <taking *> what
    return mp_queue_take_many(t.v, t.items, t.most, &t.count, deadline)


cdef bint bundle_is_sent(void *what) except -1:
    cdef waiting *w = <waiting *> what
    cdef Bundle bundle = <Bundle> w.batch
    bundle.send(w.v, w.level, w.deadline)
    return not bundle.pieces


@cython.final
cdef class Bundle:
    """Messages that are sent together."""

    cdef unsigned char *bodies
    cdef size_t used
    cdef size_t room
    cdef uint64_t large  # bytes in pieces
    cdef list pieces     # for each message None, or the piece that it is in
    cdef object held     # the object that comes next, where there was no room for it
    cdef Py_ssize_t sent  # how many, of all that it had

    def __cinit__(self):
        self.pieces = []
        self.held = NOTHING

    def __dealloc__(self):
        PyMem_Free(self.bodies)

    cdef bint has_more(self):
        """Whether an object was held back."""
        return self.held is not NOTHING

    cdef int fill(self, mp_queue_view *v, Serializer serializer, object objects, object owner, int64_t room) except -1:
        """Adds objects, as an iterator gives them. One that costs more than a copy is held back if it is not among the
        first `room`."""
        self.large = 0
        while <uint64_t> len(self.pieces) < BATCH and self.large <= LARGE_BUNDLE:
            obj, self.held = self.held, NOTHING
            if obj is NOTHING:
                obj = next(objects, NOTHING)
            if obj is NOTHING:
                break
            if not self.add_plain(obj):
                if len(self.pieces) >= room:
                    self.held = obj
                    break
                try:
                    serializer.write_pickle_of(obj)
                    self.add(v, serializer)
                except MemoryError:
                    raise
                except Exception as e:
                    if owner is None or e is serializer.refused:
                        raise
                    owner._on_queue_feeder_error(e, obj)
                serializer.reset()
        return 0

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
        cdef uint32_t length = 0
        if not is_replaced:
            length = <uint32_t> write_plain(obj, body.body + 1, MP_QUEUE_INLINE)
        if length == 0:
            return False
        body.length = 1 + length
        body.body[0] = MP_BODY_PLAIN
        self.pieces.append(None)
        self.used += mp_body_size(1 + length)
        return True

    cdef int add(self, mp_queue_view *v, Serializer serializer) except -1:
        cdef mp_piece piece
        cdef uint32_t length = sizeof(mp_piece)
        cdef mp_body *body
        cdef bint inline = serializer.total <= MP_QUEUE_INLINE and serializer.carrier < 0
        if inline:
            length = <uint32_t> serializer.total
        body = self.next_body(length)
        body.length = 1 + length
        if inline:
            body.body[0] = MP_BODY_INLINE
            serializer.copy_to(body.body + 1)
            self.pieces.append(None)
        else:
            claim(v, serializer, &piece)
            self.large += piece.length
            body.body[0] = MP_BODY_PIECE
            memcpy(body.body + 1, &piece, length)
            self.pieces.append(PyBytes_FromStringAndSize(<char *> &piece, length))
        self.used += mp_body_size(1 + length)
        return 0

    cdef int send(self, mp_queue_view *v, uint32_t level, int64_t deadline) except -1:
        """Sends as many as there is room for, and keeps the others. Waits for the lock only."""
        cdef sending what
        cdef int outcome
        if not self.pieces:
            return 0
        what.v = v
        what.bodies = self.bodies
        what.count = len(self.pieces)
        what.level = level
        outcome = wait_for(send_bodies, &what, deadline)
        self.forget(v, what.sent)
        if outcome != MP_OK and outcome != MP_FULL and outcome != MP_TIMED_OUT:
            raise queue_error(outcome, True, v.id)
        return 0

    cdef void forget(self, mp_queue_view *v, uint64_t sent):
        """The first ones are the receivers'."""
        cdef size_t offset = 0
        self.sent += <Py_ssize_t> sent
        for piece in self.pieces[:sent]:
            offset += mp_body_size((<mp_body *> (self.bodies + offset)).length)
            if piece is not None:
                mp_piece_sent(v, <mp_piece *> PyBytes_AS_STRING(piece))
        del self.pieces[:sent]
        memmove(self.bodies, self.bodies + offset, self.used - offset)
        self.used -= offset

    cdef void discard(self, mp_queue_view *v):
        for piece in self.pieces:
            if piece is not None:
                mp_message_end(v, <mp_piece *> PyBytes_AS_STRING(piece))
        self.pieces.clear()
        self.used = 0


# ---- the queue -------------------------------------------------------------------------------------------------------

cdef class BatchQueue(MessageQueue):
    """A MessageQueue that sends and takes several objects at once, too, and pickles, and can be shut down; what
    mpipc.queues are made of."""

    def put_pickle(self, bytes pickled):
        """Sends an object that is pickled already, or what else receivers expect; waits for room. ValueError if it is
        empty."""
        cdef mp_item item
        cdef uint32_t length
        cdef int outcome
        cdef Serializer serializer
        if not pickled:
            raise ValueError("a message cannot be empty")
        self.ensure()
        self.sender = self.v.f.slot
        serializer = take_serializer()
        try:
            serializer.total = 0
            serializer.write(pickled)
            length = self.fill(&item, serializer)
        finally:
            give_back(serializer)
        outcome = mp_queue_try_send(&self.v, &item.message, length, self.last_level)
        self.send(&item, length, self.last_level, outcome, -1)

    def get_pickle(self):
        """The next object, waited for, as it is pickled. EOFError: the queue was removed."""
        cdef mp_item item
        cdef int outcome
        self.ensure()
        outcome = mp_queue_try_take(&self.v, &item)
        if outcome != MP_OK:
            self.take(&item, outcome, -1)
        if item.message.kind == MP_BODY_PLAIN or item.message.kind == MP_BODY_PIECE and item.piece.carrier != 0:
            return dumps(self.opened(&item, True))
        try:
            return PyBytes_FromStringAndSize(<char *> item.data, item.size)
        finally:
            if item.message.kind == MP_BODY_PIECE:
                mp_piece_free(&self.v, &item.piece)
            if self.watch is not None:
                self.watch.look_again()

    def put_many(self, objects, block=True, timeout=None, owner=None, int64_t level=-1):
        """Sends the objects in their order, many with one system call. As put(); returns how many were sent, which are
        fewer than all if there was not room for all. ShutDown has their number in its attribute `sent`."""
        cdef Bundle bundle = Bundle()
        self.ensure()
        self.sender = self.v.f.slot
        if level < 0:
            level = self.last_level
        try:
            return self.put_bundles(bundle, iter(objects), owner, <uint32_t> level, deadline_if(block, timeout))
        except ShutDown as e:
            e.sent = bundle.sent
            raise

    cdef Py_ssize_t put_bundles(
        self, object batch, object objects, object owner, uint32_t level, int64_t deadline
    ) except -1:
        """As put_many(), of a Bundle."""
        cdef Bundle bundle = <Bundle> batch
        cdef int64_t room, lock_deadline
        cdef waiting w
        cdef Serializer serializer
        while True:
            room = self.room()
            lock_deadline = deadline if deadline != 0 else mp_queue_soon()
            serializer = take_serializer()
            serializer.goes_to(self.block.family, self.views)
            try:
                bundle.fill(&self.v, serializer, objects, owner, room)
            except BaseException:
                try:
                    bundle.send(&self.v, level, lock_deadline)  # what came before it
                finally:
                    bundle.discard(&self.v)
                raise
            finally:
                give_back(serializer)
            if not bundle.pieces and not (bundle.has_more() and self.has_room(deadline)):
                return bundle.sent
            try:
                bundle.send(&self.v, level, lock_deadline)
                if bundle.pieces and deadline != 0:
                    w = self.wait(NULL)
                    w.level = level
                    w.batch = <PyObject *> bundle
                    self.wait_in_room(&self.v.q.putters, bundle_is_sent, &w, deadline)
            except BaseException:
                bundle.discard(&self.v)
                raise
            if bundle.pieces:
                bundle.discard(&self.v)
                return bundle.sent

    def get_many(self, uint32_t most, block=True, timeout=None):
        """The next objects, up to `most`: what is there, or if there is nothing, the first that comes. As get().

        If unpickling one fails, what it raised is raised, with the other objects in its attribute `received`.
        """
        cdef taking what
        cdef uint32_t i
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
            what = taking(&self.v, items, batch, 0)
            outcome = wait_for(take_messages, &what, deadline if deadline != 0 else mp_queue_soon())
            if outcome == MP_EMPTY or outcome == MP_TIMED_OUT:
                self.take(items, mp_queue_try_take(&self.v, items), deadline)
                objects.append(self.opened(items, self.views))
                what = taking(&self.v, items, min(batch, most - 1), 0)
                outcome = MP_OK
                if most > 1:
                    outcome = wait_for(take_messages, &what, mp_queue_soon())
                    if outcome != MP_CORRUPT:
                        outcome = MP_OK  # of an error the next call will hear
            if outcome != MP_OK and outcome != MP_CORRUPT:
                self.failed(outcome, False)  # of the queue, and not of one message among others
            if outcome == MP_CORRUPT:
                failure = queue_error(outcome, False, self.v.id)
            for i in range(what.count):
                try:
                    objects.append(self.unpack(&items[i], self.views))
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

    # ---- its end

    def shutdown(self, bint immediate=False):
        """Nothing is put from now on; with `immediate`, what is in the queue is dropped. Waits for nobody, but for a
        moment for who has the lock; should he not run, the memory of what was dropped is given back later."""
        cdef waiting w
        cdef int outcome
        self.ensure()
        w = self.wait(NULL)
        w.immediate = immediate
        outcome = wait_for(shut_down, &w, mp_queue_soon())
        if outcome != MP_OK and outcome != MP_TIMED_OUT:
            self.failed(outcome, False)
        if self.watch is not None:
            self.watch.look_again()

    @property
    def is_shutdown(self):
        return mp_queue_is_shut(&self.v)

    # ---- statistics

    def usage(self):
        """(messages in the spill, bytes of shared blocks that have memory, of those in use, segments, waiting getters,
        waiting putters, waiting joiners, tasks taken and not done)"""
        cdef uint64_t nbytes, in_use, segments
        mp_arena_usage(&self.v, &nbytes, &in_use, &segments)
        return (
            self.v.q.spilled, nbytes, in_use, segments,
            mp_room_count(&self.v.q.getters) + mp_waits_count(self.v.f, MP_WAIT_MESSAGE, self.v.index),
            mp_room_count(&self.v.q.putters), mp_room_count(mp_joiners(self.v.b)), self.v.q.pending)

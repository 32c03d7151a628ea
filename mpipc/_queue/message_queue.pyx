"""The compiled half of mpipc.queues: objects in and out of a message queue.

How messages travel, and what happens when a process dies on the way, stands in _core/src: queue.c, spill.c, pieces.c,
rooms.c. Here is what those know nothing of: pickling, exceptions, signal handlers and the GIL, which is released
where a call waits or copies much. How it waits stands in _core/waits.pxd: signal handlers run on every tick also while
somebody who does not run has the queue's lock. Whatever the core answers with MP_TICK or MP_INTERRUPTED has not been
done, and nothing is in our hands.
"""

import os
import pickle
import weakref
from queue import Empty

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mpipc._core.family cimport (
    MP_BUSY,
    MP_CORRUPT,
    MP_EMPTY,
    MP_FULL,
    MP_INTERRUPTED,
    MP_KIND_QUEUE,
    MP_NONE_LEFT,
    MP_OK,
    MP_SHUT_DOWN,
    MP_TICK,
    MP_TIMED_OUT,
    fail,
    look_after,
    make_queue,
    mp_block_abandon,
    mp_now_ns,
    new_block,
    seal,
)
from mpipc._core.memory cimport mp_message_end
from mpipc._core.queue cimport (
    MP_BODY_INLINE, MP_BODY_PIECE, MP_BODY_PLAIN, MP_QUEUE_COUNTED, MP_QUEUE_INLINE, MP_QUEUE_LEVELS, MP_QUEUE_PRIORITY,
    MP_QUEUE_VIEWS, MP_QUEUE_WORK,
    mp_arena_trim, mp_joiners, mp_item, mp_kind_remove, mp_piece, mp_piece_free, mp_piece_sent, mp_queue_await_hearing,
    mp_queue_close, mp_queue_is_shut, mp_queue_lock, mp_queue_make, mp_queue_open, mp_queue_return_token, mp_queue_room,
    mp_queue_size, mp_queue_soon, mp_queue_try_send, mp_queue_try_take, mp_queue_unlock, mp_room_enter, mp_room_leave,
    mp_room_ring, mp_watch_look_again, mp_watch_run, mp_watch_start, mp_watch_stop,
)
from mpipc._core.waits cimport (
    TURNS_NS, attempt_function, beside_greenlets, deadline_if, in_time, must_go_on, readable, wait_for, wait_once,
    wait_until,
)
from mpipc._queue.calls cimport (
    await_message,
    await_ring,
    count_unfinished,
    finish_task,
    send_message,
    take_message,
    waiting,
)
from mpipc._queue.carried cimport unpack_carried
from mpipc._queue.plain cimport read_plain, write_plain
from mpipc._queue.serializer cimport Serializer, claim, give_back, is_replaced, take_serializer

from mpipc._core.errors import queue_error

LEVELS = MP_QUEUE_LEVELS
INLINE = MP_QUEUE_INLINE

cdef object loads = pickle.loads
cdef object UnpicklingError = pickle.UnpicklingError


# ---- looks, by who waits in a room: see _core/waits.pxd --------------------------------------------------------------

cdef bint there_is_room(void *what) except -1:
    return (<MessageQueue> (<waiting *> what).queue).room() != 0


cdef bint there_is_something(void *what) except -1:
    return (<MessageQueue> (<waiting *> what).queue).is_ready()


cdef bint message_is_sent(void *what) except -1:
    """Or cannot be, but for lack of room: as `outcome` says."""
    cdef waiting *w = <waiting *> what
    w.outcome = mp_queue_try_send(w.v, &w.item.message, w.length, w.level)
    w.outcome = (<MessageQueue> w.queue).finish_send(w.item, w.length, w.level, w.outcome, w.deadline)
    return w.outcome != MP_FULL


cdef bint message_is_taken(void *what) except -1:
    """Or cannot be, but for lack of one: as `outcome` says."""
    cdef waiting *w = <waiting *> what
    cdef MessageQueue queue = <MessageQueue> w.queue
    w.outcome = MP_BUSY  # should a signal handler raise: we may have heard a ring
    w.outcome = queue.finish_take(w.item, mp_queue_try_take(w.v, w.item), w.deadline)
    if w.outcome == MP_EMPTY and queue.watch is not None:
        queue.watch.look_again()
    return w.outcome != MP_EMPTY


cdef bint all_is_done(void *what) except -1:
    """Or was, since the call."""
    cdef waiting *w = <waiting *> what
    return (<MessageQueue> w.queue).unfinished() <= 0 or w.v.q.zeros != w.zeros


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
    `work`: see work.pyx.
    """

    def __init__(
        self, uint64_t maxsize=0, bint priority=False, bint counted=False, Block block=None, bint views=False,
        bint work=False,
    ):
        cdef int error
        if block is None:
            block = new_block(MP_KIND_QUEUE)
            make_queue(block, 0o600)
            error = mp_queue_make(
                block.family.f, block.index, maxsize,
                (MP_QUEUE_PRIORITY if priority else 0) | (MP_QUEUE_COUNTED if counted else 0)
                | (MP_QUEUE_VIEWS if views else 0) | (MP_QUEUE_WORK if work else 0))
            if error != MP_OK:
                mp_block_abandon(block.family.f, block.index)
                fail(error, "creating a message queue")
            seal(block)
        self.block = block
        if mp_queue_open(&self.v, block.f, block.index) != MP_OK:
            raise MemoryError("mpipc: there is no memory for one more queue in this process")
        self.is_open = True
        self.views = self.v.flags & MP_QUEUE_VIEWS != 0
        self.sender = -1
        _all.add(self)
        self.last_level = MP_QUEUE_LEVELS - 1 if self.v.flags & MP_QUEUE_PRIORITY else 0

    def __dealloc__(self):
        if self.is_open:
            mp_queue_close(&self.v)

    cdef int ensure(self) except -1:
        if self.v.f.slot < 0:
            self.block.ensure()
        return 0

    cdef int failed(self, int error, bint sending) except -1:
        raise queue_error(error, sending, self.v.id)

    # ---- waiting

    cdef waiting wait(self, mp_item *item) noexcept:
        """For the functions of calls.pxd, and the looks above."""
        cdef waiting w
        memset(&w, 0, sizeof(w))
        w.queue = <PyObject *> self
        w.v = &self.v
        w.item = item
        return w

    cdef bint wait_in_room(self, mp_room *room, look_function look, waiting *w, int64_t deadline) except -1:
        """Looks, and waits for a ring, until a look finds what is waited for; False if the deadline has passed."""
        cdef int outcome
        w.room = room
        w.deadline = deadline
        w.epoch = mp_room_enter(room)
        try:
            outcome = wait_until(look, await_ring, w, deadline)
        finally:
            mp_room_leave(room, w.epoch)
        if outcome == MP_CORRUPT:
            self.failed(outcome, False)
        return in_time(outcome)

    cdef bint wait_for_message(self, look_function look, waiting *w, int64_t deadline) except -1:
        """As wait_in_room(), among the getters. Beside greenlets, it waits for the descriptor: then they run meanwhile,
        where those of multiprocessing do."""
        cdef int64_t left = TURNS_NS
        cdef int descriptor = -1
        reader = self.reader() if self.reader is not None and beside_greenlets(deadline >= 0) else None
        w.deadline = deadline
        while reader is not None:
            descriptor = reader.watched()
            if descriptor < 0:
                break
            if look(w):
                return True
            if deadline >= 0:
                left = min(deadline - mp_now_ns(), <int64_t> TURNS_NS)
                if left <= 0:
                    return False
            self.watch.look_again()
            readable(descriptor, 1e-9 * left)
            look_after(self.v.f)
        return self.wait_in_room(&self.v.q.getters, look, w, deadline)

    cdef int64_t call(self, attempt_function attempt, bint *none_left) except -1:
        """One of the calls that concern tasks; what it has counted."""
        cdef waiting w
        cdef int outcome
        self.ensure()
        w = self.wait(NULL)
        outcome = wait_for(attempt, &w, -1)
        none_left[0] = outcome == MP_NONE_LEFT
        if outcome != MP_OK and outcome != MP_NONE_LEFT:
            self.failed(outcome, False)
        return w.unfinished

    # ---- sending

    cdef int64_t room(self) except -1:
        """How many more objects there is room for, as far as can be told now."""
        cdef int64_t room = mp_queue_room(&self.v)
        if room < 0:
            self.failed(errno, True)
        return room

    cdef bint has_room(self, int64_t deadline) except -1:
        """Whether a bounded queue has room, waited for until the deadline (0: not at all): what is large is not pickled
        and copied before there is. Somebody else may be faster then."""
        cdef waiting w
        if self.room() != 0:
            return True
        if deadline == 0:
            return False
        w = self.wait(NULL)
        return self.wait_in_room(&self.v.q.putters, there_is_room, &w, deadline)

    cdef int finish_send(self, mp_item *item, uint32_t length, uint32_t level, int outcome, int64_t deadline) except -1:
        """What mp_queue_try_send() has begun; waits for the lock, and not for room."""
        cdef waiting w
        if outcome != MP_BUSY and not must_go_on(outcome):
            return outcome
        w = self.wait(item)
        w.length = length
        w.level = level
        return wait_for(send_message, &w, deadline)

    cdef int wait_and_send(self, mp_item *item, uint32_t length, uint32_t level, int64_t deadline) except -1:
        """As finish_send(), waiting for room."""
        cdef waiting w = self.wait(item)
        w.length = length
        w.level = level
        w.outcome = MP_FULL
        try:
            self.wait_in_room(&self.v.q.putters, message_is_sent, &w, deadline)
        finally:
            if w.outcome != MP_OK and w.outcome != MP_FULL:  # a ring that we may have heard was for somebody who sends
                mp_room_ring(self.v.f, &self.v.q.putters, False)
        return w.outcome

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
                mp_message_end(&self.v, &item.piece)
            raise
        if item.message.kind == MP_BODY_PIECE:
            if outcome == MP_OK:
                mp_piece_sent(&self.v, &item.piece)
            else:
                mp_message_end(&self.v, &item.piece)
        if outcome == MP_OK:
            return 1
        if outcome == MP_FULL or outcome == MP_TIMED_OUT:
            return 0
        return self.failed(outcome, True)

    cdef uint32_t fill(self, mp_item *item, Serializer serializer) except 0:
        """Makes a message of what a serializer has, in a piece if it is long. Its length."""
        if serializer.total <= MP_QUEUE_INLINE and serializer.carrier < 0:
            item.message.kind = MP_BODY_INLINE
            serializer.copy_to(item.message.data)
            return <uint32_t> serializer.total
        claim(&self.v, serializer, &item.piece)
        item.message.kind = MP_BODY_PIECE
        memcpy(item.message.data, &item.piece, sizeof(mp_piece))
        return sizeof(mp_piece)

    def put(self, obj, bint block=True, timeout=None, owner=None, int64_t level=-1):
        """Sends obj; returns whether there was room for it, waiting for that if `block`, at most `timeout` seconds.
        ShutDown: the queue was shut down.

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
        length = 0 if is_replaced else <uint32_t> write_plain(obj, item.message.data, MP_QUEUE_INLINE)
        if length != 0:
            item.message.kind = MP_BODY_PLAIN
            outcome = mp_queue_try_send(&self.v, &item.message, length, <uint32_t> level)
            if outcome == MP_OK:
                return True
            return self.send(&item, length, <uint32_t> level, outcome, deadline_if(block, timeout)) == 1
        deadline = deadline_if(block, timeout)
        if mp_queue_is_shut(&self.v):
            self.failed(MP_SHUT_DOWN, True)
        if self.v.b.size != 0 and not self.has_room(deadline):
            return False
        serializer = take_serializer()
        serializer.goes_to(self.block.family, self.views)
        try:
            try:
                serializer.write_pickle_of(obj)
            except MemoryError:
                raise
            except Exception as e:
                if owner is None or e is serializer.refused:
                    raise
                owner._on_queue_feeder_error(e, obj)
                return True
            length = self.fill(&item, serializer)
        finally:
            give_back(serializer)
        outcome = mp_queue_try_send(&self.v, &item.message, length, <uint32_t> level)
        return self.send(&item, length, <uint32_t> level, outcome, deadline) == 1

    # ---- receiving

    cdef object unpack(self, mp_item *item, bint views):
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
            if item.piece.carrier != 0:
                return unpack_carried(&self.v, self.block.family, item, views, &self.copied, True)
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

    cdef object opened(self, mp_item *item, bint views):
        """What was taken, of which the watch is told."""
        if self.watch is None:
            return self.unpack(item, views)
        try:
            return self.unpack(item, views)
        finally:
            self.watch.look_again()

    def get_unless_interrupted(self):
        """As get(); None when a signal handler has run. For messages that are not None, and queues without tasks."""
        cdef mp_item item
        cdef waiting w
        cdef int outcome
        self.ensure()
        outcome = mp_queue_try_take(&self.v, &item)
        if outcome != MP_OK:
            w = self.wait(&item)
            if outcome == MP_BUSY:
                outcome = wait_once(take_message, &w, -1)
            while outcome == MP_EMPTY or outcome == MP_TICK:
                outcome = wait_once(await_message, &w, -1)
            if outcome == MP_INTERRUPTED:
                return None
            if outcome != MP_OK:
                self.failed(outcome, False)
        return self.unpack(&item, self.views)

    def get(self, block=True, timeout=None, copy=None):
        """The next object, waited for if `block`, at most `timeout` seconds. Raises Empty; ShutDown; EOFError if it
        was removed. An error in unpickling is raised, too; the message is gone then. `copy` None: as the queue does."""
        cdef mp_item item
        cdef int outcome
        cdef int64_t deadline
        self.ensure()
        outcome = mp_queue_try_take(&self.v, &item)
        if outcome != MP_OK:
            try:
                deadline = deadline_if(block, timeout)
            except BaseException:
                mp_queue_return_token(&self.v, &item)
                raise
            self.take(&item, outcome, deadline)
        return self.opened(&item, self.views if copy is None else not copy)

    cdef int take(self, mp_item *item, int outcome, int64_t deadline) except -1:
        """Ends what mp_queue_try_take() has begun. Raises what get() does."""
        outcome = self.finish_take(item, outcome, deadline if deadline != 0 else mp_queue_soon())
        if outcome == MP_EMPTY and self.watch is not None:
            self.watch.look_again()
        if outcome == MP_EMPTY and deadline == 0:
            look_after(self.v.f)
        elif outcome == MP_EMPTY:
            outcome = self.wait_and_take(item, deadline)
        if outcome == MP_EMPTY or outcome == MP_TIMED_OUT:
            raise Empty
        return 0 if outcome == MP_OK else self.failed(outcome, False)

    cdef int finish_take(self, mp_item *item, int outcome, int64_t deadline) except -1:
        """What mp_queue_try_take() has begun; waits for the lock, and not for a message."""
        cdef waiting w
        if outcome != MP_BUSY and not must_go_on(outcome):
            return outcome
        w = self.wait(item)
        return wait_for(take_message, &w, deadline)

    cdef int wait_and_take(self, mp_item *item, int64_t deadline) except -1:
        """As finish_take(), waiting for a message: in msgrcv(2), or, where that cannot be, in a room."""
        cdef waiting w = self.wait(item)
        w.outcome = MP_EMPTY
        if deadline < 0 and not self.v.flags & MP_QUEUE_COUNTED and not beside_greenlets():
            while w.outcome == MP_EMPTY:
                w.outcome = wait_for(await_message, &w, -1)
            return w.outcome
        try:
            self.wait_for_message(message_is_taken, &w, deadline)
        finally:
            if w.outcome != MP_OK and w.outcome != MP_EMPTY:  # a ring that we may have heard was for somebody who takes
                mp_room_ring(self.v.f, &self.v.q.getters, False)
        return w.outcome

    def poll(self, timeout=0.0):
        """Whether get() would not wait: there is something in the queue, or it was shut down. Waited for at most
        `timeout` seconds (None: without a limit)."""
        cdef int64_t deadline
        cdef waiting w
        if self.is_ready():
            return True
        deadline = deadline_if(True, timeout)
        if deadline == 0:
            return False
        w = self.wait(NULL)
        try:
            return self.wait_for_message(there_is_something, &w, deadline)
        finally:
            mp_room_ring(self.v.f, &self.v.q.getters, False)  # the ring we may have heard, for somebody who takes

    # ---- tasks

    def task_done(self):
        """One of the taken objects is done. ValueError if none is unfinished."""
        cdef bint none_left
        self.call(finish_task, &none_left)
        if none_left:
            raise ValueError("task_done() called too many times")

    cpdef int64_t unfinished(self) except -1:
        """Objects in the queue, and those taken and not done."""
        cdef bint none_left
        return self.call(count_unfinished, &none_left)

    def join(self):
        """Waits until no task is unfinished, or has come to that since the call."""
        cdef waiting w = self.wait(NULL)
        w.zeros = self.v.q.zeros
        self.wait_in_room(mp_joiners(self.v.b), all_is_done, &w, -1)

    # ---- what there is

    cdef bint is_ready(self) except -1:
        """Whether get() would not wait."""
        return mp_queue_is_shut(&self.v) or self.size() != 0

    cpdef int64_t size(self) except -1:
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
        mp_kind_remove(self.v.f, self.v.b)

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

    def read_by(self, reader):
        """Who has a descriptor of it, if need be: reader.watched() is that, or -1 if there can be none. It is referred
        to weakly."""
        self.reader = weakref.ref(reader)

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

    cpdef int look_again(self) except -1:
        """If the queue is empty, the descriptor is not readable when this returns."""
        if self.pid == os.getpid():
            mp_watch_look_again(&self.queue.v, &self.w)
        return 0

    def stop(self):
        """Ends run(). Only in the process that made it."""
        # Not a cycle any more: nobody need wait for the garbage collection to let go of the queue.
        self.queue.watch = None
        if self.pid == os.getpid():
            mp_watch_stop(&self.queue.v, &self.w)

"""The compiled half of mpipc.broadcast: objects into a log in shared memory, and out of it by cursors.

What is shared, and what happens when a process dies on the way, stands in _core/src/broadcast.c. Here are pickling,
exceptions, signal handlers and the GIL, which is released where a call waits or copies much. How it waits stands in
_core/waits.pxd.
"""

import pickle
from queue import Empty

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.types cimport pid_t

from mpipc._core.broadcast cimport (
    MP_BROADCAST_DROP, MP_PLACE_GET, MP_PLACE_PUT, MP_SUBSCRIPTIONS, mp_broadcast_begin, mp_broadcast_cancel,
    mp_broadcast_cell, mp_broadcast_close, mp_broadcast_init, mp_broadcast_is_shut, mp_broadcast_kept,
    mp_broadcast_open, mp_broadcast_publish, mp_broadcast_round, mp_broadcast_shutdown, mp_broadcast_size,
    mp_broadcast_view, mp_broadcast_waiting, mp_letter, mp_subscribe, mp_subscription, mp_subscription_at,
    mp_subscription_behind, mp_subscription_lost, mp_subscription_next, mp_subscription_of, mp_subscription_take,
)
from mpipc._core.family cimport (
    MP_BUSY,
    MP_CORRUPT,
    MP_EMPTY,
    MP_FULL,
    MP_KIND_BROADCAST,
    MP_KIND_SUBSCRIPTION,
    MP_NONE_LEFT,
    MP_OK,
    MP_SHUT_DOWN,
    MP_TIMED_OUT,
    Block,
    fail,
    adopted,
    look_after,
    make_segment,
    mp_block_at,
    mp_cell_leave,
    mp_cell_wait,
    new_block,
    seal,
)
from mpipc._core.queue cimport MP_QUEUE_INLINE, mp_queue_soon
from mpipc._core.waits cimport deadline_if, in_time, wait_for, wait_until
from mpipc._queue.plain cimport read_plain, write_plain
from mpipc._queue.serializer cimport Serializer, give_back, is_replaced, take_serializer

from mpipc._core.errors import broadcast_error

cdef object loads = pickle.loads
cdef object UnpicklingError = pickle.UnpicklingError

cdef uint64_t LONG_COPY = 1 << 18  # copying this much takes longer than giving up the GIL and getting it back

# How a message is written.
cdef enum:
    PICKLE
    PLAIN


# ---- what is waited for ----------------------------------------------------------------------------------------------

cdef struct wish:
    mp_broadcast_view *v
    mp_subscription *s  # of who gets
    mp_letter *letter
    pid_t pid
    int64_t cell        # -1: none yet
    int64_t deadline
    int outcome         # of the last look


cdef inline bint is_of_parent(wish *w) noexcept:
    """Whether a signal handler has forked, and this is the child: it was its parent who had come so far."""
    return w.v.f.pid != w.pid or w.v.f.slot < 0


# The cell is taken before the look: who comes after that rings in it. In a child the wait is over, and begins anew.

cdef int have_cell(wish *w, uint32_t place) except -1:
    w.cell = mp_broadcast_cell(w.v, w.cell, place)
    if w.cell < 0:
        fail(errno, "waiting for a broadcast")
    return 0


cdef int begin(void *what, int64_t deadline) noexcept nogil:
    cdef wish *w = <wish *> what
    return mp_broadcast_begin(w.v, w.letter, deadline)


cdef bint there_is_room(void *what) except -1:
    """Or there will be none, as `outcome` says. Waits for the lock, and not for room."""
    cdef wish *w = <wish *> what
    w.outcome = MP_BUSY
    if is_of_parent(w):
        return True
    have_cell(w, MP_PLACE_PUT)
    w.outcome = mp_broadcast_begin(w.v, w.letter, 0)
    if w.outcome == MP_BUSY:
        w.outcome = wait_for(begin, w, w.deadline)
    return w.outcome != MP_FULL


cdef bint there_is_something(void *what) except -1:
    cdef wish *w = <wish *> what
    if is_of_parent(w):
        return True
    have_cell(w, MP_PLACE_GET)
    return mp_subscription_next(w.v, w.s, w.letter) != MP_EMPTY


cdef int sleep_in_cell(void *what, int64_t deadline) noexcept nogil:
    cdef wish *w = <wish *> what
    return mp_cell_wait(w.v.f, <uint32_t> w.cell, deadline)


cdef inline void leave_cell(wish *w) noexcept:
    if w.cell >= 0 and not is_of_parent(w):
        mp_cell_leave(w.v.f, <uint32_t> w.cell)


# ---- the log ---------------------------------------------------------------------------------------------------------

cdef class Log:
    """The messages that were put, at most `maxsize` of them, of `maxbytes` bytes. With `drop`, who reads too slowly
    loses the oldest; else put() waits for him.

    ValueError: so large a log cannot be."""

    cdef readonly Block block
    cdef mp_broadcast_view v
    cdef bint is_open

    def __init__(self, uint64_t maxsize=0, uint64_t maxbytes=0, bint drop=False, Block block=None):
        cdef int error
        cdef uint64_t size
        if block is None:
            maxbytes = mp_broadcast_round(maxbytes)
            size = mp_broadcast_size(maxsize, maxbytes)
            if size == <uint64_t> -1:
                raise ValueError(f"a Broadcast cannot keep {maxsize} messages and {maxbytes} bytes")
            block = new_block(MP_KIND_BROADCAST)
            make_segment(block, size, 0o600)
            mp_broadcast_init(block.b, maxsize, maxbytes, MP_BROADCAST_DROP if drop else 0)
            seal(block)
        self.block = block
        error = mp_broadcast_open(&self.v, block.f, block.index)
        if error != MP_OK:
            raise broadcast_error(error, "opening a broadcast", block.id)
        self.is_open = True

    def __dealloc__(self):
        if self.is_open:
            mp_broadcast_close(&self.v)

    cdef int ensure(self) except -1:
        if self.v.f.slot < 0:
            self.block.ensure()
        return 0

    cdef int failed(self, int error, str what, uint64_t size=0) except -1:
        raise broadcast_error(error, what, self.block.id, size, self.v.maxbytes)

    cdef wish wish_for(self, mp_letter *letter, int64_t deadline) noexcept:
        return wish(&self.v, NULL, letter, self.v.f.pid, -1, deadline, MP_OK)

    cdef int begin(self, mp_letter *letter, int64_t deadline) except -1:
        """As mp_broadcast_begin(), waiting for the lock, and for room until the deadline (0: not for that)."""
        cdef wish w
        cdef int outcome = mp_broadcast_begin(&self.v, letter, 0)
        if outcome == MP_BUSY:
            w = self.wish_for(letter, deadline if deadline != 0 else mp_queue_soon())
            outcome = wait_for(begin, &w, w.deadline)
        if outcome == MP_FULL and deadline == 0:
            look_after(self.v.f)
        while outcome == MP_FULL and deadline != 0:
            w = self.wish_for(letter, deadline)
            try:
                outcome = MP_TIMED_OUT if not in_time(wait_until(there_is_room, sleep_in_cell, &w, deadline)) \
                    else MP_FULL if w.outcome == MP_BUSY else w.outcome
            finally:
                leave_cell(&w)
            if is_of_parent(&w):
                self.ensure()
        return outcome

    def put(self, obj, bint block=True, timeout=None):
        """Appends obj; returns whether there was room for it, waiting for that if `block`, at most `timeout` seconds.

        ShutDown; ValueError: it is too large; or what pickling it raises. Nothing was put then.
        """
        cdef unsigned char[MP_QUEUE_INLINE] small
        cdef mp_letter letter
        cdef Serializer serializer = None
        cdef int outcome
        self.ensure()
        if mp_broadcast_is_shut(&self.v):
            self.failed(MP_SHUT_DOWN, "putting")
        letter.kind = PLAIN
        letter.length = 0 if is_replaced else <uint64_t> write_plain(obj, small, MP_QUEUE_INLINE)
        if letter.length == 0:
            letter.kind = PICKLE
            serializer = take_serializer()
        try:
            if serializer is not None:
                serializer.write_pickle_of(obj)
                letter.length = <uint64_t> serializer.total
            outcome = self.begin(&letter, deadline_if(block, timeout))
            if outcome == MP_OK:
                outcome = self.append(&letter, small, serializer)
        finally:
            if serializer is not None:
                give_back(serializer)
        if outcome == MP_FULL or outcome == MP_TIMED_OUT or outcome == MP_BUSY:
            return False
        if outcome != MP_OK and outcome != MP_NONE_LEFT:  # without subscriptions, nobody gets it
            self.failed(outcome, "putting into a broadcast", letter.length)
        return True

    cdef int append(self, mp_letter *letter, unsigned char *small, Serializer serializer) except -1:
        """What begin() has found room for."""
        try:
            if serializer is None:
                memcpy(letter.data, small, letter.length)
            else:
                serializer.copy_to(letter.data)
        except BaseException:
            mp_broadcast_cancel(&self.v)
            raise
        return mp_broadcast_publish(&self.v, letter)

    def subscribe(self):
        """A new Cursor, for what is put from now on. OSError: there is no room for one more."""
        cdef Block block
        cdef int error
        self.ensure()
        block = seal(new_block(MP_KIND_SUBSCRIPTION, self.block.family))
        error = mp_subscribe(&self.v, block.index)
        if error != MP_OK:
            self.failed(error, "subscribing to a broadcast")
        return Cursor(self, block)

    def shutdown(self, bint immediate=False):
        """Nothing is put any more; with `immediate`, nothing is got either."""
        self.ensure()
        mp_broadcast_shutdown(&self.v, immediate)

    @property
    def is_shutdown(self):
        return mp_broadcast_is_shut(&self.v)

    @property
    def maxsize(self):
        return self.v.maxsize

    @property
    def maxbytes(self):
        return self.v.maxbytes

    @property
    def drops(self):
        return self.v.drops

    def subscriptions(self):
        """Of each: pids of the processes that have it, messages that are there for it, and how many it has lost."""
        cdef mp_subscription *s
        cdef uint32_t place
        cdef int64_t index
        self.ensure()
        look_after(self.v.f)
        found = []
        for place in range(min(self.v.c.high, <uint32_t> MP_SUBSCRIPTIONS)):
            index = mp_subscription_at(&self.v, place)
            if index >= 0:
                s = mp_subscription_of(mp_block_at(self.v.f, <uint32_t> index))
                # One that is on its way to a process, or has just arrived, is held by a slot beside that process's.
                pids = sorted({pid for pid in self.block.family.holders_of(<uint32_t> index) if pid != 0})
                found.append((pids, mp_subscription_behind(&self.v, s), mp_subscription_lost(&self.v, s)))
        return found

    def usage(self):
        """Messages that are kept for somebody, their bytes, and how many threads wait to get and to put."""
        cdef uint64_t size
        cdef uint64_t messages
        self.ensure()
        messages = mp_broadcast_kept(&self.v, &size)
        return (messages, size, mp_broadcast_waiting(&self.v, MP_PLACE_GET),
                mp_broadcast_waiting(&self.v, MP_PLACE_PUT))


# ---- a cursor --------------------------------------------------------------------------------------------------------

cdef class Cursor:
    """Where a subscription is in the log. Who shares it, by inheritance or as an argument of a process, shares the
    messages, each of which is got once.

    OSError (ESTALE): it was left here, and then by all others."""

    cdef readonly Log log
    cdef Block _block
    cdef mp_subscription *s
    cdef uint32_t index
    cdef uint32_t serial

    def __init__(self, Log log not None, Block block not None):
        self.log = log
        self._block = block
        self.s = mp_subscription_of(block.b)
        self.index = block.index
        self.serial = block.serial

    def leave(self):
        """This process does not count as one of those who have it until it uses it again."""
        self._block = None

    cdef Block held(self):
        """What keeps the subscription there."""
        self.log.ensure()
        if self._block is None:
            family = self.log.block.family
            self._block = adopted(family, self.index, self.serial, "taking over an object from the parent process")
        return self._block

    @property
    def block(self):
        return self.held()

    cdef int wait(self, mp_letter *letter, int64_t deadline) except -1:
        """Until there is something to be looked at. Raises Empty when the deadline has passed."""
        cdef wish w = self.log.wish_for(letter, deadline)
        w.s = self.s
        try:
            if not in_time(wait_until(there_is_something, sleep_in_cell, &w, deadline)):
                raise Empty
        finally:
            leave_cell(&w)
        if is_of_parent(&w):
            self.log.ensure()
        return 0

    def get(self, block=True, timeout=None):
        """The next object, waited for if `block`, at most `timeout` seconds. Raises Empty; ShutDown; or what unpickling
        it raises, and it is gone then."""
        cdef mp_broadcast_view *v = &self.log.v
        cdef unsigned char[MP_QUEUE_INLINE] small
        cdef mp_letter letter
        cdef int64_t deadline = -2  # not asked for yet
        cdef int outcome
        self.held()
        while True:
            outcome = mp_subscription_next(v, self.s, &letter)
            if outcome == MP_EMPTY:
                if deadline == -2:
                    deadline = deadline_if(block, timeout)
                if deadline == 0:
                    look_after(v.f)
                    raise Empty
                self.wait(&letter, deadline)
                continue
            if outcome == MP_OK and letter.kind == PLAIN and letter.length > MP_QUEUE_INLINE:
                outcome = MP_CORRUPT
            if outcome == MP_CORRUPT and not mp_subscription_take(v, self.s, &letter):
                continue
            if outcome != MP_OK:
                self.log.failed(outcome, "getting from a broadcast")
            if letter.kind == PLAIN:
                memcpy(small, letter.data, letter.length)
                if mp_subscription_take(v, self.s, &letter):
                    return self.unpacked(small, letter.length)
            else:
                pickled = copied(&letter)
                if mp_subscription_take(v, self.s, &letter):
                    return self.unpickled(pickled)
            PyErr_CheckSignals()  # others may be faster again and again

    cdef object unpacked(self, unsigned char *data, uint64_t length):
        try:
            return read_plain(data, <Py_ssize_t> length)
        except MemoryError:
            raise
        except Exception as e:
            raise broadcast_error(MP_CORRUPT, "", self.log.block.id) from e

    cdef object unpickled(self, bytes pickled):
        try:
            return loads(pickled)
        except EOFError as e:
            # Of pickle itself, which says so where a pickle is cut off.
            if type(e) is EOFError and (e.__traceback__ is None or e.__traceback__.tb_next is None):
                raise broadcast_error(MP_CORRUPT, "", self.log.block.id) from e
            raise
        except UnpicklingError as e:
            e.add_note(f"got from a broadcast, shared memory segment {self.log.block.id} (as ipcs -m shows it)")
            raise

    def behind(self):
        """How many messages are there for it."""
        self.held()
        return mp_subscription_behind(&self.log.v, self.s)

    @property
    def lost(self):
        self.held()
        return mp_subscription_lost(&self.log.v, self.s)


cdef bytes copied(mp_letter *letter):
    cdef bytes made = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> letter.length)
    cdef char *target = PyBytes_AS_STRING(made)
    if letter.length < LONG_COPY:
        memcpy(target, letter.data, letter.length)
    else:
        with nogil:
            memcpy(target, letter.data, letter.length)
    return made

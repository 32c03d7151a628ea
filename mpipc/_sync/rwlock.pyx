"""The compiled half of mpipc.synchronize.RWLock. The protocol stands in _core/src/rwlock.c.

Which threads of this process read is known here alone: the shared memory has only how many there are. Changes of shared
state are made with the GIL held; only sleeping is done without it.
"""

from weakref import WeakValueDictionary

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.types cimport pid_t

from mpipc._core.family cimport (
    GETNCNT,
    MP_BUSY,
    MP_KIND_RWLOCK,
    MP_LOCK_DIED,
    MP_LOCK_INSIDE,
    MP_LOCK_OWNER,
    MP_OK,
    MP_RW_READ,
    MP_RW_WRITE,
    MP_SLOTS,
    Block,
    fail,
    fail_bell,
    look_after,
    mp_bell_get,
    mp_block,
    mp_cell_leave,
    mp_cell_wait,
    mp_family,
    mp_lock_mine,
    mp_lock_wait,
    mp_rw_cell,
    mp_rw_count,
    mp_rw_init,
    mp_rw_read_cancel,
    mp_rw_read_enroll,
    mp_rw_read_look,
    mp_rw_read_release,
    mp_rw_read_try,
    mp_rw_read_within,
    mp_rw_role,
    mp_rw_write_begin,
    mp_rw_write_cancel,
    mp_rw_write_look,
    mp_rw_write_release,
    mp_rw_write_try,
    mp_slot_pid,
    mp_this_thread,
    new_block,
    seal,
)
from mpipc._core.waits cimport deadline_if, in_time, wait_long_for, wait_until
from mpipc._sync.primitives cimport Shared


# ---- what is waited for ----------------------------------------------------------------------------------------------

cdef struct wish:
    mp_family *f
    pid_t pid
    uint32_t index
    uint32_t tenure  # in which it has enrolled, of a reader
    int64_t cell  # -1: none yet
    bint granted


cdef inline bint is_of_parent(wish *w) noexcept:
    """Whether a signal handler has forked, and this is the child: it was its parent who had come so far."""
    return w.f.pid != w.pid or w.f.slot < 0


cdef int have_cell(wish *w, mp_rw_role role) except -1:
    w.cell = mp_rw_cell(w.f, w.index, w.cell, role)
    if w.cell < 0:
        fail(errno, "waiting for an RWLock")
    return 0


# The cell is taken before the look: who comes after that rings in it. In a child the wait is over, and begins anew.

cdef bint may_read(void *what) except -1:
    cdef wish *w = <wish *> what
    if is_of_parent(w):
        return True
    have_cell(w, MP_RW_READ)
    w.granted = mp_rw_read_look(w.f, w.index, w.tenure)
    return w.granted


cdef bint may_write(void *what) except -1:
    cdef wish *w = <wish *> what
    if is_of_parent(w):
        return True
    have_cell(w, MP_RW_WRITE)
    w.granted = mp_rw_write_look(w.f, w.index)
    return w.granted


cdef int sleep_in_cell(void *what, int64_t deadline) noexcept nogil:
    cdef wish *w = <wish *> what
    return mp_cell_wait(w.f, <uint32_t> w.cell, deadline)


cdef int acquire_writers_lock(void *what, int64_t deadline) noexcept nogil:
    cdef wish *w = <wish *> what
    return mp_lock_wait(w.f, w.index, deadline)


# ---- who has what ----------------------------------------------------------------------------------------------------

cdef struct Turn:
    uint32_t thread
    uint32_t reads  # how many times it has acquired the lock to read
    uint32_t waits  # whether it waits to read; a signal handler that runs meanwhile may do so, too


@cython.final
@cython.no_gc
cdef class Turns:
    """What the threads of this process have of one lock, whichever objects they have it by."""

    cdef object __weakref__
    cdef pid_t pid
    cdef Turn *rows
    cdef uint32_t count
    cdef uint32_t room

    def __dealloc__(self):
        PyMem_Free(self.rows)

    cdef Turn *of(self, uint32_t thread) noexcept:
        """NULL: it has nothing."""
        cdef uint32_t i
        for i in range(self.count):
            if self.rows[i].thread == thread:
                return &self.rows[i]
        return NULL

    cdef int reserve(self) except -1:
        """So that add() does not fail."""
        cdef Turn *rows
        if self.count == self.room:
            rows = <Turn *> PyMem_Realloc(self.rows, (self.room + 4) * sizeof(Turn))
            if rows == NULL:
                raise MemoryError
            self.rows = rows
            self.room += 4
        return 0

    cdef void add(self, uint32_t thread, int reads, int waits) noexcept:
        """To what the thread has; what has come to nothing goes."""
        cdef Turn *turn = self.of(thread)
        if turn == NULL:
            turn = &self.rows[self.count]
            self.count += 1
            turn[0] = Turn(thread, 0, 0)
        turn.reads += reads
        turn.waits += waits
        if turn.reads == 0 and turn.waits == 0:
            self.count -= 1
            turn[0] = self.rows[self.count]


_turns = WeakValueDictionary()  # Turns, by address and serial of the block


cdef Turns turns_of(Block block):
    key = <size_t> block.b, block.serial
    cdef Turns turns = _turns.get(key)
    if turns is None:
        turns = _turns[key] = Turns()
    return turns


@cython.final
cdef class Hold:
    """What reading() and writing() return. It may be used again, and within itself."""

    cdef RWLockBase lock
    cdef object timeout
    cdef bint write

    def __enter__(self):
        cdef int64_t deadline = deadline_if(True, self.timeout)
        if not (self.lock.write_until(deadline) if self.write else self.lock.read_until(deadline)):
            raise TimeoutError(f"{self.lock!r} was not to be had within {self.timeout} seconds")
        return True

    def __exit__(self, exc_type=None, exc=None, traceback=None):
        if self.write:
            self.lock.release_write()
        else:
            self.lock.release_read()


cdef Hold hold(RWLockBase lock, object timeout, bint write):
    cdef Hold made = Hold.__new__(Hold)
    made.lock = lock
    made.timeout = timeout
    made.write = write
    return made


cdef class RWLockBase(Shared):
    """A lock that many threads may have to read, or one to write. What it means: mpipc.synchronize.RWLock."""

    cdef mp_family *f
    cdef mp_block *b
    cdef Turns turns

    def __init__(self, Block block=None):
        if block is None:
            block = new_block(MP_KIND_RWLOCK)
            mp_rw_init(block.b)
            seal(block)
        self.block = block
        self.f = block.f
        self.b = block.b
        self.turns = turns_of(block)

    def reading(self, timeout=None):
        """For `with lock.reading():`. Raises TimeoutError if it waits longer than `timeout` seconds, if not None."""
        return hold(self, timeout, False)

    def writing(self, timeout=None):
        """For `with lock.writing():`. Raises TimeoutError if it waits longer than `timeout` seconds, if not None."""
        return hold(self, timeout, True)

    def acquire_read(self, block=True, timeout=None):
        """Takes the lock to read, beside others; waits for it if `block`, at most `timeout` seconds if that is not
        None. Returns whether it was taken.

        Who reads already, or writes, has it at once. RuntimeError for a signal handler that has interrupted its thread
        while that waits to write.
        """
        return self.read_until(deadline_if(block, timeout))

    def acquire_write(self, block=True, timeout=None):
        """Takes the lock to write, alone; waits for it if `block`, at most `timeout` seconds if that is not None.
        Returns whether it was taken.

        Who writes already has it at once, and has to release it as often. RuntimeError for a thread that reads: it
        would wait for itself.
        """
        return self.write_until(deadline_if(block, timeout))

    def release_read(self):
        """Gives back what acquire_read() took. RuntimeError if this thread does not read."""
        cdef uint32_t thread = mp_this_thread()
        cdef Turn *turn = self.turn_of(thread)
        if turn == NULL or turn.reads == 0:
            raise RuntimeError("cannot release an RWLock that this thread does not read")
        if turn.reads == 1:
            mp_rw_read_release(self.f, self.block.index)
        self.turns.add(thread, -1, 0)

    def release_write(self):
        """Gives back what acquire_write() took. RuntimeError if this thread does not write."""
        cdef int error
        if not self.is_writing():
            raise RuntimeError("cannot release an RWLock that this thread does not write")
        if self.b.lock.depth > 1:
            self.b.lock.depth -= 1
            return
        error = mp_rw_write_release(self.f, self.block.index)
        if error != MP_OK:
            fail_bell(error)

    cdef bint is_writing(self) noexcept:
        return mp_lock_mine(self.f, self.b) and self.b.lock.word & MP_LOCK_INSIDE

    cdef Turn *turn_of(self, uint32_t thread) noexcept:
        """NULL: the thread has nothing, or it is its parent's."""
        if self.f.slot < 0 or self.turns.pid != self.f.pid:
            return NULL
        return self.turns.of(thread)

    cdef int arrive(self) except -1:
        """From now on this process is a member of the family, and what its parent had is not its own."""
        if self.f.slot < 0:
            self.block.ensure()
        if self.turns.pid != self.f.pid:
            self.turns.count = 0
            self.turns.pid = self.f.pid
        return self.turns.reserve()

    cdef bint read_until(self, int64_t deadline) except -1:
        cdef uint32_t thread = mp_this_thread()
        cdef Turn *turn
        cdef int outcome
        self.arrive()
        turn = self.turns.of(thread)
        if turn != NULL and turn.reads > 0:
            turn.reads += 1
            return True
        if not mp_lock_mine(self.f, self.b):
            outcome = mp_rw_read_try(self.f, self.block.index)
        elif self.is_writing():
            outcome = mp_rw_read_within(self.f, self.block.index)
        else:
            raise RuntimeError("cannot acquire an RWLock to read in a signal handler, while its thread waits to write")
        if outcome == MP_BUSY:
            return self.wait_to_read(thread, deadline)
        if outcome != MP_OK:
            fail(outcome, "reading an RWLock")
        self.turns.add(thread, 1, 0)
        return True

    cdef bint wait_to_read(self, uint32_t thread, int64_t deadline) except -1:
        cdef wish w = wish(self.f, self.f.pid, self.block.index, 0, -1, False)
        cdef int error
        if deadline == 0:
            look_after(self.f)
            return False
        error = mp_rw_read_enroll(w.f, w.index, &w.tenure)
        if error != MP_OK:
            fail(error, "waiting for an RWLock")
        self.turns.add(thread, 0, 1)
        try:
            if in_time(wait_until(may_read, sleep_in_cell, &w, deadline)) and not w.granted:
                return self.read_until(deadline)
            return w.granted
        finally:
            if not is_of_parent(&w):
                if not w.granted:
                    mp_rw_read_cancel(w.f, w.index, w.tenure)
                self.turns.add(thread, w.granted, -1)
                if w.cell >= 0:
                    mp_cell_leave(w.f, <uint32_t> w.cell)

    cdef bint write_until(self, int64_t deadline) except -1:
        cdef wish w
        self.arrive()
        if mp_lock_mine(self.f, self.b):
            if not self.is_writing():
                raise RuntimeError("cannot acquire an RWLock in a signal handler, while its thread waits to write")
            self.b.lock.depth += 1
            return True
        if self.turns.of(mp_this_thread()) != NULL:
            raise RuntimeError("cannot acquire an RWLock to write in a thread that reads, or waits to read")
        w = wish(self.f, self.f.pid, self.block.index, 0, -1, False)
        if mp_rw_write_try(w.f, w.index):
            return True
        if deadline == 0:
            look_after(w.f)
            return False
        return in_time(wait_long_for(acquire_writers_lock, &w, deadline)) and self.wait_for_readers(deadline)

    cdef bint wait_for_readers(self, int64_t deadline) except -1:
        """The writers' lock has been taken."""
        cdef wish w = wish(self.f, self.f.pid, self.block.index, 0, -1, False)
        mp_rw_write_begin(w.f, w.index)
        try:
            if in_time(wait_until(may_write, sleep_in_cell, &w, deadline)) and not w.granted:
                return self.write_until(deadline)
            return w.granted
        finally:
            if not is_of_parent(&w):
                if not w.granted:
                    mp_rw_write_cancel(w.f, w.index)
                if w.cell >= 0:
                    mp_cell_leave(w.f, <uint32_t> w.cell)

    @property
    def owner_died(self):
        """True from the moment that recovery took the lock from a dead writer until the next writer releases it.

        Who has the lock then, to read or to write, should check what it protects: the dead writer may have left it half
        changed. A reader that dies, or a writer that dies while it waits, changes nothing. See Lock.owner_died.
        """
        return (self.b.lock.word & MP_LOCK_DIED) != 0

    def _is_writing(self):
        """Whether this thread has it to write."""
        return self.is_writing()

    def _reads(self):
        """How many times this thread has acquired it to read."""
        cdef Turn *turn = self.turn_of(mp_this_thread())
        return 0 if turn == NULL else turn.reads

    def _writer_is_here(self):
        """Whether a thread of this process has it to write."""
        return self._writer_pid() is not None and (self.b.lock.word & MP_LOCK_OWNER) == self.f.me

    def _writer_pid(self):
        """None: nobody writes."""
        cdef uint64_t word = self.b.lock.word
        cdef uint64_t owner = word & MP_LOCK_OWNER
        if not word & MP_LOCK_INSIDE or not 0 < owner <= MP_SLOTS:
            return None
        return mp_slot_pid(self.f.seg.slots[owner - 1].word)

    def _counts(self):
        """How many threads read, wait to read, and wait to write, in all processes."""
        cdef uint64_t word
        look_after(self.f)
        counts = mp_rw_count(self.f, self.block.index)
        word = self.b.lock.word
        waits_for_readers = (word & MP_LOCK_OWNER) != 0 and not word & MP_LOCK_INSIDE
        return counts.readers, counts.waiting, mp_bell_get(self.f, self.block.index, GETNCNT) + waits_for_readers

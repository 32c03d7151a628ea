"""The compiled halves of Condition and Barrier: wait cells, which are exact about who is there.

The protocols, and what happens when a process dies in the middle of one, stand in _core/src: cells.c, barrier.c. As in
primitives.pyx, changes of shared state are made with the GIL held, and only sleeping is done without it.
"""

cimport cython
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from mpipc._core.family cimport (
    MP_BARRIER_PASSED,
    MP_BARRIER_WAITING,
    MP_CELL_NOTIFIED,
    MP_CELL_WAITING,
    MP_KIND_BARRIER,
    MP_KIND_CONDITION,
    Block,
    fail,
    mp_barrier_end,
    mp_barrier_enter,
    mp_barrier_outcome,
    mp_barrier_waiting,
    mp_cell_cancel,
    mp_cell_enter,
    mp_cell_leave,
    mp_cell_state,
    mp_cell_wait,
    mp_cells_notify,
    mp_cells_waiting,
    mp_family,
    new_block,
    seal,
)
from mpipc._core.waits cimport deadline_if, in_time, wait_until
from mpipc._sync.primitives cimport LockBase, Shared


# ---- what this room waits for: see _core/waits.pxd -------------------------------------------------------------------

cdef struct place:
    mp_family *f
    uint32_t index  # of the block
    uint32_t cell
    uint64_t generation


cdef bint is_notified(void *what) except -1:
    cdef place *at = <place *> what
    return mp_cell_state(at.f.seg.cells[at.cell].word) != MP_CELL_WAITING


cdef bint cycle_has_ended(void *what) except -1:
    cdef place *at = <place *> what
    return mp_barrier_outcome(at.f, at.index, at.cell, at.generation) != MP_BARRIER_WAITING


cdef int await_notification(void *what, int64_t deadline) noexcept nogil:
    cdef place *at = <place *> what
    return mp_cell_wait(at.f, at.cell, deadline)


# ---- cells -----------------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear
cdef class Cell:
    """The place of one waiting thread. It is given back when it is left, or when the last reference goes: an exception
    of a signal handler may come between any two steps of the methods that use it."""

    cdef mp_family *f
    cdef Block block
    cdef uint32_t number
    cdef uint64_t generation
    cdef bint taken

    def __dealloc__(self):
        self.give_back(True)

    def leave(self):
        """Gives it back. A notification that has reached it and was not reported by wait() goes to the next waiter."""
        self.give_back(True)

    cdef place at(self) noexcept:
        return place(self.f, self.block.index, self.number, self.generation)

    cdef void give_back(self, bint pass_on) noexcept:
        cdef uint32_t state
        if not self.taken:
            return
        self.taken = False
        if mp_cell_cancel(self.f, self.number):
            return
        state = mp_cell_state(self.f.seg.cells[self.number].word)
        if pass_on and state == MP_CELL_NOTIFIED and self.block.b.kind == MP_KIND_CONDITION:
            mp_cells_notify(self.f, self.block.index, 1)
        mp_cell_leave(self.f, self.number)


cdef Cell taken_cell(Block block, int64_t number, uint64_t generation):
    cdef Cell cell = Cell.__new__(Cell)
    if number < 0:
        fail(errno, "waiting for a condition or at a barrier")
    cell.f = block.f
    cell.block = block
    cell.number = <uint32_t> number
    cell.generation = generation
    cell.taken = True
    return cell


@cython.final
cdef class Waiters(Shared):
    """The waiters of a Condition: wait cells that are exact about who is there (_core/src/cells.c)."""

    def __init__(self, Block block=None):
        self.block = block if block is not None else seal(new_block(MP_KIND_CONDITION))

    def enter(self):
        """Registers this thread as a waiter and returns its cell. To be called with the condition's lock held."""
        return taken_cell(self.block, mp_cell_enter(self.block.f, self.block.index, 0, 0), 0)

    def wait(self, Cell cell not None, timeout=None):
        """Waits for the notification and gives the cell back. Returns whether it was notified."""
        cdef int64_t deadline = deadline_if(True, timeout)
        cdef place at = cell.at()
        cdef bint notified
        if deadline != 0:
            in_time(wait_until(is_notified, await_notification, &at, deadline))
        notified = not mp_cell_cancel(cell.f, cell.number)
        if notified:
            mp_cell_leave(cell.f, cell.number)
        cell.taken = False
        return notified

    def notify(self, int64_t n):
        """Wakes the n waiters that came first, all of them if n < 0. Returns how many there were."""
        return mp_cells_notify(self.block.f, self.block.index, n)

    def count(self):
        """Live waiters that have not been notified yet."""
        return mp_cells_waiting(self.block.f, self.block.index)


@cython.final
cdef class BarrierState(LockBase):
    """The shared state of a Barrier, guarded by a lock of its own, which is recursive as multiprocessing's is.

    How a cycle ends stands in _core/src/barrier.c.
    """

    def __init__(self, uint32_t parties, Block block=None):
        cdef Block handle
        if block is None:
            handle = new_block(MP_KIND_BARRIER)
            handle.b.condition.parties = parties
            block = seal(handle)
        LockBase.__init__(self, True, block)

    @property
    def parties(self):
        return self.block.b.condition.parties

    @property
    def broken(self):
        return self.block.b.condition.broken != 0

    @property
    def generation(self):
        """How many cycles have ended."""
        return self.block.b.condition.generation

    def waiting(self):
        """How many wait in the present cycle and live, and the lowest place that none of them has."""
        cdef uint32_t place
        cdef uint32_t count = mp_barrier_waiting(self.block.f, self.block.index, &place)
        return count, place

    def enter(self, uint32_t place):
        """Registers this thread in the present cycle. Lock held."""
        cdef uint64_t generation
        cdef int64_t number = mp_barrier_enter(self.block.f, self.block.index, place, &generation)
        return taken_cell(self.block, number, generation)

    def end_cycle(self, bint broken_now, bint stay_broken):
        """Ends the present cycle, broken or not, and wakes its waiters. Lock held."""
        mp_barrier_end(self.block.f, self.block.index, broken_now, stay_broken)

    cdef int outcome(self, Cell cell):
        return mp_barrier_outcome(self.block.f, self.block.index, cell.number, cell.generation)

    def wait(self, Cell cell not None, timeout=None):
        """Waits for the end of the cycle. "passed", "broken" or "timeout"."""
        cdef int64_t deadline = deadline_if(True, timeout)
        cdef place at = cell.at()
        cdef int outcome
        if deadline != 0:
            in_time(wait_until(cycle_has_ended, await_notification, &at, deadline))
        outcome = self.outcome(cell)
        if outcome == MP_BARRIER_WAITING:
            return "timeout"
        return "passed" if outcome == MP_BARRIER_PASSED else "broken"

    def give_up(self, Cell cell not None):
        """After a timeout: breaks the barrier, unless the cycle has just ended. "passed" or "broken". Lock held."""
        cdef int outcome = self.outcome(cell)
        if outcome == MP_BARRIER_WAITING:
            self.end_cycle(True, True)
        return "passed" if outcome == MP_BARRIER_PASSED else "broken"

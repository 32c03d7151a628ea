# distutils: language = c
"""Memory for RawArray and its like: pieces of a few System V segments, the arenas.

Two things are kept apart, so that a process that is killed can spoil nothing for the others:

- *Which memory of an arena is free* is known to the process that created the arena, and to nobody else: the tables of
  extents.pxd are private memory, and only that process allocates from the arena. A forked child starts without any.
- *Who uses a piece* stands in the family's table of control blocks: a piece has a block of its own, in which every
  process with a handle on it is noted as a holder. Recovery strikes it out when the process dies.

So a piece is free again when its creator has dropped it and its block is gone, which says that nobody else has it
either. While somebody does, the creator keeps it on a list, and looks again whenever it allocates or frees. A process
that has a piece has its arena attached, and a handle on the arena's block. Arenas whose creator is dead live until the
last piece in them is dropped.

An arena is marked for removal (IPC_RMID) as soon as it is attached: the kernel frees it with the last process that has
it attached, even if nobody is left to clean up. Its block is there for a kill between shmget() and the mark, and for
whoever looks at what a family has.

What fits into the 64 bytes of a control block (most Values do) lies there, and needs no arena.

There are no locks. A finalizer may run at any allocation of a Python object, and in any thread; so the tables change
only in stretches that neither make Python objects nor let go of the GIL.
"""

import gc
import weakref
from multiprocessing import context as _mp_context

from cpython.object cimport PyObject
from cython cimport no_gc, no_gc_clear
from libc.errno cimport EACCES, EINVAL, ENOMEM, ENOSPC, ENOTUNIQ, ESTALE, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from mpipc._core.family cimport (
    MP_KIND_DATA,
    MP_KIND_PIECE,
    MP_KIND_SEGMENT,
    Block,
    Family,
    fail,
    fail_call,
    make_segment,
    mp_block,
    mp_block_abandon,
    mp_block_shmat,
    mp_block_is_live,
    mp_block_serial,
    new_block,
    seal,
)
from mpipc._memory.extents cimport FREE, extents, extents_delete, extents_new, give, take
from mpipc.sysv._buffer cimport show_bytes

import os

from mpipc._core import register_reserve

cdef extern from "<sys/shm.h>" nogil:
    enum:
        IPC_RMID
    void *shmat(int shmid, const void *address, int flags)
    int shmdt(const void *address)
    int shmctl(int shmid, int command, void *buffer)

cdef extern from "<sys/mman.h>" nogil:
    enum:
        MADV_REMOVE
    int madvise(void *address, size_t length, int advice)

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

__all__ = ["Arena", "Heap", "Piece"]

cdef enum:
    IN_BLOCK = 64           # bytes; pieces up to this size lie in their control block
    LARGE = 32768           # bytes; pieces from this size on are whole pages, in arenas without small ones
    PAGE = 4096             # bytes; unit of arenas for large pieces, and what segments are made of
    LINE = 64               # bytes; unit of arenas for small pieces: no two pieces share a cache line
    FIRST_ARENA = 65536     # bytes of the first arena for small pieces
    RESERVE = 1048576       # bytes; one empty arena of each kind up to this size is kept for what comes next
    GIVE_BACK = 1048576     # bytes; from here on the pages of a piece go back to the kernel when it is freed
    LOOKS = 16              # pending pieces that are looked at by each allocation
    LOOKS_ON_FREE = 2

cdef unsigned long generation = 0  # grows in every forked child; what an arena's tables were made in


cdef void _count_fork() noexcept nogil:
    global generation
    generation += 1

pthread_atfork(NULL, NULL, _count_fork)


# ---- arenas ---------------------------------------------------------------------------------------------------------

_attached = weakref.WeakValueDictionary()  # (address of the arena's block, serial) -> Arena


@no_gc
cdef class Arena:
    """A segment that this process has attached, for as long as it has a piece of it or allocates from it."""

    cdef readonly Block block
    cdef char *start
    cdef readonly size_t size
    cdef size_t unit
    cdef extents *map          # NULL if another process created the arena
    cdef unsigned long made_in  # generation
    cdef PyObject *heap        # borrowed; the Heap that allocates from it, NULL if none does
    cdef object __weakref__

    def __dealloc__(self):
        if self.start != NULL:
            shmdt(self.start)
        if self.map != NULL:
            extents_delete(self.map)

    cdef int enter(self) except -1:
        _attached[<size_t> self.block.b, self.block.serial] = self
        return 0

    cdef void clean(self, char *start, uint32_t first, uint32_t units) noexcept:
        """Zeros for a piece that was just taken, without touching what nobody has touched."""
        cdef uint32_t fresh = self.map.fresh
        cdef size_t used
        if first + units > fresh:
            self.map.fresh = first + units
        if first >= fresh:
            return
        used = (min(first + units, fresh) - first) * self.unit
        if used < GIVE_BACK or self.unit != PAGE or madvise(start, used, MADV_REMOVE) != 0:
            memset(start, 0, used)


cdef Arena new_arena(size_t size, size_t unit):
    cdef Arena arena = Arena.__new__(Arena)
    cdef Block block
    cdef int shmid, error
    cdef void *start
    if size // unit >= FREE:  # 8 TiB
        fail_call(ENOMEM, "shmget", {"size": size})
    block = new_block(MP_KIND_SEGMENT)
    shmid = make_segment(block, size, 0o600)
    start = shmat(shmid, NULL, 0)
    error = errno
    if start != <void *> -1:
        arena.start = <char *> start
        arena.map = extents_new(<uint32_t> (size // unit))
        error = ENOMEM
    if arena.map == NULL:
        mp_block_abandon(block.family.f, block.index)
        fail_call(error, "shmat", {"shmid": shmid, "shmaddr": None, "shmflg": 0})
    shmctl(shmid, IPC_RMID, NULL)
    arena.block = seal(block)
    arena.size = size
    arena.unit = unit
    arena.made_in = generation
    arena.enter()
    return arena


cdef Arena attached_arena(Block block):
    """The arena of another process, attached if it is not yet."""
    cdef Arena arena = _attached.get((<size_t> block.b, block.serial))
    cdef uint64_t length = 0
    cdef void *start
    if arena is not None:
        return arena
    arena = Arena.__new__(Arena)
    start = mp_block_shmat(block.f, block.index, &length)
    if start == NULL:
        if errno == ESTALE or errno == EACCES or errno == ENOTUNIQ:
            fail(errno, "attaching shared memory")
        fail_call(errno, "shmat", {"shmid": block.b.id, "shmaddr": None, "shmflg": 0})
    arena.start = <char *> start
    arena.size = length
    arena.block = block
    arena.enter()
    return arena


# ---- pieces ---------------------------------------------------------------------------------------------------------

cdef inline bint gone(mp_block *b, uint32_t serial) noexcept nogil:
    return not mp_block_is_live(b.word) or mp_block_serial(b.word) != serial


@no_gc
cdef class Piece:
    """Shared memory of `size` bytes, all zero at first: an object with the buffer protocol.

    It goes to child processes by inheritance, like everything of multiprocessing. Its memory is used for something else
    when no process has it any more, which includes views of it.
    """

    cdef readonly Block block
    cdef readonly Arena arena  # None if the piece lies in its block
    cdef char *start
    cdef readonly Py_ssize_t size
    cdef uint32_t first        # unit of the arena
    cdef bint taken            # from the tables of an arena of this process, or of the one that it was forked from

    def __dealloc__(self):
        cdef mp_block *b = NULL
        cdef uint32_t serial = 0
        if self.block is not None:
            b = self.block.b
            serial = self.block.serial
            self.block = None
        if self.taken and self.arena.made_in == generation:
            if b == NULL or gone(b, serial):
                give_back(self.arena, self.first)
            elif self.arena.heap != NULL:
                (<Heap> self.arena.heap).remember(b, serial, self.arena, self.first)
        if self.arena is not None and self.arena.heap != NULL:
            (<Heap> self.arena.heap).look_again(LOOKS_ON_FREE)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        show_bytes(buffer, self, self.start, self.size, False, flags)

    def __len__(self):
        return self.size

    def __repr__(self):
        return f"<Piece of {self.size} bytes at {<size_t> self.start:#x}>"

    def __reduce__(self):
        popen = _mp_context.get_spawning_popen()
        if popen is not None and self.arena is not None:
            # The child attaches the arena by its id, which works while somebody has it attached: this process, and
            # should it die before the child has come, the reaper.
            vars(popen).setdefault("_mpipc_arenas", set()).add(self.arena)
        return _rebuild_piece, (self.block, None if self.arena is None else self.arena.block, self.size)


def _rebuild_piece(Block block not None, Block segment, Py_ssize_t size):
    cdef Piece piece = Piece.__new__(Piece)
    cdef uint64_t offset = block.b.more.heap.offset
    piece.size = size
    if segment is None:
        if not 0 <= size <= IN_BLOCK:
            raise ValueError(f"a piece of {size} bytes is not in a block of {IN_BLOCK}")
        piece.start = <char *> block.b.bytes
    else:
        piece.arena = attached_arena(segment)
        if size < 0 or <size_t> size > piece.arena.size or offset > piece.arena.size - <size_t> size:
            raise ValueError(f"a piece of {size} bytes at {offset} is not in an arena of {piece.arena.size} bytes")
        piece.start = piece.arena.start + offset
    piece.block = block
    return piece


cdef void give_back(Arena arena, uint32_t first) noexcept:
    cdef size_t size = give(arena.map, first) * arena.unit
    if size >= GIVE_BACK and arena.unit == PAGE:
        madvise(arena.start + first * arena.unit, size, MADV_REMOVE)
    if arena.map.used == 0 and arena.heap != NULL:
        (<Heap> arena.heap).emptied(arena)


# ---- the heap -------------------------------------------------------------------------------------------------------

cdef struct pending_piece:
    mp_block *block
    uint32_t serial
    uint32_t first
    PyObject *arena  # borrowed: the heap has it, since it is not empty


cdef list _heaps = []  # a weak reference to each


cdef list living_heaps():
    return [heap for heap in [<object> ref() for ref in _heaps] if heap is not None]


@no_gc_clear
cdef class Heap:
    """Allocates pieces from arenas of this process. A program has one; more do not disturb each other."""

    cdef list small
    cdef list large
    cdef unsigned long made_in
    cdef pending_piece *pending
    cdef size_t pending_count
    cdef size_t pending_room
    cdef size_t cursor
    cdef object __weakref__

    def __cinit__(self):
        self.small = []
        self.large = []
        self.made_in = generation
        _heaps[:] = [ref for ref in _heaps if ref() is not None]
        _heaps.append(weakref.ref(self))

    def __dealloc__(self):
        self.orphan(self.small)
        self.orphan(self.large)
        free(self.pending)

    cdef void orphan(self, list arenas) noexcept:
        cdef Arena arena
        for arena in arenas:
            arena.heap = NULL

    def malloc(self, size_t size):
        """A piece of `size` bytes, all zero, aligned to a cache line.

        OSError (mpipc.sysv.LimitError) if a limit of the system is met, with its name and what raises it.
        """
        cdef Piece piece = Piece.__new__(Piece)
        cdef Block block
        piece.size = size
        if size <= IN_BLOCK:
            piece.block = seal(new_block(MP_KIND_DATA))
            piece.start = <char *> piece.block.b.bytes
            return piece
        if self.made_in != generation:
            self.forget()
        self.look_again(LOOKS)
        block = new_block(MP_KIND_PIECE)
        try:
            self.place(piece, block.family)
        except BaseException:
            mp_block_abandon(block.family.f, block.index)
            raise
        block.b.more.heap.arena = piece.arena.block.index | <uint64_t> piece.arena.block.serial << 32
        block.b.more.heap.offset = piece.start - piece.arena.start
        block.b.more.heap.size = size
        piece.block = seal(block)
        return piece

    cdef int place(self, Piece piece, Family family) except -1:
        cdef size_t unit = PAGE if piece.size >= LARGE else LINE
        cdef list arenas = self.large if unit == PAGE else self.small
        cdef size_t needed = (<size_t> piece.size + unit - 1) // unit
        cdef uint32_t units = <uint32_t> needed
        cdef Arena arena
        if needed < FREE:
            # Old arenas first, so that the younger ones become empty. Before the heap grows, look everywhere.
            if self.fits(piece, family, arenas, units, False):
                return 0
            self.look_again(self.pending_count)
            if self.fits(piece, family, arenas, units, True):
                return 0
        arena = self.grow(arenas, needed * unit, unit)
        take(arena.map, units, &piece.first, True)
        self.hand_out(piece, arena, units)
        arenas.append(arena)
        arena.heap = <PyObject *> self
        return 0

    cdef bint fits(self, Piece piece, Family family, list arenas, uint32_t units, bint thorough) noexcept:
        cdef Arena arena
        for arena in arenas:
            if arena.block.family is family and take(arena.map, units, &piece.first, thorough):
                self.hand_out(piece, arena, units)
                return True
        return False

    cdef void hand_out(self, Piece piece, Arena arena, uint32_t units) noexcept:
        piece.taken = True
        piece.arena = arena
        piece.start = arena.start + piece.first * arena.unit
        arena.clean(piece.start, piece.first, units)

    cdef Arena grow(self, list arenas, size_t size, size_t unit):
        """A new arena for at least `size` bytes. They grow with the heap, so that their number stays small."""
        cdef Arena arena
        cdef size_t total = 0
        cdef size_t wanted
        for arena in arenas:
            total += arena.size
        wanted = max(size, total // 4) if unit == PAGE else max(size, total // 2, <size_t> FIRST_ARENA)
        wanted = (wanted + PAGE - 1) // PAGE * PAGE
        try:
            return new_arena(wanted, unit)
        except OSError as error:
            if wanted - size < PAGE or error.errno not in (EINVAL, ENOMEM, ENOSPC):
                raise
        return new_arena((size + PAGE - 1) // PAGE * PAGE, unit)

    cdef void emptied(self, Arena arena) noexcept:
        """Lets go of an arena that has become empty, unless it is the one to be kept."""
        cdef list arenas = self.large if arena.unit == PAGE else self.small
        cdef Arena other
        cdef Py_ssize_t i, place = -1
        cdef bint keep = arena.size <= RESERVE
        for i in range(len(arenas)):
            other = <Arena> arenas[i]
            if other is arena:
                place = i
            elif other.map.used == 0:
                keep = False
        if not keep and place >= 0:
            arena.heap = NULL
            del arenas[place]

    cdef void remember(self, mp_block *block, uint32_t serial, Arena arena, uint32_t first) noexcept:
        """This process has dropped a piece that somebody else still has."""
        cdef pending_piece *more
        cdef size_t room
        if self.pending_count == self.pending_room:
            room = 2 * self.pending_room + 16
            more = <pending_piece *> realloc(self.pending, room * sizeof(pending_piece))
            if more == NULL:
                return  # the piece stays taken until the process ends, which is the least of its troubles
            self.pending = more
            self.pending_room = room
        self.pending[self.pending_count] = pending_piece(block, serial, first, <PyObject *> arena)
        self.pending_count += 1

    cdef void look_again(self, size_t looks) noexcept:
        """Frees what nobody has any more among the next so many pending pieces."""
        cdef pending_piece entry
        if looks > self.pending_count:
            looks = self.pending_count
        for _ in range(looks):
            if self.cursor >= self.pending_count:
                self.cursor = 0
            entry = self.pending[self.cursor]
            if gone(entry.block, entry.serial):
                self.pending_count -= 1
                self.pending[self.cursor] = self.pending[self.pending_count]
                give_back(<Arena> entry.arena, entry.first)
            else:
                self.cursor += 1

    def forget(self):
        """In a forked child: the arenas are the parent's. What the child has inherited of them it keeps by itself."""
        self.made_in = generation
        self.pending_count = 0
        self.orphan(self.small)
        self.orphan(self.large)
        self.small = []
        self.large = []

    def trim(self):
        """Frees what other processes have let go of, and every arena that is empty."""
        cdef Arena arena
        if self.made_in != generation:
            self.forget()
        self.look_again(self.pending_count)
        for arenas in (self.small, self.large):
            for arena in [arena for arena in arenas if arena.map.used == 0]:
                arena.heap = NULL
                arenas.remove(arena)

    def statistics(self):
        """What the heap has, in a dict: "arenas" (their sizes in bytes), "used" (bytes of them), "pending" (pieces that
        this process has dropped, and others have not)."""
        cdef Arena arena
        if self.made_in != generation:
            self.forget()
        self.look_again(self.pending_count)
        arenas = self.small + self.large
        used = 0
        for arena in arenas:
            used += arena.map.used * arena.unit
        return {"arenas": [arena.size for arena in arenas], "used": used, "pending": self.pending_count}

    def reserve(self):
        """Ids of the arenas that are empty and kept for the next allocation."""
        cdef Arena arena
        found = set()
        if self.made_in == generation:
            self.look_again(self.pending_count)
            for arena in self.small + self.large:
                if arena.map.used == 0:
                    found.add(arena.block.id)
        return found


def _forget_all():
    for heap in living_heaps():
        heap.forget()


def _reserve():
    return {shmid for heap in living_heaps() for shmid in heap.reserve()}


def _after_collection(phase, info):
    # A program that allocates nothing more gets the memory back, too, that others held longer than it did. No bytecode
    # is run on the way: a signal handler would run with it, and what it raises, KeyboardInterrupt say, be lost here.
    cdef Heap heap
    if phase == "stop" and info["generation"] == 2:
        for heap in living_heaps():
            if heap.pending_count and heap.made_in == generation:
                heap.look_again(heap.pending_count)


os.register_at_fork(after_in_child=_forget_all)
register_reserve(_reserve)
gc.callbacks.append(_after_collection)

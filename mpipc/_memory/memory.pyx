# distutils: language = c
"""Memory that travels by reference: who has it stands in a block of the family, see _core/src/memory.c and carriers.c.

A process has one Memory for each block that it holds, and finds it by any address in there: `memory_at`. The mapping of
what it has once seen stays, so an address means the same as long as the Memory lives, which is as long as anything
refers to it.
"""

from multiprocessing import context as _mp_context

from cpython.object cimport PyObject
from cython cimport no_gc
from libc.errno cimport EFBIG, EINVAL, ENOMEM, ENOSPC, errno
from cpython.buffer cimport PyBUF_FULL_RO, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mpipc._core.family cimport (
    MP_HOLDER_IDS,
    MP_OK,
    MP_SLOTS,
    Block,
    Family,
    adopted,
    block_made,
    fail,
    fail_call,
    fail_growing,
    mp_block_holders,
    mp_slot_pid,
)
from mpipc._core.memory cimport (
    mp_arena_trim,
    mp_memory,
    mp_memory_claim,
    mp_memory_find,
    mp_memory_new,
    mp_memory_start,
    mp_memory_usage,
    mp_space_view,
)
from mpipc._core.queue cimport mp_queue_view
from mpipc.sysv._buffer cimport show_bytes

import os
import pickle

from mpipc._core import current
from mpipc._stdlib import picklers

cdef extern from * nogil:
    """
    #include <sys/mman.h>
    #ifndef MADV_POPULATE_READ
    #define MADV_POPULATE_READ 22
    #define MADV_POPULATE_WRITE 23
    #endif
    """
    enum:
        MADV_HUGEPAGE
        MADV_POPULATE_READ
        MADV_POPULATE_WRITE
    int madvise(void *address, size_t length, int advice)

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

cdef enum:
    PAGE = 4096
    HUGE = 1 << 21         # bytes of a huge page
    LONG = 1 << 18         # bytes; from here on pages are asked for in one call, and the GIL is let go of
    LONGEST = 1 << 30      # bytes; beyond this they come as they are touched: perhaps not all of them are

cdef unsigned long generation = 0  # grows in every forked child
reducers = picklers.by_reference  # class -> how an object is reduced that may lie in memory: references.py, storages.py
for_children = picklers.for_children
cdef list families = []            # that it has memory of
cdef dict by_start = {}            # address -> the Memory there, as a borrowed reference in an integer
cdef unsigned long touched_in = 0
cdef set touched = set()           # addresses of pieces whose pages this process has asked for
cdef int64_t viewed = 0            # bytes of memory that is read-only here
cdef int64_t most_viewed = -1

cdef void _count_fork() noexcept nogil:
    global generation
    generation += 1

pthread_atfork(NULL, NULL, _count_fork)


cdef void have_pages(void *start, Py_ssize_t nbytes, bint writing) except *:
    """Asks for the pages of a long piece in one call, once in a process; they come one by one else."""
    global touched_in
    cdef size_t length = (<size_t> nbytes + PAGE - 1) // PAGE * PAGE
    if touched_in != generation:  # a child inherits the mapping, and not the pages in it
        touched.clear()
        touched_in = generation
    if nbytes < LONG or nbytes > LONGEST or <size_t> start in touched:
        return
    touched.add(<size_t> start)
    with nogil:
        if length >= HUGE:
            madvise(start, length, MADV_HUGEPAGE)  # where shmem_enabled says "advise"
        madvise(start, length, MADV_POPULATE_WRITE if writing else MADV_POPULATE_READ)  # kernels before 5.14 refuse


@no_gc
cdef class Memory:
    """Shared memory of `nbytes` bytes: an object with the buffer protocol.

    It may be sent: through a queue, as an argument or a result of a pool's task, to a process that is started. What
    arrives is the same memory. It is used for something else when nobody has it any more, neither a process nor a
    message on its way.
    """

    def __dealloc__(self):
        global viewed
        cdef object start
        if self.start == NULL:
            return
        start = <size_t> self.start
        if by_start.get(start) == <size_t> <PyObject *> self:
            del by_start[start]
        if self.readonly:
            viewed -= self.nbytes

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        show_bytes(buffer, self, self.start, self.nbytes, self.readonly, flags)

    def __len__(self):
        return self.nbytes

    def __repr__(self):
        return f"<Memory of {self.nbytes} bytes, block {self.block.index}>"

    def __reduce_ex__(self, protocol):
        if _mp_context.get_spawning_popen() is not None:
            return _rebuild, (self.block, self.readonly)
        if protocol < 5:
            return _copied, (bytes(self),)
        return _arrived, (pickle.PickleBuffer(self),)

    def holders(self):
        """(pids of the processes that hold it, number of messages in queues that do)"""
        cdef uint16_t[MP_HOLDER_IDS] ids
        cdef uint32_t i, count
        self.block.ensure()
        count = mp_block_holders(self.block.f, self.block.index, ids, MP_HOLDER_IDS)
        pids = [mp_slot_pid(self.block.f.seg.slots[ids[i]].word) for i in range(count) if ids[i] < MP_SLOTS]
        return sorted(pids), count - len(pids)

    @property
    def address(self):
        """Where it is in this process."""
        return <size_t> self.start

    @property
    def inherited(self):
        """Whether this process has it from its parent, by fork(2)."""
        return self.made_in != generation


def _rebuild(Block block, bint readonly):
    return made_of(block, readonly)


def _copied(data):
    cdef Memory memory = new_memory(len(data), False)
    memoryview(memory)[:] = data
    return memory


def _arrived(buffer):
    """Out of a message by reference it is the memory itself; else what has stood in the pickle."""
    return buffer if isinstance(buffer, Memory) else _copied(buffer)


cdef Memory enter(Memory memory, Block block, mp_memory *place, bint readonly):
    global viewed
    memory.block = block
    memory.start = place.data
    memory.nbytes = <Py_ssize_t> place.piece.length
    memory.readonly = readonly
    memory.made_in = generation
    if block.family not in families:
        families.append(block.family)
    by_start[<size_t> memory.start] = <size_t> <PyObject *> memory
    if readonly:
        viewed += memory.nbytes
    return memory


cdef Memory new_memory(Py_ssize_t nbytes, bint readonly):
    """Memory that nobody else has, with whatever stands in it. OSError (LimitError) if there is none."""
    cdef Family family = current()
    cdef Memory memory = Memory.__new__(Memory)
    cdef mp_memory place
    cdef int error
    cdef int64_t index
    if nbytes < 0:
        raise ValueError(f"the number of bytes cannot be negative: {nbytes}")
    with nogil:
        error = mp_memory_claim(family.f, max(nbytes, 1), &place)
    if error == ENOSPC or error == ENOMEM or error == EFBIG:
        fail_call(EINVAL if error == EFBIG else error, "shmget", {"key": 0, "size": nbytes, "shmflg": 0o1600})
    if error != MP_OK:
        fail_growing(error, f"taking {nbytes} bytes of shared memory")
    place.piece.length = nbytes
    index = mp_memory_new(family.f, &place)
    if index < 0:
        fail_growing(errno, "taking a control block for shared memory")
    enter(memory, block_made(family, <uint32_t> index), &place, readonly)
    if place.fresh:
        touched.discard(<size_t> memory.start)
    have_pages(memory.start, nbytes, True)
    return memory


cdef Memory made_of(Block block, bint readonly):
    cdef mp_memory place
    cdef Memory memory = known(block.family, block.index, block.serial)
    cdef int error
    if memory is not None:
        return memory
    error = mp_memory_find(block.f, block.index, &place)
    if error != MP_OK:
        fail(error, "taking over shared memory")
    memory = enter(Memory.__new__(Memory), block, &place, readonly)
    have_pages(memory.start, memory.nbytes, False)
    return memory


cdef Memory known(Family family, uint32_t index, uint32_t serial):
    """The Memory of that block, if this process has one."""
    cdef mp_memory place
    cdef Memory memory
    if family.f.local_refs[index] == 0 or mp_memory_find(family.f, index, &place) != MP_OK:
        return None
    found = by_start.get(<size_t> place.data)
    if found is None:
        return None
    memory = <Memory> <PyObject *> <size_t> found
    if memory.block.family is not family or memory.block.index != index or memory.block.serial != serial:
        return None
    return memory


cdef Memory memory_of(Family family, uint32_t index, uint32_t serial, bint readonly):
    """What a message refers to, which holds it for the moment. OSError if it is gone nevertheless."""
    cdef Memory memory = known(family, index, serial)
    if memory is not None:
        return memory
    return made_of(adopted(family, index, serial, "receiving shared memory"), readonly)


cdef Memory memory_at(const void *address, Py_ssize_t nbytes):
    """The Memory in which these bytes are, None if they are in none of this process."""
    cdef Memory memory
    cdef Family family
    if not by_start:
        return None
    found = by_start.get(<size_t> address)
    for family in families if found is None else ():
        found = by_start.get(<size_t> mp_memory_start(family.f, address))
        if found is not None:
            break
    if found is None:
        return None
    memory = <Memory> <PyObject *> <size_t> found
    if <size_t> address + <size_t> nbytes > <size_t> memory.start + <size_t> memory.nbytes:
        return None
    return memory


cdef bint may_view() noexcept:
    """Whether this process may keep all that it has of memory that was sent as a copy: a quarter of the machine's."""
    return viewed <= most_viewed


def _machine_memory():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


most_viewed = _machine_memory() // 4


# ---- for mpipc.arrays ------------------------------------------------------------------------------------------------

def buffer(Py_ssize_t nbytes, bint zero=True):
    """Memory of so many bytes, which are 0 unless they need not be."""
    cdef Memory memory = new_memory(nbytes, False)
    if zero:
        with nogil:
            memset(memory.start, 0, nbytes)
    return memory


def copied_from(size_t address, Py_ssize_t nbytes):
    """Memory with the same bytes as stand at an address."""
    cdef Memory memory = new_memory(nbytes, False)
    with nogil:
        memcpy(memory.start, <const void *> address, nbytes)
    return memory


def adopt(uint32_t index, uint32_t serial):
    """The Memory of a block that somebody holds for the moment. OSError if it is gone nevertheless."""
    return memory_of(current(), index, serial, False)


def memory_with(obj):
    """The Memory in which the bytes of an object with the buffer protocol are; None if they are in none of this
    process."""
    cdef Py_buffer view
    if isinstance(obj, Memory):
        return obj
    PyObject_GetBuffer(obj, &view, PyBUF_FULL_RO)
    try:
        low, high = extent(&view)
        return memory_at(<const void *> <size_t> low, high - low)
    finally:
        PyBuffer_Release(&view)


cdef tuple extent(Py_buffer *view):
    """The addresses of its first byte and of the one after its last."""
    cdef Py_ssize_t low = 0, high = view.itemsize
    cdef int i
    if view.strides == NULL or view.ndim == 0:
        return <size_t> view.buf, <size_t> view.buf + <size_t> view.len
    for i in range(view.ndim):
        if view.shape[i] == 0:
            return <size_t> view.buf, <size_t> view.buf
        if view.strides[i] < 0:
            low += view.strides[i] * (view.shape[i] - 1)
        else:
            high += view.strides[i] * (view.shape[i] - 1)
    return <size_t> (<char *> view.buf + low), <size_t> (<char *> view.buf + high)


def memory_around(size_t address, tuple shape, tuple strides, Py_ssize_t itemsize):
    """(the Memory that an array of numpy lies in, the offset of its first element in there); None if in none."""
    cdef Py_ssize_t low = 0, high = itemsize, length, stride
    for length, stride in zip(shape, strides):
        if length == 0:
            return None
        if stride < 0:
            low += stride * (length - 1)
        else:
            high += stride * (length - 1)
    cdef Memory memory = memory_at(<const void *> (address + low), high - low)
    return None if memory is None else (memory, <Py_ssize_t> (address - <size_t> memory.start))


def address_of(obj):
    """Where the first byte of an object with the buffer protocol is in this process."""
    cdef Py_buffer view
    PyObject_GetBuffer(obj, &view, PyBUF_FULL_RO)
    try:
        return <size_t> view.buf
    finally:
        PyBuffer_Release(&view)


def usage():
    """(bytes of pieces that have pages, of those in use, segments) of the family's space."""
    cdef uint64_t nbytes, in_use, segments
    cdef Family family = current()
    mp_memory_usage(family.f, &nbytes, &in_use, &segments)
    return nbytes, in_use, segments


def trim(double idle=0.0):
    """Returns the pages of memory that nobody has used for `idle` seconds to the system: how many bytes."""
    cdef Family family = current()
    cdef mp_queue_view *v
    cdef int64_t n = 0
    with nogil:
        v = mp_space_view(family.f, False)
        if v != NULL:
            n = mp_arena_trim(v, <int64_t> (idle * 1e9))
    return n


def bound_of_views(nbytes=None):
    """How many bytes of memory that was sent as a copy this process may have as views; set, if a number is given."""
    global most_viewed
    before = most_viewed
    if nbytes is not None:
        most_viewed = nbytes
    return before


def held():
    """Every Memory of this process."""
    return [<Memory> <PyObject *> <size_t> found for found in by_start.values()]


def drop_inherited():
    """Gives up what this process has from its parent by fork(2), as a holder: what refers to it must not be used any
    more. How many bytes."""
    cdef Memory memory
    cdef Py_ssize_t given_up = 0
    for memory in held():
        if memory.made_in != generation and memory.block is not None:
            given_up += memory.nbytes
            del by_start[<size_t> memory.start]
            memory.block = None
    return given_up

# distutils: language = c
"""Messages that refer to memory: unpickled where they arrive. What they begin with is written in serializer.pyx."""

import pickle

from cpython.buffer cimport PyBUF_READ
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from mpipc._core.family cimport MP_CORRUPT
from mpipc._core.memory cimport (
    MP_REFERENCE_COPY,
    mp_message_end,
    mp_message_references,
    mp_reference_block,
    mp_reference_serial,
    mp_references,
)
from mpipc._memory.memory cimport Memory, may_view, memory_of

from mpipc._core.errors import queue_error

cdef object loads = pickle.loads

cdef struct span:
    uint64_t which
    uint64_t offset
    uint64_t nbytes


cdef object copy_of(Memory memory, const span *s):
    """As what it was copied from would have arrived within a pickle."""
    copy = PyByteArray_FromStringAndSize(NULL, s.nbytes)
    cdef char *target = PyByteArray_AS_STRING(copy)
    cdef size_t nbytes = s.nbytes
    cdef unsigned char *source = memory.start + s.offset
    with nogil:
        memcpy(target, source, nbytes)
    return copy


cdef object buffer_of(Memory memory, const span *s, bint views, uint64_t *copied):
    """None: there can be none."""
    if s.offset > <uint64_t> memory.nbytes or s.nbytes > memory.nbytes - s.offset:
        return None
    if memory.readonly and not (views and may_view()):
        copied[0] += views
        return copy_of(memory, s)
    if s.offset == 0 and s.nbytes == <uint64_t> memory.nbytes:
        return memory
    return memoryview(memory)[s.offset:s.offset + s.nbytes]


cdef object unpack_carried(mp_queue_view *v, Family family, mp_item *item, bint views, uint64_t *copied, bint ends):
    """The object. When this returns, this process holds what it refers to, and the message is over, if it `ends` so.
    Raises what unpickling raises; OSError if it cannot be what it says it is."""
    cdef uint32_t count = 0, i, spans
    cdef mp_references *references = mp_message_references(item.data, item.size, &count)
    cdef uint64_t reference
    cdef size_t head
    cdef span s
    cdef list memories = []
    cdef list buffers = []
    try:
        if references == NULL:
            raise queue_error(MP_CORRUPT, False, v.id)
        spans = references.spans
        head = sizeof(mp_references) + count * sizeof(uint64_t)
        if spans > (item.size - head) // sizeof(span):
            raise queue_error(MP_CORRUPT, False, v.id)
        for i in range(count):
            reference = references.blocks[i]
            memories.append(memory_of(
                family, mp_reference_block(reference), mp_reference_serial(reference),
                reference & <uint64_t> MP_REFERENCE_COPY != 0))
        for i in range(spans):
            memcpy(&s, item.data + head + i * sizeof(span), sizeof(span))
            buffer = buffer_of(<Memory> memories[s.which], &s, views, copied) if s.which < count else None
            if buffer is None:
                raise queue_error(MP_CORRUPT, False, v.id)
            buffers.append(buffer)
        head += spans * sizeof(span)
        return loads(PyMemoryView_FromMemory(<char *> item.data + head, item.size - head, PyBUF_READ), buffers=buffers)
    finally:
        del memories, buffers
        if ends:
            mp_message_end(v, &item.piece)

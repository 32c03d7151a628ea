# What the Cython modules see of src/memory.h and carriers.h: memory that processes and messages hold.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mpipc._core.family cimport mp_family
from mpipc._core.queue cimport mp_piece, mp_queue_view


cdef extern from "core.h" nogil:
    enum:
        MP_REFERENCE_COPY
        MP_REFERENCES_MOST

    cdef struct mp_memory:
        mp_piece piece
        unsigned char *data
        uint64_t size
        bint fresh

    mp_queue_view *mp_space_view(mp_family *f, bint make)
    int mp_memory_claim(mp_family *f, uint64_t size, mp_memory *memory)
    int64_t mp_memory_new(mp_family *f, const mp_memory *memory)
    void mp_memory_unclaim(mp_family *f, const mp_memory *memory)
    int mp_memory_find(mp_family *f, uint32_t index, mp_memory *memory)
    unsigned char *mp_memory_start(mp_family *f, const void *address)
    void mp_memory_usage(mp_family *f, uint64_t *bytes, uint64_t *in_use, uint64_t *segments)
    int64_t mp_arena_trim(mp_queue_view *v, int64_t idle_ns)

    cdef struct mp_references:
        uint32_t count
        uint32_t spans
        uint64_t[1] blocks

    uint32_t mp_reference_block(uint64_t reference)
    uint32_t mp_reference_serial(uint64_t reference)
    int64_t mp_carrier_new(mp_family *f)
    int mp_carrier_hold(mp_family *f, uint32_t carrier, uint32_t index)
    void mp_carrier_send(mp_queue_view *v, uint32_t carrier, mp_piece *piece)
    void mp_carrier_end(mp_family *f, uint32_t carrier, const mp_references *references, uint32_t count)
    mp_references *mp_message_references(const unsigned char *data, uint64_t size, uint32_t *count)
    void mp_message_end(mp_queue_view *v, const mp_piece *piece)

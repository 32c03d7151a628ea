from libc.stdint cimport int64_t, uint32_t

from mpipc._core.family cimport Family
from mpipc._core.memory cimport mp_references
from mpipc._core.queue cimport mp_piece, mp_queue_view
from mpipc._memory.memory cimport Memory


cdef class Serializer:
    cdef object pickler
    cdef object dump
    cdef object clear_memo
    cdef list chunks
    cdef Py_ssize_t total
    cdef Family family           # whose memory may be referred to; None: all is copied into the pickle
    cdef int64_t carrier         # that holds what is referred to, -1: none
    cdef dict memories           # what is referred to, each once, with its place among them
    cdef list spans              # of the buffers apart from the pickle: (which memory, offset, number of bytes)
    cdef mp_references *references
    cdef uint32_t room           # for so many of them
    cdef object refused          # the error for memory that could not be referred to: it is no fault of the object's
    cdef size_t apart            # bytes from which on a buffer is kept apart from the pickle
    cdef void goes_to(self, Family family, bint views) noexcept
    cdef int refer(self, Memory memory, size_t offset, size_t nbytes) except -1
    cdef Memory copied(self, Py_buffer *view)
    cdef size_t head_size(self) noexcept
    cdef void write_head(self, unsigned char *target)
    cdef int write_pickle_of(self, object obj) except -1
    cdef void release(self) noexcept
    cdef int copy_to(self, unsigned char *target) except -1
    cdef void reset(self)


cdef bint is_replaced  # objects are for a pickler of the program's, all of them
cdef object pickled_by_own(object obj)
cdef Serializer take_serializer()
cdef int give_back(Serializer serializer) except -1
cdef int claim(mp_queue_view *v, Serializer serializer, mp_piece *piece) except -1

from libc.stdint cimport uint32_t

from mpipc._core.family cimport Block, Family


cdef class Memory:
    cdef readonly Block block
    cdef unsigned char *start
    cdef readonly Py_ssize_t nbytes
    cdef readonly bint readonly
    cdef unsigned long made_in


cdef Memory new_memory(Py_ssize_t nbytes, bint readonly)
cdef Memory memory_at(const void *address, Py_ssize_t nbytes)
cdef Memory memory_of(Family family, uint32_t index, uint32_t serial, bint readonly)
cdef bint may_view() noexcept

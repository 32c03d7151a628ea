# What guarded.pyx and condition.pyx see of the locks.

from mpipc._core.family cimport Block, mp_block, mp_family


cdef class Shared:
    cdef readonly Block block
    cdef object __weakref__


cdef class LockBase(Shared):
    cdef bint recursive
    cdef mp_family *f
    cdef mp_block *b
    cdef bint take(self, object block, object timeout) except -1
    cdef int give_back(self) except -1

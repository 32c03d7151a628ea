from mpipc._core.queue cimport mp_piece, mp_queue_view


cdef class Serializer:
    cdef object pickler
    cdef object dump
    cdef object clear_memo
    cdef list chunks
    cdef Py_ssize_t total
    cdef int write_pickle_of(self, object obj) except -1
    cdef int copy_to(self, unsigned char *target) except -1
    cdef void reset(self)


cdef bint is_replaced  # objects are for a pickler of the program's, all of them
cdef object pickled_by_own(object obj)
cdef Serializer take_serializer()
cdef int give_back(Serializer serializer) except -1
cdef int claim(mp_queue_view *v, Serializer serializer, mp_piece *piece) except -1

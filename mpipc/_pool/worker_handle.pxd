from mpipc._pool.codec cimport Task

cdef double monotonic() noexcept nogil

cdef class Member:
    cdef readonly object tag
    cdef readonly object quota
    cdef readonly object own_reducers
    cdef readonly object tasks
    cdef readonly object ledger
    cdef public object process
    cdef int pidfd_
    cdef readonly dict window
    cdef public bint packing
    cdef Py_ssize_t sequence
    cdef Py_ssize_t charged
    cdef readonly dict known
    cdef public double progress
    cdef public double busy
    cdef public bint slow
    cdef public bint ready
    cdef public bint quitting
    cdef public bint dead
    cdef public object condemned
    cdef public object excess
    cdef public object explanation
    cdef public object peak
    cdef int report_
    cdef readonly Py_ssize_t done
    cdef public double launched
    cdef public double ended

    cdef bint is_open(self)
    cdef Py_ssize_t room(self, Py_ssize_t depth)
    cdef list assign(self, list tasks)
    cdef list send(self, list batch)
    cpdef Task withdraw(self, object number)
    cdef list take_back(self, Py_ssize_t count)
    cpdef list take_back_from(self, object number)
    cdef Task answered(self, object number)

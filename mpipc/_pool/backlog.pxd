from mpipc._pool.codec cimport Task

cdef class Backlog:
    cdef readonly object waiting
    cdef set feeds

    cdef add(self, object work)
    cdef add_all(self, list tasks)
    cdef put_back(self, Task task)
    cdef put_all_back(self, list tasks)
    cdef Py_ssize_t depth_wanted(self)
    cdef Py_ssize_t count_at_front(self)
    cdef list take(self, Py_ssize_t most)
    cpdef list remove(self, set cancelled)
    cdef ring(self, object feed)

from mpipc._pool.codec cimport Task

cdef class Broadcast:
    cdef readonly bint over
    cdef object job
    cdef list tasks
    cdef object open
    cdef dict holders

    cdef list match(self, dict members)
    cdef put_back(self, Task task)
    cdef worker_died(self, object tag, list lost)

cdef class Backlog:
    cdef readonly object waiting
    cdef list broadcasts
    cdef set feeds

    cdef add(self, object work)
    cdef list match(self, dict members, dict idle)
    cdef list unpinned(self, list tasks)
    cdef Py_ssize_t count(self)
    cdef add_all(self, list tasks)
    cdef put_back(self, Task task)
    cdef put_all_back(self, list tasks)
    cdef Py_ssize_t depth_wanted(self)
    cdef Py_ssize_t count_at_front(self)
    cdef list take(self, Py_ssize_t most)
    cpdef list remove(self, set cancelled)
    cdef ring(self, object feed)

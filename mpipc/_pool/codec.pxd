cdef class Task:
    cdef public object job
    cdef public Py_ssize_t index
    cdef public int kind
    cdef public object function
    cdef public object payload
    cdef public Py_ssize_t first  # index of its first item in the user's iterable
    cdef public Py_ssize_t retries  # how many times it may still be run again when its worker dies
    cdef public object timeout  # seconds that it may run; None for no limit
    cdef public object feed
    cdef public object pinned  # the broadcast that it is of: it is for one worker of those that have had none; or None
    cdef public Py_ssize_t attempts  # how many workers it has been sent to that may have begun it

    cdef tuple envelope(self, object tag, object number, bint known, object own)

cdef class Source:
    cdef readonly object function
    cdef readonly Py_ssize_t remaining  # chunks that have not been drawn
    cdef readonly object job
    cdef int kind
    cdef object items
    cdef Py_ssize_t size
    cdef Py_ssize_t retries
    cdef object timeout
    cdef Py_ssize_t index

    cdef Task draw(self)

# For layers above that are compiled too: the mapping's address and size without a Python object.

cdef class Attachment:
    cdef object __weakref__
    cdef char *start       # NULL when detached
    cdef Py_ssize_t length
    cdef readonly int shmid
    cdef readonly bint readonly
    cdef Py_ssize_t views

cpdef Attachment shmat(int shmid, object shmaddr=*, int shmflg=*)

"""The hot half of mpipc.sharedctypes: access to ctypes objects with their lock held.

A wrapper has its ctypes object as `_obj` and its lock as `_lock`. A lock of the type that wrappers have unless they are
given another one is taken and freed here without a call through Python. Of any other lock, a subclass of that type
included, acquire() and release() are called, as by multiprocessing's wrappers.
"""

cimport cython

from mpipc._sync.primitives cimport LockBase


cdef inline LockBase take(object wrapper, object lock_type):
    """The lock that was taken; None: it is of another type."""
    lock = wrapper._lock
    if type(lock) is not lock_type:
        wrapper.acquire()
        return None
    (<LockBase> lock).take(True, None)
    return <LockBase> lock


cdef inline int give_back(object wrapper, LockBase lock) except -1:
    if lock is None:
        wrapper.release()
        return 0
    return lock.give_back()


@cython.final
cdef class Guarded:
    """A property of a wrapper: an attribute of its ctypes object, read and written with its lock held."""

    cdef str name
    cdef type lock_type

    def __init__(self, str name not None, type lock_type not None):
        self.name = name
        self.lock_type = lock_type

    def __get__(self, wrapper, owner):
        if wrapper is None:
            return self
        cdef LockBase lock = take(wrapper, self.lock_type)
        try:
            return getattr(wrapper._obj, self.name)
        finally:
            give_back(wrapper, lock)

    def __set__(self, wrapper, value):
        cdef LockBase lock = take(wrapper, self.lock_type)
        try:
            setattr(wrapper._obj, self.name, value)
        finally:
            give_back(wrapper, lock)

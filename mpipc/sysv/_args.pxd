# Arguments on their way from Python to C.

from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.limits cimport INT_MAX, INT_MIN

from mpipc.sysv._libc cimport key_t


cdef inline key_t as_key(object key) except? -1:
    """A key as ftok() returns it (signed) or as ipcs prints it (0x9f3a0001, unsigned): the same 32 bits."""
    cdef int overflow = 0
    cdef long long value = PyLong_AsLongLongAndOverflow(key, &overflow)
    if overflow or value < INT_MIN or value > <long long>0xFFFFFFFF:
        raise ValueError(f"key must be a 32-bit number, such as ftok() returns, not {key}")
    return <key_t><unsigned int>value


cdef inline int clipped(object number) except? -1:
    """A count as a C int. What does not fit is beyond every limit: the kernel's answer to INT_MAX is the right one."""
    cdef int overflow = 0
    cdef long long value = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow > 0 or value > INT_MAX:
        return INT_MAX
    if overflow < 0 or value < INT_MIN:
        return INT_MIN
    return <int>value


cdef inline bint given(tuple values) noexcept:
    """Is any of them not None?"""
    for value in values:
        if value is not None:
            return True
    return False

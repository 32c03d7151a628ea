# The buffer protocol of what is a row of bytes: the one implementation, for the layers above, too.

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE


cdef inline int show_bytes(
    Py_buffer *buffer, object owner, void *start, Py_ssize_t length, bint readonly, int flags
) except -1:
    """For `__getbuffer__` of `owner`. BufferError if the bytes are wanted writable, and are not."""
    if readonly and flags & PyBUF_WRITABLE:
        raise BufferError("the shared memory is attached read-only (SHM_RDONLY)")
    buffer.buf = start
    buffer.obj = owner
    buffer.len = length
    buffer.itemsize = 1
    buffer.readonly = readonly
    buffer.ndim = 1
    buffer.format = <char *> b"B" if flags & PyBUF_FORMAT else NULL
    # Into the Py_buffer itself, as PyBuffer_FillInfo() does.
    buffer.shape = &buffer.len if flags & PyBUF_ND else NULL
    buffer.strides = &buffer.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
    buffer.suboffsets = NULL
    buffer.internal = NULL
    return 0

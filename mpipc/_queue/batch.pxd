from libc.stdint cimport int64_t, uint32_t

from mpipc._queue.message_queue cimport MessageQueue


cdef class BatchQueue(MessageQueue):
    cdef Py_ssize_t put_bundles(
        self, object batch, object objects, object owner, uint32_t level, int64_t deadline) except -1

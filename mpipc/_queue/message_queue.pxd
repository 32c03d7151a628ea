from libc.stdint cimport int64_t, uint32_t, uint64_t

from mpipc._core.family cimport Block
from mpipc._core.queue cimport mp_item, mp_queue_view, mp_room, mp_watch
from mpipc._core.waits cimport attempt_function, look_function
from mpipc._queue.calls cimport waiting
from mpipc._queue.serializer cimport Serializer


cdef class MessageQueue:
    cdef readonly Block block
    cdef mp_queue_view v
    cdef bint is_open
    cdef readonly bint views  # a receiver has what was copied for a message as it is; else it is copied once more
    cdef readonly uint64_t copied  # how often it was copied nevertheless: this process has too much of that already
    cdef uint32_t last_level
    cdef int sender  # the slot that has put something, -1: none
    cdef Watch watch
    cdef object reader  # a weak reference to who has a descriptor of it, or None
    cdef object __weakref__
    cdef int ensure(self) except -1
    cdef int failed(self, int error, bint sending) except -1
    cdef waiting wait(self, mp_item *item) noexcept
    cdef bint wait_in_room(self, mp_room *room, look_function look, waiting *w, int64_t deadline) except -1
    cdef bint wait_for_message(self, look_function look, waiting *w, int64_t deadline) except -1
    cdef int64_t call(self, attempt_function attempt, bint *none_left) except -1
    cdef int64_t room(self) except -1
    cdef bint has_room(self, int64_t deadline) except -1
    cdef uint32_t fill(self, mp_item *item, Serializer serializer) except 0
    cdef int send(self, mp_item *item, uint32_t length, uint32_t level, int outcome, int64_t deadline) except -1
    cdef int finish_send(self, mp_item *item, uint32_t length, uint32_t level, int outcome, int64_t deadline) except -1
    cdef int wait_and_send(self, mp_item *item, uint32_t length, uint32_t level, int64_t deadline) except -1
    cdef object unpack(self, mp_item *item, bint views)
    cdef object opened(self, mp_item *item, bint views)
    cdef int take(self, mp_item *item, int outcome, int64_t deadline) except -1
    cdef int finish_take(self, mp_item *item, int outcome, int64_t deadline) except -1
    cdef int wait_and_take(self, mp_item *item, int64_t deadline) except -1
    cpdef int64_t unfinished(self) except -1
    cdef bint is_ready(self) except -1
    cpdef int64_t size(self) except -1
    cdef int await_hearing(self, int64_t deadline) except -1


cdef class Watch:
    cdef mp_watch w
    cdef readonly int fd
    cdef readonly int pid
    cdef MessageQueue queue
    cpdef int look_again(self) except -1

# What a thread waits for at a queue: the calls of the core that may sleep, as _core/waits.pxd wants them.

from cpython.object cimport PyObject
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t

from mpipc._core.family cimport MP_OK, MP_TIMED_OUT
from mpipc._core.queue cimport (
    mp_item,
    mp_queue_await,
    mp_queue_send,
    mp_queue_shutdown,
    mp_queue_take,
    mp_queue_task_done,
    mp_queue_unfinished,
    mp_queue_view,
    mp_room,
    mp_room_stay,
    mp_room_wait,
)


cdef struct waiting:
    PyObject *queue     # borrowed, as everything here
    mp_queue_view *v
    mp_item *item       # to be sent, or where what is taken goes
    uint32_t length     # of the item to be sent
    uint32_t level
    int64_t unfinished  # tasks
    # In a room:
    mp_room *room
    uint32_t epoch
    int64_t deadline
    int outcome         # of the last look
    PyObject *batch     # to be sent
    uint32_t zeros
    bint immediate      # of a queue that is shut down


cdef inline int send_message(void *what, int64_t deadline) noexcept nogil:
    cdef waiting *w = <waiting *> what
    return mp_queue_send(w.v, &w.item.message, w.length, w.level, deadline)


cdef inline int take_message(void *what, int64_t deadline) noexcept nogil:
    cdef waiting *w = <waiting *> what
    return mp_queue_take(w.v, w.item, deadline)


cdef inline int await_message(void *what, int64_t deadline) noexcept nogil:
    cdef waiting *w = <waiting *> what
    return mp_queue_await(w.v, w.item)


cdef inline int shut_down(void *what, int64_t deadline) noexcept nogil:
    cdef waiting *w = <waiting *> what
    return mp_queue_shutdown(w.v, w.immediate, deadline)


cdef inline int finish_task(void *what, int64_t deadline) noexcept nogil:
    cdef waiting *w = <waiting *> what
    return mp_queue_task_done(w.v, deadline)


cdef inline int count_unfinished(void *what, int64_t deadline) noexcept nogil:
    cdef waiting *w = <waiting *> what
    w.unfinished = mp_queue_unfinished(w.v, deadline)
    return errno if w.unfinished < 0 else MP_OK


cdef inline int await_ring(void *what, int64_t deadline) noexcept nogil:
    cdef waiting *w = <waiting *> what
    cdef int outcome = mp_room_wait(w.v.f, w.room, deadline)
    if outcome != MP_TIMED_OUT:
        w.epoch = mp_room_stay(w.room, w.epoch)
    return outcome

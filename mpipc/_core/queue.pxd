# What the Cython modules of queues see of src/: queue.h, pieces.h, jobs.h, work.h, rooms.h, watch.h,
# kinds.h.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mpipc._core.family cimport mp_block, mp_family


cdef extern from "core.h" nogil:
    enum:
        MP_QUEUE_PRIORITY
        MP_QUEUE_COUNTED
        MP_QUEUE_VIEWS
        MP_QUEUE_WORK
        MP_QUEUE_LEVELS
        MP_QUEUE_INLINE
        MP_BODY_INLINE
        MP_BODY_PIECE
        MP_BODY_PLAIN

    cdef struct mp_room:
        uint32_t word
        uint32_t bell

    cdef struct mp_queue:
        mp_room getters
        mp_room putters
        uint32_t spilled
        uint32_t zeros
        int64_t pending

    cdef struct mp_message:
        long type
        unsigned char kind
        unsigned char[1] data

    cdef struct mp_body:
        uint32_t length
        unsigned char[1] body

    cdef struct mp_piece:
        uint64_t length
        uint64_t carrier

    cdef struct mp_item:
        mp_message message
        mp_piece piece
        unsigned char *data
        uint64_t size
        uint32_t job_kind
        uint32_t attempts

    cdef struct mp_watch:
        pass

    cdef struct mp_queue_view:
        mp_family *f
        uint32_t index
        mp_block *b
        mp_queue *q
        int id
        uint32_t flags

    int mp_queue_make(mp_family *f, uint32_t index, uint64_t maxsize, uint32_t flags)
    int mp_queue_open(mp_queue_view *v, mp_family *f, uint32_t index)
    void mp_queue_close(mp_queue_view *v)
    int mp_queue_try_send(mp_queue_view *v, mp_message *m, uint32_t length, uint32_t level)
    int mp_queue_send(mp_queue_view *v, mp_message *m, uint32_t length, uint32_t level, int64_t deadline_ns)
    int mp_queue_try_take(mp_queue_view *v, mp_item *item)
    int mp_queue_shutdown(mp_queue_view *v, bint immediate, int64_t deadline_ns)
    bint mp_queue_is_shut(mp_queue_view *v)
    void mp_queue_return_token(mp_queue_view *v, mp_item *item)
    int mp_queue_take(mp_queue_view *v, mp_item *item, int64_t deadline_ns)
    int mp_queue_take_many(mp_queue_view *v, mp_item *items, uint32_t most, uint32_t *count, int64_t deadline_ns)
    uint64_t mp_queue_send_many(
        mp_queue_view *v, const unsigned char *bodies, uint64_t count, uint32_t level, int64_t deadline_ns,
        int *outcome)
    int mp_queue_lock(mp_queue_view *v, int64_t deadline_ns)
    void mp_queue_unlock(mp_queue_view *v)
    int64_t mp_queue_soon()
    int64_t mp_queue_room(mp_queue_view *v)
    uint32_t mp_body_size(uint32_t length)
    int mp_queue_await(mp_queue_view *v, mp_item *item)
    int64_t mp_queue_size(mp_queue_view *v)
    void mp_job_begin(mp_queue_view *v, const mp_piece *piece, uint32_t kind)
    int mp_work_try_take(mp_queue_view *v, mp_item *item)
    int mp_work_take(mp_queue_view *v, mp_item *item, uint32_t least, int64_t deadline_ns)
    bint mp_work_linger(mp_queue_view *v)
    bint mp_work_acknowledge(mp_queue_view *v, const mp_piece *piece)
    bint mp_work_give_back(mp_queue_view *v, const mp_piece *piece)
    int64_t mp_work_unfinished(mp_queue_view *v, int64_t deadline_ns)
    int64_t mp_job_count(mp_queue_view *v, bint taken, bint returned)
    int mp_queue_task_done(mp_queue_view *v, int64_t deadline_ns)
    int64_t mp_queue_unfinished(mp_queue_view *v, int64_t deadline_ns)
    mp_room *mp_joiners(mp_block *b)

    int mp_piece_claim(mp_queue_view *v, uint64_t size, mp_piece *piece, unsigned char **data)
    bint mp_piece_sent(mp_queue_view *v, const mp_piece *piece)
    void mp_piece_free(mp_queue_view *v, const mp_piece *piece)
    int64_t mp_arena_trim(mp_queue_view *v, int64_t idle_ns)
    void mp_arena_usage(mp_queue_view *v, uint64_t *bytes, uint64_t *in_use, uint64_t *segments)

    uint32_t mp_room_enter(mp_room *room)
    void mp_room_leave(mp_room *room, uint32_t epoch)
    uint32_t mp_room_stay(mp_room *room, uint32_t epoch)
    int mp_room_wait(mp_family *f, mp_room *room, int64_t deadline_ns)
    uint32_t mp_room_count(mp_room *room)
    void mp_queue_await_hearing(mp_queue_view *v, int64_t deadline_ns)
    enum:
        MP_WAIT_MESSAGE
    uint32_t mp_waits_count(mp_family *f, int kind, uint32_t where)
    void mp_room_ring(mp_family *f, mp_room *room, bint all)

    void mp_kind_remove(mp_family *f, mp_block *b)

    int mp_watch_start(mp_queue_view *v, mp_watch *w, int fd)
    void mp_watch_run(mp_queue_view *v, mp_watch *w)
    void mp_watch_look_again(mp_queue_view *v, mp_watch *w)
    void mp_watch_stop(mp_queue_view *v, mp_watch *w)

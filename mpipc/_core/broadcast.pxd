# What the Cython module of broadcasts sees of src/: broadcast.h, and shutting one down.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mpipc._core.family cimport mp_block, mp_family


cdef extern from "core.h" nogil:
    enum:
        MP_BROADCAST_DROP
        MP_PLACE_GET
        MP_PLACE_PUT
        MP_SUBSCRIPTIONS

    cdef struct mp_broadcast:
        uint32_t high

    cdef struct mp_subscription:
        uint64_t next
        uint64_t lost

    cdef struct mp_broadcast_view:
        mp_family *f
        mp_block *b
        mp_broadcast *c
        uint32_t index
        bint drops
        uint64_t maxsize
        uint64_t maxbytes

    cdef struct mp_letter:
        uint64_t number
        uint64_t length
        uint32_t kind
        unsigned char *data

    uint64_t mp_broadcast_round(uint64_t maxbytes)
    uint64_t mp_broadcast_size(uint64_t maxsize, uint64_t maxbytes)
    void mp_broadcast_init(mp_block *b, uint64_t maxsize, uint64_t maxbytes, uint32_t flags)
    int mp_broadcast_open(mp_broadcast_view *v, mp_family *f, uint32_t index)
    void mp_broadcast_close(mp_broadcast_view *v)
    int mp_broadcast_begin(mp_broadcast_view *v, mp_letter *letter, int64_t deadline_ns)
    int mp_broadcast_publish(mp_broadcast_view *v, mp_letter *letter)
    void mp_broadcast_cancel(mp_broadcast_view *v)
    void mp_broadcast_shutdown(mp_broadcast_view *v, bint immediate)
    bint mp_broadcast_is_shut(mp_broadcast_view *v)
    uint64_t mp_broadcast_kept(mp_broadcast_view *v, uint64_t *bytes)
    int64_t mp_broadcast_cell(mp_broadcast_view *v, int64_t cell, uint32_t place)
    uint32_t mp_broadcast_waiting(mp_broadcast_view *v, uint32_t place)

    int mp_subscribe(mp_broadcast_view *v, uint32_t index)
    int64_t mp_subscription_at(mp_broadcast_view *v, uint32_t place)
    int mp_subscription_next(mp_broadcast_view *v, mp_subscription *s, mp_letter *letter)
    bint mp_subscription_take(mp_broadcast_view *v, mp_subscription *s, const mp_letter *letter)
    uint64_t mp_subscription_behind(mp_broadcast_view *v, mp_subscription *s)
    uint64_t mp_subscription_lost(mp_broadcast_view *v, mp_subscription *s)
    mp_subscription *mp_subscription_of(mp_block *b)

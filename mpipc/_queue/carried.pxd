from libc.stdint cimport uint64_t

from mpipc._core.family cimport Family
from mpipc._core.queue cimport mp_item, mp_queue_view


cdef object unpack_carried(mp_queue_view *v, Family family, mp_item *item, bint views, uint64_t *copied, bint ends)

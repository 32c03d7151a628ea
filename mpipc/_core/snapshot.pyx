"""What is seen of a family from outside: who waits for what, and who has that. Nothing of what is read is believed
beyond the ends of the tables."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from mpipc._core.family cimport (
    Family,
    MP_BLOCKS,
    MP_KIND_LOCK,
    MP_KIND_RLOCK,
    MP_LOCK_OWNER,
    MP_OK,
    MP_SLOTS,
    mp_block,
    mp_block_at,
    mp_block_is_live,
    mp_family,
    MP_ATTACH_OWN,
    mp_family_attach,
    mp_kind_of,
    mp_now_ns,
    mp_segment,
    mp_slot_pid,
    mp_wait_high,
    mp_wait_object,
    mp_wait_read,
    mp_waiting,
)
from mpipc._core.memory cimport mp_memory_usage


def waits(Family family):
    """[(pid, thread, block, purpose, seconds)] of every thread that sleeps, as far as there was room to note it.

    `block` is the index of the object that it waits for, `purpose` what of it ("" for the object itself).
    """
    cdef mp_family *f = family.f
    cdef mp_waiting waiting
    cdef const char *purpose
    cdef int64_t block
    cdef uint32_t i
    found = []
    for i in range(mp_wait_high(f)):
        if mp_wait_read(f, i, &waiting):
            block = mp_wait_object(f, &waiting, &purpose)
            if block >= 0:
                pid = mp_slot_pid(f.seg.slots[waiting.slot].word)
                seconds = max(0.0, (mp_now_ns() - waiting.since_ns) / 1e9)
                found.append((pid, waiting.tid, block, purpose.decode(), seconds))
    return found


def owner_of(Family family, uint32_t index):
    """(pid, thread) of who holds a lock, thread 0 where it is not noted; None if nobody does, or it has none."""
    cdef mp_family *f = family.f
    cdef mp_block *b = mp_block_at(f, min(index, MP_BLOCKS - 1))
    cdef uint32_t owner = <uint32_t> (b.lock.word & MP_LOCK_OWNER)
    if not mp_block_is_live(b.word) or not mp_kind_of(b).has_lock or owner == 0 or owner > MP_SLOTS:
        return None
    thread = b.more.lock.thread if b.kind in (MP_KIND_LOCK, MP_KIND_RLOCK) else 0
    return mp_slot_pid(f.seg.slots[owner - 1].word), thread


def memory(Family family):
    """(bytes that have pages, bytes in use, segments) of the memory that travels by reference."""
    cdef uint64_t nbytes, in_use, segments
    mp_memory_usage(family.f, &nbytes, &in_use, &segments)
    return nbytes, in_use, segments


def all_families():
    """The families of this user, to be looked at: this process does not join them.

    It is attached to each of them until its object here is gone, which delays the end of a family that long.
    """
    from mpipc.sysv.listing import shared_memory_segments

    cdef Family family
    found = []
    for segment in shared_memory_segments():
        if segment.size == sizeof(mp_segment):
            family = Family()
            if mp_family_attach(family.f, segment.shmid, 0, MP_ATTACH_OWN, NULL) == MP_OK:
                found.append(family)
    return found

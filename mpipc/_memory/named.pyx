# distutils: language = c
"""Named segments for mpipc.shared_memory: thin over _core/src/named.c, where the protocol stands.

Names are bytes here, and come with their 24-bit hash. Failures are what shm_open(3) would give: OSError with the errno,
or mpipc.sysv's errors where a limit was met.
"""

import os

from cpython.exc cimport PyErr_CheckSignals
from cython cimport no_gc
from libc.errno cimport EACCES, EBUSY, EEXIST, ENOENT, ENOSPC, EPERM
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from mpipc._core.family cimport (
    MP_KIND_SEGMENT,
    Block,
    Family,
    fail_call,
    mp_block_abandon,
    mp_block_high,
    mp_family,
    new_block,
)
from mpipc.sysv._buffer cimport show_bytes

from mpipc._core.family import ENVIRONMENT, current, families_of_this_process
from mpipc.sysv.listing import shared_memory_segments

cdef extern from "<errno.h>" nogil:
    enum:
        EXFULL

cdef extern from "<sys/shm.h>" nogil:
    enum:
        IPC_CREAT
        IPC_EXCL
    int shmdt(const void *address)

cdef extern from "core.h" nogil:
    enum:
        MP_NAMED_DATA
        MP_NAMED_PROBES

    cdef struct mp_named:
        pass

    cdef struct mp_named_ref:
        mp_named *header
        int shmid
        bint attaching
        bint own
        uint64_t size
        uint64_t family

    cdef struct mp_named_patience:
        int (*interrupted)(void *context) noexcept
        void *context

    cdef struct mp_name:
        const char *bytes
        uint32_t length
        uint32_t hash

    int mp_named_attach(const mp_name *name, bint readonly, mp_named_ref *ref)
    int mp_named_create(mp_family *f, uint32_t index, const mp_name *name, uint64_t size, int flags, bint tracked,
                        mp_named_patience *patience, mp_named_ref *ref)
    bint mp_named_publish(mp_family *f, uint32_t index, bint tracked, mp_named_ref *ref)
    void mp_named_discard(mp_named_ref *ref)
    int mp_named_unlink(const mp_name *name, int shmid, mp_named_ref *ref)
    bint mp_named_unlinked(mp_family *f, const mp_named_ref *ref)
    bint mp_named_is_tracked(mp_family *f, const mp_named_ref *ref)
    int mp_named_track(mp_family *f, uint32_t index, mp_named_ref *ref)
    void mp_named_untrack(mp_family *f, mp_named_ref *ref)
    void mp_named_release(mp_family *f, uint32_t index, uint32_t serial, int by_slot)
    void mp_named_reclaim(mp_family *f, uint32_t index, int by_slot)
    int32_t mp_named_key(uint32_t hash, uint32_t position)

__all__ = ["PROBES", "Mapping", "attach", "create", "key", "track", "unlink"]

PROBES = MP_NAMED_PROBES

# How often what was about to be created may be taken back by others, who took us for dead.
cdef int UNDONE_AT_MOST = 100


@no_gc
cdef class Mapping:
    """The bytes of a named segment, attached: an object with the buffer protocol."""

    cdef mp_named *header
    cdef readonly int shmid
    cdef readonly bint readonly
    cdef readonly Py_ssize_t size
    cdef Py_ssize_t views

    def __dealloc__(self):
        if self.header != NULL:
            shmdt(self.header)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        show_bytes(buffer, self, <char *> self.header + MP_NAMED_DATA, self.size, self.readonly, flags)
        self.views += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.views -= 1

    def let_go(self):
        """BufferError while a view is alive. It stays attached as long as somebody refers to this object: who has asked
        for its buffer and given it back (numpy) may use the address nevertheless."""
        if self.views:
            raise BufferError(f"cannot close exported pointers exist: {self.views} view(s) of the memory are alive")


cdef Mapping mapping(mp_named_ref *ref, bint readonly):
    cdef Mapping found = Mapping.__new__(Mapping)
    found.header = ref.header
    found.shmid = ref.shmid
    found.readonly = readonly
    found.size = <Py_ssize_t> ref.size
    return found


def key(uint32_t hash, uint32_t position=0):
    """The key that a name with this hash has; after `position` collisions."""
    return mp_named_key(hash, position)


cdef object failure(int error, bytes name, uint32_t hash):
    """What shm_open(3) would have given."""
    text = os.strerror(error)
    if error == EACCES or error == EPERM or error == EEXIST:
        for segment in shared_memory_segments():
            if segment.key == mp_named_key(hash, 0) and (error != EEXIST or segment.cuid != os.geteuid()):
                text += f": it belongs to uid {segment.cuid} and has the mode 0o{segment.perms & 0o777:03o}"
    return OSError(error, text, "/" + name.decode(errors="backslashreplace"))


def attach(bytes name, uint32_t hash, bint readonly):
    """The live segment of this name. FileNotFoundError, PermissionError."""
    cdef mp_name c_name = mp_name(name, <uint32_t> len(name), hash)
    cdef mp_named_ref ref
    cdef int error
    with nogil:
        error = mp_named_attach(&c_name, readonly, &ref)
    if error == ENOENT or error == EACCES:
        raise failure(error, name, hash)
    if error != 0:
        fail_call(error, "shmat", {"shmid": ref.shmid, "shmaddr": None, "shmflg": 0})
    return mapping(&ref, readonly)


cdef int run_signal_handlers(void *context) noexcept with gil:
    """True if one has raised something, which is put into the list `context`."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<list> context).append(error)
        return True
    return False


def create(bytes name, uint32_t hash, uint64_t size, int flags, bint tracked):
    """A new segment of this name; `flags` are the mode, and SHM_HUGETLB. A tracked one goes when the family is dead.

    FileExistsError if the name is taken; LimitError.
    """
    cdef mp_name c_name = mp_name(name, <uint32_t> len(name), hash)
    cdef mp_named_ref ref
    cdef mp_named_patience patience
    cdef Block block
    cdef Family family
    cdef uint32_t index
    cdef int error, _
    cdef list raised = []
    memset(&patience, 0, sizeof(patience))
    patience.interrupted = run_signal_handlers
    patience.context = <void *> raised
    for _ in range(UNDONE_AT_MOST):
        block = _new_block()
        family = block.family
        index = block.index
        with nogil:
            error = mp_named_create(family.f, index, &c_name, size, flags, tracked, &patience, &ref)
        if error != 0:
            mp_block_abandon(family.f, index)
            if raised:
                raise raised[0]
            fail_to_create(error, name, hash, size, flags, ref.attaching, ref.shmid)
        if mp_named_publish(family.f, index, tracked, &ref):
            return mapping(&ref, False)
    fail_to_create(EBUSY, name, hash, size, flags, False, -1)


cdef object fail_to_create(
    int error, bytes name, uint32_t hash, uint64_t size, int flags, bint attaching, int shmid
):
    """Raises the error of create()."""
    if error == EEXIST:
        raise failure(error, name, hash)
    if error == EXFULL:
        text = (
            f"{os.strerror(ENOSPC)}: all {MP_NAMED_PROBES} keys that this name can have are taken by segments of other"
            f" names{_holders(hash)}; choose another name, or remove segments that nobody needs (see ipcs)"
        )
        raise OSError(ENOSPC, text, "/" + name.decode(errors="backslashreplace"))
    if error == EBUSY:
        text = f"{os.strerror(EBUSY)}: other processes are in the way all the time{_holders(hash)}"
        raise OSError(EBUSY, text, "/" + name.decode(errors="backslashreplace"))
    if attaching:
        fail_call(error, "shmat", {"shmid": shmid, "shmaddr": None, "shmflg": 0})
    arguments = {"key": mp_named_key(hash, 0), "size": size + MP_NAMED_DATA, "shmflg": IPC_CREAT | IPC_EXCL | flags}
    fail_call(error, "shmget", arguments)


cdef str _holders(uint32_t hash):
    """The other users who have segments under the keys of a name."""
    keys = {mp_named_key(hash, position) for position in range(MP_NAMED_PROBES)}
    users = {segment.cuid for segment in shared_memory_segments() if segment.key in keys} - {os.geteuid()}
    return f" (of uid {', '.join(map(str, sorted(users)))})" if users else ""


cdef Block _new_block():
    cdef Family family
    cdef uint32_t index
    try:
        return new_block(MP_KIND_SEGMENT)
    except OSError as error:
        if error.errno != ENOSPC:
            raise
    family = current()
    for index in range(mp_block_high(family.f)):  # others may have unlinked what we track
        mp_named_reclaim(family.f, index, family.f.slot)
    return new_block(MP_KIND_SEGMENT)


def unlink(bytes name, uint32_t hash, int shmid):
    """Removes the segment of this name and id. FileNotFoundError if it is gone, PermissionError."""
    cdef mp_name c_name = mp_name(name, <uint32_t> len(name), hash)
    cdef mp_named_ref ref
    cdef Family family
    cdef int error
    with nogil:
        error = mp_named_unlink(&c_name, shmid, &ref)
    if error != 0:
        raise failure(error, name, hash)
    _look_for_family(ref.family)
    for family in families_of_this_process():
        mp_named_unlinked(family.f, &ref)


cdef int _look_for_family(uint64_t nonce) except -1:
    """Have the family with this nonce among those of this process, if it belongs there."""
    if nonce != 0 and os.environ.get(ENVIRONMENT, "").endswith(f":{nonce:x}"):
        current()  # a spawned child, say, that has not used its family yet
    return 0


def track(bytes name, uint32_t hash, bint tracked):
    """Has the segment of this name end with this process's family, or, if that is so, stay when it ends. Does nothing
    if there is none, if another family tracks it, or if it is another user's."""
    cdef mp_name c_name = mp_name(name, <uint32_t> len(name), hash)
    cdef mp_named_ref ref
    cdef Family family
    cdef Block block
    cdef bint known = False
    cdef int error
    with nogil:
        error = mp_named_attach(&c_name, False, &ref)
    if error != 0:
        return
    try:
        _look_for_family(ref.family)
        for family in families_of_this_process():
            if mp_named_is_tracked(family.f, &ref):
                known = True
                if not tracked:
                    mp_named_untrack(family.f, &ref)
                break
        if tracked and not known and ref.own and ref.family == 0:
            block = _new_block()
            error = mp_named_track(block.family.f, block.index, &ref)
            if error != 0:
                mp_block_abandon(block.family.f, block.index)
    finally:
        shmdt(ref.header)

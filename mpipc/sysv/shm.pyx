"""Shared memory segments: shmget, shmat, shmdt and shmctl. See shmget(2), shmop(2) and shmctl(2)."""

import weakref

from cpython.long cimport PyLong_AsVoidPtr
from libc.errno cimport EACCES, EINVAL, errno
from libc.stdint cimport uintptr_t

from mpipc.sysv cimport _libc
from mpipc.sysv._args cimport as_key, given
from mpipc.sysv._buffer cimport show_bytes

from mpipc.sysv.errors import from_errno
from mpipc.sysv.structs import ipc_perm, shm_info, shmid_ds, shminfo

__all__ = [
    "SHMLBA",
    "SHM_DEST",
    "SHM_EXEC",
    "SHM_HUGETLB",
    "SHM_HUGE_1GB",
    "SHM_HUGE_2MB",
    "SHM_HUGE_SHIFT",
    "SHM_INFO",
    "SHM_LOCK",
    "SHM_LOCKED",
    "SHM_NORESERVE",
    "SHM_RDONLY",
    "SHM_REMAP",
    "SHM_RND",
    "SHM_UNLOCK",
    "Attachment",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
]

SHM_RDONLY = _libc.SHM_RDONLY
SHM_RND = _libc.SHM_RND
SHM_REMAP = _libc.SHM_REMAP
SHM_EXEC = _libc.SHM_EXEC
SHM_LOCK = _libc.SHM_LOCK
SHM_UNLOCK = _libc.SHM_UNLOCK
SHM_INFO = _libc.SHM_INFO
SHM_DEST = _libc.SHM_DEST
SHM_LOCKED = _libc.SHM_LOCKED
SHM_HUGETLB = _libc.SHM_HUGETLB
SHM_NORESERVE = _libc.SHM_NORESERVE
SHM_HUGE_SHIFT = _libc.SHM_HUGE_SHIFT
SHM_HUGE_2MB = 21 << _libc.SHM_HUGE_SHIFT
SHM_HUGE_1GB = 30 << _libc.SHM_HUGE_SHIFT
SHMLBA = _libc.SHMLBA  # the multiple that an address must be of; depends on the machine

# Every live attachment by its address, so that SHM_REMAP does not pull one away from under a Python object.
cdef dict attachments = {}


cdef object failure(int number, str call, int shmid, dict arguments):
    """The exception for a call that failed on the segment `shmid`."""
    cdef _libc.shmid_ds ds
    gone = number == EINVAL and _libc.c_shmctl(shmid, _libc.IPC_STAT, &ds) == -1 and errno != EACCES
    return from_errno(number, call, arguments, gone)


cdef class Attachment:
    """A segment attached to this process, made by shmat(). It is a buffer: `memoryview(attachment)`.

    Invariants: `start` is the address of a mapping that this object made and nobody has taken away, or NULL; while
    `views` is not 0, it is not NULL. A view holds a reference to the object, so garbage collection, which detaches,
    never meets a view.

    A forked child inherits the mapping and with it this object; detaching concerns only the process that does it.
    """

    def __init__(self):
        raise TypeError("an Attachment is made by shmat()")

    def __reduce__(self):
        raise TypeError("an Attachment belongs to its process; pass the shmid on and attach there")

    def __dealloc__(self):
        if self.start != NULL:
            attachments.pop(<uintptr_t>self.start, None)
            _libc.c_shmdt(self.start)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.start == NULL:
            raise ValueError("the shared memory segment is detached")
        show_bytes(buffer, self, self.start, self.length, self.readonly, flags)
        self.views += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.views -= 1

    def __len__(self):
        return self.length

    def __repr__(self):
        where = f"at {<uintptr_t>self.start:#x}" if self.start != NULL else "detached"
        access = ", read-only" if self.readonly else ""
        return f"<Attachment of shmid {self.shmid}, {self.length} bytes{access}, {where}>"

    @property
    def address(self):
        """Where the segment is attached in this process. Raises ValueError once it is detached."""
        if self.start == NULL:
            raise ValueError("the shared memory segment is detached")
        return <uintptr_t>self.start

    @property
    def size(self):
        """The segment's size in bytes, as it was asked for (shm_segsz)."""
        return self.length

    @property
    def attached(self):
        """False once the segment is detached."""
        return self.start != NULL

    def detach(self):
        """Detach the segment, if it is attached. Raises BufferError while a view of it is alive."""
        if self.start != NULL:
            shmdt(self)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        # The traceback of a failed body holds its views. Its exception is worth more than a BufferError about them;
        # the segment is detached when they are gone.
        if value is None or self.views == 0:
            self.detach()


def shmget(key, size, int shmflg=0o600):
    """Return the id of the segment with this key, or of a new one of `size` bytes, all zero.

    `shmflg` is IPC_CREAT, IPC_EXCL, the mode, SHM_HUGETLB (with SHM_HUGE_2MB or SHM_HUGE_1GB) and SHM_NORESERVE.
    IPC_PRIVATE always makes a new segment. For one that exists, the mode is what the caller wants to be allowed, 0 asks
    for nothing, and `size` may be anything up to its size.

    Raises SysVFileExistsError, SysVFileNotFoundError, SysVPermissionError, or LimitError (SHMMAX, SHMMNI, SHMALL; the
    size of the existing segment; no memory). Source: shmget(2).
    """
    if size < 0:
        raise ValueError(f"size must not be negative, and it is {size}")
    cdef size_t length = min(size, <size_t>-1)
    cdef int shmid = _libc.c_shmget(as_key(key), length, shmflg)
    if shmid == -1:
        raise from_errno(errno, "shmget", {"key": key, "size": size, "shmflg": shmflg})
    return shmid


cpdef Attachment shmat(int shmid, object shmaddr=None, int shmflg=0):
    """Attach a segment, at `shmaddr` or, if that is None, wherever there is room.

    `shmflg` is SHM_RDONLY, SHM_EXEC, SHM_RND (round the address down to a multiple of SHMLBA) and SHM_REMAP (take the
    place of what is mapped there). An Attachment that SHM_REMAP replaces counts as detached; BufferError is raised if
    it has views, ValueError if only a part of it would be replaced.

    Raises RemovedError, SysVPermissionError; SysVError (EINVAL) for an address that is not aligned or not free. Source:
    shmop(2).
    """
    cdef void *wanted = NULL
    cdef void *start
    cdef int number
    cdef _libc.shmid_ds ds
    cdef Attachment attachment
    cdef list replaced = []
    if shmaddr is not None:
        wanted = PyLong_AsVoidPtr(shmaddr)
    arguments = {"shmid": shmid, "shmaddr": shmaddr, "shmflg": shmflg}
    if shmflg & _libc.SHM_REMAP and wanted != NULL:
        replaced = overlapped(shmid, wanted, shmflg, arguments)
    attachment = Attachment.__new__(Attachment)
    with nogil:  # with SHM_LOCKed segments and huge pages, attaching may take long
        start = _libc.c_shmat(shmid, wanted, shmflg)
        number = errno
    if start == <void *>-1:
        raise failure(number, "shmat", shmid, arguments)
    for other in replaced:
        forget(other)
    # Asked after attaching: now the id cannot be given to another segment any more.
    if _libc.c_shmctl(shmid, _libc.IPC_STAT, &ds) == -1:
        number = errno
        _libc.c_shmdt(start)
        raise failure(number, "shmat", shmid, arguments)
    attachment.start = <char *>start
    attachment.length = <Py_ssize_t>ds.shm_segsz
    attachment.shmid = shmid
    attachment.readonly = shmflg & _libc.SHM_RDONLY != 0
    attachments[<uintptr_t>start] = weakref.ref(attachment)
    return attachment


cdef list overlapped(int shmid, void *wanted, int shmflg, dict arguments):
    """The attachments that attaching with SHM_REMAP will replace. Raises unless each is replaced whole and viewless."""
    cdef _libc.shmid_ds ds
    cdef uintptr_t page = _libc.SHMLBA
    cdef uintptr_t first = <uintptr_t>wanted
    cdef uintptr_t end, other_first, other_end
    cdef Attachment other
    if _libc.c_shmctl(shmid, _libc.IPC_STAT, &ds) == -1:
        raise failure(errno, "shmat", shmid, arguments)
    if shmflg & _libc.SHM_RND:
        first -= first % page
    end = first + (ds.shm_segsz + page - 1) // page * page
    found = []
    for reference in list(attachments.values()):
        other = reference()
        if other is None:
            continue
        other_first = <uintptr_t>other.start
        other_end = other_first + (<uintptr_t>other.length + page - 1) // page * page
        if other_end <= first or other_first >= end:
            continue
        if other.views:
            raise BufferError(f"shmat: SHM_REMAP would replace {other!r}, of which {other.views} view(s) are alive")
        if other_first < first or other_end > end:
            raise ValueError(f"shmat: SHM_REMAP would replace only a part of {other!r}")
        found.append(other)
    return found


cdef int forget(Attachment attachment) except -1:
    attachments.pop(<uintptr_t>attachment.start, None)
    attachment.start = NULL
    return 0


def shmdt(Attachment shmaddr not None):
    """Detach a segment that shmat() attached.

    Raises BufferError while a view of it is alive, SysVError (EINVAL) if it is detached already. Source: shmop(2).
    """
    cdef char *start = shmaddr.start
    cdef int number = EINVAL
    if shmaddr.views:
        raise BufferError(f"shmdt: {shmaddr.views} view(s) of {shmaddr!r} are alive; release them first")
    if start == NULL or _libc.c_shmdt(start) == -1:
        number = errno if start != NULL else EINVAL
        raise from_errno(number, "shmdt", {"shmaddr": repr(shmaddr)})
    forget(shmaddr)


def shmctl(int shmid, int cmd, buf=None, *, uid=None, gid=None, mode=None):
    """Control a segment.

    IPC_STAT returns its shmid_ds, which needs permission to read. IPC_SET sets owner and mode, from a shmid_ds or from
    the keywords; what is not given stays as it is. IPC_RMID removes the segment once nobody has it attached; on Linux
    others may still attach it by its id until then. SHM_LOCK keeps it out of swap space, SHM_UNLOCK allows it again.
    IPC_INFO and SHM_INFO, for which `shmid` is ignored, return a shminfo and a shm_info.

    Raises RemovedError; SysVPermissionError if the caller is not the owner; LimitError (RLIMIT_MEMLOCK) from SHM_LOCK.
    Source: shmctl(2).
    """
    cdef _libc.shmid_ds ds
    cdef _libc.shminfo limits
    cdef _libc.shm_info used
    if cmd != _libc.IPC_SET and given((buf, uid, gid, mode)):
        raise TypeError("shmctl: values to set go with IPC_SET only")
    if cmd == _libc.IPC_STAT:
        control(shmid, cmd, &ds)
        perm = ds.shm_perm
        return shmid_ds(
            ipc_perm(perm.key, perm.uid, perm.gid, perm.cuid, perm.cgid, perm.mode, perm.seq),
            ds.shm_segsz,
            ds.shm_atime,
            ds.shm_dtime,
            ds.shm_ctime,
            ds.shm_cpid,
            ds.shm_lpid,
            ds.shm_nattch,
        )
    if cmd == _libc.IPC_RMID or cmd == _libc.SHM_LOCK or cmd == _libc.SHM_UNLOCK:
        control(shmid, cmd, NULL)
        return None
    if cmd == _libc.IPC_SET:
        if buf is not None:
            uid = buf.shm_perm.uid if uid is None else uid
            gid = buf.shm_perm.gid if gid is None else gid
            mode = buf.shm_perm.mode if mode is None else mode
        if not given((uid, gid, mode)):
            raise TypeError("shmctl: IPC_SET needs a shmid_ds or one of uid, gid and mode")
        if uid is None or gid is None or mode is None:
            control(shmid, _libc.IPC_STAT, &ds)
        if uid is not None:
            ds.shm_perm.uid = uid
        if gid is not None:
            ds.shm_perm.gid = gid
        if mode is not None:
            ds.shm_perm.mode = mode
        control(shmid, cmd, &ds)
        return None
    if cmd == _libc.IPC_INFO:
        control(shmid, cmd, <_libc.shmid_ds *>&limits)
        return shminfo(limits.shmmax, limits.shmmin, limits.shmmni, limits.shmseg, limits.shmall)
    if cmd == _libc.SHM_INFO:
        control(shmid, cmd, <_libc.shmid_ds *>&used)
        return shm_info(
            used.used_ids, used.shm_tot, used.shm_rss, used.shm_swp, used.swap_attempts, used.swap_successes
        )
    raise ValueError(
        f"shmctl: cmd must be IPC_STAT, IPC_SET, IPC_RMID, SHM_LOCK, SHM_UNLOCK, IPC_INFO or SHM_INFO, not {cmd}"
    )


cdef int control(int shmid, int cmd, _libc.shmid_ds *ds) except -1:
    if _libc.c_shmctl(shmid, cmd, ds) == -1:
        number = errno
        arguments = {"shmid": shmid, "cmd": cmd}
        if cmd == _libc.IPC_SET:
            arguments |= {"uid": ds.shm_perm.uid, "gid": ds.shm_perm.gid, "mode": ds.shm_perm.mode}
        raise failure(number, "shmctl", shmid, arguments)
    return 0

"""Message queues: msgget, msgsnd, msgrcv and msgctl. See msgget(2), msgop(2) and msgctl(2).

A call that may wait is first made without waiting and with the GIL held. It succeeds nearly always, and then the thread
has not stood in line for the GIL again; only a call that really has to wait gives it up.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport E2BIG, EACCES, EAGAIN, EINTR, EINVAL, ENOMSG, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from mpipc.sysv cimport _libc
from mpipc.sysv._args cimport as_key, clipped, given
from mpipc.sysv._libc cimport mpipc_message
from mpipc.sysv._waits cimport attempt_until_done

from mpipc.sysv.errors import from_errno
from mpipc.sysv.structs import ipc_perm, msginfo, msqid_ds

__all__ = ["MSG_COPY", "MSG_EXCEPT", "MSG_INFO", "MSG_NOERROR", "msgctl", "msgget", "msgrcv", "msgrcv_into", "msgsnd"]

MSG_NOERROR = _libc.MSG_NOERROR
MSG_EXCEPT = _libc.MSG_EXCEPT
MSG_COPY = _libc.MSG_COPY
MSG_INFO = _libc.MSG_INFO

cdef enum:
    INLINE = 8192  # the length of mpipc_message.mtext: longer messages are allocated


cdef object failure(int number, str call, int msqid, dict arguments):
    """The exception for a call that failed on the queue `msqid`."""
    cdef _libc.msqid_ds ds
    gone = number == EINVAL and _libc.c_msgctl(msqid, _libc.IPC_STAT, &ds) != 0 and errno != EACCES
    return from_errno(number, call, arguments, gone)


cdef struct transfer:
    int msqid
    mpipc_message *message
    Py_ssize_t size  # of its text, or of the room for it
    long type        # that is wanted
    int flags
    Py_ssize_t length  # of what was received


cdef int send(void *what, int64_t deadline) noexcept nogil:
    """msgsnd(2): 0 or an errno."""
    cdef transfer *t = <transfer *>what
    return 0 if _libc.c_msgsnd(t.msqid, t.message, <size_t>t.size, t.flags) == 0 else errno


cdef int receive_one(void *what, int64_t deadline) noexcept nogil:
    """msgrcv(2): 0 or an errno."""
    cdef transfer *t = <transfer *>what
    t.length = _libc.c_msgrcv(t.msqid, t.message, <size_t>t.size, t.type, t.flags)
    return errno if t.length < 0 else 0


cdef mpipc_message *allocate(Py_ssize_t length) except NULL:
    cdef mpipc_message *message = <mpipc_message *>malloc(sizeof(long) + <size_t>length)
    if message == NULL:
        raise MemoryError(f"no memory for a message of {length} bytes")
    return message


def msgget(key, int msgflg=0o600):
    """Return the id of the queue with this key, or of a new one.

    `msgflg` is IPC_CREAT, IPC_EXCL and the mode. IPC_PRIVATE always makes a new queue. For a queue that exists, the
    mode is what the caller wants to be allowed; 0 asks for nothing.

    Raises SysVFileExistsError, SysVFileNotFoundError, SysVPermissionError, or LimitError (MSGMNI). Source: msgget(2).
    """
    cdef int msqid = _libc.c_msgget(as_key(key), msgflg)
    if msqid == -1:
        raise from_errno(errno, "msgget", {"key": key, "msgflg": msgflg})
    return msqid


cpdef object msgsnd(int msqid, long mtype, object mtext, int msgflg=0):
    """Append a message of the type `mtype` (> 0), whose text is any C-contiguous bytes-like object, even an empty one.

    If the queue is full (msg_qbytes), waits until there is room, or raises SysVBlockingIOError if `msgflg` has
    IPC_NOWAIT. A message longer than msg_qbytes never finds room, so it waits until somebody raises msg_qbytes.

    Raises LimitError (MSGMAX), RemovedError, SysVPermissionError. Source: msgop(2).
    """
    cdef mpipc_message frame
    cdef mpipc_message *message = &frame
    cdef Py_buffer view
    PyObject_GetBuffer(mtext, &view, PyBUF_SIMPLE)
    cdef Py_ssize_t length = view.len
    try:
        if length > INLINE:
            message = allocate(length)
        memcpy(message.mtext, view.buf, <size_t>length)
    finally:
        PyBuffer_Release(&view)
    message.mtype = mtype
    cdef transfer what = transfer(msqid, message, length, 0, msgflg | _libc.IPC_NOWAIT, 0)
    cdef int number
    try:
        number = send(&what, -1)
        if number == EAGAIN and not msgflg & _libc.IPC_NOWAIT:
            PyErr_CheckSignals()
            what.flags = msgflg
            number = attempt_until_done(send, &what, -1, EINTR, EINTR)
    finally:
        if message != &frame:
            free(message)
    if number:
        raise failure(
            number, "msgsnd", msqid, {"msqid": msqid, "mtype": mtype, "msgsz": length, "msgflg": msgflg}
        )


cpdef tuple msgrcv(int msqid, object msgsz=None, long msgtyp=0, int msgflg=0):
    """Take a message out of the queue and return its type and its text: `(mtype, bytes)`.

    `msgtyp` 0 takes the first message, > 0 the first of that type (with MSG_EXCEPT: of any other type), < 0 the first
    of the lowest type up to `abs(msgtyp)`. Waits until there is one, or raises SysVBlockingIOError (ENOMSG) if `msgflg`
    has IPC_NOWAIT. With IPC_NOWAIT | MSG_COPY, `msgtyp` is a position and the message stays in the queue.

    `msgsz` None takes a message of any length. With a number, a longer message stays in the queue and LimitError
    (E2BIG) is raised, or it is cut off if `msgflg` has MSG_NOERROR.

    Raises RemovedError, also when the queue is removed during the wait, and SysVPermissionError. Source: msgop(2).
    """
    cdef mpipc_message frame
    cdef mpipc_message *message = &frame
    cdef Py_ssize_t room = INLINE
    cdef Py_ssize_t length
    if msgsz is not None:
        room = clipped(msgsz)
        if room < 0:
            raise ValueError(f"msgsz must not be negative, and it is {msgsz}")
        if room > INLINE:
            message = allocate(room)
    try:
        length = receive(msqid, &message, room, msgtyp, msgflg, &frame if msgsz is None else NULL)
        return message.mtype, PyBytes_FromStringAndSize(message.mtext, length)
    finally:
        if message != &frame:
            free(message)


cpdef tuple msgrcv_into(int msqid, object buffer, long msgtyp=0, int msgflg=0):
    """Take a message as msgrcv() does, put its text into a writable buffer and return `(mtype, length)`.

    The buffer's length in bytes is msgrcv's `msgsz`.
    """
    cdef mpipc_message frame
    cdef mpipc_message *message = &frame
    cdef Py_ssize_t length
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    try:
        if view.len > INLINE:
            message = allocate(view.len)
        length = receive(msqid, &message, view.len, msgtyp, msgflg, NULL)
        memcpy(view.buf, message.mtext, <size_t>length)
        return message.mtype, length
    finally:
        if message != &frame:
            free(message)
        PyBuffer_Release(&view)


cdef Py_ssize_t receive(
    int msqid, mpipc_message **message, Py_ssize_t room, long msgtyp, int msgflg, mpipc_message *frame
) except -1:
    """Receive into `message`, which has room for `room` bytes, and return the length of the text.

    With a `frame`, a message that is too long gets more room: `message` is then no longer the frame, but allocated.
    """
    cdef int flags = msgflg
    cdef int number
    cdef transfer what
    cdef _libc.msginfo info
    if frame != NULL:
        flags &= ~_libc.MSG_NOERROR  # any length was asked for: get more room, do not cut
    what = transfer(msqid, message[0], room, msgtyp, flags | _libc.IPC_NOWAIT, 0)
    number = receive_one(&what, -1)
    what.flags = flags
    while number:
        if number == E2BIG and frame != NULL:
            # The message is still in the queue. MSGMAX may have been larger when it was sent than it is now.
            what.size *= 2
            if _libc.c_msgctl(0, _libc.IPC_INFO, <_libc.msqid_ds *>&info) >= 0 and info.msgmax > what.size:
                what.size = info.msgmax
            if message[0] != frame:
                free(message[0])
                message[0] = frame
            message[0] = what.message = allocate(what.size)
        elif number == ENOMSG and not flags & _libc.IPC_NOWAIT:
            PyErr_CheckSignals()
        else:
            raise failure(
                number,
                "msgrcv",
                msqid,
                {"msqid": msqid, "msgsz": None if frame else room, "msgtyp": msgtyp, "msgflg": msgflg},
            )
        number = attempt_until_done(receive_one, &what, -1, EINTR, EINTR)
    return what.length


def msgctl(int msqid, int cmd, buf=None, *, uid=None, gid=None, mode=None, msg_qbytes=None):
    """Control a queue.

    IPC_STAT returns its msqid_ds, which needs permission to read. IPC_SET sets owner, mode and msg_qbytes, from an
    msqid_ds or from the keywords; what is not given stays as it is. IPC_RMID removes the queue and wakes everyone
    who waits at it. IPC_INFO and MSG_INFO, for which `msqid` is ignored, return a msginfo.

    Raises RemovedError; SysVPermissionError if the caller is not the owner; LimitPermissionError if msg_qbytes is above
    MSGMNB and the caller lacks CAP_SYS_RESOURCE. Source: msgctl(2).
    """
    cdef _libc.msqid_ds ds
    cdef _libc.msginfo info
    if cmd != _libc.IPC_SET and given((buf, uid, gid, mode, msg_qbytes)):
        raise TypeError("msgctl: values to set go with IPC_SET only")
    if cmd == _libc.IPC_STAT:
        control(msqid, cmd, &ds)
        return stat_result(&ds)
    if cmd == _libc.IPC_RMID:
        control(msqid, cmd, NULL)
        return None
    if cmd == _libc.IPC_SET:
        if buf is not None:
            perm = buf.msg_perm
            uid = perm.uid if uid is None else uid
            gid = perm.gid if gid is None else gid
            mode = perm.mode if mode is None else mode
            msg_qbytes = buf.msg_qbytes if msg_qbytes is None else msg_qbytes
        if not given((uid, gid, mode, msg_qbytes)):
            raise TypeError("msgctl: IPC_SET needs an msqid_ds or one of uid, gid, mode and msg_qbytes")
        if uid is None or gid is None or mode is None or msg_qbytes is None:
            control(msqid, _libc.IPC_STAT, &ds)
        if uid is not None:
            ds.msg_perm.uid = uid
        if gid is not None:
            ds.msg_perm.gid = gid
        if mode is not None:
            ds.msg_perm.mode = mode
        if msg_qbytes is not None:
            ds.msg_qbytes = msg_qbytes
        control(msqid, cmd, &ds)
        return None
    if cmd == _libc.IPC_INFO or cmd == _libc.MSG_INFO:
        control(msqid, cmd, <_libc.msqid_ds *>&info)
        return msginfo(
            info.msgpool, info.msgmap, info.msgmax, info.msgmnb, info.msgmni, info.msgssz, info.msgtql, info.msgseg
        )
    raise ValueError(f"msgctl: cmd must be IPC_STAT, IPC_SET, IPC_RMID, IPC_INFO or MSG_INFO, not {cmd}")


cdef int control(int msqid, int cmd, _libc.msqid_ds *ds) except -1:
    cdef dict arguments
    if _libc.c_msgctl(msqid, cmd, ds) == -1:
        number = errno
        arguments = {"msqid": msqid, "cmd": cmd}
        if cmd == _libc.IPC_SET:
            arguments |= {
                "uid": ds.msg_perm.uid, "gid": ds.msg_perm.gid, "mode": ds.msg_perm.mode, "msg_qbytes": ds.msg_qbytes
            }
        raise failure(number, "msgctl", msqid, arguments)
    return 0


cdef object stat_result(const _libc.msqid_ds *ds):
    perm = ds.msg_perm
    return msqid_ds(
        ipc_perm(perm.key, perm.uid, perm.gid, perm.cuid, perm.cgid, perm.mode, perm.seq),
        ds.msg_stime,
        ds.msg_rtime,
        ds.msg_ctime,
        ds.msg_cbytes,
        ds.msg_qnum,
        ds.msg_qbytes,
        ds.msg_lspid,
        ds.msg_lrpid,
    )

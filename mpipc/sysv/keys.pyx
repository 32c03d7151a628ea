"""Keys, and the constants that all three kinds of object share. See sysvipc(7) and ftok(3)."""

import os

from mpipc.sysv cimport _libc

from mpipc.sysv.errors import from_errno

__all__ = [
    "IPC_CREAT",
    "IPC_EXCL",
    "IPC_INFO",
    "IPC_NOWAIT",
    "IPC_PRIVATE",
    "IPC_RMID",
    "IPC_SET",
    "IPC_STAT",
    "ftok",
]

IPC_PRIVATE = _libc.IPC_PRIVATE
IPC_CREAT = _libc.IPC_CREAT
IPC_EXCL = _libc.IPC_EXCL
IPC_NOWAIT = _libc.IPC_NOWAIT
IPC_RMID = _libc.IPC_RMID
IPC_SET = _libc.IPC_SET
IPC_STAT = _libc.IPC_STAT
IPC_INFO = _libc.IPC_INFO


def ftok(path, int proj_id):
    """Return a key made from the file `path` and the lowest eight bits of `proj_id`, which must not all be zero.

    Two files may give the same key: it holds 16 bits of the inode number and 8 bits of the device number. Raises
    SysVError with the errno of stat(2), for example SysVFileNotFoundError, if there is no such file.

    Source: ftok(3).
    """
    if not proj_id & 0xFF:
        raise ValueError(f"the lowest eight bits of proj_id must not all be zero, and they are in {proj_id}")
    cdef bytes name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("path must not contain a null character")
    cdef _libc.key_t key
    cdef int number = _libc.mpipc_ftok(name, proj_id, &key)
    if number:
        error = from_errno(number, "ftok", {"path": path, "proj_id": proj_id})
        error.filename = path
        raise error
    return key

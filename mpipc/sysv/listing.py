"""All queues, sets and segments of this IPC namespace, whoever they belong to: what `ipcs` shows, from /proc/sysvipc.

Reading them needs no permission on the objects. Fields are named as the columns of the files, see proc_sysvipc(5);
`perms` is msqid_ds.msg_perm.mode and its like. Pids are those of the caller's pid namespace.
"""

from typing import NamedTuple, TypeVar

__all__ = ["QueueInfo", "SegmentInfo", "SetInfo", "message_queues", "semaphore_sets", "shared_memory_segments"]

_PROC = "/proc/sysvipc"


class QueueInfo(NamedTuple):
    """A message queue: `cbytes` bytes in `qnum` messages, last sent to by `lspid`, last received from by `lrpid`."""

    key: int
    msqid: int
    perms: int
    cbytes: int
    qnum: int
    lspid: int
    lrpid: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    stime: int
    rtime: int
    ctime: int


class SetInfo(NamedTuple):
    """A semaphore set. `otime` is the time of the last semop."""

    key: int
    semid: int
    perms: int
    nsems: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    otime: int
    ctime: int


class SegmentInfo(NamedTuple):
    """A shared memory segment. `size`, `rss` (in memory) and `swap` (swapped out) are in bytes."""

    key: int
    shmid: int
    perms: int
    size: int
    cpid: int
    lpid: int
    nattch: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    atime: int
    dtime: int
    ctime: int
    rss: int
    swap: int


_Info = TypeVar("_Info", QueueInfo, SetInfo, SegmentInfo)


def message_queues() -> list[QueueInfo]:
    """Return all message queues. Raises OSError if /proc is not mounted."""
    return _read("msg", QueueInfo)


def semaphore_sets() -> list[SetInfo]:
    """Return all semaphore sets. Raises OSError if /proc is not mounted."""
    return _read("sem", SetInfo)


def shared_memory_segments() -> list[SegmentInfo]:
    """Return all shared memory segments. Raises OSError if /proc is not mounted."""
    return _read("shm", SegmentInfo)


def _read(name: str, kind: type[_Info]) -> list[_Info]:
    with open(f"{_PROC}/{name}", encoding="ascii") as file:
        header, *lines = file.read().splitlines()
    titles = header.split()
    columns = [titles.index(field) for field in kind._fields]  # by name: a later kernel may add columns
    perms = kind._fields.index("perms")
    found = []
    for line in lines:
        words = line.split()
        values = [int(words[column], 8 if index == perms else 10) for index, column in enumerate(columns)]
        found.append(kind._make(values))
    return found

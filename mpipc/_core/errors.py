"""What went wrong in the family, and what to do about it: the one place where an error of the C core becomes an
exception.

The errors that leave the core are those of src/outcome.h. Failed system calls are mpipc.sysv's errors, which name the
limit that was met; the family's own tables have limits too.
"""

from __future__ import annotations

import errno
import os

from mpipc.exceptions import ObjectsRemovedError

TYPE_CHECKING = False  # as type checkers understand it
if TYPE_CHECKING:
    from mpipc.sysv.errors import SysVError

_OWN = {
    errno.EUSERS: (
        "the process table of the family is full: a family has room for 8192 processes, and for a spawned child twice"
        " until it has unpickled its arguments"
    ),
    errno.E2BIG: (
        "the kernel allows sets of fewer than 32 semaphores (SEMMSL), and mpipc needs as many;"
        ' raise the first number of kernel.sem: sysctl -w kernel.sem="250 32000 32 128"'
    ),
    errno.EXDEV: (
        "this kernel ignores SEM_UNDO (gVisor does), so mpipc watches its processes by their pids, and this one is in"
        " another pid namespace than those that it wants to share with: run them in one (one container, or a pod with"
        " shareProcessNamespace)"
    ),
    errno.EBADMSG: (
        "what was found there is not what a process of this program has written: another program of the same user"
        " writes to its shared memory?"
    ),
    errno.ESTALE: "it is gone: the process that shared it ended before this one could take it over",
    errno.EXFULL: (
        "a table of the family is full: it has room for 262144 objects (a queue for 1024 segments of shared memory, all"
        " that is in mpipc.arrays for as many), 16384 messages that refer to shared memory and have not been received,"
        " 65536 pairs of process and semaphore or RWLock in use, 16384 threads waiting in conditions, barriers,"
        " RWLocks and broadcasts, and 262144 notes of 384 processes that share an object, for objects that more than 28"
        " share"
    ),
    errno.ENOMEM: (
        "there is no memory, or no room in this process's address space (ulimit -v, setrlimit(2): RLIMIT_AS), for 1 MB"
        " more of the family's tables"
    ),
}

_REMOVED = (
    "mpipc: {what}: the System V objects of this program were removed: by ipcrm(1), or by systemd-logind, which removes"
    " those of a user whose last session has ended. Against the latter: `loginctl enable-linger` for that user, or"
    " RemoveIPC=no in /etc/systemd/logind.conf. Objects that are made from now on are new ones, and work"
)
_ALONE = (
    "mpipc: {what}: Permission denied: this process runs as user id {euid} now, which none of the processes that it"
    " shares objects with has let in (the reaper does so, or whoever still runs as the user who founded the family,"
    " when he waits for something). Drop privileges while one of them is there, or make what is to be shared after it"
)
_OTHER_GUEST = (
    "mpipc: {what}: Permission denied: this process runs as user id {euid} now, and a family of mpipc has room for one"
    " user id beside that of its founder, which another process has taken: let all of them change to the same user, or"
    " make what they share, and start them, after the change"
)


_DAMAGED = (
    "mpipc: message queue {id} (as ipcs -q shows it): what was found is not what was sent, and has been dropped;"
    " another program writes to this queue or to its shared memory?"
)


def queue_error(error: int, sending: bool, queue: int, size: int = 0) -> Exception:
    """The error for sending to a queue, or receiving from it. `queue` is the id of its message queue, `size` that of
    the message, where shared memory was wanted for it."""
    if error == errno.EIDRM:
        return removed_error(f"{'sending to' if sending else 'receiving from'} message queue {queue}")
    if error == errno.ESHUTDOWN:
        from mpipc._stdlib.shut_down import ShutDown

        return ShutDown("the queue was shut down: somebody has called its shutdown()")
    if error == errno.ENOMEM and sending:
        return MemoryError("mpipc: there is no memory for the message; nothing was sent")
    if error == errno.ENOMEM:
        return MemoryError("mpipc: there is no room in this process's address space for the shared memory of the queue")
    if error == errno.ENOSPC:
        return call_error(error, "shmget", {"key": 0, "size": size, "shmflg": 0o3600})
    if error == errno.EFBIG:
        return call_error(errno.EINVAL, "shmget", {"key": 0, "size": size, "shmflg": 0o3600})
    if error == errno.EBADMSG:
        return OSError(error, _DAMAGED.format(id=queue))
    return core_error(error, f"{'sending to' if sending else 'receiving from'} message queue {queue}", None, None, 0)


_TOO_LARGE = (
    "mpipc: the message has {size} bytes, and the Broadcast keeps at most maxbytes={most}: make it with a larger"
    " maxbytes=, or send the name of a SharedMemory with what is large"
)
_DAMAGED_LOG = (
    "mpipc: shared memory segment {id} (as ipcs -m shows it), of a Broadcast: what was found is not what was put, and"
    " has been passed over; another program writes to it?"
)


def broadcast_error(error: int, what: str, segment: int, size: int = 0, most: int = 0) -> Exception:
    """The error for using a Broadcast. `segment` is the id of its shared memory segment, `size` that of the message,
    `most` how much it may have."""
    if error == errno.ESHUTDOWN:
        from mpipc._stdlib.shut_down import ShutDown

        return ShutDown("the broadcast was shut down: somebody has called its shutdown()")
    if error == errno.EFBIG:
        return ValueError(_TOO_LARGE.format(size=size, most=most))
    if error == errno.EBADMSG:
        return OSError(error, _DAMAGED_LOG.format(id=segment))
    if error == errno.EXFULL and what == "subscribing to a broadcast":
        return OSError(errno.ENOSPC, f"mpipc: {what}: it has as many subscriptions as there is room for, 1024")
    return core_error(error, what, None, None, 0)


def core_error(
    error: int, what: str | None, call: str | None, arguments: dict[str, object] | None, squatted: int
) -> OSError:
    """The error for a step of the core that failed: of the system call, if one is named, or of what was being done.
    `squatted` is the key of a semaphore set that others have taken, if one is known."""
    if error == errno.EADDRINUSE:
        return squatted_error(error, squatted)
    if error == errno.EIDRM or (error == errno.EINVAL and call in ("semop", "semtimedop", "semctl")):
        return removed_error(what or "waiting for another process, or waking it")
    if error in (errno.EACCES, errno.ENOTUNIQ) and call != "shmat":
        return denied_error(error, what or f"{call}()")
    if call is not None:
        return call_error(error, call, arguments or {})
    return family_error(error, what or "")


def removed_error(what: str) -> ObjectsRemovedError:
    """The error for objects that somebody else has removed."""
    return ObjectsRemovedError(errno.EIDRM, _REMOVED.format(what=what))


def denied_error(error: int, what: str) -> PermissionError:
    """The error of a process that has changed its user id, and does not get access to the family's objects again. Here
    nothing is imported, since it may not be able to read the modules any more either."""
    text = _OTHER_GUEST if error == errno.ENOTUNIQ else _ALONE
    return PermissionError(errno.EACCES, text.format(what=what, euid=os.geteuid()))


def family_error(error: int, what: str) -> OSError:
    """The OSError for a step of the family itself that failed. A full table is ENOSPC, as a full system is."""
    text = _OWN.get(error) or os.strerror(error)
    return OSError(errno.ENOSPC if error == errno.EXFULL else error, f"mpipc: {what}: {text}")


def call_error(error: int, call: str, arguments: dict[str, object]) -> SysVError:
    """The error for a system call that the C layer made for an object of ours."""
    from mpipc.sysv.errors import from_errno  # and with it all of mpipc.sysv, half of what a first lock would load

    return from_errno(error, call, arguments, gone=error == errno.EINVAL and call in ("semop", "semtimedop", "semctl"))


def bell_call(error: int) -> tuple[str, dict[str, object]]:
    """Which call it was that failed in ringing or waiting at a bell: the pooled set could not be made, or somebody has
    removed it."""
    if error in (errno.ENOSPC, errno.ENOMEM, errno.EACCES):
        return "semget", {"key": 0, "nsems": 250, "semflg": 0o1600}
    return "semtimedop", {"semid": "of the family", "sops": [(0, -1, 0)]}


def squatted_error(error: int, key: int) -> OSError:
    """The error for a semaphore set, or a segment for the family's tables, that cannot be made because others have
    taken all keys that it may have."""
    from mpipc.sysv.listing import semaphore_sets, shared_memory_segments

    owners = sorted(
        {found.cuid for found in semaphore_sets() if found.key == key}
        | {found.cuid for found in shared_memory_segments() if found.key == key}
    )
    who = f"user id {', '.join(map(str, owners))}" if owners else "another user"
    return OSError(
        error,
        f"mpipc: a semaphore set or a segment could not be made: {who} has made some under the keys that it would have,"
        f" {key:#x} for one; `ipcs` lists them, and root or that user can remove them with ipcrm",
    )

"""What went wrong in the family, and what to do about it."""

import errno
import os

_ADVICE = {
    errno.EUSERS: "the process table is full: a family has 1024 slots, one for each process",
    errno.ESTALE: "it is gone: the process that shared it ended before this one could take it over",
}


def family_error(error: int, what: str) -> OSError:
    """The OSError for a failed step of the family layer: limits are named with their value and their sysctl."""
    if error in _ADVICE:
        return OSError(error, f"mpipc: {what}: {_ADVICE[error]}")
    if error in (errno.ENOSPC, errno.ENOMEM, errno.EINVAL):
        return OSError(error, f"mpipc: {what}: {os.strerror(error)}. {_limits()}")
    return OSError(error, f"mpipc: {what}: {os.strerror(error)}")


def _limits() -> str:
    def read(name: str) -> str:
        try:
            with open(f"/proc/sys/kernel/{name}") as file:
                return " ".join(file.read().split())
        except OSError:
            return "unknown"

    def used(kind: str) -> int:
        try:
            with open(f"/proc/sysvipc/{kind}") as file:
                return sum(1 for _ in file) - 1
        except OSError:
            return -1

    return (
        f"System V limits (sysctl = value, in use): kernel.shmmni = {read('shmmni')}, {used('shm')} segments; "
        f"kernel.sem = {read('sem')}, {used('sem')} sets; kernel.msgmni = {read('msgmni')}, {used('msg')} queues. "
        "A family itself has room for 262144 objects"
    )

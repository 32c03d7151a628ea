"""The limits of the kernel and how much of them is used: `ipcs -l` and `ipcs -u`.

The figures are those of the caller's IPC namespace. They come from the commands IPC_INFO and MSG_INFO, SEM_INFO,
SHM_INFO of msgctl(2), semctl(2) and shmctl(2), which need no permission and no /proc.
"""

from typing import NamedTuple

from .keys import IPC_INFO
from .msg import MSG_INFO, msgctl
from .sem import SEM_INFO, semctl
from .shm import SHM_INFO, shmctl

__all__ = ["Limits", "Usage", "limits", "usage"]


class Limits(NamedTuple):
    """Every limit on System V objects, named as in the manual pages, which write them in capitals.

    msgmni: message queues (kernel.msgmni)
    msgmax: bytes in one message (kernel.msgmax)
    msgmnb: bytes in one queue, at first and, for a process without CAP_SYS_RESOURCE, at most (kernel.msgmnb)
    semmsl: semaphores in one set (kernel.sem, first number)
    semmns: semaphores in all sets (kernel.sem, second number)
    semopm: operations in one semop (kernel.sem, third number)
    semmni: semaphore sets (kernel.sem, fourth number)
    semvmx: the value of a semaphore (fixed)
    shmmni: shared memory segments (kernel.shmmni)
    shmmax: bytes in one segment (kernel.shmmax)
    shmall: pages in all segments (kernel.shmall)
    shmmin: the least number of bytes in one segment (fixed)
    """

    msgmni: int
    msgmax: int
    msgmnb: int
    semmsl: int
    semmns: int
    semopm: int
    semmni: int
    semvmx: int
    shmmni: int
    shmmax: int
    shmall: int
    shmmin: int


class Usage(NamedTuple):
    """What exists in this IPC namespace. The last three figures are in pages: all, those in memory, those swapped out.

    `queues` compares with msgmni, `semaphores` with semmns, `sets` with semmni, `segments` with shmmni, and `pages`
    with shmall.
    """

    queues: int
    messages: int
    message_bytes: int
    sets: int
    semaphores: int
    segments: int
    pages: int
    resident: int
    swapped: int


def limits() -> Limits:
    """Return the limits in force."""
    msg, sem, shm = msgctl(0, IPC_INFO), semctl(0, 0, IPC_INFO), shmctl(0, IPC_INFO)
    return Limits(
        msgmni=msg.msgmni,
        msgmax=msg.msgmax,
        msgmnb=msg.msgmnb,
        semmsl=sem.semmsl,
        semmns=sem.semmns,
        semopm=sem.semopm,
        semmni=sem.semmni,
        semvmx=sem.semvmx,
        shmmni=shm.shmmni,
        shmmax=shm.shmmax,
        shmall=shm.shmall,
        shmmin=shm.shmmin,
    )


def usage() -> Usage:
    """Return what is in use."""
    # msgctl(2) and semctl(2): the *_INFO commands put these counts into fields that mean something else for IPC_INFO.
    msg, sem, shm = msgctl(0, MSG_INFO), semctl(0, 0, SEM_INFO), shmctl(0, SHM_INFO)
    return Usage(
        queues=msg.msgpool,
        messages=msg.msgmap,
        message_bytes=msg.msgtql,
        sets=sem.semusz,
        semaphores=sem.semaem,
        segments=shm.used_ids,
        pages=shm.shm_tot,
        resident=shm.shm_rss,
        swapped=shm.shm_swp,
    )

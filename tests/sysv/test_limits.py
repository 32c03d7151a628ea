from __future__ import annotations

import mmap
import subprocess
from collections.abc import Callable
from pathlib import Path

from support import kernel_rows

from mpipc import sysv

from .conftest import Body, Make, set_limit


def sysctl(name: str) -> list[int]:
    return [int(word) for word in Path("/proc/sys/kernel", name).read_text().split()]


def ipcs(option: str) -> dict[str, int]:
    """The lines `name = value` of ipcs -l, the lines `name value` of ipcs -u."""
    found = {}
    for line in subprocess.run(["ipcs", option], capture_output=True, text=True, check=True).stdout.splitlines():
        name, _, value = line.rpartition(" ")
        if value.isdigit():
            found[name.rstrip(" =")] = int(value)
    return found


def check_limits() -> None:
    limits = sysv.limits()
    assert [limits.msgmni, limits.msgmax, limits.msgmnb] == [sysctl(name)[0] for name in ("msgmni", "msgmax", "msgmnb")]
    assert [limits.semmsl, limits.semmns, limits.semopm, limits.semmni] == sysctl("sem")
    assert [limits.shmmni, limits.shmmax, limits.shmall] == [sysctl(name)[0] for name in ("shmmni", "shmmax", "shmall")]
    assert (limits.semvmx, limits.shmmin) == (32767, 1)


def test_limits_are_those_of_the_kernel() -> None:
    check_limits()


def test_limits_are_those_of_the_namespace(in_namespace: Callable[[Body], None]) -> None:
    def body() -> None:
        values: dict[str, int | str] = {
            "msgmni": 11,
            "msgmax": 12,
            "msgmnb": 13,
            "sem": "14 15 16 17",
            "shmmni": 18,
            "shmmax": 19,
        }
        values["shmall"] = 20
        for name, value in values.items():
            set_limit(name, value)
        check_limits()
        assert sysv.limits() == (11, 12, 13, 14, 15, 16, 17, 32767, 18, 19, 20, 1)

    in_namespace(body)


def test_limits_have_every_line_of_ipcs() -> None:
    limits, shown = sysv.limits(), ipcs("-l")
    pages_to_kilobytes = mmap.PAGESIZE // 1024
    expected = {
        "max queues system wide": limits.msgmni,
        "max size of message (bytes)": limits.msgmax,
        "default max size of queue (bytes)": limits.msgmnb,
        "max number of segments": limits.shmmni,
        "max seg size (kbytes)": limits.shmmax // 1024,
        # ipcs calculates in 64 bits and stops at the last whole page
        "max total shared memory (kbytes)": min(limits.shmall, (2**64 - 1) // pages_to_kilobytes) * pages_to_kilobytes,
        "min seg size (bytes)": limits.shmmin,
        "max number of arrays": limits.semmni,
        "max semaphores per array": limits.semmsl,
        "max semaphores system wide": limits.semmns,
        "max ops per semop call": limits.semopm,
        "semaphore max value": limits.semvmx,
    }
    if limits.shmall > 2**50:  # its default; what ipcs makes of it has changed between versions of util-linux
        del expected["max total shared memory (kbytes)"], shown["max total shared memory (kbytes)"]
    assert shown == expected


def test_usage(new_queue: Make, new_set: Make, new_segment: Make) -> None:
    before = sysv.usage()
    queue = new_queue(sysv.IPC_PRIVATE)
    new_set(sysv.IPC_PRIVATE, 7)
    segment = new_segment(sysv.IPC_PRIVATE, 3 * mmap.PAGESIZE + 1)
    for text in (b"123", b"4567"):
        sysv.msgsnd(queue, 1, text)
    with sysv.shmat(segment) as seg, memoryview(seg) as view:
        view[0] = 1  # the first page comes into being
    after = sysv.usage()
    if {kind: len(kernel_rows(kind)) for kind in ("msg", "sem", "shm")} != {"msg": 1, "sem": 1, "shm": 1}:
        # The machine's own namespace: others are in it, so nothing is exact.
        assert after.queues >= 1 and after.sets >= 1 and after.segments >= 1
        return
    grown = sysv.Usage(*(new - old for new, old in zip(after, before, strict=True)))
    assert grown == (1, 2, 7, 1, 7, 1, 4, 1, 0)
    shown = ipcs("-u")
    assert shown["allocated queues"] == shown["used arrays"] == 1
    assert (shown["used headers"], shown["allocated semaphores"]) == (2, 7)

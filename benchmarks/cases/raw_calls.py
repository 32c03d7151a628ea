"""The system calls as Python packages offer them: mpipc.sysv, sysv_ipc and posix_ipc, and as C calls them."""

from __future__ import annotations

from typing import Any

import native
from harness import Case, Operation

from . import CASES
from .common import remove_at_exit

MESSAGE = bytes(64)
SEGMENT_SIZE = 1 << 16


def mpipc_message() -> Operation:
    from mpipc import sysv

    queue = sysv.msgget(sysv.IPC_PRIVATE)
    remove_at_exit(lambda: sysv.msgctl(queue, sysv.IPC_RMID))

    def run(count: int) -> None:
        for _ in range(count):
            sysv.msgsnd(queue, 1, MESSAGE)
            sysv.msgrcv(queue)

    return Operation(run)


def sysv_ipc_message() -> Operation:
    import sysv_ipc

    queue = sysv_ipc.MessageQueue(None, sysv_ipc.IPC_CREX, max_message_size=8192)
    remove_at_exit(queue.remove)
    return Operation(lambda count: message_loop(queue, count))


def posix_ipc_message() -> Operation:
    import posix_ipc

    queue = posix_ipc.MessageQueue(None, posix_ipc.O_CREX)
    queue.unlink()
    return Operation(lambda count: message_loop(queue, count))


def message_loop(queue: Any, count: int) -> None:
    for _ in range(count):
        queue.send(MESSAGE)
        queue.receive()


def mpipc_semaphore() -> Operation:
    from mpipc import sysv

    semaphores = sysv.semget(sysv.IPC_PRIVATE, 1)
    remove_at_exit(lambda: sysv.semctl(semaphores, 0, sysv.IPC_RMID))
    sysv.semctl(semaphores, 0, sysv.SETVAL, 1)
    down, up = [(0, -1, sysv.SEM_UNDO)], [(0, 1, sysv.SEM_UNDO)]

    def run(count: int) -> None:
        for _ in range(count):
            sysv.semop(semaphores, down)
            sysv.semop(semaphores, up)

    return Operation(run)


def sysv_ipc_semaphore() -> Operation:
    import sysv_ipc

    semaphore = sysv_ipc.Semaphore(None, sysv_ipc.IPC_CREX, initial_value=1)
    remove_at_exit(semaphore.remove)
    semaphore.undo = True
    return Operation(lambda count: semaphore_loop(semaphore, count))


def posix_ipc_semaphore() -> Operation:
    import posix_ipc

    semaphore = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=1)
    semaphore.unlink()
    return Operation(lambda count: semaphore_loop(semaphore, count))


def semaphore_loop(semaphore: Any, count: int) -> None:
    for _ in range(count):
        semaphore.acquire()
        semaphore.release()


def mpipc_attach() -> Operation:
    from mpipc import sysv

    segment = sysv.shmget(sysv.IPC_PRIVATE, SEGMENT_SIZE)
    remove_at_exit(lambda: sysv.shmctl(segment, sysv.IPC_RMID))

    def run(count: int) -> None:
        for number in range(count):
            with sysv.shmat(segment) as attachment, memoryview(attachment) as view:
                view[0] = number & 255

    return Operation(run)


def sysv_ipc_attach() -> Operation:
    import sysv_ipc

    segment = sysv_ipc.SharedMemory(None, sysv_ipc.IPC_CREX, size=SEGMENT_SIZE)
    remove_at_exit(segment.remove)
    segment.detach()

    def run(count: int) -> None:
        for number in range(count):
            segment.attach()
            segment.write(bytes([number & 255]))
            segment.detach()

    return Operation(run)


CASES.add(
    Case(
        "raw/message",
        "message of 64 bytes sent and received, one process",
        {
            "mpipc.sysv": mpipc_message,
            "sysv_ipc": sysv_ipc_message,
            "posix_ipc": posix_ipc_message,
            "C, System V": lambda: native.operation("queues", "both", len(MESSAGE)),
            "C, POSIX": lambda: native.operation("queues", "posix-both", len(MESSAGE)),
        },
    )
)
CASES.add(
    Case(
        "raw/semaphore",
        "semaphore -1 and +1 (System V: with SEM_UNDO)",
        {
            "mpipc.sysv": mpipc_semaphore,
            "sysv_ipc": sysv_ipc_semaphore,
            "posix_ipc": posix_ipc_semaphore,
            "C, System V": lambda: native.operation("queues", "semop", 0),
            "C, POSIX": lambda: native.operation("queues", "sem", 0),
        },
    )
)
CASES.add(
    Case(
        "raw/attach",
        "segment of 64 KiB attached, one byte written, detached",
        {
            "mpipc.sysv": mpipc_attach,
            "sysv_ipc": sysv_ipc_attach,
            "C, System V": lambda: native.operation("queues", "attach", SEGMENT_SIZE),
        },
    )
)

"""Another user meets objects that are not his, and his own with a mode that keeps him out."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from mpipc import sysv
from mpipc.sysv import GETALL, GETVAL, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, IPC_SET, IPC_STAT, SETALL, SETVAL, SHM_RDONLY

from .conftest import Body, Make

AsNobody = Callable[[Body], None]
Calls = dict[str, tuple[int, Callable[[], object]]]

KEY = 0x6D706970


def check_denied(calls: Calls, hint: str) -> None:
    for name, (number, call) in calls.items():
        with pytest.raises(PermissionError) as caught:
            call()
        assert isinstance(caught.value, sysv.SysVPermissionError), name
        assert not isinstance(caught.value, sysv.LimitError), name
        assert caught.value.errno == number, name
        assert caught.value.call == name.split()[0]
        assert hint in str(caught.value) and "uid 65534" in str(caught.value), str(caught.value)


def test_a_private_queue(new_queue: Make, as_nobody: AsNobody) -> None:
    queue = new_queue(KEY, sysv.IPC_CREAT | sysv.IPC_EXCL | 0o600)

    def body() -> None:
        assert sysv.msgget(KEY, 0) == queue  # asks for nothing
        calls: Calls = {
            "msgget to read": (errno.EACCES, lambda: sysv.msgget(KEY, 0o400)),
            "msgget by default": (errno.EACCES, lambda: sysv.msgget(KEY)),
            "msgsnd": (errno.EACCES, lambda: sysv.msgsnd(queue, 1, b"")),
            "msgrcv": (errno.EACCES, lambda: sysv.msgrcv(queue)),
            "msgrcv into": (errno.EACCES, lambda: sysv.msgrcv_into(queue, bytearray(1))),
            "msgctl stat": (errno.EACCES, lambda: sysv.msgctl(queue, IPC_STAT)),
            "msgctl set": (errno.EPERM, lambda: sysv.msgctl(queue, IPC_SET, uid=0, gid=0, mode=0, msg_qbytes=1)),
            "msgctl rmid": (errno.EPERM, lambda: sysv.msgctl(queue, IPC_RMID)),
        }
        check_denied(calls, "belongs to uid 0")

    as_nobody(body)


def test_a_queue_to_read(new_queue: Make, as_nobody: AsNobody) -> None:
    queue = new_queue(IPC_PRIVATE, 0o604)
    sysv.msgsnd(queue, 1, b"for all")

    def body() -> None:
        assert sysv.msgctl(queue, IPC_STAT).msg_qnum == 1
        assert sysv.msgrcv(queue) == (1, b"for all")
        check_denied({"msgsnd": (errno.EACCES, lambda: sysv.msgsnd(queue, 1, b"", IPC_NOWAIT))}, "mode 0o604")

    as_nobody(body)


def test_a_queue_to_write(new_queue: Make, as_nobody: AsNobody) -> None:
    queue = new_queue(IPC_PRIVATE, 0o602)

    def body() -> None:
        sysv.msgsnd(queue, 1, b"from all")
        check_denied({"msgrcv": (errno.EACCES, lambda: sysv.msgrcv(queue))}, "mode 0o602")

    as_nobody(body)
    assert sysv.msgrcv(queue) == (1, b"from all")


def test_a_private_set(new_set: Make, as_nobody: AsNobody) -> None:
    semset = new_set(KEY, 2, sysv.IPC_CREAT | sysv.IPC_EXCL | 0o600)

    def body() -> None:
        assert sysv.semget(KEY, 0, 0) == semset
        calls: Calls = {
            "semget": (errno.EACCES, lambda: sysv.semget(KEY, 0)),
            "semop": (errno.EACCES, lambda: sysv.semop(semset, [(0, 1)])),
            "semop for zero": (errno.EACCES, lambda: sysv.semop(semset, [(0, 0)])),
            "semtimedop": (errno.EACCES, lambda: sysv.semtimedop(semset, [(0, -1)], 1)),
            "semctl getval": (errno.EACCES, lambda: sysv.semctl(semset, 0, GETVAL)),
            "semctl setval": (errno.EACCES, lambda: sysv.semctl(semset, 0, SETVAL, 1)),
            "semctl getall": (errno.EACCES, lambda: sysv.semctl(semset, 0, GETALL)),
            "semctl setall": (errno.EACCES, lambda: sysv.semctl(semset, 0, SETALL, [1, 1])),
            "semctl stat": (errno.EACCES, lambda: sysv.semctl(semset, 0, IPC_STAT)),
            "semctl set": (errno.EPERM, lambda: sysv.semctl(semset, 0, IPC_SET, uid=0, gid=0, mode=0)),
            "semctl rmid": (errno.EPERM, lambda: sysv.semctl(semset, 0, IPC_RMID)),
        }
        check_denied(calls, "belongs to uid 0")

    as_nobody(body)
    assert sysv.semctl(semset, 0, GETALL) == [0, 0]


def test_a_set_to_read(new_set: Make, as_nobody: AsNobody) -> None:
    semset = new_set(IPC_PRIVATE, 1, 0o604)

    def body() -> None:
        assert sysv.semctl(semset, 0, GETALL) == [0]
        sysv.semop(semset, [(0, 0)])
        check_denied({"semop": (errno.EACCES, lambda: sysv.semop(semset, [(0, 1)]))}, "mode 0o604")

    as_nobody(body)


def test_a_set_to_write(new_set: Make, as_nobody: AsNobody) -> None:
    """SETALL needs to know the number of semaphores, which IPC_STAT tells only to those who may read."""
    semset = new_set(IPC_PRIVATE, 3, 0o602)

    def body() -> None:
        sysv.semctl(semset, 0, SETALL, [4, 5, 6])
        with pytest.raises(ValueError, match="needs 3 values"):
            sysv.semctl(semset, 0, SETALL, [4, 5])
        check_denied({"semctl getall": (errno.EACCES, lambda: sysv.semctl(semset, 0, GETALL))}, "mode 0o602")

    as_nobody(body)
    assert sysv.semctl(semset, 0, GETALL) == [4, 5, 6]


def test_a_private_segment(new_segment: Make, as_nobody: AsNobody) -> None:
    segment = new_segment(KEY, 100, sysv.IPC_CREAT | sysv.IPC_EXCL | 0o600)

    def body() -> None:
        assert sysv.shmget(KEY, 0, 0) == segment
        calls: Calls = {
            "shmget": (errno.EACCES, lambda: sysv.shmget(KEY, 0)),
            "shmat": (errno.EACCES, lambda: sysv.shmat(segment)),
            "shmat to read": (errno.EACCES, lambda: sysv.shmat(segment, None, SHM_RDONLY)),
            "shmctl stat": (errno.EACCES, lambda: sysv.shmctl(segment, IPC_STAT)),
            "shmctl set": (errno.EPERM, lambda: sysv.shmctl(segment, IPC_SET, uid=0, gid=0, mode=0)),
            "shmctl lock": (errno.EPERM, lambda: sysv.shmctl(segment, sysv.SHM_LOCK)),
            "shmctl unlock": (errno.EPERM, lambda: sysv.shmctl(segment, sysv.SHM_UNLOCK)),
            "shmctl rmid": (errno.EPERM, lambda: sysv.shmctl(segment, IPC_RMID)),
        }
        check_denied(calls, "belongs to uid 0")

    as_nobody(body)


def test_a_segment_to_read(new_segment: Make, as_nobody: AsNobody) -> None:
    segment = new_segment(IPC_PRIVATE, 100, 0o604)

    def body() -> None:
        with sysv.shmat(segment, None, SHM_RDONLY) as seg:
            assert bytes(seg) == bytes(100)
        check_denied({"shmat": (errno.EACCES, lambda: sysv.shmat(segment))}, "mode 0o604")
        check_denied(
            {"shmat": (errno.EACCES, lambda: sysv.shmat(segment, None, SHM_RDONLY | sysv.SHM_EXEC))}, "mode 0o604"
        )

    as_nobody(body)


def test_an_owner_may_do_what_the_creator_may(new_queue: Make, as_nobody: AsNobody) -> None:
    queue = new_queue(IPC_PRIVATE)
    sysv.msgctl(queue, IPC_SET, uid=65534, gid=65534)

    def body() -> None:
        sysv.msgctl(queue, IPC_SET, mode=0o200)
        sysv.msgsnd(queue, 1, b"")
        with pytest.raises(PermissionError, match="uid 65534 and was created by uid 0"):
            sysv.msgrcv(queue)
        with pytest.raises(sysv.LimitPermissionError, match=r"kernel\.msgmnb"):
            sysv.msgctl(queue, IPC_SET, uid=65534, gid=65534, mode=0o600, msg_qbytes=sysv.limits().msgmnb + 1)
        sysv.msgctl(queue, IPC_RMID)

    as_nobody(body)


def test_everything_works_for_an_ordinary_user(as_nobody: AsNobody) -> None:
    def body() -> None:
        queue, semset, segment = sysv.msgget(IPC_PRIVATE), sysv.semget(IPC_PRIVATE, 2), sysv.shmget(IPC_PRIVATE, 10)
        try:
            sysv.msgsnd(queue, 1, b"text")
            assert sysv.msgrcv(queue) == (1, b"text")
            sysv.semop(semset, [(0, 1, sysv.SEM_UNDO)])
            assert sysv.semctl(semset, 0, GETALL) == [1, 0]
            with sysv.shmat(segment) as seg, memoryview(seg) as view:
                view[:] = b"0123456789"
            assert {info.uid for info in sysv.message_queues() if info.msqid == queue} == {65534}
        finally:
            sysv.msgctl(queue, IPC_RMID)
            sysv.semctl(semset, 0, IPC_RMID)
            sysv.shmctl(segment, IPC_RMID)

    as_nobody(body)

from __future__ import annotations

import copy
import errno
import pickle

import pytest

from mpipc import sysv
from mpipc.sysv import IPC_NOWAIT, IPC_PRIVATE, errors

BUILTIN: list[tuple[type[sysv.SysVError], type[OSError]]] = [
    (sysv.SysVError, OSError),
    (sysv.SysVFileExistsError, FileExistsError),
    (sysv.SysVFileNotFoundError, FileNotFoundError),
    (sysv.SysVPermissionError, PermissionError),
    (sysv.SysVBlockingIOError, BlockingIOError),
    (sysv.SysVTimeoutError, TimeoutError),
    (sysv.SysVTimeoutError, BlockingIOError),
    (sysv.LimitPermissionError, PermissionError),
    (sysv.LimitPermissionError, sysv.LimitError),
]


@pytest.mark.parametrize(("ours", "builtin"), BUILTIN)
def test_ours_is_also_the_builtin_class(ours: type[sysv.SysVError], builtin: type[OSError]) -> None:
    assert issubclass(ours, builtin) and issubclass(ours, sysv.SysVError)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EEXIST, sysv.SysVFileExistsError),
        (errno.ENOENT, sysv.SysVFileNotFoundError),
        (errno.EACCES, sysv.SysVPermissionError),
        (errno.EPERM, sysv.SysVPermissionError),
        (errno.EAGAIN, sysv.SysVBlockingIOError),
        (errno.ENOMSG, sysv.SysVBlockingIOError),
        (errno.EIDRM, sysv.RemovedError),
        (errno.ENOMEM, sysv.LimitError),
        (errno.ENOSYS, sysv.SysVError),
        (errno.EFAULT, sysv.SysVError),
    ],
)
@pytest.mark.parametrize("call", ["msgget", "msgsnd", "msgrcv", "msgctl", "semop", "semctl", "shmat", "shmctl"])
def test_class_of_an_errno(call: str, number: int, kind: type[sysv.SysVError]) -> None:
    error = errors.from_errno(number, call, {"key": 0x1234, "msgflg": 0})
    assert type(error) is kind
    assert error.errno == number


def test_the_most_open_files() -> None:
    error = errors.from_errno(errno.ENFILE, "shmget", {"key": 0, "size": 1, "shmflg": 0o600})
    assert isinstance(error, sysv.LimitError)
    assert (error.limit, error.sysctl) == ("file-max", "fs.file-max")
    assert error.value is not None and error.value > 0


def test_an_error_has_the_call_and_its_arguments(queue: int) -> None:
    with pytest.raises(sysv.SysVError) as caught:
        sysv.msgrcv(queue, 64, -3, IPC_NOWAIT | sysv.MSG_NOERROR)
    error = caught.value
    assert error.call == "msgrcv"
    assert error.arguments == {"msqid": queue, "msgsz": 64, "msgtyp": -3, "msgflg": IPC_NOWAIT | sysv.MSG_NOERROR}
    assert error.args == (errno.ENOMSG, error.strerror)
    assert str(error) == (
        f"[Errno {errno.ENOMSG}] msgrcv(msqid={queue}, msgsz=64, msgtyp=-3, msgflg=IPC_NOWAIT|MSG_NOERROR):"
        f" {error.strerror}"
    )


def test_the_example_of_the_documentation() -> None:
    semmsl = sysv.limits().semmsl
    with pytest.raises(OSError) as caught:
        sysv.semget(IPC_PRIVATE, semmsl + 8000)
    assert str(caught.value) == (
        f"[Errno 22] semget(key=IPC_PRIVATE, nsems={semmsl + 8000}, semflg=0o600): Invalid argument;"
        f" SEMMSL, the most semaphores in one set, is {semmsl};"
        " raise it with the first of the four numbers of sysctl kernel.sem"
    )


def test_errors_travel_between_processes(queue: int, semset: int) -> None:
    calls = (
        lambda: sysv.msgrcv(queue, msgflg=IPC_NOWAIT),
        lambda: sysv.semtimedop(semset, [(0, -1)], 0),
        lambda: sysv.semop(semset, [(0, 40000)]),
        lambda: sysv.semop(-1, [(0, 1)]),
        lambda: sysv.msgget(0x12345, 0),
    )
    for call in calls:
        with pytest.raises(sysv.SysVError) as caught:
            call()
        error = caught.value
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(other) is type(error)
            assert (str(other), other.errno, other.args) == (str(error), error.errno, error.args)
            assert vars(other) == vars(error)


def test_an_error_made_by_hand_is_an_oserror_like_any_other() -> None:
    error = sysv.LimitError(errno.ENOSPC, "nothing left")
    assert str(error) == f"[Errno {errno.ENOSPC}] nothing left"
    assert (error.call, error.arguments, error.limit, error.value, error.sysctl) == ("", {}, "", None, None)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (sysv.SHM_RDONLY, "shmflg=SHM_RDONLY)"),
        (sysv.SHM_REMAP | sysv.SHM_RND | sysv.SHM_EXEC, "shmflg=SHM_RND|SHM_REMAP|SHM_EXEC)"),
        (0, "shmflg=0)"),
        (1, "shmflg=0x1)"),
    ],
)
def test_flags_have_names(number: int, text: str) -> None:
    with pytest.raises(sysv.RemovedError) as caught:
        sysv.shmat(-1, None, number)
    assert text in str(caught.value)


@pytest.mark.parametrize("number", [-1, (1 << 31) - 1])
def test_an_id_that_names_nothing(number: int) -> None:
    for call in (
        lambda: sysv.msgsnd(number, 1, b""),
        lambda: sysv.semop(number, [(0, 1)]),
        lambda: sysv.shmat(number),
    ):
        with pytest.raises(sysv.RemovedError, match="no object of this IPC namespace has this id") as caught:
            call()
        assert caught.value.errno == errno.EINVAL

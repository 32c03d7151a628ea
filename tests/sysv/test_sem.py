from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import kernel_rows, wait_until

from mpipc import sysv
from mpipc.sysv import (
    GETALL,
    GETNCNT,
    GETPID,
    GETVAL,
    GETZCNT,
    IPC_CREAT,
    IPC_EXCL,
    IPC_NOWAIT,
    IPC_PRIVATE,
    IPC_RMID,
    IPC_SET,
    IPC_STAT,
    SEM_UNDO,
    SETALL,
    SETVAL,
)

from .conftest import Body, Child, Make, set_limit


def values(semset: int) -> list[int]:
    return sysv.semctl(semset, 0, GETALL)


def waiters(semset: int, semnum: int = 0) -> int:
    """How many wait for the semaphore to grow, or to be zero."""
    return sysv.semctl(semset, semnum, GETNCNT) + sysv.semctl(semset, semnum, GETZCNT)


# ---- semget


def test_a_new_set_is_all_zero(new_set: Make) -> None:
    semset = new_set(IPC_PRIVATE, 300)
    assert values(semset) == [0] * 300
    row = kernel_rows("sem")[semset]
    assert (row["nsems"], row["perms"]) == (300, 0o600)


def test_create_find_and_exclude(new_set: Make, tmp_path: Path) -> None:
    key = sysv.ftok(tmp_path, 1)
    with pytest.raises(FileNotFoundError):
        sysv.semget(key, 0)
    semset = new_set(key, 3, IPC_CREAT | IPC_EXCL | 0o600)
    assert sysv.semget(key, 0) == sysv.semget(key, 2, 0) == sysv.semget(key, 3, IPC_CREAT | 0o600) == semset
    with pytest.raises(FileExistsError):
        sysv.semget(key, 3, IPC_CREAT | IPC_EXCL | 0o600)


def test_a_set_that_is_too_small(new_set: Make, tmp_path: Path) -> None:
    key = sysv.ftok(tmp_path, 1)
    new_set(key, 3, IPC_CREAT | 0o600)
    with pytest.raises(sysv.LimitError, match=r"has 3 semaphore\(s\)") as caught:
        sysv.semget(key, 4)
    assert (caught.value.errno, caught.value.limit, caught.value.value) == (errno.EINVAL, "sem_nsems", 3)


@pytest.mark.parametrize("nsems", [0, -1, -(1 << 40)])
def test_a_set_of_nothing(nsems: int) -> None:
    with pytest.raises(sysv.SysVError, match="at least one semaphore") as caught:
        sysv.semget(IPC_PRIVATE, nsems)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("excess", [1, 1 << 31, 1 << 70])
def test_limit_of_semaphores_in_a_set(excess: int) -> None:
    semmsl = sysv.limits().semmsl
    with pytest.raises(sysv.LimitError) as caught:
        sysv.semget(IPC_PRIVATE, semmsl + excess)
    error = caught.value
    assert (error.errno, error.limit, error.value, error.sysctl) == (errno.EINVAL, "SEMMSL", semmsl, "kernel.sem")
    text = str(error)
    assert f"semget(key=IPC_PRIVATE, nsems={semmsl + excess}, semflg=0o600)" in text
    assert f"is {semmsl}" in text and "first of the four numbers of sysctl kernel.sem" in text


def test_limits_of_sets_and_of_all_semaphores(in_namespace: Callable[[Body], None]) -> None:
    def body() -> None:
        set_limit("sem", "10 15 500 2")
        sysv.semget(IPC_PRIVATE, 10)
        with pytest.raises(sysv.LimitError) as semmns:
            sysv.semget(IPC_PRIVATE, 6)
        sysv.semget(IPC_PRIVATE, 5)
        with pytest.raises(sysv.LimitError) as semmni:
            sysv.semget(IPC_PRIVATE, 1)
        for error, limit, value, position in (
            (semmns.value, "SEMMNS", 15, "second"),
            (semmni.value, "SEMMNI", 2, "fourth"),
        ):
            assert (error.errno, error.limit, error.value, error.sysctl) == (errno.ENOSPC, limit, value, "kernel.sem")
            assert f"{position} of the four numbers of sysctl kernel.sem" in str(error)
        assert f"user id {os.geteuid()} has 2" in str(semmni.value)

    in_namespace(body)


# ---- semop


def test_operations_add_and_take(semset: int) -> None:
    sysv.semop(semset, [(0, 5), (2, 7)])
    sysv.semop(semset, [(0, -2)])
    assert values(semset) == [3, 0, 7]


@pytest.mark.parametrize(
    "sops",
    [
        [(1, 4, 0)],
        ((1, 4),),
        [[1, 4]],
        (operation for operation in [(1, 1), (1, 3)]),
        [sysv.sembuf(1, 4)],
        [sysv.sembuf(sem_num=1, sem_op=4, sem_flg=IPC_NOWAIT)],
        [(1, 1)] * 4,
        [(1, 1), (1, -1)] * 40 + [(1, 4)],
    ],
    ids=["three", "tuple", "list", "generator", "sembuf", "sembuf-flags", "four", "many"],
)
def test_ways_to_write_operations(semset: int, sops: list[tuple[int, int]]) -> None:
    sysv.semop(semset, sops)
    assert values(semset) == [0, 4, 0]


def test_all_operations_or_none(semset: int) -> None:
    with pytest.raises(BlockingIOError) as caught:
        sysv.semop(semset, [(0, 1), (1, -1, IPC_NOWAIT), (2, 1)])
    assert caught.value.errno == errno.EAGAIN
    assert not isinstance(caught.value, TimeoutError)
    assert values(semset) == [0, 0, 0]


def test_operations_see_those_before_them(semset: int) -> None:
    sysv.semop(semset, [(0, 1), (0, -1), (0, 0), (0, 2)])
    assert values(semset) == [2, 0, 0]


def test_wait_for_zero_without_waiting(semset: int) -> None:
    sysv.semop(semset, [(0, 0)])
    sysv.semctl(semset, 0, SETVAL, 1)
    with pytest.raises(BlockingIOError):
        sysv.semop(semset, [(0, 0, IPC_NOWAIT)])


def test_a_patient_operation_beside_an_impatient_one(semset: int, fork_child: Callable[..., Child]) -> None:
    """Only the operation that cannot be done decides whether the call waits."""
    sysv.semop(semset, [(1, 1)])
    sops = [(0, -1), (1, -1, IPC_NOWAIT)]
    child = fork_child(lambda: sysv.semop(semset, sops))
    wait_until(lambda: waiters(semset))
    sysv.semop(semset, [(0, 1)])
    child.join()
    assert values(semset) == [0, 0, 0]
    sysv.semop(semset, [(0, 1)])
    with pytest.raises(BlockingIOError):
        sysv.semop(semset, sops)


def test_wait_for_growth(semset: int, fork_child: Callable[..., Child]) -> None:
    child = fork_child(lambda: sysv.semop(semset, [(1, -2)]))
    wait_until(lambda: sysv.semctl(semset, 1, GETNCNT) == 1)
    assert sysv.semctl(semset, 1, GETZCNT) == 0
    sysv.semop(semset, [(1, 1)])
    assert sysv.semctl(semset, 1, GETNCNT) == 1
    sysv.semop(semset, [(1, 1)])
    child.join()
    assert (values(semset), sysv.semctl(semset, 1, GETNCNT)) == ([0, 0, 0], 0)


def test_wait_for_zero(semset: int, fork_child: Callable[..., Child]) -> None:
    sysv.semctl(semset, 1, SETVAL, 2)
    child = fork_child(lambda: sysv.semop(semset, [(1, 0)]))
    wait_until(lambda: sysv.semctl(semset, 1, GETZCNT) == 1)
    assert sysv.semctl(semset, 1, GETNCNT) == 0
    sysv.semop(semset, [(1, -2)])
    child.join()


def test_undo_on_exit(semset: int, fork_child: Callable[..., Child]) -> None:
    sysv.semctl(semset, 0, SETALL, [5, 5, 5])
    fork_child(lambda: sysv.semop(semset, [(0, -2, SEM_UNDO), (1, 3, SEM_UNDO), (2, -1)])).join()
    assert values(semset) == [5, 5, 4]


def test_undo_on_sigkill(semset: int, fork_child: Callable[..., Child]) -> None:
    sysv.semctl(semset, 0, SETVAL, 1)

    def body() -> None:
        sysv.semop(semset, [(0, -1, SEM_UNDO)])
        sysv.semop(semset, [(1, -1)])  # for ever

    child = fork_child(body)
    wait_until(lambda: waiters(semset, 1))
    assert values(semset) == [0, 0, 0]
    os.kill(child.pid, signal.SIGKILL)
    sysv.semop(semset, [(0, -1)])  # waits for the undo
    child.wait_dead()


def test_limit_of_operations(semset: int) -> None:
    semopm = sysv.limits().semopm
    sysv.semop(semset, [(0, 1), (0, -1)] * (semopm // 2))
    with pytest.raises(sysv.LimitError) as caught:
        sysv.semop(semset, [(0, 1)] * (semopm + 1))
    error = caught.value
    assert (error.errno, error.limit, error.value, error.sysctl) == (errno.E2BIG, "SEMOPM", semopm, "kernel.sem")
    assert "third of the four numbers of sysctl kernel.sem" in str(error)
    assert len(str(error)) < 600


@pytest.mark.parametrize("sem_num", [3, 65535, 65536, 1 << 40, -1])
def test_a_number_outside_the_set(semset: int, sem_num: int) -> None:
    with pytest.raises(sysv.LimitError, match="numbered from 0 to 2") as caught:
        sysv.semop(semset, [(sem_num, 1)])
    error = caught.value
    assert (error.errno, error.limit, error.value, error.sysctl) == (errno.EFBIG, "sem_nsems", 3, None)


@pytest.mark.parametrize("sem_op", [32767, 32768, 1 << 40])
def test_a_value_above_semvmx(semset: int, sem_op: int) -> None:
    sysv.semctl(semset, 0, SETVAL, 1)
    with pytest.raises(sysv.LimitError, match="SEMVMX") as caught:
        sysv.semop(semset, [(0, sem_op)])
    error = caught.value
    assert (error.errno, error.limit, error.value, error.sysctl) == (errno.ERANGE, "SEMVMX", 32767, None)
    assert values(semset) == [1, 0, 0]


def test_no_operations(semset: int) -> None:
    with pytest.raises(sysv.SysVError, match="at least one operation") as caught:
        sysv.semop(semset, [])
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("sops", [[(0,)], [(0, 1, 0, 0)]])
def test_malformed_operations(semset: int, sops: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="an operation is"):
        sysv.semop(semset, sops)


@pytest.mark.parametrize("sops", [[1], 7, [("0", 1)], [(0, 1.5)]])
def test_operations_of_the_wrong_type(semset: int, sops: list[tuple[int, int]]) -> None:
    with pytest.raises(TypeError):
        sysv.semop(semset, sops)


@pytest.mark.parametrize("sem_flg", [-1, 1 << 15, 1 << 40])
def test_flags_that_are_none(semset: int, sem_flg: int) -> None:
    with pytest.raises(ValueError, match="IPC_NOWAIT and SEM_UNDO"):
        sysv.semop(semset, [(0, 1, sem_flg)])


# ---- semtimedop


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9, 0.05])
def test_timeout(semset: int, timeout: float) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        sysv.semtimedop(semset, [(0, -1)], timeout)
    assert time.monotonic() - start >= timeout
    assert isinstance(caught.value, sysv.SysVTimeoutError) and isinstance(caught.value, BlockingIOError)
    assert caught.value.errno == errno.EAGAIN
    assert f"timeout={timeout})" in str(caught.value)


@pytest.mark.parametrize("timeout", [None, 0, 3600, 1e12, float("inf")])
def test_success_needs_no_time(semset: int, timeout: float | None) -> None:
    sysv.semtimedop(semset, [(0, 1)], timeout)
    sysv.semtimedop(semset, [(0, -1)], timeout)
    sysv.semtimedop(semset, [(0, 0)], timeout)


@pytest.mark.parametrize("timeout", [None, 3600, 1e12, float("inf")])
def test_success_within_the_time(semset: int, timeout: float | None, fork_child: Callable[..., Child]) -> None:
    child = fork_child(lambda: sysv.semtimedop(semset, [(0, -1)], timeout))
    wait_until(lambda: waiters(semset))
    sysv.semop(semset, [(0, 1)])
    child.join()


def test_nowait_is_no_timeout(semset: int) -> None:
    with pytest.raises(BlockingIOError) as caught:
        sysv.semtimedop(semset, [(0, -1, IPC_NOWAIT)], 3600)
    assert not isinstance(caught.value, TimeoutError)
    sysv.semop(semset, [(1, 1)])
    with pytest.raises(BlockingIOError) as caught:
        sysv.semtimedop(semset, [(1, -1), (0, -1, IPC_NOWAIT)], 3600)
    assert not isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("timeout", [-1, -1e-9, float("nan")])
def test_a_timeout_that_is_none(semset: int, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be a number of seconds"):
        sysv.semtimedop(semset, [(0, 1)], timeout)
    assert values(semset) == [0, 0, 0]


def test_other_threads_run_while_one_waits(semset: int) -> None:
    def release() -> None:
        wait_until(lambda: waiters(semset))
        sysv.semop(semset, [(0, 1)])

    calls: tuple[Callable[[], None], ...] = (
        lambda: sysv.semop(semset, [(0, -1)]),
        lambda: sysv.semtimedop(semset, [(0, -1)]),
        lambda: sysv.semtimedop(semset, [(0, -1)], 3600),
    )
    for call in calls:
        thread = threading.Thread(target=release)
        thread.start()
        call()  # would last for ever, if it kept the GIL
        thread.join()


# ---- semctl


def test_set_and_get(semset: int) -> None:
    sysv.semctl(semset, 1, SETVAL, 32767)
    assert sysv.semctl(semset, 1, GETVAL) == 32767
    sysv.semctl(semset, 0, SETALL, (7, 0, 9))
    assert values(semset) == [7, 0, 9]
    assert [sysv.semctl(semset, number, GETVAL) for number in range(3)] == [7, 0, 9]
    sysv.semctl(semset, 0, SETALL, iter([1, 2, 3]))
    assert values(semset) == [1, 2, 3]


@pytest.mark.parametrize("value", [32768, 65535, 65536, 1 << 40, -1])
def test_set_a_value_out_of_range(semset: int, value: int) -> None:
    calls: tuple[Callable[[], None], ...] = (
        lambda: sysv.semctl(semset, 1, SETVAL, value),
        lambda: sysv.semctl(semset, 0, SETALL, [1, value, 1]),
    )
    for call in calls:
        with pytest.raises(sysv.LimitError, match="SEMVMX") as caught:
            call()
        assert (caught.value.errno, caught.value.value) == (errno.ERANGE, 32767)
        assert str(value) in str(caught.value)
    assert values(semset) == [0, 0, 0]


@pytest.mark.parametrize("given", [[], [1, 2], [1, 2, 3, 4]])
def test_setall_needs_a_value_for_each(semset: int, given: list[int]) -> None:
    with pytest.raises(ValueError, match="SETALL needs 3 values"):
        sysv.semctl(semset, 0, SETALL, given)


def test_setval_clears_undo(semset: int, fork_child: Callable[..., Child]) -> None:
    def body() -> None:
        sysv.semop(semset, [(0, 1, SEM_UNDO), (1, 1, SEM_UNDO)])
        sysv.semctl(semset, 0, SETVAL, 5)

    fork_child(body).join()
    assert values(semset) == [5, 0, 0]


def test_setval_wakes(semset: int, fork_child: Callable[..., Child]) -> None:
    child = fork_child(lambda: sysv.semop(semset, [(0, -3)]))
    wait_until(lambda: waiters(semset))
    sysv.semctl(semset, 0, SETVAL, 4)
    child.join()
    assert values(semset)[0] == 1


def test_getpid(semset: int, fork_child: Callable[..., Child]) -> None:
    assert sysv.semctl(semset, 0, GETPID) == 0
    sysv.semop(semset, [(0, 1), (1, 1)])
    child = fork_child(lambda: sysv.semop(semset, [(1, 1)]))
    child.join()
    assert [sysv.semctl(semset, number, GETPID) for number in range(3)] == [os.getpid(), child.pid, 0]


@pytest.mark.parametrize("cmd", [GETVAL, GETPID, GETNCNT, GETZCNT, SETVAL])
@pytest.mark.parametrize("semnum", [3, -1])
def test_a_semaphore_outside_the_set(semset: int, cmd: int, semnum: int) -> None:
    with pytest.raises(sysv.LimitError, match="numbered from 0 to 2") as caught:
        sysv.semctl(semset, semnum, cmd, *([1] if cmd == SETVAL else []))  # type: ignore[call-overload]
    assert caught.value.errno == errno.EINVAL


def test_stat_has_every_field(new_set: Make, tmp_path: Path) -> None:
    before = int(time.time())
    semset = new_set(sysv.ftok(tmp_path, 3), 4, IPC_CREAT | IPC_EXCL | 0o640)
    assert sysv.semctl(semset, 0, IPC_STAT).sem_otime == 0
    sysv.semop(semset, [(0, 1)])
    stat, row = sysv.semctl(semset, 0, IPC_STAT), kernel_rows("sem")[semset]
    perm = stat.sem_perm
    for field in ("key", "uid", "gid", "cuid", "cgid"):
        assert getattr(perm, field) == row[field], field
    assert (perm.key, perm.mode, row["perms"]) == (sysv.ftok(tmp_path, 3), 0o640, 0o640)
    assert perm.uid == os.geteuid() and perm.gid == os.getegid()
    assert perm.seq in (semset >> 15, semset >> 24)
    assert (stat.sem_nsems, stat.sem_otime, stat.sem_ctime) == (row["nsems"], row["otime"], row["ctime"])
    assert stat.sem_nsems == 4
    assert before <= stat.sem_ctime <= stat.sem_otime <= time.time()


def test_ipcs_shows_the_same(new_set: Make, tmp_path: Path) -> None:
    key = sysv.ftok(tmp_path, 0xA5)
    semset = new_set(key, 7, IPC_CREAT | IPC_EXCL | 0o606)
    lines = subprocess.run(["ipcs", "-s"], capture_output=True, text=True, check=True).stdout.splitlines()
    words = next(line.split() for line in lines if line.split()[1:2] == [str(semset)])
    assert (int(words[0], 16), words[3:]) == (key & 0xFFFFFFFF, ["606", "7"])


def test_set_the_mode(semset: int) -> None:
    before = sysv.semctl(semset, 0, IPC_STAT)
    sysv.semctl(semset, 0, IPC_SET, mode=0o644)
    after = sysv.semctl(semset, 0, IPC_STAT)
    assert after == before._replace(sem_perm=before.sem_perm._replace(mode=0o644), sem_ctime=after.sem_ctime)
    sysv.semctl(semset, 0, IPC_SET, before)
    assert sysv.semctl(semset, 0, IPC_STAT).sem_perm == before.sem_perm


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a set to somebody else")
def test_set_the_owner(semset: int) -> None:
    sysv.semctl(semset, 0, IPC_SET, uid=1234, gid=2345)
    row = kernel_rows("sem")[semset]
    assert (row["uid"], row["gid"], row["cuid"], row["cgid"]) == (1234, 2345, os.geteuid(), os.getegid())


def test_arguments_that_do_not_go_together(semset: int) -> None:
    for call in (
        lambda: sysv.semctl(semset, 0, SETVAL),  # type: ignore[call-overload]
        lambda: sysv.semctl(semset, 0, SETALL),  # type: ignore[call-overload]
        lambda: sysv.semctl(semset, 0, IPC_SET),
        lambda: sysv.semctl(semset, 0, GETVAL, 1),  # type: ignore[call-overload]
        lambda: sysv.semctl(semset, 0, IPC_STAT, mode=0o600),  # type: ignore[call-overload]
    ):
        with pytest.raises(TypeError, match="semctl: "):
            call()
    with pytest.raises(ValueError, match="cmd must be GETVAL"):
        sysv.semctl(semset, 0, 99)  # type: ignore[call-overload]


def test_removed_set(semset: int) -> None:
    sysv.semctl(semset, 0, IPC_RMID)
    assert semset not in kernel_rows("sem")
    for call in (
        lambda: sysv.semop(semset, [(0, 1)]),
        lambda: sysv.semtimedop(semset, [(0, -1)], 1),
        lambda: sysv.semctl(semset, 0, GETVAL),
        lambda: sysv.semctl(semset, 0, SETVAL, 1),
        lambda: sysv.semctl(semset, 0, GETALL),
        lambda: sysv.semctl(semset, 0, SETALL, [1, 1, 1]),
        lambda: sysv.semctl(semset, 0, IPC_STAT),
        lambda: sysv.semctl(semset, 0, IPC_SET, mode=0o600),
        lambda: sysv.semctl(semset, 0, IPC_RMID),
    ):
        with pytest.raises(sysv.RemovedError) as caught:
            call()
        assert caught.value.errno == errno.EINVAL
        assert f"semid={semset}" in str(caught.value)


@pytest.mark.parametrize("timeout", [None, 3600])
def test_removal_wakes(semset: int, timeout: float | None, fork_child: Callable[..., Child]) -> None:
    def body() -> None:
        with pytest.raises(sysv.RemovedError) as caught:
            sysv.semtimedop(semset, [(0, -1)], timeout)
        assert caught.value.errno == errno.EIDRM

    child = fork_child(body)
    wait_until(lambda: waiters(semset))
    sysv.semctl(semset, 0, IPC_RMID)
    child.join()


def test_info(semset: int) -> None:
    info = sysv.semctl(0, 0, sysv.IPC_INFO)
    sysctl = [int(word) for word in Path("/proc/sys/kernel/sem").read_text().split()]
    assert [info.semmsl, info.semmns, info.semopm, info.semmni] == sysctl
    used = sysv.semctl(0, 0, sysv.SEM_INFO)
    rows = kernel_rows("sem").values()
    assert (used.semusz, used.semaem) == (len(rows), sum(row["nsems"] for row in rows))

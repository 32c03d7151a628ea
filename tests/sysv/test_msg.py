from __future__ import annotations

import array
import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import kernel_rows, wait_until

from mpipc import sysv
from mpipc.sysv import IPC_CREAT, IPC_EXCL, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, IPC_SET, IPC_STAT, MSG_NOERROR

from .conftest import Body, Child, Make, asleep_in, set_limit


def contents(queue: int) -> list[tuple[int, bytes]]:
    """Take everything out."""
    return [sysv.msgrcv(queue) for _ in range(sysv.msgctl(queue, IPC_STAT).msg_qnum)]


# ---- msgget


def test_private_queues_are_all_new(new_queue: Make) -> None:
    first, second = new_queue(IPC_PRIVATE), new_queue(IPC_PRIVATE)
    assert first != second
    assert {first, second} <= kernel_rows("msg").keys()


def test_create_find_and_exclude(new_queue: Make, tmp_path: Path) -> None:
    key = sysv.ftok(tmp_path, 1)
    with pytest.raises(FileNotFoundError) as missing:
        sysv.msgget(key)
    assert missing.value.errno == errno.ENOENT
    msqid = new_queue(key, IPC_CREAT | IPC_EXCL | 0o600)
    assert sysv.msgget(key) == sysv.msgget(key, 0) == sysv.msgget(key, IPC_CREAT | 0o600) == msqid
    with pytest.raises(FileExistsError) as exists:
        sysv.msgget(key, IPC_CREAT | IPC_EXCL | 0o600)
    assert exists.value.errno == errno.EEXIST
    assert f"msgget(key={key & 0xFFFFFFFF:#010x}, msgflg=IPC_CREAT|IPC_EXCL|0o600)" in str(exists.value)
    assert isinstance(exists.value, sysv.SysVError) and isinstance(missing.value, sysv.SysVError)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o222, 0])
def test_mode(new_queue: Make, mode: int) -> None:
    msqid = new_queue(IPC_PRIVATE, mode)
    assert kernel_rows("msg")[msqid]["perms"] == mode


def test_mode_is_0600_by_default(queue: int) -> None:
    assert kernel_rows("msg")[queue]["perms"] == 0o600


def test_limit_of_queues(in_namespace: Callable[[Body], None]) -> None:
    def body() -> None:
        set_limit("msgmni", 2)
        for _ in range(2):
            sysv.msgget(IPC_PRIVATE)
        with pytest.raises(sysv.LimitError) as caught:
            sysv.msgget(IPC_PRIVATE)
        error = caught.value
        assert (error.errno, error.limit, error.value, error.sysctl) == (errno.ENOSPC, "MSGMNI", 2, "kernel.msgmni")
        assert "MSGMNI" in str(error) and "kernel.msgmni" in str(error) and "msgget(key=IPC_PRIVATE" in str(error)
        assert f"user id {os.geteuid()} has 2" in str(error)

    in_namespace(body)


# ---- msgsnd and msgrcv


def test_type_zero_takes_the_first(queue: int) -> None:
    for mtype in (3, 1, 2):
        sysv.msgsnd(queue, mtype, b"%d" % mtype)
    assert contents(queue) == [(3, b"3"), (1, b"1"), (2, b"2")]


def test_positive_type_takes_the_first_of_that_type(queue: int) -> None:
    for mtype, text in ((3, b"a"), (7, b"b"), (3, b"c")):
        sysv.msgsnd(queue, mtype, text)
    assert sysv.msgrcv(queue, msgtyp=7) == (7, b"b")
    assert sysv.msgrcv(queue, msgtyp=3) == (3, b"a")
    assert sysv.msgrcv(queue, msgtyp=3) == (3, b"c")


def test_negative_type_takes_the_lowest_up_to_it(queue: int) -> None:
    for mtype in (5, 3, 4, 3, 9):
        sysv.msgsnd(queue, mtype, b"")
    assert [sysv.msgrcv(queue, msgtyp=-5)[0] for _ in range(4)] == [3, 3, 4, 5]
    with pytest.raises(BlockingIOError):
        sysv.msgrcv(queue, msgtyp=-5, msgflg=IPC_NOWAIT)


def test_except_takes_any_other_type(queue: int) -> None:
    for mtype in (2, 2, 6):
        sysv.msgsnd(queue, mtype, b"")
    assert sysv.msgrcv(queue, msgtyp=2, msgflg=sysv.MSG_EXCEPT)[0] == 6
    with pytest.raises(BlockingIOError):
        sysv.msgrcv(queue, msgtyp=2, msgflg=sysv.MSG_EXCEPT | IPC_NOWAIT)


def test_copy_leaves_the_message_in_the_queue(queue: int) -> None:
    sysv.msgsnd(queue, 5, b"first")
    sysv.msgsnd(queue, 6, b"second")
    try:
        copy = sysv.msgrcv(queue, msgtyp=1, msgflg=sysv.MSG_COPY | IPC_NOWAIT)
    except sysv.SysVError as error:
        if error.errno == errno.ENOSYS:
            pytest.skip(f"this kernel has no MSG_COPY: {error}")
        raise
    assert copy == (6, b"second")
    assert sysv.msgctl(queue, IPC_STAT).msg_qnum == 2
    with pytest.raises(sysv.SysVError, match="MSG_COPY needs IPC_NOWAIT") as caught:
        sysv.msgrcv(queue, msgtyp=1, msgflg=sysv.MSG_COPY | IPC_NOWAIT | sysv.MSG_EXCEPT)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("mtype", [1, 2**31 - 1, 2**63 - 1])
def test_a_type_is_a_long(queue: int, mtype: int) -> None:
    sysv.msgsnd(queue, mtype, b"")
    assert sysv.msgrcv(queue, msgtyp=mtype) == (mtype, b"")


@pytest.mark.parametrize("mtype", [0, -1])
def test_a_type_is_positive(queue: int, mtype: int) -> None:
    with pytest.raises(sysv.SysVError, match="mtype must be 1 or more") as caught:
        sysv.msgsnd(queue, mtype, b"")
    assert caught.value.errno == errno.EINVAL
    assert not isinstance(caught.value, sysv.LimitError | sysv.RemovedError)


def test_empty_queue_without_waiting(queue: int) -> None:
    with pytest.raises(BlockingIOError) as caught:
        sysv.msgrcv(queue, msgflg=IPC_NOWAIT)
    assert caught.value.errno == errno.ENOMSG
    assert isinstance(caught.value, sysv.SysVBlockingIOError)
    assert "msgflg=IPC_NOWAIT" in str(caught.value)


def test_full_queue_without_waiting(queue: int) -> None:
    sysv.msgctl(queue, IPC_SET, msg_qbytes=100)
    sysv.msgsnd(queue, 1, bytes(60), IPC_NOWAIT)
    with pytest.raises(BlockingIOError) as caught:
        sysv.msgsnd(queue, 1, bytes(41), IPC_NOWAIT)
    assert caught.value.errno == errno.EAGAIN
    sysv.msgsnd(queue, 1, bytes(40), IPC_NOWAIT)
    assert sysv.msgctl(queue, IPC_STAT).msg_cbytes == 100


def test_empty_messages_count_too(queue: int) -> None:
    sysv.msgctl(queue, IPC_SET, msg_qbytes=3)
    for mtype in (1, 2, 3):
        sysv.msgsnd(queue, mtype, b"", IPC_NOWAIT)
    with pytest.raises(BlockingIOError):
        sysv.msgsnd(queue, 4, b"", IPC_NOWAIT)
    assert contents(queue) == [(1, b""), (2, b""), (3, b"")]


@pytest.mark.parametrize("size", [1, 64, 4096, 8191, 8192])
def test_binary_bodies(queue: int, size: int) -> None:
    body = (bytes(range(256)) * 33)[:size]
    sysv.msgsnd(queue, 1, body)
    assert sysv.msgrcv(queue) == (1, body)


@pytest.mark.parametrize(
    "body",
    [
        bytearray(b"\0\1\2\3"),
        memoryview(b"xx\0\1\2\3yy")[2:6],
        array.array("I", [int.from_bytes(b"\0\1\2\3", "little")]),
        memoryview(bytearray(b"\0\1\2\3")).cast("B", (2, 2)),
    ],
    ids=["bytearray", "slice", "array", "two-dimensional"],
)
def test_any_contiguous_buffer(queue: int, body: bytes) -> None:
    sysv.msgsnd(queue, 1, body)
    assert sysv.msgrcv(queue)[1] == memoryview(body).tobytes()


def test_a_buffer_with_gaps_is_refused(queue: int) -> None:
    with pytest.raises(BufferError, match="contiguous"):
        sysv.msgsnd(queue, 1, memoryview(b"abcdef")[::2])


def test_text_is_refused(queue: int) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        sysv.msgsnd(queue, 1, "text")  # type: ignore[arg-type]


def test_a_buffer_is_free_again_after_the_call(queue: int) -> None:
    body = bytearray(10)
    sysv.msgsnd(queue, 1, body)
    body.append(1)  # BufferError while it is exported
    sysv.msgrcv_into(queue, body)
    body.append(1)
    with pytest.raises(BlockingIOError):
        sysv.msgrcv_into(queue, body, msgflg=IPC_NOWAIT)
    body.append(1)


def test_message_too_long_stays(queue: int) -> None:
    sysv.msgsnd(queue, 1, b"12345")
    with pytest.raises(sysv.LimitError, match="MSG_NOERROR") as caught:
        sysv.msgrcv(queue, 4)
    error = caught.value
    assert (error.errno, error.limit, error.value, error.sysctl) == (errno.E2BIG, "msgsz", 4, None)
    assert sysv.msgrcv(queue, 5) == (1, b"12345")


def test_noerror_cuts_the_message(queue: int) -> None:
    sysv.msgsnd(queue, 1, b"12345")
    assert sysv.msgrcv(queue, 4, msgflg=MSG_NOERROR) == (1, b"1234")
    sysv.msgsnd(queue, 1, b"12345")
    assert sysv.msgrcv(queue, 0, msgflg=MSG_NOERROR) == (1, b"")
    assert sysv.msgctl(queue, IPC_STAT).msg_qnum == 0


def test_sizes_beyond_every_message(queue: int) -> None:
    sysv.msgsnd(queue, 1, b"12345")
    assert sysv.msgrcv(queue, 100_000) == (1, b"12345")
    with pytest.raises(ValueError, match="msgsz must not be negative"):
        sysv.msgrcv(queue, -1)


def test_message_longer_than_msgmax(queue: int) -> None:
    msgmax = sysv.limits().msgmax
    with pytest.raises(sysv.LimitError) as caught:
        sysv.msgsnd(queue, 1, bytes(msgmax + 1))
    error = caught.value
    assert (error.errno, error.limit, error.value, error.sysctl) == (errno.EINVAL, "MSGMAX", msgmax, "kernel.msgmax")
    assert f"msgsz={msgmax + 1}" in str(error)


def test_messages_of_a_raised_msgmax(in_namespace: Callable[[Body], None]) -> None:
    def body() -> None:
        set_limit("msgmax", 1 << 20)
        set_limit("msgmnb", 1 << 22)
        queue = sysv.msgget(IPC_PRIVATE)
        long = os.urandom(1 << 20)
        sysv.msgsnd(queue, 1, long)
        assert sysv.msgrcv(queue) == (1, long)
        sysv.msgsnd(queue, 2, long)
        with pytest.raises(sysv.LimitError):
            sysv.msgrcv(queue, 9000)
        assert sysv.msgrcv(queue, len(long)) == (2, long)
        sysv.msgsnd(queue, 2, long)
        assert sysv.msgrcv(queue, msgflg=MSG_NOERROR) == (2, long)  # any length will do: nothing is cut off
        into = bytearray(len(long))
        sysv.msgsnd(queue, 3, long)
        assert sysv.msgrcv_into(queue, into) == (3, len(long))
        assert into == long
        # Sent while it was allowed, received when it no longer is.
        sysv.msgsnd(queue, 4, long)
        set_limit("msgmax", 100)
        assert sysv.msgrcv(queue) == (4, long)

    in_namespace(body)


def test_a_waiting_receiver_takes_a_long_message(fork_child: Callable[..., Child]) -> None:
    def body() -> None:
        set_limit("msgmax", 100_000)
        set_limit("msgmnb", 100_000)
        queue = sysv.msgget(IPC_PRIVATE)
        long = os.urandom(50_000)
        received: list[tuple[int, bytes]] = []
        thread = threading.Thread(target=lambda: received.append(sysv.msgrcv(queue)))
        thread.start()
        wait_until(lambda: asleep_in(thread.native_id or 0, "msgrcv"))
        sysv.msgsnd(queue, 1, long)
        thread.join()
        assert received == [(1, long)]

    fork_child(body, namespace=True).join()


def test_receive_into_a_buffer(queue: int) -> None:
    buffer = bytearray(b"..........")
    sysv.msgsnd(queue, 9, b"\0abc")
    assert sysv.msgrcv_into(queue, buffer) == (9, 4)
    assert buffer == b"\0abc......"
    sysv.msgsnd(queue, 9, b"0123456789X")
    with pytest.raises(sysv.LimitError) as caught:
        sysv.msgrcv_into(queue, buffer)
    assert (caught.value.errno, caught.value.value) == (errno.E2BIG, 10)
    assert sysv.msgrcv_into(queue, memoryview(buffer)[:3], msgflg=MSG_NOERROR) == (9, 3)
    assert buffer == b"012c......"
    with pytest.raises((BufferError, TypeError)):
        sysv.msgrcv_into(queue, b"read-only")


def test_a_receiver_waits_for_its_type(queue: int, fork_child: Callable[..., Child]) -> None:
    def body() -> None:
        assert sysv.msgrcv(queue, msgtyp=2) == (2, b"yes")

    child = fork_child(body)
    child.wait_asleep("msgrcv")
    sysv.msgsnd(queue, 1, b"no")
    sysv.msgsnd(queue, 2, b"yes")
    child.join()
    assert contents(queue) == [(1, b"no")]


def test_a_sender_waits_for_room(queue: int, fork_child: Callable[..., Child]) -> None:
    sysv.msgctl(queue, IPC_SET, msg_qbytes=10)
    sysv.msgsnd(queue, 1, bytes(10))
    child = fork_child(lambda: sysv.msgsnd(queue, 2, b"later"))
    child.wait_asleep("msgsnd")
    assert sysv.msgrcv(queue) == (1, bytes(10))
    child.join()
    assert sysv.msgrcv(queue) == (2, b"later")


def test_other_threads_run_while_one_waits(queue: int) -> None:
    main = threading.get_native_id()

    def send() -> None:
        wait_until(lambda: asleep_in(main, "msgrcv"))
        sysv.msgsnd(queue, 1, b"go")

    sender = threading.Thread(target=send)
    sender.start()
    assert sysv.msgrcv(queue) == (1, b"go")  # would last for ever, if it kept the GIL
    sender.join()


def test_other_threads_run_while_a_sender_waits(queue: int) -> None:
    main = threading.get_native_id()

    def receive() -> None:
        wait_until(lambda: asleep_in(main, "msgsnd"))
        sysv.msgrcv(queue)

    sysv.msgctl(queue, IPC_SET, msg_qbytes=1)
    sysv.msgsnd(queue, 1, b"1")
    receiver = threading.Thread(target=receive)
    receiver.start()
    sysv.msgsnd(queue, 2, b"2")
    receiver.join()
    assert sysv.msgrcv(queue) == (2, b"2")


# ---- msgctl


def test_stat_has_every_field(queue: int, fork_child: Callable[..., Child]) -> None:
    before = int(time.time())
    for text in (b"123", b"4567"):
        fork_child(lambda text=text: sysv.msgsnd(queue, 1, text)).join()
    sysv.msgrcv(queue)
    stat, row = sysv.msgctl(queue, IPC_STAT), kernel_rows("msg")[queue]
    perm = stat.msg_perm
    assert (perm.key, perm.uid, perm.gid, perm.cuid, perm.cgid, perm.mode) == (
        row["key"],
        row["uid"],
        row["gid"],
        row["cuid"],
        row["cgid"],
        row["perms"],
    )
    assert perm.uid == perm.cuid == os.geteuid() and perm.gid == perm.cgid == os.getegid()
    assert perm.seq in (queue >> 15, queue >> 24)  # 24 if the kernel was started with ipcmni_extend
    assert (stat.msg_cbytes, stat.msg_qnum) == (row["cbytes"], row["qnum"]) == (4, 1)
    assert (stat.msg_lspid, stat.msg_lrpid) == (row["lspid"], row["lrpid"])
    assert stat.msg_lspid != stat.msg_lrpid == os.getpid()
    assert (stat.msg_stime, stat.msg_rtime, stat.msg_ctime) == (row["stime"], row["rtime"], row["ctime"])
    assert before <= stat.msg_stime <= stat.msg_rtime <= time.time()
    assert stat.msg_qbytes == sysv.limits().msgmnb


def test_stat_of_a_queue_nobody_used(queue: int) -> None:
    stat = sysv.msgctl(queue, IPC_STAT)
    assert (stat.msg_stime, stat.msg_rtime, stat.msg_lspid, stat.msg_lrpid, stat.msg_qnum) == (0, 0, 0, 0, 0)


def test_ipcs_shows_the_same(new_queue: Make, tmp_path: Path) -> None:
    key = sysv.ftok(tmp_path, 0xA5)
    queue = new_queue(key, IPC_CREAT | IPC_EXCL | 0o640)
    sysv.msgsnd(queue, 1, b"12345")
    lines = subprocess.run(["ipcs", "-q"], capture_output=True, text=True, check=True).stdout.splitlines()
    words = next(line.split() for line in lines if line.split()[1:2] == [str(queue)])
    assert (int(words[0], 16), words[3:]) == (key & 0xFFFFFFFF, ["640", "5", "1"])


def test_set_by_keywords_changes_nothing_else(queue: int) -> None:
    before = sysv.msgctl(queue, IPC_STAT)
    sysv.msgctl(queue, IPC_SET, mode=0o644)
    sysv.msgctl(queue, IPC_SET, msg_qbytes=1234)
    after = sysv.msgctl(queue, IPC_STAT)
    perm = before.msg_perm._replace(mode=0o644)
    assert after == before._replace(msg_perm=perm, msg_qbytes=1234, msg_ctime=after.msg_ctime)
    assert after.msg_ctime >= before.msg_ctime


def test_set_by_structure(queue: int) -> None:
    stat = sysv.msgctl(queue, IPC_STAT)
    sysv.msgctl(queue, IPC_SET, stat._replace(msg_perm=stat.msg_perm._replace(mode=0o660), msg_qbytes=77))
    after = sysv.msgctl(queue, IPC_STAT)
    assert (after.msg_perm.mode, after.msg_qbytes) == (0o660, 77)
    sysv.msgctl(queue, IPC_SET, stat, mode=0o604)  # a keyword wins
    after = sysv.msgctl(queue, IPC_STAT)
    assert (after.msg_perm.mode, after.msg_qbytes) == (0o604, stat.msg_qbytes)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a queue to somebody else")
def test_set_the_owner(queue: int) -> None:
    sysv.msgctl(queue, IPC_SET, uid=1234, gid=2345)
    row = kernel_rows("msg")[queue]
    assert (row["uid"], row["gid"], row["cuid"], row["cgid"]) == (1234, 2345, os.geteuid(), os.getegid())


def test_room_above_msgmnb_needs_a_privilege(queue: int) -> None:
    msgmnb = sysv.limits().msgmnb
    try:
        sysv.msgctl(queue, IPC_SET, msg_qbytes=msgmnb + 1)
    except PermissionError as error:
        assert isinstance(error, sysv.LimitError) and isinstance(error, sysv.SysVPermissionError)
        assert (error.errno, error.limit, error.value, error.sysctl) == (
            errno.EPERM,
            "MSGMNB",
            msgmnb,
            "kernel.msgmnb",
        )
        assert f"msg_qbytes={msgmnb + 1}" in str(error) and "CAP_SYS_RESOURCE" in str(error)
    else:
        assert sysv.msgctl(queue, IPC_STAT).msg_qbytes == msgmnb + 1


def test_set_needs_something_to_set(queue: int) -> None:
    with pytest.raises(TypeError, match="msg_qbytes"):
        sysv.msgctl(queue, IPC_SET)
    with pytest.raises(TypeError, match="IPC_SET only"):
        sysv.msgctl(queue, IPC_STAT, mode=0o600)  # type: ignore[call-overload]


def test_unknown_command(queue: int) -> None:
    with pytest.raises(ValueError, match="cmd must be IPC_STAT"):
        sysv.msgctl(queue, 77)  # type: ignore[call-overload]


def test_removed_queue(queue: int) -> None:
    sysv.msgctl(queue, IPC_RMID)
    assert queue not in kernel_rows("msg")
    calls: list[Callable[[], object]] = [
        lambda: sysv.msgsnd(queue, 1, b""),
        lambda: sysv.msgrcv(queue),
        lambda: sysv.msgrcv_into(queue, bytearray(1)),
        lambda: sysv.msgctl(queue, IPC_STAT),
        lambda: sysv.msgctl(queue, IPC_SET, mode=0o600),
        lambda: sysv.msgctl(queue, IPC_RMID),
    ]
    for call in calls:
        with pytest.raises(sysv.RemovedError) as caught:
            call()
        assert caught.value.errno == errno.EINVAL
        assert f"msqid={queue}" in str(caught.value)


def test_removal_wakes_a_receiver(queue: int, fork_child: Callable[..., Child]) -> None:
    def body() -> None:
        with pytest.raises(sysv.RemovedError) as caught:
            sysv.msgrcv(queue)
        assert caught.value.errno == errno.EIDRM

    child = fork_child(body)
    child.wait_asleep("msgrcv")
    sysv.msgctl(queue, IPC_RMID)
    child.join()


def test_removal_wakes_a_sender(queue: int, fork_child: Callable[..., Child]) -> None:
    def body() -> None:
        with pytest.raises(sysv.RemovedError) as caught:
            sysv.msgsnd(queue, 1, bytes(11))
        assert caught.value.errno == errno.EIDRM

    sysv.msgctl(queue, IPC_SET, msg_qbytes=10)
    child = fork_child(body)
    child.wait_asleep("msgsnd")
    sysv.msgctl(queue, IPC_RMID)
    child.join()


def test_info(queue: int) -> None:
    info = sysv.msgctl(0, sysv.IPC_INFO)
    assert info.msgmax == int(Path("/proc/sys/kernel/msgmax").read_text())
    sysv.msgsnd(queue, 1, b"123")
    used = sysv.msgctl(0, sysv.MSG_INFO)
    rows = kernel_rows("msg").values()
    assert used.msgpool == len(rows)
    assert (used.msgmap, used.msgtql) == (sum(row["qnum"] for row in rows), sum(row["cbytes"] for row in rows))

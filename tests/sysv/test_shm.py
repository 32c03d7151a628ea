from __future__ import annotations

import copy
import ctypes
import errno
import gc
import mmap
import os
import pickle
import resource
import subprocess
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from support import kernel_rows

from mpipc import sysv
from mpipc.sysv import (
    IPC_CREAT,
    IPC_EXCL,
    IPC_PRIVATE,
    IPC_RMID,
    IPC_SET,
    IPC_STAT,
    SHM_DEST,
    SHM_EXEC,
    SHM_HUGETLB,
    SHM_LOCK,
    SHM_LOCKED,
    SHM_NORESERVE,
    SHM_RDONLY,
    SHM_REMAP,
    SHM_RND,
    SHM_UNLOCK,
    SHMLBA,
)

from .conftest import Body, Child, Make, set_limit

PAGE = mmap.PAGESIZE


def attached(segment: int) -> int:
    return kernel_rows("shm")[segment]["nattch"]


def mapping(address: int) -> tuple[str, str]:
    """The permissions and the name of the mapping that begins at the address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        if int(words[0].partition("-")[0], 16) == address:
            return words[1], words[-1]
    raise LookupError(f"nothing is mapped at {address:#x}")


def free_address(pages: int) -> int:
    """An address with room for that many pages, and one before it, where nothing is mapped."""
    with mmap.mmap(-1, (pages + 2) * PAGE) as hole:
        return ctypes.addressof(ctypes.c_char.from_buffer(hole)) + PAGE


# ---- shmget


def test_a_new_segment_is_all_zero(segment: int) -> None:
    with sysv.shmat(segment) as seg:
        assert bytes(seg) == bytes(10000)
    row = kernel_rows("shm")[segment]
    assert (row["size"], row["perms"], row["cpid"]) == (10000, 0o600, os.getpid())


def test_create_find_and_exclude(new_segment: Make, tmp_path: Path) -> None:
    key = sysv.ftok(tmp_path, 1)
    with pytest.raises(FileNotFoundError):
        sysv.shmget(key, 0)
    segment = new_segment(key, 100, IPC_CREAT | IPC_EXCL | 0o600)
    assert sysv.shmget(key, 0) == sysv.shmget(key, 100, 0) == sysv.shmget(key, 7, IPC_CREAT | 0o600) == segment
    with pytest.raises(FileExistsError) as caught:
        sysv.shmget(key, 100, IPC_CREAT | IPC_EXCL | SHM_NORESERVE | 0o600)
    assert "shmflg=IPC_CREAT|IPC_EXCL|SHM_NORESERVE|0o600" in str(caught.value)
    with pytest.raises(sysv.LimitError, match="has 100 bytes") as too_small:
        sysv.shmget(key, 101)
    assert (too_small.value.errno, too_small.value.limit, too_small.value.value) == (errno.EINVAL, "shm_segsz", 100)


def test_noreserve(new_segment: Make) -> None:
    segment = new_segment(IPC_PRIVATE, 1 << 40, SHM_NORESERVE | 0o600)
    assert kernel_rows("shm")[segment]["size"] == 1 << 40


def test_hugetlb(new_segment: Make) -> None:
    try:
        segment = new_segment(IPC_PRIVATE, 1 << 21, SHM_HUGETLB | sysv.SHM_HUGE_2MB | 0o600)
    except sysv.SysVPermissionError as error:
        assert "hugetlb_shm_group" in str(error)
    except sysv.LimitError as error:
        assert (error.errno, error.limit, error.sysctl) == (errno.ENOMEM, "nr_hugepages", "vm.nr_hugepages")
        assert error.value == int(Path("/proc/sys/vm/nr_hugepages").read_text())
    except sysv.SysVError as error:
        assert error.errno == errno.EINVAL and "huge pages of this size" in str(error)
    else:
        with sysv.shmat(segment) as seg:
            assert seg.address % (1 << 21) == 0


def test_huge_page_sizes_in_the_flags() -> None:
    assert 1 << (sysv.SHM_HUGE_2MB >> sysv.SHM_HUGE_SHIFT) == 2 << 20
    assert 1 << (sysv.SHM_HUGE_1GB >> sysv.SHM_HUGE_SHIFT) == 1 << 30


def test_a_segment_of_nothing() -> None:
    with pytest.raises(sysv.SysVError, match="at least one byte") as caught:
        sysv.shmget(IPC_PRIVATE, 0)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="size must not be negative"):
        sysv.shmget(IPC_PRIVATE, -1)


@pytest.mark.parametrize("excess", [1, 1 << 70])
def test_limit_of_the_size_of_a_segment(excess: int) -> None:
    shmmax = sysv.limits().shmmax
    with pytest.raises(sysv.LimitError, match=r"kernel\.shmmax") as caught:
        sysv.shmget(IPC_PRIVATE, shmmax + excess)
    error = caught.value
    assert (error.errno, error.limit, error.value, error.sysctl) == (errno.EINVAL, "SHMMAX", shmmax, "kernel.shmmax")


def test_limits_of_segments_and_of_all_pages(in_namespace: Callable[[Body], None]) -> None:
    def body() -> None:
        set_limit("shmmni", 2)
        set_limit("shmall", 10)
        sysv.shmget(IPC_PRIVATE, 8 * PAGE)
        with pytest.raises(sysv.LimitError) as shmall:
            sysv.shmget(IPC_PRIVATE, 3 * PAGE)
        sysv.shmget(IPC_PRIVATE, 1)
        with pytest.raises(sysv.LimitError) as shmmni:
            sysv.shmget(IPC_PRIVATE, 1)
        for error, limit, value in ((shmall.value, "SHMALL", 10), (shmmni.value, "SHMMNI", 2)):
            sysctl = f"kernel.{limit.lower()}"
            assert (error.errno, error.limit, error.value, error.sysctl) == (errno.ENOSPC, limit, value, sysctl)
            assert sysctl in str(error)

    in_namespace(body)


# ---- shmat, the attachment as a buffer


def test_an_attachment_is_a_writable_buffer(segment: int) -> None:
    with sysv.shmat(segment) as seg, sysv.shmat(segment) as other:
        with memoryview(seg) as view:
            assert (view.nbytes, view.format, view.itemsize, view.ndim, view.readonly) == (10000, "B", 1, 1, False)
            assert view.shape == (10000,) and view.strides == (1,) and view.c_contiguous
            view[9990:] = b"0123456789"
            assert view.obj is seg
        assert bytes(other)[9990:] == b"0123456789"
        assert (seg.size, len(seg), seg.shmid, seg.readonly, seg.attached) == (10000, 10000, segment, False, True)
        assert seg.address != other.address
        assert ctypes.string_at(seg.address + 9990, 10) == b"0123456789"
        assert mapping(seg.address)[0] == "rw-s"
        assert f"shmid {segment}, 10000 bytes, at {seg.address:#x}" in repr(seg)


def test_numpy_sees_it(segment: int) -> None:
    numpy = pytest.importorskip("numpy")
    with sysv.shmat(segment) as seg:
        array = numpy.frombuffer(seg, dtype=numpy.uint32)
        array[:] = 7
        with pytest.raises(BufferError, match=r"1 view\(s\)"):
            sysv.shmdt(seg)
        assert array.sum() == 7 * 2500
        del array


def test_read_only(segment: int) -> None:
    with sysv.shmat(segment, None, SHM_RDONLY) as seg:
        assert seg.readonly
        assert mapping(seg.address)[0] == "r--s"
        with memoryview(seg) as view:
            assert view.readonly
            with pytest.raises(TypeError, match="read-only"):
                view[0] = 1
        with pytest.raises(BufferError, match="SHM_RDONLY"):
            sysv.msgrcv_into(0, seg)
        assert "read-only" in repr(seg)


def test_executable(new_segment: Make) -> None:
    segment = new_segment(IPC_PRIVATE, PAGE, 0o700)
    with sysv.shmat(segment, None, SHM_EXEC) as seg:
        assert mapping(seg.address)[0] == "rwxs"


def test_at_an_address(segment: int) -> None:
    address = free_address(3)
    with sysv.shmat(segment, address) as seg:
        assert seg.address == address
        assert mapping(address)[0] == "rw-s"


def test_an_address_is_rounded_down_if_asked(segment: int) -> None:
    address = free_address(3) // SHMLBA * SHMLBA
    with sysv.shmat(segment, address + SHMLBA - 1, SHM_RND) as seg:
        assert seg.address == address
    with pytest.raises(sysv.SysVError, match="multiple of SHMLBA") as caught:
        sysv.shmat(segment, address + 1)
    assert caught.value.errno == errno.EINVAL
    assert f"shmaddr={address + 1:#x}" in str(caught.value)


def test_an_address_in_use(segment: int) -> None:
    with sysv.shmat(segment) as seg:
        with pytest.raises(sysv.SysVError, match="must be free") as caught:
            sysv.shmat(segment, seg.address)
        assert caught.value.errno == errno.EINVAL
        assert not isinstance(caught.value, sysv.RemovedError | sysv.LimitError)


def test_remap_replaces_another_mapping(segment: int) -> None:
    with mmap.mmap(-1, 3 * PAGE) as ordinary:
        ordinary[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(ordinary))
        seg = sysv.shmat(segment, address, SHM_REMAP)
        assert seg.address == address
        memoryview(seg)[0] = 42
        assert ordinary[0] == 42
        with sysv.shmat(segment) as other:
            assert memoryview(other)[0] == 42
        # Give the addresses back to `ordinary`, which is going to unmap them.
        seg.detach()
        ctypes.CDLL(None).mmap(
            ctypes.c_void_p(address), ctypes.c_size_t(3 * PAGE), 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10, -1, 0
        )


def test_remap_replaces_an_attachment(new_segment: Make) -> None:
    old, new = new_segment(IPC_PRIVATE, 2 * PAGE), new_segment(IPC_PRIVATE, 3 * PAGE)
    address = free_address(3)
    first = sysv.shmat(old, address)
    with sysv.shmat(new, address, SHM_REMAP) as second:
        assert (first.attached, second.attached) == (False, True)
        assert (attached(old), attached(new)) == (0, 1)
        assert "detached" in repr(first)
        first.detach()
        del first
        gc.collect()
        memoryview(second)[0] = 1  # would be SIGSEGV, had the first detached what is not its own any more
        assert attached(new) == 1


def test_remap_spares_what_python_can_see(new_segment: Make) -> None:
    old, new = new_segment(IPC_PRIVATE, 2 * PAGE), new_segment(IPC_PRIVATE, PAGE)
    address = free_address(3)
    with sysv.shmat(old, address) as first:
        for shmaddr, shmflg in ((address, 0), (address + PAGE, 0), (address + SHMLBA - 1, SHM_RND)):
            with pytest.raises(ValueError, match="only a part"):
                sysv.shmat(new, shmaddr, SHM_REMAP | shmflg)
        with memoryview(first) as view:
            with pytest.raises(BufferError, match=r"1 view\(s\)"):
                sysv.shmat(old, address, SHM_REMAP)
            view[-1] = 1
        assert (attached(old), attached(new)) == (1, 0)


def test_remap_needs_an_address(segment: int) -> None:
    with pytest.raises(sysv.SysVError, match="SHM_REMAP needs an address") as caught:
        sysv.shmat(segment, None, SHM_REMAP)
    assert caught.value.errno == errno.EINVAL


def test_limit_of_the_address_space(new_segment: Make, fork_child: Callable[..., Child]) -> None:
    segment = new_segment(IPC_PRIVATE, 1 << 33, SHM_NORESERVE | 0o600)

    def body() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        limit = used + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with pytest.raises(sysv.LimitError, match="RLIMIT_AS") as caught:
            sysv.shmat(segment)
        assert (caught.value.errno, caught.value.limit, caught.value.value) == (errno.ENOMEM, "RLIMIT_AS", limit)

    fork_child(body).join()


def test_only_shmat_makes_attachments(segment: int) -> None:
    with pytest.raises(TypeError, match="shmat"):
        sysv.Attachment()
    with sysv.shmat(segment) as seg:
        for duplicate in (pickle.dumps, copy.copy):
            with pytest.raises(TypeError, match="pass the shmid on"):
                duplicate(seg)


# ---- shmdt


def test_detach(segment: int) -> None:
    seg = sysv.shmat(segment)
    assert attached(segment) == 1
    address = seg.address
    sysv.shmdt(seg)
    assert attached(segment) == 0
    with pytest.raises(LookupError):
        mapping(address)
    assert not seg.attached and "detached" in repr(seg)
    with pytest.raises(ValueError, match="detached"):
        memoryview(seg)
    with pytest.raises(ValueError, match="detached"):
        _ = seg.address
    with pytest.raises(sysv.SysVError, match="detached already") as caught:
        sysv.shmdt(seg)
    assert caught.value.errno == errno.EINVAL
    seg.detach()  # does nothing


def test_detaching_is_refused_while_there_are_views(segment: int) -> None:
    seg = sysv.shmat(segment)
    first, second = memoryview(seg), memoryview(seg)
    ways: tuple[Callable[[], None], ...] = (lambda: sysv.shmdt(seg), seg.detach)
    for detach in ways:
        with pytest.raises(BufferError, match=r"2 view\(s\)"):
            detach()
    part = first[10:20]
    first.release()
    second.release()
    with pytest.raises(BufferError, match=r"1 view\(s\)"):
        sysv.shmdt(seg)
    part[0] = 1
    part.release()
    sysv.shmdt(seg)


def test_shmdt_takes_attachments_only(segment: int) -> None:
    with sysv.shmat(segment) as seg:
        for wrong in (seg.address, None, b""):
            with pytest.raises(TypeError):
                sysv.shmdt(wrong)  # type: ignore[arg-type]


def test_with_refuses_to_leave_views_behind(segment: int) -> None:
    with pytest.raises(BufferError, match=r"1 view\(s\)"), sysv.shmat(segment) as seg:
        view = memoryview(seg)
    view.release()
    assert seg.attached
    seg.detach()


def test_with_does_not_hide_an_exception_behind_views(segment: int) -> None:
    with pytest.raises(ZeroDivisionError), sysv.shmat(segment) as seg:
        view = memoryview(seg)
        _ = 1 // 0
    assert seg.attached
    view.release()
    seg.detach()


def test_garbage_collection_detaches(segment: int) -> None:
    seg = sysv.shmat(segment)
    gone = weakref.ref(seg)
    view = memoryview(seg)
    del seg
    gc.collect()
    assert gone() is not None and attached(segment) == 1
    view[0] = 1
    del view
    gc.collect()
    assert gone() is None and attached(segment) == 0


def test_a_child_inherits_attachments(segment: int, fork_child: Callable[..., Child]) -> None:
    with sysv.shmat(segment) as seg:

        def body() -> None:
            assert attached(segment) == 2
            with memoryview(seg) as view:
                view[0] = 77
            sysv.shmdt(seg)
            assert attached(segment) == 1

        fork_child(body).join()
        assert seg.attached and attached(segment) == 1
        with memoryview(seg) as view:
            assert view[0] == 77


# ---- shmctl


def test_stat_has_every_field(new_segment: Make, tmp_path: Path, fork_child: Callable[..., Child]) -> None:
    before = int(time.time())
    segment = new_segment(sysv.ftok(tmp_path, 3), 5000, IPC_CREAT | IPC_EXCL | 0o640)
    fresh = sysv.shmctl(segment, IPC_STAT)
    assert (fresh.shm_atime, fresh.shm_dtime, fresh.shm_lpid, fresh.shm_nattch) == (0, 0, 0, 0)
    child = fork_child(lambda: sysv.shmdt(sysv.shmat(segment)))
    child.join()
    seg = sysv.shmat(segment)
    stat, row = sysv.shmctl(segment, IPC_STAT), kernel_rows("shm")[segment]
    perm = stat.shm_perm
    for field in ("key", "uid", "gid", "cuid", "cgid"):
        assert getattr(perm, field) == row[field], field
    assert (perm.key, perm.mode, row["perms"]) == (sysv.ftok(tmp_path, 3), 0o640, 0o640)
    assert perm.seq in (segment >> 15, segment >> 24)
    assert (stat.shm_segsz, stat.shm_nattch) == (row["size"], row["nattch"]) == (5000, 1)
    assert (stat.shm_cpid, stat.shm_lpid) == (row["cpid"], row["lpid"]) == (os.getpid(), os.getpid())
    assert (stat.shm_atime, stat.shm_dtime, stat.shm_ctime) == (row["atime"], row["dtime"], row["ctime"])
    assert before <= stat.shm_ctime <= stat.shm_dtime <= time.time() and before <= stat.shm_atime
    seg.detach()


def test_ipcs_shows_the_same(new_segment: Make, tmp_path: Path) -> None:
    key = sysv.ftok(tmp_path, 0xA5)
    segment = new_segment(key, 12345, IPC_CREAT | IPC_EXCL | 0o606)
    with sysv.shmat(segment):
        lines = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout.splitlines()
    words = next(line.split() for line in lines if line.split()[1:2] == [str(segment)])
    assert (int(words[0], 16), words[3:]) == (key & 0xFFFFFFFF, ["606", "12345", "1"])


def test_set_the_mode(segment: int) -> None:
    before = sysv.shmctl(segment, IPC_STAT)
    sysv.shmctl(segment, IPC_SET, mode=0o644)
    after = sysv.shmctl(segment, IPC_STAT)
    assert after == before._replace(shm_perm=before.shm_perm._replace(mode=0o644), shm_ctime=after.shm_ctime)
    sysv.shmctl(segment, IPC_SET, before)
    assert sysv.shmctl(segment, IPC_STAT).shm_perm == before.shm_perm


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a segment to somebody else")
def test_set_the_owner(segment: int) -> None:
    sysv.shmctl(segment, IPC_SET, uid=1234, gid=2345)
    row = kernel_rows("shm")[segment]
    assert (row["uid"], row["gid"], row["cuid"], row["cgid"]) == (1234, 2345, os.geteuid(), os.getegid())


def test_a_removed_segment_lives_until_the_last_detach(new_segment: Make, tmp_path: Path) -> None:
    key = sysv.ftok(tmp_path, 1)
    segment = new_segment(key, 100, IPC_CREAT | 0o600)
    with sysv.shmat(segment) as seg:
        sysv.shmctl(segment, IPC_RMID)
        assert sysv.shmctl(segment, IPC_STAT).shm_perm.mode == SHM_DEST | 0o600
        with pytest.raises(FileNotFoundError):
            sysv.shmget(key, 0)
        with sysv.shmat(segment) as other, memoryview(seg) as view:  # by its id: Linux only
            view[0] = 9
            assert bytes(other)[0] == 9
    assert segment not in kernel_rows("shm")


def test_removed_segment(segment: int) -> None:
    sysv.shmctl(segment, IPC_RMID)
    for call in (
        lambda: sysv.shmat(segment),
        lambda: sysv.shmat(segment, free_address(3), SHM_REMAP),
        lambda: sysv.shmctl(segment, IPC_STAT),
        lambda: sysv.shmctl(segment, IPC_SET, mode=0o600),
        lambda: sysv.shmctl(segment, SHM_LOCK),
        lambda: sysv.shmctl(segment, IPC_RMID),
    ):
        with pytest.raises(sysv.RemovedError) as caught:
            call()
        assert caught.value.errno == errno.EINVAL
        assert f"shmid={segment}" in str(caught.value)


def test_lock_and_unlock(segment: int) -> None:
    sysv.shmctl(segment, SHM_LOCK)
    assert sysv.shmctl(segment, IPC_STAT).shm_perm.mode == SHM_LOCKED | 0o600
    assert kernel_rows("shm")[segment]["perms"] == SHM_LOCKED | 0o600
    sysv.shmctl(segment, SHM_UNLOCK)
    assert sysv.shmctl(segment, IPC_STAT).shm_perm.mode == 0o600


def test_limit_of_locked_memory(request: pytest.FixtureRequest) -> None:
    run: Callable[[Body], None] = (
        request.getfixturevalue("as_nobody")
        if os.geteuid() == 0
        else lambda body: request.getfixturevalue("fork_child")(body).join()
    )

    def body() -> None:
        segment = sysv.shmget(IPC_PRIVATE, 100 * PAGE)
        try:
            for limit, number in ((PAGE, errno.ENOMEM), (0, errno.EPERM)):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
                with pytest.raises(sysv.LimitError, match="ulimit -l") as caught:
                    sysv.shmctl(segment, SHM_LOCK)
                error = caught.value
                assert (error.errno, error.limit, error.value) == (number, "RLIMIT_MEMLOCK", limit)
                assert isinstance(error, PermissionError) == (number == errno.EPERM)
        finally:
            sysv.shmctl(segment, IPC_RMID)

    run(body)


def test_arguments_that_do_not_go_together(segment: int) -> None:
    with pytest.raises(TypeError, match="uid, gid and mode"):
        sysv.shmctl(segment, IPC_SET)
    with pytest.raises(TypeError, match="IPC_SET only"):
        sysv.shmctl(segment, IPC_STAT, mode=0o600)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="cmd must be IPC_STAT"):
        sysv.shmctl(segment, 99)  # type: ignore[call-overload]


def test_info(segment: int) -> None:
    info = sysv.shmctl(0, sysv.IPC_INFO)
    for field in ("shmmax", "shmmni", "shmall"):
        assert getattr(info, field) == int(Path("/proc/sys/kernel", field).read_text())
    assert info.shmmin == 1
    used = sysv.shmctl(0, sysv.SHM_INFO)
    rows = kernel_rows("shm").values()
    assert used.used_ids == len(rows)
    assert used.shm_tot == sum(-(-row["size"] // PAGE) for row in rows)

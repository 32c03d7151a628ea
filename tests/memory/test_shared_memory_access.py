"""Shared memory by name: how long it stays mapped, and who else may attach it."""

from __future__ import annotations

import gc
import grp
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import NOBODY, can_become, kernel_rows, run_script, wait_until

from mpipc.shared_memory import ShareableList, SharedMemory


def attached(segment: int) -> int:
    return kernel_rows("shm")[segment]["nattch"]


@pytest.fixture
def create() -> Iterator[Callable[..., SharedMemory]]:
    made = []

    def one(**arguments: Any) -> SharedMemory:
        made.append(SharedMemory(create=True, size=80, **arguments))
        return made[-1]

    yield one
    for segment in made:
        segment.close()
        segment.unlink()


# --- numpy keeps the memoryview, and not its buffer -------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "del", "collect"])
def test_an_array_outlives_the_object(create: Callable[..., SharedMemory], end: str) -> None:
    numpy = pytest.importorskip("numpy")
    first = create()
    segment = SharedMemory(first.name)
    shmid = segment.shmid
    array = numpy.ndarray((10,), dtype="f8", buffer=segment.buf)
    if end == "close":
        segment.close()
        assert segment.buf is None
        segment.close()
    elif end == "del":
        del segment
    else:
        segment.itself = segment
        del segment
        gc.collect()
    assert attached(shmid) == 2
    array[:] = 3
    assert first.buf.cast("d")[9] == 3
    del array
    assert attached(shmid) == 1


def test_a_function_that_returns_only_the_array(create: Callable[..., SharedMemory]) -> None:
    """numpy's issues 18294, 22190 and 23305, CPython's 102349."""
    numpy = pytest.importorskip("numpy")
    name = create().name

    def ones() -> Any:
        return numpy.frombuffer(SharedMemory(name).buf, dtype="f8")

    array = ones()
    gc.collect()
    array[:] = 1
    assert array.sum() == 10


def test_who_keeps_the_view_cannot_use_it_and_keeps_no_memory(create: Callable[..., SharedMemory]) -> None:
    segment = create()
    view = segment.buf
    segment.close()
    with pytest.raises(ValueError, match="released"):
        view[0]
    assert attached(segment.shmid) == 0


def test_a_view_of_a_part_is_known_and_close_can_be_called_again(create: Callable[..., SharedMemory]) -> None:
    segment = create()
    part = segment.buf[8:16]
    with pytest.raises(BufferError, match="exported pointers"):
        segment.close()
    part[0] = 4
    del part
    segment.close()
    assert attached(segment.shmid) == 0


def test_a_shareable_list_lets_go(create: Callable[..., SharedMemory]) -> None:
    numbers = ShareableList([1, 2, 3])
    shmid = numbers.shm.shmid
    numbers.shm.close()
    assert attached(shmid) == 0
    numbers.shm.unlink()


# --- mode and group ---------------------------------------------------------------------------------------------------


def test_a_mode_and_a_group(create: Callable[..., SharedMemory]) -> None:
    group = grp.getgrall()[-1]
    assert create().stat().shm_perm.mode & 0o777 == 0o600
    for segment in (create(mode=0o640, group=group.gr_gid), create(mode=0o640, group=group.gr_name)):
        assert (segment.stat().shm_perm.mode & 0o777, segment.stat().shm_perm.gid) == (0o640, group.gr_gid)
    segment.chmod(0o666)
    assert (segment.stat().shm_perm.mode & 0o777, segment.stat().shm_perm.gid) == (0o666, group.gr_gid)
    segment.chmod(0o600, os.getgid())
    assert (segment.stat().shm_perm.mode & 0o777, segment.stat().shm_perm.gid) == (0o600, os.getgid())


@pytest.mark.parametrize("mode", [0, 0o066, 0o400, 0o1600, -1, "600"])
def test_a_mode_that_cannot_be_meant(create: Callable[..., SharedMemory], mode: Any) -> None:
    before = set(kernel_rows("shm"))
    with pytest.raises(ValueError, match="'mode' is 0o600 and bits"):
        create(mode=mode)
    assert set(kernel_rows("shm")) == before
    with pytest.raises(ValueError, match="'mode' is 0o600 and bits"):
        create().chmod(mode)


def test_arguments_that_do_not_go_together(create: Callable[..., SharedMemory]) -> None:
    name = create().name
    with pytest.raises(ValueError, match="for creating"):
        SharedMemory(name, mode=0o666)
    before = set(kernel_rows("shm"))
    with pytest.raises(KeyError):
        create(group="no such group")
    assert set(kernel_rows("shm")) == before


TRY = """
import sys
from mpipc.shared_memory import SharedMemory
for arguments in ({}, {"readonly": True}):
    try:
        segment = SharedMemory(sys.argv[1], **arguments)
        print(segment.buf[0], end=" ")
        if not arguments:
            segment.buf[1] += 1
        segment.close()
        try:
            segment.chmod(0o600)
        except PermissionError:
            print("not mine", end=" ")
    except PermissionError:
        print("denied", end=" ")
"""


@pytest.mark.skipif(not can_become(NOBODY), reason="needs another user")
@pytest.mark.parametrize(
    ("mode", "group", "seen"),
    [
        (0o600, None, "denied denied"),
        (0o644, None, "denied 9 not mine"),
        (0o666, None, "9 not mine 9 not mine"),
        (0o660, NOBODY, "9 not mine 9 not mine"),
        (0o640, NOBODY, "denied 9 not mine"),
        (0o660, 12345, "denied denied"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_what_another_user_may_do(
    create: Callable[..., SharedMemory], mode: int, group: int | None, seen: str, later: bool
) -> None:
    segment = create() if later else create(mode=mode, group=group)
    segment.buf[0] = 9
    if later:
        segment.chmod(mode, group)
    assert run_script(TRY, arguments=[segment.name], user=NOBODY).stdout.strip() == seen
    assert segment.buf[1] == (seen.startswith("9"))


OVERWRITE = """
import sys
from mpipc import sysv
with sysv.shmat(int(sys.argv[1])) as page, memoryview(page) as memory:
    memory[:300] = bytes(byte ^ 0xff for byte in memory[:300])
"""


@pytest.mark.skipif(not can_become(NOBODY), reason="needs another user")
def test_who_may_write_can_take_the_name_away_and_no_more(create: Callable[..., SharedMemory]) -> None:
    """SECURITY.md says so. The creator's object goes on."""
    segment = SharedMemory(create=True, size=80, mode=0o666)
    segment.buf[0] = 9
    run_script(OVERWRITE, arguments=[str(segment.shmid)], user=NOBODY)
    assert segment.buf[0] == 9
    with pytest.raises(FileNotFoundError):
        SharedMemory(segment.name)
    again = SharedMemory(segment.name, create=True, size=5)
    assert (again.size, segment.size) == (5, 80)
    segment.unlink()
    with pytest.raises(FileNotFoundError):
        segment.unlink()
    segment.close()
    again.close()
    again.unlink()


@pytest.mark.skipif(not can_become(NOBODY), reason="needs another user")
def test_what_another_user_has_overwritten_goes_with_the_family() -> None:
    source = """
        import sys
        from support import NOBODY, run_script
        from mpipc.shared_memory import SharedMemory
        segment = SharedMemory(create=True, size=80, mode=0o666)
        run_script(sys.argv[1], arguments=[str(segment.shmid)], user=NOBODY)
        print(segment.shmid)
        """
    shmid = int(run_script(source, arguments=[OVERWRITE]).stdout)
    wait_until(lambda: shmid not in kernel_rows("shm"), message="it has gone with its program")

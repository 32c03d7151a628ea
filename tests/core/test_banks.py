"""The family's tables grow by banks: what a small program maps, objects beyond the first bank, and where no more can
be mapped, or made."""

from __future__ import annotations

import errno
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import kernel_rows, run_script, sysctl, wait_until

import mpipc

BANK = 4096
"""Objects in one of them."""


def mapped() -> int:
    """Bytes of System V segments that this process has mapped."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if " /SYSV" in line:
            start, _, end = line.split()[0].partition("-")
            total += int(end, 16) - int(start, 16)
    return total


@pytest.fixture
def many(ctx: Any) -> Iterator[list[Any]]:
    """Locks, of which the last are in the second bank."""
    locks = [ctx.Lock() for _ in range(BANK + 8)]
    assert locks[-1].block.index >= BANK
    yield locks
    locks.clear()
    gc.collect()


def test_a_small_program_maps_one_segment() -> None:
    source = """
from pathlib import Path
import mpipc
from mpipc._core import segment_size
def maps():
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if " /SYSV" in line]
mpipc.Lock(), mpipc.Event(), mpipc.Semaphore(), mpipc.Condition(), mpipc.Barrier(3)
assert len(maps()) == 1
print(segment_size())
kept = [mpipc.Lock() for _ in range(5000)]
assert len(maps()) == 2
"""
    assert int(run_script(source).stdout) < 6 << 20


def hold(locks: list[Any], told: Any) -> None:
    for lock in locks:
        lock.acquire()
    told.send(mapped())
    signal.pause()


def test_objects_of_the_second_bank_are_shared_and_come_back(ctx: Any, many: list[Any]) -> None:
    here, there = ctx.Pipe()
    process = ctx.Process(target=hold, args=(many[-3:], there))
    process.start()
    assert here.recv() > 1 << 20
    assert not any(lock.acquire(block=False) for lock in many[-3:])
    assert all(lock.acquire(block=False) for lock in many[:3] + many[-6:-3])
    process.kill()
    process.join()
    assert all(lock.acquire(timeout=30) for lock in many[-3:])


def test_blocks_of_the_second_bank_are_used_again(many: list[Any]) -> None:
    before = kernel_rows("shm")
    del many[BANK:]
    gc.collect()
    again = [mpipc.Lock() for _ in range(BANK)]
    assert set(kernel_rows("shm")) - set(before) == set()
    del again


WITHOUT_ROOM = """
import contextlib, os, resource, signal
from pathlib import Path
import mpipc
from mpipc import _core as family
BANK = 4096

def hold(locks, told):
    for lock in locks:
        lock.acquire()
    told.send("held")
    signal.pause()

def without_room(lock, other, told, go):
    with lock:  # a member by now
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (768 << 10), resource.RLIM_INFINITY))
    told.send("ready")
    go.recv()  # there is a second bank by now
    made = []
    try:
        for _ in range(BANK):
            made.append(mpipc.Lock())
        told.send("made all")
    except OSError as error:
        told.send(str(error))
    here = family.current()
    here.tick()
    with contextlib.suppress(MemoryError):  # of Python's, for the list: there may be no room for that, either
        here.blocks()
    told.send(other.acquire(timeout=30))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while not made or made[-1].block.index < BANK:
        made.append(mpipc.Lock())
    told.send(made[-1].acquire(block=False))

if __name__ == "__main__":
    mpipc.set_start_method("fork")
    lock, other = mpipc.Lock(), mpipc.Lock()
    here, there = mpipc.Pipe()
    go, wait = mpipc.Pipe()
    process = mpipc.Process(target=without_room, args=(lock, other, there, wait))
    process.start()
    assert here.recv() == "ready"
    many = [mpipc.Lock() for _ in range(BANK)]
    told, tell = mpipc.Pipe()
    holder = mpipc.Process(target=hold, args=([other, many[-1]], tell))
    holder.start()
    assert told.recv() == "held"
    go.send("on")
    print(here.recv())
    holder.kill()
    holder.join()
    assert here.recv() is True
    assert many[-1].acquire(timeout=30)
    assert here.recv() is True
    process.join()
    assert process.exitcode == 0
"""


def test_a_process_without_room_for_a_bank_is_told_so_and_goes_on() -> None:
    """What it cannot see is recovered by others."""
    text = run_script(WITHOUT_ROOM).stdout
    assert f"[Errno {errno.ENOMEM}]" in text and "RLIMIT_AS" in text


NO_MORE = """
import errno, resource, sys
import mpipc
from mpipc import sysv
from support import kernel_rows, sysctl
limit, spare = sys.argv[1], int(sys.argv[2])
made = [mpipc.Lock()]
rows = kernel_rows("shm").values()
used = len(rows) if limit == "shmmni" else sum(-(-row["size"] // resource.getpagesize()) for row in rows)
with sysctl(limit, used + spare):
    try:
        for _ in range(5000):
            made.append(mpipc.Lock())
    except sysv.LimitError as error:
        assert (error.errno, error.limit) == (errno.ENOSPC, limit.upper())
        print(error, len(made))
    del made[-1]
    made.append(mpipc.Lock())  # in the place of that one
for _ in range(2):
    made.append(mpipc.Lock())
assert made[-1].block.index >= 4096
"""


@pytest.mark.parametrize(("limit", "spare"), [("shmmni", 0), ("shmall", 100)])
def test_where_no_bank_can_be_made_the_error_names_the_limit(limit: str, spare: int) -> None:
    with sysctl(limit, Path("/proc/sys/kernel", limit).read_text()):  # or the test is skipped
        text = run_script(NO_MORE, arguments=[limit, str(spare)]).stdout
    assert f"kernel.{limit}" in text and text.endswith(" 4096\n")


def test_banks_are_infrastructure_and_go_with_the_family() -> None:
    source = """
import mpipc, os, signal
from mpipc import _core
kept = [mpipc.Lock() for _ in range(5000)]
print(*_core.infrastructure()["shm"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ids = {int(word) for word in run_script(source, check=False).stdout.split()}
    assert len(ids) == 2
    wait_until(lambda: not ids & set(kernel_rows("shm")), message="the reaper has removed both")


def test_a_large_family_forks(many: list[Any]) -> None:
    """The child has the banks of its parent from its first instruction on, and one of its own making more."""
    pid = os.fork()
    if pid == 0:
        try:
            more = [mpipc.Lock() for _ in range(BANK)]
            ok = many[-1].acquire(block=False) and more[-1].acquire(block=False) and more[-1].block.index >= 2 * BANK
            os._exit(0 if ok else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert many[-1].acquire(timeout=30)

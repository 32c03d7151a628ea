"""mpipc.shared_memory: names, lifetimes, collisions of keys, and what happens when somebody is killed."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import random
import signal
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import NOBODY, can_become, kernel_objects, kernel_rows, run_script, start_script, sysctl, wait_until
from support.segments import exists

from mpipc import shared_memory
from mpipc._core import current, infrastructure
from mpipc._memory import named as _named
from mpipc.shared_memory import ShareableList, SharedMemory
from mpipc.sysv import IPC_CREAT, IPC_EXCL, IPC_RMID, IPC_SET, LimitError, RemovedError, shmat, shmctl, shmget

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

PAGE = 4096
MIB = 1 << 20


@pytest.fixture
def name() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def make() -> Iterator[Callable[..., SharedMemory]]:
    """SharedMemory(create=True, ...) that is unlinked after the test."""
    made: list[SharedMemory] = []

    def create(name: str | None = None, size: int = 100, **options: Any) -> SharedMemory:
        segment = SharedMemory(name, create=True, size=size, **options)
        made.append(segment)
        return segment

    yield create
    for segment in made:
        segment.close()
        with contextlib.suppress(FileNotFoundError):
            segment.unlink()


def peek(name: str, index: int = 0) -> int:
    segment = SharedMemory(name)
    value = segment.buf[index]
    segment.close()
    return int(value)


def poke(name: str, index: int, value: int) -> None:
    segment = SharedMemory(name)
    segment.buf[index] = value
    segment.close()


def tracked() -> int:
    """Blocks of the family that stand for named segments."""
    return sum(1 for _, kind, _, pids in current().blocks() if kind == "segment" and not pids)


def fork(function: Callable[..., object], *args: Any) -> int:
    """Run it in a forked child that exits with 0 if it returns."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(*args)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def succeeded(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


# --- what multiprocessing's does --------------------------------------------------------------------------------------


def test_create_attach_write_close_unlink(make: Any, name: str) -> None:
    segment = make(name, 1000)
    assert (segment.name, segment.size, len(segment.buf)) == (name, 1000, 1000)
    assert segment.buf == bytes(1000)
    segment.buf[:5] = b"hello"
    other = SharedMemory(name)
    assert (other.size, bytes(other.buf[:5])) == (1000, b"hello")
    other.buf[-1] = 7
    assert segment.buf[-1] == 7
    other.close()
    other.close()
    assert other.buf is None
    assert (other.name, other.size) == (name, 1000)
    segment.close()
    assert exists(name)
    segment.unlink()
    assert not exists(name)


def test_repr(make: Any, name: str) -> None:
    assert repr(make(name, 10)) == f"SharedMemory({name!r}, size=10)"


@pytest.mark.compares
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, ValueError),
        ({"create": True}, ValueError),
        ({"create": True, "size": 0}, ValueError),
        ({"create": True, "size": -1}, ValueError),
        ({"name": "a", "size": -1}, ValueError),
        ({"name": "a\0b"}, ValueError),
        ({"name": "a\0b", "create": True, "size": 1}, ValueError),
        ({"create": True, "size": 1.5}, TypeError),
        ({"create": True, "size": "1"}, TypeError),
        ({"create": True, "size": None}, TypeError),
        ({"create": True, "size": 1 << 64}, OverflowError),
        ({"create": True, "size": (1 << 64) - 1}, OverflowError),
        ({"name": 5}, TypeError),
        ({"name": b"a"}, TypeError),
        ({"name": "no such name"}, FileNotFoundError),
        ({"name": ""}, OSError),
        ({"name": "/"}, OSError),
        ({"name": "a/b"}, OSError),
        ({"name": "x" * 256}, OSError),
        ({"name": "\udc80"}, UnicodeEncodeError),
    ],
)
def test_errors_are_those_of_multiprocessing(arguments: dict[str, Any], error: type[Exception]) -> None:
    from multiprocessing.shared_memory import SharedMemory as Standard

    before = kernel_objects().shm
    with pytest.raises(error) as ours:
        SharedMemory(**arguments)
    assert kernel_objects().shm == before
    if arguments.get("size") == 1.5 or "\0" in str(arguments.get("name")):
        return  # multiprocessing creates the first all the same, and forgets it; the second it refuses from 3.12 on
    with pytest.raises(error) as theirs:
        Standard(**arguments)
    if isinstance(ours.value, OSError):
        assert isinstance(theirs.value, OSError)
        assert ours.value.errno == theirs.value.errno


def test_name_is_taken_only_once(make: Any, name: str) -> None:
    make(name)
    with pytest.raises(FileExistsError) as caught:
        SharedMemory(name, create=True, size=5)
    assert caught.value.filename == "/" + name
    assert "File exists" in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 255, "ü€ 漢字", "with space", ".", "-", "/leading", "a.b:c*?"])
def test_unusual_names(make: Any, name: str) -> None:
    segment = make(name, 10)
    segment.buf[0] = 3
    assert peek(segment.name) == 3
    assert segment.name == name


def test_a_leading_slash_does_not_count(make: Any, name: str) -> None:
    make(name)
    assert exists("/" + name)


def test_a_generated_name_that_is_taken_is_not_used(make: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter([f"/psm_{name}1", f"/psm_{name}1", f"/psm_{name}2"])
    monkeypatch.setattr(shared_memory, "_make_filename", lambda: next(names))
    assert make()._name == f"/psm_{name}1"
    assert make()._name == f"/psm_{name}2"


def test_generated_names_differ(make: Any) -> None:
    assert len({make().name for _ in range(50)}) == 50


def test_size_is_ignored_when_attaching(make: Any, name: str) -> None:
    make(name, 100)
    assert SharedMemory(name, size=5000).size == 100


def test_second_unlink(make: Any, name: str) -> None:
    segment = make(name)
    other = SharedMemory(name)
    other.unlink()
    with pytest.raises(FileNotFoundError):
        segment.unlink()
    segment.buf[0] = 1  # the memory is there as long as somebody has it


def test_unlink_is_for_this_segment_not_for_a_later_one(make: Any, name: str) -> None:
    first = make(name)
    SharedMemory(name).unlink()
    second = make(name)
    second.buf[0] = 9
    with pytest.raises(FileNotFoundError):
        first.unlink()
    assert peek(name) == 9


def test_close_with_a_view(make: Any, name: str) -> None:
    segment = make(name)
    view = segment.buf[2:4]
    with pytest.raises(BufferError, match="exported pointers"):
        segment.close()
    view[0] = 8
    del view
    segment.close()


def test_collected_with_a_view(make: Any, name: str) -> None:
    make(name)
    segment = SharedMemory(name)
    view = segment.buf[2:4]
    attached = segment.stat().shm_nattch
    shmid = segment.shmid
    del segment
    gc.collect()
    view[0] = 4  # no crash, and no message
    del view
    assert shmctl(shmid, 2).shm_nattch == attached - 1


def test_open_flags_of_a_subclass(make: Any, name: str) -> None:
    class CreateOrAttach(SharedMemory):
        _flags = os.O_CREAT | os.O_RDWR

    first = CreateOrAttach(name, size=50)
    second = CreateOrAttach(name, size=60)
    assert (first.size, second.size, first.shmid) == (50, 50, second.shmid)
    first.unlink()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_attaches_by_name(make: Any, protocol: int) -> None:
    segment = make()
    data = pickle.dumps(segment, protocol)
    copy = pickle.loads(data)
    copy.buf[0] = 66
    assert (segment.buf[0], copy.name, copy.size) == (66, segment.name, segment.size)
    copy.close()
    segment.close()
    segment.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)


def _write(segment: SharedMemory, name: str) -> None:
    segment.buf[0] = 11
    poke(name, 1, 12)


def test_children(make: Any, ctx: Any) -> None:
    segment = make()
    process = ctx.Process(target=_write, args=(segment, segment.name))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert bytes(segment.buf[:2]) == b"\x0b\x0c"


def test_numpy(make: Any) -> None:
    numpy = pytest.importorskip("numpy")
    segment = make(size=8000)
    array = numpy.ndarray((1000,), "d", buffer=segment.buf)
    array[:] = range(1000)
    other = SharedMemory(segment.name)
    assert numpy.frombuffer(other.buf, "d").sum() == 499_500
    del array


# --- what it adds -----------------------------------------------------------------------------------------------------


def test_stat(make: Any) -> None:
    segment = make(size=5000)
    before = segment.stat()
    assert (before.shm_nattch, before.shm_cpid, before.shm_segsz) == (1, os.getpid(), 5000 + PAGE)
    assert before.shm_perm.mode & 0o777 == 0o600
    assert abs(before.shm_ctime - time.time()) < 3600
    other = SharedMemory(segment.name)
    assert segment.stat().shm_nattch == 2
    row = kernel_rows("shm")[segment.shmid]
    assert (row["nattch"], row["perms"]) == (2, 0o600)
    assert row["key"] & 0xFF000000 == 0x6E000000
    other.close()
    segment.unlink()
    assert segment.stat().shm_nattch == 1
    segment.close()
    with pytest.raises(RemovedError):
        segment.stat()


def test_readonly(make: Any) -> None:
    segment = make()
    segment.buf[0] = 5
    reader = SharedMemory(segment.name, readonly=True)
    assert (reader.buf[0], reader.buf.readonly, reader.readonly, segment.readonly) == (5, True, True, False)
    with pytest.raises(TypeError):
        reader.buf[0] = 6
    assert pickle.loads(pickle.dumps(reader)).readonly
    with pytest.raises(ValueError, match="readonly"):
        SharedMemory(create=True, size=10, readonly=True)


def test_read_only_is_enforced_by_the_kernel(make: Any, name: str) -> None:
    """Not merely by the view: the mapping itself has no permission to write."""
    make(name)
    reader = SharedMemory(name, readonly=True)
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if f" {reader.shmid} " in line]
    assert {line.split()[1][:2] for line in lines} == {"rw", "r-"}


def free_huge_pages() -> int:
    return int(Path("/proc/sys/vm/nr_hugepages").read_text())


def test_huge_pages(make: Any, name: str) -> None:
    before = kernel_objects().shm
    blocks = current().blocks()
    if free_huge_pages():
        segment = make(name, 3 * MIB, huge_pages=True)
        segment.buf[-1] = 4
        assert peek(name, -1) == 4
        return
    with pytest.raises(OSError) as caught:
        make(name, 100, huge_pages=True)
    assert "huge" in str(caught.value)
    assert (kernel_objects().shm, current().blocks()) == (before, blocks)


@pytest.mark.parametrize(("limit", "value"), [("shmmax", 10 * MIB), ("shmmni", 0), ("shmall", 0)])
def test_limits_are_named_and_nothing_is_left(name: str, limit: str, value: int) -> None:
    before = current().blocks(), kernel_objects().shm
    with sysctl(limit, value), pytest.raises(LimitError) as caught:
        SharedMemory(name, create=True, size=64 * MIB)
    assert caught.value.limit == limit.upper()
    assert f"kernel.{limit}" in str(caught.value)
    assert (current().blocks(), kernel_objects().shm) == before
    assert not exists(name)


@pytest.mark.skipif(not can_become(NOBODY), reason="needs another user")
def test_another_users_segment(make: Any, name: str) -> None:
    make(name)
    result = run_script(
        """
        import sys
        from mpipc.shared_memory import SharedMemory
        for arguments in ({}, {"create": True, "size": 10}, {"readonly": True}):
            try:
                SharedMemory(sys.argv[1], **arguments)
            except OSError as error:
                print(type(error).__mro__[0].__name__, error)
        own = SharedMemory(create=True, size=10)
        own.close()
        own.unlink()
        """,
        arguments=[name],
        user=NOBODY,
    )
    first, second, third = result.stdout.splitlines()
    assert first.startswith("PermissionError") and f"uid {os.getuid()}" in first and "0o600" in first
    assert second.startswith("FileExistsError")
    assert third.startswith("PermissionError")


@pytest.mark.skipif(not can_become(NOBODY), reason="needs another user")
def test_unlink_needs_the_owner(make: Any, name: str) -> None:
    segment = make(name)
    shmctl(segment.shmid, IPC_SET, mode=0o666)
    result = run_script(
        """
        import sys
        from mpipc.shared_memory import SharedMemory
        segment = SharedMemory(sys.argv[1])
        segment.buf[0] = 5
        try:
            segment.unlink()
        except PermissionError as error:
            print(error)
        """,
        arguments=[name],
        user=NOBODY,
    )
    assert f"belongs to uid {os.getuid()}" in result.stdout
    assert peek(name) == 5  # and its name


# --- lifetimes --------------------------------------------------------------------------------------------------------


def test_unlink_frees_the_block_in_whatever_process(make: Any, ctx: Any) -> None:
    before = tracked()
    segment = make()
    assert tracked() == before + 1
    process = ctx.Process(target=_unlink, args=(segment.name,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert tracked() == before


def _unlink(name: str) -> None:
    SharedMemory(name).unlink()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_a_child_creates_lives_as_long_as_the_program(method: str) -> None:
    """Also if the program had no mpipc object, and so no family, when its fork server or its child was started."""
    script = """
        import multiprocessing
        import sys
        import mpipc
        from mpipc._core import current
        from mpipc.shared_memory import SharedMemory

        def create(pipe):
            segment = SharedMemory(create=True, size=100)
            segment.buf[0] = 42
            pipe.send((segment.name, current().ticket))

        if __name__ == "__main__":
            method = sys.argv[1]
            stranger = multiprocessing.get_context(method).Process()
            stranger.start()  # and with it the fork server
            stranger.join()
            context = mpipc.get_context(method)
            for _ in range(2):
                here, there = context.Pipe()
                process = context.Process(target=create, args=(there,))
                process.start()
                process.join()
                name, ticket = here.recv()
                assert ticket == current().ticket
                segment = SharedMemory(name)
                assert segment.buf[0] == 42
                segment.unlink()
        """
    run_script(script, arguments=[method])


def test_a_stranger_writes_and_exits(make: Any, name: str) -> None:
    """A process of no family, which attached, ends: by exit or by SIGKILL (CPython issue 82300)."""
    segment = make(name)
    for number, end in enumerate(["", "os.kill(os.getpid(), 9)"]):
        run_script(
            f"""
            import os, sys
            from mpipc.shared_memory import SharedMemory
            segment = SharedMemory(sys.argv[1])
            segment.buf[{number}] = 5
            {end}
            """,
            arguments=[name],
            env={"MPIPC_FAMILY": ""},
            check=False,
        )
    assert bytes(segment.buf[:2]) == b"\5\5"
    assert exists(name)


def test_unlinked_by_a_stranger(make: Any, name: str) -> None:
    make(name)
    run_script(
        "import sys; from mpipc.shared_memory import SharedMemory as S; S(sys.argv[1]).unlink()",
        arguments=[name],
        env={"MPIPC_FAMILY": ""},
    )
    assert not exists(name)
    again = make(name)
    current().recover()
    assert SharedMemory(name).shmid == again.shmid


CREATE = """
    import signal, sys
    from mpipc.shared_memory import SharedMemory
    segment = SharedMemory(sys.argv[1], create=True, size=100, track=sys.argv[2] == "True")
    segment.buf[0] = 5
    from mpipc._core import current
    while not current().has_reaper():  # or the reaper, a moment old, is killed as one of the program's processes
        pass
    print("created", flush=True)
    if sys.argv[3] == "pause":
        signal.pause()
"""


@pytest.mark.parametrize("end", ["exit", "pause"])
@pytest.mark.parametrize("track", [True, False])
def test_lifetime_is_that_of_the_family_or_unlimited(name: str, track: bool, end: str) -> None:
    arguments = [name, str(track), end]
    with start_script(CREATE, arguments=arguments, env={"MPIPC_FAMILY": ""}) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "created\n"
        attached = SharedMemory(name) if end == "pause" else None
        if end == "pause":
            script.kill()
        script.wait()
    if track:
        wait_until(lambda: not exists(name), message="it goes with its family")
        assert attached is None or attached.buf[0] == 5  # the memory goes with the last process that has it
    else:
        wait_until(
            lambda: (
                not [
                    row
                    for shmid, row in kernel_rows("shm").items()
                    if row["key"] >> 24 == 0x6D and row["nattch"] == 1 and shmid not in infrastructure()["shm"]
                ]
            )
        )
        segment = SharedMemory(name)
        assert segment.buf[0] == 5
        segment.unlink()


def test_it_outlives_its_creator_within_the_family(ctx: Any, name: str) -> None:
    process = ctx.Process(target=_create, args=(name,))
    process.start()
    process.join()
    current().recover()
    segment = SharedMemory(name)
    assert segment.buf[0] == 1
    segment.unlink()


def _create(name: str) -> None:
    segment = SharedMemory(name, create=True, size=10)
    segment.buf[0] = 1


def test_the_end_of_the_family_spares_what_has_the_name_now(name: str) -> None:
    """Created by a family, unlinked by a stranger, created anew by another; then the first family ends."""
    with start_script(CREATE, arguments=[name, "True", "pause"], env={"MPIPC_FAMILY": ""}) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "created\n"
        SharedMemory(name).unlink()
        segment = SharedMemory(name, create=True, size=10)
        family = [row["shmid"] for row in kernel_rows("shm").values() if row["cpid"] == script.pid]
        script.kill()
        script.wait()
        wait_until(lambda: not set(family) & set(kernel_rows("shm")), message="the family is gone")
    assert exists(name)
    segment.unlink()


def test_removed_by_ipcrm(make: Any, name: str) -> None:
    segment = make(name)
    before = tracked()
    subprocess.run(["ipcrm", "-m", str(segment.shmid)], check=True)
    segment.buf[0] = 5
    assert segment.buf[0] == 5
    assert not exists(name)
    with pytest.raises(FileNotFoundError):
        segment.unlink()
    assert make(name).buf[0] == 0
    pid = fork(lambda: None)  # recovery, which a death starts, finds out
    assert succeeded(pid)
    wait_until(lambda: tracked() == before, message="its block is free")


def test_removed_while_forked_children_use_it(make: Any, name: str) -> None:
    segment = make(name)
    read, write = os.pipe()

    def child() -> None:
        os.read(read, 1)
        segment.buf[1] = 7

    pid = fork(child)
    segment.unlink()
    os.write(write, b"x")
    assert succeeded(pid)
    assert segment.buf[1] == 7
    os.close(read)
    os.close(write)


# --- keys that collide ------------------------------------------------------------------------------------------------


@pytest.fixture
def one_hash(monkeypatch: pytest.MonkeyPatch) -> int:
    """All names have the same keys."""
    value = random.randrange(1 << 24)
    print(f"hash {value:#x}")
    monkeypatch.setattr(shared_memory, "_hash_name", lambda name: value)
    return value


def key_of(segment: SharedMemory) -> int:
    return segment.stat().shm_perm.key


def test_names_with_the_same_key(one_hash: int, make: Any) -> None:
    segments = {f"name {i}": make(f"name {i}", 10 + i) for i in range(10)}
    assert len({segment.shmid for segment in segments.values()}) == 10
    for name, segment in segments.items():
        segment.buf[0] = int(name[5:])
    for name in segments:
        other = SharedMemory(name)
        assert (other.buf[0], other.size) == (int(name[5:]), 10 + int(name[5:]))
    with pytest.raises(FileNotFoundError):
        SharedMemory("name 10")


def test_a_key_that_became_free_hides_nothing(one_hash: int, make: Any) -> None:
    first, second, third = make("first"), make("second"), make("third")
    first.unlink()
    assert exists("second") and exists("third")
    with pytest.raises(FileExistsError):
        make("third")
    again = make("first")
    assert key_of(again) == _named.key(one_hash, 0)
    second.unlink()
    assert exists("third") and exists("first")
    third.unlink()
    assert not exists("third")


def test_foreign_segments_under_our_keys(one_hash: int, make: Any) -> None:
    """Zeros, garbage, too small: nobody else's segment is taken for ours, or touched."""
    foreign = []
    for position, (size, content) in enumerate([(100, b""), (5000, b""), (9000, b"\xff" * 4096), (10, b"\1" * 10)]):
        shmid = shmget(_named.key(one_hash, position), size, IPC_CREAT | IPC_EXCL | 0o600)
        with shmat(shmid) as attachment:
            memoryview(attachment)[: len(content)] = content
        foreign.append(shmid)
    assert not exists("mine")
    segment = make("mine")
    assert key_of(segment) == _named.key(one_hash, 4)
    assert exists("mine")
    segment.unlink()
    for shmid in foreign:
        shmctl(shmid, IPC_RMID)


def test_a_damaged_header_is_not_believed(one_hash: int, make: Any) -> None:
    segment = make("mine", 100)
    with shmat(segment.shmid) as attachment:
        memoryview(attachment)[16:24] = struct.pack("q", 1 << 30)  # says it is larger than it is
    assert not exists("mine")
    shmctl(segment.shmid, IPC_RMID)


def test_too_many_collisions(one_hash: int, make: Any) -> None:
    segments = [make(f"name {i}") for i in range(16)]
    with pytest.raises(OSError, match="another name") as caught:
        make("one more")
    assert caught.value.errno == errno.ENOSPC
    segments[7].unlink()
    make("one more")


CANDIDATE = struct.Struct("=IIQQQQIII")  # struct mp_named, in _core/src/named.h


def plant(hash: int, position: int, name: str, state: int) -> int:
    """A segment as a creator leaves it that dies half-way."""
    shmid = shmget(_named.key(hash, position), PAGE + 10, IPC_CREAT | IPC_EXCL | 0o600)
    with shmat(shmid) as attachment:
        view = memoryview(attachment)
        CANDIDATE.pack_into(view, 0, state, 1, 0x656D616E6370696D, 10, 99, 0, 0, 0, len(name))
        view[CANDIDATE.size : CANDIDATE.size + len(name)] = name.encode()
        view.release()
    return shmid


@pytest.mark.parametrize("state", [1, 3])
@pytest.mark.parametrize("position", [0, 1])
def test_what_a_dead_creator_left_does_not_block_the_name(one_hash: int, make: Any, state: int, position: int) -> None:
    planted = plant(one_hash, position, "mine", state)
    assert not exists("mine")
    segment = make("mine")
    assert planted not in kernel_rows("shm")
    assert segment.shmid != planted
    assert exists("mine")


def test_a_candidate_of_another_name_is_left_alone(one_hash: int, make: Any) -> None:
    planted = plant(one_hash, 0, "other", 1)
    segment = make("mine")
    assert key_of(segment) == _named.key(one_hash, 1)
    assert planted in kernel_rows("shm")
    shmctl(planted, IPC_RMID)


def test_a_creator_that_sleeps_is_overtaken(one_hash: int, make: Any) -> None:
    """It has the candidate attached, so it may be alive; it is given a second or so."""
    planted = plant(one_hash, 0, "mine", 1)
    attachment = shmat(planted)
    segment = make("mine")
    assert exists("mine") and segment.shmid != planted
    assert memoryview(attachment)[0] == 3  # GONE: it notices, when it wakes up


# --- races and kills --------------------------------------------------------------------------------------------------

NAMES = 12


def _hammer(seed: int, rounds: int, report: int) -> None:
    """Creates, attaches and unlinks; what is attached must be what the name says."""
    rng = random.Random(seed)
    created = 0
    for _ in range(rounds):
        name = f"name {rng.randrange(NAMES)}"
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            if rng.random() < 0.6:
                segment = SharedMemory(name, create=True, size=100, track=rng.random() < 0.5)
                created += 1
                segment.buf[: len(name) + 1] = name.encode() + b"!"
                segment.close()
                if rng.random() < 0.9:
                    segment.unlink()
            else:
                segment = SharedMemory(name)
                content = bytes(segment.buf[: len(name) + 1])
                # All of it, or nothing yet; one character could be on its way.
                assert (name.encode() + b"!").startswith(content.rstrip(b"\0")), (name, content)
                segment.close()
                if rng.random() < 0.5:
                    segment.unlink()
    os.write(report, struct.pack("i", created))


def _clean_names() -> None:
    for number in range(NAMES):
        with contextlib.suppress(FileNotFoundError):
            SharedMemory(f"name {number}").unlink()


def named_segments() -> dict[int, dict[str, int]]:
    return {shmid: row for shmid, row in kernel_rows("shm").items() if row["key"] & 0xFF000000 == 0x6E000000}


def test_no_wrong_attach_under_collisions(one_hash: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    read, write = os.pipe()
    pids = [fork(_hammer, seed + i, 3000, write) for i in range(4)]
    assert all([succeeded(pid) for pid in pids])
    assert sum(struct.unpack("iiii", os.read(read, 16))) > 1000
    _clean_names()
    assert named_segments() == {}


def test_one_winner(one_hash: int) -> None:
    """Several processes create the same name at the same time, while keys before it become free: one succeeds."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    start_read, start_write = os.pipe()
    read, write = os.pipe()
    gates = [os.pipe() for _ in range(4)]

    def rival(number: int) -> None:
        while os.read(gates[number][0], 1) == b"g":
            try:
                SharedMemory("prize", create=True, size=10).close()
                os.write(write, b"w")
            except FileExistsError:
                os.write(write, b"l")

    pids = [fork(rival, number) for number in range(4)]
    for _ in range(400):
        fillers = [SharedMemory(f"filler {i}", create=True, size=1) for i in range(3)]
        order = list(range(4))
        rng.shuffle(order)
        for number in order:
            os.write(gates[number][1], b"g")
        for filler in fillers:
            filler.unlink()
        results = b""
        while len(results) < 4:
            results += os.read(read, 4)
        assert sorted(results) == sorted(b"wlll"), results
        assert len(named_segments()) == 1
        SharedMemory("prize").unlink()
    for number in range(4):
        os.write(gates[number][1], b"e")
    assert all([succeeded(pid) for pid in pids])
    for descriptor in (start_read, start_write, read, write, *[end for gate in gates for end in gate]):
        os.close(descriptor)


@pytest.mark.slow_but("False")
@pytest.mark.parametrize("track", [True, False])
def test_killed_at_any_moment_of_creating(one_hash: int, track: bool) -> None:
    """Nothing is left that nobody can name, and the name is never blocked."""
    blocks = len(current().blocks())
    rng = random.Random(2)
    for _ in range(60):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, b"x")
            while True:
                segment = SharedMemory("mine", create=True, size=10, track=track)
                segment.close()
                segment.unlink()
        os.read(read, 1)
        for _ in range(rng.randrange(3000)):
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
        if rng.random() < 0.5:  # at once, or after recovery has run
            wait_until(lambda: all(state != "dead" for _, state, _ in current().processes()))
        with contextlib.suppress(FileExistsError):
            SharedMemory("mine", create=True, size=10, track=track)
        SharedMemory("mine").unlink()
        assert not exists("mine")
    wait_until(lambda: named_segments() == {}, message="no segment is left")
    wait_until(lambda: len(current().blocks()) == blocks, message="no block is left")


def test_many_segments_of_one_process_use_up_no_blocks(make: Any) -> None:
    before = len(current().blocks())
    for _ in range(3000):
        segment = SharedMemory(create=True, size=10)
        segment.close()
        segment.unlink()
    assert len(current().blocks()) == before
    assert named_segments() == {}


def test_dev_shm_is_not_used(make: Any) -> None:
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    segment = make(size=MIB)
    items = ShareableList([1, "two"])
    now = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert not {entry for entry in now - before if segment.name in entry or items.shm.name in entry}
    assert "/dev/shm" not in "".join(line for line in Path("/proc/self/maps").read_text() if segment.name in line)
    items.shm.unlink()


# --- ShareableList ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shareable() -> Iterator[Callable[..., ShareableList[Any]]]:
    made: list[ShareableList[Any]] = []

    def create(*args: Any, **options: Any) -> ShareableList[Any]:
        made.append(ShareableList(*args, **options))
        return made[-1]

    yield create
    for items in made:
        items.shm.close()
        with contextlib.suppress(FileNotFoundError):
            items.shm.unlink()


def test_shareable_list(shareable: Any) -> None:
    import multiprocessing.shared_memory

    values = ["howdy", b"HoWdY", -273.154, 100, None, True, 42]
    items = shareable(values)
    assert list(items) == values
    assert isinstance(items.shm, SharedMemory)
    assert isinstance(items, multiprocessing.shared_memory.ShareableList)
    assert (items.format, len(items)) == ("8s8sdqxxxxxx?xxxxxxxx?q", 7)
    assert (items.index(100), items.count(42)) == (3, 1)
    assert repr(items) == f"ShareableList({values}, name={items.shm.name!r})"
    items[3] = "changed"
    with pytest.raises(ValueError, match="exceeds available storage"):
        items[3] = "much too long"
    with pytest.raises(IndexError):
        items[7]
    with pytest.raises(ValueError, match=r"not in (this container|list)"):
        items.index("absent")
    same = ShareableList(name=items.shm.name)
    assert list(same) == ["howdy", b"HoWdY", -273.154, "changed", None, True, 42]
    copy = shareable(items, name="copy of it")
    copy[0] = "other"
    assert (items[0], copy.shm.name) == ("howdy", "copy of it")
    assert list(shareable()) == []
    assert ShareableList[int]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_shareable_list_pickles_by_name(shareable: Any, protocol: int) -> None:
    items = shareable(range(10))
    copy = pickle.loads(pickle.dumps(items, protocol))
    copy[4] = "changed"
    assert isinstance(copy, ShareableList)
    assert items[4] == "changed"


@pytest.mark.parametrize("values", [[1 << 70], [object()], [[]]])
def test_a_list_that_cannot_be_stored_leaves_no_segment(values: list[Any]) -> None:
    with pytest.raises((struct.error, KeyError)):
        ShareableList(values)
    assert named_segments() == {}


def _change(items: ShareableList[Any]) -> None:
    items[0] = items[1] * 2


@pytest.mark.slow_with("forkserver")
def test_shareable_list_in_children(shareable: Any, ctx: Any) -> None:
    items = shareable([0, 21])
    process = ctx.Process(target=_change, args=(items,))
    process.start()
    process.join()
    assert items[0] == 42


def test_nothing_of_it_is_infrastructure() -> None:
    assert not set(named_segments()) & infrastructure()["shm"]

"""The family: who is a member, who holds what, who cleans up, and what the program sees of it (nothing)."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import platform
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from multiprocessing import context as mp_context
from pathlib import Path
from queue import Empty, Full
from typing import Any

import pytest
from support import (
    NOBODY,
    TESTS,
    can_become,
    kernel_objects,
    kernel_rows,
    package_folder,
    processes,
    run_script,
    start_script,
    wait_until,
)
from support.reaper import reaper_pid, wait_for_reaper

import mpipc
from mpipc import _core as family
from mpipc._core.snapshot import all_families

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it


def members() -> list[int]:
    return sorted(pid for _, state, pid in family.current().processes() if state == "alive")


def only_me() -> bool:
    return [(state, pid) for _, state, pid in family.current().processes()] == [("alive", os.getpid())]


# --- membership -------------------------------------------------------------------------------------------------------


def tell_membership(lock: Any, pids: Any) -> None:
    assert family.current().shmid == lock.block.family.shmid
    assert os.getpid() in lock.block.holders()
    assert os.getpid() in members()
    assert os.getppid() in members() or pids is None
    assert mpipc.Lock().block.family is lock.block.family


def test_children_are_members_and_holders(ctx: Any) -> None:
    lock = ctx.Lock()
    process = ctx.Process(target=tell_membership, args=(lock, None))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    wait_until(only_me)
    assert lock.block.holders() == [os.getpid()]


def grandparent(ctx: Any, lock: Any) -> None:
    process = ctx.Process(target=tell_membership, args=(lock, None))
    process.start()
    process.join(60)
    sys.exit(process.exitcode)


def test_grandchildren(ctx: Any) -> None:
    lock = ctx.Lock()
    process = ctx.Process(target=grandparent, args=(ctx, lock))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    wait_until(only_me)


def test_a_child_forked_by_hand() -> None:
    lock = mpipc.Lock()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"1" if lock.block.holders()[-1] == os.getpid() and lock.acquire(False) else b"0")
        os._exit(0)
    assert os.read(read, 1) == b"1"
    os.waitpid(child, 0)
    assert lock.acquire(timeout=60), "it ended with the lock in its hands"
    assert lock.owner_died
    lock.release()
    wait_until(only_me)
    os.close(read), os.close(write)


@pytest.mark.parametrize(
    "ending", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.execv('/bin/true', ['true'])"]
)
def test_children_that_go_at_once(ending: str) -> None:
    lock = mpipc.Lock()
    for _ in range(30):
        child = os.fork()
        if child == 0:
            eval(ending)
        os.waitpid(child, 0)
    wait_until(only_me)
    assert lock.block.holders() == [os.getpid()]


def test_fork_fails() -> None:
    """The reservation for a child that never was is given back."""
    result = (
        run_script(
            """
        import os, resource
        import mpipc
        from mpipc import _core as family
        from support import become, wait_until
        become(54321)
        lock = mpipc.Lock()
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        wait_until(lambda: family.current().has_reaper() or True)
        for _ in range(5):
            try:
                if os.fork() == 0:
                    os._exit(0)
            except BlockingIOError:
                print("refused")
        wait_until(lambda: [s for _, s, _ in family.current().processes()] == ["alive"])
        print(len(lock.block.holders()))
        """
        )
        if can_become(54321)
        else pytest.skip("not permitted to change the user")
    )
    assert result.stdout.split() == ["refused"] * 5 + ["1"]


def test_exec_of_a_member_lets_go_of_what_it_held() -> None:
    """The new image uses mpipc too, and cancels what the old one is remembered for."""
    lock = mpipc.Lock()
    program = "import mpipc, sys; mpipc.Lock(); print('up', flush=True); sys.stdin.read()"
    read, write = os.pipe()
    read2, write2 = os.pipe()
    child = os.fork()
    if child == 0:
        lock.acquire()
        os.dup2(write, 1), os.dup2(read2, 0)
        os.close(write2)
        package = package_folder()
        assert package is not None
        environment = {family.ENVIRONMENT: family.current().ticket, "PYTHONPATH": str(package.parent)}
        os.execve(sys.executable, [sys.executable, "-P", "-c", program], {**os.environ, **environment})
    os.close(read2)
    assert os.read(read, 2) == b"up"
    assert lock.acquire(timeout=30)
    assert lock.owner_died
    lock.release()
    assert lock.block.holders() == [os.getpid()]
    os.close(write2)
    os.waitpid(child, 0)
    os.close(read), os.close(write)


# A program that takes a member's place by execve(2) keeps the member's undo entries: to the kernel, it is still alive.
EXECUTE = {
    "fork": """
        if (child := os.fork()) == 0:
            os.execvp("cat", ["cat"])
        """,
    "fork-twice": """
        if (child := os.fork()) == 0:
            if os.fork() == 0:
                os.execvp("cat", ["cat"])
            os._exit(0)
        os.waitpid(child, 0)
        """,
    "preexec_fn": "subprocess.Popen(['cat'], preexec_fn=os.getpid)",
    "subprocess": "subprocess.Popen(['cat'])",
}


@pytest.mark.parametrize("way", EXECUTE)
def test_what_another_program_was_executed_from_is_gone_before_it(way: str) -> None:
    before = kernel_objects()
    source = (
        "import os, subprocess\nimport mpipc\n"
        "queue, array, lock = mpipc.Queue(), mpipc.Array('d', 100_000), mpipc.Lock()\n"
        "queue.put(bytes(1_000_000))\n" + textwrap.dedent(EXECUTE[way])
    )
    with start_script(source, env={family.ENVIRONMENT: ""}) as script:
        wait_until(lambda: script.poll() is not None, timeout=30)
        wait_until(lambda: kernel_objects().minus(before, family.infrastructure()).count == 0)
        assert any(process.name == "cat" for process in script.members()), "it is still running"
        script.finish("")


def execute_holding(lock: Any, read: int) -> int:
    child = os.fork()
    if child == 0:
        lock.acquire()
        os.dup2(read, 0)
        os.closerange(3, 100)
        os.execvp("cat", ["cat"])
    return child


def test_a_lock_held_across_exec_comes_back() -> None:
    """And when the program ends at last, nothing happens to the member that has got its slot."""
    lock, kept = mpipc.Lock(), mpipc.Lock()
    read, write = os.pipe()
    program = execute_holding(lock, read)
    wait_until(lambda: lock.statistics().holder == program or lock.owner_died)
    assert lock.acquire(timeout=30)
    assert lock.owner_died
    lock.release()
    wait_until(only_me)
    assert lock.block.holders() == [os.getpid()]
    member = os.fork()
    if member == 0:
        os.close(write)
        kept.acquire()
        signal.pause()
    wait_until(lambda: kept.statistics().holder == member)
    os.close(write), os.close(read)
    os.waitpid(program, 0)
    family.current().recover()
    assert kept.statistics().holder == member
    assert members() == sorted([os.getpid(), member])
    os.kill(member, signal.SIGKILL)
    os.waitpid(member, 0)
    assert kept.acquire(timeout=30)
    kept.release()


def test_looking_at_families_does_not_keep_them() -> None:
    before = kernel_objects()
    with start_script(
        "import sys; from mpipc import _core as family; print(family.current().ticket, flush=True); sys.stdin.read()",
        env={family.ENVIRONMENT: ""},
    ) as script:
        assert script.stdout is not None
        ticket = script.stdout.readline().strip()
        shmid = int(ticket.partition(":")[0])
        wait_until(
            lambda: reaper_pid(ticket) and kernel_rows("shm")[shmid]["nattch"] == 2, message="the reaper is there"
        )
        attached = kernel_rows("shm")[shmid]["nattch"]
        found = [other for other in all_families() if other.shmid == shmid]
        assert kernel_rows("shm")[shmid]["nattch"] == attached + 1
        del found
        assert kernel_rows("shm")[shmid]["nattch"] == attached
        script.finish("")
    wait_until(lambda: kernel_objects().minus(before, family.infrastructure()).count == 0)


def test_threads_that_fork_while_others_make_and_drop() -> None:
    run_script(
        """
        import os, threading
        import mpipc
        from mpipc import _core as family
        from support import wait_until
        kept = mpipc.Lock()
        stop = False

        def churn():
            while not stop:
                locks = [mpipc.Lock() for _ in range(10)]
                with locks[3]:
                    pass

        failures = []

        def fork():
            for _ in range(60):
                mine = mpipc.Lock()
                child = os.fork()
                if child == 0:
                    ok = False
                    try:
                        holders = set(mine.block.holders()) & set(kept.block.holders())
                        ok = os.getpid() in holders and mine.acquire(False)
                    finally:
                        os._exit(0 if ok else 1)
                if os.waitpid(child, 0)[1]:
                    failures.append(child)

        threads = [threading.Thread(target=churn)] + [threading.Thread(target=fork) for _ in range(3)]
        for t in threads: t.start()
        for t in threads[1:]: t.join()
        stop = True
        threads[0].join()
        assert not failures, failures
        del threads
        wait_until(lambda: [s for _, s, _ in family.current().processes()] == ["alive"])
        wait_until(lambda: len(family.current().blocks()) == 1)
        """
    )


# --- objects ----------------------------------------------------------------------------------------------------------


def test_ten_thousand_locks() -> None:
    before = len(family.current().blocks()), kernel_objects().count
    locks = [mpipc.Lock() for _ in range(10000)]
    assert len(family.current().blocks()) == before[0] + 10000
    for lock in locks[::999]:
        with lock:
            assert lock.statistics().holder == os.getpid()
    assert len({lock.block.index for lock in locks}) == 10000
    assert kernel_objects().count <= before[1] + 11, "they share pooled sets"
    del locks, lock
    assert len(family.current().blocks()) == before[0]


def test_kernel_objects_go_with_their_last_handle() -> None:
    before = kernel_objects()
    queues = [family.new_queue() for _ in range(20)]
    segments = [family.new_segment(5000) for _ in range(5)]
    now = kernel_objects().minus(before)
    assert {block.id for block in queues} == now.msg
    assert {block.id for block in segments} == now.shm
    for kind, ids in (("msg", now.msg), ("shm", now.shm)):
        for number in ids:
            assert kernel_rows(kind)[number]["perms"] & 0o777 == 0o600
    del queues
    assert kernel_objects().minus(before).msg == frozenset()
    del segments
    assert kernel_objects() == before


def test_a_block_is_another_one_when_it_is_used_again() -> None:
    first = family.new_data()
    index, serial = first.index, first.serial
    family.payload(first)[:4] = b"left"
    del first
    second = family.new_data()
    assert (second.index, second.serial) == (index, serial + 1)
    assert bytes(family.payload(second)) == bytes(64)


class _Popen:
    """As much of a Popen as pickling for a child asks for."""


def pickle_for_child(*objects: Any) -> tuple[bytes, Any]:
    popen = _Popen()
    mp_context.set_spawning_popen(popen)
    try:
        return bytes(mp_context.reduction.ForkingPickler.dumps(objects)), popen
    finally:
        mp_context.set_spawning_popen(None)


def test_a_full_process_table_says_so() -> None:
    lock = mpipc.get_context("spawn").Lock()
    journeys = []
    with pytest.raises(OSError, match=r"process table of the family is full: a family has room for 8192 processes"):
        for _ in range(8193):
            journeys.append(pickle_for_child(lock)[1])
    assert len(journeys) == 8191
    for method in ("fork", "spawn", "forkserver"):
        process = mpipc.get_context(method).Process(target=str, args=(lock,))
        with pytest.raises(OSError, match=r"room for 8192 processes"):
            process.start()
        assert process.pid is None
    child = os.fork()  # a child needs no slot until it uses the family
    if child == 0:
        try:
            lock.acquire(False)
            os._exit(2)
        except OSError as error:
            os._exit(0 if "8192" in str(error) else 1)
    assert os.waitpid(child, 0)[1] == 0
    for popen in journeys:
        family.cancel_transit(popen)
    wait_until(only_me)


def test_what_was_pickled_can_be_too_old() -> None:
    data, popen = pickle_for_child(family.new_data())
    gc.collect()
    wait_until(lambda: "transit" in [state for _, state, _ in family.current().processes()])
    block = pickle.loads(data)[0]
    del block
    family.arrived()
    wait_until(only_me)
    with pytest.raises(OSError, match="it is gone"):
        pickle.loads(data)
    family.arrived()
    wait_until(only_me)
    del popen


# --- the reaper -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() != "x86_64", reason="calls clone(2) by its number on x86-64")
def test_launching_a_reaper_reaps_no_child_of_the_program() -> None:
    """Neither the reaper that is a child itself (of a subreaper), nor clones that the program has made."""
    result = run_script(
        """
        import ctypes, os, signal
        import mpipc
        from mpipc import _core as family
        from support import processes, wait_until
        libc = ctypes.CDLL(None, use_errno=True)
        PR_SET_CHILD_SUBREAPER, SYS_clone, WCLONE = 36, 56, -0x80000000
        assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        lock = mpipc.Lock()
        ticket = family.current().ticket
        wait_until(family.current().has_reaper)
        child = libc.syscall(SYS_clone, 0, None, None, None, 0)  # without an exit signal, as a library may do
        if child == 0:
            os._exit(7)
        wait_until(lambda: processes()[child].state == "Z")
        children = {pid for pid, process in processes().items() if process.ppid == os.getpid()}
        (reaper,) = children - {child}
        os.kill(reaper, signal.SIGKILL)
        wait_until(lambda: not family.current().has_reaper())

        def replaced():
            family.current().tick()
            return family.current().has_reaper()

        wait_until(replaced)
        print(os.waitpid(child, WCLONE) == (child, 7 << 8))
        """
    )
    assert result.stdout.split() == ["True"]


def test_the_reaper_is_nobodys_and_holds_nothing() -> None:
    mpipc.Lock()
    pid = wait_for_reaper()
    wait_until(lambda: os.getsid(pid) == pid)
    process = processes()[pid]
    assert process.ppid != os.getpid()
    assert process.session == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    descriptors = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    # It watches what the kernel does not tell it of; see liveness.c.
    watches = {"anon_inode:[pidfd]"} if family.current().undo == "ignored" else set()
    assert descriptors - watches == {"/dev/null"}
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    ignored = int(status["SigIgn"], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGUSR1):
        assert ignored >> (number - 1) & 1, number
    assert int(status["SigBlk"], 16) == 0
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    wait_until(only_me)
    assert reaper_pid() == pid


SEES_NO_CHILD = """
import os, signal, sys, threading
signals = []
signal.signal(signal.SIGCHLD, lambda *_: signals.append(1))
{before}
import mpipc
from mpipc import _core as family
from support import wait_until
lock = mpipc.Lock()
wait_until(lambda: family.current().has_reaper())
try:
    print("waitpid", os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child")
try:
    print("wait", os.wait())
except ChildProcessError:
    print("no child")
child = os.fork()
if child == 0:
    lock.acquire()
    os._exit(7)
assert os.wait() == (child, 7 << 8)
assert lock.acquire(timeout=60) and lock.owner_died
print(len(signals))
"""


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", id="ordinary"),
        pytest.param("import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)", id="subreaper"),
        pytest.param(
            "signal.signal(signal.SIGCHLD, lambda *_: signals.append(1)); signal.set_wakeup_fd(-1)", id="again"
        ),
    ],
)
def test_the_program_sees_only_its_own_children(before: str) -> None:
    assert run_script(SEES_NO_CHILD.format(before=before)).stdout.split("\n") == ["no child", "no child", "1", ""]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_program_is_init_of_a_pid_namespace(tmp_path: Any) -> None:
    before = objects_but_ours()
    script = tmp_path / "init.py"
    script.write_text("import os; assert os.getpid() == 1\n" + SEES_NO_CHILD.format(before=""))
    environment = {**os.environ, "PYTHONPATH": f"{package_folder().parent}:{TESTS}"}  # type: ignore[union-attr]
    result = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, script],
        capture_output=True, text=True, env=environment, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    if "Operation not permitted" in result.stderr and "unshare" in result.stderr:
        pytest.skip("no PID namespaces here")
    assert result.stdout.split("\n") == ["no child", "no child", "1", ""], result.stderr
    # The kernel has killed the reaper together with its init. The next program that uses mpipc sweeps.
    wait_until(lambda: (family.sweep(), objects_but_ours() == before)[1])


def test_a_killed_reaper_is_replaced_by_a_waiter() -> None:
    lock = mpipc.Lock()
    first = wait_for_reaper()
    child = os.fork()
    if child == 0:
        lock.acquire()
        signal.pause()
        os._exit(0)
    wait_until(lambda: lock.statistics().holder == child)
    os.kill(first, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert lock.acquire(timeout=60) and lock.owner_died
    lock.release()
    second = wait_until(lambda: family.current().tick() or reaper_pid(), timeout=30)
    assert second != first
    wait_until(only_me)


def without_reaper() -> None:
    os.kill(wait_for_reaper(), signal.SIGKILL)
    wait_until(lambda: not family.current().has_reaper())


# What somebody takes all of and is killed, and how another, who never waits for a tick, finds it there again.
POLLED: dict[str, tuple[Callable[[], Any], Callable[[Any], bool]]] = {
    "Lock.acquire(False)": (mpipc.Lock, lambda lock: lock.acquire(False)),
    "Lock.statistics()": (mpipc.Lock, lambda lock: lock.statistics().value == 1),
    "RLock.acquire(timeout=0.001)": (mpipc.RLock, lambda lock: lock.acquire(timeout=0.001)),
    "Semaphore.acquire(False)": (mpipc.Semaphore, lambda semaphore: semaphore.acquire(False)),
    "Semaphore.acquire(timeout=0.001)": (mpipc.Semaphore, lambda semaphore: semaphore.acquire(timeout=0.001)),
    "BoundedSemaphore.get_value()": (mpipc.BoundedSemaphore, lambda semaphore: semaphore.get_value() == 1),
}


@pytest.mark.parametrize("how", POLLED)
def test_who_polls_gets_it_from_the_dead_without_a_reaper(how: str) -> None:
    make, poll = POLLED[how]
    primitive = make()
    child = os.fork()
    if child == 0:
        primitive.acquire()
        signal.pause()
        os._exit(0)
    wait_until(lambda: primitive.statistics().value == 0)
    without_reaper()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: poll(primitive), timeout=30)
    wait_until(lambda: (poll(primitive), family.current().has_reaper())[1], timeout=30)
    wait_until(only_me)


def _get(queue: Any, **timeout: float) -> None:
    with contextlib.suppress(Empty):
        queue.get(**timeout or {"block": False})


def _put(queue: Any, **timeout: float) -> None:
    with contextlib.suppress(Full):
        queue.put(None, **timeout or {"block": False})


POLLED_TOO: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "Queue.get_nowait()": (mpipc.Queue, _get),
    "Queue.get(timeout=0.001)": (mpipc.Queue, lambda queue: _get(queue, timeout=0.001)),
    "Queue.put_nowait()": (lambda: mpipc.Queue(1), _put),
    "Queue.put(timeout=0.001)": (lambda: mpipc.Queue(1), lambda queue: _put(queue, timeout=0.001)),
    "Queue.empty()": (mpipc.Queue, lambda queue: queue.empty()),
    "Queue.full()": (lambda: mpipc.Queue(1), lambda queue: queue.full()),
    "SimpleQueue.empty()": (mpipc.SimpleQueue, lambda queue: queue.empty()),
    "Event.wait(0.001)": (mpipc.Event, lambda event: event.wait(0.001)),
}


@pytest.mark.parametrize("how", POLLED_TOO)
def test_who_polls_replaces_a_killed_reaper(how: str) -> None:
    make, poll = POLLED_TOO[how]
    primitive = make()
    without_reaper()
    wait_until(lambda: (poll(primitive), family.current().has_reaper())[1], timeout=30)


# --- families ---------------------------------------------------------------------------------------------------------

EVERYTHING = """
import os, signal, sys
import mpipc
from mpipc import _core as family
locks = [mpipc.Lock() for _ in range(50)]
queues = [family.new_queue() for _ in range(5)]
segment = family.new_segment(1 << 20)
for lock in locks: lock.acquire()
child = os.fork()
if child == 0:
    signal.pause()
from support import wait_until
wait_until(lambda: family.current().has_reaper())
print(child, family.current().ticket, flush=True)
signal.pause()
"""


def objects_but_ours() -> int:
    return kernel_objects().minus(family.infrastructure()).count


def test_the_next_program_sweeps_a_family_that_died_with_its_reaper() -> None:
    mpipc.Lock()
    before = objects_but_ours()
    with start_script(EVERYTHING) as script:
        assert script.stdout is not None
        word, ticket = script.stdout.readline().split()
        child = int(word)
        reaper = wait_until(lambda: reaper_pid(ticket))
        assert objects_but_ours() >= before + 8
        for pid in (reaper, child, script.pid):
            os.kill(pid, signal.SIGKILL)
        script.wait()
    assert objects_but_ours() >= before + 8, "nobody was there to clean up"
    wait_until(lambda: (run_script("import mpipc; mpipc.Lock()"), objects_but_ours() == before)[1], timeout=30)


def test_a_family_is_gone_when_its_last_process_is() -> None:
    mpipc.Lock()
    before = objects_but_ours()
    with start_script(EVERYTHING) as script:
        assert script.stdout is not None
        child = int(script.stdout.readline().split()[0])
        os.kill(script.pid, signal.SIGKILL)
        script.wait()
        assert objects_but_ours() >= before + 8, "the child lives"
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: objects_but_ours() == before)


def test_two_programs_that_start_at_once() -> None:
    mpipc.Lock()
    before = objects_but_ours()
    source = """
        import sys, mpipc
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(20):
            assert mpipc.Lock().acquire(False)
        from mpipc import _core as family
        print(family.current().shmid, flush=True)
        sys.stdin.readline()
    """
    with start_script(source) as one, start_script(source) as other:
        for script in (one, other):
            assert script.stdout is not None and script.stdin is not None
            assert script.stdout.readline() == "ready\n"
        for script in (one, other):
            script.stdin.write("\n")  # type: ignore[union-attr]
            script.stdin.flush()  # type: ignore[union-attr]
        assert one.stdout.readline() != other.stdout.readline()  # type: ignore[union-attr]
        assert (one.finish("\n").returncode, other.finish("\n").returncode) == (0, 0)
    wait_until(lambda: objects_but_ours() == before)


def test_dev_shm_is_not_touched() -> None:
    """Nothing of it is mapped, by its name or by the name of a file deleted there (other programs may be using it)."""
    result = run_script(
        """
        import os, mpipc
        kept = [mpipc.Lock(), mpipc.Semaphore(3), mpipc.Event(), mpipc.Condition(), mpipc.Barrier(2), mpipc.Queue(),
                mpipc.Value("i"), mpipc.Array("d", 100_000)]
        kept[5].put(bytes(100_000))
        print("/dev/shm" in open("/proc/self/maps").read(), len(os.listdir("/proc/self/fd")) <= 5)
        """
    )
    assert result.stdout.split() == ["False", "True"]


# --- permissions ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not can_become(NOBODY), reason="not permitted to change the user")
def test_another_user_cannot_join() -> None:
    family.current()
    result = run_script(
        """
        import sys
        from mpipc._core import family as _core
        shmid, _, nonce = sys.argv[1].partition(":")
        try:
            _core._attach(int(shmid), int(nonce, 16))
        except OSError as error:
            print(type(error).__name__, error)
        """,
        user=NOBODY,
        arguments=[family.current().ticket],
    )
    assert result.stdout.startswith("PermissionError")


@pytest.mark.skipif(not can_become(NOBODY), reason="not permitted to change the user")
def test_root_does_not_join_the_family_of_another_user() -> None:
    with start_script(
        "import sys; from mpipc import _core as family; print(family.current().ticket, flush=True); sys.stdin.read()",
        user=NOBODY,
    ) as script:
        assert script.stdout is not None
        shmid, _, nonce = script.stdout.readline().strip().partition(":")
        from mpipc._core import family as _core

        with pytest.raises(PermissionError):
            _core._attach(int(shmid), int(nonce, 16))  # type: ignore[attr-defined]
        script.finish("")
    wait_until(lambda: int(shmid) not in kernel_rows("shm"))

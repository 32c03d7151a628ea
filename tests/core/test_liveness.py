"""Where the kernel's word for a death is not to be had, or a pid is another process's: pid namespaces, and kernels that
ignore SEM_UNDO."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support import run_script, wait_until
from support.without_undo import can_ignore_undo, run_without_undo

import mpipc
from mpipc import _core as family

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

HERE = Path(__file__).resolve().parent
CLONE_NEWPID = 0x20000000


can_unshare = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to make a pid namespace")


def test_undo_works_here() -> None:
    """Or else everything is slower than it could be, and the tests are of that. The verdict is the reaper's."""
    mpipc.Lock()
    wait_until(lambda: family.current().undo != "unknown", timeout=30)
    preloaded = "ignore_undo" in Path("/proc/self/maps").read_text()
    assert family.current().undo == ("ignored" if preloaded else "works")


def hold(lock: Any, semaphore: Any, ready: Any) -> None:
    lock.acquire()
    semaphore.acquire()
    ready.set()
    signal.pause()


# --- pid namespaces ---------------------------------------------------------------------------------------------------

ELSEWHERE = """
import ctypes
import mpipc
from mpipc import _core as family
from support import wait_until
from test_liveness import CLONE_NEWPID, hold

if __name__ == "__main__":
    context = mpipc.get_context({method!r})
    lock, semaphore, ready = context.Lock(), context.Semaphore(2, returns=True), context.Event()
    wait_until(lambda: family.current().undo != "unknown", timeout=30)
    assert ctypes.CDLL(None).unshare(CLONE_NEWPID) == 0
    process = context.Process(target=hold, args=(lock, semaphore, ready))
    process.start()
    assert ready.wait(30)
    members = [pid for _, state, pid in family.current().processes() if state == "alive"]
    assert len(members) == 2 and process.pid not in members, members
    for _ in range(20):  # whoever looks finds a living process, whatever has its pid here
        family.current().recover()
        assert not lock.acquire(timeout=0.02)
    process.kill()
    process.join()
    assert lock.acquire(timeout=30) and lock.owner_died
    lock.release()
    wait_until(lambda: semaphore.get_value() == 2 and len(family.current().processes()) == 1, timeout=30)
    print("taken over")
"""


@can_unshare
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_another_pid_namespace(method: str) -> None:
    """Its pid is 1 or 2, and what it sees as /proc is not its own."""
    result = run_script(ELSEWHERE.format(method=method), env={"PYTHONPATH": str(HERE)})
    assert result.stdout == "taken over\n", result.stderr


SLOW = """
import ctypes, os, signal
import mpipc
from mpipc import _core as family
from support import wait_until
from test_liveness import CLONE_NEWPID

def parent(context, report, proceed, queue, first):
    while True:  # until the next pids mean nothing out there
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        if child >= first:
            break
    process = context.Process(target=queue.put, args=("arrived",))
    process.start()
    os.kill(process.pid, signal.SIGSTOP)  # long before it has unpickled what it is to have
    report.put("stopped")
    proceed.wait()
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    os._exit(process.exitcode)

if __name__ == "__main__":
    context = mpipc.get_context("spawn")
    report, queue, proceed = context.Queue(), context.Queue(), context.Event()
    taken = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    first = next(pid for pid in range(100, 30000) if not taken & set(range(pid, pid + 50)))
    wait_until(lambda: family.current().undo != "unknown", timeout=30)
    assert ctypes.CDLL(None).unshare(CLONE_NEWPID) == 0
    child = os.fork()
    if child == 0:
        parent(context, report, proceed, queue, first)
    assert report.get(timeout=60) == "stopped"
    for _ in range(5):
        family.current().recover()
    states = [state for _, state, _ in family.current().processes()]
    assert "transit" in states, states
    proceed.set()
    assert queue.get(timeout=60) == "arrived"
    assert os.waitpid(child, 0)[1] == 0
    print("fine")
"""


@can_unshare
def test_a_child_of_another_pid_namespace_that_is_slow_to_come() -> None:
    """What is on its way to it is not taken back because there is no such pid here."""
    assert run_script(SLOW, env={"PYTHONPATH": str(HERE)}, timeout=100).stdout == "fine\n"


# --- SEM_UNDO is ignored ----------------------------------------------------------------------------------------------


@pytest.mark.slow_but("fork")
@can_ignore_undo
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_lock_is_taken_over_without_undo(method: str) -> None:
    script = f"""
        import mpipc
        from mpipc import _core as family
        from support import wait_until
        from test_liveness import hold
        context = mpipc.get_context({method!r})
        lock, semaphore, ready = context.Lock(), context.Semaphore(2, returns=True), context.Event()
        wait_until(lambda: family.current().undo == "ignored")
        for _ in range(3):
            process = context.Process(target=hold, args=(lock, semaphore, ready))
            process.start()
            assert ready.wait(30)
            process.kill()
            process.join()
            assert lock.acquire(timeout=30) and lock.owner_died
            lock.release()
            wait_until(lambda: semaphore.get_value() == 2)
            ready.clear()
        wait_until(lambda: len(family.current().processes()) == 1)
        print("taken over")
    """
    assert run_without_undo(script, HERE) == "taken over\n"


@can_ignore_undo
def test_the_reaper_has_it_too_and_is_replaced() -> None:
    """It watches the members; when it is killed, a waiter finds that out by its pid and start time."""
    script = """
        import mpipc, os, signal
        from mpipc import _core as family
        from pathlib import Path
        from support import wait_until
        from support.reaper import reaper_pid, wait_for_reaper
        lock = mpipc.Lock()
        wait_until(lambda: family.current().undo == "ignored")
        pid = wait_for_reaper()
        assert "ignore_undo" in Path(f"/proc/{pid}/maps").read_text()
        descriptors = lambda: [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        wait_until(lambda: "anon_inode:[pidfd]" in descriptors())
        child = os.fork()
        if child == 0:
            lock.acquire()
            signal.pause()
            os._exit(0)
        wait_until(lambda: lock.statistics().holder == child)
        os.kill(pid, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert lock.acquire(timeout=30) and lock.owner_died
        wait_until(lambda: family.current().has_reaper() and reaper_pid() not in (0, pid))
        wait_until(lambda: len(family.current().processes()) == 1)
        print("replaced")
    """
    assert run_without_undo(script, HERE) == "replaced\n"


@can_ignore_undo
def test_without_descriptors_it_looks_at_pids() -> None:
    """A hard limit of descriptors below the number of members."""
    script = """
        import mpipc, os, resource, signal
        from mpipc import _core as family
        from support import wait_until
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
        lock = mpipc.Lock()
        wait_until(lambda: family.current().undo == "ignored")
        children = []
        for _ in range(30):
            children.append(os.fork())
            if children[-1] == 0:
                signal.pause()
                os._exit(0)
        wait_until(lambda: [state for _, state, _ in family.current().processes()] == ["alive"] * 31)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            wait_until(lambda: child not in [pid for _, _, pid in family.current().processes()], timeout=30)
        print("found")
    """
    assert run_without_undo(script, HERE) == "found\n"


@can_ignore_undo
def test_the_recovery_lock_of_a_killed_recoverer() -> None:
    """The reaper is killed in the middle of its work, often."""
    script = """
        import mpipc, os, signal
        from mpipc import _core as family
        from support import wait_until
        from support.reaper import reaper_pid
        lock = mpipc.Lock()
        wait_until(lambda: family.current().undo == "ignored")
        for number in range(10):
            child = os.fork()
            if child == 0:
                lock.acquire()
                os._exit(0)  # without a word
            os.waitpid(child, 0)
            for _ in range(number * 100):
                os.getppid()
            pid = reaper_pid()
            if pid:
                os.kill(pid, signal.SIGKILL)
            if number % 3 == 2:
                wait_until(lambda: (family.current().tick(), len(family.current().processes()) == 1)[1], timeout=30)
        assert lock.acquire(timeout=30)
        print("recovered")
    """
    assert run_without_undo(script, HERE) == "recovered\n"


PROGRAM = """
import mpipc, os, signal, sys
from mpipc import _core as family
from support import wait_until
from support.reaper import wait_for_reaper
locks, queue = [mpipc.Lock() for _ in range(10)], mpipc.Queue()
queue.put(1)
wait_until(lambda: family.current().undo == "ignored")
if sys.argv[1] == "with its reaper":
    os.kill(wait_for_reaper(), signal.SIGKILL)
print("ready", flush=True)
signal.pause()
"""


@can_ignore_undo
@pytest.mark.parametrize("killed", ["alone", "with its reaper"])
def test_nothing_is_left_without_undo(killed: str) -> None:
    script = f"""
        import subprocess, sys
        from mpipc import _core as family
        from pathlib import Path
        from support import wait_until
        from test_liveness import PROGRAM
        def rows():
            tables = [Path(f"/proc/sysvipc/{{kind}}").read_text() for kind in ("shm", "sem", "msg")]
            return sum(len(table.splitlines()) - 1 for table in tables)
        program = subprocess.Popen([sys.executable, "-c", PROGRAM, {killed!r}], stdout=subprocess.PIPE, text=True)
        assert program.stdout.readline() == "ready\\n"
        assert rows() > 0
        program.kill()
        program.wait()
        wait_until(lambda: ({killed!r} == "alone" or family.sweep(), rows() == 0)[1], timeout=30)
        print("gone")
    """
    assert run_without_undo(script, HERE) == "gone\n"


@can_ignore_undo
@can_unshare
def test_another_pid_namespace_is_refused_without_undo() -> None:
    script = """
        import ctypes, os
        import mpipc
        from mpipc import _core as family
        from support import wait_until
        from test_liveness import CLONE_NEWPID
        lock = mpipc.Lock()
        wait_until(lambda: family.current().undo == "ignored")
        assert ctypes.CDLL(None).unshare(CLONE_NEWPID) == 0
        child = os.fork()
        if child == 0:
            try:
                lock.acquire()
            except OSError as error:
                print(error, flush=True)
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    """
    assert "another pid namespace" in run_without_undo(script, HERE)

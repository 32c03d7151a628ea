"""The list "Must show" of the foundation, each as a test: what is left, and when, after everything was killed with -9.

The crash tests run as the user of the tests, as an unprivileged user, and with /dev/shm mounted read-only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import (
    NOBODY,
    TESTS,
    Script,
    can_become,
    kernel_objects,
    package_folder,
    processes,
    run_script,
    start_script,
    wait_until,
)

import mpipc
from mpipc import _core as family

READ_ONLY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 1, 32, 4096, 16384, 1 << 18
if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) or libc.mount(
        b"tmpfs", b"/dev/shm", b"tmpfs", MS_RDONLY, None):
    print("SKIP", os.strerror(ctypes.get_errno()), flush=True)
    raise SystemExit
try:
    open("/dev/shm/x", "w")
except OSError:
    pass
else:
    raise SystemExit("/dev/shm is not read-only")
"""

EVERYTHING = """
import os, signal, sys
import mpipc
from mpipc import _core as family
from support import wait_until
from mpipc.shared_memory import SharedMemory

def hold(objects, ready):
    locks, queues, arrays = objects
    for lock in locks[:25]:
        lock.acquire()
    for queue in queues:
        queue.put(b"from the child")
    named = SharedMemory(NAME)
    named.buf[1] = 2
    ready.release()
    signal.pause()

NAME = "must-show-%d" % int(sys.argv[2])

if __name__ == "__main__":
    ctx = mpipc.get_context(sys.argv[1])
    locks = [ctx.Lock() for _ in range(50)]
    queues = [ctx.Queue() for _ in range(20)]
    arrays = [ctx.Array("d", 10000) for _ in range(5)] + [ctx.Value("i", 3)]
    named = SharedMemory(NAME, create=True, size=100000)
    named.buf[0] = 1
    ready = ctx.Semaphore(0)
    children = [
        ctx.Process(target=hold, args=((locks[i * 25 :], queues, arrays), ready), daemon=True) for i in range(2)
    ]
    for child in children:
        child.start()
        assert ready.acquire(timeout=30)
    for queue in queues:
        queue.put(b"x" * 500)
        queue.put(b"y" * 100000)
    assert all(not lock.acquire(False) for lock in locks)
    wait_until(lambda: family.current().has_reaper())
    alive = [pid for _, state, pid in family.current().processes() if state == "alive"]
    print("READY", family.current().ticket, *alive, flush=True)
    signal.pause()
"""

USERS = ["same user", "unprivileged", "read-only /dev/shm"]


def objects_but_ours() -> int:
    return kernel_objects().minus(family.infrastructure()).count


@pytest.fixture(params=USERS)
def surroundings(request: pytest.FixtureRequest) -> str:
    if request.param == "unprivileged" and not can_become(NOBODY):
        pytest.skip("not permitted to change the user")
    if request.param == "read-only /dev/shm" and os.geteuid() != 0:
        pytest.skip("needs root to mount")
    return str(request.param)


def program(source: str, surroundings: str) -> tuple[str, dict[str, Any]]:
    if surroundings == "read-only /dev/shm":
        return READ_ONLY + source, {}
    return source, {"user": NOBODY} if surroundings == "unprivileged" else {}


@contextlib.contextmanager
def everything(start_method: str, surroundings: str) -> Iterator[tuple[Script, list[int], str]]:
    source, options = program(EVERYTHING, surroundings)
    with start_script(source, arguments=[start_method, str(os.getpid())], **options) as script:
        assert script.stdout is not None
        word, *rest = script.stdout.readline().split() or ["(nothing)"]
        if word == "SKIP":
            pytest.skip(" ".join(rest))
        if word != "READY":
            script.kill_session()
            pytest.fail(script.finish().stderr)
        members = [process.pid for process in script.members() if process.name != "mpipc-reaper"]
        ticket, *pids = rest
        assert set(map(int, pids)) <= set(members)
        yield script, members, ticket


def kill_all(script: Script, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    script.wait()


def reapers(ticket: str) -> list[int]:
    """Of this family."""
    return [process.pid for process in processes().values() if process.is_reaper_of(ticket)]


@pytest.mark.slow_with("spawn")
def test_the_whole_tree_killed_leaves_nothing(start_method: str, surroundings: str) -> None:
    """50 locks, 20 queues with messages, arrays and a named segment."""
    mpipc.Lock()
    before = objects_but_ours()
    with everything(start_method, surroundings) as (script, pids, _):
        assert objects_but_ours() >= before + 20 + 3
        begin = time.monotonic()
        kill_all(script, pids)
        wait_until(lambda: objects_but_ours() == before, timeout=30)
        print(f"nothing left after {time.monotonic() - begin:.3f} s")


@pytest.mark.slow_with("spawn")
def test_the_reaper_killed_first_then_the_next_program(start_method: str, surroundings: str) -> None:
    mpipc.Lock()
    before = objects_but_ours()
    with everything(start_method, surroundings) as (script, pids, ticket):
        ours = wait_until(lambda: reapers(ticket))
        for pid in ours:
            os.kill(pid, signal.SIGSTOP)  # at once, before the members can notice
        for pid in [*ours, *pids]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        script.wait()
        wait_until(lambda: not {pid for pid in pids if Path(f"/proc/{pid}/exe").exists()})
        assert objects_but_ours() >= before + 20 + 3
        source, options = program("import mpipc; mpipc.Lock()", surroundings)
        begin = time.monotonic()
        # Once is enough as soon as the kernel has detached the last of the dead, which nothing announces.
        wait_until(lambda: (run_script(source, **options), objects_but_ours() == before)[1], timeout=30)
        print(f"nothing left after {time.monotonic() - begin:.3f} s, the start of the program included")


QUEUES = """
import mpipc, sys
from support import kernel_objects
from mpipc import _core as family
first = mpipc.Queue(); first.put(1); first.get()
before = kernel_objects().count
for size in (0, 10, 300):
    for _ in range(100):
        queue = mpipc.Queue(size)
        queue.put("message")
        if size:
            queue.put(b"z" * 50000)
del queue
import gc; gc.collect()
print(kernel_objects().count - before)
"""


def test_300_queues_created_and_dropped(surroundings: str) -> None:
    source, options = program(QUEUES, surroundings)
    result = run_script(source, **options)
    if result.stdout.startswith("SKIP"):
        pytest.skip(result.stdout)
    assert result.stdout == "0\n"


DROPPED = """
import sys
import mpipc

def use(queue, go, done):
    go.acquire()
    assert queue.get(timeout=60) == "hello"
    queue.put("again")
    assert queue.get(timeout=60) == "again"
    done.release()
    go.acquire()

if __name__ == "__main__":
    from support import kernel_objects, wait_until
    ctx = mpipc.get_context(sys.argv[1])
    go, done = ctx.Semaphore(0), ctx.Semaphore(0)
    before = kernel_objects().msg
    queue = ctx.Queue()
    queue.put("hello")
    child = ctx.Process(target=use, args=(queue, go, done))
    child.start()
    del queue
    child._args = ()
    go.release()
    assert done.acquire(timeout=60)
    assert len(kernel_objects().msg - before) == 1
    go.release()
    child.join()
    assert child.exitcode == 0
    wait_until(lambda: kernel_objects().msg == before)
    print("fine")
"""


@pytest.mark.slow_with("spawn")
def test_a_queue_that_its_creator_drops_lives_as_long_as_a_child_uses_it(start_method: str, surroundings: str) -> None:
    source, options = program(DROPPED, surroundings)
    result = run_script(source, arguments=[start_method], **options)
    if result.stdout.startswith("SKIP"):
        pytest.skip(result.stdout)
    assert result.stdout == "fine\n"


@pytest.mark.slow
@pytest.mark.skipif(not can_become(NOBODY), reason="not permitted to change the user")
def test_the_primitives_pass_as_an_unprivileged_user(tmp_path: Path) -> None:
    """A part of the tests of the primitives, by another pytest in a child that has become that user."""
    from support import become

    os.chmod(tmp_path, 0o777)
    for folder in (tmp_path.parent, tmp_path.parent.parent):
        os.chmod(folder, 0o755)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={tmp_path}/t",
         "-k", "fork-", f"--rootdir={TESTS.parent}",
         *(str(TESTS / "sync" / name) for name in ("test_synchronize.py", "test_synchronize_kill.py"))],
        capture_output=True, text=True, timeout=110, cwd=tmp_path, preexec_fn=become,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "MPIPC_"))}
        | {"HOME": str(tmp_path), "PYTHONPATH": str(package_folder().parent), "MPIPC_KILL_ROUNDS": "20"},  # type: ignore[union-attr]
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout

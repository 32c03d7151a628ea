"""Where a reaper has no /proc, cannot be started, or is a clone of the program."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from support import NOBODY, can_become, kernel_rows, package_folder, run_script, wait_until
from support.native_programs import CORE

IDS = """
def ids():
    from mpipc._core import infrastructure
    for kind, found in infrastructure().items():
        for number in sorted(found):
            print(kind, number, flush=True)
"""


def left(output: str) -> list[tuple[str, int]]:
    told = [(line.split()[0], int(line.split()[1])) for line in output.splitlines()]
    assert {kind for kind, _ in told} >= {"shm", "sem"}
    return [(kind, number) for kind, number in told if number in kernel_rows(kind)]


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) is root's")
def test_in_a_chroot_without_proc_all_is_removed_at_the_end() -> None:
    """Nothing can be executed there, so the reaper is a clone, and has to let go of what it was cloned with."""
    source = (
        IDS
        + """
import os, tempfile
import mpipc, mpipc.synchronize, mpipc.queues, mpipc._core
from mpipc import _core
ids.__globals__["infrastructure"] = _core.infrastructure
folder = tempfile.mkdtemp()
if os.fork() == 0:
    os.chroot(folder)
    os.chdir("/")
    lock = mpipc.Lock()
    with lock:
        pass
    kept = [mpipc.Lock() for _ in range(5000)]
    ids()
    os._exit(0)
os.wait()
"""
    )
    output = run_script(source).stdout
    wait_until(lambda: left(output) == [], message="the reaper has removed all, and has gone")


@pytest.mark.skipif(not can_become(NOBODY), reason="needs another user")
def test_where_no_reaper_can_be_started_the_last_one_removes_all() -> None:
    source = (
        IDS
        + """
import resource
import mpipc
from support.reaper import reaper_pid
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
queue = mpipc.Queue()
queue.put("x" * 100_000)
assert queue.get() == "x" * 100_000
mpipc.Event().set()
ids()
assert not reaper_pid()
"""
    )
    assert left(run_script(source, user=NOBODY).stdout) == []


# Another thread of the program may have had malloc's lock when the reaper was cloned from it.
ALLOCATES = {
    "launch.c": "stacks for the clones, in the program",
    "queue.c": "of a handle (mp_queue_open); recovery has f->stretches",
}


def test_nothing_that_a_reaper_does_allocates() -> None:
    sources = {
        path.name: re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL) for path in sorted(CORE.glob("*.c"))
    }
    assert {name for name, text in sources.items() if re.search(r"\b(?:m|c|re)alloc\(", text)} == set(ALLOCATES)
    assert sources["queue.c"].count("alloc(") == 1
    for name in ("mp_queue_recover", "mp_queue_trim", "mp_queue_heal"):
        body = sources["queue.c"].partition(f"void {name}(")[2].partition("\n}")[0]
        assert body and "mp_queue_open" not in body


@pytest.mark.skipif(sys.version_info < (3, 13), reason="_interpreters is of 3.13")
def test_a_subinterpreter_says_what_it_cannot_do() -> None:
    """It goes on, and so does the main interpreter."""
    source = """
import _interpreters
interpreter = _interpreters.create("isolated")
for made in ("Lock()", "Value('i', 1)", "Event()", "SimpleQueue()", "Lock()"):
    failed = _interpreters.exec(interpreter, f"import mpipc; mpipc.{made}")
    print(failed.type.__name__, failed.msg)
assert _interpreters.exec(interpreter, "import mpipc; mpipc.cpu_count()") is None
import mpipc
with mpipc.Lock():
    pass
_interpreters.destroy(interpreter)
"""
    lines = run_script(source).stdout.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert line.startswith("ImportError") and "does not support loading in subinterpreters" in line


def test_a_reaper_that_cannot_be_executed_is_a_clone(tmp_path: Path) -> None:
    """As on a mount that is noexec: here its file is not executable."""
    package = package_folder()
    assert package is not None
    for path in package.rglob("*"):
        copy = tmp_path / "mpipc" / path.relative_to(package)
        if path.is_dir():
            copy.mkdir(parents=True)
        elif path.name == "mpipc-reaper":
            shutil.copyfile(path, copy)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    source = (
        IDS
        + """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import mpipc
from support import wait_until
assert mpipc.__file__.startswith(sys.argv[1])
lock = mpipc.Lock()
def comm(pid):
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]
wait_until(lambda: [comm(pid) for pid in children()] == ["mpipc-reaper"])
def hold():
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)
process = mpipc.get_context("fork").Process(target=hold)
process.start()
process.join()
assert lock.acquire(timeout=30)
ids()
"""
    )
    output = run_script(source, arguments=[str(tmp_path)]).stdout
    wait_until(lambda: left(output) == [], message="it has removed all")

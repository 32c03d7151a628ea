"""What the workers of tests/pool/test_pool_workers.py and test_pool_broadcast.py run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import mpipc


def begin(state: Any) -> None:
    state.pid = os.getpid()
    state.calls = 0


def begin_after_initializer(state: Any) -> None:
    state.initialized = os.environ.get("MPIPC_TEST_INITIALIZED")


def initialize() -> None:
    os.environ["MPIPC_TEST_INITIALIZED"] = "yes"


def initialized(_: Any = None) -> Any:
    return mpipc.worker_state().initialized


def count(_: Any = None) -> tuple[int, int]:
    state = mpipc.worker_state()
    assert state.pid == os.getpid()
    state.calls += 1
    return os.getpid(), state.calls


def keep(name: str, value: Any) -> int:
    setattr(mpipc.worker_state(), name, value)
    return os.getpid()


def kept(name: str) -> Any:
    return getattr(mpipc.worker_state(), name)


class Note:
    """A worker_exit that writes a file for each worker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, state: Any) -> None:
        (self._folder / str(os.getpid())).write_text(str(state.calls))


def fail_to_begin(state: Any) -> None:
    raise LookupError("no model")


def fail_to_end(state: Any) -> None:
    raise LookupError("no end")


def in_a_forked_child(_: Any = None) -> str:
    """What worker_state() says there."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            mpipc.worker_state()
            os.write(writer, b"a worker")
        except RuntimeError:
            os.write(writer, b"none")
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    return text


def where(_: Any = None) -> tuple[int, int, frozenset[int]]:
    return os.getpid(), os.getpriority(os.PRIO_PROCESS, 0), frozenset(os.sched_getaffinity(0))


def all_threads_where(_: Any = None) -> set[tuple[int, frozenset[int]]]:
    """Of those that were there before the task, too: one that watches the parent, say."""
    threads = list(map(int, os.listdir("/proc/self/task")))
    return {(os.getpriority(os.PRIO_PROCESS, thread), frozenset(os.sched_getaffinity(thread))) for thread in threads}


def threads_where(_: Any = None) -> frozenset[int]:
    """Of a thread that a task starts."""
    found: list[frozenset[int]] = []
    thread = threading.Thread(target=lambda: found.append(frozenset(os.sched_getaffinity(0))))
    thread.start()
    thread.join()
    return found[0]


def die_once(path: str) -> int:
    """Whoever comes first is killed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def die_or_wait(path: str, gate: str) -> int:
    """The first one returns, and is killed when it does something else; the others wait until the gate is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        return os.getpid()
    while not os.path.exists(gate):
        time.sleep(0.001)
    return os.getpid()


def fail_in_one(path: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        raise KeyError(path)
    return os.getpid()


def identity_of(_: Any = None) -> int:
    return os.getpid()


def wait_for_file(path: str) -> int:
    while not os.path.exists(path):
        time.sleep(0.001)
    return os.getpid()


def stop_me(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def pool_that_waits(told: Any, method: str, ends: bool) -> None:
    """A parent with a pool, one of whose workers stops in a task."""
    pool = mpipc.get_context(method).Pool(2, end_with_parent=ends)
    told.send(pool.broadcast(os.getpid))
    pool.apply(stop_me)

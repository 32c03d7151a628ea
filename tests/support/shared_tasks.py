"""What the workers of tests/pool/test_pool_shared.py run."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import mpipc
from mpipc._pool.memory import private_memory

MB = 1 << 20


class Unpicklable:
    """Large, and with a lock, which cannot be pickled."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.content[:: 1 << 12] = b"\1" * len(self.content[:: 1 << 12])  # each page is there
        self.lock = threading.Lock()


class Counted:
    """Counts in the parent how often it is pickled."""

    times = 0

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        Counted.times += 1
        return Counted, (self.text,)


def shared(_: Any = None) -> Any:
    return mpipc.worker_state().shared


def first_of_shared() -> Any:
    return mpipc.worker_state().shared[0]


def text_of_shared(_: Any = None) -> tuple[int, str]:
    return os.getpid(), mpipc.worker_state().shared.text


def private(_: Any = None) -> int:
    return private_memory("self")


def read_all(_: Any = None) -> tuple[int, int, int]:
    """pid, how many pages of it have a 1, and by how much this process's own memory has grown."""
    before = private_memory("self")
    shared = mpipc.worker_state().shared
    with shared.lock:
        ones = shared.content.count(1)
    gc.collect()
    return os.getpid(), ones, private_memory("self") - before


def collect(_: Any = None) -> int:
    """By how much this process's own memory grows while its garbage is collected."""
    assert len(mpipc.worker_state().shared) > 0
    before = private_memory("self")
    gc.collect()
    return private_memory("self") - before


def add_to_it(key: str) -> list[str]:
    found = mpipc.worker_state().shared
    found[key] = os.getpid()
    return sorted(found)


def begin(state: Any) -> None:
    state.seen = state.shared


def begin_with_another(state: Any) -> None:
    state.shared = [*state.shared, "mine"]


def initialize() -> None:
    mpipc.worker_state().early = mpipc.worker_state().shared


def early_and_seen(_: Any = None) -> tuple[Any, Any]:
    state = mpipc.worker_state()
    return state.early, state.seen


def add_under(_: Any = None) -> None:
    state = mpipc.worker_state().shared
    with state["lock"]:
        state["total"].value += 1


def nothing_shared() -> str:
    try:
        mpipc.worker_state().shared  # noqa: B018
    except AttributeError as error:
        return str(error)
    return "something"

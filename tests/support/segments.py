"""Named segments, for tests."""

from __future__ import annotations

from mpipc.shared_memory import SharedMemory

__all__ = ["exists"]


def exists(name: str) -> bool:
    """Whether there is shared memory of this name, which may be attached."""
    try:
        SharedMemory(name).close()
    except FileNotFoundError:
        return False
    return True

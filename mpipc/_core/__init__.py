"""Lifetimes: which processes are alive, which objects they hold, and who cleans up after them.

A family is the set of processes that share mpipc objects, usually one process tree. `current()` is the family that new
objects belong to; most programs never call anything here.
"""

import os
import sys
from collections.abc import Callable

from mpipc._core.family import (
    ENVIRONMENT,
    Block,
    Family,
    arrived,
    cancel_reservations,
    cancel_transit,
    current,
    families_of_this_process,
    leaving,
    new_data,
    new_queue,
    new_segment,
    payload,
    record_transit,
    reserve_for_child,
    segment_size,
    sweep,
)

__all__ = [
    "ENVIRONMENT",
    "Block",
    "Family",
    "arrived",
    "cancel_reservations",
    "cancel_transit",
    "current",
    "dead_families",
    "families_of_this_process",
    "infrastructure",
    "leaving",
    "new_data",
    "new_queue",
    "new_segment",
    "payload",
    "record_transit",
    "register_reserve",
    "reserve_for_child",
    "segment_size",
    "sweep",
]


def dead_families() -> list[int]:
    """The ids of this user's families that no process has attached any more: what sweep() removes."""
    from mpipc.sysv.listing import shared_memory_segments

    size, uid = segment_size(), os.geteuid()
    segments = shared_memory_segments()
    return [found.shmid for found in segments if found.size == size and found.cuid == uid and found.nattch == 0]


_reserves: list[Callable[[], set[int]]] = []


def register_reserve(segments: Callable[[], set[int]]) -> None:
    """`segments` returns the ids of the segments that a layer above keeps in reserve while nobody uses them."""
    _reserves.append(segments)


def infrastructure() -> dict[str, set[int]]:
    """Kernel ids that live as long as this process or its families do, by kind: "shm", "sem", "msg"."""
    found: dict[str, set[int]] = {"shm": set(), "sem": set(), "msg": set()}
    for segments in _reserves:
        found["shm"] |= segments()
    for family in families_of_this_process():
        for kind, ids in family.infrastructure().items():
            found[kind] |= ids
    return found


def _forked() -> None:
    if "greenlet" in sys.modules:
        from mpipc._core import greenlets

        greenlets.inherit()


os.register_at_fork(after_in_child=_forked)

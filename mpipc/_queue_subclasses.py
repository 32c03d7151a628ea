"""Subclasses of a queue that reach into multiprocessing's, as joblib's loky has: they get what they reach for."""

from __future__ import annotations

from typing import Any

__all__ = ["settle_base"]

INTERNALS = frozenset(
    ["_buffer", "_feed", "_notempty", "_opid", "_rlock", "_sem", "_start_thread", "_thread", "_wlock"]
)
"""What multiprocessing's queues are made of and mpipc's are not: a pipe with locks, a semaphore, a feeder thread."""


def settle_base(subclass: type, name: str, ours: type) -> None:
    """Derive `subclass` from multiprocessing.queues.<name> in the place of `ours`, if its methods speak of INTERNALS.

    It replaces the way in which messages travel, with a pickler of its own for instance; nothing of ours would be left.
    """
    if ours in subclass.__bases__ and any(_speaks_of_internals(value) for value in vars(subclass).values()):
        from mpipc._install import standard_module

        standard = getattr(standard_module("queues"), name)
        subclass.__bases__ = tuple(standard if base is ours else base for base in subclass.__bases__)


def _speaks_of_internals(value: Any) -> bool:
    function = getattr(value, "__func__", value)  # of a static or class method
    code = getattr(function, "__code__", None)
    return code is not None and not INTERNALS.isdisjoint(code.co_names)

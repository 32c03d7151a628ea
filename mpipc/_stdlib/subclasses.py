"""Subclasses of queues and pools that reach into multiprocessing's, as joblib's do: they get what they reach for."""

from __future__ import annotations

from types import CodeType
from typing import Any

from mpipc._stdlib.private import QUEUE_INTERNALS, SETUP_QUEUES
from mpipc._stdlib.standard import standard_module

__all__ = ["own_reducers", "settle_pool", "settle_queue"]

OWN_REDUCERS = ("_forward_reducers", "_backward_reducers")
"""Attributes of joblib.pool.PicklingPool: for tasks and for results, functions that reduce objects, by type.

Its _setup_queues() makes queues that pickle with them. They are the way in which joblib passes arrays as memory maps.
"""


def settle_queue(subclass: type, name: str, ours: type) -> None:
    """Derive `subclass` from multiprocessing.queues.<name> in the place of `ours`, if it speaks of QUEUE_INTERNALS.

    It replaces the way in which messages travel, with a pickler of its own for instance; nothing of ours would be left.
    """
    codes = map(_code, vars(subclass).values())
    if any(code is not None and not QUEUE_INTERNALS.isdisjoint(code.co_names) for code in codes):
        _derive_from_standard(subclass, "queues", name, ours)


def settle_pool(subclass: type, ours: type) -> None:
    """Derive `subclass` from multiprocessing.pool.Pool in the place of `ours`, if it sets up queues that are not known.

    The pool would not use them, and what they pickle in a way of their own would travel in the usual one.
    """
    if SETUP_QUEUES in vars(subclass):
        code = _code(vars(subclass)[SETUP_QUEUES])
        if code is None or not set(OWN_REDUCERS) <= set(code.co_names):
            _derive_from_standard(subclass, "pool", "Pool", ours)


def own_reducers(pool: Any, ours: type) -> tuple[Any, Any]:
    """The reducers that a pool of a class like joblib's has for tasks and for results; None if it has none."""
    if getattr(type(pool), SETUP_QUEUES) is getattr(ours, SETUP_QUEUES):
        return None, None
    tasks, results = (getattr(pool, name, None) or None for name in OWN_REDUCERS)
    return tasks, results


def _derive_from_standard(subclass: type, module: str, name: str, ours: type) -> None:
    if ours in subclass.__bases__:
        standard = getattr(standard_module(module), name)
        subclass.__bases__ = tuple(standard if base is ours else base for base in subclass.__bases__)


def _code(value: Any) -> CodeType | None:
    function = getattr(value, "__func__", value)  # of a static or class method
    code: CodeType | None = getattr(function, "__code__", None)
    return code

"""What a process was given by whoever started it: its arguments, and what hangs on them.

A fresh interpreter has nothing else. A forked child inherits everything, and this tells the two apart.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["given"]


def given(process: Any, wanted: Iterable[Any]) -> list[Any]:
    """Those of the `wanted` objects that can be reached from a process object, in any number of steps: from its
    arguments, its target (a method's object, what a function encloses, but not its globals), and its attributes."""
    missing = {id(obj): obj for obj in wanted}
    found: list[Any] = []
    waiting: list[Any] = [vars(process)]
    seen = {id(missing), id(found), id(waiting)}
    while waiting and missing:
        obj = waiting.pop()
        if id(obj) in missing:
            found.append(missing.pop(id(obj)))
        elif id(obj) not in seen and not isinstance(obj, ModuleType | type):
            seen.add(id(obj))
            waiting.extend(_parts(obj))
    return found


def _parts(obj: Any) -> Iterable[Any]:
    if isinstance(obj, FunctionType):
        return (obj.__closure__, obj.__defaults__, obj.__kwdefaults__, obj.__dict__)
    if isinstance(obj, dict):  # from Python 3.13 on an instance may have the values of its dict in itself
        return [*obj.keys(), *obj.values()]
    return gc.get_referents(obj)

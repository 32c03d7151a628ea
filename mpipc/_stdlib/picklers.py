"""Which pickler stands in the place of ForkingPickler: programs may put one there, to send lambdas with dill, say.

They do so in three places, in all of which multiprocessing looks, in this order:

* `queues._ForkingPickler`, the name by which the queues have it;
* `reducer` of a context, which is public: an object with a ForkingPickler, and a dump() for the start of processes;
* `reduction.ForkingPickler`.

multiprocessing's modules look when they are imported, or when they pickle; for mpipc's it counts from the assignment
on, of which this module is told: asking all three for each message would be a part of what sending it costs. As long
as nobody has put anything anywhere, small objects travel without a pickler. A replaced one is asked for everything: it
may do something with an integer, too.
"""

from __future__ import annotations

import contextlib
import pickle
from importlib import import_module
from multiprocessing import context as _context
from multiprocessing import reduction as _standard_reduction
from types import FunctionType, ModuleType
from typing import Any

from mpipc._stdlib.private import ORIGINAL_PICKLER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Module",
    "by_reference",
    "current",
    "dumps",
    "for_children",
    "loads",
    "set_for_queues",
    "set_reducer",
    "tell",
    "with_reducer",
]

_reduction: Any = _standard_reduction
_for_queues: Any = None
_reducer: Any = None
_listeners: list[Callable[[bool], object]] = []

by_reference: dict[type, Callable[[Any], Any]] = {}
"""How objects are reduced that may lie in memory that travels by reference; _memory/references.py fills it, and
storages.py."""

for_children: dict[type, Callable[[Any], Any]] = {}
"""What these have put into ForkingPickler's table, for pipes and children: it gives way to what stands above."""


def current() -> Any:
    """The pickler: a class with dumps() and loads(). AttributeError if there is none where there has to be one."""
    if _for_queues is not None:
        return _for_queues
    if _reducer is not None:
        return _reducer.ForkingPickler
    return _reduction.ForkingPickler


def set_for_queues(pickler: Any) -> None:
    """Somebody has assigned to `queues._ForkingPickler`; None, or what the others are: it is what these are."""
    global _for_queues
    _for_queues = None
    with contextlib.suppress(AttributeError):
        if pickler is current():
            pickler = None
    _for_queues = pickler
    _note()


def set_reducer(reducer: Any) -> None:
    """Somebody has assigned to `reducer` of a context; the module multiprocessing.reduction is what it was before."""
    global _reducer
    _reducer = None if reducer is _reduction else reducer
    _note()


class Module(ModuleType):
    """A module that dill and cloudpickle, which know modules by their type, can pickle by name all the same."""

    def __reduce__(self) -> Any:
        return import_module, (self.__name__,)


class _Reduction(Module):
    """The module multiprocessing.reduction, which says when another ForkingPickler is put into it."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "ForkingPickler":
            _note()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        if name == "ForkingPickler":
            _note()


def tell(listener: Callable[[bool], object]) -> None:
    """Have a function called now, and when that may have changed: whether a pickler is there that is not the usual."""
    _listeners.append(listener)
    _note()


def _note() -> None:
    try:
        replaced = _reducer is not None or current() is not ORIGINAL_PICKLER
    except AttributeError:
        replaced = True  # pickling will raise this
    for listener in _listeners:
        listener(replaced)


def dumps(obj: Any) -> bytes:
    """The object pickled by the pickler. Raises what that raises."""
    return bytes(current().dumps(obj))


def loads(data: bytes) -> Any:
    """The object that another process has pickled with its pickler. Raises what this process's raises."""
    return getattr(current(), "loads", pickle.loads)(data)


class _Dumping:
    """A reducer whose dump() may be a function of a module that stands in the class, as AbstractReducer's, and as many
    have copied it: as a method it would take the reducer for the object."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def dump(self, obj: Any, file: Any, *protocol: Any) -> None:
        """Pickle an object into a file."""
        dump = self._reducer.dump
        function = getattr(dump, "__func__", None)
        if function is _reduction.AbstractReducer.dump:
            self._reducer.ForkingPickler(file, *protocol).dump(obj)
        elif function is not None and function.__qualname__.rpartition(".")[0].rpartition(".")[2] in ("", "<locals>"):
            function(obj, file, *protocol)
        else:
            dump(obj, file, *protocol)


def with_reducer(function: Any, module: ModuleType) -> Any:
    """A function of multiprocessing's that pickles with the `reduction` that its module has imported: with the reducer
    of the contexts instead. (The module has what that was when it was imported.)"""
    reducer = _reduction if _reducer is None else _reducer
    if vars(module).get("reduction") is reducer:
        return function
    names = {**vars(module), "reduction": reducer if reducer is _reduction else _Dumping(reducer)}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


_reduction.__class__ = _Reduction
# which a program may have set before it has imported mpipc
set_reducer(_context.reduction)  # type: ignore[attr-defined]

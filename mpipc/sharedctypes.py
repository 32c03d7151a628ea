"""ctypes objects in shared memory: multiprocessing.sharedctypes on mpipc's heap and locks.

The wrappers are subclasses of the running interpreter's, and objects are pickled by its functions: a program may use
both packages' Values side by side, of the same ctypes type, and either's are instances of the classes it knows.

RawArray(type, size) touches no memory: a large array costs what is used of it.
"""

from __future__ import annotations

import ctypes
import weakref
from multiprocessing.context import assert_spawning
from typing import Any

from mpipc import heap
from mpipc._stdlib.likeness import ModuleName
from mpipc._stdlib.standard import standard_module
from mpipc._stdlib.start_method import default_context
from mpipc._sync.guarded import Guarded
from mpipc.synchronize import RLock

_base: Any = standard_module("sharedctypes")  # its private names are unknown to type checkers

rebuild_ctype = _base.rebuild_ctype
reduce_ctype = _base.reduce_ctype
typecode_to_type: dict[str, Any] = _base.typecode_to_type

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]


def make_property(name: str) -> Any:
    """A property that reads and writes the attribute `name` of a wrapper's object with its lock held."""
    return Guarded(name, RLock)


def _type(typecode_or_type: Any) -> Any:
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    try:
        ctypes.sizeof(type_)
    except TypeError:
        raise TypeError(
            f"bad typecode {type_!r}: it must be a ctypes type or one of {' '.join(typecode_to_type)}"
        ) from None
    return type_


def _new_value(type_: Any) -> Any:
    """An object of a ctypes type, all zero."""
    return rebuild_ctype(type_, heap.BufferWrapper(ctypes.sizeof(type_)), None)


def RawValue(typecode_or_type: Any, *args: Any) -> Any:
    """Return a ctypes object in shared memory, without a lock; `args` are for its constructor.

    Raises TypeError for an unknown typecode, and what mpipc.heap.BufferWrapper raises.
    """
    value = _new_value(_type(typecode_or_type))
    value.__init__(*args)
    return value


def RawArray(typecode_or_type: Any, size_or_initializer: Any) -> Any:
    """Return a ctypes array in shared memory, without a lock: so many zeros, or with the items of a sequence.

    Raises TypeError for an unknown typecode, ValueError for a negative size, and what mpipc.heap.BufferWrapper raises.
    """
    type_ = _type(typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new_value(type_ * size_or_initializer)
    array = _new_value(type_ * len(size_or_initializer))
    array.__init__(*size_or_initializer)
    return array


def Value(typecode_or_type: Any, *args: Any, lock: Any = True, ctx: Any = None) -> Any:
    """Return a ctypes object in shared memory, wrapped with a lock.

    `lock` is True (a new RLock of the context), False (no wrapper) or the lock to use. AttributeError if that cannot be
    acquired.
    """
    return _wrapped(RawValue(typecode_or_type, *args), lock, ctx)


def Array(typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True, ctx: Any = None) -> Any:
    """Return a ctypes array in shared memory, wrapped with a lock; see Value()."""
    return _wrapped(RawArray(typecode_or_type, size_or_initializer), lock, ctx)


def _wrapped(obj: Any, lock: Any, ctx: Any) -> Any:
    if lock is False:
        return obj
    if lock is True or lock is None:
        ctx = ctx or default_context()
        lock = ctx.RLock()
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire': lock must be True, False or a lock")
    return synchronized(obj, lock, ctx=ctx)


def copy(obj: Any) -> Any:
    """Return a copy of a ctypes object in shared memory of its own."""
    new = _new_value(type(obj))
    ctypes.pointer(new)[0] = obj
    return new


def synchronized(obj: Any, lock: Any = None, ctx: Any = None) -> Any:
    """Return a wrapper that makes access to a ctypes object exclusive, with `lock` or an RLock of its own."""
    assert not isinstance(obj, _base.SynchronizedBase), "object already synchronized"
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        return (SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray)(obj, lock, ctx)
    return _wrapper_class(type(obj))(obj, lock, ctx)


_wrapper_classes: weakref.WeakKeyDictionary[type, type[Any]] = weakref.WeakKeyDictionary()


def _wrapper_class(structure: type[Any]) -> type[Any]:
    """A wrapper with a property for each field of a structure or union."""
    known = _wrapper_classes.get(structure)
    if known is None:
        properties = {field[0]: make_property(field[0]) for field in structure._fields_}
        known = type("Synchronized" + structure.__name__, (SynchronizedBase,), properties)
        _wrapper_classes[structure] = known
    return known


class SynchronizedBase(_base.SynchronizedBase):  # type: ignore[misc]
    """A ctypes object with a lock; also a context manager that holds the lock."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == __name__:
            cls.__module__ = ModuleName(__name__)

    def __init__(self, obj: Any, lock: Any = None, ctx: Any = None) -> None:
        super().__init__(obj, lock or (ctx or default_context()).RLock())

    def __reduce__(self) -> tuple[Any, ...]:
        assert_spawning(self)
        return synchronized, (self._obj, self._lock)


class Synchronized(SynchronizedBase, _base.Synchronized):  # type: ignore[misc]
    """A simple ctypes object with a lock; `value` is read and written while holding it."""

    value = make_property("value")


class SynchronizedArray(SynchronizedBase, _base.SynchronizedArray):  # type: ignore[misc]
    """A ctypes array with a lock, which each access to items or slices holds."""

    def __getitem__(self, index: Any) -> Any:
        with self._lock:
            return self._obj[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        with self._lock:
            self._obj[index] = value


class SynchronizedString(SynchronizedArray, _base.SynchronizedString):  # type: ignore[misc]
    """An array of c_char with a lock; also `value` (up to the first null byte) and `raw`."""

    value = make_property("value")
    raw = make_property("raw")

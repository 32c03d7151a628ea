"""How arrays of numpy, and memoryviews, that lie in memory of the family are sent: as a name of that, a shape, and
strides.

pickle protocol 5 hands out only what is contiguous, and only of an ndarray itself; so reducers of our own, for all that
is of these classes. What does not lie in such memory is reduced as ever. They act where objects are pickled for a queue
or a pool, and where a process is started by mpipc; a pipe or a manager has no message that could hold memory: there the
array is copied.
"""

from __future__ import annotations

import pickle
from multiprocessing import context as _context
from multiprocessing import reduction as _reduction
from typing import Any

from mpipc._memory.memory import address_of, for_children, memory_around, memory_with, reducers
from mpipc._stdlib.private import extra_reducers

__all__ = ["reduce_for_child", "register", "register_views"]

_numpy: Any = None


def register(numpy: Any) -> None:
    """Arrays of numpy that lie in shared memory travel by reference from now on. Every process that has received one
    has called this."""
    global _numpy
    if _numpy is None:
        _numpy = numpy
        reducers[numpy.ndarray] = reduce_array
        # A program's own reducer stays, and goes first everywhere.
        if numpy.ndarray not in extra_reducers:
            _reduction.ForkingPickler.register(numpy.ndarray, reduce_for_child)
            for_children[numpy.ndarray] = reduce_for_child
    register_views()


def register_views() -> None:
    """The same for memoryviews."""
    if memoryview not in reducers:
        reducers[memoryview] = reduce_view
        if memoryview not in extra_reducers:
            _reduction.ForkingPickler.register(memoryview, reduce_for_child)
            for_children[memoryview] = reduce_for_child


def _is_plain(cls: type) -> bool:
    """Whether an array of a subclass is all that numpy says of it, but for what is in its __dict__."""
    ndarray = _numpy.ndarray
    return bool(
        cls.__reduce__ is ndarray.__reduce__
        and cls.__reduce_ex__ is ndarray.__reduce_ex__
        and cls.__setstate__ is ndarray.__setstate__  # type: ignore[attr-defined]
    )


def reduce_array(array: Any) -> Any:
    found = memory_around(array.__array_interface__["data"][0], array.shape, array.strides, array.itemsize)
    cls = type(array)
    if found is None or array.dtype.hasobject or not (cls is _numpy.ndarray or _is_plain(cls)):
        return array.__reduce_ex__(5)
    memory, offset = found
    state = None if cls is _numpy.ndarray else (cls, getattr(array, "__dict__", None))
    # A child that is being started has no message that could hold the memory, but the way that all objects go.
    handle = memory if _context.get_spawning_popen() is not None else pickle.PickleBuffer(memory)
    dtype = array.dtype
    # The name of a simple one says all, and is pickled in a tenth of the time.
    sent = dtype if dtype.names is not None or dtype.subdtype is not None or dtype.metadata else dtype.str
    return rebuild_array, (handle, sent, array.shape, array.strides, offset, array.flags.writeable, state)


def reduce_for_child(obj: Any) -> Any:
    """By multiprocessing's pickler, which pickles for pipes as well, and for children of either package."""
    if not type(_context.get_spawning_popen()).__module__.startswith("mpipc."):
        return obj.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    return reduce_view(obj) if isinstance(obj, memoryview) else reduce_array(obj)


def rebuild_array(
    buffer: Any, dtype: Any, shape: Any, strides: Any, offset: int, writeable: bool, state: tuple[type, Any] | None
) -> Any:
    import numpy

    register(numpy)
    array = numpy.ndarray(shape, dtype, buffer, offset, strides)
    if state is not None:
        array = array.view(state[0])
        if state[1]:
            array.__dict__.update(state[1])
    if not writeable:
        array.flags.writeable = False
    return array


def reduce_view(view: memoryview) -> Any:
    memory = memory_with(view)
    if memory is None or not (view.c_contiguous or (view.ndim == 1 and view.itemsize == 1)):
        raise TypeError("cannot pickle 'memoryview' object: it is not of mpipc.arrays, or not contiguous")
    handle = memory if _context.get_spawning_popen() is not None else pickle.PickleBuffer(memory)
    first = address_of(view) - address_of(memory)
    stride = 1 if view.c_contiguous else view.strides[0] if view.strides else 1
    return rebuild_view, (handle, first, view.format, view.shape, stride, view.nbytes, view.readonly)


def rebuild_view(
    buffer: Any, first: int, format: str, shape: Any, stride: int, nbytes: int, readonly: bool
) -> memoryview:
    register_views()
    whole = memoryview(buffer)
    if stride == 1:
        view = whole[first : first + nbytes].cast(format, shape) if nbytes else whole[:0]  # type: ignore[call-overload]
    else:
        stop = first + stride * shape[0]
        view = whole[first : stop if stop >= 0 else None : stride]
    return view.toreadonly() if readonly else view

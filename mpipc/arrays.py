"""Arrays and buffers in shared memory, which travel between processes by reference: 1 GB costs what 1 KB costs.

    from mpipc import arrays

    frame = arrays.empty((1080, 1920, 3), "uint8")
    queue.put(frame)                # no copy: the receiver has the same memory, and sees what is written

They are ordinary `numpy.ndarray`s. An array, or any view of one (a slice, transposed, reversed), is sent as the name of
its memory through every queue of mpipc, as an argument and a result of a pool's or an executor's tasks, and as an
argument of a process that is started. What lies in other memory is copied, as ever; so is everything that goes through
a pipe or a manager.

Memory has *holders*: the processes that have a view of it, and the messages on their way that refer to it. It is used
for something else when the last of them is gone, also if that is killed. numpy is needed for arrays only; `buffer()`
works without it. docs/arrays.md says more, with a drawing.
"""

from __future__ import annotations

import sys
from math import prod
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

from mpipc._memory import memory as _memory
from mpipc._memory.memory import Memory
from mpipc._memory.references import register, register_views

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "Holders",
    "Memory",
    "Usage",
    "array",
    "buffer",
    "drop_inherited",
    "empty",
    "holders",
    "is_shared",
    "trim",
    "usage",
    "zeros",
]


class Holders(NamedTuple):
    """Who has some memory."""

    processes: list[int]
    """Their pids, in order. 0 is a child that is being started."""
    messages: int
    """How many messages in queues, or in the hands of who is just receiving them."""
    inherited: bool
    """Whether this process has it from its parent, by fork(2)."""


class Usage(NamedTuple):
    """The memory of this program, all processes together."""

    bytes: int
    """Of pieces that have pages: in use, or kept for what comes next."""
    in_use: int
    """Bytes of pieces that somebody holds; a piece may be up to twice as large as what was asked for."""
    segments: int
    """System V segments that it lies in."""


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise ImportError("mpipc.arrays needs numpy for arrays: pip install numpy (buffer() works without)") from error
    register(numpy)
    return numpy


def buffer(nbytes: int) -> Memory:
    """`nbytes` bytes of shared memory, all zero: an object with the buffer protocol.

    Raises ValueError if the number is negative, mpipc.sysv.LimitError (an OSError) if a limit of the system is met.
    """
    if "numpy" in sys.modules:
        register(sys.modules["numpy"])
    register_views()
    return _memory.buffer(nbytes)


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = "float64") -> NDArray[Any]:
    """An array in shared memory, with whatever stands in it: numpy.empty().

    Raises TypeError for a dtype of Python objects, ValueError for a negative length, LimitError as buffer() does.
    """
    return _new(shape, dtype, False)


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike = "float64") -> NDArray[Any]:
    """An array in shared memory, all zero: numpy.zeros()."""
    return _new(shape, dtype, True)


def _new(shape: int | tuple[int, ...], of: DTypeLike, zero: bool) -> NDArray[Any]:
    numpy = _numpy()
    dtype = numpy.dtype(of)
    if dtype.hasobject:
        raise TypeError(f"an array of {dtype} has pointers to objects of one process: it cannot be shared")
    lengths = _lengths(shape)
    nbytes = prod(lengths) * dtype.itemsize
    if min(lengths, default=0) < 0:
        raise ValueError(f"negative dimensions are not allowed: {lengths}")
    if nbytes > sys.maxsize:
        raise ValueError(f"an array of {nbytes} bytes is larger than any address space")
    return numpy.ndarray(lengths, dtype, _memory.buffer(nbytes, zero))  # type: ignore[no-any-return]


def _lengths(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    """A shape as numpy takes it: a number of any kind, or some of them."""
    try:
        return (index(shape),)  # type: ignore[arg-type]
    except TypeError:
        return tuple(map(index, shape))  # type: ignore[arg-type]


def array(obj: ArrayLike, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """A copy of an array, or of what numpy.asarray() makes one of, in shared memory; in C order, or in Fortran order if
    it has that."""
    numpy = _numpy()
    source = numpy.asarray(obj, dtype)
    order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
    target = _new(source.shape[::-1] if order == "F" else source.shape, source.dtype, False)
    target = target.T if order == "F" else target
    target[...] = source
    return target


def _memory_of(obj: Any) -> Memory | None:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(obj, numpy.ndarray):
        found = _memory.memory_around(obj.__array_interface__["data"][0], obj.shape, obj.strides, obj.itemsize)
        return found[0] if found is not None else None
    return _memory.memory_with(obj)


def is_shared(obj: Any) -> bool:
    """Whether an array, or another object with the buffer protocol, lies in memory that travels by reference."""
    return _memory_of(obj) is not None


def holders(obj: Any) -> Holders:
    """Who has the memory of an array at the moment. ValueError if it is not shared."""
    memory = _memory_of(obj)
    if memory is None:
        raise ValueError("this object does not lie in memory of mpipc.arrays")
    return Holders(*memory.holders(), memory.inherited)


def usage() -> Usage:
    """How much shared memory arrays, and the copies on their way that messages hold, have in this program."""
    return Usage(*_memory.usage())


def trim(idle: float = 0.0) -> int:
    """Returns the pages of memory that nobody holds, and nobody has for `idle` seconds, to the system: how many bytes.
    It happens by itself after some seconds."""
    return _memory.trim(idle)


def drop_inherited() -> int:
    """In a child that was forked: it is no holder any more of what it has from its parent, for none of which it has a
    use. How many bytes.

    An array that refers to it must not be read any more: another one may stand there. For an initializer of a pool
    whose tasks read no array that was there before the pool: `Pool(initializer=arrays.drop_inherited)`.
    """
    return _memory.drop_inherited()

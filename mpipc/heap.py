"""Shared memory for objects that child processes inherit: a heap on System V segments.

Memory is freed when no process uses it any more. (multiprocessing's heap frees it when its creator drops it, while a
child that was sent it may still read and write there.) How it works is said in `_memory/heap.pyx`.
"""

from __future__ import annotations

import sys
from typing import ClassVar

from mpipc._memory.heap import Arena, Heap, Piece

__all__ = ["Arena", "BufferWrapper", "Heap"]


class BufferWrapper:
    """`size` bytes of shared memory, zero at first, aligned to 64 bytes; from 32 KiB on to a page.

    Raises ValueError if `size` is negative, OverflowError if no address space can hold it, mpipc.sysv.LimitError (an
    OSError) if a limit of the system is met.
    """

    _heap: ClassVar[Heap] = Heap()

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"size must not be negative, and it is {size}")
        if sys.maxsize <= size:
            raise OverflowError(f"size {size} is more than an address space can hold")
        self._piece: Piece = BufferWrapper._heap.malloc(size)

    def create_memoryview(self) -> memoryview:
        """The memory, writable. It stays allocated while a view of it is alive."""
        return memoryview(self._piece)

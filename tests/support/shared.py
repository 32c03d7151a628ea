"""Numbers in shared memory, for tests that kill whoever changes them."""

from __future__ import annotations

from mpipc import _core as family


class Shared:
    """64 bytes of shared memory, as 8 numbers. One is written by a single store: struct.pack_into() writes 0 before it,
    and a process may be killed in between."""

    def __init__(self) -> None:
        self.block = family.new_data()

    def _numbers(self) -> memoryview:
        return memoryview(family.payload(self.block)).cast("q")

    def __getitem__(self, index: int) -> int:
        return int(self._numbers()[index])

    def __setitem__(self, index: int, value: int) -> None:
        self._numbers()[index] = value

"""What the kernel holds: System V objects, as /proc/sysvipc shows them, and their limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_ID_COLUMN = {"msg": "msqid", "sem": "semid", "shm": "shmid"}


def kernel_rows(kind: str) -> dict[int, dict[str, int]]:
    """`/proc/sysvipc/<kind>` of the caller's IPC namespace: id -> {column: value}; "perms" is decoded from octal."""
    header, *lines = Path("/proc/sysvipc", kind).read_text().splitlines()
    columns = header.split()
    rows = {}
    for line in lines:
        row = {
            column: int(field, 8 if column == "perms" else 10)
            for column, field in zip(columns, line.split(), strict=True)
        }
        rows[row[_ID_COLUMN[kind]]] = row
    return rows


class KernelObjects(NamedTuple):
    """The ids of all System V objects that exist in the caller's IPC namespace."""

    msg: frozenset[int]
    sem: frozenset[int]
    shm: frozenset[int]

    def minus(self, *others: KernelObjects | Mapping[str, Iterable[int]]) -> KernelObjects:
        """Those that are in none of the others; a mapping like {"shm": {1, 2}} will do as well."""
        kept = self
        for other in others:
            ids = other._asdict() if isinstance(other, KernelObjects) else other
            kept = KernelObjects(*(mine.difference(ids.get(kind, ())) for kind, mine in kept._asdict().items()))
        return kept

    @property
    def count(self) -> int:
        return len(self.msg) + len(self.sem) + len(self.shm)

    def describe(self) -> list[str]:
        """One line an object, as `/proc/sysvipc` shows it now."""
        return [describe_object(kind, number) for kind, ids in self._asdict().items() for number in sorted(ids)]


def describe_object(kind: str, number: int) -> str:
    row = kernel_rows(kind).get(number)
    if row is None:
        return f"{kind} {number}: gone by now"
    fields = " ".join(f"{name}={value:#o}" if name == "perms" else f"{name}={value}" for name, value in row.items())
    return f"{kind} {number}: {fields}"


def kernel_objects(*, uid: int | None = None) -> KernelObjects:
    """A snapshot of what exists; with `uid`, of that owner's objects only."""
    return KernelObjects(
        *(
            frozenset(number for number, row in kernel_rows(kind).items() if uid is None or row["uid"] == uid)
            for kind in KernelObjects._fields
        )
    )


@contextlib.contextmanager
def sysctl(name: str, value: str | int) -> Iterator[None]:
    """Sets kernel.`name` of this IPC namespace for a while. The test is skipped where that is not permitted."""
    import pytest  # scripts import this module where there is no pytest

    path = Path("/proc/sys/kernel", name)
    old = path.read_text()
    try:
        path.write_text(str(value))
    except OSError as error:
        pytest.skip(f"needs to set kernel.{name}: {error}")
    try:
        yield
    finally:
        path.write_text(old)

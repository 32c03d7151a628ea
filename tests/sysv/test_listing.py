from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from support import kernel_rows

from mpipc import sysv
from mpipc.sysv import listing

from .conftest import Body, Make

KINDS: list[Any] = [
    pytest.param(sysv.message_queues, "msg", sysv.QueueInfo, id="queues"),
    pytest.param(sysv.semaphore_sets, "sem", sysv.SetInfo, id="sets"),
    pytest.param(sysv.shared_memory_segments, "shm", sysv.SegmentInfo, id="segments"),
]


@pytest.fixture(autouse=True)
def objects(new_queue: Make, new_set: Make, new_segment: Make) -> None:
    """Two of each, with fields that differ."""
    for mode in (0o600, 0o444):
        new_queue(sysv.IPC_PRIVATE, mode)
        new_set(sysv.IPC_PRIVATE, mode & 0o17, mode) if mode & 0o17 else new_set(sysv.IPC_PRIVATE, 9, mode)
        new_segment(sysv.IPC_PRIVATE, 1000 + mode, mode)


@pytest.mark.parametrize(("function", "kind", "entry"), KINDS)
def test_lists_what_the_kernel_lists(function: Callable[[], list[Any]], kind: str, entry: type[Any]) -> None:
    listed = {row[1]: row._asdict() for row in function()}
    rows = kernel_rows(kind)
    assert len(rows) >= 2
    assert listed == rows  # the fields have the names of the columns, so every column is there
    assert all(type(row) is entry for row in function())
    assert {0o600, 0o444} <= {row.perms for row in function()}


@pytest.mark.parametrize(("function", "kind", "entry"), KINDS)
def test_lists_what_belongs_to_others(
    function: Callable[[], list[Any]], kind: str, entry: type[Any], as_nobody: Callable[[Body], None]
) -> None:
    # What does not change when somebody uses them meanwhile, as this process's reaper does.
    def names() -> list[tuple[int, ...]]:
        return [(row.key, row[1], row.perms, row.uid, row.cuid) for row in function()]

    expected = names()

    def body() -> None:
        assert names() == expected
        assert {row.uid for row in function()} >= {0}
        assert os.geteuid() != 0

    as_nobody(body)


def test_columns_are_found_by_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later kernel may add some, anywhere."""
    fields = [*sysv.SetInfo._fields[:3], "colour", *sysv.SetInfo._fields[3:], "shape"]
    values = ["7", "8", "1600", "red", *(str(number) for number in range(20, 27)), "round"]
    (tmp_path / "sem").write_text(" ".join(fields) + "\n" + " ".join(values) + "\n")
    monkeypatch.setattr(listing, "_PROC", tmp_path)
    assert sysv.semaphore_sets() == [(7, 8, 0o1600, 20, 21, 22, 23, 24, 25, 26)]


def test_without_proc(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, semset: int) -> None:
    """There is nothing to list then, but errors are still errors, with one hint less."""
    monkeypatch.setattr(listing, "_PROC", tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        sysv.message_queues()
    with pytest.raises(sysv.SysVError) as caught:
        sysv.semop(semset, [(9, 1)])
    assert "File too large" in str(caught.value)

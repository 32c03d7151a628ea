"""python -m mpipc list: the processes and objects of each family of this user."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mpipc.cli.families import NOTHING
from mpipc.cli.table import lines

__all__ = ["add_parser"]

KERNEL_OBJECTS = {"queue": "msqid", "segment": "shmid", "broadcast": "shmid"}
"""Kinds of objects that are kernel objects of their own, and what ipcs calls their ids. The others share a few."""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "list",
        aliases=["ls"],
        help="their processes and objects",
        description="The processes and objects of all families, or of those with these ids (see families).",
    )
    parser.add_argument("families", nargs="*", type=int, metavar="FAMILY", help="id of a family")
    parser.set_defaults(function=_command)


def _command(options: argparse.Namespace) -> int:
    from mpipc._core.snapshot import all_families

    found = [family for family in all_families() if not options.families or family.shmid in options.families]
    missing = set(options.families) - {family.shmid for family in found}
    if missing:
        print(
            f"There is no family {', '.join(map(str, sorted(missing)))}; `python -m mpipc families` shows which are.",
            file=sys.stderr,
        )
        return 1
    if not found:
        print(NOTHING)
    for number, family in enumerate(found):
        if number:
            print()
        print(*_describe(family), sep="\n")
    return 0


def _describe(family: Any) -> Iterator[str]:
    from mpipc._core import snapshot

    yield f"family {family.shmid}: {family.program}"
    processes = [("PID", "STATE", "COMMAND")]
    processes += [(str(pid), state, _command_line(pid)) for _, state, pid in family.processes()]
    yield from lines(processes, "  ")
    blocks = family.blocks()
    if not blocks:
        yield "  no objects"
        return
    kinds = Counter(kind for _, kind, _, _ in blocks)
    yield "  " + ", ".join(f"{count} {kind if count == 1 else _plural(kind)}" for kind, count in sorted(kinds.items()))
    has_pages, in_use, segments = snapshot.memory(family)
    if segments:
        yield f"  memory of mpipc.arrays: {in_use} bytes in use, {has_pages} with pages, in {segments} segments"
    rows = [("OBJECT", "ID", "HELD BY")]
    for _, kind, number, holders in blocks:
        if kind in KERNEL_OBJECTS and number >= 0:
            rows.append((kind, f"{KERNEL_OBJECTS[kind]} {number}", ", ".join(map(str, holders)) or "nobody"))
    if len(rows) > 1:
        yield from lines(rows, "  ")
    waits = snapshot.waits(family)
    if waits:
        yield from lines(list(_waits(family, waits, {index: kind for index, kind, _, _ in blocks})), "  ")


def _plural(kind: str) -> str:
    return kind[:-1] + "ies" if kind.endswith("y") else kind + "s"


def _waits(family: Any, waits: list[tuple[int, int, int, str, float]], kinds: dict[int, str]) -> Iterator[Any]:
    """A line for each thread that sleeps: whose it is, for what it waits and how long, and who has that."""
    from mpipc._core import snapshot

    yield ("WAITING", "THREAD", "FOR", "SECONDS", "HAS IT")
    for pid, thread, index, purpose, seconds in sorted(waits):
        what = f"{kinds.get(index, 'object')} {index}"
        owner = snapshot.owner_of(family, index) if not purpose or purpose == "its lock" else None
        owners = "" if owner is None else f"{owner[0]}, thread {owner[1]}" if owner[1] else str(owner[0])
        yield (str(pid), str(thread), f"{purpose} of {what}" if purpose else what, f"{seconds:.1f}", owners)


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").split(b"\0")
        return " ".join(word.decode(errors="backslashreplace") for word in words).replace("\n", " ")[:100]
    return "(gone)"

"""python -m mpipc families: a line for each family of this user, which is usually a running program."""

from __future__ import annotations

import argparse
from typing import Any

from mpipc.cli.table import lines

__all__ = ["add_parser"]

NOTHING = "There are no families: no program of yours uses mpipc in this IPC namespace."


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "families",
        help="the programs that use mpipc",
        description="A line for each family: the processes that share mpipc objects, usually one program's.",
    )
    parser.set_defaults(function=_command)


def _command(_options: argparse.Namespace) -> int:
    from mpipc._core.snapshot import all_families

    found = all_families()
    if not found:
        print(NOTHING)
        return 0
    rows = [("FAMILY", "PROCESSES", "OBJECTS", "DEATHS", "REAPER", "PROGRAM")]
    for family in found:
        rows.append(
            (
                str(family.shmid),
                str(len(family.processes())),
                str(len(family.blocks())),
                str(family.deaths()),
                "yes" if family.has_reaper() else "no",
                family.program,
            )
        )
    print(*lines(rows), sep="\n")
    return 0

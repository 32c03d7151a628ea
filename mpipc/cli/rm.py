"""python -m mpipc rm: removes what dead families left behind."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "rm",
        help="remove what nobody uses any more",
        description="Removes objects. A family removes its own when its last process ends, and the first use of mpipc"
        " those of families that could not (their reaper was killed, too): there is rarely something left to do.",
    )
    parser.add_argument(
        "--dead", action="store_true", required=True, help="what this user's families left that have no process"
    )
    parser.set_defaults(function=_command)


def _command(_options: argparse.Namespace) -> int:
    from mpipc._core import dead_families, sweep

    before = dead_families()
    sweep()
    left = dead_families()
    for family in before:
        print(f"family {family}: " + ("still there" if family in left else "removed"))
    if not before:
        print("There is nothing to remove.")
    return 1 if set(before) & set(left) else 0

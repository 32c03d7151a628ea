"""python -m mpipc limits: the kernel's limits on System V IPC, and who has used how much of them."""

from __future__ import annotations

import argparse
from typing import Any

from mpipc.cli.table import lines

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "limits",
        help="the kernel's limits, and what is in use",
        description="The limits of this IPC namespace on System V objects, what is in use of them, and by which users.",
    )
    parser.set_defaults(function=_command)


def _command(_options: argparse.Namespace) -> int:
    from mpipc.sysv._explain import KERNEL, shares, who_has_them
    from mpipc.sysv.limits import limits

    found = limits()
    rows = [("LIMIT", "VALUE", "IN USE", "SYSCTL", "WHAT IT IS")]
    for name, (meaning, sysctl, position) in KERNEL.items():
        used = sum(shares(name).values())
        who = who_has_them(name)
        rows.append(
            (
                name,
                str(getattr(found, name.lower())),
                str(used) if name.endswith(("MNI", "MNS", "ALL")) else "",
                f"{sysctl or 'fixed'}{f' ({position})' if position else ''}",
                meaning + (f": {who}" if who else ""),
            )
        )
    print(*lines(rows), sep="\n")
    return 0

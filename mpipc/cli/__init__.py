"""The command line, `python -m mpipc COMMAND`: a module of this package for each command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mpipc.cli import doctor, families, limits, rm, run
from mpipc.cli import list as list_

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command (sys.argv's, without arguments here); the exit status, if it comes back."""
    parser = argparse.ArgumentParser(prog="python -m mpipc", description="multiprocessing on System V IPC")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (run, list_, families, rm, limits, doctor):
        command.add_parser(commands)
    ours, programs = run.divide([*(sys.argv[1:] if arguments is None else arguments)])
    options = parser.parse_args(ours, argparse.Namespace(arguments=programs))
    status: int = options.function(options)
    return status

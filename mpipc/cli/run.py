"""python -m mpipc run: an unmodified program, whose `import multiprocessing` gives mpipc.

Everything else is as with plain python: `__main__` (of which children started by spawn or forkserver get their copy),
sys.argv, sys.path[0], exit status, and tracebacks, which begin with the program's own frames.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import pkgutil
import sys
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any

import mpipc
from mpipc._stdlib.also import stand_in
from mpipc._stdlib.private import main_runner

__all__ = ["add_parser", "run"]

CANNOT_OPEN = 2  # python's exit status when there is no such script


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "run",
        allow_abbrev=False,  # divide() has to know what takes a value
        usage="python -m mpipc run [-h] [--also PACKAGE] [--children] (SCRIPT | -m MODULE) [ARGUMENT ...]",
        help="run a program that uses multiprocessing on mpipc",
        description="Run a Python program, unmodified, whose `import multiprocessing` gives mpipc.",
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="have `import PACKAGE` give mpipc, too; for `multiprocess`, which pickles by dill (may be repeated)",
    )
    parser.add_argument(
        "--children",
        action="store_true",
        help="the same for every Python that is started by it (subprocess, os.exec ...), by PYTHONPATH",
    )
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module")
    parser.add_argument("script", nargs="?", metavar="SCRIPT", help="the file, directory or zip file to run")
    parser.set_defaults(function=functools.partial(_command, parser))


def divide(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The command line up to the program to run, and the arguments of the program, which are nobody else's.

    argparse would take a `--` out of them, wherever it is the first one.
    """
    if arguments[:1] != ["run"]:
        return arguments, []
    end = 1
    while end < len(arguments):
        argument = arguments[end]
        end += 2 if argument in ("--also", "-m", "--") else 1
        if argument == "--" or argument.startswith("-m") or argument == "-" or not argument.startswith("-"):
            break
    return arguments[:end], arguments[end:]


def _command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.also:
        stand_in(options.also)
    if options.children:
        _carry_over(options.also)
    if options.module:
        run(options.module, options.arguments, as_module=True)
    elif options.module is None and options.script is not None:
        run(options.script, options.arguments)
    else:
        parser.error("name a script, or a module with -m")
    return 0


def _carry_over(also: list[str]) -> None:
    """For Pythons that are started from now on: see children/sitecustomize.py."""
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "children")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    os.environ["MPIPC_ALSO"] = " ".join(also)


def run(program: str, arguments: list[str], *, as_module: bool = False) -> None:
    """Run a script, or a module, as python does. What it raises is raised, SystemExit too."""
    mpipc.install()
    main = ModuleType("__main__")
    # This module's own `__main__` is still running; were it the last reference, its names would be gone.
    sys.modules["__main__"], previous = main, sys.modules["__main__"]
    sys.modules["__mp_main__"] = main
    try:
        if as_module:
            sys.argv = ["-m", *arguments]
            main_runner()(program)
        else:
            sys.argv = [program, *arguments]
            _run_path(program, main)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook = functools.partial(_without_our_frames, sys.excepthook)
        raise
    finally:
        del previous


def _run_path(path: str, main: ModuleType) -> None:
    if pkgutil.get_importer(path) is not None:  # a directory or zip file, with a `__main__` of its own
        _set_first_of_path(os.path.abspath(path))
        main_runner()("__main__", alter_argv=False)
        return
    absolute = os.path.abspath(path)
    _set_first_of_path(os.path.dirname(os.path.realpath(path)))
    try:
        file = io.open_code(absolute)  # noqa: SIM115  (closed below; an error in opening it is told apart)
    except OSError as error:
        print(
            f"{sys.executable}: can't open file {absolute!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr
        )
        sys.exit(CANNOT_OPEN)
    with file:
        code: CodeType | None = pkgutil.read_code(file)
        if code is None:
            file.seek(0)
            code = compile(file.read(), absolute, "exec", dont_inherit=True)
    vars(main).update(
        __file__=absolute,
        __loader__=SourceFileLoader("__main__", absolute),
        __builtins__=sys.modules["builtins"],
    )
    if sys.version_info < (3, 15):
        main.__cached__ = None  # type: ignore[attr-defined]
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    exec(code, vars(main))


def _set_first_of_path(folder: str) -> None:
    """In the place of the current directory, which `python -m mpipc` has put there."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _without_our_frames(
    hook: Any, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """The program's (or python's) sys.excepthook, for a traceback that does not begin with how it was run."""
    ours = {function.__code__ for function in (run, _run_path)}
    while trace is not None and trace.tb_frame.f_code not in ours:
        trace = trace.tb_next
    while trace is not None and trace.tb_frame.f_code in ours:
        trace = trace.tb_next
    hook(kind, error.with_traceback(trace), trace)

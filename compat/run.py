"""Runs CPython's own tests of multiprocessing on mpipc, and beside it on multiprocessing, and compares.

    python compat/run.py [--method fork] [--class 'WithProcesses*'] [--side mpipc] ...

The tests are those of the interpreter that runs this, found in its `test` package. Exit status: 0 if mpipc passes what
multiprocessing passes, but for what expected.toml lists; 1 if not; 2 if the tests cannot be run.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import platform
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import report
from processes import HERE, SIDES, interpreter, isolation, kill_all, run_unit
from suites import METHODS, Unit, discover

NO_TESTS = 2

FEW = 5
"""Up to so many failures may be those of tests that fail at times; more are not worth the time to find out."""


def main() -> int:
    options = _options()
    try:
        import test.support

        test.support.verbose = False  # or some modules print when they are imported
    except ImportError:
        print(
            f"Python {platform.python_version()} ({sys.executable}) has no `test` package, which holds the tests to be"
            " run. Distributions put it into a package of its own (Debian: libpython3.X-testsuite, Fedora:"
            " python3-test); the interpreters of pyenv and of python.org have it.",
            file=sys.stderr,
        )
        return NO_TESTS
    package = importlib.util.find_spec("mpipc")
    if package is None or package.origin is None:
        print(f"{sys.executable} does not find mpipc: install it, or run `make compat`.", file=sys.stderr)
        return NO_TESTS

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what Ctrl-C ends, this is to end, too
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has a background job ignore it; tests send it
    expected = report.read_expected(options.expected)
    methods = tuple(options.method or METHODS)
    everything, not_installed = discover(methods, others=not options.method or options.others)
    units = [unit for unit in everything if _selected(unit, options.classes)]
    if not units:
        print(f"no class matches {' '.join(options.classes)}", file=sys.stderr)
        return NO_TESTS
    units = [_narrowed(unit, options.tests) for unit in units]
    units = [unit for unit in units if unit.tests]
    if options.list:
        for unit in units:
            print(unit.method or "-", unit.name, *unit.tests)
        return 0

    sides = (options.side,) if options.side else SIDES
    folder = Path(package.origin).resolve().parent
    print(f"Python {platform.python_version()}, {sys.executable}; mpipc in {folder}")
    if not_installed:
        print(f"not installed: {', '.join(not_installed)}")
    if not isolation():
        print("no permission to make IPC namespaces: all tests share the machine's")
    began = time.monotonic()
    outcomes = _run(units, sides, folder.parent, expected, options)
    print(*report.table(outcomes, sides), sep="\n")

    complete = len(units) == len(everything) and not options.tests and not options.method and "mpipc" in sides
    against, notes = report.judge(outcomes, expected, complete)
    print()
    for line in notes:
        print(line)
    for text in against:
        print(text)
        if "\n" in text:
            print()
    print(f"\n{time.monotonic() - began:.0f} s; {len(expected)} entries in {options.expected.name}; ", end="")
    print(f"{len(against)} findings against mpipc" if against else "mpipc passes")
    if options.json:
        _write(options.json, outcomes)
    return 1 if against else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", action="append", choices=METHODS, help="a start method (default: all)")
    parser.add_argument("--others", action="store_true", help="with --method: the tests that choose by themselves, too")
    parser.add_argument(
        "--class", dest="classes", action="append", default=[], metavar="PATTERN", help="classes to run"
    )
    parser.add_argument("--test", dest="tests", action="append", default=[], metavar="PATTERN", help="tests to run")
    parser.add_argument("--side", choices=SIDES, help="run on one package only")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for a test (default: %(default)g)")
    parser.add_argument("--expected", type=Path, default=HERE / "expected.toml", help="default: compat/expected.toml")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome of each test")
    parser.add_argument("--list", action="store_true", help="print what would be run")
    return parser.parse_args()


def _selected(unit: Unit, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(unit.name, pattern) for pattern in patterns)


def _narrowed(unit: Unit, patterns: list[str]) -> Unit:
    tests = [test for test in unit.tests if not patterns or any(fnmatch.fnmatchcase(test, p) for p in patterns)]
    return Unit(unit.method, unit.module, unit.class_name, tuple(tests))


def _run(
    units: list[Unit],
    sides: tuple[str, ...],
    package_folder: Path,
    expected: list[report.Entry],
    options: argparse.Namespace,
) -> report.Outcomes:
    outcomes: report.Outcomes = {unit: {} for unit in units}
    done, total = 0, len(units) * len(sides)
    with interpreter(package_folder) as python, ThreadPoolExecutor(options.jobs) as pool:
        futures = {
            pool.submit(run_unit, python, side, unit, options.timeout): (unit, side) for unit in units for side in sides
        }
        try:
            for future in as_completed(futures):
                unit, side = futures[future]
                outcomes[unit][side] = future.result()
                done += 1
                failed = [test for test, outcome in outcomes[unit][side].items() if outcome["outcome"] == "failed"]
                if failed:
                    _progress(f"{side} {unit.method} {unit.name}: {', '.join(failed)}", keep=True)
                _progress(f"{done}/{total} {side} {unit.method} {unit.name}")
        except BaseException:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # timeout(1) sends it twice: to us, and to our group
            pool.shutdown(wait=False, cancel_futures=True)
            kill_all()
            raise
        failures = list(report.failures(outcomes, expected))
        for unit, test in failures if len(failures) <= FEW else ():

            def passes(side: str, unit: Unit = unit, test: str = test) -> bool:
                _progress(f"again: {side} {unit.method} {unit.name}.{test}")
                alone = Unit(unit.method, unit.module, unit.class_name, (test,))
                return bool(run_unit(python, side, alone, options.timeout)[test]["outcome"] == "passed")

            outcomes[unit]["mpipc"][test]["unreliable"] = report.unreliable(passes)
    _progress("")
    return outcomes


def _progress(text: str, keep: bool = False) -> None:
    """On a terminal one line that is written again and again, else only what is to be kept."""
    terminal = sys.stderr.isatty()
    if terminal:
        print(f"\r\033[K{text[: os.get_terminal_size(2).columns - 1]}", end="\n" if keep else "", file=sys.stderr)
    elif keep:
        print(text, file=sys.stderr)


def _write(path: Path, outcomes: report.Outcomes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"method": unit.method, "class": unit.name, "test": test, "side": side, **outcome}
        for unit, by_side in outcomes.items()
        for side, tests in by_side.items()
        for test, outcome in tests.items()
    ]
    path.write_text(json.dumps({"python": platform.python_version(), "tests": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

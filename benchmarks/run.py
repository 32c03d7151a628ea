"""Runs the benchmarks and writes a Markdown table, JSON and charts: `python benchmarks/run.py`, or `make bench`.

    python benchmarks/run.py --quick                  a selection, in under a minute
    python benchmarks/run.py --list                   the cases
    python benchmarks/run.py locks/Lock streams       cases whose key contains one of these
    python benchmarks/run.py --from build/bench/results.json --publish
                                                      shows in the README what was measured before

Each contestant of a case has a process of its own, and they take turns. One that is not installed, fails or hangs is
reported as such, and the run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lanes
import machine
import native
import tables
from cases import CASES
from harness import FAILED, Case, Measurement, Result

ROOT = Path(__file__).resolve().parent.parent

Run = dict[str, Any]
"""What results.json holds: {"machine": ..., "settings": ..., "results": [...]}."""


def main() -> int:
    args = arguments()
    if args.list:
        for case in CASES.select(args.only, args.quick):
            print(f"{case.key:28} {case.title}")
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    if args.source is not None:
        run = json.loads(args.source.read_text())
    else:
        run = measure(args)
        write_json(args.output, run)
    results = {result["key"]: restored(result) for result in run["results"]}
    write(args.output, run, results)
    print(tables.must_show(results))
    for line in tables.problems(results):
        print(line)
    print(f"\nThe tables are in {args.output / 'results.md'}, the values in {args.output / 'results.json'}.")
    if args.publish:
        if run["settings"]["quick"] or run["settings"]["only"]:
            sys.exit("only a complete run is published, and this was a selection of the cases")
        write_json(ROOT / "docs/benchmarks", run)
        write(ROOT / "docs/benchmarks", run, results)
        tables.publish(ROOT / "README.md", run, results)
        print("docs/benchmarks and README.md show them.")
    failed = [m for result in results.values() for m in result.contestants.values() if m.status == FAILED]
    return 1 if len(failed) == sum(len(result.contestants) for result in results.values()) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="KEY", help="only cases whose key contains this")
    parser.add_argument("--quick", action="store_true", help="a selection of the cases, and shorter turns")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each contestant (default 5)")
    parser.add_argument("--seconds", type=float, help="length of a turn (default 0.1, for a quick run 0.03)")
    parser.add_argument("--timeout", type=float, help="seconds that a turn may take at most (default 30, quick 10)")
    parser.add_argument("--budget", type=float, help="seconds after which no case is begun (default 480, quick 50)")
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench", help="folder (default build/bench)")
    parser.add_argument("--from", type=Path, dest="source", metavar="JSON", help="measure nothing, show these results")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks and the README's section, too")
    parser.add_argument("--list", action="store_true", help="print the keys and titles of the cases")
    args = parser.parse_args()
    if args.repeat < 1:
        parser.error("--repeat is at least 1")
    if args.publish and args.source is None and (args.only or args.quick):
        parser.error("only a complete run is published")
    if args.seconds is None:
        args.seconds = 0.03 if args.quick else 0.1
    if args.timeout is None:
        args.timeout = 10 if args.quick else 30
    if args.budget is None:
        args.budget = 50 if args.quick else 480
    return args


def measure(args: argparse.Namespace) -> Run:
    complaint = native.build(args.output.resolve() / "floor")
    if complaint:
        print(f"The programs in C are left out, because they could not be compiled:\n{complaint}", file=sys.stderr)
    facts = machine.facts()
    load = facts["load at the start"]
    if load > 0.5 * facts["processors"]:
        print(f"The machine is busy (load average {load:.1f}), and the figures will show it.", file=sys.stderr)
    cases = CASES.select(args.only, args.quick)
    if not cases:
        sys.exit("no such case: --list shows them")
    begin = time.monotonic()
    results = []
    with Progress(cases) as progress:
        for case in cases:
            results.append(
                lanes.measure(
                    case,
                    repeat=args.repeat,
                    seconds=args.seconds,
                    timeout=args.timeout,
                    deadline=begin + args.budget,
                    progress=lambda contestant, case=case: progress.show(case, contestant),  # type: ignore[misc]
                )
            )
            progress.done(case)
    facts["load at the end"] = os.getloadavg()[0]
    settings = {
        "repetitions": args.repeat,
        "seconds of a turn": args.seconds,
        "quick": args.quick,
        "only": args.only,
        "duration": round(time.monotonic() - begin),
    }
    return {"machine": facts, "settings": settings, "results": [asdict(result) for result in results]}


def restored(fields: dict[str, Any]) -> Result:
    contestants = {name: Measurement(**values) for name, values in fields["contestants"].items()}
    return Result(**{**fields, "contestants": contestants})


def write_json(folder: Path, run: Run) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(run, ensure_ascii=False) + "\n")


def write(folder: Path, run: Run, results: dict[str, Result]) -> None:
    """results.md, and the charts if there is matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import charts
    except ModuleNotFoundError as error:
        print(f"no charts: {error}", file=sys.stderr)
        drawn = []
    else:
        drawn = charts.draw_all(folder, run, results)
    (folder / "results.md").write_text(tables.page(run, results, drawn))


class Progress:
    """Where the run is, on a terminal or in a log; by tqdm if that is installed."""

    def __init__(self, cases: list[Case]) -> None:
        self._total = sum(len(case.contestants) for case in cases)
        self._bar: Any = None
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            return
        # In a log a line every now and then is enough.
        self._bar = tqdm(total=self._total, unit="contestant", mininterval=0.1 if sys.stderr.isatty() else 30)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, case: Case, contestant: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(f"{case.key}: {contestant}"[:50].ljust(50), refresh=False)
            self._bar.update(0)

    def done(self, case: Case) -> None:
        if self._bar is not None:
            self._bar.update(len(case.contestants))
        else:
            print(case.title, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

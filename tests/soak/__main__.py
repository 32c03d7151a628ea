"""`python -m soak --seconds 60 --seed 7`, here; `make soak SECONDS=60 SEED=7` in the folder above."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from support import descendants, dump_stacks, kill_process, processes
from support.privileges import isolate_ipc

from soak.crew import STACKS

PATIENCE = 150.0
"""Seconds without any news after which the runner itself hangs. A round of 3.5 s waits 40 for any one thing at most."""

MEMORY = 2 << 30
"""Bytes of shared memory that no round needs."""


class Report:
    """What there has been so far."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.began = time.monotonic()
        self.rounds: Counter[str] = Counter()
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.memory = 0
        self.round: dict[str, Any] = {}
        self.failure = ""

    def take(self, news: dict[str, Any]) -> None:
        if "begins" in news:
            self.round = news
        elif "ended" in news:
            self.rounds[self.round["scenario"]] += 1
            self.counts[self.round["scenario"]].update(news["counts"])
            self.memory = news["memory"]
        elif "failed" in news:
            self.failure = news["text"]

    def line(self) -> str:
        total: Counter[str] = sum(self.counts.values(), Counter())
        seconds = time.monotonic() - self.began
        parts = (f"{total[what]} {what}" for what in ("kills", "stops", "exceptions", "reapers", "operations"))
        return f"{seconds:5.0f} s, {self.rounds.total()} rounds: {', '.join(parts)}; {self.memory >> 20} MiB"

    def table(self) -> str:
        columns = ("kills", "stops", "exceptions", "reapers", "processes", "messages", "tasks", "operations")
        lines = [f"{'':16} {'rounds':>7} " + " ".join(f"{column:>10}" for column in columns)]
        lines += [
            f"{name:16} {self.rounds[name]:7} " + " ".join(f"{counts[column]:10}" for column in columns)
            for name, counts in sorted(self.counts.items())
        ]
        return "\n".join(lines)

    def how_to_repeat(self) -> str:
        number = self.round.get("begins", 0)
        return (
            f"round {number} ({self.round.get('scenario')}, {self.round.get('method')}) of seed {self.seed}; again:"
            f" make soak SEED={self.seed} ROUND={number}"
        )


def show_stacks(runner: subprocess.Popen[bytes]) -> None:
    """Of the runner and all that it has started: what they sleep in, and by the handlers that they have, where."""
    everybody = [each for each in processes().values() if each.pid == runner.pid] + descendants(runner.pid)
    print(dump_stacks(each.pid for each in everybody), file=sys.stderr)
    for each in everybody:
        status = Path(f"/proc/{each.pid}/status")
        with contextlib.suppress(OSError, StopIteration, ValueError):
            caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
            if int(caught.split()[1], 16) >> (STACKS - 1) & 1:
                os.kill(each.pid, STACKS)
    time.sleep(1.0)  # nothing tells when they have written


def memory() -> int:
    """Bytes of all System V segments of this namespace."""
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()
    column = rows[0].split().index("rss")
    return sum(int(row.split()[column]) for row in rows[1:])


def watch(runner: subprocess.Popen[bytes], descriptor: int, report: Report, patience: float) -> None:
    """Reads the news until there are no more. A runner that has none for too long hangs."""
    rest, minute, news = b"", time.monotonic() + 60, time.monotonic()
    while True:
        if not select.select([descriptor], [], [], 1.0)[0]:
            if time.monotonic() > news + patience:
                report.failure = f"no news for {patience:g} s: it hangs"
            elif memory() > MEMORY:
                report.failure = f"{memory() >> 20} MiB of shared memory"
            else:
                continue
            show_stacks(runner)
            return
        news = time.monotonic()
        data = os.read(descriptor, 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            report.take(json.loads(line))
        if report.failure:
            return  # what it has started may be in any state
        if time.monotonic() >= minute:
            print(report.line(), flush=True)
            minute += 60


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description="Everything at once, for as long as you like.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--round", type=int, default=None, help="only this round of the seed")
    parser.add_argument("--rounds", type=int, default=1 << 40, help="at most so many")
    parser.add_argument("--fault", default="", help="SCENARIO:FAULT, broken on purpose")
    parser.add_argument("--patience", type=float, default=PATIENCE)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not isolate_ipc():
        print("no permission for an IPC namespace of its own: what others leave is counted, too", file=sys.stderr)
    first, count = (options.round, 1) if options.round is not None else (0, options.rounds)
    ours, theirs = os.pipe()
    arguments = [str(each) for each in (theirs, seed, first, count, options.seconds, options.fault)]
    # No file of the standard streams is kept open by what the runner may leave behind.
    runner = subprocess.Popen(
        [sys.executable, "-m", "soak.runner", *arguments], pass_fds=(theirs,), start_new_session=True
    )
    os.close(theirs)
    report = Report(seed)
    try:
        watch(runner, ours, report, options.patience)
    finally:
        left = descendants(runner.pid)
        if report.failure or sys.exc_info()[0] is not None:
            runner.kill()
            for each in left:
                kill_process(each)
    status = runner.wait()
    if status != 0 and not report.failure:
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        report.failure = f"the runner has ended with {how}"
    print(report.table())
    print(report.line())
    if report.failure:
        print(f"FAILED: {report.failure}\n{report.how_to_repeat()}")
        return 1
    print("no wrong value, nobody hangs, nothing is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())

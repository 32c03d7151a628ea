"""The Markdown: all tables in results.md, and the section of the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import MISSING, OK, SKIPPED, Result, Summary, ratio_text, size_text, value_text
from must_show import MISSED, TARGETS

BEGIN, END = "<!-- benchmarks: begin (written by `make bench-publish`) -->", "<!-- benchmarks: end -->"

GROUPS = {
    "locks": ("Locks and values", ""),
    "wakeups": ("Wake-ups", "Between processes; two context switches for there and back."),
    "queues": ("Queues, one message at a time", "The message is a small dict."),
    "streams": (
        "Queues, streams",
        "Time for one message. Everybody sends the same number of them; all queues are made without arguments."
        " `C + pickle`: a stream of System V messages of the same size between two C programs, and then pickle.dumps()"
        " and loads() of as many dicts; `C + loads alone` counts loads() only, as if dumps() cost nothing.",
    ),
    "broadcasts": ("A message for each of several processes", "Time until all of them have got it."),
    "messages": ("Queues, large messages", "At most four messages are under way."),
    "arrays": (
        "Arrays",
        "`mpipc.arrays`: memory that travels by reference. The others are ordinary arrays; `memcpy` is a copy into"
        " memory that has been used before, in one process.",
    ),
    "pools": ("Pools", "Two workers. The task returns its argument."),
    "objects": ("Many objects", "Kernel limits as they are by default."),
    "footprint": ("Import and memory", ""),
    "raw": ("System calls from Python", ""),
    "mechanisms": (
        "Every local mechanism",
        "C programs. Queues take messages of at most 8 KiB, so that longer ones go in pieces. Shared memory is a ring"
        " of eight slots with a copy in and a copy out and POSIX semaphores in it, or System V ones (semop).",
    ),
}


def page(run: Mapping[str, Any], results: Mapping[str, Result], charts: Sequence[tuple[str, str]]) -> str:
    """results.md. charts: file name and caption of each."""
    parts = ["# Benchmarks", header(run), "## Must show", must_show(results)]
    for name, caption in charts:
        parts.append(f"![{caption}]({name})")
    parts += ["## All cases", HOW_TO_READ]
    for group, (title, remark) in GROUPS.items():
        members = [result for result in results.values() if result.group == group]
        if members:
            parts.append(f"### {title}")
            if remark:
                parts.append(remark)
            parts.append(table(members))
    complaints = list(problems(results))
    if complaints:
        parts += ["## Not measured", "\n".join(f"- {line}" for line in complaints)]
    return "\n\n".join(parts) + "\n"


HOW_TO_READ = """\
Each contestant ran in a process of its own, in turns with the others of its case. Shown are the median over the
repetitions and, in brackets, the lowest and the highest. The last column is the time (or the memory) of the contestant
divided by that of the first one in the same repetition: above 1, the first one is better."""


def header(run: Mapping[str, Any]) -> str:
    facts, settings = run["machine"], run["settings"]
    kind = "virtual machine, " if facts["virtual machine"] else ""
    load = f"load average {facts['load at the start']:.1f} before and {facts['load at the end']:.1f} after"
    packages = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    limits = ", ".join(f"{name} {value}" for name, value in facts["limits"].items())
    return "\n".join(
        [
            f"- {facts['date']}; {settings['repetitions']} repetitions of {settings['seconds of a turn']} s each,"
            f" {settings['duration']} s in all; {load}",
            f"- {facts['processor']}, {facts['processors']} processors, {kind}{size_text(facts['memory'])} of memory",
            f"- {facts['kernel']}, {facts['libc']}, {facts['python']}, {facts['compiler']}",
            f"- {packages}",
            f"- kernel limits, as found: {limits}",
        ]
    )


def must_show(results: Mapping[str, Result]) -> str:
    lines = [
        "| case | peer | target | measured (lowest to highest) | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for target in TARGETS:
        measured = target.measured(results)
        if target.at_most:
            wanted = f"at most {target.bound:g} times its time"
        elif target.bound == 1:
            wanted = "faster"
        else:
            wanted = f"{target.bound:g} times as fast"
        verdict = target.verdict(measured)
        if measured is not None and not target.certain(measured):
            verdict += ", not in every repetition"
        figures = spread(measured) if measured else "-"
        lines.append(f"| {target.title} | {target.peer} | {wanted} | {figures} | {verdict} |")
    return "\n".join(lines)


def table(results: Iterable[Result]) -> str:
    lines = [
        "| case | contestant | median | (lowest to highest) | ratio to the first |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for result in results:
        names = list(result.contestants)
        first = True
        for name in names:
            measurement = result.contestants[name]
            title = result.title if first else ""
            first = False
            summary = result.summary(name)
            if summary is None:
                lines.append(f"| {title} | {name} | {measurement.status} | | |")
                continue
            low, high = (value_text(value, result.unit) for value in (summary.low, summary.high))
            ratio = result.ratio(name, names[0]) if name != names[0] else None
            throughput = f", {size_text(result.amount / summary.median * 1e9)}/s" if result.amount else ""
            lines.append(
                f"| {title} | {name} | {value_text(summary.median, result.unit)}{throughput} | ({low} to {high}) "
                f"| {spread(ratio) if ratio else ''} |"
            )
    return "\n".join(lines)


def spread(summary: Summary) -> str:
    return f"{ratio_text(summary.median)} ({ratio_text(summary.low)} to {ratio_text(summary.high)})"


def problems(results: Mapping[str, Result]) -> Iterable[str]:
    """What is not in the tables, and why; the same reason once."""
    reasons: dict[tuple[str, str, str], dict[str, None]] = {}
    for result in results.values():
        for name, measurement in result.contestants.items():
            if measurement.status != OK:
                subject = "" if measurement.status == SKIPPED else name
                reasons.setdefault((measurement.status, subject, measurement.reason), {})[result.key] = None
    for (status, name, reason), keys in reasons.items():
        who = f"{name}: " if name else ""
        where = f"in {len(keys)} cases" if status in (MISSING, SKIPPED) and len(keys) > 3 else f"in {', '.join(keys)}"
        yield f"{who}{status} {where}: {reason}"


def publish(readme: Path, run: Mapping[str, Any], results: Mapping[str, Result]) -> None:
    """Replaces what is between the two marks in the README."""
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme} has not the two lines between which the figures go:\n{BEGIN}\n{END}")
    readme.write_text(f"{before}{BEGIN}\n\n{section(run, results)}\n\n{END}{after}")


README_CHARTS = (
    ("overview.png", "How many times as fast as multiprocessing"),
    ("streams.png", "Streams of small dicts through a queue"),
    ("mechanisms.png", "Every local mechanism: latency and throughput by message size"),
)


def section(run: Mapping[str, Any], results: Mapping[str, Result]) -> str:
    facts = run["machine"]
    kind = "a virtual machine with " if facts["virtual machine"] else ""
    where = (
        f"Measured on {facts['date'][:10]} with {facts['python']} on {facts['kernel']}, {kind}{facts['processors']}"
        f" processors ({facts['processor']}). [docs/benchmarks](docs/benchmarks/results.md) has all cases, versions and"
        f" spreads."
    )
    parts = [where]
    for name, caption in README_CHARTS:
        if (Path(__file__).resolve().parent.parent / "docs/benchmarks" / name).exists():
            parts.append(f"![{caption}](docs/benchmarks/{name})")
    missed = sum(target.verdict(target.measured(results)) == MISSED for target in TARGETS)
    told = "All targets are met" if missed == 0 else f"{len(TARGETS) - missed} of {len(TARGETS)} targets are met"
    repetitions = run["settings"]["repetitions"]
    parts.append(f"{told}. A ratio is that of the times in one repetition; shown is the median of {repetitions}.")
    parts.append(must_show(results))
    return "\n\n".join(parts)

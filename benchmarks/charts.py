"""The charts, as PNG: small, on white, one colour for each peer wherever it appears."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from cases.mechanisms import MECHANISMS, SIZES
from cases.objects import COUNTS, label
from harness import Result
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

Results = Mapping[str, Result]

# Okabe and Ito's palette, which people who see few colours can tell apart; mpipc is the only strong blue.
COLOURS = {
    "mpipc": "#0072B2",
    "mpipc get_many": "#56B4E9",
    "mpipc executor": "#56B4E9",
    "multiprocessing": "#8C8C8C",
    "faster-fifo": "#D55E00",
    "faster-fifo get_many": "#F0A66B",
    "concurrent.futures": "#009E73",
    "loky": "#CC79A7",
    "pebble": "#E69F00",
    "C": "#000000",
}

MECHANISM_STYLES = {
    "SysV queue": ("#0072B2", "o", "-"),
    "SysV shm": ("#0072B2", "s", "--"),
    "SysV shm, semop": ("#56B4E9", "D", "--"),
    "POSIX queue": ("#D55E00", "o", "-"),
    "POSIX shm": ("#D55E00", "s", "--"),
    "mmap'd file": ("#E69F00", "s", "--"),
    "pipe": ("#000000", "^", "-"),
    "FIFO": ("#8C8C8C", "v", "-"),
    "Unix socket": ("#009E73", "P", "-"),
}

plt.rcParams.update(
    {
        "figure.dpi": 150,
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)


def draw_all(folder: Path, run: Mapping[str, Any], results: Results) -> list[tuple[str, str]]:
    """Draws what there are results for; file name and caption of each."""
    drawn = []
    for name, (caption, draw) in CHARTS.items():
        figure = draw(results)
        if figure is None:
            plt.close("all")
            (folder / name).unlink(missing_ok=True)  # of another run
            continue
        # What the picture needs to be understood when it is passed around alone.
        facts = run["machine"]
        figure.supxlabel(
            f"{facts['processor']}, {facts['processors']} processors · {facts['kernel']} · {facts['python']} ·"
            f" {facts['date'][:10]}",
            fontsize=7,
            color="#666666",
        )
        # Without the version of matplotlib in it, equal charts are equal files.
        figure.savefig(folder / name, metadata={"Software": None})
        plt.close(figure)
        drawn.append((name, caption))
    return drawn


def number(value: float, _position: object = None) -> str:
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def microseconds(value: float, _position: object = None) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3), ("µs", 1.0)):
        if value >= size:
            return f"{number(value / size)} {unit}"
    return f"{number(value * 1e3)} ns" if value else "0"


def overview(results: Results) -> Any:
    """How many times as fast as multiprocessing, with the spread, for all cases that both have."""
    rows = []
    for result in results.values():
        ratio = result.ratio("multiprocessing", "mpipc") if result.unit == "ns" else None
        if ratio is not None:
            rows.append((result.title, ratio))
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(9, 1.1 + 0.19 * len(rows)))
    for y, (_, ratio) in enumerate(reversed(rows)):
        colour = COLOURS["mpipc"] if ratio.median >= 1 else COLOURS["faster-fifo"]
        axes.plot([ratio.low, ratio.high], [y, y], color=colour, alpha=0.35, linewidth=4, solid_capstyle="round")
        axes.plot(ratio.median, y, "o", color=colour, markersize=4)
        axes.annotate(
            f"{number(ratio.median)}\N{MULTIPLICATION SIGN}",
            (ratio.high, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [title for title, _ in reversed(rows)], fontsize=7)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    logarithmic(axes.xaxis, axes.set_xscale, number)
    axes.margins(x=0.12)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.6)
    figure.suptitle("mpipc: how many times as fast as multiprocessing (median, lowest to highest)", fontsize=11)
    return figure


def grouped_bars(
    axes: Axes,
    results: Sequence[tuple[str, Result]],
    contestants: Sequence[str],
    value: Callable[[Result, float], float],
) -> None:
    """For each result a group of bars, one a contestant, with whiskers from lowest to highest."""
    shown = [name for name in contestants if any(result.summary(name) for _, result in results)]
    width = 0.84 / max(len(shown), 1)
    for i, name in enumerate(shown):
        for x, (_, result) in enumerate(results):
            summary = result.summary(name)
            if summary is None:
                continue
            height = value(result, summary.median)
            ends = sorted((value(result, summary.low), value(result, summary.high)))
            where = x - 0.42 + (i + 0.5) * width
            axes.bar(where, height, width * 0.92, color=COLOURS[name], label=name if x == 0 else None)
            axes.vlines(where, ends[0], ends[1], color="#333333", linewidth=0.8)
    handles = [Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in shown]
    axes.legend(handles, shown, fontsize=8, ncols=len(shown), loc="lower left", bbox_to_anchor=(0, 1.08))
    axes.set_xticks(range(len(results)), [text for text, _ in results])
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)


def streams(results: Results) -> Any:
    rows = [
        (f"{key.removeprefix('streams/').replace('-', ' : ')}", result)
        for key, result in results.items()
        if key.startswith("streams/") and "many" not in key
    ]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(9, 3.8))
    names = ["mpipc", "multiprocessing", "faster-fifo", "mpipc get_many", "faster-fifo get_many"]
    grouped_bars(axes, rows, names, lambda result, ns: 1e6 / ns)
    axes.set_title("Small dicts through one queue, by producers : consumers. Thousand messages a second")
    return figure


def large_messages(results: Results) -> Any:
    figure, both = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    found = False
    for axes, (kind, title) in zip(both, (("bytes", "bytes"), ("array", "numpy arrays")), strict=True):
        rows = [
            (key.rpartition("-")[2].replace("KB", " KB").replace("MB", " MB"), result)
            for key, result in results.items()
            if key.startswith(f"messages/{kind}")
        ]
        if not rows:
            continue
        found = True
        grouped_bars(
            axes, rows, ["mpipc", "multiprocessing", "faster-fifo"], lambda result, ns: result.amount / ns * 1e3
        )
        logarithmic(axes.yaxis, axes.set_yscale, number)
        axes.set_title(f"Large messages, {title}. MB a second")
    return figure if found else None


def pools(results: Results) -> Any:
    titles = ("start", "apply", "map-1", "map-auto", "imap_unordered")
    rows = [(title.replace("-", ", "), results[f"pools/{title}"]) for title in titles if f"pools/{title}" in results]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(9, 3.6))
    names = ["mpipc", "multiprocessing", "mpipc executor", "concurrent.futures", "loky", "pebble"]
    grouped_bars(axes, rows, names, lambda result, ns: ns / 1e3)
    logarithmic(axes.yaxis, axes.set_yscale, microseconds)
    axes.set_title("Pools of two workers: time for one task (for start: until the first result, and to the end)")
    return figure


def locks(results: Results) -> Any:
    figure, axes_list = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
    contestants = {
        "mpipc": ("#0072B2", "o"),
        "multiprocessing": ("#8C8C8C", "o"),
        "sysv_ipc": ("#D55E00", "s"),
        "posix_ipc": ("#E69F00", "s"),
        "C, sem_t": ("#000000", "^"),
        "C, semop with SEM_UNDO": ("#CC79A7", "^"),
    }
    found = False
    for axes, kind in zip(axes_list, ("Lock", "RLock", "Semaphore"), strict=True):
        for name, (colour, marker) in contestants.items():
            points = [
                (processes, summary)
                for processes in (1, 2, 4, 8)
                if f"locks/{kind}-{processes}" in results
                and (summary := results[f"locks/{kind}-{processes}"].summary(name))
            ]
            if points:
                found = True
                line(axes, points, colour, marker, "-", name, 1e3)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        logarithmic(axes.yaxis, axes.set_yscale, microseconds)
        axes.grid(color="#E6E6E6", linewidth=0.6)
        axes.set_title(f"{kind}: acquire and release")
        axes.set_xlabel("processes")
    if not found:
        return None
    handles, labels = axes_list[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=6, loc="outside upper left")
    return figure


def many_objects(results: Results) -> Any:
    titles = {
        "one-lock": "Lock, one",
        "each-lock": "Lock, each in turn",
        "wake-up": "wake-up",
        "one-queue": "Queue put + get",
    }
    titles = {key: title for key, title in titles.items() if f"objects/{key}" in results}
    if not any(measurement.values for key in titles for measurement in results[f"objects/{key}"].contestants.values()):
        return None
    figure, axes_list = plt.subplots(1, len(titles), figsize=(9, 3), squeeze=False)
    for axes, (key, title) in zip(axes_list[0], titles.items(), strict=True):
        for package in ("mpipc", "multiprocessing"):
            result = results[f"objects/{key}"]
            points = [(count, s) for count in COUNTS if (s := result.summary(label(package, count)))]
            if points:
                line(axes, points, COLOURS[package], "o", "-", package, 1e3)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(microseconds))
        axes.grid(color="#E6E6E6", linewidth=0.6)
        axes.set_title(title)
        axes.set_xlabel("objects alive")
    axes_list[0][0].legend(fontsize=7)
    return figure


def mechanisms(results: Results) -> Any:
    figure, both = plt.subplots(1, 2, figsize=(10, 4.4))
    found = False
    for axes, what in zip(both, ("latency", "throughput"), strict=True):
        for name in MECHANISMS:
            colour, marker, style = MECHANISM_STYLES[name]
            points = []
            for text, size in SIZES.items():
                result = results.get(f"mechanisms/{what}-{text.replace(' ', '')}")
                summary = result.summary(name) if result else None
                if summary:
                    points.append((size, summary))
            if not points:
                continue
            found = True
            sizes = [size for size, _ in points]
            medians = [s.median / 1e3 if what == "latency" else size / s.median * 1e3 for size, s in points]
            axes.plot(sizes, medians, marker + style, color=colour, label=name, markersize=4, linewidth=1.3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(SIZES.values()), list(SIZES))
        logarithmic(axes.yaxis, axes.set_yscale, microseconds if what == "latency" else number)
        axes.grid(color="#E6E6E6", linewidth=0.6)
    both[0].set_title("Latency: there and back")
    both[1].set_title("Throughput: MB a second")
    if not found:
        return None
    both[0].legend(fontsize=8)
    return figure


def line(axes: Axes, points: Any, colour: str, marker: str, style: str, name: str, divisor: float) -> None:
    """A line through the medians, in a band from lowest to highest."""
    xs = [x for x, _ in points]
    medians = [summary.median / divisor for _, summary in points]
    lows = [summary.low / divisor for _, summary in points]
    highs = [summary.high / divisor for _, summary in points]
    axes.plot(xs, medians, marker + style, color=colour, label=name, markersize=4, linewidth=1.3)
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)


def logarithmic(axis: Any, set_scale: Callable[[str], None], text: Callable[[float, object], str]) -> None:
    set_scale("log")
    axis.set_major_formatter(FuncFormatter(text))
    axis.set_minor_formatter(NullFormatter())


CHARTS: dict[str, tuple[str, Callable[[Results], Any]]] = {
    "overview.png": ("How many times as fast as multiprocessing", overview),
    "streams.png": ("Streams of small dicts through a queue", streams),
    "messages.png": ("Large messages through a queue", large_messages),
    "pools.png": ("Pools", pools),
    "locks.png": ("Locks by number of processes", locks),
    "objects.png": ("Operations while many objects are alive", many_objects),
    "mechanisms.png": ("Every local mechanism: latency and throughput by message size", mechanisms),
}

"""Where the time of a pool's workers went: Pool.report(), as text and as a picture.

A worker is at one of four things at any time, and the sum of them is its life from Process.start() on:

    start       from Process.start() until it is ready: fork or a new interpreter, imports, initializer, worker_init
    wait        it has no task
    work        it is inside the function of a task; for a chunk of a map, from the first item to the last
    transfer    all that is left: it unpickles functions and arguments, pickles and sends results. Receiving a message
                counts as waiting for it

It notes that in shared memory (Ledger.times_spent, _core/src/times.h). So what is known of one that was killed in a
task goes up to the end of the one before; that in which it was killed is in no sum.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from mpipc._pool.longest import MOST
from mpipc._pool.tasks import function_name
from mpipc._pool.worker_handle import Member

if TYPE_CHECKING:
    from mpipc._pool.engine import Engine

__all__ = ["Accounts", "LongTask", "PoolReport", "WorkerTimes", "report_of"]

REMEMBERED = 256
"""Workers that have ended and are told of one by one; those before them are told of as one."""

PARTS = ("start", "wait", "work", "transfer")
COLOURS = ("#9aa0a6", "#dadce0", "#1e8e3e", "#f29900")


class WorkerTimes(NamedTuple):
    """One worker, in Pool.report(). Seconds, up to now or to its last task."""

    pid: int | None
    """None: several."""
    ended: bool
    """It was replaced, or the pool has ended."""
    workers: int
    """1, or how many these were."""
    tasks: int
    """Tasks that it has run, whether they have failed or not; a chunk of a map is one."""
    start: float
    """From Process.start() until it was ready for tasks."""
    wait: float
    """Without a task."""
    work: float
    """In the functions of tasks."""
    transfer: float
    """In all else, which is pickling, unpickling, sending."""

    @property
    def total(self) -> float:
        """All of that."""
        return self.start + self.wait + self.work + self.transfer

    def plus(self, other: WorkerTimes) -> WorkerTimes:
        """Both as one."""
        sums = (mine + its for mine, its in zip(self[2:], other[2:], strict=True))
        return WorkerTimes(None, self.ended and other.ended, *sums)  # type: ignore[arg-type]


class LongTask(NamedTuple):
    """One of the tasks that took longest, in Pool.report()."""

    seconds: float
    """In its function; of a chunk, in all its calls."""
    function: str
    item: int
    """Index of its item in the map, or of the first one of a chunk; 0 for a call."""
    arguments: str
    """Shortened; an object that is not of a type of the language's is named by its class."""
    pid: int | None
    """The worker's."""


class PoolReport(NamedTuple):
    """What Pool.report() returns. str() of it is a table."""

    workers: tuple[WorkerTimes, ...]
    """In the order in which they were started."""
    earlier: WorkerTimes | None
    """Workers that have ended before those in `workers`, as one; None if there were none."""
    longest: tuple[LongTask, ...]
    """The five tasks that took longest, of those that took more than a millisecond; the longest first."""

    @property
    def total(self) -> WorkerTimes:
        """All workers as one."""
        total = WorkerTimes(None, True, 0, 0, 0.0, 0.0, 0.0, 0.0)
        for worker in self._rows():
            total = total.plus(worker)
        return total

    def _rows(self) -> tuple[WorkerTimes, ...]:
        return (self.earlier, *self.workers) if self.earlier is not None else self.workers

    def __str__(self) -> str:
        heads = "".join(f"{name + ' (s)':>14}" for name in PARTS)
        lines = [f"{'worker':<22}{'tasks':>9}{heads}{'work':>7}"]
        lines += [_line(_name(worker), worker) for worker in self._rows()]
        lines.append(_line("all", self.total))
        if self.longest:
            lines.append("longest tasks:")
        for task in self.longest:
            item = f" at item {task.item}" if task.item else ""
            lines.append(f"{task.seconds:12.3f} s  {task.function}({task.arguments}){item}, worker {task.pid}")
        return "\n".join(lines)

    def plot(self, where: Any = None) -> Any:
        """Draw a bar for each worker, of the four parts of its time, by matplotlib.

        `where`: the path of a file, whose ending says in which format (.png, .svg, .pdf); the axes to draw into; None
        for a figure of its own. Returns the figure, or the axes that were given.

        ImportError if matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise ImportError("report.plot() needs the package matplotlib: pip install 'mpipc[report]'") from None
        if hasattr(where, "barh"):
            self._draw(where)
            return where
        if where is not None:
            os.fspath(where)  # TypeError: what it is instead
        rows = len(self._rows())
        figure: Any = Figure(figsize=(8.0, 1.6 + 0.28 * rows), layout="constrained")  # of no window system
        self._draw(figure.subplots())
        if where is not None:
            figure.savefig(where)
        return figure

    def _draw(self, axes: Any) -> None:
        rows = self._rows()
        names = [_name(worker) for worker in rows]
        ends = [0.0] * len(rows)
        for part, colour in zip(PARTS, COLOURS, strict=True):
            seconds = [getattr(worker, part) for worker in rows]
            axes.barh(range(len(rows)), seconds, left=ends, color=colour, label=part)
            ends = [end + more for end, more in zip(ends, seconds, strict=True)]
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()  # the first one on top
        axes.set_xlabel("seconds")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(PARTS), frameon=False)


def _name(worker: WorkerTimes) -> str:
    if worker.pid is None:
        return f"{worker.workers} earlier"
    return f"{worker.pid} (ended)" if worker.ended else str(worker.pid)


def _line(name: str, worker: WorkerTimes) -> str:
    seconds = "".join(f"{getattr(worker, part):14.3f}" for part in PARTS)
    return f"{name:<22}{worker.tasks:>9}{seconds}{worker.work / (worker.total or 1):7.0%}"


class Accounts:
    """What is kept of workers that have ended, and of long tasks. Guarded by the lock of the pool's life."""

    def __init__(self) -> None:
        self._ended: deque[tuple[int, WorkerTimes]] = deque()
        self._earlier: WorkerTimes | None = None
        self._longest: list[tuple[float, int, LongTask]] = []
        self._numbers = count()

    def close(self, worker: Member) -> None:
        """A worker has ended; before its ledger is given back."""
        if not _was_started(worker):
            return
        self._ended.append((worker.tag, times_of(worker, ended=True)))
        if len(self._ended) > REMEMBERED:
            _, oldest = self._ended.popleft()
            self._earlier = oldest._replace(pid=None) if self._earlier is None else self._earlier.plus(oldest)

    def note(self, worker: Member, number: int, seconds: float, arguments: str) -> None:
        """A worker tells of a task that has run for so long, and is in its window."""
        task = worker.window.get(number)
        if task is not None:
            name = function_name(task.function.call)
            found = LongTask(seconds, name, task.first, arguments, worker.process.pid)
            heapq.heappush(self._longest, (seconds, next(self._numbers), found))
            if len(self._longest) > MOST:
                heapq.heappop(self._longest)

    def report(self, workers: list[Member]) -> PoolReport:
        """With the workers that are there."""
        rows = [*self._ended]
        rows += [(worker.tag, times_of(worker, ended=False)) for worker in workers if _was_started(worker)]
        longest = tuple(task for _, _, task in sorted(self._longest, reverse=True))
        return PoolReport(tuple(times for _, times in sorted(rows)), self._earlier, longest)


def _was_started(worker: Member) -> bool:
    """Also of what a context has made that is none of multiprocessing's."""
    return getattr(worker.process, "pid", None) is not None and worker.ledger is not None


def times_of(worker: Member, *, ended: bool) -> WorkerTimes:
    """What a worker has spent its time on, that is there or has just ended."""
    until = (worker.ended or time.monotonic()) if ended else time.monotonic()
    wait, work, transfer, tasks = worker.ledger.times_spent(until if ended else None)
    start = max((worker.ledger.ready_at or until) - worker.launched, 0.0)
    return WorkerTimes(worker.process.pid, ended, 1, tasks, start, wait, work, transfer)


def report_of(engine: Engine) -> PoolReport:
    """What a pool's workers have spent their time on until now."""
    with engine.life.lock:
        return engine.accounts.report(engine.members())

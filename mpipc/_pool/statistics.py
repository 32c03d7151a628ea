"""What a pool tells about its workers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from mpipc._pool.losses import stack_of
from mpipc._pool.tasks import function_name

if TYPE_CHECKING:
    from mpipc._pool.engine import Engine

__all__ = ["PoolStatistics", "WorkerStatistics", "gather"]


class WorkerStatistics(NamedTuple):
    """One worker, in Pool.statistics()."""

    pid: int | None
    tasks: int
    """Tasks done; a chunk of a map counts as one."""
    busy: float
    """Seconds spent in tasks."""
    idle: float
    """Seconds spent waiting for tasks."""
    function: str | None
    """Name of the function that is running now; None if none is."""
    item: int | None
    """Index of the item that it is running on."""
    running_for: float | None
    """For how many seconds."""
    memory: int
    """Resident memory, in bytes."""
    stack: str | None
    """Where it is, if the task that it runs has used up nine tenths of its timeout; None otherwise."""


class PoolStatistics(NamedTuple):
    """What Pool.statistics() returns."""

    workers: list[WorkerStatistics]
    replaced: int
    """How many workers have ended and were replaced, for whatever reason."""
    outstanding: int
    """Results (of apply, map, imap ...) that are not complete."""


def gather(engine: Engine) -> PoolStatistics:
    """What the workers have done, and what they are doing."""
    with engine.life.lock:  # nothing slow: whoever interrupts this may want the engine
        members = [(worker, worker.ledger) for worker in engine.members()]
        replaced, outstanding = engine.replaced, len(engine.schedule.cache)
    workers = []
    for worker, ledger in members:
        running_for = ledger.running_for
        task = worker.window.get(ledger.started) if running_for is not None else None
        if task is None:  # what was started last was answered meanwhile, or taken back
            running_for = None
        busy = ledger.busy + (running_for or 0.0)
        pid = worker.process.pid
        if pid is None:
            continue  # about to be started
        workers.append(
            WorkerStatistics(
                pid,
                worker.done,
                busy,
                max((ledger.ready_for or 0.0) - busy, 0.0),
                function_name(task.function.call) if task is not None else None,
                task.first + ledger.current_item if task is not None else None,
                running_for,
                _resident_memory(pid),
                stack_of(worker.crash_report) if task is not None and task.timeout is not None else None,
            )
        )
    return PoolStatistics(workers, replaced, outstanding)


def _resident_memory(pid: int | None) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0

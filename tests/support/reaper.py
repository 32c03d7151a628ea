"""Finding a family's reaper among the processes."""

from __future__ import annotations

from mpipc import _core as family
from support import processes, wait_until


def reaper_pid(ticket: str | None = None) -> int:
    """The reaper of a family, by default of our own; 0 if there is none."""
    ticket = ticket or family.current().ticket
    return next((process.pid for process in processes().values() if process.is_reaper_of(ticket)), 0)


def wait_for_reaper() -> int:
    return wait_until(reaper_pid, timeout=30)

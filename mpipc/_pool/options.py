"""What the workers of a pool are started with: one record, from the constructor of pool or executor to the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mpipc._pool.channel import OwnReducers

__all__ = ["WorkerOptions", "checked_bytes"]


def checked_bytes(name: str, value: int | None) -> int | None:
    """A number of bytes that was given as an argument. TypeError and ValueError say which one."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of bytes (an int) or None, not {value!r}")
    if value <= 0:
        raise ValueError(f"{name} must be a number of bytes greater than 0, not {value}")
    return value


class WorkerOptions(NamedTuple):
    """Checked by whoever makes it. What a worker gets of it is `for_worker()`."""

    initializer: Callable[..., object] | None = None
    """Called in each worker before its first task."""
    initargs: Iterable[Any] = ()
    quota: int | None = None
    """How many tasks a worker runs before it is replaced."""
    daemon: bool = True
    """Of the processes."""
    task_reducers: OwnReducers | None = None
    """Of a subclass like joblib's: functions that reduce objects on their way to a worker."""
    result_reducers: OwnReducers | None = None
    """The same on their way back."""

    memory_limit: int | None = None
    """Bytes of private memory that a worker may have while it runs a task."""
    max_memory: int | None = None
    """Bytes of private memory with which a worker, after a task, gives way to another one."""

    def for_worker(self) -> WorkerOptions:
        """Without what only the parent needs, and what need not be picklable for that reason."""
        return self._replace(task_reducers=None)

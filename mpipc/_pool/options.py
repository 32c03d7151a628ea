"""What the workers of a pool are started with: one record, from the constructor of pool or executor to the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mpipc._pool.channel import OwnReducers
from mpipc._stdlib.by_pickler import ByPickler, Carried

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
    task_reducers: OwnReducers | ByPickler | None = None
    """How functions and arguments are pickled: by a subclass's functions (joblib has some), a pickler, or as usual."""
    result_reducers: OwnReducers | ByPickler | None = None
    """The same for results and exceptions."""

    memory_limit: int | None = None
    """Bytes of private memory that a worker may have while it runs a task."""
    max_memory: int | None = None
    """Bytes of private memory with which a worker, after a task, gives way to another one."""

    carried: Carried | None = None
    """In a worker, the initializer and its arguments, if it takes a pickler to bring them there."""

    def for_worker(self) -> WorkerOptions:
        """Without what only the parent needs, and what need not be picklable for that reason."""
        if not isinstance(self.task_reducers, ByPickler):
            return self._replace(task_reducers=None)
        carried = Carried(self.task_reducers, (self.initializer, self.initargs))
        return self._replace(task_reducers=None, initializer=None, initargs=(), carried=carried)

    @property
    def start(self) -> tuple[Callable[..., object] | None, Iterable[Any]]:
        """The initializer and its arguments, in the worker."""
        return (self.initializer, self.initargs) if self.carried is None else self.carried.value

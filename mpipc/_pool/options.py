"""What the workers of a pool are started with: one record, from the constructor of pool or executor to the worker."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mpipc._pool.channel import OwnReducers
from mpipc._pool.placing import Affinity, checked_affinity, checked_nice, try_out
from mpipc._stdlib.by_pickler import ByPickler, Carried
from mpipc._stdlib.tying import tying

__all__ = ["Start", "WorkerOptions", "check_retries", "checked_bytes", "checked_setting", "checked_timeout"]


def check_retries(retries: int) -> None:
    """ValueError unless it is a number of retries."""
    if not isinstance(retries, int) or not 0 <= retries <= sys.maxsize:
        raise ValueError(f"retries must be an int of at least 0, and at most sys.maxsize, got {retries!r}")


def checked_timeout(timeout: float | None) -> float | None:
    """The timeout of a task as a float, None if it is infinite; ValueError if it is not positive."""
    if timeout is None:
        return None
    seconds = float(timeout)
    if not seconds > 0:
        raise ValueError(f"timeout must be a positive number of seconds or None, got {timeout!r}")
    return None if seconds == math.inf else seconds


def checked_bytes(name: str, value: int | None) -> int | None:
    """A number of bytes that was given as an argument. TypeError and ValueError say which one."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of bytes (an int) or None, not {value!r}")
    if value <= 0:
        raise ValueError(f"{name} must be a number of bytes greater than 0, not {value}")
    return value


def checked_setting(
    context: Any,
    worker_init: Callable[[Any], object] | None,
    worker_exit: Callable[[Any], object] | None,
    nice: int | None,
    cpu_affinity: Any,
    end_with_parent: bool,
    shared: Any,
    copy: bool,
    inherit: bool,
) -> dict[str, Any]:
    """What pools and executors have in common among their arguments, for WorkerOptions. TypeError, ValueError,
    PermissionError (a niceness that this process may not have)."""
    for name, function in (("worker_init", worker_init), ("worker_exit", worker_exit)):
        if function is not None and not callable(function):
            raise TypeError(
                f"{name} must be a callable, which is given the state of the worker, or None, not {function!r}"
            )
    for name, value in (("end_with_parent", end_with_parent), ("copy", copy), ("inherit", inherit)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}")
    if end_with_parent:
        tying(context)
    increment, cpus = checked_nice(nice), checked_affinity(cpu_affinity)
    try_out(increment, cpus)
    return {
        "worker_init": worker_init,
        "worker_exit": worker_exit,
        "nice": increment,
        "cpu_affinity": cpus,
        "end_with_parent": end_with_parent,
        "shared": shared,
        "copy": copy,
        "inherit": inherit,
    }


class Start(NamedTuple):
    """What a worker calls by itself, and what it has."""

    initializer: Callable[..., object] | None
    initargs: Iterable[Any]
    worker_init: Callable[[Any], object] | None
    worker_exit: Callable[[Any], object] | None
    shared: Any


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

    worker_init: Callable[[Any], object] | None = None
    """Called in each worker with its state, after the initializer."""
    worker_exit: Callable[[Any], object] | None = None
    """The same, when it ends because there is nothing more to do, or it has done its share."""
    shared: Any = None
    """What the state of each worker has as `shared`."""
    nice: int = 0
    """What is added to a worker's niceness."""
    cpu_affinity: Affinity | None = None
    """The CPUs on which workers may run: a set for each in turn. In a worker, its own."""
    end_with_parent: bool = False
    """Of the processes."""

    copy: bool = True
    """Arrays are copied where they arrive; else they are views."""
    inherit: bool = True
    """A forked worker holds what there was of mpipc.arrays."""

    carried: Carried | None = None
    """In a worker, `start`, if it takes a pickler to bring that there."""

    def for_worker(self) -> WorkerOptions:
        """Without what only the parent needs, and what need not be picklable for that reason."""
        if not isinstance(self.task_reducers, ByPickler):
            return self._replace(task_reducers=None)
        carried = Carried(self.task_reducers, tuple(self.start))
        return self._replace(
            task_reducers=None,
            initializer=None,
            initargs=(),
            worker_init=None,
            worker_exit=None,
            shared=None,
            carried=carried,
        )

    @property
    def start(self) -> Start:
        """What a worker calls by itself, and what it has."""
        if self.carried is not None:
            return Start(*self.carried.value)
        return Start(self.initializer, self.initargs, self.worker_init, self.worker_exit, self.shared)

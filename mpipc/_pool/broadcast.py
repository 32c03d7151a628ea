"""broadcast(): a call in each worker. Which worker has which of its tasks: Broadcast in backlog.pyx."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpipc._pool.backlog import Broadcast
from mpipc._pool.codec import APPLY, Task
from mpipc._pool.results import ApplyResult
from mpipc._pool.tasks import Function

if TYPE_CHECKING:
    from mpipc._pool.engine import Engine

__all__ = ["BroadcastResult", "Broadcasts", "broadcast"]


class BroadcastResult(ApplyResult):
    """The results of all workers, in a list; the first exception of any."""

    def __init__(self, pool: Any, count: int) -> None:
        super().__init__(pool, ours=True)
        self._missing = set(range(count))
        self._values: list[Any] = [None] * count
        self._failure: BaseException | None = None
        self.broadcast: Broadcast | None = None

    def _set(self, i: int, success_result: tuple[bool, Any]) -> None:
        ok, value = success_result
        self._missing.discard(i)
        if ok:
            self._values[i] = value
        elif self._failure is None:
            self._failure = value
        if not self._missing:
            self._finish()
            super()._set(0, (True, self._values) if self._failure is None else (False, self._failure))

    def _reopen(self, index: int) -> bool:
        """The worker is dead that had done this; whether another one is to do it. In the result thread, as _set()."""
        if self._failure is not None or not self._missing:
            return False
        self._missing.add(index)
        return True

    def _abort(self, error: BaseException, *, callback: bool) -> None:
        self._finish()
        super()._abort(error, callback=callback)

    def _finish(self) -> None:
        if self.broadcast is not None:
            self.broadcast.finish()
            self.broadcast = None


def broadcast(engine: Engine, pool: Any, call: Callable[..., Any], args: tuple[Any, ...], retries: int) -> list[Any]:
    """Have each worker run call(*args) once, and return the results."""
    size = engine.schedule.size
    job = BroadcastResult(pool, size)
    function = Function(call, job._job + 1)
    tasks = [Task(job, index, APPLY, function, args, retries=retries) for index in range(size)]
    job.broadcast = Broadcast(job, tasks)
    engine.take_on(job, job.broadcast)
    return job.get()  # type: ignore[no-any-return]


class Broadcasts:
    """The method of pools."""

    _engine: Engine
    _retries: int
    _check_running: Callable[[], None]

    def broadcast(self, func: Callable[..., Any], /, *args: Any) -> list[Any]:
        """Have each worker run func(*args) once, after what it has been given before, and return the list of results.

        A worker that dies meanwhile is replaced, and the new one runs func, too: when this returns, every worker that
        is there has. It has one result for each worker that the pool is to have. Errors are as with map(): if func
        raises, or a worker dies in it, that is raised when all are done. Workers that come later, in the place of those
        that have used up `maxtasksperchild`, say, have not run it: what all are to have is for `worker_init`.
        """
        self._check_running()
        return broadcast(self._engine, self, func, args, self._retries)

"""What programs know of the inside of multiprocessing's pools, as far as this pool has something that means the same.

`pool._taskqueue` is the one that they use most: for a starmap() that gives its results one by one (istarmap), and for
how many tasks are waiting. docs/compatibility.md has the list, and what there is none of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from threading import Thread
from typing import TYPE_CHECKING, Any

from mpipc._pool.codec import APPLY, CALL, CHUNK, STAR_CHUNK, Task
from mpipc._pool.results import IMapIterator
from mpipc._pool.tasks import Feed, Function
from mpipc._stdlib.standard import standard_module

if TYPE_CHECKING:
    from mpipc._pool.engine import Engine

__all__ = ["Parts"]

_base: Any = standard_module("pool")
job_counter, mapstar, starmapstar = _base.job_counter, _base.mapstar, _base.starmapstar


class _View:
    """Of a queue that is somewhere else: how much is in it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def qsize(self) -> int:
        """How much that is now."""
        raise NotImplementedError

    def empty(self) -> bool:
        """Whether that is nothing."""
        return self.qsize() == 0


class TaskQueue(_View):
    """`pool._taskqueue`: what no worker has yet."""

    def __init__(self, engine: Engine, retries: int) -> None:
        super().__init__(engine)
        self._retries = retries

    def qsize(self) -> int:
        """How many tasks are with no worker yet; of a map, a chunk is a task. (multiprocessing counts calls, and only
        those of which nothing has gone into the pipe to the workers.)"""
        return self._engine.schedule.count_waiting()

    def put(self, item: tuple[Iterable[tuple[Any, ...]], Callable[[int], object] | None]) -> None:
        """Have tasks run for a result that somebody has made: `pool.IMapIterator(pool)`, say.

        `item` is a pair: an iterable of (job, index, function, args, keywords), as _guarded_task_generation() makes
        it; and the _set_length of the result, None if it has none, or a function that is told how many there were. With
        the first, the iterable is read as workers get free; else, now.

        TypeError for anything else; ValueError if there is no such result.
        """
        try:
            tasks, set_length = item
        except TypeError:
            raise TypeError(
                f"a pair of tasks and set_length is put into the _taskqueue of a pool, not {item!r};"
                " a pool is ended by close() or terminate()"
            ) from None
        job = getattr(set_length, "__self__", None)
        if isinstance(job, IMapIterator):
            feed = Feed()
            self._engine.feed(job, self._made(iter(tasks), job, feed), feed)
            return
        count = 0
        for task in self._made(iter(tasks), None, None):
            self._engine.take_on(task.job, task)
            count = task.index + 1
        if set_length is not None:
            set_length(count)

    def _made(self, tasks: Iterator[tuple[Any, ...]], job: Any, feed: Feed | None) -> Iterator[Task]:
        first = 0
        known: Function | None = None
        for number, index, call, args, keywords in tasks:
            result = job if job is not None else self._engine.schedule.cache.find(number)
            length, kind = 1, CALL if keywords else APPLY
            payload: Any = (tuple(args), keywords) if keywords else tuple(args)
            if call is mapstar or call is starmapstar:  # a chunk, as _get_tasks() makes it: there are such tasks here
                kind = CHUNK if call is mapstar else STAR_CHUNK
                call, payload = args[0]
                length = len(payload)
            if known is None or known.call is not call:
                known = Function(call, next(job_counter) + 1)
            yield Task(result, index, kind, known, tuple(payload), first=first, feed=feed, retries=self._retries)
            first += length


class _InQueue(_View):
    """`pool._inqueue`: what the workers have been given."""

    def qsize(self) -> int:
        """How many tasks the workers have and have not answered."""
        return sum(len(worker.window) for worker in self._engine.members())


class _OutQueue(_View):
    """`pool._outqueue`: what they have answered."""

    def qsize(self) -> int:
        """How many messages of workers nobody has received yet."""
        return self._engine.results.size()


class Parts:
    """The attributes. What is assigned to them stays in the pool that it is assigned to, and nobody looks at it."""

    _engine: Engine
    _retries: int

    @cached_property
    def _taskqueue(self) -> TaskQueue:
        return TaskQueue(self._engine, self._retries)

    @cached_property
    def _inqueue(self) -> _InQueue:
        return _InQueue(self._engine)

    @cached_property
    def _outqueue(self) -> _OutQueue:
        return _OutQueue(self._engine)

    def _quick_put(self, task: tuple[Any, ...]) -> None:
        """Have a task run, for a result that somebody has made."""
        self._taskqueue.put(([task], None))

    @property
    def _worker_handler(self) -> Thread:
        """The thread that starts workers."""
        return self._engine.supervisor.thread

    @property
    def _task_handler(self) -> Thread:
        """The thread that gives workers tasks when they have answered; when tasks are submitted, whoever does that."""
        return self._engine.receiver.thread

    @property
    def _result_handler(self) -> Thread:
        """The thread that sets results."""
        return self._engine.receiver.thread

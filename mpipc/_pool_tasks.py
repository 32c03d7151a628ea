"""The units of work of a pool, on the parent's side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpipc._pool_channel import OwnReducers, pack, pack_whole

__all__ = ["APPLY", "CALL", "CHUNK", "ITEM", "STAR_CHUNK", "Feed", "Function", "Source", "Task"]

# Kinds of tasks: what the second parcel holds, and what the worker does with it.
CALL = 1  # (args, kwargs): function(*args, **kwargs)
APPLY = 2  # args: function(*args)
ITEM = 3  # x: function(x)
CHUNK = 4  # items: [function(x) for x in items]
STAR_CHUNK = 5  # items: [function(*x) for x in items]


class Function:
    """The function of a job: pickled once, and sent once to each worker (twice if it has given no answer before)."""

    __slots__ = ("_error", "_pickle", "call", "id", "lasting")

    def __init__(self, call: Callable[..., Any], id: int, *, lasting: bool = True) -> None:
        self.call = call
        self.id = id
        """Greater than 0, and of no other function."""
        self.lasting = lasting
        """Workers are to remember it: there is more than one task."""
        self._pickle: bytes | None = None
        self._error: Exception | None = None

    def pickled(self, own: OwnReducers | None) -> bytes:
        """Pickled. An error is raised again for each task, as multiprocessing does."""
        if self._error is not None:
            raise self._error
        if self._pickle is None:
            try:
                self._pickle = pack_whole(self.call, own)
            except Exception as error:
                self._error = error
                raise
        return self._pickle


class Feed:
    """How many tasks made from a user's iterator wait in the backlog; guarded by the engine's lock."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = 0


class Task:
    """What a worker gets in one message: a call, or a chunk of a map.

    It is in one place at a time: in the backlog, in the window of a worker, or in the hands of the one thread that
    moves it.
    """

    __slots__ = (
        "attempts",
        "feed",
        "first",
        "function",
        "index",
        "job",
        "kind",
        "payload",
        "retries",
        "timeout",
    )

    def __init__(
        self,
        job: Any,
        index: int,
        kind: int,
        function: Function,
        payload: Any,
        *,
        first: int = 0,
        retries: int = 0,
        timeout: float | None = None,
        feed: Feed | None = None,
    ) -> None:
        self.job = job
        self.index = index
        self.kind = kind
        self.function = function
        self.payload = payload
        self.first = first
        """Index of its first item in the user's iterable."""
        self.retries = retries
        """How many times it may still be run again when its worker dies."""
        self.timeout = timeout
        """Seconds that it may run; None for no limit."""
        self.feed = feed
        self.attempts = 0
        """How many workers it has been sent to that may have begun it."""

    def envelope(
        self, tag: int, number: int, known: dict[int, None], own: OwnReducers | None = None
    ) -> tuple[Any, ...]:
        """The message for a worker that has the functions `known`. Runs the user's code, to pickle."""
        function = self.function
        body, buffers = pack(self.payload, own)
        code = None if function.id in known else function.pickled(own)
        return self.kind, tag, number, code, function.id if function.lasting else 0, body, buffers

    @property
    def name(self) -> str:
        """Qualified name of the function."""
        return function_name(self.function.call)


class Source:
    """The chunks of a map over a sequence, made when a worker has room for one. Runs no code of the user."""

    __slots__ = ("_chunks", "_following")

    def __init__(self, chunks: Iterator[Task]) -> None:
        self._chunks = chunks
        self._following = next(chunks, None)

    def draw(self) -> Task | None:
        """The next chunk; None if there is none."""
        task = self._following
        if task is not None:
            self._following = next(self._chunks, None)
        return task

    @property
    def exhausted(self) -> bool:
        """Whether all chunks have been drawn."""
        return self._following is None


def chunks(items: Sequence[Any], size: int, make: Callable[[int, int, Any], Task]) -> Iterator[Task]:
    """make(index, first item, tuple of items) for each chunk of `size` items."""
    for index, first in enumerate(range(0, len(items), size)):
        yield make(index, first, tuple(items[first : first + size]))


def function_name(function: Any) -> str:
    """module.qualname of a function, of what a partial calls, of the class of a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    if name is None:
        function = type(function)
        name = function.__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module and module != "builtins" else str(name)

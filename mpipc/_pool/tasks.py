"""What tasks have in common, on the parent's side: functions, how fast they are, and where the arguments come from."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any

from mpipc._pool.channel import OwnReducers
from mpipc._pool.codec import pack_whole
from mpipc._stdlib.by_pickler import ByPickler

__all__ = ["SHALLOW", "Feed", "Function", "Pace", "function_name"]


class Function:
    """The function of a job: pickled once, and sent once to each worker (twice if it has given no answer before)."""

    __slots__ = ("_error", "_pickle", "call", "id", "lasting", "pace")

    def __init__(self, call: Callable[..., Any], id: int, *, lasting: bool = True) -> None:
        self.call = call
        self.id = id
        """Greater than 0, and of no other function."""
        self.lasting = lasting
        """Workers are to remember it: there is more than one task."""
        self.pace = pace_of(call)
        self._pickle: bytes | None = None
        self._error: Exception | None = None

    def pickled(self, own: OwnReducers | ByPickler | None) -> bytes:
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


class Pace:
    """How long the tasks of a function take, as far as is known; guarded by the lock of the pool's life."""

    __slots__ = ("depth", "seconds")

    def __init__(self) -> None:
        self.seconds = HORIZON
        """On average, the last ones counting most."""
        self.depth = SHALLOW
        """How many tasks a worker is given at a time."""

    def note(self, seconds: float, count: int) -> None:
        """So many tasks took so long."""
        weight = count / (count + 8.0)
        self.seconds += weight * (seconds / count - self.seconds)
        self.depth = min(max(int(HORIZON / max(self.seconds, 1e-9)), SHALLOW), DEEP)


SHALLOW = 2
"""Tasks that a worker has at least: one that runs, and one that waits so that the worker need not wait for it."""
DEEP = 64
"""Tasks that it has at most."""
HORIZON = 0.0004
"""Seconds of work that it is given, if that is more than SHALLOW tasks."""

_paces: dict[Any, Pace] = {}
_PACES = 64


def pace_of(call: Any) -> Pace:
    """The pace of a function: what was learned from its last tasks, if it is a plain function."""
    try:
        code = getattr(call, "__code__", None)
    except Exception:  # a __getattr__ that raises
        code = None
    if not isinstance(code, CodeType):
        return Pace()
    pace = _paces.get(code)
    if pace is None:
        if len(_paces) >= _PACES:
            _paces.clear()
        pace = _paces.setdefault(code, Pace())
    return pace


class Feed:
    """How many tasks made from a user's iterator wait in the backlog, and how many are on the way in all; guarded by
    the lock of the pool's life."""

    __slots__ = ("bell", "left", "low", "most", "read", "taken", "waiting")

    def __init__(self, most: int | None = None) -> None:
        self.bell = threading.Lock()
        """Released when the feeder, which waits for it, is to go on."""
        self.bell.acquire()
        self.waiting = 0
        self.low = 0
        """How many there are when the feeder goes on; twice as many when it stops."""
        self.most = most
        """How many may have been read whose results nobody has taken; None: any number."""
        self.read = 0
        self.taken = 0
        self.left = False
        """Nobody will take the others: no more is read."""


def function_name(function: Any) -> str:
    """module.qualname of a function, of what a partial calls, of the class of a callable object."""
    try:
        while isinstance(function, functools.partial):
            function = function.func
        name = getattr(function, "__qualname__", None)
        if name is None:
            function = type(function)
            name = function.__qualname__
        module = getattr(function, "__module__", None)
    except Exception:  # a __getattr__ that raises
        name, module = type(function).__qualname__, type(function).__module__
    return f"{module}.{name}" if module and module != "builtins" else str(name)

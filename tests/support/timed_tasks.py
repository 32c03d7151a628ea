"""What the workers of tests/pool/test_pool_report.py run: each tells for how long it was at it, by its own clock."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

Span = tuple[int, float, float]
"""pid, begin, end; time.monotonic()."""

SHORT = 0.003
"""Seconds, as much as anything takes here."""


def spin(seconds: float = SHORT) -> Span:
    """Be busy for at least so long."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        pass
    return os.getpid(), begin, time.monotonic()


def spin_with(seconds: float, *others: Any, **named: Any) -> Span:
    return spin(seconds)


def at_once(x: Any) -> Span:
    return spin(0.0)


def spin_and_fail(x: Any) -> None:
    spin()
    raise LookupError(x)


def begin_slowly(state: Any) -> None:
    state.span = spin()


def span_of_begin() -> Span:
    import mpipc

    found: Span = mpipc.worker_state().span
    return found


class SlowToUnpickle:
    def __reduce__(self) -> Any:
        return spin, ()  # it is a Span, when it is there


class SlowToPickle:
    def __reduce__(self) -> Any:
        return tuple, (spin(),)


def give_back(x: Any) -> Any:
    return x


def slow_to_pickle(x: Any) -> SlowToPickle:
    return SlowToPickle()


def say_when_and_wait(when: Any) -> None:
    """Until it is killed."""
    when.value = time.monotonic()
    while True:
        signal.pause()


def fork_and_spin(seconds: float) -> int:
    """The child returns from the task, too, later than the worker has."""
    child = os.fork()
    if child == 0:
        spin(seconds)
    return child


class Hostile:
    """No code of it is to run."""

    def __repr__(self) -> str:
        raise AssertionError("it was asked for its repr()")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"it was asked for {name}")

    def __hash__(self) -> int:
        return 1

    def __lt__(self, other: object) -> bool:
        raise AssertionError("it was compared")

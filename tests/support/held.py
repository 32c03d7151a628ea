"""Children that end when they are told to: gevent does not notice one that has ended before its fork() has returned in
the parent, and a join() of that one waits for ever, with multiprocessing as with mpipc."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def held(gate: Any, function: Callable[..., object], *args: Any) -> None:
    """Call the function, and stay until the gate, an Event, is open."""
    function(*args)
    gate.wait()

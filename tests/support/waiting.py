"""Waiting for what nothing announces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], *, timeout: float = 10.0, message: str = "") -> T:
    """Poll until `predicate()` is true and return its value; AssertionError after `timeout` seconds.

    For conditions that nothing announces. `timeout` is how long a hung test may take to fail, not an expectation of
    speed: be generous.
    """
    deadline = time.monotonic() + timeout
    pause = 0.0005
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            what = message or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"still not true after {timeout:g} s: {what} (last value {value!r})")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)

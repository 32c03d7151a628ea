"""Tests that run the standard library beside mpipc are skipped where that does not work."""

from __future__ import annotations

import _multiprocessing
import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compares: the test runs the standard library's multiprocessing beside mpipc")


def _why_multiprocessing_fails() -> str:
    """Empty where the standard library's locks work: they need a /dev/shm that can be written."""
    try:
        _multiprocessing.SemLock(1, 0, 1, f"/mpipc-test-{os.getpid()}", True)
    except OSError as e:
        return f"multiprocessing does not work here: {e}"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := _why_multiprocessing_fails():
        for item in items:
            if item.get_closest_marker("compares"):
                item.add_marker(pytest.mark.skip(reason=reason))

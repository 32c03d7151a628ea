"""Which tests of the standard library are run: found in the running interpreter, never copied from it."""

from __future__ import annotations

import importlib
import inspect
import re
import unittest
from collections.abc import Iterator
from dataclasses import dataclass

METHODS = ("fork", "spawn", "forkserver")

CASES = {method: f"cases_{method}" for method in METHODS}
"""Modules of this folder in which test._test_multiprocessing puts its classes for a start method."""

USES = r"multiprocessing|ProcessPool"

OTHER = {
    "test.test_multiprocessing_main_handling": None,
    "test.test_concurrent_futures": USES,  # one module up to Python 3.12
    "test.test_concurrent_futures.test_as_completed": USES,
    "test.test_concurrent_futures.test_deadlock": USES,
    "test.test_concurrent_futures.test_init": USES,
    "test.test_concurrent_futures.test_process_pool": USES,
    "test.test_concurrent_futures.test_shutdown": USES,
    "test.test_concurrent_futures.test_thread_pool": USES,
    "test.test_concurrent_futures.test_wait": USES,
    "test.test_asyncio.test_events": USES,
    "test.test_asyncio.test_unix_events": USES,
    "test.test_compileall": None,
    "test.test_fcntl": USES,
    "test.test_genericalias": None,
    "test.test_importlib.test_threaded_import": USES,
    "test.test_logging": USES,
    "test.test_pickle": USES,
    "test.test_re": USES,
}
"""Other tests that use multiprocessing, where they are installed: all of a module, or what is found by a pattern.

The pattern is looked for in the name of the class and the text of the test.
"""


@dataclass(frozen=True)
class Unit:
    """Tests that are run by one process: those of one class."""

    method: str
    """The start method, or "" where the class decides itself."""
    module: str
    class_name: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.module.removeprefix('test.')}.{self.class_name}" if not self.method else self.class_name


def discover(methods: tuple[str, ...], others: bool) -> tuple[list[Unit], list[str]]:
    """All units, and which of the other tests are not installed. ImportError without the test package."""
    units: list[Unit] = []
    for method in methods:
        units += _units(CASES[method], method, None)
    found: dict[str, bool] = {}
    for module, pattern in OTHER.items() if others else ():
        name = ".".join(module.split(".")[:2])  # of which some are a module in one version, a package in the next
        found.setdefault(name, False)
        try:
            units += _units(module, "", pattern)
        except (ImportError, unittest.SkipTest):
            continue
        found[name] = True
    return units, [name for name in found if not found[name]]


def _units(module_name: str, method: str, pattern: str | None) -> Iterator[Unit]:
    module = importlib.import_module(module_name)
    for class_name, value in sorted(vars(module).items()):
        if not (isinstance(value, type) and issubclass(value, unittest.TestCase)) or value.__module__ != module_name:
            continue
        tests = unittest.defaultTestLoader.getTestCaseNames(value)
        if pattern is not None and not re.search(pattern, class_name):
            tests = [name for name in tests if re.search(pattern, _source(value, name))]
        if tests:
            yield Unit(method, module_name, class_name, tuple(tests))


def _source(cls: type, name: str) -> str:
    try:
        return inspect.getsource(inspect.unwrap(getattr(cls, name)))
    except (OSError, TypeError):
        return ""

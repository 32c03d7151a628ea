"""Runs tests of one class and writes what becomes of each, line by line. An ordinary program, run on either package.

Usage: worker.py RESULTS MODULE CLASS TEST ...
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import sys
import time
import unittest
import warnings
from typing import Any

STARTUP = "MPIPC_COMPAT_STARTUP"
"""Environment variable that makes the Pythons which tests start begin with mpipc; see startup.py."""


class Results(unittest.TestResult):
    """One line of JSON when a test starts, one when it has ended."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = open(path, "a", buffering=1)  # noqa: SIM115  (until the process ends)
        self._outcome: dict[str, Any] = {}
        self._began = 0.0

    def write(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome = {"outcome": "passed"}
        self._began = time.monotonic()
        self.write(test=test._testMethodName, outcome="started")

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.write(test=test._testMethodName, seconds=round(time.monotonic() - self._began, 3), **self._outcome)
        if self._outcome["outcome"] == "failed":
            # What its frames held is not to go, with a ResourceWarning, in the midst of a test that counts warnings.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gc.collect()

    def _set(self, test: Any, outcome: str, detail: str) -> None:
        if isinstance(test, unittest.TestCase):
            if outcome == "skipped" or self._outcome.get("outcome") != "failed":
                self._outcome = {"outcome": outcome, "detail": detail}
            else:
                self._outcome["detail"] += "\n" + detail
        else:  # setUpModule, setUpClass and their counterparts
            self.write(fixture=str(test), outcome=outcome, detail=detail)

    def addError(self, test: Any, err: Any) -> None:
        self._set(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addFailure = addError

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._set(test, "failed", f"{subtest}\n{self._exc_info_to_string(err, test)}")  # type: ignore[attr-defined]

    def addSkip(self, test: Any, reason: str) -> None:
        self._set(test, "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._set(test, "passed", "failed as expected")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._set(test, "failed", "unexpected success")


def main() -> None:
    results_path, module_name, class_name, *tests = sys.argv[1:]
    faulthandler.enable()
    package: Any = importlib.import_module("multiprocessing")
    on_mpipc = package.Lock.__self__.__class__.__module__.startswith("mpipc")
    if on_mpipc:
        os.environ[STARTUP] = "1"
    support: Any = importlib.import_module("test.support")
    support.verbose = False
    module = importlib.import_module(module_name)
    results = Results(results_path)
    results.write(package="mpipc" if on_mpipc else "multiprocessing")
    case: type[unittest.TestCase] = getattr(module, class_name)
    unittest.TestSuite([case(name) for name in tests]).run(results)
    results.write(finished=True, altered=bool(support.environment_altered))


if __name__ == "__main__":
    main()

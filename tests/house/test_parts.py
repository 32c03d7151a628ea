"""`make test` has something of everything, and `make test-slow` has the rest: see plugins/slow.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from support import START_METHODS, TESTS, package_folder

TELL = """
import json, os
from plugins.slow import names

def pytest_collection_finish(session):
    told = []
    for item in session.items:
        marks = [mark for mark in item.iter_markers() if mark.name.startswith("slow")]
        ids = [id for mark in marks for id in mark.args]
        id = item.callspec.id if hasattr(item, "callspec") else ""
        slow = any(mark.name == "slow" for mark in marks)
        told.append([str(item.path), id, slow, ids, [id for id in ids if names(item, (id,))]])
    with open(os.environ["MPIPC_TOLD"], "w") as file:
        json.dump(told, file)
"""


class Test(NamedTuple):
    __test__ = False

    path: str
    id: str
    slow: bool
    ids: list[str]
    """That its marks speak of."""
    named: list[str]
    """Those of them that this test has."""

    @property
    def room(self) -> str:
        return Path(self.path).relative_to(TESTS).parts[0]


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> list[Test]:
    """All of them, as pytest collects them."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "tell.py").write_text(TELL)
    package = package_folder()
    assert package is not None
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "tell", TESTS],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        | {"PYTHONPATH": f"{folder}:{package.parent}", "MPIPC_TOLD": str(folder / "told")},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return [Test(*each) for each in json.loads((folder / "told").read_text())]


def test_each_file_has_a_quick_test(tests: list[Test]) -> None:
    assert {test.path for test in tests} == set(map(str, TESTS.rglob("test_*.py")))
    assert {test.path for test in tests} == {test.path for test in tests if not test.slow}


def test_each_start_method_is_in_the_quick_part_of_each_room(tests: list[Test]) -> None:
    def methods(among: list[Test]) -> set[tuple[str, str]]:
        return {(test.room, method) for test in among for method in START_METHODS if method in test.id.split("-")}

    assert methods(tests) == methods([test for test in tests if not test.slow])


def test_marks_speak_of_what_there_is(tests: list[Test]) -> None:
    """In the file: a mark may be of all its tests."""
    ids, named = defaultdict(set), defaultdict(set)
    for test in tests:
        ids[test.path].update(test.ids)
        named[test.path].update(test.named)
    assert ids == named

"""What the documents name is there: tests, and modules of mpipc."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documents are not here")

ELSEWHERE = """
    test_concurrent_futures test_multiprocessing_main_handling test_pool_deadlock test_pool_deadlock_stop
    test_resource_tracker_sigkill test_shared_memory_cleaned_after_process_termination test_shared_memory_tracking
    test_all_maps
    """
"""Tests of CPython's and of other packages."""


def test_the_tests_that_documents_name_are_there() -> None:
    here = set(ELSEWHERE.split())
    for path in (ROOT / "tests").rglob("*.py"):
        functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
        here |= {path.stem, *(function.name for function in functions)}
    named = {
        f"{path.name}: {name}"
        for path in DOCUMENTS
        for name in re.findall(r"\b(test_\w*[a-z0-9])\b(?!_)", path.read_text())
    }
    assert len(named) > 200, "they are found at all"
    assert sorted(each for each in named if each.partition(": ")[2] not in here) == []


def test_the_modules_of_the_pool_stand_in_the_drawing() -> None:
    drawing = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.stem for suffix in ("py", "pyx") for path in (ROOT / "mpipc" / "_pool").glob(f"*.{suffix}")}
    assert sorted(name for name in modules - {"__init__"} if not re.search(rf"^ .*\b{name}\b", drawing, re.M)) == []

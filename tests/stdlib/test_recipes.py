"""Recipes: what programs do with multiprocessing that goes beyond its documentation, and that many have copied.

Each program of recipes/ runs on multiprocessing, on mpipc by other import statements, and unmodified by `python -m
mpipc run`. The output is the same.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import run_script

RECIPES = sorted((Path(__file__).parent / "recipes").glob("*.py"))
STARTS_PROGRAMS = ("tracker_monkeypatch", "tracker_unregister")
"""By subprocess: those are not run by mpipc."""

pytestmark = pytest.mark.compares


def on_mpipc(source: str) -> str:
    """The program with other import statements."""
    source = re.sub(r"^import multiprocessing$", "import mpipc as multiprocessing", source, flags=re.MULTILINE)
    return re.sub(r"^(from|import) multiprocessing\b", r"\1 mpipc", source, flags=re.MULTILINE)


def output_of(source: str, method: str, *options: str) -> str:
    # Unbuffered: a forked worker that ends normally flushes what its parent had not.
    result = run_script(source, arguments=[method], options=("-u", *options))
    assert result.stderr == ""
    return result.stdout


def test_imports_are_rewritten() -> None:
    before = "import multiprocessing\nimport multiprocessing.pool as mpp\nfrom multiprocessing.queues import Queue\n"
    after = "import mpipc as multiprocessing\nimport mpipc.pool as mpp\nfrom mpipc.queues import Queue\n"
    assert on_mpipc(before) == after
    assert len(RECIPES) >= 15


@pytest.mark.slow_with("spawn", "forkserver")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path: Path, start_method: str) -> None:
    source = path.read_text()
    expected = output_of(source, start_method)
    if expected.startswith("skipped"):
        pytest.skip(expected.strip())
    assert expected
    assert output_of(on_mpipc(source), start_method) == expected
    if path.stem not in STARTS_PROGRAMS:
        assert output_of(source, start_method, "-m", "mpipc", "run") == expected

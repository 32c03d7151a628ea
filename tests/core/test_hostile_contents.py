"""Shared memory in which a process of the same user has run wild: nobody crashes, and nobody loops for ever.

The family's own memory here, by native/fuzz_family.c.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from support.native_programs import CORE, NATIVE, compile_with_core

pytestmark = pytest.mark.skipif(not CORE.is_dir(), reason="the C sources are not here")


@pytest.fixture(scope="module")
def fuzz_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_with_core(
        NATIVE / "fuzz_family.c", tmp_path_factory.mktemp("native") / "fuzz_family", "-DMP_TICK_NS=10000000ll"
    )


@pytest.mark.slow_but("new")
@pytest.mark.parametrize(("first", "families"), [(0, 3000), (random.randrange(1 << 60), 1000)], ids=["known", "new"])
def test_wild_contents_of_a_family(fuzz_family: Path, first: int, families: int) -> None:
    result = subprocess.run([fuzz_family, str(first), str(families)], capture_output=True, text=True, timeout=100)
    print(result.stdout, result.stderr)
    if result.returncode == 77:
        pytest.skip("not permitted to make namespaces")
    assert result.returncode == 0, result.stderr

"""The programs in README.md run, and print what a reader would expect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import run_script

README = Path(__file__).resolve().parents[2] / "README.md"

EXPECTED = ["[(0, 0), (1, 1), (2, 4), (3, 9)]\n6\n", "(1, b'hello')\n"]

PROGRAMS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_program(number: int) -> None:
    assert len(PROGRAMS) == len(EXPECTED)
    result = run_script(PROGRAMS[number])
    assert (result.stdout, result.stderr) == (EXPECTED[number], "")

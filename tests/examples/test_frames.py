"""examples/frames.py: a pipeline of processes for large frames, whose stages are killed while it runs."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from test_wordfreq import backends, environment

numpy = pytest.importorskip("numpy")

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "frames.py"
FRAMES = 12


def frames(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment())


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """What the stages make of the frames, without a process."""
    lines = []
    for number in range(FRAMES):
        rows = numpy.arange(2160, dtype="uint8")[:, None] * numpy.uint8(number % 7 + 1)
        frame = rows + (numpy.arange(3840, dtype="uint8")[None, :] + numpy.uint8(number))
        frame = 255 - frame
        frame[1:] ^= frame[:-1].copy() >> 1
        lines.append(f"{number:06} {zlib.crc32(frame):08x}")
    return lines


@backends
def test_the_measurements_are_right(backend: str, start_method: str, expected: list[str]) -> None:
    result = frames("--backend", backend, "--start-method", start_method, "--frames", FRAMES, "--list")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == expected
    assert re.search(rf"{backend}, {start_method}, 3 stages: [\d.]+ s, \d+ frames/s", result.stderr)


def test_stages_killed(start_method: str, expected: list[str]) -> None:
    """All frames come, and are right, whoever had them."""
    result = frames("--start-method", start_method, "--frames", FRAMES, "--kill-worker", 3, "--list")
    assert (result.returncode, result.stdout.splitlines()) == (0, expected), result.stderr
    assert re.search(r"[1-3] stages killed, \d+ frames sent again, 0 missing", result.stderr), result.stderr


def test_the_summary() -> None:
    result = frames("--frames", 3)
    assert re.fullmatch("3 frames, sha256 of all: [0-9a-f]{64}\n", result.stdout)


def test_what_is_asked_for_is_checked() -> None:
    result = frames("--backend", "multiprocessing", "--kill-worker", 1)
    assert (result.returncode, result.stdout) == (2, "")
    assert "--kill-worker needs --backend mpipc" in result.stderr
    assert "0 is not positive" in frames("--frames", 0).stderr

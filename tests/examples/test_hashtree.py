"""examples/hashtree.py: a program as people write them, whose workers are killed while it runs."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_wordfreq import BACKENDS, backends, environment, on_a_terminal

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "hashtree.py"
FILES = 400


def hashtree(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), "--processes", "2", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for number in range(FILES):
        folder = root / f"folder{number % 4}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.bin").write_bytes(str(number).encode() * 100_000)
    (root / "empty").write_bytes(b"")
    (root / "dangling").symlink_to(root / "nowhere")
    return root


def expected_list(tree: Path) -> list[str]:
    files = sorted(str(path) for path in tree.rglob("*") if path.is_file())
    return [f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()}  {path}" for path in files]


@backends
def test_the_digests_are_those_of_sha256sum(backend: str, start_method: str, tree: Path) -> None:
    result = hashtree("--backend", backend, "--start-method", start_method, "--list", tree)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == expected_list(tree)
    assert f"{backend}, {start_method}, 2 processes: " in result.stderr


@pytest.mark.compares
def test_the_summary_is_the_same_on_both(tree: Path) -> None:
    ours, theirs = (hashtree("--backend", backend, tree) for backend in BACKENDS)
    assert ours.stdout == theirs.stdout
    lines = ours.stdout.splitlines()
    sizes = {f"folder{n}/": sum(p.stat().st_size for p in (tree / f"folder{n}").iterdir()) for n in range(4)}
    assert [line.split()[2] for line in lines[1:5]] == sorted(sizes, key=lambda name: -sizes[name])
    assert lines[-2].split() == [f"{sum(p.stat().st_size for p in tree.rglob('*.bin')):,}", f"{FILES + 1}", "in", "all"]
    assert re.fullmatch("sha256 of all: [0-9a-f]{64}", lines[-1])


def test_workers_killed_without_retries(start_method: str, tree: Path) -> None:
    """What is missing is what the dead workers had in hand; it is named, and all the rest is right."""
    result = hashtree("--start-method", start_method, "--kill-worker", 3, "--list", tree)
    everything = expected_list(tree)
    lines = result.stdout.splitlines()
    assert set(lines) <= set(everything)
    missing = {line.split("  ", 1)[1] for line in set(everything) - set(lines)}
    reported = set(re.findall(r"hashtree: (.*): worker \d+ was killed by SIGKILL while it was running", result.stderr))
    assert reported == missing
    killed = re.search(rf"(\d) workers killed, (\d) of {FILES + 1} files missing", result.stderr)
    assert killed is not None, result.stderr
    assert int(killed[1]) >= 1
    assert int(killed[2]) == len(missing) <= int(killed[1])
    assert result.returncode == (1 if missing else 0)


def test_workers_killed_with_retries(start_method: str, tree: Path) -> None:
    result = hashtree("--start-method", start_method, "--kill-worker", 3, "--retries", 3, "--list", tree)
    assert (result.returncode, result.stdout.splitlines()) == (0, expected_list(tree)), result.stderr
    assert re.search("[1-3] workers killed, 0 of 401 files missing", result.stderr), result.stderr


def test_a_file_that_never_ends_is_given_up(tmp_path: Path, tree: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # whoever opens it waits for a writer that never comes
    result = hashtree("--timeout", 0.5, "--list", pipe, tree / "folder1", tree / "empty")
    assert result.returncode == 1
    assert f"hashtree: {pipe}: __main__.hash_file did not end within 0.5 s on item" in result.stderr
    assert set(result.stdout.splitlines()) == {
        line for line in expected_list(tree) if "folder1" in line or "empty" in line
    }


@pytest.mark.parametrize("kill", [False, True])
def test_progress_goes_to_the_terminal(tree: Path, kill: bool) -> None:
    pytest.importorskip("tqdm")
    more = ["--kill-worker", "1"] if kill else []
    output, shown = on_a_terminal([sys.executable, str(PROGRAM), *more, str(tree)], environment())
    assert "sha256 of all" in output
    assert f"0/{FILES + 1}" in shown
    assert f"{FILES + 1}/{FILES + 1}" in shown


def test_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    result = hashtree("--backend", "multiprocessing", "--kill-worker", 1, tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "need --backend mpipc" in result.stderr
    assert "no such file or directory" in hashtree(tmp_path / "nothing").stderr
    assert "no files in" in hashtree(tmp_path).stderr

"""The main job: the same program, the same output, whatever runs below it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from support import child_processes, package_folder, wait_until

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "wordfreq.py"

BACKENDS = ("multiprocessing", "mpipc")

backends = pytest.mark.parametrize("backend", [pytest.param("multiprocessing", marks=pytest.mark.compares), "mpipc"])


def environment(**more: str) -> dict[str, str]:
    package = package_folder()
    return {**os.environ, "PYTHONPATH": str(package.parent) if package else "", **more}


def wordfreq(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env or environment())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A few files with everything that the counter has to cope with."""
    root = tmp_path / "tree"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.py").write_text("alpha = beta + beta  # gamma\nclass Alpha: beta = 0xFF\n")
    (root / "deep" / "b.py").write_text(
        "alpha('beta', \"it's beta\", r'\\d beta', f'{beta}')\n"
        "'''beta\n\\''' beta ''' ; epsilon = '''''' ; \"\"\"beta \"\" beta\"\"\"\n"
        "def zeta(): return rb'beta' and bytes\n"
    )
    (root / "deep" / "latin.py").write_bytes("# coding: latin-1\nétude = alpha\n".encode("latin-1"))
    (root / "deep" / "er" / "empty.py").write_text("")
    (root / "deep" / "er" / "notes.txt").write_text("alpha alpha alpha")
    (root / "deep" / "er" / "no_utf8.py").write_bytes(b"alpha = 1\n" * 100 + b"beta = '\xff'\n")
    (root / "deep" / "er" / "bad_coding.py").write_bytes(b"# coding: klingon\nalpha = 1\n")
    (root / "gone.py").symlink_to(root / "nowhere")
    return root


def expected(tree: Path) -> str:
    size = sum((tree / name).stat().st_size for name in ("a.py", "deep/b.py", "deep/latin.py"))
    return (
        "          3  alpha\n"
        "          3  beta\n"
        "          1  Alpha\n"
        "          1  bytes\n"
        "          1  epsilon\n"
        "          1  zeta\n"
        "          1  étude\n"
        "         11  identifiers, 7 different ones\n"
        f"          4  files, {size} bytes\n"
        "          3  files skipped\n"
        f"             {tree}/deep/er/bad_coding.py: not decodable\n"
        f"             {tree}/deep/er/no_utf8.py: not utf-8\n"
        f"             {tree}/gone.py: No such file or directory\n"
    )


@backends
def test_counts_names_and_reports_what_it_cannot_read(backend: str, start_method: str, tree: Path) -> None:
    result = wordfreq("--backend", backend, "--start-method", start_method, "--processes", 2, tree)
    assert result.stdout == expected(tree)
    assert result.returncode == 0
    # Not a terminal: nothing but the time taken.
    assert result.stderr.startswith(f"{backend}, {start_method}, 2 processes: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.compares
def test_output_is_the_same_for_both_backends_and_any_number_of_processes() -> None:
    tree = Path(os.__file__).parent
    paths = [tree / name for name in ("json", "asyncio", "multiprocessing", "email", "collections")]
    outputs = {wordfreq("--backend", backend, "--processes", n, *paths).stdout for backend in BACKENDS for n in (1, 3)}
    assert len(outputs) == 1
    assert "  self\n" in outputs.pop()


@backends
def test_a_missing_path_is_one_line_and_status_2(backend: str, tmp_path: Path) -> None:
    result = wordfreq("--backend", backend, tmp_path, tmp_path / "missing")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"wordfreq: no such file or directory: {tmp_path / 'missing'}\n"


def test_a_tree_without_python_is_one_line_and_status_2(tmp_path: Path) -> None:
    result = wordfreq(tmp_path)
    assert (result.returncode, result.stderr) == (2, f"wordfreq: no Python files in {tmp_path}\n")


def on_a_terminal(command: list[str], env: dict[str, str]) -> tuple[str, str]:
    """Standard output, and what a terminal as standard error shows."""
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))
    try:
        with subprocess.Popen(command, stdin=side, stdout=subprocess.PIPE, stderr=side, env=env) as process:
            os.close(side)
            side = -1
            shown = b""
            while True:
                try:
                    data = os.read(terminal, 65536)
                except OSError:  # EIO: the last process that had the terminal open has ended
                    break
                shown += data
            assert process.stdout is not None
            output = process.stdout.read().decode()
    finally:
        os.close(terminal)
        if side != -1:
            os.close(side)
    return output, shown.decode()


@backends
@pytest.mark.parametrize("with_tqdm", [True, False])
def test_progress_goes_to_the_terminal_only(backend: str, with_tqdm: bool, tree: Path, tmp_path: Path) -> None:
    if with_tqdm:
        pytest.importorskip("tqdm")
        env = environment()
    else:
        (tmp_path / "hidden").mkdir()
        (tmp_path / "hidden" / "tqdm.py").write_text("raise ImportError('not here')")
        env = environment()
        env["PYTHONPATH"] = f"{tmp_path / 'hidden'}:{env['PYTHONPATH']}"
    command = [sys.executable, str(PROGRAM), "--backend", backend, "--processes", "2", str(tree)]
    output, shown = on_a_terminal(command, env)
    assert output == expected(tree)
    assert ("0/7" if with_tqdm else "7/7 files") in shown
    assert "2 processes: " in shown


@backends
def test_ctrl_c_ends_it_without_a_traceback(backend: str, tmp_path: Path) -> None:
    pipe = tmp_path / "endless.py"
    os.mkfifo(pipe)  # a worker that opens it waits for a writer that never comes
    (tmp_path / "other.py").write_text("pass")
    command = [sys.executable, str(PROGRAM), "--backend", backend, "--start-method", "fork", "--processes", "2"]
    with subprocess.Popen(
        [*command, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:

        def a_worker_is_in_open() -> bool:
            workers = child_processes(process.pid)
            return any(Path(f"/proc/{worker.pid}/wchan").read_text() == "wait_for_partner" for worker in workers)

        wait_until(a_worker_is_in_open)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: to every process of the group
        output, errors = process.communicate()
    assert (process.returncode, output) == (130, "")
    assert errors == "\nwordfreq: interrupted\n"

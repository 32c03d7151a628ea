"""A program that PyInstaller has frozen, with the hook that mpipc brings along: each child becomes a child, and nothing
multiplies."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import NOBODY, can_become
from support.privileges import become

import mpipc

PROGRAM = """
import sys
if sys.argv[2] == "install":
    import mpipc
    mpipc.install()
import multiprocessing
import mpipc
from mpipc import shared_memory
package = mpipc if sys.argv[2] == "mpipc" else multiprocessing
def tell(queue, lock):
    with lock:
        queue.put("child")
def square(number):
    return number * number
if __name__ == "__main__":
    package.freeze_support()
    package.set_start_method(sys.argv[1])
    queue, lock = package.Queue(), package.Lock()
    process = package.Process(target=tell, args=(queue, lock))
    process.start()
    print(queue.get(timeout=30))
    process.join()
    with package.Pool(2) as pool:
        print(pool.map(square, [1, 2]))
    with package.Manager() as manager:
        print(manager.dict(a=1)["a"])
    memory = shared_memory.SharedMemory(create=True, size=10)
    memory.close()
    memory.unlink()
    print(type(queue).__module__.partition(".")[0])
"""


def installed_here() -> bool:
    """Whether PyInstaller finds the hook: mpipc is installed, by itself or beside the tree."""
    try:
        points = importlib.metadata.distribution("mpipc").entry_points
    except importlib.metadata.PackageNotFoundError:
        return False
    return bool(points.select(group="pyinstaller40"))


@pytest.fixture(scope="module", params=["--onedir", "--onefile"])
def frozen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("PyInstaller")
    if not installed_here():
        pytest.skip("mpipc is not installed, so its hook is not found")
    folder = tmp_path_factory.mktemp("frozen")
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "PyInstaller", "-y", "--log-level", "ERROR", request.param, "program.py"]
    environment = {**os.environ, "PYINSTALLER_CONFIG_DIR": str(folder / "config")}
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert built.returncode == 0, built.stderr
    for path in (folder, *folder.parents):
        if path.owner() == folder.owner() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    program = folder / "dist" / "program"
    return program / "program" if program.is_dir() else program


def as_one_that_cannot_multiply() -> None:
    """RLIMIT_NPROC is not for root."""
    if can_become(NOBODY):
        become(NOBODY)
    resource.setrlimit(resource.RLIMIT_NPROC, (300, 300))


@pytest.fixture
def run(frozen: Path, tmp_path: Path) -> Callable[..., Any]:
    tmp_path.chmod(0o777)

    def run(*arguments: str) -> Any:
        return subprocess.run(
            [frozen, *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            cwd="/",
            env={**os.environ, "HOME": str(tmp_path), "TMPDIR": "/tmp"},
            preexec_fn=as_one_that_cannot_multiply,
            start_new_session=True,
        )

    return run


@pytest.mark.slow  # building takes its time
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["mpipc", "install", "multiprocessing"])
def test_a_frozen_program(run: Callable[..., Any], start_method: str, how: str) -> None:
    result = run(start_method, how)
    package = "multiprocessing" if how == "multiprocessing" else "mpipc"
    assert result.stdout.split("\n") == ["child", "[1, 4]", "1", package, ""], result.stderr
    assert (result.returncode, result.stderr) == (0, "")


def test_freeze_support_is_that_of_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    called = []
    monkeypatch.setattr(multiprocessing, "freeze_support", lambda: called.append("the tool's"))
    mpipc.freeze_support()
    mpipc.get_context("spawn").freeze_support()
    assert called == ["the tool's"] * 2
    mpipc.install()
    try:
        multiprocessing.freeze_support()
        mpipc.freeze_support()
    finally:
        mpipc.uninstall()
    assert called == ["the tool's"] * 4


def test_freeze_support_does_nothing_where_nothing_is_frozen() -> None:
    mpipc.freeze_support()
    mpipc.install()
    try:
        import multiprocessing

        multiprocessing.freeze_support()
    finally:
        mpipc.uninstall()

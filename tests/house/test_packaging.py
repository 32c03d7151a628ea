"""What is distributed, what is installed, and what is built again: from a copy of the sources, by the real tools."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PRODUCTS = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "*.so", "mpipc-reaper", "__pycache__", ".*_cache", ".hypothesis"
)

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("Cython") is None or importlib.util.find_spec("setuptools") is None,
        reason="needs the build requirements, which `make test` installs",
    ),
]


def run(*command: object, cwd: Path) -> str:
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def pip(*arguments: object, cwd: Path) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, made from a copy of the tree: building writes into the tree."""
    copy = tmp_path_factory.mktemp("copy") / "tree"
    shutil.copytree(ROOT, copy, ignore=PRODUCTS)
    run(sys.executable, "-c", "from setuptools.build_meta import build_sdist as b; b('dist')", cwd=copy)
    (archive,) = (copy / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that the source distribution unpacks to."""
    folder = tmp_path_factory.mktemp("unpacked")
    run("tar", "-xzf", sdist, cwd=folder)
    (tree,) = folder.iterdir()
    return tree


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    """A wheel built from the source distribution, as pip does it for a platform without wheels."""
    pip("wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", "dist", ".", cwd=unpacked)
    (path,) = (unpacked / "dist").glob("*.whl")
    return path


def sources(*suffixes: str) -> set[str]:
    """Source files of the package, below mpipc/; C only where it was written by hand."""
    return {
        str(path.relative_to(ROOT))
        for suffix in suffixes
        for path in (ROOT / "mpipc").rglob(f"*{suffix}")
        if suffix not in (".c", ".h") or path.parent.name == "src"
    }


def test_sdist_has_all_sources_and_no_products(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= sources(".py", ".pyx", ".pxd", ".pyi", ".c", ".h", "py.typed")
    assert names >= {
        "LICENSE",
        "README.md",
        "Makefile",
        "pyproject.toml",
        "setup.py",
        ".ci/run",
        "examples/wordfreq.py",
    }
    assert names >= {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    in_package = {name for name in names if name.startswith("mpipc/")}
    assert {name for name in in_package if name.endswith(".c")} == sources(".c"), "C that Cython made is not a source"
    assert not [name for name in in_package if name.endswith((".so", "mpipc-reaper", ".pyc"))]


@pytest.mark.slow
def test_wheel_has_what_runs_and_what_describes_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert names >= sources(".py", ".pxd", ".pyi", "py.typed")
    extensions = {name.partition(".")[0] for name in names if name.endswith(".so")}
    assert extensions == {name.removesuffix(".pyx") for name in sources(".pyx")}
    assert modes["mpipc/_core/mpipc-reaper"] & stat.S_IXUSR
    assert not [name for name in names if name.endswith((".c", ".h", ".pyx"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"mpipc"}, "nothing but the package"


@pytest.mark.slow
def test_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip("install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    assert os.access(target / "mpipc/_core/mpipc-reaper", os.X_OK)
    program = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import mpipc\n"
        f"assert mpipc.__file__.startswith({str(target)!r})\n"
        "with mpipc.Lock(): print('locked')\n"
    )
    assert run(sys.executable, "-I", "-c", program, cwd=tmp_path) == "locked\n"


def built(tree: Path) -> dict[str, int]:
    """The products in the tree and when each was written."""
    return {
        str(path.relative_to(tree)): path.stat().st_mtime_ns
        for pattern in ("*.so", "mpipc-reaper")
        for path in (tree / "mpipc").rglob(pattern)
    }


@pytest.mark.slow
def test_inplace_build_rebuilds_what_changed(wheel: Path, unpacked: Path) -> None:
    def build() -> dict[str, int]:
        run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=unpacked)
        return built(unpacked)

    first = build()
    assert len(first) == len(sources(".pyx")) + 1
    reaper = unpacked / "mpipc/_core/mpipc-reaper"
    assert os.access(reaper, os.X_OK)
    assert build().get("mpipc/_core/mpipc-reaper") == first["mpipc/_core/mpipc-reaper"], "nothing changed"

    with (unpacked / "mpipc/_core/src/reaper.c").open("a") as source:
        source.write('const char mpipc_test_marker[] = "built again by the test";\n')
    second = build()
    assert b"built again by the test" in reaper.read_bytes()
    assert second["mpipc/_core/mpipc-reaper"] > first["mpipc/_core/mpipc-reaper"]


@pytest.mark.slow
def test_editable_install_works(unpacked: Path, wheel: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(unpacked, tree, ignore=PRODUCTS)
    target = tmp_path / "site"
    pip(
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        target,
        "--editable",
        ".",
        cwd=tree,
    )
    assert set(built(tree)) == {
        *(name.removesuffix(".pyx") + importlib.machinery.EXTENSION_SUFFIXES[0] for name in sources(".pyx")),
        "mpipc/_core/mpipc-reaper",
    }
    assert os.access(tree / "mpipc/_core/mpipc-reaper", os.X_OK)
    program = f"import site; site.addsitedir({str(target)!r}); import mpipc; mpipc.Lock(); print(mpipc.__file__)"
    # -S: an mpipc installed beside this Python would come first.
    assert run(sys.executable, "-I", "-S", "-c", program, cwd=tmp_path) == f"{tree}/mpipc/__init__.py\n"


def test_another_platform_is_refused_in_one_sentence(tmp_path: Path) -> None:
    program = "import sys; sys.platform = 'darwin'; sys.argv = ['setup.py', '--version']; exec(open('setup.py').read())"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "mpipc needs Linux: it is built on System V IPC with SEM_UNDO as Linux implements them.\n"


# --- what `make` says when something is missing -----------------------------------------------------------------------


def preflight(python: str, **env: str) -> str:
    """The complaint of .ci/preflight; empty if there is none."""
    result = subprocess.run(
        [ROOT / ".ci/preflight", python], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env}
    )
    assert bool(result.stderr) == (result.returncode != 0)
    assert result.stderr.count("\n") <= 1, "one sentence"
    return result.stderr


def fake_python(folder: Path, *rules: str) -> str:
    """A Python that behaves as the one at hand, except that a program containing a word gets another answer."""
    path = folder / "python"
    cases = "\n".join(rules)
    path.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_preflight_is_silent_when_nothing_is_missing() -> None:
    assert preflight(sys.executable) == ""


def test_preflight_names_what_is_missing(tmp_path: Path) -> None:
    assert "no-such-python was not found: install Python 3.11 or later" in preflight("no-such-python")
    assert "does not run" in preflight("/bin/false")
    old = fake_python(tmp_path, '*"%d.%d"*) echo 3.9; exit;;', "*version_info*) exit 1;;")
    assert "is Python 3.9, and 3.11 or later is needed" in preflight(old)
    no_venv = fake_python(tmp_path, "*ensurepip*) exit 1;;")
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in preflight(no_venv)
    assert "the C compiler no-such-cc was not found: install one" in preflight(sys.executable, CC="no-such-cc -O2")
    (tmp_path / "include").mkdir()
    no_headers = fake_python(tmp_path, f"*get_path*) echo {tmp_path}/include; exit;;")
    assert f"the headers of Python {sys.version_info[0]}.{sys.version_info[1]} are not in" in preflight(no_headers)
    assert "cannot build a program" in preflight(sys.executable, CC="false")

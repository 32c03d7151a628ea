"""The face of the package: the names and signatures of the interpreter's multiprocessing, and a cheap import."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import multiprocessing
import multiprocessing.dummy
import multiprocessing.managers
import multiprocessing.popen_fork
import pickle
import pkgutil
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support import run_script

import mpipc

PACKAGE = Path(mpipc.__file__).resolve().parent
SOURCE_TREE = Path(__file__).resolve().parents[2]
METHODS = ["fork", "spawn", "forkserver"]

SUBMODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(multiprocessing.__path__, "multiprocessing.")
    if not module.name.endswith("_win32")
)
SAME_MODULE = [
    "connection",
    "process",
    "reduction",
    "resource_sharer",
    "forkserver",
    "spawn",
    "util",
    "popen_fork",
    "dummy.connection",
]


def parameters(function: Any) -> list[tuple[str, Any, Any]] | None:
    """Names, kinds and defaults; None for a builtin that does not tell."""
    with contextlib.suppress(ValueError):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
    return None


def accepts(function: Any, like: Any) -> bool:
    """Whether it has the parameters of the other, in the same places, and beyond them only optional keywords."""
    actual, expected = parameters(function), parameters(like)
    if actual is None or expected is None:
        return actual is expected
    more = actual[len(expected) :]
    return actual[: len(expected)] == expected and all(
        kind is inspect.Parameter.KEYWORD_ONLY and default is not inspect.Parameter.empty for _, kind, default in more
    )


def ours(name: str) -> str:
    return name.replace("multiprocessing", "mpipc", 1)


# --- names and signatures ---------------------------------------------------------------------------------------------


def test_all_is_that_of_multiprocessing() -> None:
    assert set(mpipc.__all__) == set(multiprocessing.__all__)
    namespace: dict[str, Any] = {}
    exec("from mpipc import *", namespace)
    assert set(multiprocessing.__all__) <= namespace.keys()


def test_dir() -> None:
    """Freshly imported; later, submodules appear in both as they are imported."""
    script = "import {0}; print(*(name for name in dir({0}) if not name.startswith('_')))"
    expected, actual = (set(run_script(script.format(name)).stdout.split()) for name in ("multiprocessing", "mpipc"))
    assert expected - {"sys"} <= actual


@pytest.mark.parametrize("name", multiprocessing.__all__)
def test_signature_at_module_level(name: str) -> None:
    expected, actual = getattr(multiprocessing, name), getattr(mpipc, name)
    if not callable(expected):
        assert actual is expected
    elif isinstance(expected, type) and issubclass(expected, Exception):
        assert actual is expected, "an exception raised by either package is caught under both names"
    else:
        assert accepts(actual, like=expected)


@pytest.mark.parametrize("method", METHODS)
def test_signatures_of_context_methods(method: str) -> None:
    standard, context = multiprocessing.get_context(method), mpipc.get_context(method)
    for name in dir(standard):
        if name.startswith("__"):
            continue
        expected, actual = getattr(standard, name), getattr(context, name)
        if isinstance(expected, type) and issubclass(expected, Exception):
            assert actual is expected
        elif callable(expected):
            assert accepts(actual, like=expected), name
            assert inspect.getdoc(actual) or not inspect.getdoc(expected), name


def test_factories_are_those_of_mpipc() -> None:
    """Every factory of the running interpreter that makes something of its own submodules is overridden."""
    for name, function in vars(multiprocessing.context.BaseContext).items():
        if name[0].isupper() and inspect.isfunction(function) and name != "Pipe":
            assert name in vars(mpipc.context.BaseContext), name


def test_signatures_of_managers() -> None:
    for name in ("BaseManager", "SyncManager", "SharedMemoryManager"):
        expected, actual = getattr(multiprocessing.managers, name), getattr(mpipc.managers, name)
        assert issubclass(actual, expected)
        assert accepts(actual, like=multiprocessing.managers.BaseManager), name
        for method, function in inspect.getmembers(expected, inspect.isfunction):
            if not method.startswith("_"):
                assert parameters(getattr(actual, method)) == parameters(function), f"{name}.{method}"
    registered = multiprocessing.managers.SyncManager._registry  # type: ignore[attr-defined]
    assert mpipc.managers.SyncManager._registry.keys() == registered.keys() | {"set"}  # type: ignore[attr-defined]


def test_stub_has_the_names_of_the_module() -> None:
    names: set[str] = set()
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname for alias in node.names if alias.asname is not None}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert set(mpipc.__all__) <= names
    assert not [name for name in names if not hasattr(mpipc, name)]


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((SOURCE_TREE / "pyproject.toml").read_text())["project"]
    if "version" in project.get("dynamic", ()):
        from importlib.metadata import version

        assert mpipc.__version__ == version("mpipc")
    else:
        assert mpipc.__version__ == project["version"]


# --- submodules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBMODULES)
def test_submodule_has_the_public_names(name: str) -> None:
    standard, module = importlib.import_module(name), importlib.import_module(ours(name))
    assert not [public for public in standard.__all__ if not hasattr(module, public)]
    assert set(module.__all__) >= set(standard.__all__)


@pytest.mark.parametrize("name", SUBMODULES)
def test_submodule_without_an_import(name: str) -> None:
    """`mp.connection.wait(...)` works in multiprocessing once anything has imported multiprocessing.connection."""
    result = run_script(f"import mpipc; print({ours(name)}.__name__)")
    assert result.stdout.strip() in (name, ours(name))


@pytest.mark.parametrize("name", SAME_MODULE)
def test_module_with_state_is_the_very_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    standard, module = importlib.import_module(f"multiprocessing.{name}"), importlib.import_module(f"mpipc.{name}")
    assert module is standard
    parent, _, last = f"mpipc.{name}".rpartition(".")
    assert getattr(importlib.import_module(parent), last) is standard
    monkeypatch.setattr(module, "_set_by_test", 1, raising=False)
    assert standard._set_by_test == 1


@pytest.mark.parametrize("name", SAME_MODULE)
def test_every_form_of_import_gives_the_same_module(name: str) -> None:
    parent, _, last = f"mpipc.{name}".rpartition(".")
    for statement in (
        f"import mpipc.{name}; module = mpipc.{name}",
        f"import mpipc.{name} as module",
        f"from {parent} import {last} as module",
        f"import importlib; module = importlib.import_module('mpipc.{name}')",
        f"import mpipc; module = mpipc.{name}",
        f"import mpipc.{name}; import mpipc.{name} as module",
    ):
        run_script(f"{statement}\nimport multiprocessing.{name} as same\nassert module is same, {statement!r}")


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'mpipc' has no attribute 'nonsense'"):
        mpipc.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_functions_of_shared_modules_pickle() -> None:
    for function in (mpipc.connection.wait, mpipc.process.current_process, mpipc.util.debug):
        assert pickle.loads(pickle.dumps(function)) is function


def test_dummy() -> None:
    from mpipc import dummy
    from mpipc.pool import ThreadPool

    for name in multiprocessing.dummy.__all__:
        assert parameters(getattr(dummy, name)) == parameters(getattr(multiprocessing.dummy, name)), name
    for name in ("Array", "Value", "Namespace", "DummyProcess", "dict", "list", "shutdown"):
        assert getattr(dummy, name) is getattr(multiprocessing.dummy, name)
    assert dummy.Manager() is dummy
    with dummy.Pool(2) as pool:
        assert isinstance(pool, ThreadPool)
        assert pool.map(abs, [-1, -2]) == [1, 2]
    results: list[int] = []
    process = dummy.Process(target=results.append, args=(1,))
    process.start()
    process.join()
    assert results == [1] and process.exitcode == 0


# --- import -----------------------------------------------------------------------------------------------------------


def test_import_loads_nothing_heavy() -> None:
    """What `import mpipc` loads beyond `import multiprocessing`: itself, and the machinery that finds extensions."""
    script = """
        import multiprocessing, sys
        before = set(sys.modules)
        import mpipc
        print(*sorted(set(sys.modules) - before))
        """
    loaded = set(run_script(script).stdout.split())
    assert loaded <= {
        *("mpipc", "mpipc.context", "mpipc.exceptions", "mpipc.process", "mpipc.reduction"),
        *("mpipc._stdlib", *(f"mpipc._stdlib.{name}" for name in ("install", "private", "standard", "start_method"))),
        *("__future__", "importlib", "importlib.machinery", "importlib._bootstrap", "importlib._bootstrap_external"),
        *("warnings", "_warnings", "_py_warnings"),
    }
    assert "mpipc" in loaded


RUNPY = "" if "resource_tracker" in inspect.getsource(multiprocessing.popen_fork) else "runpy"
"""Where the standard library's popen_fork imports the resource tracker (3.15, late releases of 3.14), runpy comes."""


@pytest.mark.parametrize(
    "use, unneeded",
    [
        ("mpipc.Lock()", "mpipc.sysv multiprocessing.util traceback"),
        ("mpipc.Queue()", "mpipc.sysv multiprocessing.util traceback"),
        ("mpipc.get_context('fork').Pool(1).terminate()", f"mpipc.sysv multiprocessing.forkserver {RUNPY}"),
    ],
)
def test_first_use_loads_nothing_for_later(use: str, unneeded: str) -> None:
    """What is needed for errors, messages and other start methods is loaded when there is an error, a message ..."""
    loaded = run_script(f"import mpipc, sys; {use}; print(*sys.modules)").stdout.split()
    assert f"mpipc.{'pool' if 'Pool' in use else '_core'}" in loaded
    assert set(unneeded.split()) & set(loaded) == set()


def test_import_on_another_platform() -> None:
    result = run_script("import sys; sys.platform = 'darwin'; import mpipc", check=False)
    assert result.returncode == 1
    assert "\nImportError: mpipc needs Linux" in result.stderr


def test_import_without_the_gil() -> None:
    """What a free-threaded Python says of itself; those with the GIL on work."""
    script = "import sys; sys._is_gil_enabled = lambda: {}; import mpipc; mpipc.Lock()"
    result = run_script(script.format(False), check=False)
    assert result.returncode == 1
    assert "ImportError: mpipc needs the global interpreter lock" in result.stderr and "PYTHON_GIL=1" in result.stderr
    run_script(script.format(True))


def test_import_of_an_uncompiled_tree(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "mpipc", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    result = run_script(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mpipc", check=False)
    assert result.returncode == 1
    assert str(tmp_path) in result.stderr and "pip install ." in result.stderr

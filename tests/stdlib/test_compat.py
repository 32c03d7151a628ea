"""mpipc has the interface of the interpreter's multiprocessing, and the runner in compat/ tells the truth.

The interface is compared by introspection: what a program may say to multiprocessing it may say to mpipc. The behaviour
is compared by CPython's own tests; `make compat` runs them all, here are a few, to see that the runner works.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import TESTS

COMPAT = Path(__file__).resolve().parents[2] / "compat"

# --- the interface ----------------------------------------------------------------------------------------------------

MODULES = [
    "multiprocessing",
    *sorted(
        module.name
        for module in pkgutil.walk_packages(multiprocessing.__path__, "multiprocessing.")
        if not module.name.endswith("_win32")
    ),
]


def pairs() -> Iterator[tuple[str, Any, Any]]:
    """Every public name: where it is, the standard library's object, and mpipc's."""
    for name in MODULES:
        standard = importlib.import_module(name)
        ours = importlib.import_module(name.replace("multiprocessing", "mpipc", 1))
        for public in standard.__all__:
            yield f"{name}.{public}", getattr(standard, public), getattr(ours, public, None)
    for method in multiprocessing.get_all_start_methods():
        import mpipc

        yield f"get_context({method!r})", multiprocessing.get_context(method), mpipc.get_context(method)


def complaints(where: str, standard: Any, ours: Any) -> Iterator[str]:
    if ours is standard:
        return
    if isinstance(standard, type):
        if not isinstance(ours, type):
            yield f"{where}: a class there, not here"
        elif issubclass(standard, BaseException):
            yield f"{where}: an exception of either package is to be caught under both names"
        else:
            yield from _class_complaints(where, standard, ours)
    elif inspect.isroutine(standard):
        yield from _signature_complaints(where, standard, ours)
        if inspect.getdoc(standard) and not inspect.getdoc(ours):
            yield f"{where}: has a docstring there"
    elif inspect.ismodule(standard):
        return
    elif where.startswith("get_context"):
        yield from _class_complaints(where, type(standard), type(ours))
    elif ours != standard:
        yield f"{where}: {standard!r} there, {ours!r} here"


INTERNAL = {
    *("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__"),
    *("__dict__", "__weakref__", "__firstlineno__", "__static_attributes__", "__slotnames__"),
}
"""Special attributes of which it is a matter of the implementation which ones are there."""


def _class_complaints(where: str, standard: type, ours: type) -> Iterator[str]:
    yield from _signature_complaints(where, standard, ours)
    for name in dir(standard):
        special = name.startswith("__") and name.endswith("__")
        if name in INTERNAL or (name.startswith("_") and not special) or (special and hasattr(object, name)):
            continue
        theirs = inspect.getattr_static(standard, name)
        if not hasattr(ours, name):
            yield f"{where}.{name}: missing"
            continue
        mine = inspect.getattr_static(ours, name)
        if isinstance(theirs, property):
            if callable(getattr(ours, name)):
                yield f"{where}.{name}: a property there, not here"
            if theirs.fset is not None and not hasattr(mine, "__set__"):
                yield f"{where}.{name}: can be assigned there"
        elif inspect.isroutine(theirs) and not special:
            yield from _signature_complaints(f"{where}.{name}", getattr(standard, name), getattr(ours, name))
    if (standard.__hash__ is None) != (ours.__hash__ is None):
        yield f"{where}: hashable in one of them only"


def _signature_complaints(where: str, standard: Any, ours: Any) -> Iterator[str]:
    """Whoever can call the one can call the other in the same way. More parameters may be there, if optional."""
    try:
        theirs, mine = inspect.signature(standard), inspect.signature(ours)
    except ValueError:
        return  # a builtin that does not tell
    takes_any_keyword = any(p.kind is p.VAR_KEYWORD for p in mine.parameters.values())
    takes_any_position = any(p.kind is p.VAR_POSITIONAL for p in mine.parameters.values())
    positions = [name for name, p in mine.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    for index, (name, expected) in enumerate(theirs.parameters.items()):
        actual = mine.parameters.get(name)
        if expected.kind in (expected.VAR_POSITIONAL, expected.VAR_KEYWORD):
            continue  # passed on to something that is compared by itself
        if actual is None:
            if not (takes_any_keyword if expected.kind is expected.KEYWORD_ONLY else takes_any_position):
                yield f"{where}{theirs}: no parameter {name} in {mine}"
        elif actual.kind is not expected.kind:
            yield f"{where}{theirs}: {name} is {actual.kind.description} in {mine}"
        elif expected.kind is expected.POSITIONAL_OR_KEYWORD and positions.index(name) != index:
            yield f"{where}{theirs}: {name} is elsewhere in {mine}"
        elif expected.default is not expected.empty and actual.default != expected.default:
            yield f"{where}{theirs}: {name} has another default in {mine}"
    for name, actual in mine.parameters.items():
        optional = actual.default is not actual.empty or actual.kind in (actual.VAR_KEYWORD, actual.VAR_POSITIONAL)
        if name not in theirs.parameters and not optional:
            yield f"{where}{theirs}: {name} is required in {mine}"


def test_interface() -> None:
    found = [complaint for where, standard, ours in pairs() for complaint in complaints(where, standard, ours)]
    assert not found, "\n" + "\n".join(found)


MADE_OF = {
    *("multiprocessing.heap.reduce_arena", "multiprocessing.heap.rebuild_arena"),
    *("multiprocessing.sharedctypes.template", "multiprocessing.sharedctypes.prop_cache"),
    *("multiprocessing.synchronize.SemLock", "multiprocessing.synchronize.SEMAPHORE"),
    "multiprocessing.synchronize.RECURSIVE_MUTEX",
}
"""Names without an underscore of what multiprocessing is made of; with install() they are multiprocessing's."""


def test_names_that_are_not_in_all() -> None:
    """A module has names of its own beyond __all__, and programs use them: multiprocessing.pool.mapstar, say."""
    missing = set()
    for name in MODULES:
        standard = importlib.import_module(name)
        ours = importlib.import_module(name.replace("multiprocessing", "mpipc", 1))
        for public, value in vars(standard).items():
            imported = inspect.ismodule(value) or getattr(value, "__module__", name) != name
            if not public.startswith("_") and not imported and not hasattr(ours, public):
                missing.add(f"{name}.{public}")
    assert missing == MADE_OF


def test_comparison_finds_differences() -> None:
    class Standard:
        def method(self, first: int, second: int = 2, *, third: int = 3) -> None: ...
        def gone(self) -> None: ...
        def __enter__(self) -> None: ...

    class Ours:
        def method(self, second: int = 3, first: int = 1, fourth: int = 4) -> None: ...

    text = "\n".join(complaints("Standard", Standard, Ours))
    for expected in (
        "gone: missing",
        "__enter__: missing",
        "first is elsewhere",
        "second is elsewhere",
        "no parameter third",
    ):
        assert expected in text
    assert not list(complaints("Standard", Standard, type("Sub", (Standard,), {})))


# --- what is promised -------------------------------------------------------------------------------------------------


def test_documents_name_tests_that_exist() -> None:
    house = TESTS.parent
    documents = {path.name: path.read_text() for path in (*house.glob("*.md"), *house.glob("docs/**/*.md"))}
    assert {"README.md", "SECURITY.md", "surroundings.md", "pool.md"} <= set(documents)
    text = documents["compatibility.md"]
    defined = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    listed = (COMPAT / "expected.toml").read_text()
    for name in re.findall(r"`(?:(\w+)\.)?(test_\w+)`", "".join(documents.values())):
        known = ".".join(filter(None, name)) in listed if name[0] else f"def {name[1]}(" in defined
        assert known or name[1] in ("test_concurrent_futures", "test_multiprocessing_main_handling"), name
    for entry in re.findall(r'^name = "(.*)"', listed, re.MULTILINE):
        assert f"`{entry}`" in text


# --- the runner -------------------------------------------------------------------------------------------------------


def run_compat(*arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("test.support", reason="this Python has no test package")
    return subprocess.run(
        [sys.executable, str(COMPAT / "run.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(_package_parent())},  # the same mpipc as here
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.compares
def test_runner(tmp_path: Path) -> None:
    result = run_compat(
        "--class", "WithProcessesTestLock", "--class", "TestFlags", "--json", str(tmp_path / "out.json")
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["tests"]
    assert {row["outcome"] for row in rows} == {"passed"}
    for side in ("multiprocessing", "mpipc"):
        for method in ("fork", "spawn", "forkserver"):
            tests = {row["test"] for row in rows if (row["side"], row["method"]) == (side, method)}
            assert {"test_lock", "test_rlock", "test_flags"} <= tests
    assert result.stdout.rstrip().endswith("mpipc passes")


EXPECTED = """
    [[test]]
    name = "WithProcessesTestLock.test_rlock"
    line = "a line"
    private_detail = "a detail"
    reason = "a reason"
    """


@pytest.mark.compares
def test_listed_test_that_passes_fails_the_run(tmp_path: Path) -> None:
    path = tmp_path / "expected.toml"
    path.write_text(textwrap.dedent(EXPECTED))
    result = run_compat(
        "--class", "WithProcessesTestLock", "--method", "fork", "--side", "mpipc", "--expected", str(path)
    )
    assert result.returncode == 1
    assert "expected to fail, and passed: fork WithProcessesTestLock.test_rlock" in result.stdout


def test_entry_without_a_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "expected.toml"
    path.write_text(textwrap.dedent(EXPECTED).replace("a reason", ""))
    result = run_compat("--list", "--expected", str(path))
    assert result.returncode == 1 and "needs name, line, private_detail, reason" in result.stderr


def test_list_is_short_and_has_reasons() -> None:
    import tomllib

    entries = tomllib.loads((COMPAT / "expected.toml").read_text())["test"]
    assert len({entry["name"] for entry in entries}) == len(entries) <= 5
    assert all(entry["private_detail"] and entry["reason"] for entry in entries)


def test_lines_of_the_list_are_those_of_this_python() -> None:
    found = importlib.util.find_spec("test._test_multiprocessing")
    if found is None or found.origin is None:
        pytest.skip("this Python comes without its tests")
    source = Path(found.origin).read_text()
    for entry in compat_module("report").read_expected(COMPAT / "expected.toml"):
        test = entry.test.rpartition(".")[2]
        _, _, body = source.partition(f"def {test}(self")
        assert entry.line in body.partition("\n    def ")[0], test


def compat_module(name: str) -> Any:
    sys.path.insert(0, str(COMPAT))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(COMPAT))


@pytest.mark.parametrize(
    ("standard", "ours", "verdict"),
    [
        ("+-", "-+", True),  # fails at times on both
        ("+++-", "+", True),
        ("+-", "---", False),  # mpipc never passes
        ("+" * 40, "-+", False),  # multiprocessing always does
    ],
)
def test_unreliable_is_what_fails_and_passes_on_both(standard: str, ours: str, verdict: bool) -> None:
    results = {"multiprocessing": iter(standard), "mpipc": iter(ours)}
    assert compat_module("report").unreliable(lambda side: next(results[side]) == "+") is verdict
    assert not any(list(left) for left in results.values()), "each was run as often as needed"


def test_unreliable_tests_do_not_fail_the_run() -> None:
    report = compat_module("report")
    unit = compat_module("suites").Unit("fork", "cases_fork", "Cases", ("test_a", "test_b"))
    failed, passed = {"outcome": "failed", "detail": "why"}, {"outcome": "passed"}
    outcomes = {
        unit: {
            "multiprocessing": {"test_a": passed, "test_b": passed},
            "mpipc": {"test_a": dict(failed), "test_b": dict(failed)},
        }
    }
    assert list(report.failures(outcomes, [])) == [(unit, "test_a"), (unit, "test_b")]
    outcomes[unit]["mpipc"]["test_a"]["unreliable"] = True
    outcomes[unit]["mpipc"]["test_b"]["unreliable"] = False
    against, notes = report.judge(outcomes, [], complete=True)
    assert against == ["failed: fork Cases.test_b\nwhy"]
    assert notes == ["fails at times on both, and has failed on mpipc this time: fork Cases.test_a"]


HANGING = '''
    """Tests of which one hangs and one takes its process along."""

    import os
    import threading
    import unittest


    class Cases(unittest.TestCase):
        def test_a_passes(self):
            pass

        def test_b_hangs(self):
            threading.Event().wait()

        def test_c_crashes(self):
            os.write(2, b"last words")
            os._exit(3)

        def test_d_fails(self):
            self.fail("as it should")

        @unittest.skip("not here")
        def test_e_is_skipped(self):
            pass

        def test_f_passes(self):
            pass
    '''


@pytest.mark.slow
def test_hang_and_crash_cost_one_test_each(tmp_path: Path) -> None:
    (tmp_path / "hanging_cases.py").write_text(textwrap.dedent(HANGING))
    script = f"""
        import json, sys
        from pathlib import Path
        sys.path[:0] = [{str(COMPAT)!r}, {str(tmp_path)!r}]
        import mpipc
        from processes import interpreter, run_unit
        from suites import Unit
        import hanging_cases
        tests = tuple(sorted(name for name in vars(hanging_cases.Cases) if name.startswith("test_")))
        unit = Unit("", "hanging_cases", "Cases", tests)
        with interpreter(Path(mpipc.__path__[0]).parent) as python:
            print(json.dumps(run_unit(python, "mpipc", unit, 5)))
        """
    result = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)],
        env={"PYTHONPATH": f"{tmp_path}:{_package_parent()}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    outcomes = json.loads(result.stdout)
    assert {test: outcome["outcome"] for test, outcome in outcomes.items()} == {
        "test_a_passes": "passed",
        "test_b_hangs": "failed",
        "test_c_crashes": "failed",
        "test_d_fails": "failed",
        "test_e_is_skipped": "skipped",
        "test_f_passes": "passed",
    }
    assert "in test_b_hangs" in outcomes["test_b_hangs"]["detail"], "the stacks"
    assert "status 3\nlast words" in outcomes["test_c_crashes"]["detail"]


def _package_parent() -> Path:
    import mpipc

    return Path(mpipc.__path__[0]).parent

"""mpipc/_stdlib/private.py: the only place that touches CPython's private names, and its table holds what it says."""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mpipc._stdlib import private
from mpipc._stdlib.private import NAMES

PACKAGE = Path(__file__).resolve().parents[2] / "mpipc"
ROOM = PACKAGE / "_stdlib" / "private.py"
LIBRARY = Path(sysconfig.get_path("stdlib"))

DOCUMENTED = {
    "os": "_exit",
    "sys": "_is_gil_enabled",
    "ctypes": "_SimpleCData _fields_ _type_",
    "multiprocessing.managers": "_callmethod _exposed_ _method_to_typeid_",
}
"""Names with an underscore that are no secret: CPython's documentation tells what they do."""

OURS = {
    "__init__.py": "_default_context",
    "_core/greenlets.py": "_thread",
    "_pool/broadcast.py": "_job",
    "_pool/feed.py": "_items _job _set_length",
    "_pool/receiver.py": "_job _set",
    "_pool/results.py": "_cache _job _set",
    "_pool/schedule.pyx": "_job",
    "_queue/batch.pyx": "_on_queue_feeder_error",
    "_queue/message_queue.pyx": "_on_queue_feeder_error",
    "_queue/pickled.py": "_on_queue_feeder_error",
    "_stdlib/install.py": "_actual_context _concrete_contexts _default_context",
    "_stdlib/start_method.py": "_is_fork_ctx",
    "_sync/guarded.pyx": "_lock _obj",
    "_sync/primitives.pyx": "_count",
    "context.py": "_Popen _actual_context _after_fork",
    "heap.py": "_heap",
    "joblib.py": "_id",
    "pool.py": "_job _number_left _set_length",
    "shared_memory.py": "_flags",
    "synchronize.py": "_acquire_restore _count _release_save",
}
"""Names that CPython has, too, and that a module asks for, not of `self`, but of another object that is mpipc's."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name.strip("_") != ""


# --- the standard library ---------------------------------------------------------------------------------------------


@cache
def source(module: str, library: Path = LIBRARY) -> ast.Module | None:
    path = library.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text()) if path.is_file() else None


def bound_in(tree: ast.AST) -> set[str]:
    """The private names that code defines, imports or assigns to, as attributes also."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return set(filter(is_private, found))


@cache
def names_of(owner: str, library: Path = LIBRARY) -> frozenset[str]:
    """The private names of a module, or of a class without those that it has inherited."""
    tree = source(owner, library)
    if tree is not None:
        return frozenset(bound_in(tree))
    module, _, name = owner.rpartition(".")
    tree = source(module, library)
    classes = [] if tree is None else [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return frozenset().union(*(bound_in(node) for node in classes if node.name == name))


@cache
def all_names() -> frozenset[str]:
    """Private names of the modules that mpipc stands on."""
    modules = {"queue", "threading", *(owner for owner in DOCUMENTED if "." in owner)}
    for package in ("concurrent.futures", "multiprocessing"):
        folder = LIBRARY.joinpath(*package.split("."))
        modules |= {f"{package}.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"}
    documented = " ".join(DOCUMENTED.values()).split()
    return frozenset().union(*map(names_of, modules)) - {*documented}


def is_module(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names and (source(name) is not None or name in sys.modules)


# --- the table --------------------------------------------------------------------------------------------------------


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """One for each name."""
    for owners, names, versions, how, why in NAMES:
        for owner in owners.split():
            for name in names.split():
                yield owner, name, versions, how, why


def is_for(versions: str, python: tuple[int, int]) -> bool:
    first, _, last = versions.partition("-")
    lowest, highest = (tuple(map(int, text.split("."))) if text else None for text in (first, last))
    return (lowest is None or lowest <= python) and (highest is None or python <= highest)


def test_versions_are_read() -> None:
    assert [is_for("3.12-3.14", (3, minor)) for minor in range(11, 16)] == [False, True, True, True, False]
    assert is_for("3.11-", (3, 11)) and is_for("3.11-", (3, 20)) and not is_for("3.15-", (3, 14))


def test_names_exist_where_the_table_says_so() -> None:
    assert wrong_in(LIBRARY, sys.version_info[:2]) == []


def wrong_in(library: Path, python: tuple[int, int]) -> list[str]:
    """The rows that this version's standard library does not bear out."""
    return [
        f"{owner} {'has' if name in names_of(owner, library) else 'lacks'} {name}, which is {versions}"
        for owner, name, versions, _, _ in rows()
        if (name in names_of(owner, library)) != is_for(versions, python)
    ]


def test_the_table_is_in_order() -> None:
    each = [(owner, name, how) for owner, name, _, how, _ in rows()]
    assert len(set(each)) == len(each), "each name stands once"
    assert {how for _, _, how in each} == {"read", "sought", "derived", "offered"}
    assert all(why for *_, why in NAMES)
    assert all(owner.partition(".")[0] in sys.stdlib_module_names for owner, _, _ in each)


# --- what mpipc uses --------------------------------------------------------------------------------------------------


class Module:
    """What the names in a module of mpipc's mean, as far as they mean modules and classes."""

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        self.name = str(path.relative_to(PACKAGE))
        self.tree = ast.parse(path.read_text() if text is None else text)
        self.meanings: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.meanings[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    self.meanings[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, (ast.Name, ast.Attribute)):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                meaning = self.meaning(node.value)
                if isinstance(target, ast.Name) and meaning:
                    self.meanings[target.id] = meaning

    def meaning(self, node: ast.AST) -> str | None:
        """The dotted name of a module or class, or None."""
        if isinstance(node, ast.Name):
            return self.meanings.get(node.id)
        if isinstance(node, ast.Attribute):
            of = self.meaning(node.value)
            return f"{of}.{node.attr}" if of else None
        return None

    def is_standard(self, node: ast.AST) -> str | None:
        """The dotted name of a module or class of the standard library, or None."""
        meaning = self.meaning(node)
        if meaning is None:
            return None
        if is_module(meaning):
            return meaning
        module, _, name = meaning.rpartition(".")
        return meaning if is_module(module) and isinstance(vars(import_module(module)).get(name), type) else None


@cache
def modules() -> dict[str, Module]:
    """By name without `mpipc.`; packages with `.__init__`."""
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): Module(p) for p in sorted(PACKAGE.rglob("*.py"))}


@cache
def classes() -> list[tuple[Module, ast.ClassDef, list[type]]]:
    """The classes of mpipc that are not made in functions, and their bases, themselves first."""
    found = []
    for name, module in modules().items():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                cls: Any = getattr(import_module(f"mpipc.{name}"), node.name)
                found.append((module, node, list(cls.__mro__)))
    return found


def dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def own_names(module: Module, node: ast.ClassDef, standard: list[str]) -> set[str]:
    """The private names that a class defines, or asks of itself."""
    names = {name for statement in node.body for name in defined_by(statement)}
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and is_private(each.attr) and is_own(each.value, module, standard):
            names.add(each.attr)
    return names


@cache
def shared_with_bases() -> frozenset[tuple[str, str]]:
    """Owner and name: what classes of mpipc's override, or have in common with the class from which they derive.

    What a class without such a base does, it may do for a subclass that has one.
    """
    found = set()
    nodes = {f"{cls[0].__module__}.{node.name}": (module, node) for module, node, cls in classes()}
    for _, _, bases in classes():
        standard = [dotted(cls) for cls in bases if not dotted(cls).startswith("mpipc.")]
        for cls in bases:
            if dotted(cls) in nodes:
                for name in own_names(*nodes[dotted(cls)], standard):
                    owner = next((base for base in standard if name in names_of(base)), None)
                    if owner is not None and name not in DOCUMENTED.get(owner.rpartition(".")[0], "").split():
                        found.add((owner, name))
    return frozenset(found)


def defined_by(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name} if is_private(statement.name) else set()
    if isinstance(statement, ast.If):
        return {name for each in statement.body for name in defined_by(each)}
    return bound_in(statement)


def is_own(receiver: ast.expr, module: Module, bases: list[str]) -> bool:
    """self, cls, super(), or a class from which this one derives."""
    if isinstance(receiver, ast.Call) and isinstance(receiver.func, ast.Name):
        return receiver.func.id == "super"
    return (isinstance(receiver, ast.Name) and receiver.id in ("self", "cls")) or module.is_standard(receiver) in bases


def test_what_is_shared_with_a_base_has_a_row() -> None:
    derived = {(owner, name) for owner, name, versions, how, _ in rows() if how == "derived" and holds(versions)}
    assert shared_with_bases() - derived == set(), "give it a row in the table"
    assert derived - shared_with_bases() == set(), "nothing of ours uses it any more"


def holds(versions: str) -> bool:
    return is_for(versions, sys.version_info[:2])


def touched(module: Module) -> Iterator[tuple[int, str]]:
    """Line and name: what a module asks of the standard library's objects, or may do so."""
    tree = module.tree
    slots = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and is_slots(node.targets[0])]
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and is_text(node.value)]
    left_out = {id(each) for node in [*slots, *texts] for each in ast.walk(node) if isinstance(each, ast.Constant)}
    bases: dict[int, list[str]] = {}
    for of, node, mro in classes():
        if of is module:
            bases.update((id(each), [dotted(cls) for cls in mro]) for each in ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not is_own(node.value, module, bases.get(id(node), [])):
                owner = module.is_standard(node.value)
                documented = DOCUMENTED.get(owner or "", "").split()
                if node.attr in all_names() or (owner and node.attr not in documented):
                    yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and node.module and is_module(node.module):
            yield from ((node.lineno, alias.name) for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Constant) and node.value in all_names() and id(node) not in left_out:
            yield node.lineno, node.value  # getattr(popen, "_launch")


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def is_slots(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "__slots__"


def touched_in_cython(text: str) -> Iterator[tuple[int, str]]:
    standard = re.findall(r"^\s*from ([\w.]+) import (\w+)(?: as (\w+))?$", text, re.MULTILINE)
    aliases = {alias or name for module, name, alias in standard if is_module(f"{module}.{name}")}
    aliases |= {alias or name for name, alias in re.findall(r"^import ([\w.]+)(?: as (\w+))?$", text, re.MULTILINE)}
    for number, line in enumerate(text.splitlines(), 1):
        for receiver, name in re.findall(r"([\w)\]]+)\.(_[a-z]\w*)\b", line):
            known = name in all_names() or receiver in aliases
            if known and receiver not in ("self", "cls") and "mpipc" not in line and name != "_exit":
                yield number, name
        yield from ((number, name) for name in re.findall(r"[\"'](_[a-z]\w*)[\"']", line) if name in all_names())
        if (imported := re.match(r"\s*from ([\w.]+) import (_\w+)", line)) and is_module(imported[1]):
            yield number, imported[2]


def all_touched() -> Iterator[tuple[str, int, str]]:
    for module in modules().values():
        if module.path != ROOM:
            yield from ((module.name, *each) for each in touched(module))
    for path in sorted(PACKAGE.rglob("*.pyx")):
        yield from ((str(path.relative_to(PACKAGE)), *each) for each in touched_in_cython(path.read_text()))


def test_only_the_room_touches_private_names() -> None:
    ours = {(file, name) for file, names in OURS.items() for name in names.split()}
    found = list(all_touched())
    assert [each for each in found if (each[0], each[2]) not in ours] == [], "ask the room for it"
    used = {(file, name) for file, _, name in found}
    assert ours - used == set(), "no such thing is asked for there"


def test_each_way_of_touching_is_seen() -> None:
    text = """
        import multiprocessing.context as _base, threading, os
        from multiprocessing import pool
        from multiprocessing.forkserver import _forkserver
        from multiprocessing.util import debug
        _alias = pool
        _alias._helper_reraises_exception
        _base.BaseContext._whatever
        popen._launch
        getattr(popen, "_send_signal", None)
        vars(process).pop("_sentinel")
        threading._shutdown()
        os._exit(0), process.name, self._ours
    """
    found = {(line, name) for line, name in touched(Module(PACKAGE / "x.py", textwrap.dedent(text).strip()))}
    assert found == {
        (3, "_forkserver"),
        (6, "_helper_reraises_exception"),
        (7, "_whatever"),
        (8, "_launch"),
        (9, "_send_signal"),
        (10, "_sentinel"),
        (11, "_shutdown"),
    }
    text = """
        from multiprocessing import process as _process
        import threading
        from threading import _register_atexit
        cdef object x = _process._anything
        popen._launch(self._ours)
        getattr(popen, "_popen", None)
        threading._shutdown()
    """
    found = set(touched_in_cython(textwrap.dedent(text).strip()))
    assert found == {(3, "_register_atexit"), (4, "_anything"), (5, "_launch"), (6, "_popen"), (7, "_shutdown")}


def test_what_a_base_shares_is_seen() -> None:
    shared = shared_with_bases()
    assert ("multiprocessing.process.BaseProcess", "_bootstrap") in shared, "overridden"
    assert ("multiprocessing.shared_memory.SharedMemory", "_mode") in shared, "asked of self"
    assert ("multiprocessing.context.SpawnProcess", "_start_method") in shared, "by a class that has another base"


# --- the room itself --------------------------------------------------------------------------------------------------


def test_no_row_is_stale() -> None:
    """What is read or sought is so by the code below the table, and that has no other private names."""
    tree = ast.parse(ROOM.read_text())
    (table,) = (node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets) == "NAMES")
    nodes = [node for part in tree.body if part is not table for node in ast.walk(part)]
    code = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    code |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    asked = {name for name in code if is_private(name) and name.isidentifier()}
    assert asked == {name for _, name, _, how, _ in rows() if how in ("read", "sought")}


def test_everything_in_the_room_is_used() -> None:
    used = {"NAMES"}
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx")]:
        text = path.read_text()
        if path != ROOM and "mpipc._stdlib" in text:
            used |= {*re.findall(r"\bprivate\.(\w+)", text)}
            for names in re.findall(r"from mpipc\._stdlib\.private import (\([^)]*\)|[^\n]+)", text):
                used |= {*re.findall(r"(\w+)(?: as \w+)?", names)}
    assert used == {*private.__all__}


def test_what_is_offered_is_there() -> None:
    for owner, name, _, how, _ in rows():
        if how != "offered":
            continue
        if is_module(owner):
            assert hasattr(import_module(owner.replace("multiprocessing", "mpipc", 1)), name)
            continue
        offering = [each for each in classes() if owner in standard_counterpart(each[2][0])]
        assert offering, f"no class of mpipc stands for {owner}"
        for _, _, bases in offering:
            assert name in {name for cls in bases for name in defined_anywhere(cls)}, (bases[0], owner)


def standard_counterpart(cls: type) -> list[str]:
    """multiprocessing's class of the same name, and what that derives from."""
    module = cls.__module__.replace("mpipc", "multiprocessing", 1)
    counterpart = vars(import_module(module)).get(cls.__name__, object) if source(module) else object
    return [dotted(base) for base in counterpart.__mro__] if isinstance(counterpart, type) else []


def defined_anywhere(cls: type) -> set[str]:
    for _, node, bases in classes():
        if bases[0] is cls:
            return bound_in(node) | set(vars(cls))
    return set(vars(cls))

"""The .pyi files, the compiled modules and the package say the same."""

from __future__ import annotations

import ast
import importlib
import inspect
import types
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

from mpipc import sysv

FOLDER = Path(sysv.__file__).parent
SUFFIX = EXTENSION_SUFFIXES[0]
COMPILED = sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}"))
PLAIN = ["errors", "limits", "listing", "structs"]


def stub(name: str) -> ast.Module:
    return ast.parse((FOLDER / f"{name}.pyi").read_text())


def module(name: str) -> types.ModuleType:
    return importlib.import_module(f"mpipc.sysv.{name}")


def definitions(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """The names that a stub defines, public ones; overloads make several definitions of one name."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, []).append(node)
    return found


def parameters(node: ast.FunctionDef) -> dict[str, tuple[bool, Any]]:
    """name: (keyword only?, default, or `inspect.Parameter.empty`)"""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + [*arguments.defaults]
    empty = inspect.Parameter.empty
    found = {
        argument.arg: (False, empty if default is None else ast.literal_eval(default))
        for argument, default in zip(positional, defaults, strict=True)
    }
    for argument, keyword_default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found[argument.arg] = (True, empty if keyword_default is None else ast.literal_eval(keyword_default))
    return found


def test_every_compiled_module_has_a_stub() -> None:
    assert COMPILED == ["keys", "msg", "sem", "shm"]
    assert sorted(path.stem for path in FOLDER.glob("*.pyi")) == COMPILED


@pytest.mark.parametrize("name", COMPILED)
def test_names(name: str) -> None:
    exported = set(module(name).__all__)
    assert set(definitions(stub(name).body)) == exported
    declared = next(
        ast.literal_eval(node.value)
        for node in stub(name).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert set(declared) == exported
    public = {
        key
        for key, value in vars(module(name)).items()
        if not key.startswith("_") and getattr(value, "__module__", f"mpipc.sysv.{name}") == f"mpipc.sysv.{name}"
    } - {key for key, value in vars(module(name)).items() if inspect.ismodule(value)}
    assert public == exported


@pytest.mark.parametrize("name", COMPILED)
def test_constants(name: str) -> None:
    for key, (node, *_) in definitions(stub(name).body).items():
        if isinstance(node, ast.AnnAssign):
            value = getattr(module(name), key)
            assert type(value) is int
            if node.value is not None:
                assert value == ast.literal_eval(node.value), key


@pytest.mark.parametrize("name", COMPILED)
def test_functions(name: str) -> None:
    for key, nodes in definitions(stub(name).body).items():
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
        if not functions:
            continue
        function = getattr(module(name), key)
        assert inspect.getdoc(function), f"{key} has no docstring"
        compiled = {
            parameter.name: (parameter.kind is parameter.KEYWORD_ONLY, parameter.default)
            for parameter in inspect.signature(function).parameters.values()
        }
        for node in functions:
            for parameter, (keyword_only, default) in parameters(node).items():
                assert parameter in compiled, f"{key}({parameter})"
                assert compiled[parameter][0] == keyword_only, f"{key}({parameter})"
                # An overload may demand what the function as a whole does not.
                if len(functions) == 1 or default is not inspect.Parameter.empty:
                    assert compiled[parameter][1] == default, f"{key}({parameter})"
        assert set(compiled) == {parameter for node in functions for parameter in parameters(node)}, key


@pytest.mark.parametrize("name", COMPILED)
def test_classes(name: str) -> None:
    for key, (node, *_) in definitions(stub(name).body).items():
        if isinstance(node, ast.ClassDef):
            compiled = getattr(module(name), key)
            declared = set(definitions(node.body))
            for member in declared - {"__buffer__", "__release_buffer__"}:  # visible from Python 3.12 on
                assert hasattr(compiled, member), f"{key}.{member}"
            assert {member for member in vars(compiled) if not member.startswith("_")} <= declared


def test_the_package_exports_all_of_it() -> None:
    expected = {name for part in (*COMPILED, *PLAIN) for name in module(part).__all__}
    assert set(sysv.__all__) == expected
    assert len(sysv.__all__) == len(expected)
    for part in (*COMPILED, *PLAIN):
        for name in module(part).__all__:
            assert getattr(sysv, name) is getattr(module(part), name)

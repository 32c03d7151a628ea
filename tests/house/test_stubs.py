"""The .pyi files of the compiled modules name what the modules have; for those of mpipc.sysv see sysv/test_stubs.py."""

from __future__ import annotations

import ast
import importlib
import inspect
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

import mpipc

PACKAGE = Path(mpipc.__file__).parent  # type: ignore[arg-type]
SUFFIX = EXTENSION_SUFFIXES[0]
COMPILED = sorted(path for path in PACKAGE.rglob(f"*{SUFFIX}") if path.parent.name != "sysv")
MODULES = [
    ".".join([*path.relative_to(PACKAGE.parent).parent.parts, path.name.removesuffix(SUFFIX)]) for path in COMPILED
]


def stub(module: str) -> list[ast.stmt]:
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".pyi")
    return ast.parse(path.read_text()).body


def names(body: list[ast.stmt]) -> set[str]:
    found = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def members(classes: dict[str, ast.ClassDef], name: str) -> set[str]:
    """With those of the base classes that the stub defines; some exist in stubs only."""
    found = names(classes[name].body)
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= members(classes, base.id)
    return found


def public(entries: dict[str, Any]) -> set[str]:
    return {name for name in entries if not name.startswith("_")}


@pytest.mark.parametrize("module", MODULES)
def test_a_stub_names_what_its_module_has(module: str) -> None:
    compiled = importlib.import_module(module)
    own = {
        name
        for name in public(vars(compiled))
        if getattr(vars(compiled)[name], "__module__", module) == module and not inspect.ismodule(vars(compiled)[name])
    }
    declared = names(stub(module))
    callables = {name for name in own if callable(vars(compiled)[name])}
    assert callables <= declared
    assert {name for name in declared if not name.startswith("_")} <= public(vars(compiled))


@pytest.mark.parametrize("module", MODULES)
def test_classes_and_parameters(module: str) -> None:
    compiled = importlib.import_module(module)
    body = stub(module)
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    for name in classes:
        if not hasattr(compiled, name):
            assert name.startswith("_")
            continue
        declared = members(classes, name)
        assert public(vars(getattr(compiled, name))) <= declared, name
        for member in declared - {"__buffer__", "__release_buffer__"}:  # visible from Python 3.12 on
            assert hasattr(getattr(compiled, name), member), f"{name}.{member}"
    for node in body:
        if isinstance(node, ast.FunctionDef) and hasattr(compiled, node.name):
            actual = list(inspect.signature(getattr(compiled, node.name)).parameters)
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert [argument.arg for argument in arguments] == actual, node.name

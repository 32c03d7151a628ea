"""multiprocessing's own modules, also while mpipc's stand in their place."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["installed", "modules", "other_names", "set_in_place", "standard_module"]

modules: dict[str, ModuleType] = {}
"""multiprocessing's submodules, by name, that mpipc.install() has found."""

other_names: list[str] = []
"""Names of other packages that mean multiprocessing in this process; see mpipc._stdlib.also."""

_in_place = False


def installed() -> bool:
    """Whether `import multiprocessing` gives mpipc in this process."""
    return _in_place


def set_in_place(value: bool) -> None:
    """Called by install() and uninstall()."""
    global _in_place
    _in_place = value


def standard_module(name: str) -> ModuleType:
    """multiprocessing's submodule of this name, also while mpipc's stands in its place."""
    return modules.get(name) or import_module(f"multiprocessing.{name}")

"""multiprocessing's own modules, also while mpipc's stand in their place.

mpipc's modules derive from multiprocessing's. One that is imported after install() would find itself where it looks for
the module on which it stands, so it asks standard_module() instead of an import statement. What was loaded by then is
remembered; what was not is loaded apart: with an `__import__` of its own, for which `multiprocessing` is what it was
before install(), and not entered in sys.modules where mpipc's module of that name belongs. That is also how a child
under install() comes to load no more than it uses.
"""

from __future__ import annotations

import builtins
import sys
import threading
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

__all__ = ["SHARED", "hand_over", "installed", "modules", "other_names", "set_in_place", "standard_module", "take_over"]

PACKAGE = "multiprocessing"

SHARED = frozenset(
    "connection dummy.connection forkserver popen_fork process reduction resource_sharer spawn util".split()  # noqa: SIM905
)
"""Submodules that are one and the same module in both packages."""

modules: dict[str, ModuleType] = {}
"""multiprocessing's submodules, by name, that mpipc.install() has found, or that were loaded apart."""

other_names: list[str] = []
"""Names of other packages that mean multiprocessing in this process; see mpipc._stdlib.also."""

_in_place = False

_package = ModuleType(PACKAGE)
"""The package as it was before install(), with the submodules that are loaded apart."""

_loading: dict[str, ModuleType] = {}
"""Those that are being loaded apart, for those among them that import each other."""

_lock = threading.RLock()
"""Of loading apart. Whoever holds it imports modules of the standard library, and nothing that asks for it."""


def installed() -> bool:
    """Whether `import multiprocessing` gives mpipc in this process."""
    return _in_place


def set_in_place(value: bool) -> None:
    """Called by install() and uninstall()."""
    global _in_place
    _in_place = value


def standard_module(name: str) -> ModuleType:
    """multiprocessing's submodule of this name, also while mpipc's stands in its place. ImportError without one."""
    if _in_place:
        return modules.get(name) or _load_apart(name)
    return import_module(f"{PACKAGE}.{name}")


def take_over() -> None:
    """Remember all that is loaded of multiprocessing. For install(), before it puts anything in its place."""
    _package.__dict__.update(vars(sys.modules[PACKAGE]))
    for full_name, module in list(sys.modules.items()):
        package, _, name = full_name.partition(".")
        if package == PACKAGE and name:
            modules[name] = module


def hand_over() -> None:
    """Enter in sys.modules what was loaded apart. For uninstall(): nobody is to load another one of these modules."""
    for name, module in modules.items():
        _enter(name, module)


def _enter(name: str, module: ModuleType) -> None:
    if sys.modules.setdefault(f"{PACKAGE}.{name}", module) is module:
        parent, _, last = f"{PACKAGE}.{name}".rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).setdefault(last, module)


# --- loading apart ----------------------------------------------------------------------------------------------------


def _load_apart(name: str) -> ModuleType:
    with _lock:
        known = modules.get(name) or _loading.get(name)
        if known is not None:
            return known
        spec = _find_apart(name)
        module = ModuleType(spec.name)
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, spec.parent
        module.__file__, module.__cached__ = spec.origin, spec.cached  # type: ignore[attr-defined]
        vars(module)["__builtins__"] = _builtins
        _loading[name] = module
        try:
            spec.loader.exec_module(module)  # type: ignore[union-attr]
            modules[name] = module
            parent, _, last = name.rpartition(".")
            vars(standard_module(parent) if parent else _package)[last] = module
            if name in SHARED:
                _enter(name, module)
        finally:
            del _loading[name]
        return module


def _find_apart(name: str) -> ModuleSpec:
    """Where the module is. Not by importlib.util.find_spec(): that would ask sys.modules."""
    parent, _, _ = name.rpartition(".")
    path = (standard_module(parent) if parent else sys.modules[PACKAGE]).__path__
    for finder in sys.meta_path:
        if finder.__class__.__module__.partition(".")[0] == "mpipc":
            continue
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(f"{PACKAGE}.{name}", path) if find_spec is not None else None
        if spec is not None and spec.loader is not None:
            return spec
    raise ModuleNotFoundError(f"No module named '{PACKAGE}.{name}'", name=f"{PACKAGE}.{name}")


def _import_apart(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """`__import__` of the modules that were loaded apart: `from . import util` in them.

    Where they stand on each other, that is how they say it. What has an absolute name is asked for by others, too:
    pickle imports with the `__import__` of whoever calls it, and what it finds for them is to be mpipc's.
    """
    if level == 0:
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    above = (globals or {})["__package__"].split(".")
    _, _, rest = ".".join([*above[: len(above) - level + 1], *filter(None, [name])]).partition(".")
    module = standard_module(rest) if rest else _package
    if not fromlist:
        return _package
    if hasattr(module, "__path__"):
        for wanted in fromlist:
            if not hasattr(module, wanted):
                vars(module)[wanted] = standard_module(f"{rest}.{wanted}" if rest else wanted)
    return module


_builtins = {**vars(builtins), "__import__": _import_apart}

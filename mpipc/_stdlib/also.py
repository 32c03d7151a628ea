"""Another package's name for multiprocessing: `python -m mpipc run --also multiprocess`.

`multiprocess` is multiprocessing under another name, with dill in the place of pickle; pathos, p_tqdm, datasets and
others are written for it. With its name in place, `import multiprocess.pool` gives what `import multiprocessing.pool`
gives, the very same module, and the package itself is not loaded, nor need it be installed. What pickles by dill there
does so here, if dill can be imported.

The name stays for as long as the process runs, also after mpipc.uninstall(). Children get it with install().
"""

from __future__ import annotations

import copyreg
import io
import sys
from collections import ChainMap
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from operator import attrgetter
from types import FunctionType, ModuleType
from typing import Any

from mpipc._stdlib import private
from mpipc._stdlib.standard import modules, other_names, standard_module

__all__ = ["stand_in"]

WITH_DILL = "multiprocess"


class _Finder(MetaPathFinder, Loader):
    """Finds multiprocessing's modules under the names of others."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """importlib.abc.MetaPathFinder.find_spec."""
        return ModuleSpec(name, self) if name.partition(".")[0] in other_names else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """multiprocessing's module. ImportError if there is none of this name."""
        _, dot, rest = spec.name.partition(".")
        module = import_module(f"multiprocessing{dot}{rest}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give it back its spec, which importlib has replaced."""
        spec: Any = module.__spec__
        module.__spec__ = spec.loader_state
        if spec.name.partition(".")[0] == WITH_DILL:
            _pickle_by_dill()


_finder = _Finder()


def stand_in(names: list[str]) -> None:
    """From now on `import NAME`, in this process and its children, gives multiprocessing.

    RuntimeError if a package of this name has been loaded already: what is made of it would be of two kinds.
    """
    for name in names:
        if name in other_names:
            continue
        if name in sys.modules:
            raise RuntimeError(f"{name} is loaded already, so multiprocessing cannot take its name any more")
        other_names.append(name)
    if other_names and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _pickle_by_dill() -> None:
    """Pickle as `multiprocess` does, unless the program has put a pickler there, or there is no dill."""
    reduction: Any = import_module("multiprocessing.reduction")
    if reduction.ForkingPickler is not private.ORIGINAL_PICKLER:
        return
    try:
        import dill  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        return

    class ForkingPickler(dill.Pickler):  # type: ignore[misc]
        """dill's pickler, with what is registered for multiprocessing's."""

        dispatch = type(dill.Pickler.dispatch)(dill.Pickler.dispatch)
        loads = staticmethod(dill.loads)
        register = private.ORIGINAL_PICKLER.register

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.dispatch_table = ChainMap(private.extra_reducers, copyreg.dispatch_table)

        @classmethod
        def dumps(cls, obj: Any, protocol: int | None = None) -> memoryview:
            """The object pickled."""
            buffer = io.BytesIO()
            cls(buffer, protocol).dump(obj)
            return buffer.getbuffer()

    def save_function(pickler: Any, function: FunctionType) -> None:
        place = _place_of(function)
        if place is None:
            dill.Pickler.dispatch[FunctionType](pickler, function)
        else:
            pickler.save_reduce(_function_at, place, obj=function)

    ForkingPickler.dispatch[FunctionType] = save_function
    reduction.ForkingPickler = ForkingPickler
    private.set_connections_pickler(ForkingPickler)


def _place_of(function: FunctionType) -> tuple[str, str] | None:
    """Where a function of multiprocessing's own is, if mpipc's module stands in the place of its module.

    dill does not find it there, and would send all that it refers to.
    """
    name = (function.__module__ or "").removeprefix("multiprocessing.")
    if name not in modules or function.__globals__ is not vars(modules[name]):
        return None
    try:
        found = _function_at(name, function.__qualname__)
    except AttributeError:  # a local one
        return None
    return (name, function.__qualname__) if found is function else None


def _function_at(module: str, name: str) -> Any:
    found = attrgetter(name)(standard_module(module))
    return getattr(found, "__func__", found)

"""Part of the interpreter that runs the tests: gives mpipc to the Pythons that tests start by themselves.

Those are started with `python -I -c ...`, which looks at no PYTHONPATH; this file is put into the site-packages of a
virtual environment made for the run. Children that multiprocessing starts are left alone, for mpipc.install() promises
to look after them. Nothing is loaded before the program imports multiprocessing, which some tests check.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

HELPERS = ("from multiprocessing.forkserver import main;", "from multiprocessing.resource_tracker import main;")


class Finder(MetaPathFinder, Loader):
    """Finds multiprocessing, once: loading it is to install mpipc."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name == "multiprocessing" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        sys.meta_path.remove(self)
        importlib.import_module("mpipc").install()
        module = sys.modules[spec.name]
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec


def is_child_of_multiprocessing() -> bool:
    return "--multiprocessing-fork" in sys.orig_argv or any(part.startswith(HELPERS) for part in sys.orig_argv)


if os.environ.get("MPIPC_COMPAT_STARTUP") and not is_child_of_multiprocessing():
    sys.meta_path.insert(0, Finder())

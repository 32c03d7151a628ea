"""Start of a child by the fork server: multiprocessing's, told about the mpipc objects that the child will get."""

from __future__ import annotations

import multiprocessing.popen_forkserver as _base
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

from mpipc._install import child_source, installed
from mpipc.popen_spawn_posix import spawning

__all__ = ["Popen"]


class _Preload(list[str]):
    """The modules that the fork server is to load, and mpipc.install() before any of them.

    The server is started with a line of Python that has the repr() of this list in it.
    """

    def __repr__(self) -> str:
        return f"(exec({child_source('serve')!r}, {{}}), {super().__repr__()})[1]"


class Popen(_base.Popen):
    """multiprocessing.popen_forkserver.Popen whose child takes over the mpipc objects pickled for it."""

    def _launch(self, process_obj: BaseProcess) -> None:
        server: Any = forkserver._forkserver
        modules = server._preload_modules
        if installed():
            server._preload_modules = _Preload(modules)
        try:
            with spawning(self, process_obj) as parcel:
                super()._launch(parcel)  # type: ignore[misc]
        finally:
            server._preload_modules = modules


def __getattr__(name: str) -> Any:
    return getattr(_base, name)

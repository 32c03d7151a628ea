"""Start of a child in a fresh interpreter: multiprocessing's, told about the mpipc objects that the child will get."""

from __future__ import annotations

import multiprocessing.popen_spawn_posix as _base
from multiprocessing.process import BaseProcess
from typing import Any

from mpipc._stdlib.parcel import spawning

__all__ = ["Popen"]


class Popen(_base.Popen):
    """multiprocessing.popen_spawn_posix.Popen whose child takes over the mpipc objects pickled for it."""

    def _launch(self, process_obj: BaseProcess) -> None:
        with spawning(self, process_obj) as parcel:
            super()._launch(parcel)  # type: ignore[misc]


def __getattr__(name: str) -> Any:
    return getattr(_base, name)

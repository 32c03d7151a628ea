"""Start of a child in a fresh interpreter: multiprocessing's, told about the mpipc objects that the child will get."""

from __future__ import annotations

import multiprocessing.popen_spawn_posix as _base
from multiprocessing.process import BaseProcess
from typing import Any

from mpipc._stdlib.parcel import spawning
from mpipc._stdlib.picklers import with_reducer

__all__ = ["Popen"]


class Popen(_base.Popen):
    """multiprocessing.popen_spawn_posix.Popen whose child takes over the mpipc objects pickled for it."""

    def _launch(self, process_obj: BaseProcess) -> None:
        with spawning(self, process_obj) as parcel:
            with_reducer(_base.Popen._launch, _base)(self, parcel)  # type: ignore[attr-defined]


def __getattr__(name: str) -> Any:
    return getattr(_base, name)

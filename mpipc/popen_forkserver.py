"""Start of a child by the fork server: multiprocessing's, told about the mpipc objects that the child will get."""

from __future__ import annotations

from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from mpipc._stdlib.fork_server import fails_on_error, preloading
from mpipc._stdlib.parcel import spawning
from mpipc._stdlib.picklers import with_reducer
from mpipc._stdlib.standard import standard_module

if TYPE_CHECKING:
    from multiprocessing import popen_forkserver as _base
else:
    _base = standard_module("popen_forkserver")

__all__ = ["Popen"]


class Popen(_base.Popen):
    """multiprocessing.popen_forkserver.Popen whose child takes over the mpipc objects pickled for it."""

    def _launch(self, process_obj: BaseProcess) -> None:
        try:
            with preloading(), spawning(self, process_obj) as parcel:
                with_reducer(_base.Popen._launch, _base)(self, parcel)  # type: ignore[attr-defined]
        except (EOFError, OSError) as error:
            if fails_on_error():
                error.add_note(
                    "The fork server may have ended because a module could not be preloaded: see its stderr."
                )
            raise


def __getattr__(name: str) -> Any:
    return getattr(_base, name)

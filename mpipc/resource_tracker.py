"""multiprocessing.resource_tracker, but for shared memory, which the families of processes track themselves.

Programs written for Pythons before 3.13, in which SharedMemory has no `track`, say `unregister(segment._name,
"shared_memory")` instead, or replace register() by a function that leaves shared memory out. The same is meant here:
register() and unregister() set and clear what `track` is for a segment, and the tracker, a process that knows nothing
of it, hears nothing. A register() that stands in the place of this one is called when a segment is created.

Everything else is multiprocessing's, and what is assigned to it here is assigned there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mpipc._stdlib.picklers import Module
from mpipc._stdlib.standard import standard_module

if TYPE_CHECKING:
    from multiprocessing import resource_tracker as _standard
else:
    _standard = standard_module("resource_tracker")

__all__ = ["ensure_running", "register", "unregister"]

ensure_running = _standard.ensure_running

SEGMENT = "shared_memory"

OWN = ("register", "unregister")


def _set_track(name: str, rtype: str, track: bool) -> bool:
    """Whether it is a segment's name."""
    if rtype != SEGMENT:
        return False
    from mpipc.shared_memory import set_track

    set_track(name, track)
    return True


def register(name: str, rtype: str) -> None:
    """Have a segment end with the processes that use mpipc together with this one; others are the tracker's affair.

    Nothing happens if there is no such segment, or if other processes look after it.
    """
    if not _set_track(name, rtype, True):
        _standard.register(name, rtype)


def unregister(name: str, rtype: str) -> None:
    """Have a segment stay until it is unlinked; what is none is the tracker's affair.

    Nothing happens if there is no such segment, or if other processes look after it.
    """
    if not _set_track(name, rtype, False):
        _standard.unregister(name, rtype)


usual_register = register
"""The function above, whatever a program has put in its place."""


class _Module(Module):
    def __getattr__(self, name: str) -> Any:
        return getattr(_standard, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN or name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(_standard, name, value)
            vars(self).pop(name, None)  # install() may have put it there

    def __delattr__(self, name: str) -> None:
        if name in OWN or name.startswith("__"):
            super().__delattr__(name)
        else:
            delattr(_standard, name)
            vars(self).pop(name, None)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *vars(_standard)})


sys.modules[__name__].__class__ = _Module

"""What a child that is a fresh interpreter is sent beside its process: the start method, the family, install() ..."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.popen_fork import Popen as ForkPopen
from multiprocessing.process import BaseProcess, current_process
from typing import Any

from mpipc._memory import awaiting_torch, torch_switch
from mpipc._stdlib import private, start_method
from mpipc._stdlib.standard import installed, other_names
from mpipc._stdlib.start_method import INHERITED_METHOD

__all__ = ["child_source", "spawning"]


def child_source(function: str | None = "install", module: str = "mpipc._stdlib.install") -> str:
    """Python source that imports a module of mpipc in another interpreter, and calls a function of it, if any.

    With a function, other packages' names that mean multiprocessing here do so there. It takes mpipc from where it is
    here: the other interpreter has not been told this one's sys.path yet.
    """
    calls = f"{module}.{function}()\n" if function is not None else ""
    also = ""
    if function is not None and other_names:
        also = "    import mpipc._stdlib.also\n"
        calls += f"mpipc._stdlib.also.stand_in({other_names!r})\n"
    folder = os.path.dirname(os.path.abspath(import_module("mpipc").__path__[0]))
    return (
        "import sys\n"
        "path = sys.path\n"
        f"sys.path = [*path, {folder!r}]\n"
        "try:\n"
        f"    import {module}\n"
        f"{also}"
        "finally:\n"
        "    sys.path = path\n"
        f"{calls}"
    )


class _CurrentProcess:
    """Unpickled, the process object of the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return current_process, ()


class _StartMethod:
    """Unpickled, a note on the current process which start method mpipc's default context has in its parent."""

    def __init__(self, method: str) -> None:
        self.method = method

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return setattr, (_CurrentProcess(), INHERITED_METHOD, self.method)


class _Source:
    """Unpickled, Python source that has been run."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (self.source, {})


def _family_note() -> tuple[_Source, ...]:
    """Unpickled, the family of this process named in the environment, for the child to join when it uses mpipc.

    A fork server may have been started before there was a family, and has then the wrong environment to give. And the
    family is founded if there is none: what the child creates may be meant to outlive it, as with the resource tracker
    that multiprocessing starts at this point.
    """
    from mpipc._core import ENVIRONMENT, current

    try:
        ticket = current().ticket
    except OSError:  # the limit is reached, say: what needs a family will tell, and the child may not
        return ()
    return (_Source(f"import os; os.environ[{ENVIRONMENT!r}] = {ticket!r}"),)


def _tie_note(process: BaseProcess) -> tuple[_Source, ...]:
    """Unpickled, the child ends with this process if it is to: from before `__main__` is imported, which may take long.

    An error is left to the moment when the child starts to run, and somebody sees it.
    """
    place = getattr(process, "_parent_place", None)
    if place is None:
        return ()
    tie = f"try:\n    mpipc._core.ties.end_with{place!r}\nexcept OSError:\n    pass\n"
    return (_Source(child_source(None, "mpipc._core.ties") + tie),)


class _LogLetter:
    """Unpickled, log records of the child go to the process that has called mpipc.log.forward().

    Written when it is pickled: the queue for them is one of the objects that the child gets.
    """

    def __init__(self, by: Any) -> None:
        self.by = by

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        data: bytes = sys.modules["mpipc.log"].letter(self.by)
        return exec, (child_source(None, "mpipc.log") + f"mpipc.log.arrive({data!r})\n", {})


def _log_letter() -> tuple[_LogLetter, ...]:
    by = sys.modules["mpipc.log"].forwards_by() if "mpipc.log" in sys.modules else None
    return () if by is None else (_LogLetter(by),)


def _torch_note() -> tuple[_Source, ...]:
    """Unpickled, the child leaves torch alone, as this process does."""
    if torch_switch.is_enabled():
        return ()
    return (_Source(child_source(None, "mpipc.torch") + "mpipc.torch.disable()\n"),)


class _Name(str):
    """The child's name. Unpickled it is a plain string, and its notes have been unpickled with it."""

    notes: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return operator.getitem, ((str(self), *self.notes), 0)


class _Parcel:
    """The process object on its way to the child, in the place of the process object itself.

    The child unpickles two things: the preparation data (its name, sys.path, the standard library's start method, the
    path of `__main__` ...), then the process object. `__main__` is imported between the two and may ask for mpipc's
    start method, or import a multiprocessing that is to be mpipc, so that has to travel with the former, of which only
    the name is in our hands. The former is unpickled before sys.path is set, when mpipc need not be importable: hence
    pickles made of the standard library's functions.
    """

    def __init__(self, process: BaseProcess, method: str | None) -> None:
        self._process = process
        self._name = _Name(process.name)
        self._name.notes = (
            *([_StartMethod(method)] if method is not None else []),
            *_family_note(),
            *_tie_note(process),
            *([_Source(child_source())] if installed() else []),
            *_log_letter(),
            *_torch_note(),
        )

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._process, attribute)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        by = getattr(self._process, "_by_pickler", None)  # of a context that has one
        return operator.getitem, ((self._process if by is None else by.sent(self._process),), 0)


@contextmanager
def spawning(popen: ForkPopen, process: BaseProcess) -> Iterator[Any]:
    """Around the launch of a child that gets its objects pickled: gives what has to be launched in place of `process`.

    The first mpipc object that is pickled for the child makes mpipc._core reserve a slot which holds everything the
    child is to get, and note it as `popen._mpipc_transit`. Once the child exists the slot is given its pid; if it
    could not be started the slot is given back.
    """
    # The child gets the parent's start method. Asking settles it, which is so with multiprocessing up to Python 3.13.
    awaiting_torch.look()
    parcel = _Parcel(process, start_method.default.get_start_method(allow_none=sys.version_info >= (3, 14)))
    # Up to Python 3.13 the preparation data ask for the standard library's start method, and asking settles it: a later
    # multiprocessing.set_start_method() would fail because of a process that was none of its business.
    unsettled = private.settled() is None
    try:
        yield parcel
    except BaseException:
        if getattr(popen, "_mpipc_transit", None) is not None:
            sys.modules["mpipc._core"].cancel_transit(popen)
        raise
    else:
        if getattr(popen, "_mpipc_transit", None) is not None:
            sys.modules["mpipc._core"].record_transit(popen)
    finally:
        if unsettled and private.settled() is private.fallback():
            private.settle(None)

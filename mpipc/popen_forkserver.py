"""Start of a child by the fork server: multiprocessing's, told about the mpipc objects that the child will get."""

from __future__ import annotations

from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from mpipc._stdlib import private
from mpipc._stdlib.parcel import child_source, spawning
from mpipc._stdlib.picklers import with_reducer
from mpipc._stdlib.standard import installed, standard_module

if TYPE_CHECKING:
    from multiprocessing import popen_forkserver as _base
else:
    _base = standard_module("popen_forkserver")

__all__ = ["Popen"]

ON_ERROR = ("ignore", "warn", "fail")

_server: Any = private.fork_server()
_on_error = "ignore"


def set_preload(modules: list[str], on_error: str) -> None:
    """Have the fork server import these modules when it is started. See BaseContext.set_forkserver_preload()."""
    global _on_error
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be 'ignore', 'warn' or 'fail', not {on_error!r}")
    if private.preload_knows_on_error(_server):  # from Python 3.15 on
        _server.set_forkserver_preload(modules, on_error=on_error)
    else:
        _server.set_forkserver_preload(modules)
        _on_error = on_error


class _Preload(list[str]):
    """The modules that the fork server is to load, and what it does before and with them.

    The server is started with a line of Python that has the repr() of this list in it.
    """

    def __repr__(self) -> str:
        modules = super().__repr__()
        if _on_error != "ignore":
            source = child_source(None, "mpipc._stdlib.preload")
            make = f"scope['mpipc']._stdlib.preload.Modules({modules}, {_on_error!r})"
            modules = f"(lambda scope: (exec({source!r}, scope), {make})[1])({{}})"
        if installed():
            modules = f"(exec({child_source('serve')!r}, {{}}), {modules})[1]"
        return modules


class Popen(_base.Popen):
    """multiprocessing.popen_forkserver.Popen whose child takes over the mpipc objects pickled for it."""

    def _launch(self, process_obj: BaseProcess) -> None:
        modules = private.preloaded(_server)
        private.set_preloaded(_server, _Preload(modules))
        try:
            with spawning(self, process_obj) as parcel:
                with_reducer(_base.Popen._launch, _base)(self, parcel)  # type: ignore[attr-defined]
        except (EOFError, OSError) as error:
            if _on_error == "fail":
                error.add_note(
                    "The fork server may have ended because a module could not be preloaded: see its stderr."
                )
            raise
        finally:
            private.set_preloaded(_server, modules)


def __getattr__(name: str) -> Any:
    return getattr(_base, name)

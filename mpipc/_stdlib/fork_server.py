"""The fork server: multiprocessing's, one a program, and what it does for mpipc before it forks.

It is started with a line of Python that has the repr() of the list of modules in it that it is to load. Whoever starts
it, does so with `preloading()` around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mpipc._stdlib import private
from mpipc._stdlib.parcel import child_source
from mpipc._stdlib.standard import installed

__all__ = ["ensure_running", "fails_on_error", "preloading", "set_preload"]

ON_ERROR = ("ignore", "warn", "fail")

_on_error = "ignore"


def set_preload(modules: list[str], on_error: str) -> None:
    """Have the fork server import these modules when it is started. See BaseContext.set_forkserver_preload()."""
    global _on_error
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be 'ignore', 'warn' or 'fail', not {on_error!r}")
    server = private.fork_server()
    if private.preload_knows_on_error(server):  # from Python 3.15 on
        server.set_forkserver_preload(modules, on_error=on_error)
    else:
        server.set_forkserver_preload(modules)
        _on_error = on_error


def fails_on_error() -> bool:
    """Whether a module that cannot be loaded ends the server."""
    return _on_error == "fail"


class _Preload(list[str]):
    """The modules that the fork server is to load, and what it does before and with them."""

    def __repr__(self) -> str:
        modules = super().__repr__()
        if _on_error != "ignore":
            source = child_source(None, "mpipc._stdlib.preload")
            make = f"scope['mpipc']._stdlib.preload.Modules({modules}, {_on_error!r})"
            modules = f"(lambda scope: (exec({source!r}, scope), {make})[1])({{}})"
        if installed():
            modules = f"(exec({child_source('serve')!r}, {{}}), {modules})[1]"
        return modules


@contextmanager
def preloading() -> Iterator[None]:
    """A fork server that is started meanwhile installs mpipc before it loads anything, if this process has."""
    server = private.fork_server()
    modules = private.preloaded(server)
    private.set_preloaded(server, _Preload(modules))
    try:
        yield
    finally:
        private.set_preloaded(server, modules)


def ensure_running() -> None:
    """Start the fork server, if it does not run."""
    with preloading():
        private.fork_server().ensure_running()

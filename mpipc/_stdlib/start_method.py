"""The start method, for what lies below the contexts: which one an object was made for, and who may pass it on."""

from __future__ import annotations

from multiprocessing.context import assert_spawning

TYPE_CHECKING = False  # as type checkers understand it; typing itself takes a third of the time of multiprocessing
if TYPE_CHECKING:
    from typing import Any

__all__ = ["INHERITED_METHOD", "assert_shareable", "default_context", "is_fork"]

# Looked for on the current process of a child that is importing its `__main__`; see mpipc._stdlib.parcel.
INHERITED_METHOD = "_mpipc_start_method"

default: Any = None
"""mpipc's default context, which mpipc.context puts here: `import mpipc` does."""


def default_context() -> Any:
    """The default context's settled one; asking settles it."""
    return default.get_context()


def is_fork(context: Any) -> bool:
    """Whether a context, by default the settled one, starts processes by fork."""
    method: str = (context or default_context()).get_start_method()
    return method == "fork"


def assert_shareable(obj: Any) -> None:
    """RuntimeError unless `obj` is being pickled for a child, and was not made by a context of fork (`_is_fork_ctx`).

    mpipc could pass it on all the same; multiprocessing cannot, and CPython's tests hold it to the error.
    """
    assert_spawning(obj)
    if obj._is_fork_ctx:
        raise RuntimeError(
            "A SemLock created in a fork context is being shared with a process in a spawn context. This is not"
            f" supported, as in multiprocessing: make the {type(obj).__name__} with get_context('spawn') or"
            " get_context('forkserver'), and it can be shared with processes of every start method."
        )

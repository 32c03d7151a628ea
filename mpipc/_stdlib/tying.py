"""A context whose processes end with the process that starts them, for who is given a context and makes processes."""

from __future__ import annotations

from typing import Any

__all__ = ["tying"]


class _Tying:
    def __init__(self, context: Any) -> None:
        self._tied = context

    def __getattr__(self, name: str) -> Any:
        if name == "_tied":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._tied, name)

    def Process(self, *args: Any, **options: Any) -> Any:
        return self._tied.Process(*args, **options, end_with_parent=True)


def tying(context: Any) -> Any:
    """The context, with a Process that has end_with_parent. TypeError if it has none that knows of it."""
    if not hasattr(context.Process, "end_with_parent"):
        raise TypeError(
            "end_with_parent needs a context of mpipc (mpipc.get_context(...)), whose processes know it, not"
            f" {context!r}"
        )
    return _Tying(context)

"""set_forkserver_preload(on_error=) for the fork servers of Python 3.11 to 3.14, which ignore what they cannot load."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

__all__ = ["Modules"]


class Modules(list[str]):
    """In a fork server: the names of modules, each imported before it is given to the server's loop.

    That loop ignores an ImportError of its own import; one that is raised here ends the server.
    """

    def __init__(self, names: list[str], on_error: str) -> None:
        super().__init__(names)
        self._on_error = on_error

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            try:
                __import__(name)
            except ImportError as error:
                if self._on_error == "fail":
                    raise
                warnings.warn(f"Failed to preload module {name!r}: {error}", ImportWarning, stacklevel=2)
            yield name

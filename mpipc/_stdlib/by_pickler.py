"""A pickler that somebody has asked for: `pickler="cloudpickle"`, "dill", or one of his own.

What it pickles travels as a `Sent` object, whose own pickle says how it is to be unpickled: only who sends needs to be
told. For a pickler of the whole program, see picklers.py.
"""

from __future__ import annotations

import pickle
from functools import partial
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["ByPickler", "Carried", "Sent", "by_pickler"]

KNOWN = ("cloudpickle", "dill")
"""Modules that can be named."""


class Sent:
    """An object on its way: unpickled it is the object itself."""

    __slots__ = ("_data", "_how")

    def __init__(self, how: Any, data: bytes) -> None:
        self._how = how
        self._data = data

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return load, (self._how, self._data)


def load(how: Any, data: bytes) -> Any:
    """What Sent is unpickled with: a named module's loads(), or a function."""
    loads = import_module(how).loads if isinstance(how, str) else how
    return loads(data)


class ByPickler:
    """How objects are pickled for one pool, queue or context."""

    __slots__ = ("_dumps", "_how", "asked_for")

    def __init__(self, asked_for: Any) -> None:
        self.asked_for = asked_for
        """The argument."""
        self._how: Any
        self._dumps: Callable[[Any], Any]
        if isinstance(asked_for, str):
            if asked_for not in KNOWN:
                names = " or ".join(map(repr, KNOWN))
                raise ValueError(f"pickler must be {names}, a module like these, or a function, not {asked_for!r}")
            try:
                module = import_module(asked_for)
            except ImportError as error:
                raise ImportError(f"pickler={asked_for!r} needs a package: pip install {asked_for}") from error
            self._how, self._dumps = asked_for, module.dumps
            if asked_for == "dill":  # which leaves what a function of __main__ refers to behind, unless asked not to
                self._dumps = partial(module.dumps, recurse=True)
        elif hasattr(asked_for, "dumps") and hasattr(asked_for, "loads"):
            named = isinstance(asked_for, ModuleType) and asked_for.__name__ in KNOWN
            self._how = asked_for.__name__ if named else asked_for.loads
            self._dumps = asked_for.dumps
        elif callable(asked_for):
            self._how, self._dumps = pickle.loads, asked_for
        else:
            raise TypeError(
                "pickler must be 'cloudpickle', 'dill', something with dumps() and loads(), or a function that returns"
                f" what pickle.loads() can read, not {asked_for!r}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.asked_for, ModuleType):
            return _by_module, (self.asked_for.__name__,)
        return ByPickler, (self.asked_for,)

    def sent(self, obj: Any) -> Sent:
        """An object pickled, which is what an ordinary pickler is to pickle. Raises what the pickler raises."""
        return Sent(self._how, bytes(self._dumps(obj)))


def _by_module(name: str) -> ByPickler:
    return ByPickler(import_module(name))


def by_pickler(asked_for: Any) -> ByPickler | None:
    """The argument `pickler` of whoever has one. TypeError, ValueError, ImportError: it cannot be had."""
    return asked_for if asked_for is None or isinstance(asked_for, ByPickler) else ByPickler(asked_for)


class Carried:
    """An argument of a process: pickled by a pickler if it has to be pickled at all, for which fork does not ask."""

    __slots__ = ("_by", "value")

    def __init__(self, by: ByPickler, value: Any) -> None:
        self._by = by
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return Carried, (self._by, self._by.sent(self.value))

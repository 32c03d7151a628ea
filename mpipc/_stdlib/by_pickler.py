"""A pickler that somebody has asked for: `pickler="cloudpickle"`, "dill", or one of his own.

What it pickles travels as a `Sent` object, whose own pickle says how it is to be unpickled: only who sends needs to be
told. For a pickler of the whole program, see picklers.py.
"""

from __future__ import annotations

import copyreg
import pickle
import threading
from collections import UserDict
from functools import cache, partial
from importlib import import_module
from types import MethodDescriptorType, MethodType, ModuleType, WrapperDescriptorType

from mpipc._stdlib.picklers import by_reference, for_children
from mpipc._stdlib.private import extra_reducers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["ByPickler", "Carried", "Sent", "by_pickler"]

KNOWN: dict[str, dict[str, Any]] = {
    "cloudpickle": {},
    "dill": {"recurse": True},  # or it leaves behind what a function of __main__ refers to
}
"""Modules that can be named, and what their Pickler is told."""


class Sent:
    """An object on its way: unpickled it is the object itself."""

    __slots__ = ("_buffers", "_data", "_how")

    def __init__(self, how: Any, data: bytes, buffers: Iterable[Any] = ()) -> None:
        self._how = how
        self._data = data
        self._buffers = buffers

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        buffers = self._buffers if protocol >= 5 else map(_copied, self._buffers)
        return load, (self._how, self._data, *buffers)


def _copied(buffer: Any) -> bytes | bytearray:
    """As pickle writes it."""
    return bytes(buffer) if buffer.raw().readonly else bytearray(buffer)


def load(how: Any, data: bytes, *buffers: Any) -> Any:
    """What Sent is unpickled with: a named module's loads(), or a function. The buffers are those that its
    pickle has not."""
    loads = known_module(how).loads if isinstance(how, str) else how
    return loads(data, buffers=buffers) if buffers else loads(data)


# ---- the modules that can be named -----------------------------------------------------------------------------------


def known_module(name: str) -> Any:
    """ImportError says what to install."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"pickler={name!r} needs a package: pip install 'mpipc[{name}]'", name=name) from error


@cache
def known_pickler(name: str) -> type[Any]:
    """The module's Pickler, which pickles connections and sockets also, and what else has been registered with
    ForkingPickler. The registry is multiprocessing's own, so what comes later counts, too."""
    from collections import ChainMap

    standard = known_module(name).Pickler
    table = getattr(standard, "dispatch_table", {})
    own = [table] if not isinstance(table, ChainMap) else table.maps
    maps = [_ByReference(), *(reducers for reducers in own if reducers is not copyreg.dispatch_table), extra_reducers]
    # Its class has it, since the C pickler asks once, in the constructor. And dill looks for its name in the module's.
    members = {"dispatch_table": ChainMap(*maps, copyreg.dispatch_table), "__module__": standard.__module__}
    return type(standard.__name__, (standard,), members)


class _ByReference(UserDict):  # type: ignore[type-arg]
    """The reducers for what may lie in memory that travels by reference, where the program has none of its own."""

    def __init__(self) -> None:
        self.data = by_reference

    def __getitem__(self, cls: type) -> Any:
        registered = extra_reducers.get(cls)
        if registered is not None and registered is not for_children.get(cls):
            raise KeyError(cls)
        return self.data[cls]


def dumps_by_known(name: str, obj: Any) -> tuple[bytes, list[Any]]:
    """The object pickled by a named module, and the buffers (of numpy's arrays, say) apart from that. Raises what that
    raises."""
    from io import BytesIO

    def dump(**options: Any) -> tuple[bytes, list[Any]]:
        stream = BytesIO()
        buffers: list[Any] = []
        known_pickler(name)(stream, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append, **options).dump(obj)
        return stream.getvalue(), buffers

    try:
        return dump(**KNOWN[name])
    except RecursionError:  # of dill with `recurse`, where a function inside a function calls itself
        if not KNOWN[name]:
            raise
        return dump()


# ---- others ----------------------------------------------------------------------------------------------------------

_now = threading.local()
"""Has, as `depth`, how many picklers are at work in this thread that know nothing of what multiprocessing registers."""

_known_to_all = {MethodType, MethodDescriptorType, WrapperDescriptorType, partial}


def _tell_of(cls: type, reducer: Callable[[Any], Any]) -> None:
    """While such a pickler is at work, objects of a class are reduced as ForkingPickler does it: shared memory stays
    shared, where pickle would make a copy without a word, and connections get to where they go. At all other times they
    are reduced as if nothing had been registered."""

    def reduce(obj: Any) -> Any:
        return reducer(obj) if getattr(_now, "depth", 0) else obj.__reduce_ex__(4)

    copyreg.dispatch_table.setdefault(cls, reduce)


def dumps_by_other(dumps: Callable[[Any], Any], obj: Any) -> Any:
    """The object pickled by a function that looks into copyreg, as picklers do."""
    for cls, reducer in list(extra_reducers.items()):
        if not (cls in copyreg.dispatch_table or cls in _known_to_all or cls in by_reference):
            _tell_of(cls, reducer)
    _now.depth = getattr(_now, "depth", 0) + 1
    try:
        return dumps(obj)
    finally:
        _now.depth -= 1


# ---- a pickler -------------------------------------------------------------------------------------------------------


def _is_for_all(asked_for: Any) -> bool:
    """Whether all processes of the program find it by its name: it is not a lambda, nor of a notebook."""
    try:
        pickle.dumps(asked_for)
    except Exception:
        return False
    return getattr(asked_for, "__module__", type(asked_for).__module__) != "__main__"


class ByPickler:
    """How objects are pickled for one pool, queue or context."""

    __slots__ = ("_dumps", "_how", "asked_for")

    def __init__(self, asked_for: Any) -> None:
        self.asked_for = asked_for
        """The argument."""
        self._how: Any
        self._dumps: Callable[[Any], Any]
        if isinstance(asked_for, ModuleType) and asked_for.__name__ in KNOWN:
            self.asked_for = asked_for = asked_for.__name__
        if isinstance(asked_for, str):
            if asked_for not in KNOWN:
                names = " or ".join(map(repr, KNOWN))
                raise ValueError(f"pickler must be {names}, a module like these, or a function, not {asked_for!r}")
            known_module(asked_for)
            self._how, self._dumps = asked_for, partial(dumps_by_known, asked_for)
        elif hasattr(asked_for, "dumps") and hasattr(asked_for, "loads"):
            self._how, self._dumps = asked_for.loads, partial(dumps_by_other, asked_for.dumps)
            try:
                pickle.dumps(self._how)
            except Exception as error:
                raise TypeError(
                    f"loads() of the pickler {asked_for!r} cannot be told to other processes, because it cannot be"
                    f" pickled itself ({error}): make it a function of a module"
                ) from error
        elif callable(asked_for) and not isinstance(asked_for, type):
            self._how, self._dumps = pickle.loads, partial(dumps_by_other, asked_for)
        else:
            raise TypeError(
                "pickler must be 'cloudpickle', 'dill', something with dumps() and loads(), or a function that returns"
                f" what pickle.loads() can read, not {asked_for!r}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.asked_for, str):
            return ByPickler, (self.asked_for,)
        if isinstance(self.asked_for, ModuleType):
            return _by_module, (self.asked_for.__name__,)
        if _is_for_all(self.asked_for):
            return ByPickler, (self.asked_for,)
        try:
            return ByPickler, (self.sent(self.asked_for),)  # it may know more than pickle does
        except Exception as error:
            raise pickle.PicklingError(
                f"the pickler {self.asked_for!r} has to get to a process started by spawn or forkserver, and cannot be"
                f" pickled, not even by itself ({error}): make it a function of a module, with def, or use"
                " pickler='cloudpickle'"
            ) from error

    def sent(self, obj: Any) -> Sent:
        """An object pickled, which is what an ordinary pickler is to pickle. Raises what the pickler raises.

        TypeError: it has not returned bytes.
        """
        data = self._dumps(obj)
        buffers: list[Any] = []
        if type(data) is tuple:
            data, buffers = data
        try:
            return Sent(self._how, data if type(data) is bytes else bytes(memoryview(data)), buffers)
        except TypeError:
            raise TypeError(
                f"the pickler {self.asked_for!r} must return bytes, not {type(data).__name__}: is it a function like"
                " pickle.dumps()?"
            ) from None


def _by_module(name: str) -> ByPickler:
    return ByPickler(import_module(name))


def by_pickler(asked_for: Any, context: Any = None) -> ByPickler | None:
    """The argument `pickler` of whoever has one, or the pickler of its context. TypeError, ValueError, ImportError: it
    cannot be had."""
    if asked_for is None:
        by: ByPickler | None = getattr(context, "_by_pickler", None)
        return by
    return asked_for if isinstance(asked_for, ByPickler) else ByPickler(asked_for)


class Carried:
    """An argument of a process: pickled by a pickler if it has to be pickled at all, for which fork does not ask."""

    __slots__ = ("_by", "value")

    def __init__(self, by: ByPickler, value: Any) -> None:
        self._by = by
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return Carried, (self._by, self._by.sent(self.value))

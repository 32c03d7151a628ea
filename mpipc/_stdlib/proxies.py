"""What the proxies of a manager can do from Python 3.14 on, for all Pythons.

Sets; `|` and `|=` of dicts; clear() and copy() of lists; locked() of locks. In a newer interpreter these are its own
classes, in an older one subclasses of them with the methods that it lacks.
"""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence, MutableSet
from typing import Any

from mpipc._stdlib.likeness import ModuleName
from mpipc._stdlib.standard import standard_module

__all__ = ["AcquirerProxy", "DictProxy", "ListProxy", "SetProxy"]

_base: Any = standard_module("managers")  # its private names are unknown to type checkers

LIST = ("clear", "copy")
DICT = ("__or__", "__ior__", "__ror__", "__reversed__", "fromkeys")
SET = tuple(
    """
    __and__ __class_getitem__ __contains__ __iand__ __ior__ __isub__ __iter__ __ixor__ __len__ __or__ __rand__
    __ror__ __rsub__ __rxor__ __sub__ __xor__ __ge__ __gt__ __le__ __lt__ add clear copy difference
    difference_update discard intersection intersection_update isdisjoint issubset issuperset pop remove
    symmetric_difference symmetric_difference_update union update
    """.split()  # noqa: SIM905  (a list of them is a screen long)
)


def _in_place(name: str) -> Any:
    """An operator such as `|=`: done in the server, and the result is the proxy."""

    def operate(self: Any, value: Any) -> Any:
        self._callmethod(name, (value,))
        return self

    operate.__name__ = name
    return operate


def _with(proxy: Any, methods: tuple[str, ...]) -> Any:
    """The proxy type, or a subclass that has these methods, too."""
    missing = tuple(name for name in methods if name not in proxy._exposed_)
    if not missing:
        return proxy
    namespace: dict[str, Any] = {
        name: _in_place(name) for name in missing if name.startswith("__i") and name != "__iter__"
    }
    namespace.update(
        __module__=ModuleName("mpipc.managers"), __doc__=proxy.__doc__, _exposed_=(*proxy._exposed_, *missing)
    )
    bases = (proxy, _base.MakeProxyType(f"_More{proxy.__name__}", missing))
    return type(proxy.__name__, bases, namespace)


ListProxy: Any = _with(_base.ListProxy, LIST)
DictProxy: Any = _with(_base.DictProxy, DICT)
AcquirerProxy: Any = _with(_base.AcquirerProxy, ("locked",))
SetProxy: Any = getattr(_base, "SetProxy", None)
if SetProxy is None:
    SetProxy = type(
        "SetProxy",
        (_base.MakeProxyType("_SetMethods", SET),),
        {
            "__module__": ModuleName("mpipc.managers"),
            "_method_to_typeid_": {"__iter__": "Iterator"},
            **{name: _in_place(name) for name in ("__iand__", "__ior__", "__isub__", "__ixor__")},
        },
    )

MutableSequence.register(ListProxy)
MutableMapping.register(DictProxy)
MutableSet.register(SetProxy)

"""isinstance(): objects of mpipc are instances of multiprocessing's classes, too, of which theirs are not derived.

Programs ask `isinstance(x, multiprocessing.queues.Queue)`, the logging package does. isinstance() asks the type of x
first, and then `x.__class__`: which here is a class that is a subclass of multiprocessing's, and in all else the type
of x. If multiprocessing's module is not loaded, nobody can have its class to ask with, and it is not loaded for that.

issubclass(type(x), multiprocessing.queues.Queue) stays False: there is no `__class__` between.

Others, Sanic for one, ask whether `x.__module__` begins with "multiprocessing". Of an object it does; its class has the
name of the module that it is in, which pickle looks for.
"""

from __future__ import annotations

import contextlib
import copyreg
import operator
import sys
from typing import Any

from mpipc._stdlib.standard import modules

__all__ = ["Likeness", "ModuleName"]

_FACE = "_mpipc_face"
"""Attribute of a class: its face, which goes with it."""


class ModuleName(str):
    """`__module__` of a class of mpipc: a string, and of objects of the class, multiprocessing's module."""

    __slots__ = ()

    def __get__(self, obj: object, cls: type | None = None) -> str:
        return self if obj is None else self.replace("mpipc", "multiprocessing", 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class Likeness:
    """A base of classes of mpipc that have the names of multiprocessing's. Has no state."""

    __slots__ = ()

    _like: tuple[str, str]
    """Submodule of multiprocessing, and name of the class there."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_like" in vars(cls) and cls.__module__ == f"mpipc.{cls._like[0]}":
            cls.__module__ = ModuleName(cls.__module__)

    @property
    def __class__(self) -> Any:
        """The type of the object, with multiprocessing's class as another base if that is loaded."""
        cls = type(self)
        face = cls.__dict__.get(_FACE)
        if face is None:
            module_name, name = cls._like
            module = modules.get(module_name) or sys.modules.get(f"multiprocessing.{module_name}")
            standard = getattr(module, name, None)
            # There may be none; or, while multiprocessing is being replaced, one that is ours.
            face = _face_of(cls, standard) if isinstance(standard, type) and not issubclass(cls, standard) else cls
        return face

    @__class__.setter
    def __class__(self, cls: type) -> None:
        _set_class(self, cls)

    def __reduce__(self) -> tuple[Any, ...]:
        # What object.__reduce_ex__() returns, pickle takes for a mistake where __class__ is not the type.
        return _new, (type(self),), self.__getstate__()

    def __dir__(self) -> list[str]:
        # object.__dir__ asks __class__, and would find what only multiprocessing's class has.
        return sorted({*vars(self), *dir(type(self))} - {_FACE})


def _new(cls: Any) -> Any:
    return cls.__new__(cls)


_set_class: Any = vars(object)["__class__"].__set__


class _Face(type):
    """The type of faces: classes that are subclasses of two others, and in all that can be asked of them the first.

    A face has no objects: called, it makes one of the class. What is assigned to it is assigned to the class. It is
    another object than the class, though equal to it.
    """

    def mro(cls) -> list[type]:
        """For isinstance(), and for super(x.__class__, x), which has to go on behind the class."""
        bases = type.__getattribute__(cls, "__dict__").get("_bases")
        if bases is None:  # as long as it is being made: no __init_subclass__() is to hear of it
            return [cls, object]
        own, standard = bases
        return [cls, *own.__mro__[1:-1], own, *(base for base in standard.__mro__ if base not in own.__mro__), object]

    def __getattribute__(cls, name: str) -> Any:
        return getattr(_class_of(cls), name)

    def __setattr__(cls, name: str, value: Any) -> None:
        setattr(_class_of(cls), name, value)

    def __delattr__(cls, name: str) -> None:
        delattr(_class_of(cls), name)

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return _class_of(cls)(*arguments, **options)

    def __instancecheck__(cls, obj: Any) -> bool:
        return isinstance(obj, _class_of(cls))

    def __subclasscheck__(cls, other: Any) -> bool:
        return issubclass(other, _class_of(cls))

    def __eq__(cls, other: object) -> bool:
        return _class_of(cls) is (_class_of(other) if isinstance(other, _Face) else other)

    def __hash__(cls) -> int:
        return hash(_class_of(cls))

    def __repr__(cls) -> str:
        return repr(_class_of(cls))

    def __dir__(cls) -> list[str]:
        return dir(_class_of(cls))


def _class_of(face: Any) -> Any:
    return type.__getattribute__(face, "__dict__")["_bases"][0]


def _reduce_face(face: Any) -> Any:
    return operator.getitem, ((_class_of(face),), 0)


copyreg.pickle(_Face, _reduce_face)


def _face_of(cls: type, standard: type) -> type:
    """The face of a class, made. The class itself where that cannot be: then isinstance() says what it does anyway."""
    with contextlib.suppress(TypeError):
        kind: Any = _Face
        if type(cls) is not type:
            kind = type("_Face", (_Face, type(cls)), {})
            copyreg.pickle(kind, _reduce_face)
        face: type = type.__new__(kind, cls.__name__, (cls, standard), {"__slots__": ()})
        type.__setattr__(face, "_bases", (cls, standard))
        type.__setattr__(face, "__bases__", (cls, standard))  # has mro() called again
        type.__setattr__(cls, _FACE, face)
        return face
    return cls

"""mpipc in the place of multiprocessing: install(), and uninstall() to take it back.

The package `multiprocessing` stays the module object that it is, so `import multiprocessing as mp` may have run before.
What is in it is replaced, in six places, each for a way in which programs come by multiprocessing's objects:

* the entries `multiprocessing.queues`, ... of sys.modules, and the attributes of that name, for import statements. They
  serve the standard library's own functions too, which import when they are called: `BaseContext.Queue()` begins with
  `from .queues import Queue`, and gets mpipc's.
* the public names of the package, for `multiprocessing.Queue()`.
* the table of contexts, for what calls `get_context()`.
* the standard default context, which becomes a window on mpipc's. A function like `multiprocessing.Queue` is a method
  bound to it, so whoever ran `from multiprocessing import Queue, set_start_method` before has mpipc's from now on.
* names of multiprocessing's submodules that mpipc's have not, private ones that some packages use anyway (joblib's
  loky makes locks of its own from `synchronize.SemLock`): there they are the standard library's.
* classes and modules that other modules have got from multiprocessing's submodules (`from multiprocessing.pool import
  ThreadPool`): the same names are given mpipc's. Out of reach is what was derived or made from them before; but for the
  one class that the standard library itself derives, concurrent.futures' queue, which is derived anew: a child that is
  a fresh interpreter imports it after install(), and would not understand what it is sent.

What is not loaded yet is not loaded for that: a finder in sys.meta_path gives mpipc's module when multiprocessing's is
asked for, and that one is loaded apart (standard.py).

**Children.** One that is forked has all this. One that is started as a fresh interpreter, or by a fork server, is sent
the text of `child_source()` (parcel.py) with its preparation data, which it runs before it imports `__main__`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import CellType, FunctionType, MethodType, ModuleType

from mpipc._stdlib import private
from mpipc._stdlib.standard import SHARED, hand_over, modules, set_in_place, standard_module, take_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["install", "uninstall"]

_ABSENT: Any = object()


class _Changes:
    """Assignments to the dictionaries of modules, which can be taken back."""

    def __init__(self) -> None:
        self._made: list[tuple[dict[str, Any], str, Any, Any]] = []

    def set(self, namespace: dict[str, Any], name: str, value: Any) -> None:
        self.expect(namespace, name, value, namespace.get(name, _ABSENT))
        namespace[name] = value

    def expect(self, namespace: dict[str, Any], name: str, value: Any, before: Any) -> None:
        """Somebody else is about to assign `value`: what is to be there when it is taken back."""
        self._made.append((namespace, name, before, value))

    def undo(self) -> None:
        """Take back what nobody has assigned again since."""
        for namespace, name, before, value in reversed(self._made):
            if namespace.get(name, _ABSENT) is not value:
                continue
            if before is _ABSENT:
                del namespace[name]
            else:
                namespace[name] = before
        self._made.clear()


_lock = threading.RLock()
_changes: _Changes | None = None  # while installed


def install() -> None:
    """From now on `import multiprocessing` gives mpipc: in this process, and in its children of every start method.

    Names that were imported from multiprocessing before follow; objects and subclasses that were made before do not. A
    start method that was set before is kept. Call it early, before there are other threads. Once is enough, more does
    no harm.
    """
    global _changes
    with _lock:
        if _changes is not None:
            return
        pairs = _load()
        changes = _Changes()
        set_in_place(True)
        sys.meta_path.insert(0, _finder)
        for name, standard, ours in pairs:
            parent, _, last = f"multiprocessing.{name}".rpartition(".")
            changes.set(sys.modules, f"multiprocessing.{name}", ours)
            changes.set(vars(multiprocessing if parent == "multiprocessing" else sys.modules[parent]), last, ours)
            if name == "context":
                changes.set(vars(standard), private.CONTEXTS, ours._concrete_contexts)
                _open_window(ours)
        package = import_module("mpipc")
        for name in package.__all__:
            if name == "freeze_support" and not isinstance(multiprocessing.freeze_support, MethodType):
                continue  # that of the tool by which the program was frozen, which knows how its children begin
            changes.set(vars(multiprocessing), name, getattr(package, name))
        changes.set(vars(multiprocessing), "__getattr__", _submodule)
        replacements = _replacements(pairs)
        for _, standard, ours in pairs:
            _fill_in(standard, ours, changes)
        _replace_references(replacements, changes)
        _derive_anew(*private.SAFE_QUEUE, changes)
        import_module("mpipc._memory.awaiting_torch").act("installed")
        _changes = changes


def uninstall() -> None:
    """`import multiprocessing` gives the standard library's again.

    What modules imported before install() is given back to them; what they imported since they keep, and objects stay
    what they are.
    """
    global _changes
    with _lock:
        if _changes is None:
            return
        if _finder in sys.meta_path:  # or somebody has put another list in its place
            sys.meta_path.remove(_finder)
        import_module("mpipc._memory.awaiting_torch").stop("installed")
        _changes.undo()
        _close_window()
        _changes = None
        set_in_place(False)
        hand_over()


def _known() -> list[str]:
    """multiprocessing's submodules that mpipc has, of its own or the same."""
    mpipc = import_module("mpipc")
    ours = {"context", "process", "reduction", "dummy.connection", *mpipc._SUBMODULES}
    return sorted(ours - mpipc._OWN)


def _load() -> list[tuple[str, ModuleType, ModuleType]]:
    """The submodules that are loaded and that mpipc has of its own: name, multiprocessing's, mpipc's.

    As long as the loading of mpipc's loads further ones of multiprocessing's, those too.
    """
    pairs: dict[str, tuple[str, ModuleType, ModuleType]] = {}
    seen = -1
    while seen != len(pairs):
        seen = len(pairs)
        take_over()
        for name in _known():
            if name in pairs or f"multiprocessing.{name}" not in sys.modules:
                continue
            if name not in SHARED:
                pairs[name] = name, modules[name], import_module(f"mpipc.{name}")
    return list(pairs.values())


class _Finder:
    """Finds mpipc's modules under the names of multiprocessing's that are not loaded yet.

    An importlib.abc.MetaPathFinder and Loader, not derived from them: to import these takes longer than mpipc does.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """importlib.abc.MetaPathFinder.find_spec."""
        package, _, rest = name.partition(".")
        known = package == "multiprocessing" and rest in _known()
        return ModuleSpec(name, self, is_package=rest == "dummy") if known else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """mpipc's module. ImportError where there is none for this interpreter.

        Not put into its place by exec_module(): a thread that imports it meanwhile would be given what stood there.
        """
        _, _, name = spec.name.partition(".")
        standard = standard_module(name)
        ours = standard if name in SHARED else import_module(f"mpipc.{name}")
        spec.loader_state = standard, ours.__spec__
        return ours

    def exec_module(self, module: ModuleType) -> None:
        """Give it back its spec, which importlib has replaced, and note what is to be taken back by uninstall()."""
        spec: Any = module.__spec__
        standard, module.__spec__ = spec.loader_state
        parent, _, last = spec.name.rpartition(".")
        with _lock:
            if _changes is None:  # uninstall() was called meanwhile
                sys.modules[spec.name] = standard
                return
            for namespace, key in ((vars(sys.modules[parent]), last), (sys.modules, spec.name)):
                _changes.expect(namespace, key, module, standard)
            _fill_in(standard, module, _changes)


_finder = _Finder()


def _submodule(name: str) -> ModuleType:
    """`__getattr__` of the package: a submodule that nobody has imported yet; see mpipc.__getattr__()."""
    if name in _known():
        try:
            return import_module(f"multiprocessing.{name}")
        except ImportError:
            pass  # it is not for this platform, or this interpreter
    raise AttributeError(f"module 'multiprocessing' has no attribute {name!r}")


def _fill_in(standard: ModuleType, ours: ModuleType, changes: _Changes) -> None:
    """Give mpipc's module the names that only multiprocessing's has."""
    if ours is not standard:
        for name in vars(standard).keys() - vars(ours).keys():
            changes.set(vars(ours), name, _counterpart(vars(standard)[name]))


def _counterpart(value: Any) -> Any:
    """mpipc's of a module, class or function of multiprocessing's; everything else is what it is."""
    module_name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    package, _, name = module_name.partition(".") if isinstance(module_name, str) else ("", "", "")
    standard = modules.get(name) if package == "multiprocessing" else None
    if standard is None or name not in _known():
        return value
    if value is standard:
        return import_module(f"mpipc.{name}")
    own_name = getattr(value, "__name__", "_")
    if own_name.startswith("_") or vars(standard).get(own_name) is not value:
        return value
    return vars(import_module(f"mpipc.{name}")).get(own_name, value)


def _replacements(pairs: list[tuple[str, ModuleType, ModuleType]]) -> dict[int, tuple[Any, Any]]:
    """By the id() of the standard library's object, since what modules hold need not be hashable: it and mpipc's."""
    replacements: dict[int, tuple[Any, Any]] = {}
    for _, standard, ours in pairs:
        replacements[id(standard)] = (standard, ours)
        for name, old in vars(standard).items():
            new = vars(ours).get(name, old)
            if new is not old and getattr(old, "__module__", None) == standard.__name__ and not name.startswith("_"):
                replacements[id(old)] = (old, new)
    return replacements


def _replace_references(replacements: dict[int, tuple[Any, Any]], changes: _Changes) -> None:
    """Give all modules mpipc's objects in the place of the standard library's that they imported."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in ("multiprocessing", "mpipc"):
            continue
        namespace = getattr(module, "__dict__", None)
        if type(namespace) is not dict or namespace.get("__name__", "").startswith("multiprocessing."):
            continue
        for name, value in list(namespace.items()):
            if id(value) in replacements:
                changes.set(namespace, name, replacements[id(value)][1])


def _derive_anew(module_name: str, class_name: str, changes: _Changes) -> None:
    """Give a module that was imported before a class like its own, derived from mpipc's instead of multiprocessing's.

    The old one stays what it is, for the objects that there are of it.
    """
    namespace = vars(sys.modules[module_name]) if module_name in sys.modules else {}
    old = namespace.get(class_name)
    if old is None or old.__bases__ != (modules["queues"].Queue,):
        return
    own = {name: value for name, value in vars(old).items() if name not in ("__dict__", "__weakref__")}
    new = type(class_name, (import_module("mpipc.queues").Queue,), own)
    for name, value in own.items():
        # super() without arguments looks for its class in a cell that the functions of a class share.
        if isinstance(value, FunctionType) and "__class__" in value.__code__.co_freevars:
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            closure = tuple(CellType(new) if of == "__class__" else cell for of, cell in cells)
            copy = FunctionType(value.__code__, value.__globals__, name, value.__defaults__, closure)
            copy.__kwdefaults__ = value.__kwdefaults__
            setattr(new, name, copy)
    changes.set(namespace, class_name, new)


# --- the standard default context -------------------------------------------------------------------------------------

_window: tuple[Any, type] | None = None  # the default context, and the class that it had


def _open_window(ours: Any) -> None:
    """Make the standard library's default context use the start method of mpipc's, and settle it."""
    global _window
    default, standard = ours._default_context, private.standard_default

    class Window(ours.DefaultContext):  # type: ignore[misc]
        _default_context = property(lambda self: default._default_context)
        _actual_context = property(
            lambda self: default._actual_context, lambda self, context: setattr(default, "_actual_context", context)
        )

    settled = private.settled()
    if default._actual_context is None and settled is not None:
        default._actual_context = ours._concrete_contexts[settled.get_start_method()]
    _window = standard, type(standard)
    standard.__class__ = Window


def _close_window() -> None:
    global _window
    if _window is not None:
        context, its_class = _window
        context.__class__ = its_class
        _window = None


# --- children ---------------------------------------------------------------------------------------------------------


_serving = False


def serve() -> None:
    """install() in a fork server, for `__main__` and the modules that it loads before it forks.

    Its children begin without, and are told with their preparation data: by then the program may have uninstalled.
    """
    global _serving
    install()
    if not _serving:
        _serving = True
        os.register_at_fork(after_in_child=_served)


def _served() -> None:
    global _serving
    if _serving:
        _serving = False
        uninstall()

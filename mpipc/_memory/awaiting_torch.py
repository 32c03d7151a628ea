"""torch, whenever it comes: what this process is to do with its storages is done when it has been imported, by whoever
needs it.

mpipc never imports torch, and this module, which is loaded in programs without it, does no more than to wait for it.
What is done then stands in storages.py; whether, in torch_switch.py.
"""

from __future__ import annotations

import sys
from types import ModuleType

from mpipc._memory import torch_switch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any

__all__ = ["act", "look", "stop"]

LAST = "torch.multiprocessing"
"""The submodule of torch that registers its reducers, when storages and tensors are there."""


def look() -> bool:
    """If torch is there, its storages are sent as references from now on. Whether they are."""
    if LAST not in sys.modules:
        return False
    from mpipc._memory import storages

    return storages.hook()


def act(reason: str) -> None:
    """torch's share_memory_() and collate() take memory of mpipc in this process from now on, also if torch is
    imported later.

    Until stop() is called for each reason: "started" by mpipc, or "installed".
    """
    torch_switch.reasons.add(reason)
    if not look() and _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)


def stop(reason: str) -> None:
    torch_switch.reasons.discard(reason)
    if not torch_switch.reasons and _watch in sys.meta_path:
        sys.meta_path.remove(_watch)


class _Watch:
    """Finds one module as the other finders do, and has it looked at when it has been executed.

    An importlib.abc.MetaPathFinder and Loader, not derived from them: to import these takes longer than mpipc does.
    """

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """importlib.abc.MetaPathFinder.find_spec."""
        if name != LAST:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """importlib.abc.Loader.create_module."""
        return self.loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        """importlib.abc.Loader.exec_module."""
        spec: Any = module.__spec__
        spec.loader = module.__loader__ = self.loader  # as it would be without us: inspect looks at it
        self.loader.exec_module(module)
        from mpipc._memory import storages

        storages.hook()


_watch = _Watch()

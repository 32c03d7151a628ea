"""Whether this process does anything about torch's storages. Set by mpipc.torch, and by who waits for torch
(awaiting_torch.py).
"""

__all__ = ["is_acting", "is_enabled", "reasons", "set_enabled"]

_enabled = True

reasons: set[str] = set()
"""Why share_memory_() and collate() take memory of mpipc in this process: it was "started" by mpipc, or that is
"installed".
"""


def is_enabled() -> bool:
    """Whether storages are sent as references."""
    return _enabled


def set_enabled(enabled: bool) -> None:
    global _enabled
    _enabled = enabled


def is_acting() -> bool:
    """Whether share_memory_() and collate() are to take memory of mpipc."""
    return _enabled and bool(reasons)

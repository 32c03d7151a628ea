"""torch's tensors in mpipc's shared memory: without descriptors, without /dev/shm, gone when their holders are killed.

Nothing has to be called. What a program sends through mpipc's queues, pools, executors and to its processes, tensors,
parameters, modules and all that is made of them, goes by reference, as torch has it: sender and receiver have the same
memory, and each sees what the other writes. So do the batches of a DataLoader:

    DataLoader(dataset, num_workers=8, multiprocessing_context=mpipc.get_context("fork"))

In a process that mpipc has started, and in a program under mpipc.install() or `python -m mpipc run`, share_memory_()
takes memory of mpipc, too. All else is torch's: tensors of other devices, those that torch has shared before, and what
goes through multiprocessing's own queues, pipes and managers, unless it lies in memory of mpipc already.

This module has what is needed to look, and to leave torch alone. docs/torch.md says more. torch is not imported by it.
"""

from __future__ import annotations

from mpipc._memory import awaiting_torch, torch_switch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["can_move", "disable", "enable", "is_enabled", "is_ours"]


def disable() -> None:
    """In this process, and the children that it starts from now on, tensors go torch's way. What has been moved stays
    where it is, and what arrives by reference is understood.
    """
    torch_switch.set_enabled(False)


def enable() -> None:
    """As it is from the start."""
    torch_switch.set_enabled(True)


def is_enabled() -> bool:
    """Whether tensors go mpipc's way."""
    return torch_switch.is_enabled()


def is_ours(obj: Any) -> bool:
    """Whether a tensor, or a storage, lies in memory of mpipc's. TypeError for what is neither."""
    if not awaiting_torch.look():
        raise TypeError(f"{type(obj).__name__} is no tensor and no storage: torch has not been imported")
    from mpipc._memory import storages

    return storages.is_ours(storages.storage_of(obj))


def can_move() -> bool:
    """Whether the torch that is loaded lets mpipc move a tensor that exists. If not (or none is loaded) only the
    batches that collate() makes in a DataLoader's workers, and what was made in mpipc.arrays, go mpipc's way.
    """
    if not awaiting_torch.look():
        return False
    from mpipc._memory import storages

    return storages.can_move()

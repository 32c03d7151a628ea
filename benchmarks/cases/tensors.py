"""A DataLoader of torch, whose batches its workers make in shared memory. Without torch the contestants are missing."""

from __future__ import annotations

from typing import Any

from harness import Case, Operation, Prepare

from . import CASES
from .common import context

SIDE = 387  # 600 KB of float32
BATCH = 4


def batches(package: str) -> Operation:
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    class Samples(IterableDataset):  # type: ignore[type-arg, misc, unused-ignore]
        """The same one for ever, so that it is the way of a batch that counts."""

        def __iter__(self) -> Any:
            sample = torch.rand(SIDE, SIDE)
            while True:
                yield sample

    loader = iter(DataLoader(Samples(), batch_size=BATCH, num_workers=2, multiprocessing_context=context(package)))

    def run(count: int) -> None:
        for _ in range(count):
            if next(loader).shape[0] != BATCH:
                raise ValueError("not what was sent")

    run(20)
    return Operation(run, close=loader._shutdown_workers)


loaders: dict[str, Prepare] = {
    "mpipc": lambda: batches("mpipc"),
    "multiprocessing": lambda: batches("multiprocessing"),
}
CASES.add(
    Case(
        "arrays/dataloader-600KB",
        "Batches of 4 samples of 600 KB from a DataLoader with 2 workers",
        loaders,
        amount=BATCH * SIDE * SIDE * 4,
    )
)

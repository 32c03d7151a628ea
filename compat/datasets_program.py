"""What programs do with HuggingFace's datasets and several processes: written for `multiprocess`, with lambdas.

A worker raises, and one is killed: datasets looks at the processes of its pool to notice that.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

FACTOR = 3  # a variable of __main__: it goes to the workers with the functions that use it


class Kept:
    """An instance of a class of __main__, which dill sends whole."""

    def __init__(self, value: int) -> None:
        self.value = value


def main() -> None:
    from datasets import Dataset, disable_progress_bars, load_from_disk

    disable_progress_bars()
    numbers = Dataset.from_dict({"x": list(range(200)), "text": [f"word {i}" for i in range(200)]})
    kept = Kept(5)
    print(numbers.map(lambda row: {"y": row["x"] * FACTOR + kept.value}, num_proc=2)["y"][:10])
    print(numbers.filter(lambda row: row["x"] % 7 == 0, num_proc=2)["x"][:])
    ranked = numbers.map(lambda row, rank: {"rank": rank}, with_rank=True, num_proc=3)
    print([sum(rank == which for rank in ranked["rank"]) for which in range(3)])
    batched = numbers.map(
        lambda rows, at: {"n": [len(rows["x"])] * len(at), "at": at},
        batched=True, batch_size=30, with_indices=True, num_proc=2,
    )  # fmt: skip
    print(sorted(set(batched["n"])), batched["at"][-1])

    def raises(row: dict[str, Any]) -> dict[str, Any]:
        if row["x"] == 150:
            raise LookupError(f"at {row['text']}")
        return row

    def is_killed(row: dict[str, Any]) -> dict[str, Any]:
        if row["x"] == 150:
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    for function in (raises, is_killed):
        try:
            numbers.map(function, num_proc=2)
        except Exception as error:
            print(f"{function.__name__}: {type(error).__name__}: {error}")

    def generate(shards: list[int]) -> Iterator[dict[str, int]]:
        for shard in shards:
            yield from ({"shard": shard, "i": i} for i in range(3))

    with tempfile.TemporaryDirectory() as folder:
        made = Dataset.from_generator(generate, gen_kwargs={"shards": [1, 2, 3]}, num_proc=3, cache_dir=folder)
        print(sorted(zip(made["shard"], made["i"], strict=True)))
        numbers.save_to_disk(f"{folder}/saved", num_proc=2)
        print(load_from_disk(f"{folder}/saved")["x"][-1])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(HF_HOME=home, HF_HUB_OFFLINE="1")  # read when datasets is imported
        main()

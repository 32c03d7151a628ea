"""A program of joblib's, as programs.py runs it on either package: statistics of the rows of a large matrix.

joblib passes a matrix of this size to its workers as a memory map. Its "multiprocessing" backend is a subclass of Pool
with queues and reducers of its own. Nothing here knows of mpipc.
"""

from __future__ import annotations

import numpy as np
from joblib import Parallel, delayed, parallel_config

ROWS, COLUMNS, SPAN = 400, 2_000, 10


def statistics(matrix: np.ndarray, first: int) -> list[tuple[float, float, int]]:
    """Mean, standard deviation and place of the maximum of some rows."""
    rows = matrix[first : first + SPAN]
    assert isinstance(matrix, np.memmap), "it was to be shared, not copied"
    return [(round(float(row.mean()), 9), round(float(row.std()), 9), int(row.argmax())) for row in rows]


def reciprocal(number: int) -> float:
    return 1 / number


if __name__ == "__main__":
    matrix = np.random.default_rng(seed=11).normal(size=(ROWS, COLUMNS))
    with parallel_config(backend="multiprocessing", n_jobs=3):
        for span in Parallel()(delayed(statistics)(matrix, n) for n in range(0, ROWS, SPAN)):
            print(*span, sep="\n")
        with Parallel(batch_size=7) as parallel:  # one pool for several calls
            for power in range(5):
                print(sum(parallel(delayed(pow)(n, power) for n in range(500))))
        try:
            Parallel()(delayed(reciprocal)(n) for n in range(-5, 5))
        except ZeroDivisionError as error:
            print("as expected:", error)

"""What programs do with pathos and p_tqdm, which are written for `multiprocess`: lambdas, closures and methods."""

from __future__ import annotations

import os
from collections.abc import Callable

from p_tqdm import p_imap, p_map, p_uimap, p_umap
from pathos.helpers import mp
from pathos.multiprocessing import ProcessingPool
from pathos.pools import ProcessPool, ThreadPool, _ProcessPool

OFFSET = 7


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def times(self, x: int) -> int:
        return self.factor * x + OFFSET


def powers(exponent: int) -> Callable[[int], int]:
    return lambda x: x**exponent


def fails(x: int) -> float:
    return 1 / (x - 3)


def main() -> None:
    pool = ProcessPool(nodes=2)
    print(pool.map(lambda x, y: x * y + OFFSET, range(10), range(10, 20)))
    print(list(pool.imap(Scale(3).times, range(10))), sorted(pool.uimap(powers(3), range(10))))
    print(pool.amap(powers(2), range(5)).get(), pool.pipe(lambda x: x + 1, 4), pool.apipe(pow, 2, 5).get())
    print(len(set(pool.map(lambda _: os.getpid(), range(50))) - {os.getpid()}) in (1, 2))
    try:
        pool.map(fails, range(5))
    except ZeroDivisionError as error:
        print("from a worker:", error)
    pool.close()
    pool.join()
    pool.clear()
    with _ProcessPool(2) as raw:
        print(raw.map(powers(2), range(4), 0), raw.starmap(lambda x, y: x - y, [(3, 1), (5, 2)]))
    print(ThreadPool(2).map(lambda x: -x, range(3)), ProcessingPool(2).map(Scale(2).times, [1, 2]))

    queue, lock = mp.Queue(), mp.Lock()

    def child() -> None:
        with lock:
            queue.put(powers(4))

    process = mp.Process(target=child)
    process.start()
    print(queue.get(timeout=30)(2))
    process.join()

    print(p_map(lambda x: x + OFFSET, range(20), num_cpus=2))
    print(list(p_imap(lambda x, y: x * y, [1, 2, 3], [4, 5, 6], num_cpus=2)))
    print(sorted(p_umap(Scale(1).times, range(10), num_cpus=2)), sorted(p_uimap(powers(2), range(5), num_cpus=2)))


if __name__ == "__main__":
    main()

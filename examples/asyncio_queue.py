"""Results of worker processes in an asyncio program, without a thread that waits for them.

A queue of mpipc has a file descriptor that is readable while there is something in it, so an event loop can wait for it
beside everything else. Usage: python asyncio_queue.py [LIMIT]
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from queue import Empty
from typing import Any

import mpipc


class AsyncQueue:
    """The receiving end of a queue, for the coroutines of one event loop."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._not_empty = asyncio.Event()
        asyncio.get_running_loop().add_reader(queue, self._not_empty.set)

    async def get(self) -> Any:
        while True:
            try:
                return self._queue.get_nowait()
            except Empty:  # also if another consumer was faster
                self._not_empty.clear()
                await self._not_empty.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._queue)


def count_primes(tasks: Any, results: Any) -> None:
    for start, stop in iter(tasks.get, None):
        primes = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(start, 2), stop))
        results.put((start, primes))


async def received(queue: AsyncQueue, count: int) -> AsyncIterator[tuple[int, int]]:
    for _ in range(count):
        yield await queue.get()


async def heartbeat() -> None:
    """Something else that the event loop does."""
    while True:
        print(".", end="", flush=True)
        await asyncio.sleep(0.05)


async def main(limit: int) -> None:
    step = max(limit // 50, 1)
    tasks: Any = mpipc.Queue()
    results: Any = mpipc.Queue()
    starts = range(0, limit, step)
    workers = [mpipc.Process(target=count_primes, args=(tasks, results)) for _ in range(mpipc.cpu_count())]
    for worker in workers:
        worker.start()
    tasks.put_many((start, min(start + step, limit)) for start in starts)
    tasks.put_many([None] * len(workers))

    queue = AsyncQueue(results)
    beating = asyncio.create_task(heartbeat())
    total = 0
    async for _, primes in received(queue, len(starts)):
        total += primes
    beating.cancel()
    queue.close()
    for worker in workers:
        worker.join()
    print(f"\n{total} primes below {limit}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("limit", nargs="?", type=int, default=500_000, help="count the primes below this")
    asyncio.run(main(parser.parse_args().limit))

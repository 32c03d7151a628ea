"""imap(buffersize=): how far the iterable is read ahead of who takes the results."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import wait_until

from mpipc import TimeoutError as PoolTimeoutError

# Nothing of this differs by start method.
pytestmark = pytest.mark.slow_with("spawn", "forkserver")


def double(number: int) -> int:
    if number < 0:
        raise ValueError(number)
    return 2 * number


class Numbers:
    """0, 1, 2 ..., and how many of them were read."""

    def __init__(self, end: int | None = None, wrong: tuple[int, ...] = ()) -> None:
        self.read = 0
        self._end = end
        self._wrong = wrong

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            if number == self._end:
                return
            self.read = number + 1
            yield -number if number in self._wrong else number


@pytest.fixture(params=["imap", "imap_unordered"])
def imap(request: pytest.FixtureRequest, pool: Any) -> Any:
    return getattr(pool, request.param)


def come_to_rest(numbers: Numbers, read: int, pool: Any) -> None:
    """As many are read as that, all are done, and no more is read by then."""
    wait_until(lambda: numbers.read >= read, message="so many are read")
    for _ in range(3):
        assert pool.apply(double, (4,)) == 8  # goes the way that a task for one more would have gone
    assert numbers.read == read


@pytest.mark.parametrize("buffersize", [1, 2, 7])
def test_no_more_is_read_than_is_taken(imap: Any, pool: Any, buffersize: int) -> None:
    numbers = Numbers()
    results = imap(double, numbers, buffersize=buffersize)
    come_to_rest(numbers, buffersize, pool)
    for taken in range(1, 20):
        assert next(results) == 2 * (taken - 1)
        come_to_rest(numbers, buffersize + taken, pool)
    assert results.next(timeout=30) == 38


@pytest.mark.parametrize(("buffersize", "chunks"), [(1, 1), (5, 1), (10, 2), (14, 2)])
def test_chunks_count_as_a_whole(imap: Any, pool: Any, buffersize: int, chunks: int) -> None:
    numbers = Numbers()
    results = imap(double, numbers, 5, buffersize=buffersize)
    come_to_rest(numbers, 5 * chunks, pool)
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    come_to_rest(numbers, 5 * chunks + 5, pool)


@pytest.mark.parametrize("count", [0, 1, 3, 100])
@pytest.mark.parametrize("buffersize", [1, 3, 1000])
def test_all_results_come(imap: Any, count: int, buffersize: int) -> None:
    assert sorted(imap(double, Numbers(count), buffersize=buffersize)) == list(range(0, 2 * count, 2))
    assert sorted(imap(double, list(range(count)), buffersize=buffersize)) == list(range(0, 2 * count, 2))
    assert sorted(imap(double, range(count), 4, buffersize=buffersize)) == list(range(0, 2 * count, 2))


def test_a_sequence_is_read_no_further_either(imap: Any, pool: Any) -> None:
    seen = []

    class Watched(list[int]):
        def __iter__(self) -> Iterator[int]:
            for item in super().__iter__():
                seen.append(item)
                yield item

    results = imap(double, Watched(range(100)), buffersize=3)
    wait_until(lambda: len(seen) == 3, message="three are read")
    assert list(results) == list(range(0, 200, 2))


def test_errors_and_timeouts(imap: Any, pool: Any) -> None:
    """An error is a result that is taken; a timeout takes none."""
    numbers = Numbers(wrong=(1,))
    results = imap(double, numbers, buffersize=2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="-1"):
        next(results)
    come_to_rest(numbers, 4, pool)
    hold = threading.Event()

    def late() -> Iterator[int]:
        yield 1
        hold.wait(30)
        yield 2

    results = imap(double, late(), buffersize=1)
    assert next(results) == 2
    with pytest.raises(PoolTimeoutError):
        results.next(timeout=0.01)
    hold.set()
    assert list(results) == [4]

    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    results = imap(double, broken(), buffersize=1)
    assert next(results) == 2
    with pytest.raises(KeyError, match="broken"):
        next(results)


def test_when_nobody_has_the_iterator_nothing_more_is_read(imap: Any, pool: Any) -> None:
    numbers = Numbers()
    results = imap(double, numbers, buffersize=2)
    assert next(results) == 0
    del results
    gc.collect()
    come_to_rest(numbers, numbers.read, pool)
    chunks = imap(double, numbers, 2, buffersize=2)
    assert next(chunks) == 0
    chunks.close()
    del chunks
    gc.collect()
    wait_until(lambda: not pool._cache, message="neither waits for results")


def test_a_closed_pool_reads_all_so_that_join_ends(ctx: Any) -> None:
    pool = ctx.Pool(2)
    numbers = Numbers(500)
    results = pool.imap(double, numbers, buffersize=3)
    assert next(results) == 0
    pool.close()
    pool.join()
    assert numbers.read == 500
    assert list(results) == list(range(2, 1000, 2))


@pytest.mark.parametrize("end", ["terminate", "del"])
def test_a_pool_that_ends_does_not_wait_for_it(ctx: Any, end: str) -> None:
    pool = ctx.Pool(1)
    results = pool.imap(double, Numbers(), buffersize=1)
    assert next(results) == 0
    if end == "terminate":
        pool.terminate()
        pool.join()
    else:
        del pool
        gc.collect()
    del results


@pytest.mark.parametrize(
    ("buffersize", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)]
)
def test_what_it_cannot_be(imap: Any, buffersize: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        imap(double, [1], buffersize=buffersize)

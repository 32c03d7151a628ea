"""copy=False: ordinary arrays arrive as read-only views of what the sender has copied; and what pools do with
arrays."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from support import wait_until
from support.array_tasks import (
    die_with,
    has_inherited,
    in_place,
    new_array,
    ordinary,
    pass_on,
    pieces_of,
    read_only,
    sums,
)

import mpipc
from mpipc import arrays
from mpipc._memory.memory import bound_of_views

np = pytest.importorskip("numpy")

LONG = 60.0
LARGE = 100_000
"""Elements of 8 bytes: that travels apart from the pickle in any queue."""


def in_use() -> int:
    return arrays.usage().in_use


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    gc.collect()
    before = in_use()
    yield
    gc.collect()
    wait_until(lambda: in_use() <= before, message="memory that nobody holds is free")


@pytest.fixture
def low_bound() -> Iterator[None]:
    """This process may have views of 1 MB."""
    before = bound_of_views(1 << 20)
    yield
    bound_of_views(before)


def is_view(array: Any) -> bool:
    return not array.flags.writeable and arrays.is_shared(array)


# ---- queues ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("length", [2000, 10_000, LARGE])
def test_views_instead_of_copies(length: int, order: Any) -> None:
    queue: Any = mpipc.Queue(copy=False)
    before = in_use()
    sent = np.arange(2 * length).reshape((2, length), order=order)
    queue.put({"array": sent})
    sent[...] = 0
    arrived = queue.get()["array"]
    assert np.array_equal(arrived, np.arange(2 * length).reshape((2, length), order=order))
    assert is_view(arrived)
    with pytest.raises(ValueError, match="read-only"):
        arrived[0] = 1
    assert arrays.holders(arrived) == ([os.getpid()], 0, False)
    part = arrived[:, ::2]
    del arrived
    assert in_use() > before, "the last view counts"
    del part
    assert in_use() == before
    assert queue.statistics().copied == 0


def test_small_arrays_are_copied_all_the_same() -> None:
    queue: Any = mpipc.Queue(copy=False)
    queue.put(np.arange(10))
    arrived = queue.get()
    arrived += 1
    assert not arrays.is_shared(arrived)


def test_for_one_object() -> None:
    """get(copy=) of a queue that does otherwise."""
    copies: Any = mpipc.Queue()
    views: Any = mpipc.Queue(copy=False)
    for queue, how, expected in (
        (copies, False, True),
        (copies, None, False),
        (views, True, False),
        (views, None, True),
    ):
        queue.put(np.arange(LARGE))
        arrived = queue.get(copy=how)
        assert np.array_equal(arrived, np.arange(LARGE))
        assert is_view(arrived) == expected
        assert arrived.flags.writeable == (not expected)


def test_what_is_shared_stays_so() -> None:
    queue: Any = mpipc.Queue(copy=False)
    array = arrays.zeros(LARGE)
    queue.put((array, np.arange(LARGE)))
    same, view = queue.get()
    same[...] = 5
    assert (array == 5).all()
    assert is_view(view)


def test_several_in_a_message_and_many_messages() -> None:
    queue: Any = mpipc.Queue(copy=False)
    queue.put_many([{"a": np.full(LARGE, n), "b": np.full(20_000, -n)} for n in range(20)])
    received: list[Any] = []
    while len(received) < 20:
        received += queue.get_many(7)
    for n, message in enumerate(received):
        assert is_view(message["a"])
        assert is_view(message["b"])
        assert (message["a"] == n).all()
        assert (message["b"] == -n).all()


def test_a_view_is_forwarded_without_a_copy(ctx: Any) -> None:
    source, target, told = ctx.Queue(copy=False), ctx.Queue(copy=False), ctx.Queue()
    process = ctx.Process(target=pass_on, args=(source, target, told))
    process.start()
    source.put(np.arange(LARGE))
    arrived = target.get(timeout=LONG)
    told.get(timeout=LONG)
    process.join()
    assert is_view(arrived)
    assert np.array_equal(arrived, np.arange(LARGE))
    copies: Any = mpipc.Queue()
    copies.put(arrived[10:])
    copy = copies.get()
    assert copy.tolist() == list(range(10, LARGE))
    assert not arrays.is_shared(copy), "a queue that copies does"


def test_views_that_would_be_too_many_are_copied(low_bound: None) -> None:
    """A quarter of the machine's memory; here 1 MB."""
    queue: Any = mpipc.Queue(copy=False)
    received = []
    for n in range(4):
        queue.put(np.full(50_000, n))
        received.append(queue.get())
    assert [is_view(array) for array in received] == [True, True, False, False]
    assert [array[0] for array in received] == [0, 1, 2, 3]
    assert queue.statistics().copied == 2
    del received[0]
    queue.put(np.full(50_000, 7))
    assert is_view(queue.get()), "there is room again"
    assert queue.statistics().copied == 2


def test_read_only_arrays_arrive_as_ever() -> None:
    """Whatever their size: those of numpy that were read-only are, as with pickle."""
    queue: Any = mpipc.Queue()
    for length in (10, LARGE):
        array = np.arange(length)
        queue.put(array)
        assert queue.get().flags.writeable
        array.flags.writeable = False
        queue.put(array)
        assert not queue.get().flags.writeable


# ---- pools -----------------------------------------------------------------------------------------------------------


def test_arguments_and_results_of_a_pool(ctx: Any) -> None:
    array = arrays.zeros((10, 1000), "int64")
    with ctx.Pool(2) as pool:
        arrived = pool.apply(in_place, (array,))
        assert np.shares_memory(arrived, array)
        assert (array == 1).all()
        assert pool.apply_async(sums, (array[::2],), {"other": array[5]}).get() == 6000
        assert pool.map(sums, list(array)) == [1000] * 10
        assert pool.map(sums, list(array), chunksize=4) == [1000] * 10
        assert list(pool.imap(sums, iter(array))) == [1000] * 10
        assert sorted(pool.imap_unordered(sums, (array[:n] for n in range(1, 4)))) == [1000, 2000, 3000]
        assert pool.starmap(sums, [(row, row) for row in array]) == [2000] * 10
        results = pool.map(in_place, [array[n, ::-1] for n in range(10)])
        assert all(np.shares_memory(result, array) for result in results)
        assert (array == 2).all()
        assert [int(made[0]) for made in pool.map(new_array, [10, 2000, LARGE])] == [10, 2000, LARGE]
        made = pool.apply(new_array, (LARGE,))
        assert arrays.is_shared(made)
        views = pool.apply(pieces_of, (array,))
        assert all(np.shares_memory(view, array) for view in views)
        pool.close()
        pool.join()
    assert (made == LARGE).all(), "the worker that has made it is gone"
    wait_until(lambda: arrays.holders(array).processes == [os.getpid()])


def test_an_executor(ctx: Any) -> None:
    array = arrays.zeros(LARGE)
    with mpipc.ProcessPoolExecutor(1, mp_context=ctx) as executor:
        assert np.shares_memory(executor.submit(in_place, array).result(), array)
        assert list(executor.map(sums, [array, array[1:]])) == [LARGE, LARGE - 1]
        assert arrays.is_shared(executor.submit(new_array, LARGE).result())


@pytest.mark.slow_with("spawn", "forkserver")
def test_a_pool_by_cloudpickle(ctx: Any) -> None:
    pytest.importorskip("cloudpickle")
    array = arrays.zeros(LARGE)
    with ctx.Pool(1, pickler="cloudpickle") as pool:
        arrived = pool.apply(in_place, (array,))
        assert (array == 1).all()
        assert pool.apply(lambda a: float(a.sum()), (np.ones(LARGE),)) == LARGE
    assert np.array_equal(arrived, array)


def test_what_a_function_has_with_it_is_copied() -> None:
    """A function is pickled once, and stays with the worker: a partial's arguments are part of it."""
    array = arrays.zeros(LARGE)
    with mpipc.Pool(1) as pool:
        assert (pool.apply(partial(in_place, array)) == 1).all()
    assert not array.any()


@pytest.mark.slow_with("spawn", "forkserver")
def test_views_in_a_pool(ctx: Any) -> None:
    with ctx.Pool(1, copy=False) as pool:
        assert pool.apply(read_only, (np.ones(LARGE),)) == (True, LARGE)
        result = pool.apply(ordinary, (LARGE,))
        assert is_view(result)
        assert result[5] == LARGE
        assert [is_view(each) for each in pool.imap(ordinary, [LARGE, 30_000])] == [True, True]
        assert result[6] == LARGE
    with ctx.Pool(1) as pool:
        assert pool.apply(read_only, (np.ones(LARGE),)) == (False, LARGE)
        assert pool.apply(ordinary, (LARGE,)).flags.writeable
    with mpipc.ProcessPoolExecutor(1, mp_context=ctx, copy=False) as executor:
        assert executor.submit(read_only, np.ones(LARGE)).result() == (True, LARGE)


def test_a_worker_that_is_killed_holds_nothing(ctx: Any) -> None:
    before = in_use()
    with ctx.Pool(1) as pool:
        lost = pool.apply_async(die_with, (arrays.zeros(LARGE),))
        with pytest.raises(mpipc.WorkerLostError):
            lost.get(LONG)
        del lost
        assert pool.apply(sums, (np.ones(5),)) == 5
        gc.collect()
        wait_until(lambda: in_use() == before)


def test_inherited_arrays_of_workers() -> None:
    context: Any = mpipc.get_context("fork")
    array = arrays.zeros(LARGE)
    with context.Pool(1) as pool:
        assert pool.apply(has_inherited) >= 8 * LARGE
        assert len(arrays.holders(array).processes) == 2
    for options in ({"inherit": False}, {"initializer": arrays.drop_inherited}):
        with context.Pool(1, **options) as pool:
            assert pool.apply(has_inherited) == 0
            wait_until(lambda: arrays.holders(array).processes == [os.getpid()])
            assert pool.apply(sums, (array,)) == 0


# ---- other packages --------------------------------------------------------------------------------------------------


def there_and_back(obj: Any, **options: Any) -> Any:
    queue = mpipc.Queue(raise_on_pickle_error=True, **options)
    queue.put(obj)
    return queue.get(timeout=LONG)


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    block = arrays.zeros((LARGE, 2))
    frame = pandas.DataFrame(block, columns=["x", "y"], copy=False)
    arrived = there_and_back(frame)
    assert arrived.equals(frame)
    assert np.shares_memory(arrived.to_numpy(), block)
    copied = there_and_back(pandas.DataFrame(np.ones((LARGE, 2))))
    assert not arrays.is_shared(copied.to_numpy())
    viewed = there_and_back(pandas.DataFrame(np.ones((LARGE, 2))), copy=False)
    assert arrays.is_shared(viewed.to_numpy())
    assert viewed.sum().tolist() == [LARGE, LARGE]
    mixed = pandas.DataFrame({"n": np.arange(LARGE), "text": ["some"] * LARGE})
    assert there_and_back(mixed, copy=False).equals(mixed)


def test_pyarrow() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    memory = arrays.array(np.arange(LARGE))
    array = pyarrow.Array.from_buffers(pyarrow.int64(), LARGE, [None, pyarrow.py_buffer(memory)])
    arrived = there_and_back(array)
    assert arrived.equals(array)
    memory[5] = 77
    assert arrived[5].as_py() == 77, "the same memory"
    part = there_and_back(array[10:20])
    assert part.to_pylist() == list(range(10, 20))
    assert arrays.holders(memory).messages == 0
    table = pyarrow.table({"x": np.arange(LARGE)})
    assert there_and_back(table).equals(table)
    assert there_and_back(table, copy=False).equals(table)


def test_polars_is_copied() -> None:
    polars = pytest.importorskip("polars")
    memory = arrays.array(np.arange(LARGE))
    frame = polars.DataFrame({"x": memory})
    before = arrays.holders(memory)
    arrived = there_and_back(frame)
    assert arrived.equals(frame)
    assert arrays.holders(memory) == before


def test_arrays_of_objects_are_copied() -> None:
    array = np.array([arrays.zeros(3), "text", None], dtype=object)
    arrived = there_and_back(array)
    assert arrived[1:].tolist() == ["text", None]
    assert np.shares_memory(arrived[0], array[0]), "what is in them is what it is"

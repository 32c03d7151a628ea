"""mpipc.arrays: what travels by reference, through which ways, and who holds it until when."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import run_script, sysctl, wait_until
from support.array_tasks import add_one, hold, look_at_views, pass_on, put_and_hang, seen, write_to
from support.pickling import needs_dill

import mpipc
from mpipc import arrays
from mpipc.queues import Full, JoinableQueue, PriorityQueue, Queue
from mpipc.sysv import LimitError

np = pytest.importorskip("numpy")

LONG = 60.0


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Whatever a test has done, its memory is free a moment later."""
    gc.collect()
    before = arrays.usage().in_use
    yield
    gc.collect()
    wait_until(lambda: arrays.usage().in_use <= before, message="memory that nobody holds is free")


def there_and_back(obj: Any) -> Any:
    queue = mpipc.Queue(raise_on_pickle_error=True)
    queue.put(obj)
    return queue.get(timeout=LONG)


def base() -> Any:
    array = arrays.empty((6, 8, 10), "int32")
    array[...] = np.arange(480).reshape(6, 8, 10)
    return array


VIEWS: dict[str, Callable[[Any], Any]] = {
    "whole": lambda a: a,
    "slice": lambda a: a[2:4, 1:],
    "every second": lambda a: a[::2, 1::3, ::2],
    "reversed": lambda a: a[::-1, :, ::-3],
    "transposed": lambda a: a.T,
    "axes moved": lambda a: a.transpose(1, 2, 0)[3:],
    "broadcast": lambda a: np.broadcast_to(a[0, 0], (4, 3, 10)),
    "broadcast, one element": lambda a: np.broadcast_to(a[5, 7, 9:], (3, 3)),
    "windows": lambda a: np.lib.stride_tricks.sliding_window_view(a, 3, axis=2),
    "diagonal": lambda a: a.diagonal(),
    "other type": lambda a: a.view("uint8"),
    "part of elements": lambda a: a.view([("low", "u2"), ("high", "i2")])["high"],
    "read-only": lambda a: read_only(a[1]),
    "no dimension": lambda a: a[1, 2, 3:4].reshape(()),
    "new axes": lambda a: a[0, 0][None, :, None],
}


def read_only(array: Any) -> Any:
    array = array.view()
    array.flags.writeable = False
    return array


# ---- what travels by reference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_the_same_memory_where_it_arrives(name: str) -> None:
    whole = base()
    view = VIEWS[name](whole)
    arrived = there_and_back(view)
    assert type(arrived) is np.ndarray
    assert (arrived.shape, arrived.strides, arrived.dtype) == (view.shape, view.strides, view.dtype)
    assert arrived.flags.writeable == view.flags.writeable
    assert arrived.__array_interface__["data"][0] == view.__array_interface__["data"][0]
    assert np.array_equal(arrived, view)
    assert arrays.is_shared(view)
    assert arrays.is_shared(arrived)
    del whole, view
    assert arrays.holders(arrived).processes == [os.getpid()]


def test_views_in_another_process(ctx: Any) -> None:
    whole = base()
    views = {name: make(whole) for name, make in VIEWS.items()}
    source, target = ctx.Queue(), ctx.Queue()
    process = ctx.Process(target=look_at_views, args=(source, target))
    process.start()
    expected = seen(views)
    source.put(views)
    assert target.get(timeout=LONG) == expected
    assert target.get(timeout=LONG) is None
    assert (whole == 7).all(), "what the receiver has written"
    process.join()


@pytest.mark.parametrize("shape", [0, (0,), (3, 0), (0, 5, 2)])
def test_an_array_without_elements(shape: Any) -> None:
    array = arrays.empty(shape, "int16")
    arrived = there_and_back(array)
    assert (arrived.shape, arrived.dtype) == (array.shape, array.dtype)
    assert there_and_back(base()[2:2]).shape == (0, 8, 10)


@pytest.mark.parametrize(
    "dtype",
    ["M8[ns]", "m8[s]", "?", "c16", "S5", "U3", ">i4", "f2", "V7", [("x", "i4"), ("y", "f8", (2,))]],
    ids=str,
)
def test_every_dtype_but_that_of_objects(dtype: Any) -> None:
    array = arrays.zeros(20, dtype)
    raw = memoryview(array.view("uint8")).cast("B")
    raw[:] = bytes(i % 2 for i in range(len(raw)))
    arrived = there_and_back(array[::3])
    assert arrived.dtype == array.dtype
    assert arrived.tobytes() == array[::3].tobytes()
    assert arrays.is_shared(arrived)


class Named(np.ndarray):  # type: ignore[misc]
    """A subclass as they are written: what it adds is in its __dict__."""

    name = "none"

    def __array_finalize__(self, obj: Any) -> None:
        self.name = getattr(obj, "name", "none")


class Stateful(np.ndarray):  # type: ignore[misc]
    """One that pickles itself, in the way that numpy's manual has."""

    unit = ""

    def __reduce__(self) -> Any:
        made, arguments, state = super().__reduce__()
        return made, arguments, (*state, self.unit)

    def __setstate__(self, state: Any) -> None:
        self.unit = state[-1]
        super().__setstate__(state[:-1])


def test_a_plain_subclass_and_what_it_adds() -> None:
    array = base().view(Named)
    array.name = "frame"
    arrived = there_and_back(array[1])
    assert (type(arrived), arrived.name) == (Named, "frame")
    assert np.array_equal(arrived, array[1])
    assert arrays.is_shared(arrived)


def test_records() -> None:
    array = arrays.zeros(5, [("x", "i4"), ("y", "f8")])
    arrived = there_and_back(array.view(np.recarray))
    arrived.x[2] = 5
    assert type(arrived) is np.recarray
    assert array["x"].tolist() == [0, 0, 5, 0, 0]


def test_a_subclass_that_pickles_itself_is_copied_right() -> None:
    array = base()[:, :, 0].view(Stateful)
    array.unit = "m"
    arrived = there_and_back(array)
    assert (type(arrived), arrived.unit) == (Stateful, "m")
    assert np.array_equal(arrived, array)
    assert not arrays.is_shared(arrived)


def test_a_masked_array_is_copied_right() -> None:
    array = np.ma.masked_array(base(), base() % 3 == 0)
    arrived = there_and_back(array)
    assert type(arrived) is np.ma.MaskedArray
    assert (arrived.mask == array.mask).all()
    assert (arrived == array).all()
    assert not arrays.is_shared(arrived)


def test_a_memory_map_is_copied(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "file", "int64", "w+", shape=(1000,))
    mapped[...] = np.arange(1000)
    arrived = there_and_back(mapped)
    assert np.array_equal(arrived, mapped)
    assert not arrays.is_shared(arrived)


def test_what_is_not_shared_is_copied() -> None:
    for array in (np.arange(10), np.arange(200_000), np.arange(200_000)[::2], np.array([None, "text"])):
        arrived = there_and_back(array)
        assert np.array_equal(arrived, array)
        assert not arrays.is_shared(array)
        assert not arrays.is_shared(arrived)
        assert arrived.flags.writeable


BUFFERS: dict[str, Callable[[memoryview], memoryview]] = {
    "whole": lambda v: v,
    "slice": lambda v: v[10:20],
    "nothing": lambda v: v[5:5],
    "every second": lambda v: v[::2],
    "reversed": lambda v: v[::-3],
    "read-only": lambda v: v[3:].toreadonly(),
    "numbers": lambda v: v[8:88].cast("d"),
    "table": lambda v: v[:60].cast("B", (5, 12)),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_memoryviews(name: str) -> None:
    memory = arrays.buffer(100)
    memoryview(memory)[:] = bytes(range(100))
    view = BUFFERS[name](memoryview(memory))
    arrived = there_and_back(view)
    assert (arrived.shape, arrived.strides, arrived.format) == (view.shape, view.strides, view.format)
    assert arrived.readonly == view.readonly
    assert arrived.tobytes() == view.tobytes()
    assert name == "nothing" or arrays.is_shared(arrived)
    assert arrays.holders(memory).processes == [os.getpid()]


def test_memory_itself() -> None:
    memory = arrays.buffer(1000)
    assert bytes(memory) == bytes(1000)
    assert len(memory) == memory.nbytes == 1000
    assert there_and_back(memory) is memory, "a process has one object for it"
    for length in (0, 1, 255, 256, 4097):
        assert len(there_and_back(arrays.buffer(length))) == length


@pytest.mark.parametrize("make", [lambda: memoryview(b"abc"), lambda: memoryview(base().T)], ids=["not ours", "T"])
def test_memoryviews_that_cannot_be_sent(make: Any) -> None:
    with pytest.raises(TypeError, match="cannot pickle 'memoryview' object"):
        there_and_back(make())


def test_buffers_need_no_numpy() -> None:
    run_script(
        """
        import sys
        import mpipc
        from mpipc import arrays

        queue = mpipc.Queue()
        memory = arrays.buffer(10)
        queue.put([memory, memoryview(memory)[2:5]])
        same, part = queue.get()
        part[0] = 5
        assert same is memory and bytes(memory) == bytes((0, 0, 5)) + bytes(7)
        assert arrays.holders(part).messages == 0 and arrays.usage().in_use > 0
        assert "numpy" not in sys.modules
        sys.modules["numpy"] = None
        try:
            arrays.empty(3)
        except ImportError as error:
            assert "pip install numpy" in str(error), error
        else:
            raise AssertionError
        """
    )


# ---- making ----------------------------------------------------------------------------------------------------------


def test_zeros_and_array() -> None:
    for _ in range(3):  # memory that was used before, too
        made = arrays.zeros((5, 3000), "int16")
        assert not made.any()
        made[...] = -1
    lists = arrays.array([[1, 2], [3, 4]])
    assert lists.tolist() == [[1, 2], [3, 4]]
    fortran = arrays.array(np.asfortranarray(np.arange(12).reshape(3, 4)))
    assert fortran.flags.f_contiguous
    assert fortran.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert arrays.array(np.arange(10)[::2], "float32").tolist() == [0, 2, 4, 6, 8]
    assert arrays.array("text").tolist() == "text"
    assert arrays.empty(np.int64(3)).shape == (3,)
    assert arrays.empty([3, np.uint8(4)]).shape == (3, 4)  # type: ignore[arg-type]
    assert all(map(arrays.is_shared, (made, lists, fortran)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: arrays.empty(3, object), TypeError, "pointers to objects of one process"),
        (lambda: arrays.empty(3, [("x", "i4"), ("y", "O")]), TypeError, "pointers to objects of one process"),
        (lambda: arrays.array([object()]), TypeError, "pointers to objects of one process"),
        (lambda: arrays.buffer(-1), ValueError, "cannot be negative: -1"),
        (lambda: arrays.empty(-1), ValueError, "negative dimensions"),
        (lambda: arrays.zeros((3, -2)), ValueError, "negative dimensions"),
        (lambda: arrays.empty((-3, -2)), ValueError, "negative dimensions"),
        (lambda: arrays.empty(3.5), TypeError, "float"),  # type: ignore[arg-type]
        (lambda: arrays.empty(1 << 61), ValueError, "larger than any address space"),
        (lambda: arrays.holders(np.zeros(3)), ValueError, "does not lie in memory of mpipc.arrays"),
        (lambda: arrays.is_shared(3), TypeError, "bytes-like object"),
        (lambda: arrays.empty(1 << 40), LimitError, r"shmget\(.*size=8796093022208"),
        (lambda: arrays.buffer(1 << 46), LimitError, r"shmget\(.*size=70368744177664"),
    ],
)
def test_errors(call: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_a_limit_of_the_kernel_is_named() -> None:
    with sysctl("shmmax", 16 << 20), pytest.raises(LimitError, match=r"kernel\.shmmax"):
        arrays.buffer(64 << 20)
    assert len(arrays.buffer(10)) == 10


# ---- ways ------------------------------------------------------------------------------------------------------------


def all_queues(ctx: Any) -> dict[str, Any]:
    return {
        "JoinableQueue": ctx.JoinableQueue(),
        "SimpleQueue": ctx.SimpleQueue(),
        "PriorityQueue": PriorityQueue(ctx=ctx),
        "bounded": ctx.Queue(2),
        "cloudpickle": ctx.Queue(pickler="cloudpickle"),
        "Queue": ctx.Queue(),
    }


def test_through_every_queue(ctx: Any) -> None:
    pytest.importorskip("cloudpickle")
    queues = all_queues(ctx)
    process = ctx.Process(target=add_one, args=(queues, ctx.get_start_method() == "fork"))
    process.start()
    sent = {}
    for number, (name, queue) in enumerate(queues.items()):
        sent[name] = arrays.zeros((100, 10), "int64")
        sent[name][...] = number
        queue.put(sent[name][::2])
    process.join()
    assert process.exitcode == 0
    for number, (name, queue) in enumerate(queues.items()):
        arrived = queue.get()
        assert np.shares_memory(arrived, sent[name]), name
        assert (sent[name][::2] == number + 1).all()
        assert (sent[name][1::2] == number).all()


@pytest.mark.parametrize("make", [Queue, JoinableQueue, PriorityQueue])
def test_many_at_once(make: Any) -> None:
    queue = make()
    sent = [arrays.zeros(n + 1) for n in range(300)]
    assert queue.put_many([(n, array, array[::-1]) for n, array in enumerate(sent)]) == 300
    assert arrays.holders(sent[7]).messages == 1
    received: list[Any] = []
    while len(received) < 300:
        received += queue.get_many(100)
    assert [n for n, _, _ in received] == list(range(300))
    assert all(np.shares_memory(sent[n], array) and np.shares_memory(sent[n], back) for n, array, back in received)
    assert arrays.holders(sent[7]) == ([os.getpid()], 0, False)


def test_arguments_of_a_process(ctx: Any) -> None:
    array, memory = arrays.zeros(1000, "int64"), arrays.buffer(100)
    other = arrays.zeros((3, 10), "int64")
    process = ctx.Process(target=write_to, args=(array, other[1, ::2], memoryview(memory)[50:], memory))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert array[0] == 11
    assert other[1].tolist() == [22, 0] * 5
    assert (bytes(memory)[0], bytes(memory)[50]) == (44, 33)
    wait_until(lambda: arrays.holders(array).processes == [os.getpid()])


def _answer(end: Any) -> None:
    array = end.recv()
    array += 1
    end.send(array)


def test_pipes_copy(ctx: Any) -> None:
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=_answer, args=(theirs,))
    process.start()
    array = base()[::2]
    ours.send(array)
    arrived = ours.recv()
    process.join()
    assert np.array_equal(arrived, array + 1)
    assert not arrays.is_shared(arrived)
    ours.send(arrays.buffer(10))
    assert bytes(theirs.recv()) == bytes(10)


@pytest.mark.slow_with("spawn", "forkserver")
def test_managers_copy(ctx: Any) -> None:
    array = base()
    with ctx.Manager() as manager:
        shared = manager.list([array[0]])
        array[...] = 0
        assert np.array_equal(shared[0], np.arange(80).reshape(8, 10))
        assert not arrays.is_shared(shared[0])


def test_plain_pickle_copies() -> None:
    array = base()[::2]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(array, protocol))
        assert np.array_equal(copy, array)
        assert not arrays.is_shared(copy)
    memory = arrays.buffer(10)
    memoryview(memory)[3] = 9
    assert bytes(pickle.loads(pickle.dumps(memory))) == bytes(memory)


def _closure(array: Any) -> Callable[[], Any]:
    return lambda: array


def test_by_cloudpickle() -> None:
    """What it pickles refers to memory, too, a function's own variables for instance."""
    pytest.importorskip("cloudpickle")
    array, memory = base(), arrays.buffer(100)
    queue: Any = mpipc.Queue(pickler="cloudpickle")
    queue.put((_closure(array[::2]), memory, memoryview(memory)[5:], np.arange(100_000)))
    assert arrays.holders(array).messages == 1
    function, same, part, ordinary = queue.get()
    assert np.shares_memory(function(), array)
    assert same is memory
    part[0] = 9
    assert bytes(memory)[5] == 9
    assert np.array_equal(ordinary, np.arange(100_000))
    assert not arrays.is_shared(ordinary)


@needs_dill
def test_dill_copies() -> None:
    """It has a way of its own with arrays."""
    array = base()[::2]
    queue: Any = mpipc.Queue(pickler="dill")
    queue.put((array, lambda: 3, np.arange(100_000)))
    copy, _, ordinary = queue.get()
    assert np.array_equal(copy, array)
    assert np.array_equal(ordinary, np.arange(100_000))
    assert not arrays.is_shared(copy)


def test_a_process_by_a_pickler_that_was_asked_for(ctx: Any) -> None:
    pytest.importorskip("cloudpickle")
    array = arrays.zeros(100)
    context = ctx.with_pickler("cloudpickle")
    results = context.Queue()

    def work() -> None:
        array[...] = 5
        results.put((lambda: array, os.getpid()))

    process = context.Process(target=work)
    process.start()
    function, pid = results.get(timeout=LONG)
    process.join()
    assert pid == process.pid
    assert np.shares_memory(function(), array)
    assert (array == 5).all()


def test_forwarded_by_one_that_never_heard_of_arrays(ctx: Any) -> None:
    source, target, told = ctx.Queue(), ctx.Queue(), ctx.Queue()
    process = ctx.Process(target=pass_on, args=(source, target, told))
    process.start()
    whole = base()
    memory = arrays.buffer(50)
    source.put({"views": [make(whole) for make in VIEWS.values()], "memory": memory, "part": memoryview(memory)[7:]})
    arrived = target.get(timeout=LONG)
    assert told.get(timeout=LONG) == (ctx.get_start_method() == "fork"), "whether it has imported mpipc.arrays"
    for make, view in zip(VIEWS.values(), arrived["views"], strict=True):
        assert np.shares_memory(view, whole)
        assert np.array_equal(view, make(whole))
    assert arrived["memory"] is memory
    arrived["part"][0] = 3
    assert bytes(memory)[7] == 3
    process.join()


def test_the_same_piece_in_three_queues_and_twice_in_a_message() -> None:
    queues = [mpipc.Queue() for _ in range(3)]
    array = base()
    for queue in queues:
        queue.put((array, array[1], array))
    assert arrays.holders(array) == ([os.getpid()], 3, False)
    del array
    for left, queue in zip((2, 1, 0), queues, strict=True):
        first, part, again = queue.get()
        assert again is first
        part[...] = left
        assert (first[1] == left).all()
        assert arrays.holders(first) == ([os.getpid()], left, False)
        del first, part, again


def test_many_pieces_in_a_message() -> None:
    sent = [arrays.zeros(4) for _ in range(500)]
    arrived = there_and_back([*sent, *sent[::-1]])
    assert all(np.shares_memory(one, other) for one, other in zip([*sent, *sent[::-1]], arrived, strict=True))


def test_a_reducer_of_the_users_own_goes_first() -> None:
    run_script(
        """
        from multiprocessing.reduction import ForkingPickler
        import numpy
        import mpipc
        from mpipc import arrays

        def reduce(array):
            return numpy.full, (3, array.flat[0] + 40)

        for when in ("before", "after"):
            if when == "after":
                arrays.empty(1)
            ForkingPickler.register(numpy.ndarray, reduce)
            queue = mpipc.Queue()
            array = arrays.zeros(10)
            array[0] = 2
            queue.put(array)
            assert queue.get().tolist() == [42] * 3, when
            array.setflags(write=False)
            queue.put([numpy.arange(1, 5)])
            assert queue.get()[0].tolist() == [41] * 3, when
            del ForkingPickler._extra_reducers[numpy.ndarray]
        """
    )


def test_threads() -> None:
    queue: Any = mpipc.Queue()
    failed: list[BaseException] = []

    def send(number: int) -> None:
        try:
            for n in range(200):
                array = arrays.empty(1000 + n, "int64")
                array[...] = number * 1000 + n
                queue.put((number, n, array[::-1]))
        except BaseException as error:
            failed.append(error)

    def receive() -> None:
        try:
            for _ in range(200):
                number, n, array = queue.get(timeout=LONG)
                assert (array == number * 1000 + n).all()
                assert len(array) == 1000 + n
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=receive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert queue.empty()


# ---- who holds it, and until when ------------------------------------------------------------------------------------


def in_use() -> int:
    return arrays.usage().in_use


def test_memory_is_free_with_its_last_view() -> None:
    before = in_use()
    array = arrays.zeros(100_000)
    views = [array[10:], array.T, memoryview(array)]
    assert in_use() - before >= 800_000
    del array
    assert in_use() - before >= 800_000
    views.clear()
    assert in_use() == before


def test_memory_is_used_again() -> None:
    array = arrays.empty(1_000_000)
    address = array.__array_interface__["data"][0]
    used = arrays.usage()
    for _ in range(20):
        del array
        array = arrays.empty(1_000_000)
        assert array.__array_interface__["data"][0] == address
    assert arrays.usage() == used


def test_an_address_that_is_used_again_is_not_taken_for_what_was_there() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    queue: Any = mpipc.Queue()
    waiting: list[int] = []
    kept: list[tuple[Any, int]] = []
    for number in range(2000):
        array = arrays.empty(source.choice((10, 100, 5000, 20_000)), "int64")
        array[...] = number
        if source.random() < 0.5:
            queue.put(array[source.randrange(5) :])
            waiting.append(number)
        if source.random() < 0.3:
            kept.append((array, number))
        while waiting and source.random() < 0.5:
            assert (queue.get() == waiting.pop(0)).all()
        while kept and source.random() < 0.3:
            array, expected = kept.pop(source.randrange(len(kept)))
            assert (array == expected).all()
    while waiting:
        assert (queue.get() == waiting.pop(0)).all()


def test_a_process_that_has_it_is_a_holder(ctx: Any) -> None:
    source, told, go = ctx.Queue(), ctx.Queue(), ctx.Event()
    process = ctx.Process(target=hold, args=(source, told, go))
    process.start()
    array = arrays.zeros(100, "int64")
    array[0] = 5
    source.put(array)
    assert told.get(timeout=LONG) == (process.pid, 5)
    assert arrays.holders(array) == (sorted([os.getpid(), process.pid]), 0, False)
    go.set()
    process.join()
    wait_until(lambda: arrays.holders(array).processes == [os.getpid()])


def test_the_message_outlives_its_sender(ctx: Any) -> None:
    """It is killed, with what it has sent on its way."""
    target, go = ctx.Queue(), ctx.Event()
    array = arrays.zeros(5000, "int64")
    array[...] = np.arange(5000)
    process = ctx.Process(target=put_and_hang, args=(target, array, go))
    process.start()
    del array
    first = target.get(timeout=LONG)
    wait_until(lambda: target.qsize() == 2)
    process.kill()
    process.join()
    for number, part in (first, target.get(timeout=LONG), target.get(timeout=LONG)):
        assert part.tolist() == list(range(number, 5000))


class Fills:
    """Being pickled, it takes the last place in the queue, so that its own message has to wait."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def __reduce__(self) -> Any:
        self.queue.put_nowait("filler")
        return int, (0,)


def test_a_sender_that_died_while_it_waited_for_room() -> None:
    """Its message was written, and not sent. Recovery finds that out, though nobody looks into the queue."""
    queue: Any = mpipc.Queue(1)
    array = base()
    pid = os.fork()
    if pid == 0:
        queue.put((array, Fills(queue)))
        os._exit(1)
    wait_until(lambda: queue.statistics().waiting_writers == 1)
    assert arrays.holders(array).messages == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: arrays.holders(array) == ([os.getpid()], 0, False))
    assert queue.get() == "filler"
    assert queue.empty()


@pytest.mark.parametrize("killed", [False, True])
def test_a_receiver_that_is_gone_holds_nothing(ctx: Any, killed: bool) -> None:
    source, told, go = ctx.Queue(), ctx.Queue(), ctx.Event()
    process = ctx.Process(target=hold, args=(source, told, go))
    process.start()
    before = in_use()
    source.put(arrays.zeros(100_000, "int64"))
    assert told.get(timeout=LONG) == (process.pid, 0)
    assert in_use() - before >= 800_000, "the receiver has it, and nobody else"
    if killed:
        process.kill()
    else:
        go.set()
    process.join()
    wait_until(lambda: in_use() == before)


def test_shutdown_drops_what_messages_hold() -> None:
    queue: Any = mpipc.Queue()
    before = in_use()
    for _ in range(10):
        queue.put(arrays.zeros(10_000))
    assert in_use() > before
    queue.shutdown()
    assert in_use() > before, "what was put can be got"
    assert not queue.get().any()
    queue.shutdown(immediate=True)
    wait_until(lambda: in_use() == before)


@pytest.mark.parametrize("ordinary", [False, True])
def test_a_queue_that_nobody_has_drops_what_its_messages_hold(ordinary: bool) -> None:
    queue: Any = mpipc.Queue()
    before = in_use()
    for _ in range(10):
        queue.put(np.zeros(100_000) if ordinary else arrays.zeros(100_000))
    assert in_use() - before >= 8_000_000
    del queue
    wait_until(lambda: in_use() == before)


def test_what_could_not_be_sent_holds_nothing() -> None:
    queue: Any = mpipc.Queue(1, raise_on_pickle_error=True)
    array = base()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        queue.put((array, lambda: 0))
    assert arrays.holders(array).messages == 0
    with pytest.raises((AttributeError, pickle.PicklingError)):
        queue.put_many([(array, lambda: 0)])
    assert arrays.holders(array).messages == 0
    queue.put(1)
    with pytest.raises(Full):
        queue.put(array, block=False)
    assert queue.put_many([array, array], block=False) == 0
    assert arrays.holders(array).messages == 0


class Fails:
    def __reduce__(self) -> Any:
        return os.getenv, (1,)


def test_what_cannot_be_unpickled_holds_nothing() -> None:
    queue: Any = mpipc.Queue()
    array = base()
    queue.put((array, Fails()))
    queue.put((array, 1))
    assert arrays.holders(array).messages == 2
    with pytest.raises(TypeError):
        queue.get()
    gc.collect()
    assert arrays.holders(array).messages == 1
    assert np.shares_memory(queue.get()[0], array)


def test_pickles_of_a_reader() -> None:
    """recv_bytes() has no message that could hold memory: a copy."""
    queue: Any = mpipc.Queue()
    array = base()
    queue.put(array)
    copy = pickle.loads(queue._reader.recv_bytes())
    assert np.array_equal(copy, array)
    assert arrays.holders(array).messages == 0


def test_trim_returns_what_nobody_holds() -> None:
    keeps = arrays.zeros(10)
    array = arrays.zeros(3_000_000, "uint8")
    assert arrays.usage().bytes >= 3_000_000
    assert arrays.trim(3600) == 0, "not that of an hour"
    del array
    assert arrays.trim() >= 3_000_000
    assert arrays.usage().bytes < 3_000_000
    assert not keeps.any()
    assert not arrays.zeros(3_000_000, "uint8").any()


def test_a_full_table_is_an_error_of_put() -> None:
    """Messages in flight that refer to memory: 16384 of a program. None is lost without a word."""
    result = run_script(
        """
        import mpipc
        from mpipc import arrays

        queue = mpipc.Queue()
        array = arrays.zeros(10, "int64")
        sent = queue.put_many([array] * 16384)
        assert sent == 16384 == arrays.holders(array).messages
        for call in (lambda: queue.put(array), lambda: queue.put_many([array])):
            try:
                call()
            except OSError as error:
                assert "16384 messages" in str(error), error
            else:
                raise AssertionError
        queue.put("other messages")
        import numpy
        queue.put(numpy.zeros(100_000))             # one that is copied anyway is, with its message
        array[0] = 3
        assert queue.get()[0] == 3
        queue.put(array)
        received = 0
        while received < 16383:
            received += len(queue.get_many(min(128, 16383 - received)))
        assert queue.get() == "other messages"
        assert len(queue.get()) == 100_000
        assert queue.get()[0] == 3
        assert queue.empty() and arrays.holders(array).messages == 0
        """
    )
    assert result.stderr == ""


# ---- fork ------------------------------------------------------------------------------------------------------------


def _in_a_child(function: Callable[[], object]) -> int:
    """The exit status of a child by os.fork()."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_holds_what_its_parent_does() -> None:
    kept = [arrays.zeros(100_000)]
    go, done = mpipc.Event(), mpipc.Event()
    before = in_use()

    def child() -> None:
        found = arrays.holders(kept[0])
        assert found.processes == sorted([os.getpid(), os.getppid()])
        assert found.inherited
        done.set()
        assert go.wait(LONG)
        assert (kept[0] == 5).all()
        kept[0][...] = 6
        assert arrays.holders(kept[0]).processes == [os.getpid()]

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child()
            status = 0
        finally:
            os._exit(status)
    assert done.wait(LONG)
    assert arrays.holders(kept[0]) == (sorted([os.getpid(), pid]), 0, False)
    kept[0][...] = 5
    kept.clear()
    assert in_use() == before, "the child has it"
    go.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    wait_until(lambda: in_use() < before)


def test_a_child_can_send_what_it_has_inherited() -> None:
    array, queue = base(), mpipc.Queue()
    assert _in_a_child(lambda: queue.put(array[::2])) == 0
    arrived = queue.get()
    assert np.shares_memory(arrived, array)
    wait_until(lambda: arrays.holders(array).processes == [os.getpid()])


def test_drop_inherited() -> None:
    array = arrays.zeros(100_000)

    def parent_is_alone() -> bool:
        return arrays.holders(array).processes == [os.getpid()]

    assert parent_is_alone()
    assert arrays.drop_inherited() == 0, "nothing was inherited here"
    told: Any = mpipc.Queue()
    go = mpipc.Event()

    def gives_up() -> None:
        mine = arrays.zeros(50)
        given = arrays.drop_inherited()
        told.put((given, arrays.is_shared(array)))
        assert arrays.is_shared(mine)
        assert arrays.drop_inherited() == 0
        assert go.wait(LONG)
        assert (told.get(timeout=LONG) == 3).all(), "sent again, it is a holder again"

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            gives_up()
            status = 0
        finally:
            os._exit(status)
    given, shared = told.get(timeout=LONG)
    assert (given >= 800_000, shared) == (True, False)
    assert parent_is_alone()
    array[...] = 3
    told.put(array)
    go.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

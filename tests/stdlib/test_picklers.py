"""Picklers of the program's own, in the place of ForkingPickler: all that travels is pickled and unpickled by them."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from multiprocessing import reduction
from typing import Any

import pytest
from support import run_script
from support.pickling import needs_dill

import mpipc
import mpipc.queues
from mpipc._stdlib import picklers
from mpipc._stdlib.private import ORIGINAL_PICKLER


class Wrapping:
    """Marks everything, and knows what it has unpickled."""

    unpickled: list[Any]

    @staticmethod
    def dumps(obj: Any) -> memoryview:
        return memoryview(pickle.dumps(("marked", obj)))

    @classmethod
    def loads(cls, data: bytes) -> Any:
        cls.unpickled.append(type(data))
        return pickle.loads(data)


class Reducer(reduction.AbstractReducer):
    ForkingPickler = Wrapping  # type: ignore[assignment]


PLACES = ["reduction", "queues", "reducer"]


@pytest.fixture(params=PLACES)
def replaced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Wrapping stands in one of the three places."""
    Wrapping.unpickled = []
    if request.param == "reduction":
        monkeypatch.setattr(reduction, "ForkingPickler", Wrapping)
    elif request.param == "queues":
        monkeypatch.setattr(mpipc.queues, "_ForkingPickler", Wrapping)
    else:
        mpipc.get_context("spawn").reducer = Reducer()
    yield str(request.param)
    if request.param == "reducer":
        mpipc.get_context().reducer = reduction


@pytest.fixture(autouse=True)
def usual_afterwards() -> Iterator[None]:
    yield
    assert picklers.current() is ORIGINAL_PICKLER


@pytest.mark.parametrize("obj", [1, None, "text", (1, [2]), {1}, bytes(100_000)], ids=lambda obj: type(obj).__name__)
def test_queues_ask_it_for_everything(replaced: str, obj: Any) -> None:
    context = mpipc.get_context("spawn")
    for queue in (context.Queue(), context.SimpleQueue(), context.JoinableQueue(), mpipc.queues.PriorityQueue()):
        queue.put(obj)
        assert queue.get() == ("marked", obj)
    assert Wrapping.unpickled == [bytes] * 4


def test_many_at_once(replaced: str) -> None:
    queue = mpipc.get_context("spawn").Queue()
    assert queue.put_many(range(3)) == 3
    assert queue.get_many(3) == [("marked", 0), ("marked", 1), ("marked", 2)]


def test_the_usual_one_again() -> None:
    queue = mpipc.get_context("spawn").Queue()
    before = mpipc.queues._ForkingPickler  # type: ignore[attr-defined]
    for put_back in (
        lambda: delattr(mpipc.queues, "_ForkingPickler"),
        lambda: setattr(mpipc.queues, "_ForkingPickler", before),
    ):
        Wrapping.unpickled = []
        mpipc.queues._ForkingPickler = Wrapping  # type: ignore[attr-defined]
        put_back()
        queue.put({1})
        assert queue.get() == {1} and not Wrapping.unpickled
    assert mpipc.queues._ForkingPickler is ORIGINAL_PICKLER  # type: ignore[attr-defined]


def test_order_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nearer to the queues goes first."""
    monkeypatch.setattr(reduction, "ForkingPickler", 1)
    assert picklers.current() == 1
    mpipc.get_context().reducer = type("Reducer", (), {"ForkingPickler": 2})()
    try:
        assert mpipc.get_context("fork").reducer.ForkingPickler == picklers.current() == 2
        monkeypatch.setattr(mpipc.queues, "_ForkingPickler", 3)
        assert picklers.current() == mpipc.queues._ForkingPickler == 3  # type: ignore[attr-defined]
        monkeypatch.undo()
        assert picklers.current() == 2
    finally:
        mpipc.get_context().reducer = reduction
    assert multiprocessing.get_context().reducer is reduction  # type: ignore[attr-defined]


def test_what_it_raises_is_what_pickling_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Wrapping):
        @staticmethod
        def dumps(obj: Any) -> memoryview:
            raise pickle.PicklingError("no")

    monkeypatch.setattr(reduction, "ForkingPickler", Refusing)
    context = mpipc.get_context("spawn")
    with pytest.raises(pickle.PicklingError, match="no"):
        context.SimpleQueue().put(1)
    told = []
    queue = context.Queue()
    monkeypatch.setattr(queue, "_on_queue_feeder_error", lambda error, obj: told.append((str(error), obj)))
    queue.put(5)
    assert told == [("no", 5)] and queue.empty()


def test_one_that_is_no_pickler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(reduction, "ForkingPickler")
    with pytest.raises(AttributeError, match="ForkingPickler"):
        mpipc.get_context("spawn").SimpleQueue().put(1)


POOL = """
    import io, marshal, sys, types
    import mpipc
    from mpipc import reduction

    def made(code):
        return types.FunctionType(marshal.loads(code), globals())

    class Pickler(reduction.ForkingPickler):
        def reducer_override(self, obj):
            if isinstance(obj, types.FunctionType) and obj.__name__ == "<lambda>":
                return made, (marshal.dumps(obj.__code__),)
            return NotImplemented

        @classmethod
        def dumps(cls, obj, protocol=None):
            buffer = io.BytesIO()
            cls(buffer, protocol).dump(obj)
            return buffer.getbuffer()

    reduction.ForkingPickler = Pickler

    def twice(function):
        return lambda: 2

    if __name__ == "__main__":
        context = mpipc.get_context(sys.argv[1])
        with context.Pool(2) as pool:
            assert pool.map(lambda x: x * x, range(100)) == [x * x for x in range(100)]
            assert pool.apply(lambda a, b: a + b, (1, 2)) == 3
            assert pool.apply_async(lambda: 5).get() == 5
            assert [f() for f in pool.imap(twice, [lambda: 1] * 3)] == [2, 2, 2]
            assert pool.starmap(lambda a, b: a * b, [(1, 2), (3, 4)]) == [2, 12]
        executor = mpipc.ProcessPoolExecutor(1, mp_context=context)
        assert executor.submit(lambda: 7).result() == 7
        executor.shutdown()
        queue = context.SimpleQueue()
        process = context.Process(target=lambda: queue.put(lambda: 8))
        process.start()
        assert queue.get()() == 8
        process.join()
    """


def test_pools_executors_and_processes(start_method: str) -> None:
    """Functions, arguments and results; a process's target is pickled by it where it is sent."""
    script = POOL
    if start_method != "fork":  # the queue is a global of the parent's, which a lambda does not take along
        script = script.replace(
            "target=lambda: queue.put(lambda: 8))", "target=lambda q: q.put(lambda: 8), args=(queue,))"
        )
    run_script(script, arguments=[start_method])


REDUCERS = """
    import sys
    import mpipc
    from mpipc.reduction import AbstractReducer, ForkingPickler

    used = []

    class Pickler(ForkingPickler):
        def __init__(self, *arguments):
            used.append(type(self).__name__)
            super().__init__(*arguments)

    def dump(obj, file, protocol=4):
        Pickler(file, protocol).dump(obj)

    class Inherited(AbstractReducer):
        ForkingPickler = Pickler

    class AsFunction(Inherited):
        dump = dump

    class AsMethod(Inherited):
        def dump(self, obj, file):
            dump(obj, file)

    class AsStatic(Inherited):
        dump = staticmethod(dump)

    if __name__ == "__main__":
        context = mpipc.get_context(sys.argv[1])
        for reducer in (None, Inherited, AsFunction, AsMethod, AsStatic):
            used.clear()
            if reducer is not None:
                context.reducer = reducer()
                context.reducer.HAVE_SEND_HANDLE = True
            process = context.Process(target=print, args=(reducer.__name__ if reducer else "usual",))
            process.start()
            process.join()
            assert process.exitcode == 0 and bool(used) == (reducer is not None)
    """


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_process_starts_ask_the_reducer(method: str) -> None:
    """Set at any time, and however its dump() is written: many have it as in the recipe, as a function in the class."""
    result = run_script(REDUCERS, arguments=[method])
    assert result.stdout.split() == ["usual", "Inherited", "AsFunction", "AsMethod", "AsStatic"]


@needs_dill
def test_also_multiprocess(start_method: str) -> None:
    """A program written for `multiprocess`, which need not be installed, runs on mpipc and pickles by dill."""
    source = """
        import sys
        import multiprocess
        import multiprocess.pool
        from multiprocess import Manager, Pool, Process, Queue

        def child(queue, function):
            queue.put(lambda: function(3))

        if __name__ == "__main__":
            multiprocess.set_start_method(sys.argv[1])
            import multiprocessing
            assert multiprocess is multiprocessing and multiprocess.pool is multiprocessing.pool
            assert type(Queue()).__module__ == "mpipc.queues" and multiprocess.pool.Pool.__module__ == "mpipc.pool"
            with Pool(2) as pool:
                print(pool.map(lambda x: x * x, range(4)))
            queue = Queue()
            process = Process(target=child, args=(queue, lambda x: x + 1))
            process.start()
            print(queue.get()())
            process.join()
            with Manager() as manager:
                queue = manager.Queue()
                queue.put(lambda: 9)
                print(queue.get()())
            try:
                import multiprocess.nothing
            except ImportError as error:
                print(error)
        """
    result = run_script(source, arguments=[start_method], options=["-m", "mpipc", "run", "--also", "multiprocess"])
    assert result.stdout.splitlines() == ["[0, 1, 4, 9]", "4", "9", "No module named 'multiprocessing.nothing'"]
    assert result.stderr == ""


def test_also_needs_no_package() -> None:
    source = (
        "import billiard.queues, mpipc.queues; assert billiard.queues is mpipc.queues; print(billiard.Queue().empty())"
    )
    assert run_script(source, options=["-m", "mpipc", "run", "--also", "billiard"]).stdout == "True\n"


def test_also_what_is_loaded_already() -> None:
    result = run_script("", options=["-m", "mpipc", "run", "--also", "json"], check=False)
    assert result.returncode == 1 or result.returncode == 0  # json may not have been loaded
    script = "import json; from mpipc._stdlib.also import stand_in; stand_in(['json'])"
    result = run_script(script, check=False)
    assert "RuntimeError: json is loaded already" in result.stderr

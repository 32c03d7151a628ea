"""Picklers that somebody has asked for: lambdas, closures, what a script or a notebook has defined go everywhere."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import textwrap
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import run_script, wait_until
from support.pickling import needs_cloudpickle, needs_dill

import mpipc
import mpipc.managers
from mpipc._stdlib.by_pickler import KNOWN
from mpipc.queues import Full, JoinableQueue, PriorityQueue, Queue, SimpleQueue

pytestmark = pytest.mark.slow_with("dill", "function", "module", "spawn")


def by_function(obj: Any) -> bytes:
    """A pickler that is a function."""
    import cloudpickle

    return cloudpickle.dumps(obj)  # type: ignore[no-any-return]


class Likewise:
    """A pickler with dumps() and loads()."""

    @staticmethod
    def dumps(obj: Any) -> memoryview:
        return memoryview(b"mark" + by_function(obj))

    @staticmethod
    def loads(data: bytes) -> Any:
        assert data[:4] == b"mark"
        return pickle.loads(data[4:])


PICKLERS = {"cloudpickle": "cloudpickle", "dill": "dill", "function": by_function, "module": Likewise}


@pytest.fixture(
    params=[
        pytest.param("cloudpickle", marks=needs_cloudpickle),
        pytest.param("dill", marks=needs_dill),
        pytest.param("function", marks=needs_cloudpickle),
        pytest.param("module", marks=needs_cloudpickle),
    ]
)
def pickler(request: pytest.FixtureRequest) -> Any:
    return PICKLERS[request.param]


@pytest.fixture
def by(ctx: Any, pickler: Any) -> Any:
    """A context of each start method, with each of the picklers."""
    return ctx.with_pickler(pickler)


@pytest.fixture
def clouded(ctx: Any) -> Any:
    """A context of each start method, with cloudpickle."""
    pytest.importorskip("cloudpickle")
    return ctx.with_pickler("cloudpickle")


def outcome(process: Any) -> int | None:
    process.join()
    code: int | None = process.exitcode
    return code


# ---- pools and executors ---------------------------------------------------------------------------------------------


def test_a_pool(ctx: Any, pickler: Any) -> None:
    factor = 3
    called: list[Any] = []

    def fact(n: int) -> int:
        return 1 if n < 2 else n * fact(n - 1)

    def begin(value: int) -> None:
        begin.value = value  # type: ignore[attr-defined]
        os.environ["MPIPC_BEGUN"] = str(value)

    with ctx.Pool(2, lambda value: begin(value), (factor,), pickler=pickler, worker_init=lambda state: None) as pool:
        assert pool.map(lambda x: x * factor, range(5)) == [0, 3, 6, 9, 12]
        assert pool.apply(fact, (5,)) == 120
        assert pool.starmap(lambda x, y: x - y, [(5, 3), (3, 5)]) == [2, -2]
        assert list(pool.imap(lambda f: f(2), [lambda x: x + factor, lambda x: x * x], 1)) == [5, 4]
        assert sorted(pool.imap_unordered(lambda x: -x, range(3), chunksize=2)) == [-2, -1, 0]
        assert pool.apply(lambda: os.environ["MPIPC_BEGUN"]) == "3"
        assert pool.apply(lambda x: lambda y: x + y + factor, (1,))(2) == 6, "a result that is a closure"
        assert pool.apply(functools.partial(lambda x, *, y: x * y, y=4), (2,)) == 8
        pool.apply_async(lambda: lambda: 1, callback=lambda result: called.append(result())).wait()
        failing = pool.apply_async(lambda: 1 // 0, error_callback=called.append)
        with pytest.raises(ZeroDivisionError):
            failing.get()
        pool.close()
        pool.join()
    assert called[0] == 1 and isinstance(called[1], ZeroDivisionError)


def test_an_executor(ctx: Any, pickler: Any) -> None:
    offset = 10
    with mpipc.ProcessPoolExecutor(1, ctx, lambda: os.environ.update(MPIPC_BEGUN="x"), pickler=pickler) as executor:
        assert executor.submit(lambda x: x + offset, 1).result() == 11
        assert executor.submit(lambda: os.environ["MPIPC_BEGUN"]).result() == "x"
        assert executor.submit(lambda *, f: f(offset), f=lambda x: x + 1).result() == 11
        assert list(executor.map(lambda x, y: x + y + offset, [1, 2], [3, 4])) == [14, 16]
        assert executor.submit(lambda: lambda: offset).result()() == 10
    with mpipc.ProcessPoolExecutor(1, ctx.with_pickler(pickler)) as executor:
        assert executor.submit(lambda: offset).result() == 10


def test_arrays_beside_lambdas(clouded: Any) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000)
    with clouded.Pool(1) as pool:
        total, doubled = pool.apply(lambda a, f: (int(a.sum()), f(a)), (array, lambda a: 2 * a))
    assert total == array.sum() and (doubled == 2 * array).all()
    queue = clouded.Queue()
    queue.put((array, lambda a: a + 1))
    received, function = queue.get()
    assert (function(received) == array + 1).all()


def test_what_a_task_cannot_be_pickled_with_fails_the_task(clouded: Any) -> None:
    with clouded.Pool(1) as pool:
        generator = (x for x in ())
        for arguments in ((generator,), ([1, generator],)):
            with pytest.raises(TypeError, match="pickle"):
                pool.apply(lambda x: x, arguments)
        with pytest.raises(mpipc.pool._base.MaybeEncodingError):
            pool.apply(lambda: (x for x in ()))
        assert pool.apply(lambda: 5) == 5


def test_a_killed_worker(clouded: Any) -> None:
    """The task is lost as it is with the usual pickler, or repeated; the pool goes on."""
    first = clouded.Value("i", 1)

    def once() -> str:
        import builtins

        with builtins.first.get_lock():  # type: ignore[attr-defined]
            if builtins.first.value:  # type: ignore[attr-defined]
                builtins.first.value = 0  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    with clouded.Pool(1, lambda value: setattr(__import__("builtins"), "first", value), (first,), retries=1) as pool:
        assert pool.apply(once) == "done" and first.value == 0
    with clouded.Pool(1) as pool:
        with pytest.raises(mpipc.WorkerLostError):
            pool.apply(lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert pool.map(lambda x: x + 1, [1, 2]) == [2, 3]
    executor = mpipc.ProcessPoolExecutor(1, clouded)
    with executor, pytest.raises(mpipc.WorkerLostError):
        executor.submit(lambda: os.kill(os.getpid(), signal.SIGKILL)).result()


# ---- queues ----------------------------------------------------------------------------------------------------------

KINDS = {"Queue": Queue, "JoinableQueue": JoinableQueue, "SimpleQueue": SimpleQueue, "PriorityQueue": PriorityQueue}


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue(ctx: Any, pickler: Any, kind: str) -> None:
    """It goes to a child with its pickler: what the child puts is pickled by it, too."""
    k = 4
    queue = KINDS[kind](ctx=ctx, pickler=pickler)
    queue.put(lambda x: x + k)
    assert queue.get()(1) == 5
    process = ctx.Process(target=put_functions, args=(queue,))
    process.start()
    assert [queue.get()(10) for _ in range(3)] == [10, 11, 12]
    assert outcome(process) == 0


def put_functions(queue: Any) -> None:
    for i in range(2):
        queue.put(lambda x, i=i: x + i)
    if isinstance(queue, Queue):
        queue.put_many([lambda x: x + 2])
    else:
        queue._writer.send(lambda x: x + 2)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_factories(by: Any, pickler: Any, kind: str) -> None:
    plain = mpipc.get_context(by.get_start_method())
    for queue in (getattr(by, kind)(), getattr(plain, kind)(pickler=pickler)):
        queue.put(lambda: 3)
        assert queue.get()() == 3
    with pytest.raises((pickle.PicklingError, AttributeError)):
        plain.SimpleQueue().put(lambda: 3)


def test_many_at_once(pickler: Any) -> None:
    queue: Queue[Any] = Queue(3, pickler=pickler)
    objects = [1, lambda: 2, (3, "three"), lambda: 4]
    assert queue.put_many(objects, block=False) == 3
    first, second, third = queue.get_many(5)
    assert (first, second(), third) == (1, 2, (3, "three"))
    queue.put_many([lambda: b"long" * 10_000] * 2)
    assert [function() for function in queue.get_many(2)] == [b"long" * 10_000] * 2


def test_put_nowait_and_priorities(pickler: Any) -> None:
    queue: PriorityQueue[Any] = PriorityQueue(2, pickler=pickler)
    queue.put_nowait(lambda: "low", priority=1)
    queue.put(lambda: "high", priority=2)
    asked: list[int] = []

    class Counted:
        def __reduce__(self) -> Any:
            asked.append(1)
            return int, ()

    with pytest.raises(Full):
        queue.put_nowait(Counted())
    assert not asked, "what there is no room for is not pickled"
    assert [queue.get_nowait()(), queue.get_nowait()()] == ["high", "low"]


@pytest.mark.parametrize("obj", [None, True, 5, 2.5, "text", b"bytes", "long" * 5000, (1, [2, {"three": 4}])], ids=repr)
def test_what_is_plain_needs_no_pickler(obj: Any) -> None:
    def refuse(obj: Any) -> bytes:
        raise AssertionError("asked")

    queue: Queue[Any] = Queue(pickler=refuse, raise_on_pickle_error=True)
    queue.put(obj)
    assert queue.put_many([obj]) == 1
    assert [queue.get(), queue.get()] == [obj, obj]
    with pytest.raises(AssertionError, match="asked"):
        queue.put(object())


def test_what_the_pickler_raises() -> None:
    """Of one put(): raised, or told to the queue's owner with the object that was put. Nothing else breaks."""

    def picky(obj: Any) -> bytes:
        if isinstance(obj, set):
            raise ValueError("no sets")
        return pickle.dumps(obj)

    raising: Queue[Any] = Queue(pickler=picky, raise_on_pickle_error=True)
    simple: SimpleQueue[Any] = SimpleQueue(pickler=picky)
    for put in (raising.put, raising.put_nowait, simple.put, lambda obj: raising.put_many([obj])):
        with pytest.raises(ValueError, match="no sets"):
            put({1})  # type: ignore[no-untyped-call, arg-type]
    assert raising.empty() and simple.empty()

    told = []

    class Telling(Queue[Any]):
        @staticmethod
        def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
            told.append((str(e), obj))

    queue = Telling(pickler=picky)
    queue.put({1})
    assert queue.put_many([{2}, 3, [object]]) == 2
    assert told == [("no sets", {1}), ("no sets", {2})]
    assert [queue.get(), queue.get()] == [3, [object]]


def test_a_killed_putter(clouded: Any) -> None:
    """In the middle of pickling, say: the queue goes on for the others, and what was put is there."""
    queue = clouded.Queue()

    def put_and_die() -> None:
        class Deadly:
            def __reduce__(self) -> Any:
                os.kill(os.getpid(), signal.SIGKILL)

        queue.put(lambda: "first")
        queue.put(Deadly())

    process = clouded.Process(target=put_and_die)
    process.start()
    assert outcome(process) == -signal.SIGKILL
    queue.put(lambda: "second")
    assert [queue.get()(), queue.get()()] == ["first", "second"]
    assert queue.empty()


def test_shut_down(clouded: Any) -> None:
    queue = clouded.Queue()
    queue.shutdown()
    with pytest.raises(mpipc.ShutDown):  # type: ignore[attr-defined]
        queue.put(lambda: 1)
    with pytest.raises(mpipc.ShutDown):  # type: ignore[attr-defined]
        queue.put_many([lambda: 1])


# ---- contexts --------------------------------------------------------------------------------------------------------


def test_a_process(by: Any) -> None:
    """A lambda as its target, arguments, and what multiprocessing lets go to a child: queues, locks."""
    k = 2
    queue, lock, value = by.Queue(), by.Lock(), by.Value("i", 0)

    def target(f: Callable[[int], int], *, name: str) -> None:
        with lock:
            value.value += 1
        queue.put(lambda: (name, f(k)))

    process = by.Process(
        target=lambda *a, **b: target(*a, **b),
        args=(lambda x: x + 40,),
        kwargs={"name": "child"},
        end_with_parent=True,
    )
    process.start()
    assert queue.get()() == ("child", 42)
    assert outcome(process) == 0 and value.value == 1


def test_connections(by: Any) -> None:
    """They go to children beside lambdas, and through queues and pools: what has a reducer of ForkingPickler's does."""
    receiver, sender = by.Pipe(duplex=False)
    process = by.Process(target=lambda c: c.send(5), args=(sender,))
    process.start()
    assert receiver.recv() == 5 and outcome(process) == 0
    with by.Pool(1) as pool:
        pool.apply(lambda c: c.send(6), (sender,))
        assert receiver.recv() == 6
    queue = by.Queue()
    queue.put([sender, lambda: 7])
    connection, function = queue.get()
    connection.send(function())
    assert receiver.recv() == 7


def test_subclasses_of_its_process(clouded: Any) -> None:
    queue = clouded.Queue()

    class Child(clouded.Process):  # type: ignore[misc, name-defined]
        def __init__(self, k: int) -> None:
            super().__init__(name="mine")
            self.k = k

        def run(self) -> None:
            queue.put((self.name, self.k, mpipc.current_process() is self))

    process = Child(3)
    process.start()
    assert queue.get() == ("mine", 3, True) and outcome(process) == 0


def test_it_is_a_context_like_the_other(ctx: Any) -> None:
    pytest.importorskip("cloudpickle")
    by = ctx.with_pickler("cloudpickle")
    assert type(by) is type(ctx) and by.get_start_method() == ctx.get_start_method()
    assert by.get_context() is by and by is not ctx
    assert issubclass(by.Process, ctx.Process)
    assert ctx._by_pickler is None and not hasattr(mpipc.get_context("fork").Process, "asked_for")
    assert by.with_pickler(None) is ctx
    assert by.get_context("fork")._by_pickler is by._by_pickler, "another start method, the same pickler"
    again = pickle.loads(pickle.dumps(by))
    assert again.get_start_method() == by.get_start_method()
    queue = again.SimpleQueue()
    queue.put(lambda: 1)
    assert queue.get()() == 1
    process = by.Process(target=print)
    assert repr(process).startswith(f"<{type(process).__name__} name=") and isinstance(process, ctx.Process)


@needs_cloudpickle
def test_of_the_package() -> None:
    context = mpipc.with_pickler("cloudpickle")
    assert context.get_start_method() == mpipc.get_start_method()
    queue = context.Queue()
    queue.put(lambda: 1)
    assert queue.get()() == 1


def test_managers_with_registered_lambdas(clouded: Any) -> None:
    """They go to the server's process; what is said to it travels by multiprocessing's pickler."""
    k = 7

    class Manager(mpipc.managers.BaseManager):
        pass

    Manager.register("make", lambda x: [x, k])
    with Manager(ctx=clouded) as manager:
        assert manager.make(1)._getvalue() == [1, 7]  # type: ignore[attr-defined]
    with clouded.Manager() as standard:
        assert list(standard.list([1])) == [1]


def test_its_pickler_goes_with_lambdas_as_picklers(ctx: Any) -> None:
    """A lambda that can pickle itself can go to a fresh interpreter."""
    cloudpickle = pytest.importorskip("cloudpickle")
    with ctx.Pool(1, pickler=lambda obj: cloudpickle.dumps(obj)) as pool:
        assert pool.apply(lambda: 3) == 3
    by = ctx.with_pickler(lambda obj: cloudpickle.dumps(obj))
    queue = by.Queue()
    process = by.Process(target=lambda: queue.put(lambda: 4))
    process.start()
    assert queue.get()() == 4 and outcome(process) == 0


# ---- scripts and notebooks -------------------------------------------------------------------------------------------

MINE = """
    class Mistake(Exception):
        def __init__(self, what, where):
            super().__init__(what, where)

    class Point:
        def __init__(self, x):
            self.x = x

        def moved(self, by):
            return Point(self.x + by)

    OFFSET = 100

    def recursive(n):
        return OFFSET if n == 0 else recursive(n - 1) + 1

    def fail():
        raise Mistake("what", "where")

    def main(by):
        with by.Pool(1, lambda: None) as pool:
            print(pool.map(lambda x: x + OFFSET, range(3)), pool.apply(recursive, (3,)))
            points = [pool.apply(Point(1).moved, (2,)), *pool.map(Point, [1])]
            print([point.moved(1).x for point in points])
            try:
                pool.apply(fail)
            except Exception as e:
                error = e
            print(error.args)
        queue = by.Queue()
        process = by.Process(target=lambda f: queue.put((Point(OFFSET), f)), args=(lambda x: x * 2,))
        process.start()
        point, function = queue.get()
        process.join()
        print(point.x, function(4), process.exitcode)
        print({type(found).__name__ for found in [error, point, *points] if type(found) not in (Mistake, Point)})
    """
EXPECTED = "[100, 101, 102] 103\n[4, 2]\n('what', 'where')\n100 8 0\n"

names = pytest.mark.parametrize(
    "name", [pytest.param("cloudpickle", marks=needs_cloudpickle), pytest.param("dill", marks=needs_dill)]
)


def check(name: str, result: Any) -> None:
    """The last line is what has come back as a copy of its class, which cloudpickle avoids, and dill does not."""
    assert not result.stderr
    assert result.stdout == EXPECTED + "set()\n" if name == "cloudpickle" else result.stdout.startswith(EXPECTED)


@names
def test_a_script(start_method: str, name: str) -> None:
    source = textwrap.dedent(MINE) + textwrap.dedent(f"""
        if __name__ == "__main__":
            import mpipc
            main(mpipc.get_context({start_method!r}).with_pickler({name!r}))
        """)
    check(name, run_script(source))


@names
@pytest.mark.parametrize("namespace", ["__main__", "cells"])
def test_a_notebook(start_method: str, name: str, namespace: str) -> None:
    """Where `__main__` has no file, and cells are executed in its namespace, or in one that belongs to no module."""
    program = f"""
        import mpipc
        names = globals() if {namespace!r} == "__main__" else {{"__name__": "cells", "mpipc": mpipc}}
        exec({textwrap.dedent(MINE)!r}, names)
        exec("main(mpipc.get_context({start_method!r}).with_pickler({name!r}))", names)
        """
    check(name, run_script("", options=["-c", textwrap.dedent(program)]))


@needs_cloudpickle
def test_other_picklers_are_left_alone() -> None:
    """What a pickler is told of shared memory and connections is told to that one, while it is at work."""
    receiver, sender = mpipc.Pipe()
    before = pickle.dumps(sender)  # the number of its descriptor, and nothing that opens it elsewhere
    queue: Queue[Any] = Queue(pickler=by_function)
    queue.put([sender])
    assert pickle.dumps(sender) == before
    (another,) = queue.get()
    another.send(1)
    assert receiver.recv() == 1 and another.fileno() != sender.fileno()


# ---- errors ----------------------------------------------------------------------------------------------------------

TAKERS: dict[str, Callable[[Any], Any]] = {
    "Pool": lambda pickler: mpipc.Pool(1, pickler=pickler),
    "executor": lambda pickler: mpipc.ProcessPoolExecutor(1, pickler=pickler),
    "Queue": lambda pickler: Queue(pickler=pickler),
    "SimpleQueue": lambda pickler: SimpleQueue(pickler=pickler),
    "context": lambda pickler: mpipc.get_context("fork").with_pickler(pickler),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_what_is_no_pickler(taker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take = TAKERS[taker]
    with pytest.raises(ValueError, match=r"pickler must be 'cloudpickle' or 'dill', .*, not 'marshall'"):
        take("marshall")
    for wrong in (5, object(), dict):
        with pytest.raises(TypeError, match=r"pickler must be 'cloudpickle', 'dill', something with dumps"):
            take(wrong)
    unnamed = types.SimpleNamespace(dumps=pickle.dumps, loads=lambda data: pickle.loads(data))
    with pytest.raises(TypeError, match=r"loads\(\) of the pickler .*: make it a function of a module"):
        take(unnamed)
    monkeypatch.setitem(__import__("sys").modules, "cloudpickle", None)
    with pytest.raises(ImportError, match=r"pip install 'mpipc\[cloudpickle\]'"):
        take("cloudpickle")


def test_a_lambda_as_pickler(start_method: str) -> None:
    """With fork it is inherited. A fresh interpreter cannot be told of it, which is said before there is a process."""
    ctx = mpipc.get_context(start_method)
    queue = Queue(ctx=ctx, pickler=lambda obj: pickle.dumps(obj))
    queue.put({1})
    assert queue.get() == {1}
    process = ctx.Process(target=put_functions, args=(queue,))
    if start_method == "fork":
        with ctx.Pool(1, pickler=lambda obj: pickle.dumps(obj)) as pool:
            assert pool.apply(set, ([1],)) == {1}
        return
    with pytest.raises(pickle.PicklingError, match=r"lambda.* make it a function of a module.*'cloudpickle'"):
        process.start()
    with pytest.raises(pickle.PicklingError, match=r"lambda.* make it a function of a module.*'cloudpickle'"):
        ctx.Pool(1, pickler=lambda obj: pickle.dumps(obj))


def test_one_that_returns_no_bytes() -> None:
    queue: Queue[Any] = Queue(pickler=lambda obj: "text", raise_on_pickle_error=True)
    with pytest.raises(TypeError, match="must return bytes, not str"):
        queue.put({1})
    pool = mpipc.get_context("fork").Pool(1, pickler=lambda obj: None)
    with pool, pytest.raises(TypeError, match="must return bytes, not NoneType"):
        pool.apply(print)


def test_one_that_is_gone_in_the_receiver() -> None:
    from mpipc._stdlib.by_pickler import load

    with pytest.raises(ImportError, match=r"mpipc\[nowhere\]"):
        load("nowhere", b"")


def test_what_can_be_named_can_be_installed() -> None:
    """By the names that the error says."""
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    for name in KNOWN:
        assert [requirement.startswith(name) for requirement in project["optional-dependencies"][name]] == [True]


@needs_cloudpickle
def test_what_is_loaded() -> None:
    """Nothing of it before somebody asks."""
    source = """
        import sys
        import mpipc
        assert "mpipc._stdlib.by_pickler" not in sys.modules
        mpipc.Queue().put({1})
        assert "mpipc._stdlib.by_pickler" not in sys.modules
        with mpipc.get_context("fork").Pool(1) as pool:
            pool.apply(set)
        assert not {"cloudpickle", "dill"} & set(sys.modules)
        mpipc.Queue(pickler="cloudpickle")
        assert "cloudpickle" in sys.modules and "dill" not in sys.modules
        """
    run_script(source)


def test_its_processes_are_seen_by_wait(clouded: Any) -> None:
    """A process class of a context with a pickler is a process as any other: active_children(), sentinel, terminate."""
    event = clouded.Event()
    process = clouded.Process(target=lambda: event.wait())
    process.start()
    assert process in mpipc.active_children()
    process.terminate()
    assert outcome(process) == -signal.SIGTERM
    wait_until(lambda: process not in mpipc.active_children())
    process.close()

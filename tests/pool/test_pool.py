"""mpipc.pool: the interface of multiprocessing.Pool, under every start method. Deaths are in test_pool_deaths.py."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import threading
import unittest.mock
import warnings
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import pool as standard
from typing import Any, ClassVar

import pytest
from support import pool_tasks as tasks
from support import run_script, wait_until

import mpipc
from mpipc.pool import BrokenPoolError, MaybeEncodingError, Pool, RemoteTraceback, ThreadPool

LONG = 60.0
"""Seconds after which a wait that should end counts as hanging."""


@pytest.fixture
def pool(ctx: Any) -> Iterator[Any]:
    """A pool of two workers, joined after the test."""
    with ctx.Pool(2) as made:
        yield made
    made.join()


# --- results ----------------------------------------------------------------------------------------------------------


def test_apply_and_map(pool: Any) -> None:
    assert pool.apply(tasks.square, (5,)) == 25
    assert pool.apply(tasks.add, (5,), {"y": 2}) == 7
    assert pool.apply(tasks.add, [1, 2]) == 3
    assert pool.map(tasks.square, range(100)) == [x * x for x in range(100)]
    assert pool.map(tasks.square, iter(range(10)), chunksize=3) == [x * x for x in range(10)]
    assert pool.map(tasks.square, {1: 2, 3: 4}) == [1, 9]
    assert pool.map(tasks.square, []) == []
    assert pool.starmap(tasks.add, [(1, 2), (3, 4), (5,)]) == [3, 7, 5]
    assert pool.starmap_async(tasks.add, zip(range(50), range(50), strict=True), 7).get(LONG) == list(range(0, 100, 2))
    assert pool.map_async(tasks.square, range(10), 20).get(LONG) == [x * x for x in range(10)]


@pytest.mark.parametrize("chunksize", [1, 3, 1000])
@pytest.mark.parametrize(
    "source", [list, iter, lambda items: (x for x in items)], ids=["list", "iterator", "generator"]
)
def test_imap(pool: Any, chunksize: int, source: Callable[[Any], Any]) -> None:
    expected = [x * x for x in range(100)]
    assert list(pool.imap(tasks.square, source(range(100)), chunksize)) == expected
    assert sorted(pool.imap_unordered(tasks.square, source(range(100)), chunksize)) == expected
    assert list(pool.imap(tasks.square, source([]), chunksize)) == []
    assert list(pool.imap_unordered(tasks.square, source([]), chunksize)) == []


def test_imap_reads_an_endless_iterable_as_workers_get_free(pool: Any) -> None:
    import itertools

    drawn = itertools.count()
    results = pool.imap(tasks.square, drawn)
    assert [next(results) for _ in range(50)] == [x * x for x in range(50)]
    pool.terminate()
    assert next(drawn) < 1_000_000


def test_imap_source_may_wait_for_earlier_results(pool: Any) -> None:
    """The iterator is run by a thread of its own: results are delivered while it waits."""
    window = threading.Semaphore(1)

    def one_at_a_time() -> Iterator[int]:
        for x in range(30):
            window.acquire()
            yield x

    found = []
    for result in pool.imap(tasks.square, one_at_a_time()):
        found.append(result)
        window.release()
        assert pool.apply(tasks.square, (3,)) == 9  # a source that waits keeps nobody else waiting
    assert found == [x * x for x in range(30)]


def test_results_are_the_standard_librarys_classes(pool: Any) -> None:
    result = pool.apply_async(tasks.square, (2,))
    assert isinstance(result, standard.AsyncResult)
    assert isinstance(pool.map_async(tasks.square, [1]), standard.MapResult)
    assert isinstance(pool.imap(tasks.square, [1]), standard.IMapIterator)
    assert isinstance(pool.imap_unordered(tasks.square, [1]), standard.IMapUnorderedIterator)
    result.wait(LONG)
    assert result.ready()
    assert result.successful()
    assert isinstance(pool, standard.Pool)


def test_large_arguments_and_results(pool: Any) -> None:
    numpy = pytest.importorskip("numpy")
    assert pool.apply(tasks.identity, (b"x" * 5_000_000,)) == b"x" * 5_000_000
    array = numpy.arange(1_000_000)
    for result in pool.map(tasks.identity, [array, array[::2], [array, "and", array]]):
        result = result[2] if isinstance(result, list) else result
        assert numpy.array_equal(result, array[:: len(array) // len(result)])
        result[0] = 1  # what arrives can be written to


def test_a_function_is_pickled_once_a_map(pool: Any) -> None:
    function = tasks.CountingPickles()
    assert pool.map(function, range(100), 1) == list(range(100))
    assert list(pool.imap(function, range(100))) == list(range(100))
    assert function.pickles == 2


def test_more_functions_than_a_worker_remembers(ctx: Any) -> None:
    """One whose turn comes again when more than that many others have had theirs is sent again."""
    from mpipc._pool.worker import FUNCTIONS

    with mpipc.ProcessPoolExecutor(1, ctx) as executor:  # its map() can wait with the next task until a result is taken
        functions = map(tasks.CountingLoads, range(FUNCTIONS + 20))
        maps = [executor.map(function, range(3), buffersize=1) for function in functions]
        for x in range(3):
            answers = [next(results) for results in maps]
            assert [value for value, _ in answers] == [x] * len(maps)
        assert {loads for _, loads in answers} == {3}, "each was forgotten between its tasks"


def test_a_task_need_not_wait_behind_another_one(ctx: Any) -> None:
    """The first task ends after all the others, so none of them may be stuck behind it."""
    done = ctx.Semaphore(0)
    with ctx.Pool(2, tasks.start, ((done, 5),)) as pool:
        results = [pool.apply_async(tasks.first_waits, (x,)) for x in range(6)]
        assert [result.get(LONG) for result in results] == list(range(6))


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_exception_has_the_remote_traceback(pool: Any) -> None:
    with pytest.raises(KeyError, match="3") as caught:
        pool.apply(tasks.fail, (3,))
    assert type(caught.value.__cause__) is RemoteTraceback
    assert "raise KeyError(x)" in str(caught.value.__cause__)
    with pytest.raises(KeyError):
        pool.map(tasks.fail_at, range(20), 2)
    results = pool.imap(tasks.fail_at, range(9))
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(KeyError):
        next(results)
    assert list(results) == [8]
    with pytest.raises(BaseException, match="not an Exception"):
        pool.apply(tasks.raise_cancelled)


def test_what_cannot_be_pickled(pool: Any) -> None:
    def local() -> None:
        pass

    for _ in range(10):
        with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
            pool.apply(local)
        with pytest.raises(RuntimeError, match="cannot be pickled"):
            pool.map(tasks.square, [tasks.Unsendable()] * 10)
        with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
            pool.map(local, range(3), 1)
        with pytest.raises(MaybeEncodingError, match="lambda") as caught:
            pool.apply(tasks.unsendable)
        assert "lambda" in caught.value.value
    results = pool.imap(tasks.square, [1, tasks.Unsendable(), 3])
    assert next(results) == 1
    with pytest.raises(RuntimeError):
        next(results)
    assert next(results) == 9
    assert len({*pool.map(tasks.pid_after, range(50), 1)} - {worker.pid for worker in pool._pool}) == 0


def test_what_cannot_be_unpickled(pool: Any) -> None:
    with pytest.raises(MaybeEncodingError, match="strange") as caught:
        pool.apply(tasks.fail_strangely)
    assert "raise Strange(3" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="refused"):
        pool.apply(tasks.not_readable)
    with pytest.raises(RuntimeError, match="refused") as remote:
        pool.apply(tasks.identity, (tasks.NotReadable(),))
    assert remote.value.__cause__ is not None  # it was in the worker
    assert pool.map(tasks.square, range(5)) == [0, 1, 4, 9, 16]


def test_an_iterable_that_raises(pool: Any) -> None:
    for chunksize in (1, 2):
        results = pool.imap(tasks.square, tasks.broken_generator(4), chunksize)
        assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
        with pytest.raises(KeyError, match="the generator") as caught:
            next(results)
        assert caught.value.__cause__ is None
    with pytest.raises(KeyError, match="the generator"):
        list(pool.imap_unordered(tasks.square, tasks.broken_generator(4)))
    with pytest.raises(KeyError, match="the generator"):
        pool.map(tasks.square, tasks.broken_generator(4))
    with pytest.raises(KeyError, match="the size is a lie"):
        pool.map_async(tasks.square, Liar()).get(LONG)


class Liar:
    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[int]:
        yield 1
        raise KeyError("the size is a lie")


def test_callbacks(pool: Any) -> None:
    good: list[Any] = []
    bad: list[Any] = []
    pool.apply_async(tasks.square, (3,), callback=good.append, error_callback=bad.append).get(LONG)
    pool.map_async(tasks.square, range(3), callback=good.append, error_callback=bad.append).get(LONG)
    assert good == [9, [0, 1, 4]]
    for result in (
        pool.apply_async(tasks.fail, (3,), callback=good.append, error_callback=bad.append),
        pool.map_async(tasks.fail, [3], callback=good.append, error_callback=bad.append),
        pool.apply_async(tasks.square, (tasks.Unsendable(),), callback=good.append, error_callback=bad.append),
    ):
        with pytest.raises((KeyError, RuntimeError)):
            result.get(LONG)
    assert len(good) == 2
    assert sorted(type(error).__name__ for error in bad) == ["KeyError", "KeyError", "RuntimeError"]


def test_a_callback_that_raises_does_not_stop_the_pool(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: reported.append(arguments.exc_type))

    def broken(value: Any) -> None:
        raise ZeroDivisionError

    assert pool.apply_async(tasks.square, (3,), callback=broken).get(LONG) == 9
    assert pool.map_async(tasks.square, range(3), callback=broken).get(LONG) == [0, 1, 4]
    assert reported == [ZeroDivisionError, ZeroDivisionError]


def test_callbacks_may_use_the_pool(ctx: Any) -> None:
    pool = ctx.Pool(2)
    chained: list[Any] = []
    over = threading.Event()

    def last(value: int) -> None:
        chained.append(value)
        pool.terminate()
        over.set()

    pool.apply_async(tasks.square, (3,), callback=lambda x: pool.apply_async(tasks.square, (x,), callback=last))
    assert over.wait(LONG)
    pool.join()
    assert chained == [81]
    pool.terminate()


def test_get_with_a_timeout(ctx: Any) -> None:
    running, proceed = ctx.Semaphore(0), ctx.Event()
    with ctx.Pool(1, tasks.start, ((running, proceed),)) as pool:
        result = pool.apply_async(tasks.enter_and_wait, (1,))
        assert running.acquire(True, LONG)
        with pytest.raises(mpipc.TimeoutError):
            result.get(0.01)
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        results = pool.imap(tasks.identity, [1])
        with pytest.raises(mpipc.TimeoutError):
            results.next(0.01)
        proceed.set()
        assert result.get(LONG) == 1
        assert results.next(LONG) == 1


# --- life of a pool ---------------------------------------------------------------------------------------------------


def test_arguments_are_checked() -> None:
    for processes in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            Pool(processes)
    for maxtasks in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="maxtasksperchild"):
            Pool(1, maxtasksperchild=maxtasks)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initializer"):
        Pool(1, initializer=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="retries"):
        Pool(1, retries=-1)


def test_calls_are_checked(pool: Any) -> None:
    for call in (pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="Chunksize"):
            call(tasks.square, [1, 2], -1)
    with pytest.raises(ValueError, match="timeout"):
        pool.apply(tasks.square, (1,), timeout=0)


def test_close_lets_everything_finish(ctx: Any) -> None:
    pool = ctx.Pool(2)
    assert repr(pool) == "<mpipc.pool.Pool state=RUN pool_size=2>"
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    single = [pool.apply_async(tasks.square, (x,)) for x in range(50)]
    mapped = pool.map_async(tasks.square, range(50), 1)
    streamed = pool.imap(tasks.square, (x for x in range(50)))
    pool.close()
    assert "state=CLOSE" in repr(pool)
    for call in (pool.apply_async, pool.map, pool.imap, pool.starmap):
        with pytest.raises(ValueError, match="Pool not running"):
            call(tasks.square, [1])
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass
    pool.join()
    assert [result.get(LONG) for result in single] == mapped.get(LONG) == list(streamed) == [x * x for x in range(50)]
    assert all(process.exitcode == 0 for process in pool._pool)
    pool.close()
    pool.terminate()
    pool.join()


def test_an_unused_pool_runs_its_initializers(ctx: Any) -> None:
    count = ctx.Semaphore(0)
    pool = ctx.Pool(2, tasks.add, (1, 2))
    pool.close()
    pool.join()
    pool = ctx.Pool(2, count.release)
    pool.close()
    pool.join()
    assert count.get_value() == 2


def test_terminate_answers_those_who_wait(ctx: Any) -> None:
    """Where multiprocessing lets them wait forever."""
    running, proceed = ctx.Semaphore(0), ctx.Event()
    errors: list[Any] = []
    with ctx.Pool(2, tasks.start, ((running, proceed),)) as pool:
        unfinished = [
            pool.apply_async(tasks.enter_and_wait, (1,), error_callback=errors.append),
            pool.map_async(tasks.enter_and_wait, range(10), 1, error_callback=errors.append),
        ]
        streams = [pool.imap(tasks.enter_and_wait, range(10)), pool.imap_unordered(tasks.enter_and_wait, iter([1, 2]))]
        assert running.acquire(True, LONG)
        raised: list[Any] = []

        def wait_for_the_first() -> None:
            with pytest.raises(BrokenPoolError) as caught:
                unfinished[0].get()
            raised.append(caught.type)

        waiter = threading.Thread(target=wait_for_the_first)
        waiter.start()
    waiter.join(LONG)
    assert raised == [BrokenPoolError]
    for result in unfinished:
        with pytest.raises(BrokenPoolError, match="terminated"):
            result.get(LONG)
    for stream in streams:
        with pytest.raises(BrokenPoolError, match="terminated"):
            stream.next(LONG)
        assert list(stream) == []
    assert not errors
    assert not pool._cache


def test_maxtasksperchild(ctx: Any) -> None:
    with ctx.Pool(2, maxtasksperchild=3) as pool:
        pids = pool.map(tasks.pid_after, range(30), 1)
        assert max(pids.count(pid) for pid in pids) <= 3
        assert len(set(pids)) >= 10
        pool.close()
        pool.join()
    with ctx.Pool(3, maxtasksperchild=1) as pool:
        results = [pool.apply_async(tasks.square, (x,)) for x in range(6)]
        pool.close()
        pool.join()
        assert [result.get(LONG) for result in results] == [x * x for x in range(6)]


def test_garbage_collection_ends_a_running_pool(ctx: Any) -> None:
    pool = ctx.Pool(2)
    pool.map(tasks.square, range(3))
    processes = list(pool._pool)
    shown: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", ResourceWarning)
        # Not record=True: what is recorded refers to the pool.
        warnings.showwarning = lambda message, *details: shown.append(str(message))  # type: ignore[assignment]
        reference = weakref.ref(pool)
        del pool
        wait_until(
            lambda: gc.collect() is not None and reference() is None
        )  # the result thread may be at its last steps
    assert any(message.startswith("unclosed running multiprocessing pool <mpipc.pool.Pool") for message in shown)
    for process in processes:
        process.join(LONG)
        assert process.exitcode is not None


def test_a_pool_with_unfinished_work_is_not_collected(ctx: Any) -> None:
    pool = ctx.Pool(1)
    reference = weakref.ref(pool)
    result = pool.map_async(tasks.square, range(100), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del pool
        gc.collect()
        assert result.get(LONG) == [x * x for x in range(100)]
        wait_until(lambda: reference() is None)


def test_arguments_are_not_kept(pool: Any) -> None:
    objects = [Collectable() for _ in range(10)]
    references = [weakref.ref(item) for item in objects]
    pool.map(tasks.identity, objects)
    pool.map(tasks.identity, objects, 1)
    list(pool.imap(tasks.identity, objects))
    del objects

    def gone() -> bool:
        gc.collect()
        return not any(reference() for reference in references)

    wait_until(gone)


class Collectable:
    pass


def test_a_pool_is_not_picklable(pool: Any) -> None:
    with pytest.raises(NotImplementedError, match="cannot be passed between processes or pickled"):
        pickle.dumps(pool)


def test_workers_are_daemons_of_this_context(ctx: Any, start_method: str) -> None:
    with ctx.Pool(2) as pool:
        assert [worker.daemon for worker in pool._pool] == [True, True]
        assert all("PoolWorker" in worker.name for worker in pool._pool)
        assert all(isinstance(worker, ctx.Process) for worker in pool._pool)
        pool._repopulate_pool()
        assert len(pool._pool) == pool._processes == 2
    pool.join()


def test_a_process_class_of_ones_own() -> None:
    context = mpipc.get_context("fork")

    class Named(context.Process):  # type: ignore[name-defined, misc]
        pass

    class OwnPool(Pool):
        @staticmethod
        def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:
            return Named(*args, **kwds)

    with OwnPool(1, context=context) as pool:
        assert pool.apply(tasks.square, (2,)) == 4
        assert type(pool._pool[0]) is Named
        assert repr(pool).startswith("<test_pool.test_a_process_class_of_ones_own")
    pool.join()


def test_many_threads_submit(pool: Any) -> None:
    results: dict[int, Any] = {}

    def use(number: int) -> None:
        results[number] = [
            [pool.apply(tasks.add, (number, x)) for x in range(20)],
            pool.map(tasks.square, range(number)),
            list(pool.imap(tasks.square, iter(range(number)))),
        ]

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    for number in range(8):
        squares = [x * x for x in range(number)]
        assert results[number] == [[number + x for x in range(20)], squares, squares]


def test_many_workers() -> None:
    with mpipc.get_context("fork").Pool(60) as pool:
        assert sum(pool.map(tasks.square, range(1000))) == 332833500
    pool.join()


def test_statistics(ctx: Any) -> None:
    running, proceed = ctx.Semaphore(0), ctx.Event()
    with ctx.Pool(2, tasks.start, ((running, proceed),)) as pool:
        result = pool.map_async(tasks.enter_and_wait, ["a"], 1)
        assert running.acquire(True, LONG)
        statistics = pool.statistics()
        assert statistics.outstanding == 1
        assert statistics.replaced == 0
        (busy,) = [worker for worker in statistics.workers if worker.function is not None]
        assert busy.function == "support.pool_tasks.enter_and_wait"
        assert busy.item == 0
        assert busy.running_for is not None
        assert 0 < busy.running_for <= busy.busy
        assert busy.memory > 1_000_000
        assert {worker.pid for worker in statistics.workers} == {process.pid for process in pool._pool}
        proceed.set()
        result.get(LONG)
        assert sum(worker.tasks for worker in pool.statistics().workers) == 1
        assert all(worker.function is None for worker in pool.statistics().workers)


def test_progress(pool: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    assert pool.map(tasks.square, range(20), 3, progress=True) == [x * x for x in range(20)]
    assert "20/20" in capfd.readouterr().err
    assert list(pool.imap(tasks.square, range(20), progress=True)) == [x * x for x in range(20)]
    assert "20/20" in capfd.readouterr().err
    assert len(list(pool.imap_unordered(tasks.square, iter(range(20)), progress=True))) == 20
    assert "support.pool_tasks.square: 20it" in capfd.readouterr().err
    assert pool.map(tasks.square, [], progress=True) == []


def test_a_program_may_end_with_a_pool_that_runs() -> None:
    script = """
        import mpipc
        from support import pool_tasks
        class Holder:
            def __init__(self):
                self.pool = mpipc.Pool(2)
        def main():
            global holder
            holder = Holder()
            print(holder.pool.map(pool_tasks.square, range(3)))
            holder.pool.map_async(pool_tasks.spin, range(3))
        if __name__ == "__main__":
            main()
    """
    result = run_script(script)
    assert result.stdout == "[0, 1, 4]\n"
    assert result.stderr == ""


# --- threads ----------------------------------------------------------------------------------------------------------


def test_thread_pool() -> None:
    with ThreadPool(2) as pool:
        assert isinstance(pool, standard.ThreadPool)
        assert pool.map(tasks.square, range(10)) == [x * x for x in range(10)]
        assert pool.apply(lambda: os.getpid()) == os.getpid()
        assert list(pool.imap(tasks.square, iter(range(10)), 3)) == [x * x for x in range(10)]
        with pytest.raises(KeyError) as caught:
            pool.apply(tasks.fail, (1,))
        assert caught.value.__cause__ is None
        pool.close()
        pool.join()
    with pytest.raises(ValueError, match="at least 1"):
        ThreadPool(0)


def test_thread_pool_begins_nothing_after_terminate(monkeypatch: pytest.MonkeyPatch) -> None:
    """multiprocessing's may: join() then waits for tasks that have begun while terminate() ran."""
    pool = ThreadPool(2)
    notifier, handler = pool._change_notifier, pool._task_handler
    put = notifier.put

    def let_others_run(message: object) -> None:
        handler.join(1)  # it ends if it has been told to, or hands out tasks all the time
        put(message)

    monkeypatch.setattr(notifier, "put", let_others_run)
    begun: list[int] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # from the call of map_async() on, this thread runs until it waits for something
    try:
        pool.map_async(begun.append, range(100), chunksize=1)
        pool.terminate()
    finally:
        sys.setswitchinterval(interval)
    pool.join()
    assert not begun


def test_a_thread_that_replaces_another_during_terminate_ends_too() -> None:
    """The thread that replaces workers may find those gone that terminate() has just sent away."""
    made: list[ThreadPool] = []
    busy, terminated, released = threading.Semaphore(0), threading.Event(), threading.Event()

    class Late(ThreadPool):
        @staticmethod
        def _help_stuff_finish(inqueue: Any, task_handler: Any, size: int) -> None:
            terminated.set()
            task_handler.join()  # which puts sentinels, too, that are now taken out
            standard.ThreadPool._help_stuff_finish(inqueue, task_handler, size)  # type: ignore[attr-defined]
            released.set()
            pool: Any = made[0]
            wait_until(lambda: not any(worker.is_alive() for worker in pool._pool))
            pool._join_exited_workers(pool._pool)
            pool._repopulate_pool()

    def items() -> Iterator[int]:
        yield from range(3)
        terminated.wait()
        yield 3

    def work(item: int) -> None:
        busy.release()
        released.wait()

    made.append(Late(3))
    made[0].imap(work, items())
    for _ in range(3):
        busy.acquire()
    made[0].terminate()
    made[0].join()
    pool: Any = made[0]
    assert len(pool._pool) == 3
    assert not any(worker.is_alive() for worker in pool._pool)


class _StrangeProcess:
    """What a context of the user's may make: no process of multiprocessing's, with its methods only."""

    made: ClassVar[list[_StrangeProcess]] = []
    name = "strange"
    exitcode = None

    def __init__(self, **options: Any) -> None:
        self.made.append(self)
        self.calls: list[str] = []

    def start(self) -> None:
        if len(self.made) > 3:
            raise OSError("on purpose")
        self.calls.append("start")

    def terminate(self) -> None:
        self.calls.append("terminate")

    def join(self) -> None:
        self.calls.append("join")


def test_a_pool_that_cannot_start_ends_whatever_its_context_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_StrangeProcess, "made", [])
    with pytest.raises(OSError, match="on purpose"):
        mpipc.pool.Pool(5, context=unittest.mock.MagicMock(Process=_StrangeProcess))
    assert [process.calls for process in _StrangeProcess.made] == [["start", "terminate", "join"]] * 3 + [[]]

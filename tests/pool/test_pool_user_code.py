"""Exceptions, results and iterables are the user's code, which may raise anything wherever it is run: only the one
whose task it is has to see that. And what an iterable raises comes after the results of what it gave before."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import pool_tasks as tasks
from support.pool_tasks import square

import mpipc
from mpipc.exceptions import WorkerLostError
from mpipc.pool import MaybeEncodingError

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60.0


@pytest.fixture
def same_worker(pool: Any) -> Iterator[None]:
    """The worker outlives the test, and so does the pool."""
    before = pool.apply(os.getpid)
    yield
    assert pool.apply(os.getpid) == before


# --- exceptions and results -------------------------------------------------------------------------------------------


class Nasty(Exception):
    """Its method `method` raises."""

    def __init__(self, method: str, what: type[BaseException]) -> None:
        super().__init__(method, what)
        self.method, self.what = method, what

    def _raise_in(self, method: str, value: Any) -> Any:
        if self.method == method:
            raise self.what(method)
        return value

    def __repr__(self) -> str:
        return str(self._raise_in("repr", "Nasty"))

    def __str__(self) -> str:
        return str(self._raise_in("str", "nasty"))

    def __reduce__(self) -> Any:
        self._raise_in("reduce", None)
        if self.method in ("rebuild", "in the parent"):
            return rebuild, (self.method, self.what, os.getpid())
        return super().__reduce__()

    def __getstate__(self) -> Any:
        return self._raise_in("getstate", self.__dict__)

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)
        self._raise_in("setstate", None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            self._raise_in("setattr", None)
        super().__setattr__(name, value)

    @property
    def __notes__(self) -> Any:
        return self._raise_in("notes", [])


def rebuild(method: str, what: type[BaseException], worker: int) -> Any:
    if method == "rebuild" or os.getpid() != worker:
        raise what(method)
    return Nasty("", what)


METHODS = ["repr", "str", "reduce", "getstate", "setstate", "setattr", "notes", "rebuild", "in the parent"]


def raise_nasty(method: str, what: type[BaseException]) -> None:
    raise Nasty(method, what)


def return_nasty(method: str, what: type[BaseException]) -> Any:
    return Nasty(method, what)


def return_unsendable(method: str, what: type[BaseException]) -> Any:
    return [Nasty(method, what), lambda: 1]


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except BaseException as error:
        return error


@pytest.mark.usefixtures("same_worker")
@pytest.mark.parametrize("task", [raise_nasty, return_nasty, return_unsendable], ids=lambda task: task.__name__)
def test_what_the_methods_of_an_exception_raise(pool: Any, task: Callable[..., Any]) -> None:
    for method in METHODS:
        for what in (RuntimeError, SystemExit, RecursionError, GeneratorExit):
            for call in (pool.apply, lambda *arguments: pool.apply_async(*arguments).get(LONG)):
                found = outcome(call, task, (method, what))
                case = f"{method} raises {what.__name__}: {found!r}" if method != "repr" else what.__name__
                if task is return_unsendable:
                    assert type(found) is MaybeEncodingError, case
                elif type(found) is MaybeEncodingError:
                    # What could not be sent is named, and what kept it from that.
                    assert "Nasty" in found.value or "return_nasty" in found.value, case
                    assert method in found.exc, case
                elif type(found) is not Nasty:
                    assert task is return_nasty, case
                    assert type(found) is what, case
                    assert not isinstance(found, Exception) or "unpickled" in found.__notes__[0], case


@pytest.mark.usefixtures("same_worker")
def test_an_exception_that_only_its_worker_can_unpickle(pool: Any) -> None:
    for call in (pool.apply, lambda *arguments: pool.apply_async(*arguments).get(LONG)):
        with pytest.raises(MaybeEncodingError, match="Nasty") as caught:
            call(raise_nasty, ("in the parent", RuntimeError))
        assert "in the parent" in caught.value.exc
        assert isinstance(caught.value.__cause__, RuntimeError)


def raise_long(size: int) -> None:
    raise KeyError("x" * size)


def return_long_and_unsendable(size: int) -> Any:
    return ["x" * size, lambda: 1]


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def raise_deep(levels: int) -> None:
    raise KeyError(deep(levels))


@pytest.mark.usefixtures("same_worker")
def test_large_and_deep_ones(pool: Any) -> None:
    with pytest.raises(KeyError) as long:
        pool.apply(raise_long, (10_000_000,))
    assert len(long.value.args[0]) == 10_000_000
    with pytest.raises(MaybeEncodingError) as cut:
        pool.apply(return_long_and_unsendable, (10_000_000,))
    assert len(cut.value.value) < 10_000
    assert "10000" in cut.value.value
    with pytest.raises(MaybeEncodingError, match="RecursionError"):
        pool.apply(deep, (100_000,))
    with pytest.raises(MaybeEncodingError, match="RecursionError"):
        pool.apply(raise_deep, (100_000,))


class Frozen(Exception):
    """As a frozen dataclass."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot assign to {name}")


def raise_frozen() -> None:
    raise Frozen("solid")


@pytest.mark.usefixtures("same_worker")
def test_an_exception_that_cannot_be_changed(pool: Any) -> None:
    with pytest.raises((Frozen, MaybeEncodingError), match="solid"):
        pool.apply(raise_frozen)


class NoAttributes:
    """A function whose attributes raise."""

    def __call__(self, x: int) -> int:
        return x + 1

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __reduce__(self) -> Any:
        return NoAttributes, ()


@pytest.mark.usefixtures("same_worker")
def test_a_function_whose_attributes_raise(pool: Any) -> None:
    assert pool.map(NoAttributes(), range(3)) == [1, 2, 3]
    assert pool.apply_async(NoAttributes(), (1,)).get(LONG) == 2
    pool.statistics()


@pytest.mark.parametrize("what", [SystemExit, KeyboardInterrupt])
def test_a_task_that_leaves(ctx: Any, what: type[BaseException]) -> None:
    """It ends the worker, which is replaced."""
    with ctx.Pool(1) as pool:
        for _ in range(3):
            with pytest.raises(WorkerLostError):
                pool.apply_async(raise_it, (what,)).get(LONG)
            assert pool.apply(square, (3,)) == 9


def raise_it(what: type[BaseException]) -> None:
    raise what


@pytest.mark.parametrize("what", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_that_leaves(ctx: Any, what: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def leave(_: Any) -> None:
        raise what

    with mpipc.ProcessPoolExecutor(1, mp_context=ctx) as executor:
        future = executor.submit(square, 3)
        future.add_done_callback(leave)
        assert future.result(LONG) == 9
        assert executor.submit(square, 4).result(LONG) == 16
    with ctx.Pool(1) as pool:
        assert pool.apply_async(square, (5,), callback=leave).get(LONG) == 25
        assert pool.apply_async(square, (6,)).get(LONG) == 36


# --- iterables --------------------------------------------------------------------------------------------------------


def broken(count: int, error: BaseException) -> Iterator[int]:
    yield from range(count)
    raise error


@pytest.mark.slow_with("forkserver")
@pytest.mark.parametrize("error", [KeyError("source"), KeyboardInterrupt(), SystemExit(1), StopIteration()], ids=repr)
@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("way", ["imap", "imap_unordered"])
def test_an_error_of_the_iterable_comes_last(ctx: Any, way: str, chunksize: int, error: BaseException) -> None:
    """The first task ends after all the others, which makes the error wait longest; with one worker, in order."""
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)  # by PEP 479
    done = ctx.Semaphore(0)
    with ctx.Pool(2, tasks.start, ((done, 5),)) as pool:
        function = tasks.first_waits if chunksize == 1 else square
        got = []
        results = getattr(pool, way)(function, broken(6, error), chunksize)
        with pytest.raises(expected):
            while True:
                got.append(next(results))
        complete = [function(x) if function is square else x for x in range(6)]
        assert (got if way == "imap" else sorted(got)) == complete
        with pytest.raises(StopIteration):
            next(results)
        assert not pool._cache


class BrokenIter:
    def __iter__(self) -> Iterator[int]:
        raise KeyError("no iterator")


class BrokenLen(BrokenIter):
    def __len__(self) -> int:
        raise KeyError("no length")


@pytest.mark.usefixtures("same_worker")
@pytest.mark.parametrize("chunksize", [1, 3])
def test_what_is_no_iterable(pool: Any, chunksize: int) -> None:
    """As in multiprocessing, imap() itself raises nothing of that."""
    for way in (pool.imap, pool.imap_unordered):
        with pytest.raises(KeyError, match="no iterator"):
            next(way(square, BrokenIter(), chunksize))
        with pytest.raises(TypeError, match="not iterable"):
            next(way(square, 3, chunksize))
    with pytest.raises(KeyError, match="no iterator"):
        pool.map(square, BrokenIter(), chunksize)
    with pytest.raises(KeyError, match="no length"):
        pool.map_async(square, BrokenLen(), chunksize)
    assert not pool._cache


def test_the_failure_of_a_task_is_not_put_off(pool: Any) -> None:
    """Only that of the iterable is."""
    results = pool.imap_unordered(square, iter([1, tasks.Unsendable(), 3]))
    found: list[Any] = []
    for _ in range(3):
        try:
            found.append(next(results))
        except RuntimeError as error:
            found.append(str(error))
    assert sorted(map(str, found)) == ["1", "9", "cannot be pickled"]

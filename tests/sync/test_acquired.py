"""`with lock.acquired(timeout=...):`, for all that acquire() has."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import mpipc

KINDS = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _hold(lock: Any, is_held: Any, let_go: Any) -> None:
    with lock.acquired():
        is_held.set()
        let_go.wait()


@contextlib.contextmanager
def held_by_another(ctx: Any, lock: Any) -> Iterator[Any]:
    """Another process has it; what is yielded makes it let go."""
    is_held, let_go = ctx.Event(), ctx.Event()
    process = ctx.Process(target=_hold, args=(lock, is_held, let_go))
    process.start()
    is_held.wait()
    try:
        yield let_go.set
    finally:
        let_go.set()
        process.join()
        assert process.exitcode == 0


def is_free(lock: Any) -> bool:
    """Whether another thread could have it."""
    told = []
    thread = threading.Thread(target=lambda: told.append(lock.acquire(False) and lock.release() is None))
    thread.start()
    thread.join()
    return told == [True]


def test_held_within(kind: str) -> None:
    lock = getattr(mpipc.get_context("fork"), kind)()
    for timeout in (None, 0, -1, 0.01, 1000):
        with lock.acquired(timeout) as is_held:
            assert is_held is True
            assert not is_free(lock)
        assert is_free(lock)
    with pytest.raises(ZeroDivisionError), lock.acquired(timeout=1):
        raise ZeroDivisionError
    assert is_free(lock)


@pytest.mark.slow_with("spawn", "forkserver")
@pytest.mark.parametrize("timeout", [-1, 0, 0.02])
def test_too_late(ctx: Any, kind: str, timeout: float) -> None:
    lock = getattr(ctx, kind)()
    with held_by_another(ctx, lock) as let_go:
        named = "RLock" if kind == "Condition" else kind  # a condition's is the lock that it has
        with pytest.raises(TimeoutError, match=f"{named}.* {timeout} seconds"):  # noqa: SIM117
            with lock.acquired(timeout=timeout):
                raise AssertionError("somebody else has it")
        let_go()
        with lock.acquired(timeout=1000):  # waits
            pass
    assert is_free(lock)


def test_waits_without_a_limit(kind: str) -> None:
    ctx = mpipc.get_context("fork")
    lock = getattr(ctx, kind)()
    with held_by_another(ctx, lock) as let_go:
        timer = threading.Timer(0.01, let_go)
        timer.start()
        with lock.acquired():
            pass
        timer.join()


@pytest.mark.parametrize("kind", ["RLock", "Condition"])
def test_within_itself(kind: str) -> None:
    lock = getattr(mpipc.get_context("fork"), kind)()
    hold = lock.acquired(timeout=0)
    with hold, hold, lock:
        assert not is_free(lock)
    assert is_free(lock)


@pytest.mark.parametrize("kind", ["Lock", "Semaphore"])
def test_not_within_itself(kind: str) -> None:
    lock = getattr(mpipc.get_context("fork"), kind)()
    hold = lock.acquired(timeout=0)
    with hold, pytest.raises(TimeoutError), hold:
        pass
    with hold:  # and again
        pass


@pytest.mark.parametrize("timeout", [float("nan"), "soon"])
def test_what_is_no_timeout(kind: str, timeout: Any) -> None:
    lock = getattr(mpipc.get_context("fork"), kind)()
    with lock.acquired(), pytest.raises((ValueError, TypeError)):  # noqa: SIM117
        with (lock if kind in ("Lock", "Semaphore", "BoundedSemaphore") else _other(lock)).acquired(timeout):
            pass
    assert is_free(lock)


def _other(lock: Any) -> Any:
    """One that this thread does not have already."""
    other = mpipc.get_context("fork").Lock()
    other.acquire()
    return other


def test_the_lock_of_a_value() -> None:
    value = mpipc.get_context("fork").Value("i", 1)
    with value.get_lock().acquired(timeout=1):
        value.value += 1
    assert value.value == 2

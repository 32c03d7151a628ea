"""A signal handler may raise between any two bytecodes of the main thread. Here it happens at each of them in turn.

The first call is interrupted before its first bytecode, the second before its second, until one gets through. After
each, nothing is outstanding that will not be done, and the pool works as before.
"""

import _weakrefset
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from support import pool_tasks as tasks
from support import wait_until

import mpipc

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

NOT_INTERRUPTED = {threading.__file__, sys.modules[Future.__module__].__file__, _weakrefset.__file__, __file__}
"""Code of others whose locks stay held when it is interrupted at some of its bytecodes."""


class Interrupted(BaseException):
    """As KeyboardInterrupt."""


class Interrupter:
    """Raises Interrupted before the n-th bytecode of this thread, if there are as many."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, frame: Any, event: str, argument: object) -> Any:
        if frame.f_code.co_filename in NOT_INTERRUPTED:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise Interrupted
        return self


class Told:
    """Pickled by Python code."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        number = self.number
        return Told, (number,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Told) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]


def interrupted_everywhere(call: Callable[[], Any], check: Callable[[Any], object], after: Callable[[], object]) -> int:
    """Returns at how many places it was."""
    before = sys.gettrace()
    # The first time is for Python 3.12, which traces the bytecodes of a function from its second call on.
    for n in (1_000_000, *range(1, 100_000)):
        done = False
        result = None
        try:
            sys.settrace(Interrupter(n))
            try:
                result = call()
                done = True
            finally:
                sys.settrace(before)
        except Interrupted:
            pass
        except BaseException as error:
            error.add_note(f"interrupted at {n}")
            raise
        if done:
            check(result)
        after()
        if done and n != 1_000_000:
            return n - 1
    raise AssertionError("it never got through")


def itself(value: Any) -> Any:
    return value


CALLS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "apply": (lambda pool: pool.apply(itself, (1,)), lambda result: result == 1),
    "apply-pickled": (lambda pool: pool.apply(itself, (Told(2),)), lambda result: result == Told(2)),
    "apply_async": (lambda pool: pool.apply_async(itself, (3,)), lambda result: result.get(60) == 3),
    "apply_async-pickled": (
        lambda pool: pool.apply_async(itself, (Told(4),)),
        lambda result: result.get(60) == Told(4),
    ),
    "map_async": (lambda pool: pool.map_async(itself, [1, 2, 3]), lambda result: result.get(60) == [1, 2, 3]),
    "imap": (lambda pool: pool.imap(itself, [1, 2]), lambda result: list(result) == [1, 2]),
    "imap-iterator": (lambda pool: pool.imap(itself, iter([1, 2])), lambda result: list(result) == [1, 2]),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CALLS)
def test_pool(pool: Any, name: str) -> None:
    call, is_right = CALLS[name]

    def nothing_is_left() -> None:
        assert pool.apply(tasks.square, (3,)) == 9
        wait_until(lambda: not pool._cache)
        assert not pool._engine.schedule.backlog

    def check(result: Any) -> None:
        assert is_right(result)

    assert interrupted_everywhere(lambda: call(pool), check, nothing_is_left) > 50


@pytest.mark.timeout(300)
@pytest.mark.parametrize("value", [1, Told(2)], ids=["plain", "pickled"])
def test_executor(ctx: Any, value: Any) -> None:
    with mpipc.ProcessPoolExecutor(1, mp_context=ctx) as executor:

        def nothing_is_left() -> None:
            assert executor.submit(tasks.square, 3).result(60) == 9
            engine = executor._engine
            assert engine is not None
            wait_until(lambda: not engine.schedule.cache)
            assert not engine.schedule.backlog

        def check(future: Future[Any]) -> None:
            assert future.result(60) == value

        nothing_is_left()
        assert interrupted_everywhere(lambda: executor.submit(itself, value), check, nothing_is_left) > 50

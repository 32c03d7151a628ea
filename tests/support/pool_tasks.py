"""Functions that the tests of pools have run by workers: at module level, so that every start method finds them."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar

shared: Any = None


def start(value: Any) -> None:
    """An initializer that keeps what the workers share."""
    global shared
    shared = value


def square(x: int) -> int:
    return x * x


def add(x: int, y: int = 0) -> int:
    return x + y


def identity(x: Any) -> Any:
    return x


def pid_after(x: Any = None) -> int:
    return os.getpid()


def fail(x: Any) -> None:
    raise KeyError(x)


def fail_at(x: int) -> int:
    if x == 7:
        raise KeyError(x)
    return x


class Strange(Exception):
    """Can be pickled, and not unpickled: __init__ wants more than args has."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


def fail_strangely() -> None:
    raise Strange(3, "strange")


class NotReadable:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("refused to be unpickled")


def not_readable() -> NotReadable:
    return NotReadable()


def unsendable() -> Any:
    return lambda: 42


class Unsendable:
    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be pickled")


def raise_cancelled() -> None:
    import asyncio

    raise asyncio.CancelledError("not an Exception")


def leave(code: int) -> None:
    os._exit(code)


def call_exit(code: int) -> None:
    sys.exit(code)


def die(number: int = signal.SIGKILL) -> None:
    faulthandler.disable()  # the test wants the signal, not the stacks
    os.kill(os.getpid(), number)
    signal.pause()


def die_at(x: int, bad: int = 3) -> int:
    if x == bad:
        die()
    return x


def die_at_three(x: int) -> int:
    return die_at(x)


def die_once(x: int) -> int:
    """Dies the first time that any worker comes to the item 3."""
    if x == 3 and not shared.is_set():
        shared.set()
        die()
    return x


class DiesWhenUnpickled:
    def __reduce__(self) -> Any:
        return die, ()


def fork_and_return(x: int) -> int:
    """Both parent and child return from here."""
    child = os.fork()
    if child:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
    return x


def fork_and_leave_child(x: Any) -> int:
    """The child outlives its parent, the worker, and holds whatever descriptors that had."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pause()
    return child


def enter_and_wait(x: Any) -> Any:
    """Says that it runs, by a semaphore, and waits until it is told to go on, by an event."""
    running, proceed = shared
    running.release()
    proceed.wait()
    return x


def first_waits(x: int) -> int:
    """The item 0 ends only when all the others are done."""
    done, others = shared
    if x == 0:
        for _ in range(others):
            done.acquire()
    else:
        done.release()
    return x


def log_and_square(x: int) -> int:
    """Appends the item to a file after a millisecond of work."""
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    descriptor = os.open(shared, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"%d\n" % x)
    os.close(descriptor)
    return x * x


def spin(x: Any) -> None:
    while True:
        pass


def pass_over(number: int, frame: Any) -> None:
    """A signal handler that notes it, and lets the program go on."""


def defy_sigterm(how: str, running: Any) -> None:
    """An initializer; how: "default", "ignore", "handle", "block"."""
    global shared
    shared = running
    if how == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif how == "handle":
        signal.signal(signal.SIGTERM, pass_over)
    elif how == "block":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    running.release()


def say_and_spin(x: Any) -> None:
    shared.release()
    spin(x)


def say_and_count(x: Any) -> None:
    """Stays in C for hours."""
    shared.release()
    sum(range(10**14))


def clean_up(flag: Any, running: Any) -> None:
    """An initializer: SIGTERM ends the task by an exception."""
    global shared
    shared = flag, running
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))


def wait_and_clean_up(x: Any) -> None:
    flag, running = shared
    try:
        running.release()
        signal.pause()
    finally:
        time.sleep(0.2)  # more than a worker has that does not care for the signal
        flag.value = 1


def fail_to_start() -> None:
    raise RuntimeError("no database")


def exit_at_start(code: int) -> None:
    os._exit(code)


def fail_to_start_once(token: Any) -> None:
    if token.acquire(False):
        raise RuntimeError("not yet")


def wait_in_initializer(running: Any, proceed: Any) -> None:
    running.release()
    proceed.wait()


def broken_generator(total: int) -> Iterator[int]:
    yield from range(total)
    raise KeyError("the generator")


def expect_interrupt() -> None:
    """Workers of a program that gets Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interruptible(x: Any) -> bool:
    """Whether Ctrl-C would be noticed."""
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


class CountingPickles:
    """A function that counts how many times it was pickled."""

    pickles = 0

    def __call__(self, x: int) -> int:
        return x

    def __getstate__(self) -> Any:
        self.pickles += 1
        return {}


class CountingLoads:
    """A function that tells how many times it was unpickled in the process that calls it."""

    loads: ClassVar[collections.Counter[int]] = collections.Counter()

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, x: int) -> tuple[int, int]:
        return x, self.loads[self.number]

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__.update(state)
        self.loads[self.number] += 1


def append_and_count(values: list[Any]) -> int:
    """Changes its argument."""
    values.append(1)
    return len(values)


# --- memory and losses ------------------------------------------------------------------------------------------------

inherited: bytearray | None = None
"""What a forked worker has of its parent's."""


def allocate(size: int) -> int:
    """Have so many bytes of private memory, for as long as the task runs: until it is killed, or `size` is below 0."""
    hold = bytearray()
    for _ in range(abs(size) >> 20):
        hold += b"x" * (1 << 20)
    while size > 0:
        time.sleep(0.01)
    return len(hold)


def read_inherited(x: Any = None) -> int:
    """Read what the parent had before this process was forked, and change nothing of it."""
    return inherited.count(1) if inherited is not None else 0


def keep(size: int) -> int:
    """Have more private memory from now on."""
    global shared
    shared = b"x" * size
    return os.getpid()


def read_address(address: int) -> None:
    """Where nothing is mapped: a segmentation fault."""
    import ctypes

    ctypes.string_at(address)


def sum_in_c(x: Any = None) -> int:
    """A loop in C, which holds the GIL."""
    return sum(iter(int, 1))


def sleep_on(x: Any = None) -> None:
    time.sleep(1000)


def write_inherited(x: Any = None) -> None:
    """Write to all that the parent had: from then on it is this process's own."""
    assert inherited is not None
    for start in range(0, len(inherited), 1 << 20):
        inherited[start : start + (1 << 20)] = b"\1" * len(inherited[start : start + (1 << 20)])
    time.sleep(1000)

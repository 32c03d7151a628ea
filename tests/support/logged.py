"""What the processes of tests/stdlib/test_log.py run."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import mpipc

log = logging.getLogger("test.log")


class Attribute:
    """A value of a record that travels as a pickle."""

    def __eq__(self, other: object) -> bool:
        return type(other) is Attribute

    def __hash__(self) -> int:
        return 0


class Unpicklable:
    def __reduce__(self) -> str:
        raise TypeError("not to be pickled")

    def __repr__(self) -> str:
        return "<unpicklable>"


class Unspeakable(Unpicklable):
    def __repr__(self) -> str:
        raise ValueError("not to be shown")


def emit_all_kinds() -> None:
    log.info("%s and %d", "one", 2, extra={"plain": {"a": [1, (2.0, b"x")]}, "pickled": Attribute()})
    try:
        raise KeyError("missing")
    except KeyError:
        log.exception("it is %s", "missing", stack_info=True)
    log.warning("%s", Unpicklable(), extra={"first": Unpicklable(), "second": Unspeakable()})
    log.critical("x" * 100_000 + "\u20ac")
    log.log(23, {"a": "dict"})  # type: ignore[arg-type]


class Braces(logging.LogRecord):
    def getMessage(self) -> str:
        return str(self.msg).format(*self.args)  # type: ignore[misc]


def emit_by_a_factory() -> None:
    logging.setLogRecordFactory(Braces)
    log.info("{}", "{not a field}")


def emit_and_be_killed(count: int) -> None:
    for number in range(count):
        log.info("%d", number)
    os.kill(os.getpid(), signal.SIGKILL)


def emit_numbers(name: str, count: int, gate: Any = None) -> None:
    if gate is not None:
        gate.wait()
    for number in range(count):
        log.info("%s %d", name, number)


def emit_behind_a_gate(first: Any, gate: Any, count: int) -> None:
    log.info("first")
    first.set()
    emit_numbers("n", count, gate)


def emit_levels(told: Any) -> None:
    quiet, loud = logging.getLogger("test.log.quiet"), logging.getLogger("test.log.loud")
    for logger in (quiet, loud):
        for level in (logging.DEBUG, logging.INFO, logging.ERROR):
            logger.log(level, "level %d", level)
    told.send((quiet.isEnabledFor(logging.INFO), loud.isEnabledFor(logging.DEBUG), len(loud.handlers)))


def emit_in_a_grandchild(method: str, depth: int) -> None:
    if depth:
        child = mpipc.get_context(method).Process(target=emit_in_a_grandchild, args=(method, depth - 1))
        child.start()
        child.join()
    log.info("depth %d", depth)


def emit_task(number: int) -> int:
    log.info("task %d", number)
    return number


def fork_beside_threads(method: str, rounds: int) -> None:
    """Children are started while other threads log without a pause."""
    over = threading.Event()

    def emit() -> None:
        while not over.is_set():
            log.debug("noise")

    threads = [threading.Thread(target=emit) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(rounds):
            child = mpipc.get_context(method).Process(target=emit_numbers, args=(f"round {number}", 1))
            child.start()
            child.join()
            assert child.exitcode == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()


def emit_when_the_parent_is_dead(told: Any, count: int) -> None:
    """Tells when it has begun and, as a sign that nothing has held it up, when it has emitted them all."""
    parent = mpipc.parent_process()
    assert parent is not None
    told.put(os.getpid())
    parent.join()
    emit_numbers("late", count)
    told.put("done")


def own_handler(name: str) -> None:
    """Sets up logging for itself."""
    handler = logging.FileHandler(name)
    logging.getLogger().addHandler(handler)
    log.info("twice")
    handler.close()

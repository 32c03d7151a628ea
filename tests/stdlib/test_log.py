"""mpipc.log.forward(): what children log is handled by the parent's logging."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import run_script, start_script, wait_until
from support.logged import (
    Attribute,
    Braces,
    emit_all_kinds,
    emit_and_be_killed,
    emit_behind_a_gate,
    emit_by_a_factory,
    emit_in_a_grandchild,
    emit_levels,
    emit_numbers,
    emit_task,
    fork_beside_threads,
    own_handler,
)

import mpipc
import mpipc.log

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

LONG = 30.0
"""Seconds that a failing test may take."""


class Records(logging.Handler):
    """Keeps the records that it handles; at the first one it waits for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.gate = threading.Event()
        self.gate.set()
        self.is_reached = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.is_reached.set()
        assert self.gate.wait(LONG)
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def got() -> Iterator[Records]:
    """What comes to the logger that the children use, from INFO on."""
    logger, handler = logging.getLogger("test.log"), Records()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        handler.gate.set()
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def said() -> Iterator[Records]:
    """What forward() itself has to say."""
    logger, handler = logging.getLogger("mpipc.log"), Records()
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def run(ctx: Any, target: Any, *arguments: Any) -> Any:
    child = ctx.Process(target=target, args=arguments)
    child.start()
    child.join()
    return child


def test_records_of_all_kinds(ctx: Any, got: Records) -> None:
    with mpipc.log.forward():
        child = run(ctx, emit_all_kinds)
        assert child.exitcode == 0
    plain, error, strange, long, other = got.records
    assert (plain.getMessage(), plain.name, plain.levelname) == ("one and 2", "test.log", "INFO")
    assert (plain.process, plain.processName, plain.threadName) == (child.pid, child.name, "MainThread")
    assert (plain.funcName, plain.module, plain.filename) == ("emit_all_kinds", "logged", "logged.py")
    assert vars(plain)["plain"] == {"a": [1, (2.0, b"x")]}
    assert vars(plain)["pickled"] == Attribute()
    assert error.levelno == logging.ERROR and error.getMessage() == "it is missing"
    shown = logging.Formatter("%(message)s").format(error)
    assert shown.startswith("it is missing\nTraceback (most recent call last):\n")
    assert "KeyError: 'missing'" in shown and shown.count("Traceback") == 1
    assert error.stack_info is not None and "emit_all_kinds" in error.stack_info
    assert strange.getMessage() == "<unpicklable>"
    assert vars(strange)["first"] == "<unpicklable>"
    assert vars(strange)["second"] == "<Unspeakable whose repr() raises ValueError>"
    assert long.getMessage() == "x" * 100_000 + "\u20ac"
    assert (other.getMessage(), other.levelno, other.levelname) == ("{'a': 'dict'}", 23, "Level 23")


def test_records_of_another_class(ctx: Any, got: Records) -> None:
    """Their messages are made where they are emitted, once."""
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Braces)
    try:
        with mpipc.log.forward():
            run(ctx, emit_by_a_factory)
    finally:
        logging.setLogRecordFactory(before)
    assert got.messages == ["{not a field}"]


def test_the_last_records_before_a_kill(ctx: Any, got: Records) -> None:
    with mpipc.log.forward():
        assert run(ctx, emit_and_be_killed, 300).exitcode == -9
    assert got.messages == [str(number) for number in range(300)]


def test_in_order_for_each_child_as_they_are_emitted(ctx: Any, got: Records) -> None:
    gate = ctx.Event()
    with mpipc.log.forward():
        children = [ctx.Process(target=emit_behind_a_gate, args=(ctx.Event(), gate, 200)) for _ in range(3)]
        for child in children:
            child.start()
        wait_until(lambda: got.messages == ["first"] * 3, timeout=LONG)  # while the children live
        gate.set()
        for child in children:
            child.join()
    for child in children:
        messages = [record.getMessage() for record in got.records if record.process == child.pid]
        assert messages == ["first", *(f"n {number}" for number in range(200))]


def test_handlers_and_levels_of_the_parent(ctx: Any, got: Records, tmp_path: Path) -> None:
    quiet, loud = logging.getLogger("test.log.quiet"), logging.getLogger("test.log.loud")
    handler = logging.FileHandler(tmp_path / "log")
    quiet.setLevel(logging.ERROR)
    loud.setLevel(logging.DEBUG)
    loud.addHandler(handler)
    loud.propagate = False
    reader, writer = ctx.Pipe(False)
    try:
        with reader, writer, mpipc.log.forward():
            run(ctx, emit_levels, writer)
            assert reader.recv() == (False, True, 0)
        assert got.messages == ["level 40"]
        assert (tmp_path / "log").read_text().split("\n") == ["level 10", "level 20", "level 40", ""]
    finally:
        loud.removeHandler(handler)
        handler.close()
        loud.propagate = True
        for logger in (quiet, loud):
            logger.setLevel(logging.NOTSET)


def test_a_level_that_the_parent_sets_afterwards_is_applied_there(ctx: Any, got: Records) -> None:
    first, gate = ctx.Event(), ctx.Event()
    with mpipc.log.forward():
        child = ctx.Process(target=emit_behind_a_gate, args=(first, gate, 10))
        child.start()
        wait_until(lambda: got.messages == ["first"], timeout=LONG)
        logging.getLogger("test.log").setLevel(logging.ERROR)
        gate.set()
        child.join()
    assert got.messages == ["first"]


def test_handlers_of_the_childs_own(ctx: Any, got: Records, tmp_path: Path) -> None:
    with mpipc.log.forward():
        assert run(ctx, own_handler, str(tmp_path / "own")).exitcode == 0
    assert got.messages == ["twice"]
    assert (tmp_path / "own").read_text() == "twice\n"


def test_a_parent_that_does_not_read(ctx: Any, got: Records, said: Records) -> None:
    first, gate = ctx.Event(), ctx.Event()
    got.gate.clear()
    with mpipc.log.forward(maxsize=100):
        child = ctx.Process(target=emit_behind_a_gate, args=(first, gate, 500))
        child.start()
        assert got.is_reached.wait(LONG)  # the parent has one record in its hands, and no other
        gate.set()
        child.join()
        assert child.exitcode == 0
        got.gate.set()
    assert got.messages == ["first", *(f"n {number}" for number in range(400, 500))]
    assert [record.levelname for record in said.records] == ["WARNING"]
    assert said.messages[0].startswith("400 log records of child processes were dropped")


def test_dropped_by_several_children(ctx: Any, got: Records, said: Records) -> None:
    gate = ctx.Event()
    got.gate.clear()
    with mpipc.log.forward(maxsize=50):
        run(ctx, emit_numbers, "first", 1)
        assert got.is_reached.wait(LONG)
        children = [ctx.Process(target=emit_numbers, args=(str(number), 200, gate)) for number in range(4)]
        for child in children:
            child.start()
        gate.set()
        for child in children:
            child.join()
        got.gate.set()
    (message,) = said.messages
    assert int(message.split()[0]) + len(got.records) == 801
    assert 51 <= len(got.records) <= 51 + len(children)
    for child in children:  # the oldest of each are missing
        numbers = [record.getMessage() for record in got.records if record.process == child.pid]
        assert [int(each.split()[1]) for each in numbers] == list(range(200 - len(numbers), 200))


def test_children_of_children(ctx: Any, start_method: str, got: Records) -> None:
    with mpipc.log.forward():
        assert run(ctx, emit_in_a_grandchild, start_method, 2).exitcode == 0
    assert got.messages == ["depth 0", "depth 1", "depth 2"]
    assert len({record.process for record in got.records}) == 3


def test_workers(ctx: Any, got: Records) -> None:
    with mpipc.log.forward():
        with ctx.Pool(2) as pool:
            assert pool.map(emit_task, range(10)) == list(range(10))
        with mpipc.ProcessPoolExecutor(1, mp_context=ctx) as executor:
            assert list(executor.map(emit_task, range(10, 15))) == list(range(10, 15))
    assert sorted(got.messages) == sorted(f"task {number}" for number in range(15))


def test_close(ctx: Any, got: Records) -> None:
    first, gate = ctx.Event(), ctx.Event()
    forwarding = mpipc.log.forward()
    child = ctx.Process(target=emit_behind_a_gate, args=(first, gate, 100))
    child.start()
    assert first.wait(LONG)
    forwarding.close()
    assert got.messages == ["first"], "what has come has been handled when close() returns"
    forwarding.close()
    gate.set()
    child.join()
    assert child.exitcode == 0
    assert got.messages == ["first"]
    with mpipc.log.forward():
        run(ctx, emit_numbers, "again", 1)
    assert got.messages == ["first", "again 0"]


def test_a_child_of_os_fork_keeps_its_handlers(got: Records) -> None:
    with mpipc.log.forward() as forwarding:
        pid = os.fork()
        if pid == 0:
            logging.getLogger("test.log").info("its own")
            forwarding.close()  # which is not for it to do
            os._exit(len(got.records))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        run(mpipc.get_context("fork"), emit_numbers, "n", 1)
    assert got.messages == ["n 0"]


def test_what_forward_refuses() -> None:
    with mpipc.log.forward(), pytest.raises(RuntimeError, match="called before: close"):
        mpipc.log.forward()
    with pytest.raises(ValueError, match="maxsize must be at least 1, got 0"):
        mpipc.log.forward(0)


def test_children_started_while_threads_log(ctx: Any, start_method: str, got: Records) -> None:
    logging.getLogger("test.log").setLevel(logging.DEBUG)
    rounds = 20 if start_method == "fork" else 2
    with mpipc.log.forward():
        fork_beside_threads(start_method, rounds)
    messages = [message for message in got.messages if message != "noise"]
    assert messages == [f"round {number} 0" for number in range(rounds)]


def test_a_filter_that_raises(ctx: Any, got: Records, capsys: pytest.CaptureFixture[str]) -> None:
    parent = os.getpid()

    def refuse(record: logging.LogRecord) -> bool:
        if os.getpid() == parent and record.getMessage() == "n 1":
            raise LookupError("in a filter of the parent")
        return True

    logger = logging.getLogger("test.log")
    logger.addFilter(refuse)
    try:
        with mpipc.log.forward():
            run(ctx, emit_numbers, "n", 3)
    finally:
        logger.removeFilter(refuse)
    assert got.messages == ["n 0", "n 2"]
    error = capsys.readouterr().err
    assert error.count("--- Logging error ---") == 1 and "in a filter of the parent" in error


def test_import_mpipc_does_not_load_it() -> None:
    source = "import sys, mpipc; print({'mpipc.log', 'logging'} & sys.modules.keys(), mpipc.log.forward)"
    assert run_script(source).stdout.startswith("set() <function forward")


PROGRAM = """
    import atexit, logging, sys
    import mpipc, mpipc.log

    logging.basicConfig(level=logging.INFO, format="%(processName)s %(message)s", stream=sys.stdout)
    logging.info("imported %s", __name__)
    logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))

    def child(main_is_over):
        main_is_over.wait()
        logging.info("%d", "not a number")
        logging.info("child")

    if __name__ == "__main__":
        mpipc.log.forward()
        ctx = mpipc.get_context(sys.argv[1])
        main_is_over = ctx.Event()
        atexit.register(main_is_over.set)
        ctx.Process(target=child, args=(main_is_over,)).start()
"""


def test_a_program(start_method: str) -> None:
    """Its modules set up logging; its child logs when it imports them, and when the program has come to its end."""
    result = run_script(PROGRAM, arguments=[start_method])
    name = {"fork": "ForkProcess-1", "spawn": "SpawnProcess-1", "forkserver": "ForkServerProcess-1"}[start_method]
    imported = [] if start_method == "fork" else [f"{name} imported __mp_main__", "imported __mp_main__"]
    main = ["MainProcess imported __main__"]
    assert result.stdout.splitlines() == [*main, *imported, f"{name} child", "child"]
    assert result.stderr.count("--- Logging error ---") == 1 and "not a number" in result.stderr


@pytest.mark.parametrize("first", ["logging", "multiprocessing.util"])
def test_a_file_is_open_until_the_last_record(first: str) -> None:
    """Which of the two is imported first settles when logging closes its handlers."""
    source = f"""
        import {first}
        import atexit, logging, multiprocessing.util
        import mpipc, mpipc.log

        def child(main_is_over):
            main_is_over.wait()
            logging.warning("late")

        def show():
            print(open("log").read())

        if __name__ == "__main__":
            logging.basicConfig(filename="log", filemode="w")
            multiprocessing.util.Finalize(None, show, exitpriority=-10_000)
            mpipc.log.forward()
            ctx = mpipc.get_context("fork")
            main_is_over = ctx.Event()
            atexit.register(main_is_over.set)
            ctx.Process(target=child, args=(main_is_over,)).start()
    """
    assert "WARNING:root:late" in run_script(source).stdout


def test_children_of_a_killed_parent_go_on(start_method: str) -> None:
    source = f"""
        import logging, os, signal
        import mpipc, mpipc.log
        from support.logged import emit_when_the_parent_is_dead

        def middle(told):
            logging.getLogger().setLevel(logging.INFO)
            mpipc.log.forward(maxsize=10)
            ctx = mpipc.get_context({start_method!r})
            child = ctx.Process(target=emit_when_the_parent_is_dead, args=(told, 1000))
            child.start()
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            ctx = mpipc.get_context({start_method!r})
            told = ctx.Queue()
            process = ctx.Process(target=middle, args=(told,))
            process.start()
            print(type(told.get(timeout={LONG})).__name__, told.get(timeout={LONG}))
            process.join()
    """
    with start_script(source) as script:
        result = script.finish(timeout=2 * LONG)
    assert result.stdout == "int done\n", result.stderr

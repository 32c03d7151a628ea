"""Processes that end with the one that started them, and those that do not."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import Script, processes, wait_until
from support.reaper import reaper_pid, wait_for_reaper
from support.tied import (
    end_at_once,
    start_and_return,
    start_and_wait,
    start_in_a_thread_and_wait,
    start_manager_and_wait,
    wait_for_ever,
    wait_in_a_lock,
)
from support.without_undo import can_ignore_undo, run_without_undo

import mpipc
from mpipc._core import current, ties

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

LONG = 30.0
"""Seconds that a failing test may take."""


class Watched:
    """A process that need not be a child of this one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def has_ended(self, timeout: float = 0) -> bool:
        return bool(select.select([self._fd], [], [], timeout)[0])

    def kill(self) -> None:
        if not self.has_ended():
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        assert self.has_ended(LONG)

    def close(self) -> None:
        self.kill()
        os.close(self._fd)


class Told:
    """The two ends of a pipe, and the processes of which it tells."""

    def __init__(self, ctx: Any) -> None:
        self.reader, self.writer = ctx.Pipe(False)
        self.known: list[Watched] = []

    def next(self) -> Any:
        assert self.reader.poll(LONG), "nothing came"
        return self.reader.recv()

    def process(self) -> Watched:
        return self.watch(self.next())

    def watch(self, pid: int) -> Watched:
        self.known.append(Watched(pid))
        return self.known[-1]


@pytest.fixture
def told(ctx: Any) -> Iterator[Told]:
    made = Told(ctx)
    try:
        yield made
    finally:
        for process in made.known:
            process.close()
        made.reader.close()
        made.writer.close()


def killed(parent: Any) -> None:
    parent.kill()
    parent.join()


def started(ctx: Any, target: Any, *arguments: Any) -> Any:
    parent = ctx.Process(target=target, args=arguments)
    parent.start()
    return parent


def start_parent(ctx: Any, start_method: str, told: Told, plans: list[Any]) -> tuple[Any, list[Watched]]:
    """The parent, and its children, all of which run."""
    parent = started(ctx, start_and_wait, told.writer, start_method, plans)
    messages = [told.next() for _ in range(len(plans) + 1)]
    (pids,) = [message for message in messages if isinstance(message, list)]
    assert sorted(pids) == sorted(message for message in messages if not isinstance(message, list))
    return parent, [told.watch(pid) for pid in pids]


def test_who_is_to_ends_with_a_killed_parent_and_nobody_else(ctx: Any, start_method: str, told: Told) -> None:
    plans = [(True, wait_for_ever, ()), (False, wait_for_ever, ()), (True, wait_for_ever, ())]
    parent, children = start_parent(ctx, start_method, told, plans)
    killed(parent)
    assert children[0].has_ended(LONG)
    assert children[2].has_ended(LONG)
    assert not children[1].has_ended()


def test_grandchildren_follow(ctx: Any, start_method: str, told: Told) -> None:
    inner = [(True, wait_for_ever, ()), (False, wait_for_ever, ())]
    plan = (True, start_and_wait, (start_method, inner))
    parent = started(ctx, start_and_wait, told.writer, start_method, [plan])
    messages = [told.next() for _ in range(4)]
    lists = [message for message in messages if isinstance(message, list)]
    (child,) = next(pids for pids in lists if len(pids) == 1)
    ends, stays = next(pids for pids in lists if len(pids) == 2)
    child, ends, stays = told.watch(child), told.watch(ends), told.watch(stays)
    killed(parent)
    assert child.has_ended(LONG)
    assert ends.has_ended(LONG)
    assert not stays.has_ended()


def test_one_that_is_stopped_ends_too(ctx: Any, start_method: str, told: Told) -> None:
    parent, (child,) = start_parent(ctx, start_method, told, [(True, wait_for_ever, ())])
    os.kill(child.pid, signal.SIGSTOP)
    killed(parent)
    assert child.has_ended(LONG)


def test_without_a_reaper_who_waits_ends_at_its_tick(ctx: Any, start_method: str, told: Told) -> None:
    lock = ctx.Lock()
    wait_for_reaper()
    with lock:
        parent = started(ctx, start_and_wait, told.writer, start_method, [(True, wait_in_a_lock, ())], lock)
        messages = [told.next(), told.next()]
        child = told.watch(next(message for message in messages if not isinstance(message, list)))
        os.kill(reaper_pid(), signal.SIGKILL)
        killed(parent)
        assert child.has_ended(LONG)


def test_the_thread_that_started_it_may_end(ctx: Any, start_method: str, told: Told) -> None:
    """Which is when the kernel's own signal for this comes (PR_SET_PDEATHSIG)."""
    parent = started(ctx, start_in_a_thread_and_wait, told.writer, start_method)
    messages = [told.next(), told.next()]
    child = told.watch(next(message for message in messages if message != "thread over"))
    current().recover()
    assert not child.has_ended()
    killed(parent)
    assert child.has_ended(LONG)


def test_a_parent_that_ends_normally_waits_for_it(ctx: Any, start_method: str, told: Told) -> None:
    parent = started(ctx, start_and_return, told.writer, start_method)
    assert told.next() == "done"
    parent.join()
    assert parent.exitcode == 0


def test_a_parent_that_does_not_wait_takes_it_along(ctx: Any, start_method: str, told: Told) -> None:
    parent = started(ctx, end_at_once, told.writer, start_method)
    parent.join()
    assert parent.exitcode == 0
    messages = [told.next()]
    while told.reader.poll(0):
        messages.append(told.next())
    # The child need not have come to what tells its pid: then there is nobody any more who could.
    assert "leaving" in messages
    for pid in messages:
        wait_until(lambda pid=pid: pid not in processes() or processes()[pid].state == "Z")  # type: ignore[misc]


@pytest.mark.parametrize("ends", [True, False])
def test_a_manager(ctx: Any, start_method: str, told: Told, ends: bool) -> None:
    parent = started(ctx, start_manager_and_wait, told.writer, start_method, ends)
    server = told.process()
    killed(parent)
    if ends:
        assert server.has_ended(LONG)
    else:
        current().recover()
        assert not server.has_ended()


def test_a_manager_of_another_context_is_refused() -> None:
    import multiprocessing

    with pytest.raises(TypeError, match=r"end_with_parent needs a context of mpipc \(mpipc.get_context"):
        mpipc.managers.SyncManager(ctx=multiprocessing.get_context("spawn"), end_with_parent=True)


KILLED = """
import sys, signal
import mpipc
from support.tied import start_one

class Nobody:
    def send(self, message):
        pass

if __name__ == "__main__":
    mpipc.Lock()
    print("up", flush=True)
    while True:
        start_one(Nobody(), sys.argv[1])
        print("started", flush=True)
"""


@pytest.mark.slow_with("1", "2")
@pytest.mark.parametrize("round", range(3))
def test_a_parent_killed_at_any_moment(start_method: str, round: int) -> None:
    """While it starts children: they are being forked, import what they need, or run."""
    moment = random.Random(f"{start_method} {round}")
    with Script(KILLED, arguments=[start_method]) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "up\n"
        for _ in range(moment.randrange(4)):
            assert script.stdout.readline() == "started\n"
        time.sleep(moment.random() * 0.1)  # not for anything: the moment
        session = os.getsid(script.pid)
        script.kill()
        script.wait()

        def left() -> list[str]:
            return [
                process.describe()
                for process in processes().values()
                if process.session == session and process.state != "Z"
            ]

        wait_until(lambda: not left(), timeout=LONG, message="somebody of it is left")


IMPORTING = """
import os, signal, sys
if __name__ != "__main__":
    print(os.getpid(), flush=True)
    while True:
        signal.pause()

import mpipc

if __name__ == "__main__":
    {before}
    mpipc.get_context("spawn").Process(target=print, end_with_parent=True).start()
    signal.pause()
"""


@pytest.mark.parametrize("before", ["pass", "mpipc.install()"])
def test_while_a_fresh_interpreter_imports_main(before: str) -> None:
    with Script(IMPORTING.format(before=before)) as script:
        assert script.stdout is not None
        child = Watched(int(script.stdout.readline()))
        try:
            script.kill()
            script.wait()
            assert child.has_ended(LONG)
        finally:
            child.close()


SUBCLASS = """
import os, select, signal, sys
import mpipc
if sys.argv[2] == "install":
    mpipc.install()
import multiprocessing

class Own(multiprocessing.get_context(sys.argv[1]).Process):
    def __init__(self, writer):
        super().__init__(daemon=True)
        self.writer = writer
        self.end_with_parent = True

    def run(self):
        self.writer.send(os.getpid())
        while True:
            signal.pause()

def parent(writer):
    Own(writer).start()
    while True:
        signal.pause()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    reader, writer = context.Pipe(False)
    process = context.Process(target=parent, args=(writer,))
    process.start()
    child = os.pidfd_open(reader.recv())
    process.kill()
    process.join()
    print(bool(select.select([child], [], [], 30)[0]))
"""


def test_a_daemon_of_a_class_of_ones_own_under_install(start_method: str) -> None:
    with Script(SUBCLASS, arguments=[start_method, "install"]) as script:
        assert script.communicate(timeout=60)[0] == "True\n"


def test_the_attribute(ctx: Any) -> None:
    process = ctx.Process(target=wait_for_ever)
    assert process.end_with_parent is False
    process.end_with_parent = True
    assert process.end_with_parent is True
    assert ctx.Process(end_with_parent=True).end_with_parent is True
    with pytest.raises(TypeError, match="end_with_parent must be True or False, not 1"):
        process.end_with_parent = 1
    reader, writer = ctx.Pipe(False)
    process = ctx.Process(target=wait_for_ever, args=(writer,), end_with_parent=True)
    process.start()
    try:
        with pytest.raises(AssertionError, match=r"set end_with_parent before start\(\)"):
            process.end_with_parent = False
    finally:
        process.kill()
        process.join()
        reader.close()
        writer.close()


def test_a_parent_that_has_been_gone_for_long() -> None:
    """Whoever has its slot by now is not taken for it."""
    shmid, nonce, slot, generation = ties.place()
    child = os.fork()
    if child == 0:
        ties.end_with(shmid, nonce, slot, generation - 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@can_ignore_undo
def test_where_undo_is_ignored() -> None:
    script = """
        import os, select, signal
        import mpipc
        from support.tied import start_and_wait, wait_for_ever

        if __name__ == "__main__":
            ctx = mpipc.get_context("fork")
            reader, writer = ctx.Pipe(False)
            plans = [(True, wait_for_ever, ()), (False, wait_for_ever, ())]
            parent = ctx.Process(target=start_and_wait, args=(writer, "fork", plans))
            parent.start()
            pids = next(message for message in iter(reader.recv, None) if isinstance(message, list))
            ends, stays = map(os.pidfd_open, pids)
            parent.kill()
            parent.join()
            print(bool(select.select([ends], [], [], 30)[0]), bool(select.select([stays], [], [], 0)[0]))
            signal.pidfd_send_signal(stays, signal.SIGKILL)
    """
    assert run_without_undo(script).split() == ["True", "False"]

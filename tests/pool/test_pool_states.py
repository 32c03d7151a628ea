"""The states of a pool's life: each transition that is allowed happens here, and each other one raises."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import pool_tasks as tasks
from support import processes, wait_until

import mpipc
import mpipc._pool.engine
from mpipc._pool.life import Life
from mpipc._pool.states import AFTER, ForbiddenTransition, State
from mpipc.exceptions import BrokenPoolError
from mpipc.sysv import IPC_RMID, msgctl

RUNNING, CLOSED, QUITTING = State.RUNNING, State.CLOSED, State.QUITTING
TERMINATING, BROKEN = State.TERMINATING, State.BROKEN
CONCLUDING, ENDED = State.CONCLUDING, State.ENDED

LONG = 60.0
PROTOCOL = Path(__file__).resolve().parents[2] / "docs" / "protocols" / "pool.md"
ALLOWED = {(old, new) for old, following in AFTER.items() for new in following}
FORBIDDEN = sorted(set(itertools.product(State, State)) - ALLOWED, key=str)


def ways_to(state: State) -> tuple[State, ...]:
    """A shortest way from RUNNING."""
    ways = [(RUNNING,)]
    for way in ways:
        if way[-1] is state:
            return way
        ways += [(*way, new) for new in AFTER[way[-1]] if new not in way]
    raise AssertionError(f"{state} is never reached")


def life_in(state: State) -> Life:
    life = Life()
    for each in ways_to(state)[1:]:
        life.enter(each)
    return life


# --- the table --------------------------------------------------------------------------------------------------------


def name(pair: tuple[State, State]) -> str:
    return f"{pair[0].name}-{pair[1].name}"


@pytest.mark.parametrize("pair", FORBIDDEN, ids=name)
def test_a_forbidden_transition(pair: tuple[State, State]) -> None:
    old, new = pair
    life = life_in(old)
    before = life.history
    assert not life.may_enter(new)
    with pytest.raises(ForbiddenTransition, match=f"{old.value} cannot become {new.value}"):
        life.enter(new)
    assert life.state is old
    assert life.history == before


@pytest.mark.parametrize("pair", sorted(ALLOWED, key=str), ids=name)
def test_an_allowed_transition(pair: tuple[State, State]) -> None:
    old, new = pair
    life = life_in(old)
    assert life.may_enter(new)
    life.enter(new)
    assert life.state is new
    assert life.history == (*ways_to(old), new)


def test_it_never_goes_back() -> None:
    """From no state there is a way to itself; from each there is one to the end."""
    for state in State:
        reached: set[State] = set()
        waiting = [*AFTER[state]]
        while waiting:
            new = waiting.pop()
            reached.add(new)
            waiting += AFTER[new]
        assert state not in reached
        assert ENDED in reached or state is ENDED


def test_nothing_else_changes_it() -> None:
    life = Life()
    with pytest.raises(AttributeError):
        life.state = ENDED  # type: ignore[misc]
    assert life.state is RUNNING


def test_it_does_not_change_while_somebody_has_the_lock() -> None:
    life = Life()
    thread = threading.Thread(target=life.enter, args=(CLOSED,))
    with life.lock:
        thread.start()
        thread.join(0.05)
        assert life.state is RUNNING
        assert life.may_enter(TERMINATING)
    thread.join(LONG)
    assert life.state is CLOSED


def test_what_the_states_mean() -> None:
    """In one row for each state: is_running, is_staffed, is_over, is_concluding."""
    found = {
        state: (life.is_running, life.is_staffed, life.is_over, life.is_concluding)
        for state in State
        for life in [life_in(state)]
    }
    assert found == {
        RUNNING: (True, True, False, False),
        CLOSED: (False, True, False, False),
        QUITTING: (False, False, False, False),
        TERMINATING: (False, False, True, False),
        BROKEN: (False, False, True, False),
        CONCLUDING: (False, False, True, True),
        ENDED: (False, False, True, True),
    }


@pytest.mark.skipif(not PROTOCOL.is_file(), reason="the documents are not here")
def test_the_table_and_the_drawing_say_so() -> None:
    text = PROTOCOL.read_text()
    rows = re.findall(r"^\| `([A-Z]+)` \|[^|]+\|[^|]+\| ([A-Z, `-]+) \|$", text, re.MULTILINE)
    table = {old: tuple(re.findall("[A-Z]+", following)) for old, following in rows}
    assert table == {old.name: tuple(new.name for new in following) for old, following in AFTER.items()}
    [drawing] = re.findall(r"^```mermaid\nstateDiagram-v2\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    arrows = re.findall(r"^ +([A-Z]+) --> ([A-Z]+)", drawing, re.MULTILINE)
    assert sorted(arrows) == sorted((old.name, new.name) for old, new in ALLOWED)


# --- pools ------------------------------------------------------------------------------------------------------------


def remove_results(pool: Any) -> None:
    msgctl(pool._engine.results._messages.block.id, IPC_RMID)


def stop_a_worker(pool: Any) -> int:
    """One that has nothing to do: a pool that is closed waits for it."""
    pid: int = pool._pool[0].pid
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: processes()[pid].state == "T")
    return pid


def close_and_await(pool: Any, state: State) -> None:
    pool.close()
    wait_until(lambda: pool._engine.life.state is state)


def closed(pool: Any) -> None:
    pool.close()
    pool.join()


def terminated(pool: Any) -> None:
    pool.terminate()


def closed_with_a_task_and_terminated(pool: Any) -> None:
    result = pool.apply_async(tasks.spin, (1,))
    close_and_await(pool, CLOSED)
    pool.terminate()
    with pytest.raises(BrokenPoolError, match="terminated"):
        result.get(LONG)


def terminated_while_a_worker_does_not_quit(pool: Any) -> None:
    stop_a_worker(pool)
    close_and_await(pool, QUITTING)
    pool.terminate()


def broken(pool: Any) -> None:
    remove_results(pool)
    wait_until(lambda: pool._engine.life.state is ENDED)
    with pytest.raises(BrokenPoolError, match="cannot receive"):
        pool.apply(tasks.square, (1,))


def closed_with_a_task_and_broken(pool: Any) -> None:
    result = pool.apply_async(tasks.spin, (1,))
    close_and_await(pool, CLOSED)
    remove_results(pool)
    with pytest.raises(BrokenPoolError, match="cannot receive"):
        result.get(LONG)


def broken_while_a_worker_does_not_quit(pool: Any) -> None:
    stop_a_worker(pool)
    close_and_await(pool, QUITTING)
    remove_results(pool)
    wait_until(lambda: pool._engine.life.state is ENDED)


def terminated_and_broken(pool: Any) -> None:
    def refuse(members: object) -> None:
        raise OSError(12, "refused")

    pool._engine.supervisor._await_arrival = refuse
    pool.terminate()
    for process in pool._pool:
        process.join(LONG)  # they have seen it in their ledgers
        assert process.exitcode is not None
    assert "could not be ended" in str(pool._engine.broken)


LIVES: dict[Callable[[Any], None], tuple[State, ...]] = {
    closed: (RUNNING, CLOSED, QUITTING, CONCLUDING, ENDED),
    terminated: (RUNNING, TERMINATING, CONCLUDING, ENDED),
    closed_with_a_task_and_terminated: (RUNNING, CLOSED, TERMINATING, CONCLUDING, ENDED),
    terminated_while_a_worker_does_not_quit: (RUNNING, CLOSED, QUITTING, TERMINATING, CONCLUDING, ENDED),
    broken: (RUNNING, BROKEN, CONCLUDING, ENDED),
    closed_with_a_task_and_broken: (RUNNING, CLOSED, BROKEN, CONCLUDING, ENDED),
    broken_while_a_worker_does_not_quit: (RUNNING, CLOSED, QUITTING, BROKEN, CONCLUDING, ENDED),
    terminated_and_broken: (RUNNING, TERMINATING, BROKEN, CONCLUDING, ENDED),
}


@pytest.mark.leftovers(reason="mpipc does not find again what somebody else has removed")
@pytest.mark.parametrize("live", LIVES, ids=lambda live: live.__name__)
def test_a_life(live: Callable[[Any], None]) -> None:
    pool: Any = mpipc.get_context("fork").Pool(2)
    assert pool.map(tasks.square, range(4)) == [0, 1, 4, 9]
    live(pool)
    pool.terminate()  # changes nothing after the end
    pool.join()
    assert pool._engine.life.history == LIVES[live]
    assert not any(process.is_alive() for process in pool._pool)


def test_each_allowed_transition_happens_in_a_life() -> None:
    assert {pair for history in LIVES.values() for pair in itertools.pairwise(history)} == ALLOWED


def test_a_start_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool gets to its end also where there is no thread that could see to it."""
    found: list[Any] = []
    start = mpipc._pool.engine.Engine.start

    def note(engine: Any) -> None:
        found.append(engine)
        start(engine)

    def fail(self: object) -> None:
        raise OSError(11, "no process")

    monkeypatch.setattr("mpipc._pool.engine.Engine.start", note)
    context = mpipc.get_context("fork")
    monkeypatch.setattr(context.Process, "start", fail)
    with pytest.raises(OSError, match="no process"):
        context.Pool(2)
    assert [engine.life.history for engine in found] == [(RUNNING, TERMINATING, CONCLUDING, ENDED)]

"""How workers begin, end and run: worker_init, worker_exit, worker_state(), nice, cpu_affinity, end_with_parent."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Any

import pytest
from support import pool_tasks, wait_until
from support import worker_tasks as tasks

import mpipc
from mpipc import BrokenPoolError
from mpipc._pool.placing import Places, checked_affinity

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60
CPUS = sorted(os.sched_getaffinity(0))


def executor(ctx: Any, size: int, **options: Any) -> Any:
    return mpipc.ProcessPoolExecutor(size, mp_context=ctx, **options)


# --- the state --------------------------------------------------------------------------------------------------------


def test_a_state_of_each_worker(ctx: Any, tmp_path: Path) -> None:
    with ctx.Pool(3, worker_init=tasks.begin, worker_exit=tasks.Note(tmp_path)) as pool:
        calls: dict[int, int] = {}
        for pid, number in pool.map(tasks.count, range(60), 1):
            calls[pid] = max(calls.get(pid, 0), number)
        workers = set(pool.broadcast(os.getpid))
        pool.close()
        pool.join()
    assert sum(calls.values()) == 60
    assert {int(path.name): int(path.read_text()) for path in tmp_path.iterdir()} == dict.fromkeys(workers, 0) | calls


def test_of_an_executor(ctx: Any, tmp_path: Path) -> None:
    with executor(ctx, 2, worker_init=tasks.begin, worker_exit=tasks.Note(tmp_path)) as made:
        results = list(made.map(tasks.count, range(20)))
    assert sum(int(path.read_text()) for path in tmp_path.iterdir()) == len(results)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_worker_that_has_used_up_its_quota_exits_and_the_next_one_begins(ctx: Any, tmp_path: Path) -> None:
    with ctx.Pool(1, maxtasksperchild=2, worker_init=tasks.begin, worker_exit=tasks.Note(tmp_path)) as pool:
        assert [number for _, number in pool.map(tasks.count, range(6), 1)] == [1, 2, 1, 2, 1, 2]
        pool.close()
        pool.join()
    assert sorted(path.read_text() for path in tmp_path.iterdir()) in (["2", "2", "2"], ["0", "2", "2", "2"])


def test_no_exit_of_who_is_killed_or_terminated(ctx: Any, tmp_path: Path) -> None:
    with ctx.Pool(2, worker_init=tasks.begin, worker_exit=tasks.Note(tmp_path)) as pool:
        victim, _ = pool.apply(tasks.count)
        os.kill(victim, signal.SIGKILL)
        assert victim not in pool.broadcast(os.getpid)
    assert list(tmp_path.iterdir()) == []


def test_after_the_initializer(ctx: Any) -> None:
    with ctx.Pool(1, tasks.initialize, worker_init=tasks.begin_after_initializer) as pool:
        assert pool.apply(tasks.initialized) == "yes"


def test_with_a_pickler(ctx: Any, tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    text = "closed over"
    path = tmp_path / "exit"

    def begin(state: Any) -> None:
        state.text = text

    def end(state: Any) -> None:
        path.write_text(state.text)

    with ctx.Pool(1, worker_init=begin, worker_exit=end, pickler="cloudpickle") as pool:
        assert pool.apply(tasks.kept, ("text",)) == text
        pool.close()
        pool.join()
    assert path.read_text() == text


def test_what_worker_init_raises_ends_the_pool_and_is_told(ctx: Any) -> None:
    with ctx.Pool(1, worker_init=tasks.fail_to_begin) as pool:
        with pytest.raises(BrokenPoolError) as caught:
            pool.apply_async(tasks.count).get(LONG)
        assert "no model" in repr(caught.value.__cause__)


def test_what_worker_exit_raises_is_shown_and_ends_only_that_worker(ctx: Any, start_method: str, capfd: Any) -> None:
    with ctx.Pool(1, worker_init=tasks.begin, worker_exit=tasks.fail_to_end) as pool:
        assert pool.apply(tasks.count)[1] == 1
        pool.close()
        pool.join()
    if start_method != "forkserver":  # which has had its stderr for long
        assert "LookupError: no end" in capfd.readouterr().err


def test_what_the_state_does_not_have(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        pool.apply(tasks.keep, ("here", 1))
        assert pool.apply(tasks.kept, ("here",)) == 1
        with pytest.raises(AttributeError, match=r"the state of this worker has no 'there'.*worker_init="):
            pool.apply(tasks.kept, ("there",))


def test_who_is_no_worker_has_none(ctx: Any) -> None:
    with pytest.raises(RuntimeError, match="this process is none"):
        mpipc.worker_state()
    with ctx.Pool(1) as pool:
        assert pool.apply(tasks.in_a_forked_child) == "none"


# --- where they run ---------------------------------------------------------------------------------------------------


def test_niceness_and_cpus(ctx: Any) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with ctx.Pool(2, nice=2, cpu_affinity={CPUS[0]}) as pool:
        for _, niceness, cpus in pool.broadcast(tasks.where):
            assert niceness == min(own + 2, 19)
            assert cpus == {CPUS[0]}
        assert set(pool.broadcast(tasks.threads_where)) == {frozenset({CPUS[0]})}
        assert pool.apply(tasks.all_threads_where) == {(min(own + 2, 19), frozenset({CPUS[0]}))}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    assert sorted(os.sched_getaffinity(0)) == CPUS


@pytest.mark.skipif(len(CPUS) < 2, reason="it takes two processors")
def test_cpus_in_turn_and_a_new_worker_gets_those_of_the_dead_one(ctx: Any) -> None:
    first, second = frozenset({CPUS[0]}), frozenset({CPUS[1]})
    with ctx.Pool(4, cpu_affinity=[first, second]) as pool:
        places = {pid: cpus for pid, _, cpus in pool.broadcast(tasks.where)}
        assert sorted(map(sorted, places.values())) == sorted([[CPUS[0]]] * 2 + [[CPUS[1]]] * 2)
        victim = next(pid for pid, cpus in places.items() if cpus == second)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: pool.statistics().replaced == 1)
        after = {pid: cpus for pid, _, cpus in pool.broadcast(tasks.where)}
        (new,) = after.keys() - places.keys()
        assert after[new] == second


def test_of_an_executor_too(ctx: Any) -> None:
    with executor(ctx, 1, nice=1, cpu_affinity=[CPUS]) as made:
        _, niceness, cpus = made.submit(tasks.where).result(LONG)
    assert niceness == min(os.getpriority(os.PRIO_PROCESS, 0) + 1, 19)
    assert cpus == frozenset(CPUS)


def test_places() -> None:
    places = Places(checked_affinity([{0}, {1}, {2}]))
    assert [places.take(tag, range(1, tag)) for tag in (1, 2, 3, 4)] == [({0},), ({1},), ({2},), ({0},)]
    assert places.take(5, {1, 3, 4}) == ({1},)
    assert Places(None).take(1, ()) is None


def pool_of(ctx: Any, size: int, **options: Any) -> Any:
    return ctx.Pool(size, **options)


@pytest.mark.parametrize("made", [pool_of, executor])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nice": 1.5}, TypeError, "nice must be an int, which is added"),
        ({"nice": True}, TypeError, "nice must be an int"),
        ({"nice": 40}, ValueError, "nice must be between -39 and 39"),
        ({"cpu_affinity": 0}, TypeError, "cpu_affinity must be a set of CPU numbers, or a list"),
        ({"cpu_affinity": "0"}, TypeError, "cpu_affinity must be a set of CPU numbers"),
        ({"cpu_affinity": [{0}, 1]}, TypeError, "cpu_affinity must be a set"),
        ({"cpu_affinity": {0.5}}, TypeError, "cpu_affinity must be a set"),
        ({"cpu_affinity": []}, ValueError, "none of which is empty"),
        ({"cpu_affinity": [{0}, set()]}, ValueError, "none of which is empty"),
        ({"cpu_affinity": {True}}, ValueError, "cpu_affinity must be a set of CPU numbers"),
        ({"cpu_affinity": {-1}}, ValueError, "or has a negative one"),
        ({"cpu_affinity": {100_000}}, ValueError, r"of the CPUs \[100000\] this process can use none"),
        ({"worker_init": 1}, TypeError, "worker_init must be a callable, which is given the state"),
        ({"worker_exit": "f"}, TypeError, "worker_exit must be a callable, which is given the state"),
        ({"end_with_parent": 1}, TypeError, "end_with_parent must be True or False, not 1"),
    ],
)
def test_arguments_that_are_none(made: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        made(mpipc.get_context("fork"), 1, **options)


def test_a_niceness_that_may_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "nice", refuse)
    with pytest.raises(PermissionError, match=r"nice=-5: this process may not lower its niceness.*RLIMIT_NICE"):
        mpipc.Pool(1, nice=-5)


# --- their end --------------------------------------------------------------------------------------------------------


def test_workers_end_with_their_parent_though_they_are_stopped(ctx: Any, start_method: str) -> None:
    reader, writer = ctx.Pipe(False)
    parent = ctx.Process(target=tasks.pool_that_waits, args=(writer, start_method, True))
    parent.start()
    assert reader.poll(LONG)
    descriptors = [os.pidfd_open(pid) for pid in reader.recv()]
    parent.kill()
    parent.join()
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], LONG)[0]
        os.close(descriptor)
    reader.close()
    writer.close()


def test_workers_of_another_context_cannot() -> None:
    import multiprocessing

    with pytest.raises(TypeError, match="end_with_parent needs a context of mpipc"):
        mpipc.pool.Pool(1, context=multiprocessing.get_context("fork"), end_with_parent=True)
    with mpipc.pool.Pool(1, context=multiprocessing.get_context("fork"), worker_init=tasks.begin) as pool:
        assert pool.apply(pool_tasks.square, (3,)) == 9

"""shared= of pools and executors: what all workers have, by fork without a copy."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from support import shared_tasks as tasks

import mpipc

MB = tasks.MB
LONG = 60


def test_tasks_find_it_in_the_state_of_their_worker(ctx: Any) -> None:
    with ctx.Pool(2, shared={"table": [1, 2]}) as pool:
        assert pool.map(tasks.shared, range(4), 1) == [{"table": [1, 2]}] * 4
        assert pool.broadcast(tasks.shared) == [{"table": [1, 2]}] * 2


def test_of_an_executor(ctx: Any) -> None:
    with mpipc.ProcessPoolExecutor(1, mp_context=ctx, shared=[1, 2]) as executor:
        assert executor.submit(tasks.shared).result(LONG) == [1, 2]


def test_one_that_replaces_another_has_it_too(ctx: Any) -> None:
    with ctx.Pool(1, shared=tasks.Counted("kept"), maxtasksperchild=2) as pool:
        victim, text = pool.apply(tasks.text_of_shared)
        os.kill(victim, signal.SIGKILL)
        found = {pool.apply(tasks.text_of_shared) for _ in range(3)}
        assert text == "kept" and {text for _, text in found} == {"kept"}
        assert len(found) == 2 and victim not in dict(found)


def test_it_is_pickled_once_for_each_worker_and_by_fork_not_at_all(
    ctx: Any, start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.Counted, "times", 0)
    with ctx.Pool(2, shared=tasks.Counted("text")) as pool:
        assert {text for _, text in pool.map(tasks.text_of_shared, range(20), 1)} == {"text"}
        assert tasks.Counted.times == (0 if start_method == "fork" else 2)


def test_a_large_one_that_cannot_be_pickled_is_not_copied() -> None:
    """By fork. What a worker has of its own before it has read it all, and after."""
    shared = tasks.Unpicklable(200 * MB)
    with mpipc.get_context("fork").Pool(2, shared=shared) as pool:
        assert max(pool.broadcast(tasks.private)) < 50 * MB
        results = pool.broadcast(tasks.read_all)
        victim = results[0][0]
        os.kill(victim, signal.SIGKILL)
        results += pool.broadcast(tasks.read_all)
        assert max(pool.broadcast(tasks.private)) < 50 * MB
    assert len({pid for pid, _, _ in results}) == 3
    assert {ones for _, ones, _ in results} == {200 * MB >> 12}
    assert max(grown for _, _, grown in results) < 20 * MB


@pytest.mark.parametrize("pickler", ["cloudpickle", "dill"])
def test_nor_with_a_pickler(pickler: str) -> None:
    pytest.importorskip(pickler)
    shared = tasks.Unpicklable(50 * MB)
    with mpipc.get_context("fork").Pool(1, shared=shared, pickler=pickler) as pool:
        _, ones, grown = pool.apply(tasks.read_all)
    assert ones == 50 * MB >> 12 and grown < 20 * MB


def test_with_a_pickler(ctx: Any) -> None:
    pytest.importorskip("cloudpickle")
    closed_over = "closed over"
    with ctx.Pool(1, shared=lambda: closed_over, pickler="cloudpickle") as pool:
        assert pool.apply(lambda: mpipc.worker_state().shared()) == closed_over


def test_the_garbage_collection_of_a_worker_does_not_copy_it() -> None:
    """It writes to each object that it looks at; here there are many of them."""
    shared = [[number] for number in range(500_000)]
    with mpipc.get_context("fork").Pool(1, shared=shared) as pool:
        assert pool.apply(tasks.collect) < 10 * MB


def test_what_cannot_be_pickled_is_told_where_it_has_to_be(ctx: Any, start_method: str) -> None:
    if start_method == "fork":
        with ctx.Pool(1, shared=tasks.Unpicklable(MB)) as pool:
            assert pool.apply(tasks.read_all)[1] == MB >> 12
    else:
        with pytest.raises(TypeError, match="lock"):
            ctx.Pool(1, shared=tasks.Unpicklable(MB))


def test_what_a_worker_changes_no_other_one_sees(ctx: Any) -> None:
    shared: dict[str, int] = {}
    with ctx.Pool(1, shared=shared, maxtasksperchild=2) as pool:
        assert [pool.apply(tasks.add_to_it, (key,)) for key in "abcd"] == [["a"], ["a", "b"], ["c"], ["c", "d"]]
    assert shared == {}


def test_locks_and_values_in_it_are_everybody_s(ctx: Any) -> None:
    shared = {"lock": ctx.Lock(), "total": ctx.Value("i", 0, lock=False)}
    with ctx.Pool(2, shared=shared) as pool:
        pool.map(tasks.add_under, range(40), 1)
    assert shared["total"].value == 40


def test_initializer_and_worker_init_have_it(ctx: Any) -> None:
    with ctx.Pool(1, tasks.initialize, shared=["it"], worker_init=tasks.begin) as pool:
        assert pool.apply(tasks.early_and_seen) == (["it"], ["it"])
    with ctx.Pool(1, shared=["it"], worker_init=tasks.begin_with_another) as pool:
        assert pool.apply(tasks.shared) == ["it", "mine"]


def test_a_pool_without(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        assert pool.apply(tasks.nothing_shared) == (
            "the state of this worker has no 'shared': give the pool one, with shared="
        )


def test_a_reusable_executor_asks_whether_it_is_the_same_object() -> None:
    class Peculiar(list[int]):
        def __eq__(self, other: object) -> bool:
            raise AssertionError("it was compared, as an array is that has no truth")

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            raise AssertionError("it was asked for its repr()")

    one, another = Peculiar([1]), Peculiar([2])
    made = [mpipc.get_reusable_executor(1, mpipc.get_context("fork"), shared=shared) for shared in (one, one, another)]
    try:
        assert made[0] is made[1] is not made[2]
        assert made[2].submit(tasks.first_of_shared).result(LONG) == 2
    finally:
        made[2].shutdown()

"""report() of pools and executors: where the time of the workers went, and which tasks were the longest.

What a task says about its own time is compared with what the report says: nothing here depends on how fast anything is.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from support import timed_tasks as tasks
from support import wait_until

import mpipc
from mpipc._pool import report as report_module
from mpipc._pool.codec import APPLY, CALL, CHUNK, ITEM, STAR_CHUNK
from mpipc._pool.ledger import Ledger
from mpipc._pool.longest import WIDTH, arguments_text
from mpipc._pool.report import LongTask, PoolReport, WorkerTimes

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60


def of(report: PoolReport, pid: int) -> WorkerTimes:
    (found,) = (worker for worker in report.workers if worker.pid == pid)
    return found


def by_pid(spans: list[tasks.Span]) -> dict[int, list[float]]:
    found = defaultdict(list)
    for pid, begin, end in spans:
        found[pid].append(end - begin)
    return found


def until_it_waits(pool: Any) -> None:
    """Its one worker may still be about to, after the result is here."""
    before = pool.report().workers[0].wait
    wait_until(lambda: pool.report().workers[0].wait > before)


# --- what counts as what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 4])
def test_work_is_what_tasks_say_that_they_took(ctx: Any, chunksize: int) -> None:
    before = time.monotonic()
    with ctx.Pool(2) as pool:
        spans = pool.map(tasks.spin, [tasks.SHORT] * 24, chunksize)
        report = pool.report()
        lived = time.monotonic() - before
        assert {worker.pid for worker in report.workers} == {process.pid for process in pool._pool}
    assert report.total.tasks == 24 // chunksize
    assert report.earlier is None
    for pid, took in by_pid(spans).items():
        worker = of(report, pid)
        assert worker.tasks == len(took) // chunksize
        assert sum(took) <= worker.work
        assert worker.work <= worker.total <= lived
        assert worker.start > 0 and not worker.ended and worker.workers == 1


def test_calls_and_what_fails_are_tasks(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        spans = [pool.apply(tasks.spin), pool.apply(tasks.spin_with, (tasks.SHORT, 1), {"name": 2})]
        spans += pool.starmap(tasks.spin_with, [(tasks.SHORT, 1), (tasks.SHORT, 2)], 2)
        failed = pool.apply_async(tasks.spin_and_fail, (1,))
        with pytest.raises(LookupError):
            failed.get(LONG)
        (worker,) = pool.report().workers
    assert worker.tasks == 4
    assert worker.work >= sum(end - begin for _, begin, end in spans) + tasks.SHORT


def test_start_is_until_the_initializers_have_returned(ctx: Any) -> None:
    with ctx.Pool(1, worker_init=tasks.begin_slowly) as pool:
        pid, begin, end = pool.apply(tasks.span_of_begin)
        worker = of(pool.report(), pid)
    assert worker.start >= end - begin
    assert worker.tasks == 1


def test_transfer_has_unpickling_and_pickling(ctx: Any) -> None:
    before = time.monotonic()
    with ctx.Pool(1) as pool:
        _, begin, end = pool.apply(tasks.give_back, (tasks.SlowToUnpickle(),))
        after_one = pool.report().workers[0]
        _, other_begin, other_end = pool.apply(tasks.slow_to_pickle, (1,))
        after_both = pool.report().workers[0]
        lived = time.monotonic() - before
    assert after_one.transfer >= end - begin
    assert after_both.transfer >= after_one.transfer + other_end - other_begin
    assert after_both.work <= lived - after_both.transfer


def test_wait_is_what_is_left_between_tasks(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        _, _, end = pool.apply(tasks.spin)
        first = pool.report().workers[0]
        tasks.spin()  # here, while the worker has nothing to do
        _, begin, _ = pool.apply(tasks.at_once, (1,))
        second = pool.report().workers[0]
    assert second.wait > first.wait
    assert second.wait + second.transfer >= begin - end


def test_nothing_is_left_out(ctx: Any) -> None:
    """The parts are the worker's life up to now."""
    with ctx.Pool(1) as pool:
        pid, begin, _ = pool.apply(tasks.spin)
        pool.map(tasks.spin, [tasks.SHORT] * 5, 1)
        called = time.monotonic()
        worker = of(pool.report(), pid)
    assert worker.total - worker.start >= called - begin


def test_what_runs_now_counts(ctx: Any) -> None:
    when = ctx.Value("d", lock=False)
    with ctx.Pool(1) as pool:
        pool.apply(os.getpid)
        with ctx.Pool(1, initializer=tasks_with, initargs=(when,)) as other:
            other.apply_async(wait_with)
            wait_until(lambda: when.value)
            before = time.monotonic() - when.value
            (worker,) = other.report().workers
            assert worker.work >= before
            assert worker.tasks == 0
            until_it_waits(pool)


_when: Any = None


def tasks_with(when: Any) -> None:
    global _when
    _when = when


def wait_with() -> None:
    tasks.say_when_and_wait(_when)


def test_a_child_that_a_task_has_forked_is_not_the_worker(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        child = pool.apply(tasks.fork_and_spin, (tasks.SHORT * 4,))
        wait_until(lambda: not os.path.exists(f"/proc/{child}") or "Z" in stat_of(child))
        (worker,) = pool.report().workers
        assert worker.tasks == 1
        pool.apply(os.getpid)
        assert pool.report().workers[0].tasks == 2


def stat_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


# --- workers that end -------------------------------------------------------------------------------------------------


def test_of_a_killed_worker_what_it_had_finished_is_kept(ctx: Any) -> None:
    when = ctx.Value("d", lock=False)
    before = time.monotonic()
    with ctx.Pool(1, initializer=tasks_with, initargs=(when,)) as pool:
        spans = pool.map(tasks.spin, [tasks.SHORT] * 4, 1)
        lost = pool.apply_async(wait_with)
        wait_until(lambda: when.value)
        (process,) = pool._pool
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(mpipc.WorkerLostError):
            lost.get(LONG)
        pool.map(tasks.spin, [tasks.SHORT] * 2, 1)
        killed, new = pool.report().workers
    assert (killed.pid, killed.ended, killed.tasks) == (process.pid, True, 4)
    assert sum(end - begin for _, begin, end in spans) <= killed.work
    assert killed.total <= when.value - before, "that in which it was killed does not count"
    assert (new.ended, new.tasks) == (False, 2) and new.pid != killed.pid


def test_of_one_that_was_killed_while_it_had_nothing_to_do(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        pid, _, end = pool.apply(tasks.spin)
        until_it_waits(pool)
        tasks.spin()
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        pool.apply(os.getpid)
        worker = of(pool.report(), pid)
    assert worker.ended and worker.tasks == 1
    assert worker.wait + worker.transfer >= killed_at - end


def test_after_the_end(ctx: Any) -> None:
    with ctx.Pool(2) as pool:
        pool.map(tasks.spin, [tasks.SHORT] * 6, 1)
        pool.close()
        pool.join()
    report = pool.report()
    assert report.total.tasks == 6 and len(report.workers) == 2
    assert all(worker.ended for worker in report.workers)
    assert report == pool.report()
    with ctx.Pool(1) as other:
        other.apply(tasks.spin)
    assert other.report().total.tasks == 1, "it was terminated"


def test_many_that_have_ended_are_told_of_as_one(ctx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "REMEMBERED", 2)
    with ctx.Pool(1, maxtasksperchild=1) as pool:
        spans = pool.map(tasks.spin, [tasks.SHORT] * 6, 1)
        pool.close()
        pool.join()
    report = pool.report()
    assert report.earlier is not None and report.earlier.pid is None and report.earlier.ended
    assert len(report.workers) == 2 and report.total.workers == report.earlier.workers + 2
    assert report.total.tasks == 6
    assert report.earlier.work >= sum(end - begin for _, begin, end in spans[: report.earlier.tasks])
    assert f"{report.earlier.workers} earlier" in str(report)


def test_of_an_executor(ctx: Any) -> None:
    executor = mpipc.ProcessPoolExecutor(2, mp_context=ctx)
    assert executor.report().workers == ()
    assert str(executor.report()).splitlines()[-1].startswith("all")
    with executor:
        spans = list(executor.map(tasks.spin, [tasks.SHORT] * 6, chunksize=2))
        during = executor.report()
    assert during.total.tasks == executor.report().total.tasks == 3
    assert during.total.work >= sum(end - begin for _, begin, end in spans)
    assert all(worker.ended for worker in executor.report().workers)


def test_the_ledger_itself() -> None:
    ledger = Ledger()
    assert ledger.times_spent() == (0.0, 0.0, 0.0, 0)
    ledger.ready()
    assert ledger.wait()
    assert ledger.start(1)
    assert ledger.run(ITEM, tasks.give_back, 5) == 5
    assert ledger.run(CHUNK, tasks.give_back, [5, 6]) == [5, 6] and ledger.current_item == 1
    with pytest.raises(LookupError):
        ledger.run(APPLY, tasks.spin_and_fail, (1,))
    ledger.finish(1)
    wait, work, transfer, count = ledger.times_spent(time.monotonic())
    assert wait > 0 and work >= tasks.SHORT and transfer > 0 and count == 3
    assert ledger.times_spent(time.monotonic()) == (wait, work, transfer, count), "not what comes after the last task"
    reader = Ledger(ledger.block, ledger.times_block)
    ledger.disown()
    ledger.run(ITEM, tasks.spin, tasks.SHORT)
    assert reader.times_spent()[3] == 3, "a forked child's are not"
    ledger.end()
    assert not ledger.wait()


# --- the longest tasks ------------------------------------------------------------------------------------------------


def test_the_longest(ctx: Any) -> None:
    with ctx.Pool(2) as pool:
        asked = [tasks.SHORT * n for n in (1, 2, 9, 3, 8, 7, 4, 6, 5)]
        spans = pool.map(tasks.spin, asked, 1)
        longest = pool.report().longest
    assert len(longest) == 5 and list(longest) == sorted(longest, reverse=True)
    took = [end - begin for _, begin, end in spans]
    assert longest[0].seconds >= max(took)
    assert longest[-1].seconds >= sorted(took)[-5]
    for task in longest:
        assert task.function == "support.timed_tasks.spin"
        assert (task.arguments, task.pid) == (repr(asked[task.item]), spans[task.item][0])
        assert task.seconds >= took[task.item]


def test_a_long_one_that_failed_and_one_whose_worker_is_dead(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        failed = pool.apply_async(tasks.spin_and_fail, ("text",))
        with pytest.raises(LookupError):
            failed.get(LONG)
        (process,) = pool._pool
        os.kill(process.pid, signal.SIGKILL)
        pool.apply(os.getpid)
        (task,) = (task for task in pool.report().longest if "spin_and_fail" in task.function)
    assert (task.arguments, task.pid) == ("'text'", process.pid) and task.seconds >= tasks.SHORT


def test_no_code_of_the_user_for_its_arguments(ctx: Any) -> None:
    hostile = tasks.Hostile()
    with ctx.Pool(1) as pool:
        pool.apply(tasks.spin_with, (tasks.SHORT, hostile, [hostile]), {"named": {hostile: hostile}})
        pool.apply(os.getpid)
        (task,) = (task for task in pool.report().longest if "spin_with" in task.function)
    assert task.arguments.startswith(f"{tasks.SHORT}, <support.timed_tasks.Hostile object>, [<supp")
    assert len(task.arguments) == WIDTH


ARGUMENTS: list[tuple[int, Any, str]] = [
    (ITEM, 5, "5"),
    (ITEM, "a" * 1000, repr("a" * (WIDTH // 2)) + "..."),
    (ITEM, 10**10_000, f"<int of {(10**10_000).bit_length()} bits>"),
    (ITEM, [[[[1]]]], "[[[...]]]"),
    (ITEM, list(range(1_000_000)), "[0, 1, 2, 3, ...]"),
    (ITEM, {"a": 1, "b": (2,)}, "{'a': 1, 'b': (2,)}"),
    (ITEM, frozenset(), "frozenset()"),
    (ITEM, frozenset({1}), "frozenset({1})"),
    (ITEM, tasks.Hostile(), "<support.timed_tasks.Hostile object>"),
    (ITEM, type("List", (list,), {"__repr__": None})(), "<test_pool_report.List object>"),
    (APPLY, (1, None, b"x"), "1, None, b'x'"),
    (APPLY, (1, 2, 3, 4, 5, 6), "1, 2, 3, 4, ..."),
    (CALL, ((), {"x": 1.5}), "x=1.5"),
    (CALL, ((1,), {"x": True}), "1, x=True"),
    (CHUNK, (7,), "7"),
    (CHUNK, (7, 8, 9), "3 items: 7 to 9"),
    (STAR_CHUNK, ((1, 2), (3, 4)), "2 items: 1, 2 to 3, 4"),
    (STAR_CHUNK, (tasks.Hostile(),), "*<support.timed_tasks.Hostile object>"),
    (APPLY, 5, "*5"),
    (CALL, None, "..."),
]


def test_arguments_as_text() -> None:
    """No parameters, for pytest would ask them for their str()."""
    for kind, payload, text in ARGUMENTS:
        assert arguments_text(kind, payload) == text.replace("test_pool_report", type(payload).__module__)


# --- as text and as a picture -----------------------------------------------------------------------------------------

MADE_UP = PoolReport(
    (WorkerTimes(11, True, 1, 3, 0.25, 0.5, 2.0, 0.25), WorkerTimes(12, False, 1, 5, 0.5, 0.0, 1.0, 0.5)),
    WorkerTimes(None, True, 4, 40, 1.0, 1.0, 1.0, 1.0),
    (LongTask(1.5, "m.f", 8, "3 items: 8 to 10", 11), LongTask(0.5, "m.g", 0, "'x'", 12)),
)


def test_as_text() -> None:
    lines = [re.sub(r"\s+", " ", line).strip() for line in str(MADE_UP).splitlines()]
    assert lines == [
        "worker tasks start (s) wait (s) work (s) transfer (s) work",
        "4 earlier 40 1.000 1.000 1.000 1.000 25%",
        "11 (ended) 3 0.250 0.500 2.000 0.250 67%",
        "12 5 0.500 0.000 1.000 0.500 50%",
        "all 48 1.750 1.500 4.000 1.750 44%",
        "longest tasks:",
        "1.500 s m.f(3 items: 8 to 10) at item 8, worker 11",
        "0.500 s m.g('x'), worker 12",
    ]


def test_as_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = MADE_UP.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4 earlier", "11 (ended)", "12"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["start", "wait", "work", "transfer"]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[1.0, 0.25, 0.5], [1.0, 0.5, 0.0], [1.0, 2.0, 1.0], [1.0, 0.25, 0.5]]
    MADE_UP.plot(str(tmp_path / "report.svg"))
    assert (tmp_path / "report.svg").read_text().startswith("<?xml")
    mine = Figure().subplots()
    assert MADE_UP.plot(mine) is mine and len(mine.containers) == 4
    assert len(PoolReport((), None, ()).plot().axes) == 1
    with pytest.raises(TypeError):
        MADE_UP.plot(5)


def test_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'mpipc\[report\]'"):
        MADE_UP.plot()

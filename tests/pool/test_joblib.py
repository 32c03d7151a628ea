"""joblib's backend "mpipc", and get_reusable_executor(), on which it runs."""

from __future__ import annotations

import os
import signal
from importlib import import_module
from typing import Any

import pytest
from support import run_script

import mpipc
from mpipc import WorkerLostError, get_reusable_executor

joblib = pytest.importorskip("joblib")
import_module("mpipc.joblib")

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

LONG = 60


@pytest.fixture(autouse=True)
def no_executor_stays() -> Any:
    """What is for the whole program would be left when a test has ended."""
    yield
    get_reusable_executor(1, reuse=False).shutdown()


@pytest.fixture
def config(ctx: Any) -> Any:
    with joblib.parallel_config("mpipc", n_jobs=2, context=ctx):
        yield


def lost_once(path: str, x: int) -> int:
    """The first one that comes here is killed."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return x
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_what_joblib_s_users_do(config: Any) -> None:
    factor = 3
    call = joblib.delayed(lambda x: x * factor)
    assert joblib.Parallel()(call(x) for x in range(100)) == [3 * x for x in range(100)]
    assert sorted(joblib.Parallel(return_as="generator_unordered")(call(x) for x in range(20))) == [
        3 * x for x in range(20)
    ]
    with joblib.Parallel(batch_size=1) as parallel:
        pids = {pid for _ in range(5) for pid in parallel(joblib.delayed(os.getpid)() for _ in range(4))}
    assert os.getpid() not in pids and len(pids) <= 2
    with pytest.raises(ZeroDivisionError):
        joblib.Parallel()(joblib.delayed(divmod)(1, x) for x in (1, 0))
    assert joblib.Parallel()(call(x) for x in range(3)) == [0, 3, 6]


def test_arrays_become_memory_maps(config: Any, tmp_path: Any) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1000.0)
    kind = joblib.delayed(lambda x: (type(x).__name__, float(x.sum())))
    for _ in range(2):
        found = joblib.Parallel(max_nbytes=1000, temp_folder=str(tmp_path))(kind(array) for _ in range(3))
        assert found == [("memmap", 499500.0)] * 3
        assert not list(tmp_path.iterdir())
    assert joblib.Parallel()(kind(array) for _ in range(3)) == [("ndarray", 499500.0)] * 3


def test_workers_are_used_again(config: Any) -> None:
    first = {pid for _ in range(3) for pid in joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(8))}
    assert len(first) <= 2


def test_a_worker_that_is_lost(config: Any, tmp_path: Any) -> None:
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        joblib.Parallel()(joblib.delayed(lost_once)(str(tmp_path / "a"), x) for x in range(4))
    assert joblib.Parallel()(joblib.delayed(abs)(-x) for x in range(4)) == [0, 1, 2, 3]


def test_a_batch_is_run_again(ctx: Any, tmp_path: Any) -> None:
    with joblib.parallel_config("mpipc", n_jobs=2, context=ctx, retries=1):
        found = joblib.Parallel()(joblib.delayed(lost_once)(str(tmp_path / "a"), x) for x in range(8))
    assert found == list(range(8))


def test_an_option_that_there_is_not(ctx: Any) -> None:
    with joblib.parallel_config("mpipc", n_jobs=2, colour="red"), pytest.raises(TypeError, match="no option colour"):
        joblib.Parallel()(joblib.delayed(abs)(x) for x in range(3))


def test_a_module_of_mpipc_hides_no_namesake() -> None:
    """mpipc.joblib imports joblib, and whatever is imported inside the package is the outer one of that name."""
    run_script(
        """
        import pkgutil, sys
        import mpipc
        import mpipc.joblib, joblib, statistics, queue
        assert sys.modules["joblib"] is joblib is not mpipc.joblib and mpipc.joblib.joblib is joblib
        names = {module.name for package in (mpipc, mpipc._pool, mpipc._queue, mpipc._stdlib)
                 for module in pkgutil.iter_modules(package.__path__)}
        assert {"statistics", "joblib"} <= names
        for name in names & set(sys.stdlib_module_names):
            outer = __import__(name)
            assert "mpipc" not in (getattr(outer, "__file__", None) or ""), name
        """
    )


# --- the executor -----------------------------------------------------------------------------------------------------


def test_one_for_everybody(ctx: Any) -> None:
    first = get_reusable_executor(2, ctx)
    pid = first.submit(os.getpid).result(LONG)
    assert get_reusable_executor(2, ctx) is first
    assert get_reusable_executor(5, ctx, reuse=True) is first
    assert pid in {get_reusable_executor(2, ctx).submit(os.getpid).result(LONG) for _ in range(20)}
    more = get_reusable_executor(3, ctx)
    assert more is not first
    with pytest.raises(RuntimeError):
        first.submit(abs, 1)
    other = get_reusable_executor(3, ctx, retries=1)
    assert other is not more and get_reusable_executor(3, ctx, reuse=False, retries=1) is not other


def test_one_that_was_shut_down_or_broken(ctx: Any) -> None:
    first = get_reusable_executor(1, ctx)
    future = first.submit(abs, -3)
    first.shutdown()
    second = get_reusable_executor(1, ctx)
    assert second is not first and future.result(LONG) == 3
    third = get_reusable_executor(1, ctx, initializer=os._exit, initargs=(1,))
    with pytest.raises(mpipc.BrokenPoolError):
        third.submit(abs, 1).result(LONG)
    assert get_reusable_executor(1, ctx, initializer=os._exit, initargs=(1,)) is not third


def test_what_the_former_was_given(ctx: Any) -> None:
    event = ctx.Event()
    first = get_reusable_executor(1, ctx, initializer=_keep, initargs=(event,))
    waiting = first.submit(_wait)
    get_reusable_executor(1, ctx)
    event.set()
    assert waiting.result(LONG) is True
    stuck = get_reusable_executor(1, ctx, initializer=_keep, initargs=(ctx.Event(),)).submit(_wait)
    get_reusable_executor(1, ctx, kill_workers=True)
    with pytest.raises(mpipc.BrokenPoolError):
        stuck.result(LONG)


def test_a_forked_child_has_one_of_its_own() -> None:
    first = get_reusable_executor(1)
    first.submit(abs, 1).result(LONG)
    context = mpipc.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_own, args=(queue,))
    process.start()
    assert queue.get() == 9
    process.join()
    assert get_reusable_executor(1) is first


kept: Any = None


def _keep(event: Any) -> None:
    global kept
    kept = event


def _wait() -> Any:
    return kept.wait(LONG)


def _own(queue: Any) -> None:
    executor = get_reusable_executor(1)
    queue.put(executor.submit(pow, 3, 2).result(LONG))
    executor.shutdown()

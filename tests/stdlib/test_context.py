"""Start methods and contexts: mpipc's are chosen apart from multiprocessing's, in children as well."""

from __future__ import annotations

import concurrent.futures
import ctypes
import multiprocessing
import multiprocessing.context
import os
import pickle
from typing import Any

import pytest
from support import run_script

import mpipc
import mpipc.context

# --- choosing ---------------------------------------------------------------------------------------------------------


def test_default_is_the_interpreters() -> None:
    result = run_script(
        """
        import mpipc, multiprocessing
        assert mpipc.get_start_method(allow_none=True) is None
        print(mpipc.get_start_method(), multiprocessing.get_start_method())
        """
    )
    first, second = result.stdout.split()
    assert first == second


def test_all_start_methods() -> None:
    assert mpipc.get_all_start_methods() == multiprocessing.get_all_start_methods()


def test_setting_one_leaves_the_other() -> None:
    run_script(
        """
        import mpipc, multiprocessing
        mpipc.set_start_method("spawn")
        assert multiprocessing.get_start_method(allow_none=True) is None
        multiprocessing.set_start_method("forkserver")
        assert mpipc.get_start_method() == "spawn"
        mpipc.set_start_method(None, force=True)
        assert mpipc.get_start_method(allow_none=True) is None
        assert multiprocessing.get_start_method() == "forkserver"
        """
    )


def test_starting_a_process_leaves_the_other_package_undecided(start_method: str) -> None:
    """Neither does a process or manager of mpipc settle multiprocessing's start method, nor the other way round."""
    run_script(
        f"""
        import mpipc, mpipc.managers, multiprocessing
        def start(package):
            process = package.get_context({start_method!r}).Process(target=print)
            process.start()
            process.join()
            assert process.exitcode == 0
        if __name__ == "__main__":
            start(mpipc)
            assert multiprocessing.get_start_method(allow_none=True) is None
            mpipc.managers.SyncManager(), mpipc.managers.SharedMemoryManager()
            assert multiprocessing.get_start_method(allow_none=True) is None
            mpipc.set_start_method(None, force=True)
            start(multiprocessing)
            assert mpipc.get_start_method(allow_none=True) is None
        """
    )


def test_set_twice() -> None:
    run_script(
        """
        import mpipc
        mpipc.set_start_method("spawn")
        try:
            mpipc.set_start_method("fork")
        except RuntimeError as error:
            assert str(error) == "context has already been set"
        else:
            raise AssertionError
        mpipc.set_start_method("fork", force=True)
        assert mpipc.get_context() is mpipc.get_context("fork")
        """
    )


def test_unknown_method() -> None:
    for package in (multiprocessing, mpipc):
        with pytest.raises(ValueError, match=r"^cannot find context for 'nonsense'$"):
            package.get_context("nonsense")
        with pytest.raises(ValueError, match=r"^cannot find context for 'nonsense'$"):
            package.get_context("spawn").get_context("nonsense")


def test_concrete_context(ctx: Any, start_method: str) -> None:
    assert isinstance(ctx, multiprocessing.context.BaseContext)
    assert isinstance(ctx, type(multiprocessing.get_context(start_method)))
    assert ctx is mpipc.get_context(start_method)
    assert ctx.get_context() is ctx
    assert ctx.get_context("spawn") is mpipc.get_context("spawn")
    assert ctx.get_start_method() == start_method
    with pytest.raises(ValueError, match="cannot set start method of concrete context"):
        ctx.set_start_method("spawn")
    assert pickle.loads(pickle.dumps(ctx)).get_start_method() == start_method


def test_reducer_is_shared(ctx: Any) -> None:
    assert ctx.reducer is multiprocessing.context.reduction  # type: ignore[attr-defined]


# --- in children ------------------------------------------------------------------------------------------------------


def test_child_has_the_method_it_was_started_by(start_method: str) -> None:
    """Already while it imports `__main__`, where locks and contexts may be made; multiprocessing's is inherited too."""
    result = run_script(
        f"""
        import mpipc, multiprocessing
        imported = mpipc.get_start_method(allow_none=True)
        context = mpipc.get_context() if __name__ != "__main__" else None

        def report(queue):
            default = context.get_start_method() if context is not None else None
            queue.put((imported, default, mpipc.get_start_method(), multiprocessing.get_start_method()))

        def nested(queue):
            process = mpipc.Process(target=report, args=(queue,))
            process.start()
            process.join()

        if __name__ == "__main__":
            mpipc.set_start_method({start_method!r})
            multiprocessing.set_start_method("spawn")
            for target in (report, nested):
                queue = mpipc.SimpleQueue()
                process = mpipc.Process(target=target, args=(queue,))
                process.start()
                print(*queue.get())
                process.join()
                assert process.exitcode == 0
        """
    )
    for line in result.stdout.splitlines():
        imported, default, method, standard = line.split()
        if start_method == "spawn":
            assert (imported, default) == ("spawn", "spawn")
        elif start_method == "forkserver":
            # The fork server imports `__main__` once, before it knows of any process, as with multiprocessing.
            assert imported in ("None", "forkserver")
        assert (method, standard) == (start_method, "spawn")
    assert len(result.stdout.splitlines()) == 2


def _methods(connection: Any) -> None:
    connection.send((mpipc.get_start_method(), multiprocessing.get_start_method(allow_none=True)))


def test_child_of_a_concrete_context(ctx: Any, start_method: str) -> None:
    expected = multiprocessing.get_start_method(allow_none=True) if start_method == "fork" else None
    reader, writer = ctx.Pipe(duplex=False)
    process = ctx.Process(target=_methods, args=(writer,))
    process.start()
    method, standard = reader.recv()
    process.join()
    assert method == start_method
    assert standard in (expected, multiprocessing.get_start_method())


def test_name_reaches_the_child_as_a_plain_string(ctx: Any) -> None:
    reader, writer = ctx.Pipe(duplex=False)
    process = ctx.Process(target=_name_type, args=(writer,), name="Tim")
    process.start()
    assert reader.recv() == ("Tim", True)
    process.join()
    assert type(process.name) is str


def _name_type(connection: Any) -> None:
    name = mpipc.current_process().name
    connection.send((name, type(name) is str))


def test_child_finds_mpipc_by_the_parents_path(ctx: Any, start_method: str, tmp_path: Any) -> None:
    """mpipc that is importable only because of the parent's sys.path: a child learns that path from the parent."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(mpipc.__file__)))
    result = run_script(
        f"""
        import sys
        sys.path.insert(0, {package!r})
        import mpipc
        def work():
            print("worked", mpipc.get_start_method(), flush=True)
        if __name__ == "__main__":
            process = mpipc.get_context({start_method!r}).Process(target=work)
            process.start()
            process.join()
        """,
        options=["-I"],
    )
    assert result.stdout.split() == ["worked", start_method]


# --- what they make ---------------------------------------------------------------------------------------------------

FACTORIES: dict[str, tuple[Any, ...]] = {
    "Lock": (),
    "RLock": (),
    "Condition": (),
    "Semaphore": (3,),
    "BoundedSemaphore": (3,),
    "Event": (),
    "Barrier": (2,),
    "Queue": (5,),
    "JoinableQueue": (5,),
    "SimpleQueue": (),
    "Value": ("i", 7),
    "Array": ("i", 3),
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_factory_makes_an_object_of_mpipc(ctx: Any, factory: str) -> None:
    made = getattr(ctx, factory)(*FACTORIES[factory])
    assert type(made).__module__.startswith("mpipc.")
    made = getattr(mpipc, factory)(*FACTORIES[factory])
    assert type(made).__module__.startswith("mpipc.")


def test_raw_factories(ctx: Any) -> None:
    assert ctx.RawValue(ctypes.c_int, 7).value == 7
    assert list(ctx.RawArray("i", [1, 2])) == [1, 2]


def test_pool(ctx: Any) -> None:
    with ctx.Pool(2) as pool:
        assert type(pool).__module__ == "mpipc.pool"
        assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]


def test_pipe(ctx: Any) -> None:
    first, second = ctx.Pipe()
    with first, second:
        first.send("hello")
        assert second.recv() == "hello"


# --- the standard executor --------------------------------------------------------------------------------------------


def _where(number: int) -> tuple[int, str]:
    return number * number, type(mpipc.current_process()).__module__


def test_process_pool_executor(ctx: Any) -> None:
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=ctx) as executor:
        results = list(executor.map(_where, range(20)))
        future = executor.submit(_divide, 1, 0)
        with pytest.raises(ZeroDivisionError):
            future.result()
    assert results == [(number * number, "mpipc.context") for number in range(20)]


def _divide(first: int, second: int) -> float:
    return first / second


def test_process_pool_executor_with_a_killed_worker(ctx: Any) -> None:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=ctx) as executor:
        future = executor.submit(os.kill, executor.submit(os.getpid).result(), 9)
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            future.result()


# --- the fork server's modules ----------------------------------------------------------------------------------------

PRELOADING = """
import sys
import mpipc as {name}

def target():
    print("json" in sys.modules, flush=True)

if __name__ == "__main__":
    {install}
    context = {name}.get_context("forkserver")
    context.set_forkserver_preload(["no_such_module", "json"], **{options})
    process = context.Process(target=target)
    try:
        process.start()
    except (EOFError, OSError) as error:
        print(*error.__notes__)
    else:
        process.join()
"""


@pytest.mark.parametrize("install", ["", "mpipc.install()"], ids=["swapped", "installed"])
@pytest.mark.parametrize("on_error", [None, "ignore", "warn", "fail"])
def test_what_cannot_be_preloaded(on_error: str | None, install: str) -> None:
    options = {} if on_error is None else {"on_error": on_error}
    script = PRELOADING.format(name="mpipc" if install else "multiprocessing", install=install, options=options)
    result = run_script(script, env={"PYTHONWARNINGS": "always"})
    if on_error == "fail":
        assert "see its stderr" in result.stdout or "Check stderr" in result.stdout
        assert "No module named 'no_such_module'" in result.stderr
    else:
        assert result.stdout == "True\n"
        assert ("Failed to preload module 'no_such_module'" in result.stderr) is (on_error == "warn")


def test_impossible_ways_to_preload() -> None:
    context = mpipc.get_context("forkserver")
    with pytest.raises(ValueError, match="on_error must be 'ignore', 'warn'"):
        context.set_forkserver_preload([], on_error="raise")
    with pytest.raises(TypeError, match="must be a list of strings"):
        context.set_forkserver_preload([1])

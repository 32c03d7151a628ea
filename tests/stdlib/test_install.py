"""mpipc.install(), and python -m mpipc run: programs that say `import multiprocessing` and get mpipc.

What is replaced is the state of a whole process, so each of these tests is a program of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support import kernel_rows, run_script, start_script

RUN = ("-m", "mpipc", "run")

KIND = """
    def kind(obj):
        return type(obj).__module__.partition(".")[0]
    """


def script(body: str) -> str:
    return textwrap.dedent(KIND) + textwrap.dedent(body)


# --- install ----------------------------------------------------------------------------------------------------------


def test_every_import_statement_gives_mpipc() -> None:
    run_script(
        script(
            """
            import mpipc
            mpipc.install()
            import multiprocessing
            import multiprocessing.pool
            import multiprocessing.dummy.connection
            import multiprocessing.queues as queues
            from multiprocessing import Lock, shared_memory, synchronize
            from multiprocessing.managers import SyncManager
            from multiprocessing.context import SpawnContext
            from multiprocessing import *
            import importlib

            assert kind(Lock()) == kind(multiprocessing.Queue()) == kind(RLock()) == "mpipc"
            assert queues is mpipc.queues and synchronize is mpipc.synchronize
            assert shared_memory is importlib.import_module("multiprocessing.shared_memory") is mpipc.shared_memory
            assert SyncManager is mpipc.managers.SyncManager and SpawnContext is mpipc.context.SpawnContext
            assert multiprocessing.Process is mpipc.Process
            assert multiprocessing.pool.Pool is mpipc.pool.Pool
            assert multiprocessing.get_context("fork") is mpipc.get_context("fork")
            """
        )
    )


def test_names_imported_before() -> None:
    run_script(
        script(
            """
            import multiprocessing as mp, multiprocessing.pool
            from multiprocessing import Event, Process, Queue, get_context, get_start_method, set_start_method
            from multiprocessing import queues
            from multiprocessing.pool import Pool as PoolClass
            from multiprocessing.queues import Queue as QueueClass
            context = get_context("spawn")
            kept = {"methods of contexts": [Event, Queue, mp.Lock], "classes": [QueueClass, PoolClass]}
            import mpipc

            mpipc.install()
            assert {kind(method()) for method in kept["methods of contexts"]} == {"mpipc"}
            assert {found.__module__.partition(".")[0] for found in kept["classes"]} == {"multiprocessing"}
            assert kind(mp.Lock()) == kind(Event()) == kind(Queue()) == kind(context.Lock()) == "mpipc"
            assert queues is mpipc.queues and QueueClass is mpipc.queues.Queue and PoolClass is mpipc.pool.Pool
            assert kind(get_context()) == kind(get_context("forkserver")) == "mpipc"

            set_start_method("forkserver", force=True)
            assert mpipc.get_start_method() == mp.get_start_method() == get_start_method() == "forkserver"
            mpipc.set_start_method("fork", force=True)
            assert get_start_method() == "fork"

            queue = Queue()
            process = Process(target=queue.put, args=(1,))
            process.start()
            assert queue.get(timeout=30) == 1
            process.join()
            assert kind(process._popen) == "multiprocessing"  # popen_fork needs no help
            """
        )
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_executor_imported_before(method: str) -> None:
    run_script(
        script(
            f"""
            import concurrent.futures.process
            import mpipc
            theirs = concurrent.futures.process._SafeQueue
            mpipc.install()

            if __name__ == "__main__":
                context = mpipc.get_context({method!r})
                with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
                    assert list(executor.map(abs, range(-20, 0))) == list(range(20, 0, -1))
                    assert kind(executor._result_queue) == "mpipc"
                    assert isinstance(executor._call_queue, mpipc.queues.Queue)
                    failed = executor.submit(abs, lambda: None)  # told by _on_queue_feeder_error(), which calls super()
                    assert "pickle" in str(failed.exception())
                mpipc.uninstall()
                assert concurrent.futures.process._SafeQueue is theirs
            """
        )
    )


@pytest.mark.compares
def test_uninstall_leaves_everything_as_it_was() -> None:
    run_script(
        script(
            """
            import importlib, sys, types
            import mpipc
            from mpipc._stdlib.install import _known
            from mpipc._stdlib.standard import installed
            import multiprocessing
            for name in _known():
                importlib.import_module(f"multiprocessing.{name}")
                importlib.import_module(f"mpipc.{name}")
            from multiprocessing import Lock
            from multiprocessing.pool import Pool as PoolClass

            def state():
                found = {"class": type(multiprocessing.context._default_context)}
                for name, module in sys.modules.items():
                    if name.partition(".")[0] in ("multiprocessing", "mpipc") and "mpipc._stdlib.install" != name:
                        found[name] = module
                        found.update({(name, key): value for key, value in vars(module).items()})
                return found

            before, mine = state(), dict(globals())
            for _ in range(3):
                mpipc.install()
                mpipc.install()
                assert installed() and PoolClass is mpipc.pool.Pool and kind(Lock()) == "mpipc"
                mpipc.uninstall()
                mpipc.uninstall()
                assert not installed()
                after = state()
                assert before.keys() <= after.keys()
                assert not [name for name in before if before[name] is not after[name]]
                new = {name for name in after.keys() - before.keys() if "multiprocessing" in str(name)}
                assert not new, new
                assert PoolClass is mine["PoolClass"] and kind(Lock()) == "multiprocessing"
            """
        )
    )


SUBMODULES = [
    *("connection", "context", "dummy", "dummy.connection", "forkserver", "heap", "managers", "pool", "popen_fork"),
    *("popen_forkserver", "popen_spawn_posix", "process", "queues", "reduction", "resource_sharer"),
    *("resource_tracker", "shared_memory", "sharedctypes", "spawn", "synchronize", "util"),
]

LOADED_LATER = """
    import importlib, sys, threading, types
    import mpipc

    def kinds(package):
        \"\"\"Of each class and function of the submodules: the modules of what it is derived from, or its own.\"\"\"
        found = {}
        for name in names:
            for key, value in vars(importlib.import_module(f"{package}.{name}")).items():
                if key == "BaseContext":
                    continue  # which annotations name, and nothing is derived from
                if isinstance(value, type):
                    found[name, key] = [(base.__module__, base.__qualname__) for base in value.__mro__]
                elif isinstance(value, types.FunctionType):
                    found[name, key] = value.__module__
        return found
    """


def loaded_later(body: str) -> str:
    return f"names = {SUBMODULES!r}\n" + textwrap.dedent(LOADED_LATER) + textwrap.dedent(body)


@pytest.mark.compares
def test_it_makes_no_difference_whether_a_module_is_loaded_before_or_after() -> None:
    load = 'for name in names: importlib.import_module(f"{package}.{name}")\n'
    show = "print(sorted(kinds('multiprocessing').items()))"
    found = {
        (package, order): run_script(loaded_later(f"package = {package!r}\n" + "".join(parts) + show)).stdout
        for package in ("multiprocessing", "mpipc")
        for order, parts in {
            "before": (load, "mpipc.install()\n"),
            "after": ("mpipc.install()\n", load),
            "after, the last first": ("mpipc.install()\n", "names.reverse()\n", load, "names.reverse()\n"),
        }.items()
    }
    assert len(set(found.values())) == 1, found


def test_what_is_loaded_later_stands_on_multiprocessing_s_own() -> None:
    run_script(
        loaded_later(
            """
            mpipc.install()
            for name in reversed(names):
                importlib.import_module(f"multiprocessing.{name}")
            from mpipc._stdlib.standard import modules
            assert set(names) <= set(modules)
            for name, module in modules.items():
                assert module.__name__ == f"multiprocessing.{name}" and "lib" in module.__file__
                for key, value in vars(module).items():
                    of = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
                    if name not in ("context", "reduction"):  # in which mpipc notes its contexts, and its pickling
                        assert not str(of).startswith("mpipc"), (name, key, value)
            mine = {name: sys.modules[f"multiprocessing.{name}"] for name in names}
            mpipc.uninstall()
            import multiprocessing.pool
            for name in names:
                module = importlib.import_module(f"multiprocessing.{name}")
                parent, _, last = f"multiprocessing.{name}".rpartition(".")
                assert module is modules[name] is vars(sys.modules[parent])[last]
            assert issubclass(mpipc.pool.Pool, multiprocessing.pool.Pool) and multiprocessing.pool is not mpipc.pool
            assert multiprocessing.pool.ThreadPool(2).map(abs, [-1, -2]) == [1, 2]
            mpipc.install()
            assert mine == {name: importlib.import_module(f"multiprocessing.{name}") for name in names}
            """
        )
    )


def test_what_its_modules_unpickle_is_mpipc_s() -> None:
    """pickle imports with the `__import__` of whoever calls it; a module that was loaded apart has one of its own."""
    run_script(
        """
        import sys
        import mpipc
        mpipc.install()
        from multiprocessing.connection import Pipe
        from mpipc._stdlib.standard import modules
        assert sys.modules["multiprocessing.connection"] is modules["connection"]  # loaded apart
        reader, writer = Pipe(False)
        for module, name in (("queues", "Queue"), ("pool", "Pool"), ("popen_forkserver", "Popen")):
            assert f"multiprocessing.{module}" not in sys.modules
            writer.send_bytes(f"cmultiprocessing.{module}\\n{name}\\n.".encode())
            found = reader.recv()
            assert found is getattr(sys.modules[f"mpipc.{module}"], name), found
            assert sys.modules[f"multiprocessing.{module}"] is sys.modules[f"mpipc.{module}"]
        """
    )


def test_submodules_can_be_used_without_an_import() -> None:
    run_script(
        """
        import mpipc, multiprocessing
        mpipc.install()
        assert multiprocessing.shared_memory is mpipc.shared_memory and multiprocessing.queues is mpipc.queues
        assert multiprocessing.dummy.connection is mpipc.dummy.connection and multiprocessing.dummy is mpipc.dummy
        assert not hasattr(multiprocessing, "no_such_module") and not hasattr(multiprocessing, "executor")
        try:
            import multiprocessing.no_such_module
        except ModuleNotFoundError as error:
            assert error.name == "multiprocessing.no_such_module"
        """
    )


def test_threads_import_at_the_same_time() -> None:
    run_script(
        loaded_later(
            """
            mpipc.install()
            failed, start = [], threading.Barrier(2 * len(names))

            def load(name):
                start.wait()
                try:
                    module = importlib.import_module(name)
                    assert module is importlib.import_module(name.replace("multiprocessing", "mpipc"))
                except BaseException as error:
                    failed.append((name, error))

            threads = [
                threading.Thread(target=load, args=(f"{package}.{name}",))
                for package in ("multiprocessing", "mpipc")
                for name in names
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failed, failed
            """
        )
    )


def test_a_child_loads_what_it_uses(start_method: str) -> None:
    run_script(
        """
        import sys
        import mpipc
        mpipc.install()
        import multiprocessing

        def tell(queue):
            queue.put([name for name in sys.modules if name.partition(".")[0] in ("multiprocessing", "mpipc")])

        if __name__ == "__main__":
            context = multiprocessing.get_context(METHOD)
            queue = context.SimpleQueue()
            process = context.Process(target=tell, args=(queue,))
            process.start()
            loaded = queue.get()
            process.join()
            assert "mpipc.queues" in loaded
            for name in ("managers", "pool", "sharedctypes", "shared_memory", "dummy"):
                assert not {f"multiprocessing.{name}", f"mpipc.{name}"} & set(loaded), name
        """.replace("METHOD", repr(start_method))
    )


def test_what_others_assigned_meanwhile_is_kept() -> None:
    run_script(
        """
        import multiprocessing, mpipc
        mpipc.install()
        multiprocessing.Queue = patched = object()
        mpipc.uninstall()
        assert multiprocessing.Queue is patched
        """
    )


def test_start_method_set_before_is_kept(start_method: str) -> None:
    run_script(
        f"""
        import multiprocessing, mpipc
        multiprocessing.set_start_method({start_method!r})
        mpipc.install()
        assert multiprocessing.get_start_method() == mpipc.get_start_method() == {start_method!r}
        mpipc.uninstall()
        assert multiprocessing.get_start_method() == {start_method!r}
        """
    )


def test_starting_a_process_settles_the_start_method() -> None:
    """Up to Python 3.13; from then on only asking for it does."""
    run_script(
        """
        import multiprocessing, mpipc, sys
        if __name__ == "__main__":
            mpipc.install()
            for method in ("fork", "spawn", "forkserver"):
                process = multiprocessing.get_context(method).Process()
                process.start()
                process.join()
                assert process.exitcode == 0
            settled = multiprocessing.get_start_method(allow_none=True) is not None
            assert settled is (sys.version_info < (3, 14))
            try:
                multiprocessing.set_start_method("spawn")
            except RuntimeError:
                assert settled
            else:
                assert not settled
        """
    )


# --- children ---------------------------------------------------------------------------------------------------------

FAMILY_TREE = """
    import multiprocessing, sys
    from multiprocessing import Queue, get_start_method

    at_import = type(multiprocessing.Lock.__self__).__module__

    def describe(queue, depth):
        from mpipc._stdlib.standard import installed
        queue.put((depth, at_import, type(queue).__module__, installed(), get_start_method()))
        if depth < 2:
            child = multiprocessing.Process(target=describe, args=(queue, depth + 1))
            child.start()
            child.join()
            assert child.exitcode == 0

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        queue = multiprocessing.Queue()
        describe(queue, 0)
        for depth in range(3):
            print(*queue.get(timeout=30))
    """


def test_children_and_grandchildren(start_method: str) -> None:
    result = run_script(FAMILY_TREE, options=RUN, arguments=[start_method])
    expected = [f"{depth} mpipc.context mpipc.queues True {start_method}" for depth in range(3)]
    assert result.stdout.splitlines() == expected


@pytest.mark.compares
def test_fork_server_started_before() -> None:
    result = run_script(
        script(
            """
            import multiprocessing, os
            from multiprocessing import Pipe

            def report(connection):
                connection.send((kind(multiprocessing.Lock()), os.getppid()))

            def child():
                ours, theirs = Pipe()
                process = multiprocessing.get_context("forkserver").Process(target=report, args=(theirs,))
                process.start()
                answer = ours.recv()
                process.join()
                return answer

            if __name__ == "__main__":
                import mpipc
                answers = [child()]
                mpipc.install()
                answers.append(child())
                mpipc.uninstall()
                answers.append(child())
                assert len({server for _, server in answers}) == 1
                print(*(package for package, _ in answers))
            """
        )
    )
    assert result.stdout.split() == ["multiprocessing", "mpipc", "multiprocessing"]


@pytest.mark.compares
def test_a_pool_starts_the_fork_server(tmp_path: Path) -> None:
    """What is preloaded there finds mpipc in multiprocessing's place, as it would in the parent."""
    (tmp_path / "preloaded.py").write_text(
        "import multiprocessing\nprint(multiprocessing.Queue.__func__.__module__, flush=True)\n"
    )
    result = run_script(
        """
        import multiprocessing

        if __name__ == "__main__":
            multiprocessing.set_start_method("forkserver")
            multiprocessing.set_forkserver_preload(["preloaded"])
            with multiprocessing.Pool(2) as pool:
                assert pool.map(abs, [-1, -2]) == [1, 2]
        """,
        options=RUN,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert result.stdout == "mpipc.context\n"


def test_fork_server_that_outlives_uninstall() -> None:
    result = run_script(
        script(
            """
            import multiprocessing, os
            from multiprocessing import Pipe

            def report(connection):
                connection.send((kind(multiprocessing.Lock()), os.getppid()))
                connection.recv()

            def child(keep):
                ours, theirs = Pipe()
                process = multiprocessing.get_context("forkserver").Process(target=report, args=(theirs,))
                process.start()
                answer = ours.recv()
                keep.append((ours, process))
                return answer

            if __name__ == "__main__":
                import mpipc
                keep = []
                mpipc.install()
                answers = [child(keep)]
                mpipc.uninstall()
                answers.append(child(keep))
                mpipc.install()
                answers.append(child(keep))
                for connection, process in keep:
                    connection.send(None)
                    process.join()
                    assert process.exitcode == 0
                assert len({server for _, server in answers}) == 1
                print(*(package for package, _ in answers))
            """
        )
    )
    assert result.stdout.split() == ["mpipc", "multiprocessing", "mpipc"]


def test_child_whose_python_does_not_find_mpipc(start_method: str) -> None:
    """The folder of mpipc is known to the child when its sys.path is not yet its parent's."""
    source = f"""
        import os, sys
        sys.path.insert(0, {str(Path(_folder()))!r})
        import mpipc
        import multiprocessing

        def child():
            assert type(multiprocessing.Lock()).__module__ == "mpipc.synchronize"

        if __name__ == "__main__":
            mpipc.install()
            process = multiprocessing.get_context({start_method!r}).Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
        """
    run_script(source, options=["-I"])


def _folder() -> Path:
    import mpipc

    return Path(mpipc.__path__[0]).parent


# --- run --------------------------------------------------------------------------------------------------------------


def both(source: str, **options: Any) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """The same program with plain python and with `python -m mpipc run`."""
    return run_script(source, check=False, **options), run_script(source, check=False, options=RUN, **options)


def without_folder(result: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    """Each script has a folder of its own; in everything else two runs are to be the same."""
    folder = str(Path(result.args[-1 if result.args[-1].endswith("script.py") else -3]).parent)
    return result.returncode, result.stdout.replace(folder, "FOLDER"), result.stderr.replace(folder, "FOLDER")


ENVIRONMENT_OF_A_PROGRAM = """
    import sys
    print(__name__, __file__, __package__, __spec__, __doc__, __builtins__, type(__loader__).__name__)
    print(sorted(name for name in globals()))
    print(sys.argv[1:], sys.path[0])
    print(sys.modules["__main__"].sys is sys, sys.modules["__main__"].__dict__ is globals())
    class Local: pass
    import pickle
    print(type(pickle.loads(pickle.dumps(Local()))) is Local, Local.__module__)
    """


def test_program_sees_what_it_sees_with_plain_python() -> None:
    plain, ours = both(ENVIRONMENT_OF_A_PROGRAM, arguments=["-m", "--help"])
    assert without_folder(ours) == without_folder(plain)
    assert ours.returncode == 0 and ours.stdout.startswith("__main__ ")


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('a message')",
        "raise SystemExit",
        "1 / 0",
        "def f():\n    raise ValueError('in a function')\nf()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('second') from error",
        "def syntax error",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; os._exit(7)",
        "import atexit; atexit.register(print, 'at the end', __name__); raise OSError('before')",
        "import sys; sys.excepthook = lambda *details: print('hook', details[2].tb_frame.f_code.co_name); 1 / 0",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print(__name__))).start()",
    ],
)
def test_ends_as_with_plain_python(end: str) -> None:
    plain, ours = both(end)
    assert without_folder(ours) == without_folder(plain)


MAIN_OBJECTS = """
    import multiprocessing, sys

    class Task:
        def __init__(self, number):
            self.number = number
        def __call__(self):
            return Task(self.number * 2)

    def call(task):
        return task()

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        with multiprocessing.Pool(2) as pool:
            print([task.number for task in pool.map(call, map(Task, range(10)))])
        manager = multiprocessing.Manager()
        print(manager.list([Task(3)])[0].number)
        manager.shutdown()
    """


@pytest.mark.compares
def test_objects_of_main_travel(start_method: str) -> None:
    plain, ours = both(MAIN_OBJECTS, arguments=[start_method])
    assert (ours.returncode, ours.stdout, ours.stderr) == (0, plain.stdout, plain.stderr)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A package with a module, a `__main__`, and one that fails."""
    package = tmp_path / "tool"
    package.mkdir()
    (package / "__init__.py").touch()
    body = """
        import multiprocessing, sys

        def name(_):
            return __name__

        if __name__ == "__main__":
            print(__spec__ and __spec__.name, __package__, sys.argv, sys.path[0])
            multiprocessing.set_start_method("spawn")
            with multiprocessing.Pool(1) as pool:
                print(pool.map(len, ["abc"]))
        """
    (package / "__main__.py").write_text(textwrap.dedent(body))
    (package / "module.py").write_text(textwrap.dedent(body).replace("pool.map(len, ['abc'])", "pool.map(name, [0])"))
    (package / "failing.py").write_text("1 / 0\n")
    with zipfile.ZipFile(tmp_path / "tool.zip", "w") as archive:
        archive.writestr("__main__.py", textwrap.dedent(body))
    return tmp_path


@pytest.mark.compares
@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "tool", "-x", "1"],
        ["-m", "tool.module", "--flag"],
        ["-m", "tool.failing"],
        ["-m", "tool.missing"],
        ["tool", "argument"],
        ["tool.zip"],
        ["tool/module.py", "-h"],
        ["tool/module.py", "--", "-m", "--", "--also"],
        ["-m", "tool", "--", "-h"],
        ["-m", "tool.module", "a", "--", "-m", "b", "--"],
        ["missing.py"],
    ],
    ids=" ".join,
)
def test_all_that_python_can_run(program: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(_folder()))
    results = [
        subprocess.run([sys.executable, *options, *arguments], cwd=program, capture_output=True, text=True, timeout=60)
        for options in ((), RUN)
    ]
    plain, ours = results
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.parametrize("arguments", [[], ["-m"]], ids=str)
def test_run_without_a_program(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(_folder())}
    result = subprocess.run(
        [sys.executable, "-P", *RUN, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert "usage: python -m mpipc run" in result.stderr


# --- programs that know nothing of mpipc ------------------------------------------------------------------------------


def test_executor_uses_message_queues(start_method: str) -> None:
    source = """
        import multiprocessing, sys
        from concurrent.futures import ProcessPoolExecutor

        def square(number):
            return number * number

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            with ProcessPoolExecutor(2) as executor:
                print(sum(executor.map(square, range(50))), flush=True)
                input()
        """
    before = kernel_rows("msg").keys()
    with start_script(source, options=RUN, arguments=[start_method]) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == f"{sum(n * n for n in range(50))}\n"
        assert len(kernel_rows("msg").keys() - before) >= 2, "of the executor's two queues"
        assert running.finish("\n").returncode == 0


@pytest.mark.compares
def test_compileall(tmp_path: Path) -> None:
    """The standard library's own program with a ProcessPoolExecutor."""
    trees = []
    for name, options in (("plain", ()), ("ours", RUN)):
        tree = tmp_path / name
        tree.mkdir()
        for number in range(30):
            (tree / f"module_{number}.py").write_text(f"value = {number}\n")
        result = subprocess.run(
            [sys.executable, "-P", *options, "-m", "compileall", "-j", "4", "-q", str(tree)],
            env={"PYTHONPATH": str(_folder())},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        trees.append(sorted(path.name for path in tree.rglob("*.pyc")))
    assert trees[0] == trees[1] and len(trees[0]) == 30


# --- packages that reach into multiprocessing -------------------------------------------------------------------------


def test_private_names_are_those_of_the_standard_library() -> None:
    run_script(
        script(
            """
            import mpipc
            mpipc.install()
            from multiprocessing.synchronize import SemLock
            from multiprocessing.queues import Full, _sentinel
            assert kind(SemLock.__new__(SemLock)) == "multiprocessing"
            mpipc.uninstall()
            assert not hasattr(mpipc.synchronize, "SemLock") and not hasattr(mpipc.queues, "_sentinel")
            """
        )
    )


def test_subclass_that_replaces_the_transport() -> None:
    """As joblib's loky has it: its queues pickle with reducers of their own, over multiprocessing's pipe."""
    run_script(
        script(
            """
            import mpipc
            mpipc.install()
            import multiprocessing
            from multiprocessing.queues import Queue, SimpleQueue

            class Plain(Queue):
                def __init__(self, *arguments, **options):
                    super().__init__(*arguments, **options)
                    self.extra = 1

            class Own(SimpleQueue):
                def put(self, obj):
                    with self._wlock:
                        self._writer.send_bytes(multiprocessing.reduction.ForkingPickler.dumps(("own", obj)))

            class OwnToo(Queue):
                def __getstate__(self):
                    return super().__getstate__() + (self._opid,)

            context = multiprocessing.get_context("fork")
            plain, own, own_too = (cls(ctx=context) for cls in (Plain, Own, OwnToo))
            assert isinstance(plain, mpipc.queues.Queue) and plain.extra == 1
            for queue in (own, own_too):
                assert not isinstance(queue, (mpipc.queues.Queue, mpipc.queues.SimpleQueue))
            for queue, expected in ((plain, "sent"), (own, ("own", "sent")), (own_too, "sent")):
                process = context.Process(target=queue.put, args=("sent",))
                process.start()
                assert queue.get() == expected
                process.join()
            """
        )
    )


@pytest.mark.compares
def test_joblib() -> None:
    """With multiprocessing's pool, and with loky, which brings its own."""
    source = """
        import math
        from joblib import Parallel, delayed

        if __name__ == "__main__":
            for backend in ("multiprocessing", "loky"):
                print(Parallel(n_jobs=2, backend=backend)(delayed(math.factorial)(n) for n in range(20)))
        """
    plain, ours = both(source)
    assert (ours.returncode, ours.stdout) == (0, plain.stdout), ours.stderr


POOL_WITH_REDUCERS = """
    import sys
    import multiprocessing
    from multiprocessing.pool import Pool

    import numpy
    from joblib.pool import MemmappingPool, PicklingPool

    class Celsius:
        def __init__(self, degrees):
            self.degrees = degrees

    def reduce_to_kelvin(celsius):
        return Celsius, (celsius.degrees + 273,)

    def degrees(celsius, *others):
        return celsius.degrees

    def kind(array):
        return type(array).__name__

    def itself(celsius):
        return celsius

    class Doubler:
        def __init__(self, celsius):
            self.celsius = celsius

        def __call__(self):
            return 2 * self.celsius.degrees

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        own = {Celsius: reduce_to_kelvin}
        for forward, backward in ((own, None), (None, own), (None, None)):
            with PicklingPool(1, forward_reducers=forward, backward_reducers=backward) as pool:
                print(pool.map(degrees, [Celsius(1), Celsius(2)]), pool.apply(degrees, (Celsius(3), 1)))
                print(pool.apply(Doubler(Celsius(4))), pool.apply(itself, (Celsius(5),)).degrees)
                print(pool.apply(abs, (-5,)), pool.apply_async(abs, (-5,)).get())
        with MemmappingPool(1, max_nbytes=1000) as pool:
            print(pool.map(kind, [numpy.zeros(1000), numpy.zeros(10)]))
    """


@pytest.mark.slow_with("spawn")
@pytest.mark.compares
def test_pool_with_reducers_of_its_own(start_method: str) -> None:
    """joblib's pools say by setting up queues of their own how tasks and results are pickled."""
    plain, ours = both(POOL_WITH_REDUCERS, arguments=[start_method])
    assert (ours.returncode, ours.stdout, ours.stderr) == (0, plain.stdout, plain.stderr)
    first, second, *_, last = ours.stdout.splitlines()
    assert (first, second, last) == ("[274, 275] 276", "554 278", "['memmap', 'ndarray']")


def test_pool_that_sets_up_its_queues_is_the_standard_library_s() -> None:
    run_script(
        script(
            """
            import mpipc
            mpipc.install()
            from multiprocessing import pool, queues, get_context

            class Own(pool.Pool):
                def _setup_queues(self):
                    self._inqueue, self._outqueue = PipeQueue(ctx=self._ctx), PipeQueue(ctx=self._ctx)
                    self._quick_put = self._inqueue._writer.send
                    self._quick_get = self._outqueue._reader.recv

            class PipeQueue(queues.SimpleQueue):
                def empty(self):
                    return self._rlock is None

            class Plain(pool.Pool):
                pass

            assert issubclass(Plain, mpipc.pool.Pool) and not issubclass(Own, mpipc.pool.Pool)
            with Own(2, context=get_context("fork")) as own:
                assert own.map(abs, range(-5, 0)) == [5, 4, 3, 2, 1]
            """
        )
    )


# --- Pythons that a program starts by itself --------------------------------------------------------------------------

STARTS_OTHERS = """
import multiprocessing, subprocess, sys
ASK = "import multiprocessing, sys; print(type(multiprocessing.Queue()).__module__, getattr(sys, 'customized', 'no'))"
NEXT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ASK!r}])"
def tell(queue):
    queue.put(type(queue).__module__)
if __name__ == "__main__":
    for options in ([], ["-S"], ["-I"]):
        print(options, flush=True)
        subprocess.run([sys.executable, *options, "-c", ASK], check=True)
    subprocess.run([sys.executable, "-c", NEXT], check=True)
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=tell, args=(queue,))
        process.start()
        print(queue.get(timeout=30))
        process.join()
    print(*sys.path[:2])
"""


@pytest.mark.parametrize("own", ["customized", "no"])
def test_pythons_that_are_started_by_subprocess(tmp_path: Path, own: str) -> None:
    """They are plain, unless --children is given; a sitecustomize of the user's own is run in any case."""
    (tmp_path / "own").mkdir()
    if own == "customized":
        (tmp_path / "own" / "sitecustomize.py").write_text("import sys\nsys.customized = 'customized'\n")
    (tmp_path / "program.py").write_text(STARTS_OTHERS)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'own'}:{_folder()}"}
    outputs = {}
    for options in ((), ("--children",)):
        result = subprocess.run(
            [sys.executable, *RUN, *options, "program.py"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, "")
        outputs[options] = result.stdout.splitlines()
    plain, ours = "multiprocessing.queues", "mpipc.queues"
    path = f"{tmp_path} {tmp_path / 'own'}"
    assert outputs[()] == [
        *("[]", f"{plain} {own}", "['-S']", f"{plain} no", "['-I']", f"{plain} no", f"{plain} {own}"),
        *(ours, ours, path),
    ]
    assert outputs[("--children",)] == [
        *("[]", f"{ours} {own}", "['-S']", f"{plain} no", "['-I']", f"{plain} no", f"{ours} {own}"),
        *(ours, ours, path),
    ]

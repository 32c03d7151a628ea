"""Processes of mpipc: in the same registers as multiprocessing's, and what the family is told of them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.process
import os
import signal
import sys
import time
import types
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest

import mpipc
import mpipc._core
import mpipc.process

# --- what a Process is ------------------------------------------------------------------------------------------------


def _answer(connection: Any, *names: str) -> None:
    """Attributes of the current process and of its parent, found through both packages."""
    ours, standard = mpipc.current_process(), multiprocessing.current_process()
    parent = mpipc.parent_process()
    assert parent is not None
    connection.send(
        {
            "same": ours is standard and parent is multiprocessing.parent_process() is mpipc.process.parent_process(),
            "module": type(ours).__module__,
            "type": type(ours).__name__,
            "name": ours.name,
            "pid": (ours.pid, os.getpid()),
            "parent": (parent.pid, parent.name, parent.is_alive()),
            "daemon": ours.daemon,
            "authkey": bytes(ours.authkey),
            "config": sorted(mpipc.process.current_process()._config),  # type: ignore[attr-defined]
            "children": mpipc.active_children(),
        }
    )


def test_current_and_parent_process(ctx: Any, start_method: str) -> None:
    reader, writer = ctx.Pipe(duplex=False)
    process = ctx.Process(target=_answer, args=(writer,), name="Tim", daemon=True)
    assert process.exitcode is None and process.pid is None and not process.is_alive()
    with pytest.raises(ValueError, match="process not started"):
        process.sentinel  # noqa: B018
    process.start()
    answer = reader.recv()
    process.join()
    assert process.exitcode == 0
    assert answer["same"]
    assert answer["module"] == "mpipc.context"
    assert answer["type"] == {"fork": "ForkProcess", "spawn": "SpawnProcess"}.get(start_method, "ForkServerProcess")
    assert answer["name"] == "Tim"
    assert answer["pid"] == (process.pid, process.pid)
    assert answer["parent"] == (os.getpid(), multiprocessing.current_process().name, True)
    assert answer["daemon"] is True
    assert answer["authkey"] == bytes(mpipc.current_process().authkey)
    # The process object was made before the fork server was started, which is when there may come to be a tempdir.
    config = {*multiprocessing.current_process()._config, "daemon"} - {"tempdir"}  # type: ignore[attr-defined]
    assert set(answer["config"]) - {"tempdir"} == config
    assert answer["children"] == []


def test_default_process_class(start_method: str) -> None:
    previous = mpipc.get_start_method(allow_none=True)
    mpipc.set_start_method(start_method, force=True)
    try:
        reader, writer = mpipc.Pipe(duplex=False)
        process = mpipc.Process(target=_answer, args=(writer,))
        assert isinstance(process, multiprocessing.Process)
        process.start()
        answer = reader.recv()
        process.join()
        assert (answer["module"], answer["type"]) == ("mpipc.context", "Process")
        assert process.exitcode == 0
    finally:
        mpipc.set_start_method(previous, force=True)


def test_class_is_a_subclass_of_the_standard_one(ctx: Any, start_method: str) -> None:
    standard: Any = multiprocessing.get_context(start_method)
    assert issubclass(ctx.Process, standard.Process)
    assert ctx.Process.__name__ == standard.Process.__name__
    process = ctx.Process()
    assert process.name.startswith(f"{ctx.Process.__name__}-")
    assert repr(process) == f"<{ctx.Process.__name__} name={process.name!r} parent={os.getpid()} initial>"


def test_children_are_shared_with_multiprocessing(ctx: Any) -> None:
    reader, writer = ctx.Pipe(duplex=False)
    process = ctx.Process(target=_block, args=(reader,))
    process.start()
    try:
        assert process in mpipc.active_children() and process in multiprocessing.active_children()
        assert process.is_alive() and process.exitcode is None
        with pytest.raises(ValueError, match="Cannot close a process while it is still running"):
            process.close()
    finally:
        writer.send(None)
        process.join()
    assert process not in mpipc.active_children() and process not in multiprocessing.active_children()
    assert not process.is_alive()
    assert "stopped exitcode=0" in repr(process)
    process.close()
    with pytest.raises(ValueError, match="process object is closed"):
        process.is_alive()


def _block(connection: Any) -> None:
    connection.recv()


def test_sentinel_and_signals(ctx: Any) -> None:
    for method, number in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
        reader, writer = ctx.Pipe(duplex=False)
        process = ctx.Process(target=_block, args=(reader,))
        process.start()
        assert mpipc.connection.wait([process.sentinel], timeout=0) == []
        getattr(process, method)()
        assert mpipc.connection.wait([process.sentinel]) == [process.sentinel]
        process.join()
        assert process.exitcode == -number
        writer.close()
        process.close()


def _exit(how: Any) -> None:
    if isinstance(how, Exception):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        raise how
    sys.exit(how)


def _sleep_until_interrupted(ready: Any) -> None:
    try:
        ready.set()
        signal.pause()
    except KeyboardInterrupt:
        sys.exit(7)


def test_interrupt(ctx: Any) -> None:
    ready = ctx.Event()
    process = ctx.Process(target=_sleep_until_interrupted, args=(ready,))
    process.start()
    assert ready.wait(60)
    process.interrupt()
    process.join(60)
    assert process.exitcode == 7
    process.close()
    with pytest.raises(ValueError, match="process object is closed"):
        process.interrupt()


def test_exitcode(ctx: Any) -> None:
    for how, expected in ((None, 0), (3, 3), (ValueError("on purpose"), 1)):
        process = ctx.Process(target=_exit, args=(how,))
        process.start()
        process.join()
        assert process.exitcode == expected


class _Greeter:
    """Made into a Process subclass of each context below, at module level so that they can be pickled."""

    def __init__(self, connection: Any) -> None:
        super().__init__(name="Greeter")  # type: ignore[call-arg]
        self.connection = connection

    def run(self) -> None:
        self.connection.send(("hello from", self.name))  # type: ignore[attr-defined]


class ForkGreeter(_Greeter, mpipc.context.ForkProcess):
    pass


class SpawnGreeter(_Greeter, mpipc.context.SpawnProcess):
    pass


class ForkServerGreeter(_Greeter, mpipc.context.ForkServerProcess):
    pass


def test_subclass(ctx: Any, start_method: str) -> None:
    greeters = {"fork": ForkGreeter, "spawn": SpawnGreeter, "forkserver": ForkServerGreeter}
    reader, writer = ctx.Pipe(duplex=False)
    process = greeters[start_method](writer)
    process.start()
    assert reader.recv() == ("hello from", "Greeter")
    process.join()
    assert process.exitcode == 0


def _start_child(connection: Any) -> None:
    try:
        process = mpipc.Process(target=print)
        process.start()
        process.join()
        connection.send(process.exitcode)
    except AssertionError as error:
        connection.send(str(error))


@pytest.mark.parametrize("daemon", [False, True])
def test_children_of_children(ctx: Any, daemon: bool) -> None:
    reader, writer = ctx.Pipe(duplex=False)
    process = ctx.Process(target=_start_child, args=(writer,), daemon=daemon)
    process.start()
    assert reader.recv() == ("daemonic processes are not allowed to have children" if daemon else 0)
    process.join()


# --- what the family is told ------------------------------------------------------------------------------------------


class _FakeFamily(types.ModuleType):
    """In the place of mpipc._core: writes down, in a file, what the process classes tell it."""

    ENVIRONMENT = mpipc._core.ENVIRONMENT
    current = staticmethod(mpipc._core.current)

    def __init__(self, path: Path) -> None:
        super().__init__("mpipc._core")
        self.path = path
        self.reservations: list[str] = []  # of the parent's: in no file

    def note(self, text: str) -> None:
        with open(self.path, "a") as file:
            file.write(text + "\n")

    def arrived(self) -> None:
        self.note("arrived")

    def leaving(self) -> None:
        self.note("leaving")

    def reserve_for_child(self) -> None:
        self.reservations.append("reserved")

    def cancel_reservations(self) -> None:
        self.reservations.append("given back")

    def record_transit(self, popen: Any) -> None:
        self.note(f"recorded {popen._mpipc_transit} for {popen.pid}")

    def cancel_transit(self, popen: Any) -> None:
        self.note(f"cancelled {popen._mpipc_transit}")


class _Installs:
    """Puts a _FakeFamily into the process that unpickles it, as the first mpipc object would load the real one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return _install, (self.path,)


def _install(path: Path) -> _Installs:
    sys.modules["mpipc._core"] = _FakeFamily(path)
    return _Installs(path)


def _end(installed: _Installs, how: str) -> None:
    family: Any = sys.modules["mpipc._core"]
    util.Finalize(None, family.note, args=("finalizer",), exitpriority=-100)
    family.note("running")
    if how == "raise":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        raise ValueError("on purpose")
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(4)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


@pytest.mark.parametrize("how", ["return", "raise", "sys.exit", "os._exit", "SIGKILL"])
def test_family_is_told_of_normal_exits_only(
    ctx: Any, start_method: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`leaving` comes after everything that the child's finalizers do, `arrived` before its target runs."""
    path = tmp_path / "notes"
    if start_method == "fork":
        monkeypatch.setitem(sys.modules, "mpipc._core", _FakeFamily(path))
    process = ctx.Process(target=_end, args=(_Installs(path), how))
    process.start()
    process.join()
    assert process.exitcode == {"return": 0, "raise": 1, "sys.exit": 3, "os._exit": 4, "SIGKILL": -9}[how]
    expected = ["arrived", "running"]
    if how in ("return", "raise", "sys.exit"):
        expected += ["finalizer", "leaving"]
    assert path.read_text().split() == expected


class _Transported:
    """Acts as an mpipc object does when it is pickled for a child: reserves a slot for what is in transit."""

    def __reduce__(self) -> tuple[Any, ...]:
        popen: Any = multiprocessing.context.get_spawning_popen()
        popen._mpipc_transit = 7
        return int, ()


class _Unpicklable:
    def __reduce__(self) -> tuple[Any, ...]:
        raise ValueError("cannot be pickled")


def _nothing(*args: Any) -> None:
    pass


def test_transit_is_recorded_or_cancelled(
    ctx: Any, start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes"
    fake = _FakeFamily(path)
    monkeypatch.setitem(sys.modules, "mpipc._core", fake)
    if start_method == "fork":
        process = ctx.Process(target=_nothing, args=(_Transported(), _Unpicklable()))
        process.start()
        process.join()
        assert fake.reservations == ["reserved", "given back"], "before and after the fork"
        assert "cancelled" not in path.read_text() and "recorded" not in path.read_text(), "nothing is pickled"
        return
    process = ctx.Process(target=_nothing, args=(_Transported(),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert path.read_text() == f"recorded 7 for {process.pid}\n"
    path.unlink()

    process = ctx.Process(target=_nothing, args=(_Transported(), _Unpicklable()))
    with pytest.raises(ValueError, match="cannot be pickled"):
        process.start()
    assert path.read_text() == "cancelled 7\n"
    path.unlink()

    process = ctx.Process(target=_nothing)
    process.start()
    process.join()
    assert not path.exists(), "a child that gets no mpipc object needs no slot"

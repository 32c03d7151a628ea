"""register() and unregister() of the resource tracker, said of shared memory: they change what `track` is."""

from __future__ import annotations

import functools
import multiprocessing.resource_tracker as standard
from typing import Any

import pytest
from support import run_script, wait_until
from support.segments import exists

import mpipc
import mpipc.resource_tracker as tracker
from mpipc.shared_memory import SharedMemory


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What reaches the tracker."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(standard, "register", lambda *arguments: calls.append(("register", *arguments)))
    monkeypatch.setattr(standard, "unregister", lambda *arguments: calls.append(("unregister", *arguments)))
    return calls


def test_the_tracker_hears_of_others_only(reached: list[tuple[Any, ...]]) -> None:
    segment = SharedMemory(create=True, size=1)
    for _ in range(2):
        tracker.unregister(segment._name, "shared_memory")
        tracker.register(segment._name, "shared_memory")
    segment.close()
    segment.unlink()
    for name in (segment._name, "/never-was", "", "a/b", "\0"):
        tracker.unregister(name, "shared_memory")
        tracker.register(name, "shared_memory")
    for function in (tracker.register, tracker.unregister):
        with pytest.raises(ValueError, match="too long"):
            function("a" * 500, "shared_memory")
    assert reached == []
    tracker.register("/name", "semaphore")
    tracker.unregister("/name", "semaphore")
    assert reached == [("register", "/name", "semaphore"), ("unregister", "/name", "semaphore")]


CREATE = """
    from mpipc import resource_tracker
    from mpipc.shared_memory import SharedMemory
    segment = SharedMemory(create=True, size=10, track={track})
    segment.buf[0] = 7
    for function in {calls}:
        getattr(resource_tracker, function)(segment._name, "shared_memory")
    print(segment.name)
    """


@pytest.mark.parametrize(
    "track, calls, stays",
    [
        (True, [], False),
        (True, ["unregister"], True),
        (True, ["unregister", "register"], False),
        (True, ["unregister", "register", "unregister", "unregister"], True),
        (True, ["register", "register"], False),
        (False, [], True),
        (False, ["register"], False),
        (False, ["register", "unregister"], True),
    ],
)
def test_what_becomes_of_a_segment(track: bool, calls: list[str], stays: bool) -> None:
    """When its creator's program has ended."""
    result = run_script(CREATE.format(track=track, calls=calls))
    name = result.stdout.strip()
    assert result.stderr == ""
    if not stays:
        wait_until(lambda: not exists(name))
        return
    run_script("import mpipc; mpipc.Lock()")  # a reaper comes and goes
    segment = SharedMemory(name)
    assert segment.buf[0] == 7
    segment.close()
    segment.unlink()


def test_of_another_familys_segment() -> None:
    """Whoever attaches it neither takes it over nor lets go of it."""
    segment = SharedMemory(create=True, size=1)
    for function in ("unregister", "register"):
        run_script(
            f"""
            from mpipc import resource_tracker
            from mpipc.shared_memory import SharedMemory
            attached = SharedMemory({segment.name!r})
            resource_tracker.{function}(attached._name, "shared_memory")
            attached.close()
            """
        )
        assert exists(segment.name)
    creator = run_script(CREATE.format(track=True, calls=["unregister"])).stdout.strip()
    taken = SharedMemory(creator)
    tracker.register(taken._name, "shared_memory")  # it is nobody's, so it may be ours
    for each in (segment, taken):
        each.close()
        each.unlink()


def unregister(name: str) -> None:
    attached = SharedMemory(name)
    tracker.unregister(attached._name, "shared_memory")
    attached.close()


@pytest.mark.slow_with("forkserver")
def test_in_a_child(ctx: Any) -> None:
    """As with multiprocessing's tracker, which a family has in common."""
    segment = SharedMemory(create=True, size=1)
    process = ctx.Process(target=unregister, args=(segment.name,))
    process.start()
    process.join()
    assert process.exitcode == 0 and exists(segment.name)
    segment.close()
    segment.unlink()


def test_a_register_in_the_place_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    before = tracker.register

    @functools.wraps(before)
    def register(name: str, rtype: str) -> None:
        told.append((name, rtype))
        before(name, rtype)

    monkeypatch.setattr(tracker, "register", register)
    segment = SharedMemory(create=True, size=1)
    untracked = SharedMemory(create=True, size=1, track=False)
    SharedMemory(segment.name).close()
    assert told == [(segment._name, "shared_memory")]
    for each in (segment, untracked):
        each.close()
        each.unlink()


@pytest.mark.parametrize("passes_on", [False, True])
def test_a_register_that_leaves_shared_memory_out(passes_on: bool) -> None:
    script = f"""
        from mpipc import resource_tracker
        from mpipc.shared_memory import SharedMemory
        before = resource_tracker.register
        resource_tracker.register = lambda name, rtype: before(name, rtype) if {passes_on} else None
        segment = SharedMemory(create=True, size=10)
        print(segment.name)
        """
    name = run_script(script).stdout.strip()
    if passes_on:
        wait_until(lambda: not exists(name))
        return
    segment = SharedMemory(name)
    segment.close()
    segment.unlink()


def test_the_rest_is_multiprocessings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracker._resource_tracker is standard._resource_tracker  # type: ignore[attr-defined]
    assert tracker.getfd == standard.getfd and tracker._CLEANUP_FUNCS is standard._CLEANUP_FUNCS  # type: ignore[attr-defined]
    monkeypatch.setattr(tracker, "_set_by_test", 1, raising=False)
    assert standard._set_by_test == 1  # type: ignore[attr-defined]
    monkeypatch.setattr(tracker, "ensure_running", print)
    assert standard.ensure_running is print and tracker.ensure_running is print
    monkeypatch.undo()
    assert not hasattr(standard, "_set_by_test") and tracker.ensure_running is standard.ensure_running is not print
    assert set(dir(standard)) <= set(dir(tracker))
    assert mpipc.resource_tracker is tracker


def test_installed() -> None:
    run_script(
        """
        from multiprocessing.resource_tracker import unregister
        import multiprocessing
        import mpipc
        mpipc.install()
        from multiprocessing import resource_tracker, shared_memory
        assert resource_tracker.unregister is unregister and unregister.__module__ == "mpipc.resource_tracker"
        segment = shared_memory.SharedMemory(create=True, size=1)
        unregister(segment._name, "shared_memory")
        segment.close()
        segment.unlink()
        resource_tracker.ensure_running = 5
        mpipc.uninstall()
        from multiprocessing import resource_tracker
        assert resource_tracker.__name__ == "multiprocessing.resource_tracker" and resource_tracker.ensure_running == 5
        """
    )

"""A test after which there are kernel objects or processes that were not there before it fails.

Unless they are gone within a few seconds: what a killed process held is removed by the reaper, which takes its time.
Not counted is what lives as long as pytest: its own family's segment, semaphore sets and reaper, and the fork server
and resource tracker that multiprocessing starts once a process. A test that has to leave something says why:
`@pytest.mark.leftovers(reason="...")`.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from support import (
    TEST_ID_VARIABLE,
    KernelObjects,
    ProcessInfo,
    descendants,
    dump_stacks,
    ipc_namespace,
    kernel_objects,
    kernel_rows,
    kill_process,
    processes,
)

from plugins.isolation import RUN_ID_VARIABLE, State, is_worker

SETTLE_TIME = 5.0
"""Seconds that asynchronous clean-up may take after a test before what is left counts as left behind."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leftovers(reason): the test may leave kernel objects or processes behind")


class _Snapshot:
    """What existed before a test."""

    def __init__(self, test_id: str) -> None:
        self.test_id = test_id
        self.namespace = ipc_namespace()
        self.objects = kernel_objects() if State.isolated else None
        self.processes = {(process.pid, process.start) for process in self._ours()}

    def _ours(self) -> list[ProcessInfo]:
        """Processes that this test or an earlier one in this process may have started.

        Descendants; orphans that were executed, by their environment; orphans that were only forked, whose environment
        is that of pytest, by their IPC namespace, if it is not everybody's.
        """
        everything = processes()
        found = {process.pid: process for process in descendants(among=everything)}
        for process in everything.values():
            if process.pid in found or process.pid == os.getpid():
                continue
            if process.environment().get(TEST_ID_VARIABLE) == self.test_id or (
                State.isolated and not State.controller and process.ipc_namespace() == self.namespace
            ):
                found[process.pid] = process
        return list(found.values())

    def left_processes(self) -> list[ProcessInfo]:
        return [
            process
            for process in _without_own_reaper(self._ours())
            if (process.pid, process.start) not in self.processes and not _lives_as_long_as_pytest(process)
        ]

    def left_objects(self) -> KernelObjects:
        if self.objects is None:
            return KernelObjects(frozenset(), frozenset(), frozenset())
        return kernel_objects().minus(self.objects, _infrastructure())


def _infrastructure() -> dict[str, set[int]]:
    """Kernel objects of the families that this process is a member of."""
    try:
        from mpipc._core import infrastructure
    except ImportError:
        return {}
    return infrastructure()


def _lives_as_long_as_pytest(process: ProcessInfo) -> bool:
    """multiprocessing's helpers, started once by a process that needs them; not what they start in turn."""
    if process.ppid != os.getpid() or process.state == "Z":
        return False
    command = process.command()
    return ".forkserver import main" in command or ".resource_tracker import main" in command


def _without_own_reaper(found: list[ProcessInfo]) -> list[ProcessInfo]:
    """Leave out one reaper, the oldest, if this process is a member of a family; every other one must go away."""
    if not any(_infrastructure().values()):
        return found
    reapers = [process for process in found if process.name == "mpipc-reaper"]
    own = min(reapers, key=lambda process: process.start, default=None)
    return [process for process in found if process is not own]


def _settle(snapshot: _Snapshot) -> tuple[KernelObjects, list[ProcessInfo]]:
    """Wait for clean-up that is under way; return what is left at the end."""
    deadline = time.monotonic() + SETTLE_TIME
    pause = 0.002
    while True:
        multiprocessing.active_children()  # reaps those that have ended and were not joined
        left = snapshot.left_objects(), snapshot.left_processes()
        if not (left[0].count or left[1]) or time.monotonic() >= deadline:
            return left
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def _remove(objects: KernelObjects, left: list[ProcessInfo]) -> None:
    """Take away what a test left, so that it is not counted again and does not disturb the next one."""
    for process in left:
        if process.state == "Z":
            with contextlib.suppress(OSError):
                os.waitpid(process.pid, 0)
        else:
            kill_process(process)
            with contextlib.suppress(OSError):
                if process.ppid == os.getpid():
                    os.waitpid(process.pid, 0)
    for kind, option in (("msg", "-q"), ("sem", "-s"), ("shm", "-m")):
        for number in getattr(objects, kind):
            if number in kernel_rows(kind):
                os.spawnlp(os.P_WAIT, "ipcrm", "ipcrm", option, str(number))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What there is now, thousands of tests above all, is nobody's leftover: the collections after each test pass over
    it. They were most of the time that all tests took."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    os.environ[TEST_ID_VARIABLE] = f"{os.environ[RUN_ID_VARIABLE]}:{os.getpid()}:{item.nodeid}"
    item.stash[_SNAPSHOT] = _Snapshot(os.environ[TEST_ID_VARIABLE])
    yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    try:
        yield  # all fixtures of the test are finished after this
    finally:
        os.environ.pop(TEST_ID_VARIABLE, None)
        _check_leftovers(item)


def _check_leftovers(item: pytest.Item) -> None:
    snapshot = item.stash.get(_SNAPSHOT, None)
    if snapshot is None:
        return
    # References that would keep objects alive: the values of fixtures, and the frames of a failed test.
    getattr(item, "funcargs", {}).clear()
    if item.stash.get(_FAILED, False):
        for name in ("last_exc", "last_value", "last_traceback", "last_type"):
            if hasattr(sys, name):
                delattr(sys, name)
    gc.collect()
    objects, left = _settle(snapshot)
    if not objects.count and not left:
        return
    marker = item.get_closest_marker("leftovers")
    description = "\n  ".join([*objects.describe(), *(process.describe() for process in left)])
    stacks = dump_stacks(process.pid for process in left)
    _remove(objects, left)
    if marker is None:
        pytest.fail(f"left behind by this test:\n  {description}\n{stacks}".rstrip(), pytrace=False)
    if not str(marker.kwargs.get("reason", "")).strip():
        pytest.fail("the marker `leftovers` needs reason='...'", pytrace=False)


_SNAPSHOT = pytest.StashKey[_Snapshot]()
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """What outlived the whole session: processes of crashed workers; objects, where no test could be checked alone."""
    if is_worker(session.config):
        return
    deadline = time.monotonic() + SETTLE_TIME
    while True:
        stray, objects = _stray_processes(), _stray_objects()
        if not (stray or objects.count) or time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    for process in stray:
        print(f"left behind by the session, killed: {process.describe()}", file=State.terminal)
        kill_process(process)
    for line in objects.describe():
        print(f"left behind by the session: {line}", file=State.terminal)
    if (stray or objects.count) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _stray_processes() -> list[ProcessInfo]:
    """Orphans of this run: of a crashed worker, or of a worker's child where namespaces are not permitted."""
    everything = processes()
    known = {os.getpid(), *(process.pid for process in descendants(among=everything))}
    run = os.environ[RUN_ID_VARIABLE]
    return _without_own_reaper(
        [
            process
            for process in everything.values()
            if process.pid not in known and process.environment().get(RUN_ID_VARIABLE) == run
        ]
    )


def _stray_objects() -> KernelObjects:
    if State.isolated or State.before_session is None:
        return KernelObjects(frozenset(), frozenset(), frozenset())
    return kernel_objects(uid=os.geteuid()).minus(State.before_session, _infrastructure())

"""What holds for every test: its own IPC namespace, nothing left behind, and stacks when it hangs.

**Namespace.** Each pytest-xdist worker, or pytest itself when it runs alone, moves into an IPC namespace of its own
where that is permitted (see privileges.py). Then the check below is exact. Where it is not permitted the machine's
namespace is shared with everybody, nobody can tell whose an object is, and objects are counted once, for the whole
session, by the process that started it. The first lines of the output say which of the two it is.

**Leftovers.** A test after which there are kernel objects or processes that were not there before it fails, unless
they are gone within a few seconds (what a killed process held is removed by the reaper, which takes its time). Not
counted is what lives as long as pytest: its own family's segment, semaphore sets and reaper, and the fork server and
resource tracker that multiprocessing starts once a process. A test that has to leave something says why:
`@pytest.mark.leftovers(reason="...")`.

**Hanging.** pytest-timeout dumps the stacks of all threads of pytest's process and ends it. Just before, the processes
that the test has started are listed with the kernel function they sleep in, and with Python stacks if py-spy is
installed; they get SIGUSR1 if they have faulthandler on it (all forked children have); then they are killed.
"""

from __future__ import annotations

import _multiprocessing
import contextlib
import faulthandler
import gc
import importlib.machinery
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from support import (
    START_METHODS,
    TEST_ID_VARIABLE,
    KernelObjects,
    ProcessInfo,
    descendants,
    dump_stacks,
    ipc_namespace,
    kernel_objects,
    kernel_rows,
    kill_process,
    package_folder,
    processes,
)
from support.privileges import isolate_ipc

SETTLE_TIME = 5.0
"""Seconds that asynchronous clean-up may take after a test before what is left counts as left behind."""

RUN_ID_VARIABLE = "MPIPC_TEST_RUN"

ROOT = Path(__file__).resolve().parent.parent


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """Each of multiprocessing's start methods in turn."""
    return str(request.param)


@pytest.fixture
def ctx(start_method: str) -> Any:
    """`mpipc.get_context(...)` for each start method in turn."""
    import mpipc

    return mpipc.get_context(start_method)


@pytest.fixture
def pool(ctx: Any) -> Iterator[Any]:
    """A pool of one worker, so that a call meets what the one before left; closed and joined afterwards."""
    made = ctx.Pool(1)
    try:
        yield made
    finally:
        made.close()
        made.join()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kill-rounds", type=int, default=200, help="rounds of killing in test_queues_killed.py (default: 200)"
    )


# --- set-up -----------------------------------------------------------------------------------------------------------


class _State:
    """What the hooks below share; one instance a process."""

    isolated = False
    controller = False
    terminal: TextIO = sys.__stderr__  # type: ignore[assignment]
    before_session: KernelObjects | None = None


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leftovers(reason): the test may leave kernel objects or processes behind")
    config.addinivalue_line("markers", "compares: the test runs the standard library's multiprocessing beside mpipc")
    if not _is_worker(config):
        os.environ[RUN_ID_VARIABLE] = uuid.uuid4().hex
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Inherited from a shell that runs us in the background; the tests press Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    _State.controller = not _is_worker(config) and config.getoption("dist", "no") != "no"
    _State.isolated = isolate_ipc(parent_of_workers=_State.controller)
    if not _is_worker(config):
        _State.before_session = kernel_objects(uid=os.geteuid())
    _State.terminal = _uncaptured_stderr(config)
    faulthandler.register(signal.SIGUSR1, file=_State.terminal, all_threads=True)


def _why_multiprocessing_fails() -> str:
    """Empty where the standard library's locks work: they need a /dev/shm that can be written."""
    try:
        _multiprocessing.SemLock(1, 0, 1, f"/mpipc-test-{os.getpid()}", True)
    except OSError as e:
        return f"multiprocessing does not work here: {e}"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := _why_multiprocessing_fails():
        for item in items:
            if item.get_closest_marker("compares"):
                item.add_marker(pytest.mark.skip(reason=reason))


def _uncaptured_stderr(config: pytest.Config) -> TextIO:
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
        return os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")


def pytest_report_header(config: pytest.Config) -> list[str]:
    if _State.isolated:
        isolation = "a namespace of its own for every process that runs tests, checked after each test"
    else:
        isolation = "no permission to make a namespace: the machine's is used, and checked once, at the end"
    lines = [f"ipc: {isolation}", f"mpipc: {package_folder() or 'not found'}"]
    stale = _stale_modules()
    if stale:
        lines.append(f"mpipc: NOT BUILT or older than its source (run make build): {', '.join(stale)}")
    return lines


def _stale_modules() -> list[str]:
    """The compiled modules of the source tree that the package under test does not have in their present state."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    package = package_folder() or ROOT / "mpipc"
    stale = []
    for source in sorted((ROOT / "mpipc").rglob("*.pyx")):
        inputs = [source, *source.parent.glob("*.pxd")]
        if source.parent.name != "sysv":
            inputs += (ROOT / "mpipc/_core/src").glob("*.[ch]")
        built = (package / source.relative_to(ROOT / "mpipc")).with_name(source.stem + suffix)
        if not built.exists() or built.stat().st_mtime < max(path.stat().st_mtime for path in inputs):
            stale.append(".".join(source.relative_to(ROOT).with_suffix("").parts))
    return stale


# --- leftovers --------------------------------------------------------------------------------------------------------


class _Snapshot:
    """What existed before a test."""

    def __init__(self, test_id: str) -> None:
        self.test_id = test_id
        self.namespace = ipc_namespace()
        self.objects = kernel_objects() if _State.isolated else None
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
                _State.isolated and not _State.controller and process.ipc_namespace() == self.namespace
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
    if _is_worker(session.config):
        return
    deadline = time.monotonic() + SETTLE_TIME
    while True:
        stray, objects = _stray_processes(), _stray_objects()
        if not (stray or objects.count) or time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    for process in stray:
        print(f"left behind by the session, killed: {process.describe()}", file=_State.terminal)
        kill_process(process)
    for line in objects.describe():
        print(f"left behind by the session: {line}", file=_State.terminal)
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
    if _State.isolated or _State.before_session is None:
        return KernelObjects(frozenset(), frozenset(), frozenset())
    return kernel_objects(uid=os.geteuid()).minus(_State.before_session, _infrastructure())


# --- stacks of the children when a test hangs -------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """In place of pytest-timeout's own timer, which would leave the children running when it ends the process.

    The timer is a thread and needs the GIL. Where a C function never lets go of it, faulthandler, which needs nothing,
    ends the process a little later.
    """
    timer = threading.Timer(settings.timeout, _time_out, [item, settings])
    timer.daemon = True
    timer.name = "timeout"
    faulthandler.dump_traceback_later(settings.timeout + 30, exit=True, file=_State.terminal)

    def cancel() -> None:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    timer.start()
    # Until it sleeps: what it allocates may be under a lock when the test forks, which glibc looks after and the
    # address sanitizer (of gcc 12) does not. Then the child waits for a thread that it does not have.
    while not timer.finished._cond._waiters:  # type: ignore[attr-defined]
        time.sleep(0)
    return True


def _time_out(item: pytest.Item, settings: Any) -> None:
    import pytest_timeout

    children = descendants()
    print(f"\n--- {item.nodeid} timed out after {settings.timeout:g} s", file=_State.terminal)
    faulthandler.dump_traceback(_State.terminal, all_threads=True)
    print(f"--- its {len(children)} processes:", file=_State.terminal)
    print(dump_stacks(process.pid for process in children), file=_State.terminal)
    for process in children:
        if _catches(process.pid, signal.SIGUSR1):
            print(f"--- stacks of pid {process.pid}:", file=_State.terminal)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)
    time.sleep(0.5)  # for the children to write their stacks; nothing tells us when they have
    for process in children:
        kill_process(process)
    pytest_timeout.timeout_timer(item, settings)


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler; where it has none, SIGUSR1 would kill it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False

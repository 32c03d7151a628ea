"""Ctrl-C and other signals in every blocking call."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import TESTS, package_folder, processes, run_script, start_script, wait_until

import mpipc

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

CALLS = {
    "Lock.acquire": ("x = mpipc.Lock(); x.acquire()", "x.acquire()", "x.release(); assert x.acquire(False)"),
    "Lock.acquire with a timeout": ("x = mpipc.Lock(); x.acquire()", "x.acquire(timeout=500)", "x.release()"),
    "RLock.acquire": (
        "x = mpipc.RLock(); import threading; t = threading.Thread(target=x.acquire); t.start(); t.join()",
        "x.acquire()",
        "assert x.acquire(False) is False",
    ),
    "Semaphore.acquire": ("x = mpipc.Semaphore(0)", "x.acquire()", "x.release(); assert x.acquire(False)"),
    "Condition.wait": (
        "x = mpipc.Condition(); x.acquire()",
        "x.wait()",
        "x.notify(); x.release(); assert x.acquire(False) and x.wait(0) is False",
    ),
    "Condition.wait_for": (
        "x = mpipc.Condition(); x.acquire(); x.acquire()",
        "x.wait_for(lambda: False, 500)",
        "x.release(); x.release(); assert x.statistics().value == 1",
    ),
    "Event.wait": ("x = mpipc.Event()", "x.wait()", "x.set(); assert x.wait(); x.clear(); assert not x.wait(0)"),
    "Barrier.wait": (
        "x = mpipc.Barrier(2)",
        "x.wait()",
        "import threading; assert not x.broken; t = threading.Thread(target=x.wait); t.start(); x.wait(60); t.join()",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_ends_a_blocking_call_and_harms_nothing(call: str) -> None:
    """KeyboardInterrupt comes while the call sleeps in the kernel, for which the test waits."""
    before, blocking, after = CALLS[call]
    source = f"""
import mpipc
{before}
print("ready", flush=True)
try:
    {blocking}
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert x.statistics().waiters == 0, x.statistics()
{after}
print("fine", flush=True)
"""
    with start_script(source) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "ready\n"
        wait_until(lambda: sleeps_in_semop(script.pid), timeout=30)
        script.send_signal(signal.SIGINT)
        result = script.finish(timeout=30)
    assert (result.stdout, result.returncode) == ("interrupted\nfine\n", 0), result.stderr


def sleeps_in_semop(pid: int) -> bool:
    """Whether its main thread is inside semop or semtimedop; by its state where the system call is not shown."""
    try:
        number = int(Path(f"/proc/{pid}/syscall").read_text().split()[0])
    except (OSError, ValueError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    return number in ((65, 220) if os.uname().machine == "x86_64" else (192, 193, 420))


@pytest.mark.parametrize("call", ["Lock.acquire", "Semaphore.acquire", "Event.wait", "Condition.wait"])
def test_a_handler_that_returns_lets_the_wait_go_on_to_its_deadline(call: str) -> None:
    before, blocking, _ = CALLS[call]
    blocking = blocking.replace("()", "(timeout=0.7)")
    result = run_script(
        f"""
import signal, time, mpipc
handled = []
signal.signal(signal.SIGALRM, lambda *_: handled.append(1))
{before}
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
begin = time.monotonic()
assert {blocking} is False
elapsed = time.monotonic() - begin
signal.setitimer(signal.ITIMER_REAL, 0)
assert elapsed >= 0.7, elapsed
assert handled
"""
    )
    assert result.stderr == ""


def test_a_handler_may_release_what_the_call_waits_for() -> None:
    run_script(
        """
import signal, mpipc
lock, semaphore, event, condition = mpipc.Lock(), mpipc.Semaphore(0), mpipc.Event(), mpipc.Condition()

def alarm(call):
    signal.signal(signal.SIGALRM, lambda *_: call())
    signal.setitimer(signal.ITIMER_REAL, 0.02)

lock.acquire()
alarm(lock.release); assert lock.acquire()
alarm(semaphore.release); assert semaphore.acquire()
alarm(event.set); assert event.wait()
def notify():
    with condition:
        condition.notify()
with condition:
    alarm(notify); assert condition.wait()
"""
    )


def test_a_child_forked_by_a_handler_does_not_disturb_its_parents_wait() -> None:
    run_script(
        """
import os, signal, mpipc
semaphore, condition = mpipc.Semaphore(0), mpipc.Condition()
children = []

def fork(*_):
    child = os.fork()
    if child == 0:
        raise SystemExit(3)
    children.append(child)
    os.waitpid(child, 0)
    with condition:
        condition.notify()
    semaphore.release()

signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.02)
try:
    assert semaphore.acquire()
    with condition:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert condition.wait(60)
except SystemExit:
    os._exit(0)
assert semaphore.statistics().waiters == 0
assert len(children) == 2
"""
    )


PROGRAM = """
import os, sys, time
import mpipc

def work(lock, event):
    try:
        event.wait()
    except KeyboardInterrupt:
        sys.exit(5)

if __name__ == "__main__":
    ctx = mpipc.get_context(sys.argv[1])
    lock, event = ctx.Lock(), ctx.Event()
    children = [ctx.Process(target=work, args=(lock, event)) for _ in range(2)]
    for child in children: child.start()
    from mpipc import _core as family
    while event.statistics().waiters < 2 or not family.current().has_reaper():
        time.sleep(0.01)
    print("READY", flush=True)
    lock.acquire()
    try:
        lock.acquire()
    except KeyboardInterrupt:
        for child in children: child.join()
        print("EXITCODES", [child.exitcode for child in children], flush=True)
        print("REAPER", family.current().has_reaper(), flush=True)
        sys.stdin.readline()
    print("END", flush=True)
"""


def test_ctrl_c_in_a_terminal(start_method: str, tmp_path: Any) -> None:
    """The whole foreground process group gets SIGINT. Nothing is printed but by the program, and the reaper stays."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        environment = {**os.environ, "PYTHONPATH": f"{package_folder().parent}:{TESTS}"}  # type: ignore[union-attr]
        os.execve(sys.executable, [sys.executable, str(script), start_method], environment)
    output = b""

    def read_until(word: bytes) -> None:
        nonlocal output
        deadline = time.monotonic() + 60
        while word not in output:
            assert time.monotonic() < deadline, output
            try:
                output += os.read(terminal, 4096)
            except OSError:
                raise AssertionError(output) from None

    try:
        read_until(b"READY")
        wait_until(lambda: sleeps_in_semop(pid), timeout=30)
        os.write(terminal, b"\x03")
        read_until(b"REAPER True")
        os.write(terminal, b"\n")
        read_until(b"END")
        _, status = os.waitpid(pid, 0)
        assert status == 0, output
    finally:
        os.close(terminal)
        for process in processes().values():
            if process.session == pid:
                os.kill(process.pid, signal.SIGKILL)
    text = output.decode().replace("\r", "").replace("^C", "")
    assert text.split() == ["READY", "EXITCODES", "[5,", "5]", "REAPER", "True", "END"]


# --- attaching --------------------------------------------------------------------------------------------------------


def _wait_in(primitive: Any, name: str) -> None:
    getattr(primitive, name)()


@pytest.mark.skipif(not hasattr(sys, "remote_exec"), reason="sys.remote_exec() is of Python 3.14")
@pytest.mark.parametrize(
    ("make", "name"),
    [(mpipc.Lock, "acquire"), (lambda: mpipc.Semaphore(0), "acquire"), (mpipc.Event, "wait"), (mpipc.Queue, "get")],
    ids=["Lock", "Semaphore", "Event", "Queue"],
)
def test_a_process_that_waits_runs_what_is_sent_to_it(make: Any, name: str, tmp_path: Path) -> None:
    """multiprocessing's would not, before it has what it waits for: all but get() look up once a second here."""
    primitive = make()
    if name == "acquire" and hasattr(primitive, "owner_died"):
        assert primitive.acquire()
    process = mpipc.get_context("fork").Process(target=_wait_in, args=(primitive, name))
    process.start()
    waiters = "waiting_readers" if name == "get" else "waiters"
    wait_until(lambda: getattr(primitive.statistics(), waiters) == 1, timeout=30)
    script, answer = tmp_path / "script.py", tmp_path / "answer"
    script.write_text(f"import os, pathlib; pathlib.Path({str(answer)!r}).write_text(str(os.getpid()))")
    sys.remote_exec(process.pid, str(script))  # type: ignore[attr-defined]
    if name == "get":  # it sleeps in msgrcv(2), as multiprocessing's in read(2), and looks up when there is something
        primitive.put(None)
    try:
        wait_until(lambda: answer.exists() and answer.read_text() == str(process.pid), timeout=30)
    finally:
        process.kill()
        process.join()
        if name == "acquire" and hasattr(primitive, "owner_died"):
            primitive.release()

"""What WorkerLostError, TaskTimeoutError and statistics() say about why and where.

pytest uses faulthandler itself, which mpipc leaves alone then: what reports it are programs of their own.
"""

from __future__ import annotations

import pickle
import textwrap
from pathlib import Path
from typing import Any

import pytest
from support import pool_tasks as tasks
from support import run_script

from mpipc import TaskTimeoutError, WorkerLostError
from mpipc._pool.losses import OutOfMemoryKills, crash_of, killed_by_kernel

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; test_pool.py and test_pool_calls.py have it

MB = 1 << 20

PROGRAM = """
    import os, re, signal, sys, threading
    import mpipc
    from support import pool_tasks as tasks

    def lost(call, *arguments, **options):
        try:
            pool.apply(call, arguments, **options)
        except Exception as error:
            return error
        raise AssertionError("nothing was lost")

    def deeper(address):
        tasks.read_address(address)

    def crash_in_a_thread(address):
        thread = threading.Thread(target=tasks.read_address, args=(address,))
        thread.start()
        thread.join()

    if __name__ == "__main__":
        with mpipc.get_context({method!r}).Pool(1) as pool:
    """


def program(method: str, body: str) -> Any:
    """Run a program whose `pool`, of one worker, the body uses."""
    source = textwrap.dedent(PROGRAM).format(method=method) + textwrap.indent(body.strip(), " " * 8)
    return run_script(source, env={"PYTHONFAULTHANDLER": ""})


def test_a_crash_says_where(start_method: str) -> None:
    program(
        start_method,
        """
for call in (tasks.read_address, deeper, crash_in_a_thread):
    error = lost(call, 16)
    assert isinstance(error, mpipc.WorkerLostError) and error.signal == "SIGSEGV"
    assert re.fullmatch(r"segmentation fault in string_at \\(.*ctypes.__init__.py:[0-9]+\\)", error.explanation), error
    assert f"was killed by SIGSEGV ({error.explanation}) while it was running" in str(error)
    assert error.peak is None if METHOD == "forkserver" else error.peak > 1 << 20
error = lost(os.abort)
assert error.signal == "SIGABRT" and error.explanation.startswith("abort in "), error
assert pool.apply(tasks.square, (3,)) == 9
""".replace("METHOD", repr(start_method)),
    )


def test_what_is_no_crash_is_not_called_one(start_method: str) -> None:
    program(
        start_method,
        """
for call, argument, text in (
    (os._exit, 3, "exited with code 3"), (sys.exit, 4, "exited with code 4"),
    (tasks.die, signal.SIGKILL, "was killed by SIGKILL"), (tasks.die, signal.SIGUSR1, "was killed by SIGUSR1"),
):
    error = lost(call, argument)
    assert error.explanation is None and text in str(error) and "(" not in str(error).partition("while")[0], error
""",
    )


@pytest.mark.parametrize(
    ("call", "frame"),
    [("tasks.spin", "in spin"), ("tasks.sum_in_c", "in sum_in_c"), ("tasks.sleep_on", "in sleep_on")],
)
def test_a_task_that_is_late_says_where_it_was(start_method: str, call: str, frame: str) -> None:
    """A loop in Python, one in C that keeps the GIL, and a sleep."""
    program(
        start_method,
        f"""
for _ in range(10):
    error = lost({call}, None, timeout=1.0)
    assert isinstance(error, mpipc.TaskTimeoutError) and "did not end within 1 s" in str(error)
    if error.stack is None:
        continue  # on a busy machine, the thread that was to write it had not come to that
    frames = error.stack.splitlines()
    assert {frame!r} in frames[1] and "pool_tasks.py" in frames[1] and len(frames) == 2, error.stack
    assert any(error.stack in note for note in error.__notes__) and error.stack not in str(error)
    break
else:
    raise AssertionError("no stack")
""",
    )


def test_statistics_have_the_stack_of_a_task_that_is_about_to_be_late(start_method: str) -> None:
    program(
        start_method,
        """
result = pool.apply_async(tasks.spin, (None,), timeout=3.0)
seen = None
while not result.ready():
    for worker in pool.statistics().workers:
        seen = worker.stack or seen
assert "in spin" in seen, seen
assert pool.apply(tasks.square, (3,)) == 9
assert not any(worker.stack for worker in pool.statistics().workers)
""",
    )


def test_a_timed_task_that_ends_in_time_leaves_no_stack_behind(start_method: str) -> None:
    program(
        start_method,
        """
assert [pool.apply(tasks.square, (x,), timeout=30) for x in range(100)] == [x * x for x in range(100)]
assert pool.map(tasks.square, range(100), timeout=30) == [x * x for x in range(100)]
assert pool.apply(bytes, (1 << 20,), timeout=30) == bytes(1 << 20)
assert [worker.stack for worker in pool.statistics().workers] == [None]
error = lost(os._exit, 1)
assert error.explanation is None
""",
    )


def test_a_program_that_uses_faulthandler_keeps_it() -> None:
    result = program(
        "fork",
        """
import faulthandler
assert not faulthandler.is_enabled()
faulthandler.enable()
for process in pool._pool:
    process.kill()
    process.join()
error = lost(tasks.read_address, 16)
assert error.signal == "SIGSEGV" and error.explanation is None
""",
    )
    assert "Fatal Python error: Segmentation fault" in result.stderr


def test_the_peak_of_a_worker(ctx: Any) -> None:
    with ctx.Pool(1) as pool:
        assert pool.apply(tasks.allocate, (-100 * MB,)) == 100 * MB
        with pytest.raises(WorkerLostError) as caught:
            pool.apply(tasks.leave, (3,))
    error = caught.value
    if ctx.get_start_method() == "forkserver":
        assert error.peak is None  # it is no child of this process
    else:
        assert error.peak is not None and error.peak > 100 * MB and f"{error.peak / 1e6:.0f} MB" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.peak == error.peak


def test_errors_can_be_pickled() -> None:
    late = pickle.loads(pickle.dumps(TaskTimeoutError("f did not end", stack="File x")))
    assert (str(late), late.stack, late.__notes__) == ("f did not end", "File x", ["Where it was then:\nFile x"])
    assert TaskTimeoutError("f").stack is None
    lost = pickle.loads(pickle.dumps(WorkerLostError(1, -9, "f", 2, 3, "probably by an owl", 7)))
    assert (lost.explanation, lost.peak) == ("probably by an owl", 7)


# --- the parts --------------------------------------------------------------------------------------------------------

REPORT = """\
Fatal Python error: Segmentation fault

Thread 0x00007f5a8d1fe6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/usr/lib/python3.11/threading.py", line 1045 in _bootstrap_inner

Current thread 0x00007f5a8e2b0740 [worker] (most recent call first):
  File "/home/user/program, with comma.py", line 12 in Table.<listcomp>
  File "/home/user/program.py", line 30 in read

Extension modules: numpy.core._multiarray_umath, numpy.linalg (total: 2)
"""


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (REPORT, "segmentation fault in Table.<listcomp> (/home/user/program, with comma.py:12)"),
        (REPORT.replace("Segmentation fault", "Bus error"), "bus error in Table.<listcomp>"),
        ("Timeout (0:00:01)!\nThread 0x1 (most recent call first):\n" + REPORT, "segmentation fault in Table"),
        ("Fatal Python error: Aborted\n\n<no Python frame>\n", "abort"),
        ("Fatal Python error: none_dealloc: deallocating None\n", "none_dealloc: deallocating none"),
        ("Thread 0x1 (most recent call first):\n", None),
        ("", None),
    ],
)
def test_what_a_report_says(report: str, text: str | None) -> None:
    found = crash_of(report)
    assert found is None if text is None else found is not None and found.startswith(text)


def test_kills_in_the_cgroup_are_counted(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 17\noom 2\noom_kill 1\noom_group_kill 0\n")
    kills = OutOfMemoryKills(str(events))
    assert not kills.happened()
    events.write_text("low 0\nhigh 0\nmax 19\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert kills.happened() and not kills.happened()
    events.unlink()
    assert not kills.happened()
    assert not OutOfMemoryKills(str(tmp_path / "none")).happened()


def test_the_kernel_s_log_names_whom_it_has_killed() -> None:
    log = [
        "6,1,2,-;python invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n",
        "3,1,3,-;Memory cgroup out of memory: Killed process 4711 (python) total-vm:2136456kB, anon-rss:511876kB\n",
        "3,1,4,-;Out of memory: Killed process 4712 (python3.14) total-vm:9kB, anon-rss:5kB, UID:0 pgtables:1kB\n",
    ]
    assert killed_by_kernel(4711, log) and killed_by_kernel(4712, log)
    assert not killed_by_kernel(471, log) and not killed_by_kernel(47110, log) and not killed_by_kernel(4711, [])

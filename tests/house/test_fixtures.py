"""The checks in plugins/ and the helpers in support/ do notice what they are there to notice.

Each test runs pytest with our conftest.py on a file of its own, in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import (
    NOBODY,
    TESTS,
    ScriptTimeout,
    can_become,
    child_processes,
    kernel_objects,
    run_script,
    start_script,
    wait_until,
)

CONFTEST = TESTS / "conftest.py"

LIBC = """
import ctypes, os, signal, subprocess, sys, time
import pytest
libc = ctypes.CDLL(None, use_errno=True)
"""


def run_pytest(folder: Path, source: str, *options: str, timeout: float = 60) -> str:
    """The output of a pytest run in `folder` on one file, by way of our conftest.py."""
    (folder / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(CONFTEST.parent)!r})\n"
        f"exec(compile(open({str(CONFTEST)!r}).read(), {str(CONFTEST)!r}, 'exec'))\n"
        "def pytest_configure():\n"
        "    from plugins import leftovers\n"
        "    leftovers.SETTLE_TIME = 0.5\n"
    )
    (folder / "test_inner.py").write_text(LIBC + source)
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *options, str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        cwd=folder,
        env=environment,
    )
    return f"{result.stdout}\nexit status {result.returncode}"


def isolated(output: str) -> bool:
    return "ipc: a namespace of its own" in output


@pytest.mark.parametrize(
    ("call", "kind"), [("msgget(0, 0o600)", "msg"), ("semget(0, 1, 0o600)", "sem"), ("shmget(0, 4096, 0o600)", "shm")]
)
def test_a_kernel_object_left_behind_fails_the_test(tmp_path: Path, call: str, kind: str) -> None:
    output = run_pytest(
        tmp_path,
        f"""
def test_leaves(): assert libc.{call} >= 0
def test_next(): pass
""",
    )
    if not isolated(output):
        # In a namespace that is shared with others, the session is blamed as a whole, and nothing is taken away.
        (ident,) = re.findall(rf"left behind by the session: {kind} (\d+): key=0 .*perms=0o600 ", output)
        subprocess.run(["ipcrm", {"msg": "-q", "sem": "-s", "shm": "-m"}[kind], ident], check=True)
        assert "2 passed" in output and "exit status 1" in output
        return
    assert "ERROR test_inner.py::test_leaves - Failed: left behind by this test" in output
    assert f"{kind} 0: key=0" in output
    assert "2 passed, 1 error" in output, "the second test is not blamed for the first one's object"
    assert "exit status 1" in output


@pytest.mark.parametrize(
    "start",
    [
        pytest.param("subprocess.Popen(['sleep', '1000'])", id="child"),
        pytest.param("os.fork() or time.sleep(1000)", id="forked child"),
        pytest.param("os.fork() or os._exit(0)", id="zombie"),
        pytest.param("subprocess.run('sleep 1000 & ', shell=True, start_new_session=True)", id="orphan"),
    ],
)
def test_a_process_left_behind_fails_the_test(tmp_path: Path, start: str) -> None:
    output = run_pytest(tmp_path, f"def test_leaves(): {start}\ndef test_next(): pass\n")
    assert "ERROR test_inner.py::test_leaves - Failed: left behind by this test" in output
    assert "2 passed, 1 error" in output
    assert "exit status 1" in output


@pytest.mark.slow
def test_an_orphan_that_was_only_forked_is_found(tmp_path: Path) -> None:
    output = run_pytest(
        tmp_path,
        """
def test_leaves():
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(write, b".")
        time.sleep(1000)
    os.waitpid(child, 0)
    os.read(read, 1)
""",
        "-n1",
    )
    assert "exit status 1" in output
    expected = "left behind by this test" if isolated(output) else "left behind by the session"
    assert expected in output


def test_clean_up_that_takes_a_moment_is_waited_for(tmp_path: Path) -> None:
    output = run_pytest(
        tmp_path,
        """
@pytest.fixture
def object_of_a_fixture():
    ident = libc.msgget(0, 0o600)
    yield
    libc.msgctl(ident, 0, None)

def test_tidy(object_of_a_fixture):
    ident = libc.msgget(0, 0o600)
    if os.fork() == 0:
        time.sleep(0.1)
        libc.msgctl(ident, 0, None)
        os._exit(0)
    subprocess.run(["sh", "-c", "sleep 0.2 &"])
    import threading
    threading.Thread(target=os.wait).start()
""",
    )
    assert "1 passed" in output
    assert "error" not in output


def test_opting_out_needs_a_reason(tmp_path: Path) -> None:
    output = run_pytest(
        tmp_path,
        """
@pytest.mark.leftovers(reason="shows that it is possible")
def test_with(): subprocess.Popen(["sleep", "1000"])
@pytest.mark.leftovers
def test_without(): subprocess.Popen(["sleep", "1000"])
""",
    )
    assert "2 passed, 1 error" in output
    assert "the marker `leftovers` needs reason='...'" in output


def test_a_failing_test_is_not_blamed_for_what_its_traceback_holds(tmp_path: Path) -> None:
    output = run_pytest(
        tmp_path,
        """
class Owner:
    def __init__(self): self.ident = libc.msgget(0, 0o600)
    def __del__(self): libc.msgctl(self.ident, 0, None)

@pytest.fixture
def owner(): return Owner()

def test_fails(owner):
    mine = Owner()
    assert owner is mine
""",
    )
    assert "1 failed" in output
    assert "error" not in output.splitlines()[-3]


@pytest.mark.slow
def test_each_worker_has_a_namespace_of_its_own(tmp_path: Path) -> None:
    output = run_pytest(
        tmp_path,
        """
@pytest.mark.parametrize("number", range(6))
def test_alone(number, worker_id):
    with open(f"{worker_id}", "a") as file: file.write(os.readlink("/proc/thread-self/ns/ipc") + chr(10))
""",
        "-n2",
        "--dist=each",
    )
    if not isolated(output):
        pytest.skip("no permission to make an IPC namespace")
    assert "12 passed" in output
    seen = [set((tmp_path / name).read_text().split()) for name in ("gw0", "gw1")]
    ours = {os.readlink("/proc/thread-self/ns/ipc")}
    assert len(seen[0]) == len(seen[1]) == 1
    assert len(seen[0] | seen[1] | ours) == 3


def test_a_hanging_test_shows_the_stacks_of_its_children(tmp_path: Path) -> None:
    output = run_pytest(
        tmp_path,
        """
def child_waits_here():
    while True: time.sleep(1000)

def test_hangs():
    if os.fork() == 0:
        os.setpgid(0, 0)
        child_waits_here()
    os.wait()
""",
        "--timeout=3",
    )
    assert "test_hangs timed out after 3 s" in output
    assert "its 1 processes" in output
    assert "in child_waits_here" in output
    assert "in test_hangs" in output
    assert "exit status 1" in output


# --- helpers ----------------------------------------------------------------------------------------------------------


def test_wait_until_returns_the_value_or_fails() -> None:
    assert wait_until(lambda: "value") == "value"
    with pytest.raises(AssertionError, match=r"still not true after 0.01 s: the moon \(last value \[\]\)"):
        wait_until(list, timeout=0.01, message="the moon")


def test_run_script_gives_output_and_status() -> None:
    result = run_script(
        """
        import sys
        print(sys.argv[1], sys.stdin.read())
        sys.exit(3)
        """,
        arguments=["one"],
        input="two",
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (3, "one two\n", "")
    with pytest.raises(AssertionError, match=r"(?s)script ended with 1\n.*ZeroDivisionError"):
        run_script("1 / 0")


def test_a_script_that_hangs_is_killed_with_its_children_and_shows_where() -> None:
    before = {process.pid for process in child_processes()}  # the fork server of another test, say
    with pytest.raises(ScriptTimeout) as caught:
        run_script(
            """
            import subprocess, sys
            print("started", flush=True)
            subprocess.run(["sleep", "1234"])
            """,
            timeout=1,
        )
    assert "sleep 1234" in str(caught.value)
    assert "--- stdout\nstarted\n" in str(caught.value)
    assert {process.pid for process in child_processes()} == before


def test_start_script_can_be_talked_with() -> None:
    with start_script("for line in __import__('sys').stdin: print(line.upper(), end='', flush=True)") as script:
        assert script.stdin is not None and script.stdout is not None
        script.stdin.write("ping\n")
        script.stdin.flush()
        assert script.stdout.readline() == "PING\n"


def test_kernel_objects_sees_what_ipcmk_makes() -> None:
    before = kernel_objects()
    output = subprocess.run(["ipcmk", "-Q"], capture_output=True, text=True, check=True).stdout
    ident = int(output.split()[-1])
    made = kernel_objects().minus(before)
    assert ident in made.msg
    assert any(line.startswith(f"msg {ident}: key=") for line in made.describe())
    subprocess.run(["ipcrm", "-q", str(ident)], check=True)
    assert ident not in kernel_objects().msg
    assert made.minus({"msg": {ident}}).minus(kernel_objects()).count == 0


@pytest.mark.skipif(not can_become(), reason="needs root, to become somebody else")
def test_an_unprivileged_script_reads_files_and_is_refused_objects() -> None:
    private = run_script(
        """
        import ctypes, errno, os
        libc = ctypes.CDLL(None, use_errno=True)
        ident = libc.shmget(0x6d706970, 4096, 0o1600)
        assert ident >= 0
        print(ident)
        """
    )
    try:
        result = run_script(
            """
            import ctypes, errno, os, sys, json, multiprocessing
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.shmget(0x6d706970, 4096, 0) >= 0  # finding it needs no permission, attaching does
            libc.shmat.restype = ctypes.c_void_p
            attached = libc.shmat(int(sys.argv[1]), None, 0)
            assert attached == ctypes.c_void_p(-1).value and ctypes.get_errno() == errno.EACCES
            open("own-file", "w").close()
            print(os.getuid(), os.geteuid(), os.getgid(), os.getgroups())
            """,
            user=NOBODY,
            arguments=[private.stdout.strip()],
        )
        assert result.stdout == "65534 65534 65534 []\n"
    finally:
        subprocess.run(["ipcrm", "-m", private.stdout.strip()], check=True)

"""python -m mpipc doctor, limits and rm: on this machine, on others (namespaces with other limits), in sandboxes."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import package_folder, run_script
from support.without_undo import WITHOUT_UNDO, can_ignore_undo

can_set_limits = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to change the limits of an IPC namespace")


def command(*arguments: str, wrapper: tuple[str, ...] = (), before: str = "") -> subprocess.CompletedProcess[str]:
    """`python -m mpipc ...`, in a shell that runs `before` first, in a `wrapper`."""
    folder = package_folder()
    assert folder is not None
    run = [sys.executable, "-P", "-m", "mpipc", *arguments]
    if before:
        run = ["sh", "-ec", f'{before}\nexec "$@"', "sh", *run]
    environment = {**os.environ, "PYTHONPATH": str(folder.parent)}
    return subprocess.run(
        [*wrapper, *run], env=environment, capture_output=True, text=True, timeout=120, check=False, cwd="/"
    )


def examined(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The findings of `doctor --json`, by their subject; the exit status says the same."""
    report = json.loads(result.stdout)
    failed = [finding for finding in report["findings"] if finding["status"] == "FAILED"]
    assert report["works"] is not bool(failed)
    assert result.returncode == (1 if failed else 0), result.stderr
    return {finding["subject"]: finding for finding in report["findings"]}


def test_here() -> None:
    found = examined(command("doctor", "--json"))
    assert {"Python", "System V IPC", "SEM_UNDO", "SEMMSL", "SHMALL", "RemoveIPC", "/dev/shm", "leftovers"} <= set(
        found
    )
    assert found["SEM_UNDO"]["value"] is ("ignore_undo" not in Path("/proc/self/maps").read_text())
    for measured in ("lock", "message", "wake-up"):
        assert found[measured]["value"] > 0
    text = command("doctor")
    assert text.returncode == 0 and text.stdout.endswith("mpipc works here.\n")
    assert len(text.stdout.splitlines()) >= len(found)


@can_set_limits
@pytest.mark.parametrize(
    ("setting", "subject", "status", "value"),
    [
        ("echo 250 32000 32 128 > /proc/sys/kernel/sem", "SEMMSL", "ok", 250),
        ("echo 1024 > /proc/sys/kernel/msgmax", "MSGMAX", "note", 1024),
        ("echo 3 > /proc/sys/kernel/shmmni", "SHMMNI", "note", 3),
        ("echo 31 32000 32 128 > /proc/sys/kernel/sem", "SEMMSL", "FAILED", 31),
        ("echo 250 32000 32 2 > /proc/sys/kernel/sem", "SEMMNI", "FAILED", 2),
        ("echo 100000 > /proc/sys/kernel/shmmax", "SHMMAX", "FAILED", 100000),
        ("echo 1000 > /proc/sys/kernel/shmall", "SHMALL", "FAILED", 1000),
    ],
)
def test_other_limits(setting: str, subject: str, status: str, value: int) -> None:
    found = examined(command("doctor", "--json", wrapper=("unshare", "--ipc"), before=setting))
    assert (found[subject]["status"], found[subject]["value"][0]) == (status, value)
    if status != "ok":
        assert "kernel." in found[subject]["cure"]
    if status == "FAILED":
        assert found["a program"]["status"] == "FAILED"
    else:
        assert found["lock"]["value"] > 0


@can_set_limits
def test_a_limit_that_others_have_used_up() -> None:
    """It names them."""
    setting = "echo 2 > /proc/sys/kernel/msgmni; ipcmk --queue >&2; ipcmk --queue >&2"
    found = examined(command("doctor", "--json", wrapper=("unshare", "--ipc"), before=setting))
    assert found["System V IPC"]["status"] == "FAILED"
    assert "MSGMNI" in found["System V IPC"]["text"] and "user id 0 has 2" in found["System V IPC"]["text"]


@can_ignore_undo
def test_without_undo() -> None:
    found = examined(command("doctor", "--json", wrapper=(str(WITHOUT_UNDO),)))
    assert (found["SEM_UNDO"]["status"], found["SEM_UNDO"]["value"]) == ("note", False)
    assert "pid namespace" in found["SEM_UNDO"]["text"]
    assert found["lock"]["value"] > 0


@pytest.mark.parametrize(
    ("echo", "patience", "words"),
    [
        ("os._exit(3)", 60.0, "its other process ended with exit code 3"),
        ("os.kill(os.getppid(), signal.SIGKILL); signal.pause()", 60.0, "killed (Killed)"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", 3.0, "no answer in 3 s"),
    ],
)
def test_a_program_that_does_not_run(echo: str, patience: float, words: str) -> None:
    """That is an answer, too. The doctor's programs end with it."""
    script = f"""
        import os, signal, sys
        from mpipc.cli import doctor, main
        def echo(there, back):
            {echo}
        doctor._echo = echo
        doctor.PATIENCE_S = {patience}
        sys.exit(main(["doctor", "--json"]))
        """
    found = examined(run_script(script, check=False))
    assert found["a program"]["status"] == "FAILED"
    assert words in found["a program"]["text"]


# --- sandboxes --------------------------------------------------------------------------------------------------------

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_ERRNO, RET_KILL_PROCESS, RET_ALLOW = 0x00050000, 0x80000000, 0x7FFF0000
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # of the packet filter's instructions: see seccomp(2)
SEMGET = {"x86_64": 64, "aarch64": 190}


def refuse(what: int) -> None:
    """From now on semget(2) does this, in this process and all that it starts."""
    number = SEMGET[os.uname().machine]
    program = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, number), (RETURN, 0, 0, what), (RETURN, 0, 0, RET_ALLOW)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_, 0, 0) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.skipif(os.uname().machine not in SEMGET, reason="the number of semget is not known here")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        (RET_ERRNO | errno.EPERM, "security module"),
        (RET_ERRNO | errno.EACCES, "security module"),
        (RET_ERRNO | errno.ENOSYS, "answers in its place"),
        (RET_KILL_PROCESS, "is killed"),
    ],
)
def test_sandboxes_that_forbid_it(what: int, words: str) -> None:
    script = f"""
        import os, sys
        from test_doctor import refuse
        refuse({what})
        os.execv(sys.executable, [sys.executable, "-P", "-m", "mpipc", "doctor", "--json"])
    """
    result = run_script(script, env={"PYTHONPATH": str(Path(__file__).parent)}, check=False)
    found = examined(result)
    assert list(found) == ["Python", "System V IPC"]
    assert words in found["System V IPC"]["text"] + found["System V IPC"]["cure"]
    assert "semget" in found["System V IPC"]["cure"]


# --- limits, and rm ---------------------------------------------------------------------------------------------------


def test_limits() -> None:
    from mpipc.sysv.limits import limits

    rows = [line.split() for line in command("limits").stdout.splitlines()]
    assert rows[0][:4] == ["LIMIT", "VALUE", "IN", "USE"]
    values = {row[0]: int(row[1]) for row in rows[1:]}
    assert {name: getattr(limits(), name.lower()) for name in values} == values
    assert {"MSGMNI", "SEMMSL", "SHMMAX"} <= set(values)


PROGRAM = """
    import mpipc, os, signal
    from mpipc import _core as family
    from support import wait_until
    from support.reaper import wait_for_reaper
    lock = mpipc.Lock()
    os.kill(wait_for_reaper(), signal.SIGKILL)
    wait_until(lambda: not family.current().has_reaper())
    print(family.current().shmid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """


def leave_a_family() -> int:
    result = run_script(PROGRAM, env={"PYTHONPATH": str(Path(__file__).parent)}, check=False)
    assert result.returncode == -signal.SIGKILL
    return int(result.stdout)


def test_rm_dead() -> None:
    assert command("rm").returncode == 2
    for _ in range(10):  # in an IPC namespace that is shared with other tests, one of them may be faster
        family = leave_a_family()
        removed = command("rm", "--dead")
        assert removed.returncode == 0
        if removed.stdout == f"family {family}: removed\n":
            break
        assert removed.stdout == "There is nothing to remove.\n"
    else:
        pytest.fail("it was never there")
    again = command("rm", "--dead")
    assert (again.returncode, again.stdout) == (0, "There is nothing to remove.\n")


def test_doctor_finds_and_removes_dead_families() -> None:
    for _ in range(10):
        family = leave_a_family()
        found = examined(command("doctor", "--json"))["leftovers"]
        if found["value"] == [family]:
            break
        assert found["value"] == []
    assert (found["status"], found["value"]) == ("note", [family])
    assert examined(command("doctor", "--json"))["leftovers"]["status"] == "ok"


def test_ls_is_list() -> None:
    assert command("ls").stdout == command("list").stdout

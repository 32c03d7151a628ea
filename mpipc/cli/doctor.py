"""python -m mpipc doctor: what this machine gives mpipc and what it lacks, each with its cure.

Everything is tried rather than read where that is possible: in a child process, because some sandboxes kill whoever
makes a system call that they do not allow.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import queue
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["add_parser"]

OK, NOTE, FAILED = "ok", "note", "FAILED"
ALLOW = (
    "allow msgget, msgsnd, msgrcv, msgctl, semget, semop, semtimedop, semctl, shmget, shmat, shmdt and shmctl in its"
    " profile"
)


class Finding(NamedTuple):
    """What one check has found."""

    subject: str
    status: str
    """OK; NOTE: it works, but somebody may want to know; FAILED: mpipc does not work here, or not for long."""
    text: str
    cure: str = ""
    value: Any = None
    """The same for programs: a number, a table, or None."""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine gives mpipc and what it lacks",
        description="Checks what mpipc needs, tries it out, and says what to do about what is missing."
        " The exit status is 1 if something is, else 0.",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(function=_command)


def _command(options: argparse.Namespace) -> int:
    findings = list(examine())
    works = all(finding.status != FAILED for finding in findings)
    if options.json:
        print(json.dumps({"works": works, "findings": [finding._asdict() for finding in findings]}, indent=2))
        return 0 if works else 1
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.status:6}  {finding.subject:{width}}  {finding.text}")
        if finding.cure:
            print(f"{'':{width + 10}}-> {finding.cure}")
    print("mpipc works here." if works else "mpipc does not work here as it should: see what has FAILED.")
    return 0 if works else 1


def examine() -> Iterator[Finding]:
    """All checks. Those that need System V IPC are left out where there is none."""
    yield _python()
    probed = _system_v()
    yield probed
    if probed.status == FAILED:
        return
    yield _undo()
    yield from _limits()
    yield _remove_ipc()
    yield _namespaces()
    yield _dev_shm()
    yield _leftovers()
    yield from _times()


# --- in a child -------------------------------------------------------------------------------------------------------


PATIENCE_S = 60.0


def _in_child(function: Callable[[], Any]) -> tuple[Any, int]:
    """What a function returns in a child process, as far as JSON knows it, and the signal that killed it (or 0). One
    that does not end within PATIENCE_S is killed: a doctor that hangs tells nobody anything."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            os.close(reader)
            os.write(writer, json.dumps(function()).encode())
            status = 0
        except BaseException as error:
            os.write(writer, json.dumps([type(error).__name__, str(error), getattr(error, "errno", None)]).encode())
        finally:
            os._exit(status)
    os.close(writer)
    os.set_blocking(reader, False)
    answered = False
    try:
        answered = _has_ended(pid)
    finally:  # what it has started may have outlived it; as long as it is not waited for, the number is its own
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        with open(reader, "rb") as file:
            text = file.read()  # None: it ended without a word
    if not answered:
        return ["TimeoutError", f"no answer in {PATIENCE_S:g} s", None], 0
    return (json.loads(text) if text else None), os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _has_ended(pid: int) -> bool:
    """A child, before PATIENCE_S have passed."""
    deadline = time.monotonic() + PATIENCE_S
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


# --- the checks -------------------------------------------------------------------------------------------------------


def _python() -> Finding:
    import mpipc

    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", OK, f"{version}, mpipc {mpipc.__version__} in {mpipc.__path__[0]}", value=version)


def _try_everything() -> list[Any]:
    """For each kind of object: [the call, errno, what it says], without an errno if it could be made and removed."""
    from mpipc.sysv import msg, sem, shm
    from mpipc.sysv.keys import IPC_CREAT, IPC_PRIVATE, IPC_RMID

    def try_one(make: Callable[[], int], remove: Callable[[int], object]) -> tuple[int | None, str]:
        try:
            remove(make())
        except OSError as error:
            return error.errno, str(error)
        return None, ""

    create = IPC_CREAT | 0o600
    return [
        ("msgget", *try_one(lambda: msg.msgget(IPC_PRIVATE, create), lambda id: msg.msgctl(id, IPC_RMID))),
        ("semget", *try_one(lambda: sem.semget(IPC_PRIVATE, 1, create), lambda id: sem.semctl(id, 0, IPC_RMID))),
        ("shmget", *try_one(lambda: shm.shmget(IPC_PRIVATE, 1, create), lambda id: shm.shmctl(id, IPC_RMID))),
    ]


def _system_v() -> Finding:
    subject = "System V IPC"
    found, killed = _in_child(_try_everything)
    if killed:
        return Finding(
            subject,
            FAILED,
            f"who makes a message queue, a semaphore set or a segment is killed ({signal.strsignal(killed)})",
            f"a sandbox (seccomp) forbids it: {ALLOW}",
        )
    if found is None or (found and isinstance(found[0], str)):
        return Finding(subject, FAILED, f"it could not be tried: {found}")
    bad = [(call, number, text) for call, number, text in found if number is not None]
    if not bad:
        return Finding(subject, OK, "message queues, semaphore sets and shared memory segments can be made")
    _, number, text = bad[0]
    if number == errno.ENOSYS:
        cure = (
            f"the kernel has it (/proc/sysvipc is there), so a sandbox (seccomp) answers in its place: {ALLOW}"
            if os.path.isdir("/proc/sysvipc")
            else "the kernel was built without CONFIG_SYSVIPC: take another"
        )
    elif number in (errno.EPERM, errno.EACCES):
        cure = f"a sandbox (seccomp) or a security module (SELinux, AppArmor) forbids it: {ALLOW}"
    else:
        cure = ""  # a limit was met: the text says which, and what raises it
    calls = ", ".join(f"{call}: {errno.errorcode.get(number, number)}" for call, number, _ in bad)
    return Finding(
        subject, FAILED, text if not cure else f"it is refused ({calls})", cure, [call for call, _, _ in bad]
    )


def _try_undo() -> int:
    """What is left of a child's semop(+1, SEM_UNDO) after its end."""
    from mpipc.sysv.keys import IPC_CREAT, IPC_PRIVATE, IPC_RMID
    from mpipc.sysv.sem import GETVAL, SEM_UNDO, semctl, semget, semop

    semid = semget(IPC_PRIVATE, 1, IPC_CREAT | 0o600)
    try:
        pid = os.fork()
        if pid == 0:
            semop(semid, [(0, 1, SEM_UNDO)])
            os._exit(0)
        os.waitpid(pid, 0)
        return int(semctl(semid, 0, GETVAL))
    finally:
        semctl(semid, 0, IPC_RMID)


def _undo() -> Finding:
    left, killed = _in_child(_try_undo)
    if left == 0:
        return Finding("SEM_UNDO", OK, "the kernel tells at once when a process has died", value=True)
    if left != 1:
        return Finding("SEM_UNDO", FAILED, f"it could not be tried: {left or signal.strsignal(killed)}")
    return Finding(
        "SEM_UNDO",
        NOTE,
        "this kernel accepts it and ignores it (gVisor does): mpipc watches its processes by their pids instead, finds"
        " a dead one within some 30 ms, and all of a program's processes have to be in one pid namespace",
        value=False,
    )


def _limits() -> Iterator[Finding]:
    from mpipc._core import segment_size
    from mpipc.sysv._explain import KERNEL, kernel_limit, shares, who_has_them
    from mpipc.sysv.limits import limits

    found = limits()
    pages = -(-segment_size() // resource.getpagesize())
    # What a program needs before it has one object of its own, and how much room is little.
    for name, needed, little in (
        ("SEMMSL", 32, 250),
        ("SEMMNS", 3 * min(found.semmsl, 250), 3000),
        ("SEMMNI", 3, 32),
        ("MSGMNI", 1, 100),
        ("MSGMNB", 1, 16384),
        ("MSGMAX", 1, 8192),
        ("SHMMNI", 1, 100),
        ("SHMMAX", segment_size(), segment_size()),
        ("SHMALL", pages, 2 * pages),
    ):
        value = int(getattr(found, name.lower()))
        used = sum(shares(name).values())
        meaning, sysctl, _ = KERNEL[name]
        text = f"{value}, {meaning}"
        if used:
            text += f": {used} in use; {who_has_them(name)}"
        free = value - used
        setting = f"sysctl -w {sysctl}={_raised(name, found)}"
        if free < needed:
            yield Finding(name, FAILED, f"{text}; a program needs {needed}", kernel_limit(name).text, [value, used])
        elif free < little:
            yield Finding(name, NOTE, f"{text}: not much, {_what_for(name)}", setting, [value, used])
        else:
            yield Finding(name, OK, text, value=[value, used])


def _raised(name: str, found: Any) -> str:
    """The value of a sysctl with this limit as Linux has it by default, or doubled."""
    if name.startswith("SEM"):
        return f'"{max(found.semmsl, 32000)} {max(found.semmns, 1024000000)} {found.semopm} {max(found.semmni, 32000)}"'
    default = {"MSGMNI": 32000, "MSGMNB": 16384, "MSGMAX": 8192, "SHMMNI": 4096}.get(name, 1 << 60)
    value = int(getattr(found, name.lower()))
    return str(default if value < default else 2 * value)


def _what_for(name: str) -> str:
    return {
        "SEMMSL": "each set holds as many locks and processes",
        "SEMMNS": "each lock that is waited for and each process takes one",
        "SEMMNI": "every 250 objects that are waited for, and every 250 processes, take a set",
        "MSGMNI": "each queue takes one",
        "MSGMNB": "longer queues go on in shared memory, a little slower",
        "MSGMAX": "longer messages travel in shared memory, which suits those of some kilobytes less",
        "SHMMNI": "each program takes one, and its arrays, large messages and SharedMemory a few more",
    }.get(name, "large arrays and messages need it")


def _remove_ipc() -> Finding:
    subject = "RemoveIPC"
    uid = os.geteuid()
    if not os.path.isdir("/run/systemd/users"):
        return Finding(subject, OK, "no logind that removes a user's objects when he logs out", value=False)
    configured = "yes"  # the default of logind.conf(5)
    for file in _logind_files():
        for line in file.read_text(errors="replace").splitlines():
            key, equals, setting = line.partition("=")
            if equals and key.strip() == "RemoveIPC":
                configured = setting.strip().lower()
    if configured in ("no", "false", "off", "0"):
        return Finding(subject, OK, "logind leaves a user's objects alone when he logs out", value=False)
    if uid < 1000:
        return Finding(
            subject, OK, f"logind removes users' objects, but not those of a system user like {uid}", value=False
        )
    import pwd

    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    if os.path.exists(f"/var/lib/systemd/linger/{user}"):
        return Finding(subject, OK, f"logind removes users' objects when they log out, but {user} lingers", value=False)
    return Finding(
        subject,
        NOTE,
        f"logind removes all objects of {user} when his last session ends: of programs that go on, too (nohup, tmux)",
        f"loginctl enable-linger {user}, or RemoveIPC=no in /etc/systemd/logind.conf",
        True,
    )


def _logind_files() -> Iterator[Path]:
    """In the order in which they override each other, see logind.conf(5)."""
    main = [Path(folder, "systemd/logind.conf") for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib")]
    yield from [file for file in main if file.is_file()][:1]
    dropped: dict[str, Path] = {}
    for folder in ("/usr/lib", "/usr/local/lib", "/run", "/etc"):
        dropped.update((file.name, file) for file in Path(folder, "systemd/logind.conf.d").glob("*.conf"))
    yield from (dropped[name] for name in sorted(dropped))


def _namespaces() -> Finding:
    from mpipc.sysv.listing import message_queues, shared_memory_segments

    ids = {
        kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("ipc", "pid") if os.path.exists(f"/proc/self/ns/{kind}")
    }
    strangers = sum(segment.cpid == 0 for segment in shared_memory_segments())
    strangers += sum(queue.qnum > 0 and queue.lspid == 0 for queue in message_queues())
    if not strangers:
        return Finding("namespaces", OK, "no sign of processes that share System V IPC with us and not pids", value=ids)
    return Finding(
        "namespaces",
        OK,
        f"this IPC namespace is shared with processes of another pid namespace (they made {strangers} objects), as in a"
        " pod: that works where SEM_UNDO does",
        value=ids,
    )


def _dev_shm() -> Finding:
    try:
        found = os.statvfs("/dev/shm")
        text = f"{found.f_blocks * found.f_frsize >> 20} MiB"
    except OSError:
        text = "missing"
    return Finding("/dev/shm", OK, f"{text}; mpipc does not use it", value=text)


def _leftovers() -> Finding:
    from mpipc._core import dead_families, sweep

    dead = dead_families()
    sweep()  # as the first use of mpipc does, and so the measurements below
    left = [family for family in dead_families() if family in dead]
    if left:
        text = f"families without a process that cannot be removed: {', '.join(map(str, left))}"
        return Finding("leftovers", NOTE, text, "python -m mpipc rm --dead, a little later", dead)
    if dead:
        text = f"families without a process (their reaper was killed, too), removed now: {', '.join(map(str, dead))}"
        return Finding("leftovers", NOTE, text, value=dead)
    return Finding("leftovers", OK, "no family that has no process", value=dead)


# --- how fast ---------------------------------------------------------------------------------------------------------

ROUNDS = 2000


def _measure() -> dict[str, float]:
    """Microseconds: of a lock taken and given back; of a message put and got; of a message to another process and back,
    halved: that is a wake-up."""
    import mpipc

    context = mpipc.get_context("fork")
    lock, there, back = context.Lock(), context.Queue(), context.Queue()
    there.put(None)
    there.get()
    context.Event().wait(0.001)  # so that there is what waiting takes

    def best(function: Callable[[], object], count: int) -> float:
        rounds = []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(count):
                function()
            rounds.append((time.perf_counter() - began) / count * 1e6)
        return min(rounds)

    def take() -> None:
        with lock:
            pass

    def one_way() -> None:
        there.put(None)
        there.get()

    found = {"lock": best(take, ROUNDS), "message": best(one_way, ROUNDS)}
    process = context.Process(target=_echo, args=(there, back))
    process.start()

    def round_trip() -> None:
        there.put(1)
        while True:  # what has ended the other process is on its stderr
            try:
                back.get(timeout=1)
                return
            except queue.Empty:
                if not process.is_alive():
                    raise RuntimeError(f"its other process ended with exit code {process.exitcode}") from None

    try:
        found["wake-up"] = best(round_trip, ROUNDS // 10) / 2
        there.put(0)
        process.join()
    finally:
        process.kill()
    return found


def _echo(there: Any, back: Any) -> None:
    while there.get():
        back.put(None)


def _times() -> Iterator[Finding]:
    found, killed = _in_child(_measure)
    if not isinstance(found, dict):
        text = f"killed ({signal.strsignal(killed)})" if killed else f"{found[0]}: {found[1]}"
        yield Finding("a program", FAILED, f"one with a lock, an event, a queue and a process does not run: {text}")
        return
    for subject, text in (
        ("lock", "to take a lock and give it back"),
        ("message", "to put an object into a queue and get it"),
        ("wake-up", "until a process that waits for it has a message"),
    ):
        yield Finding(subject, OK, f"{found[subject]:.3g} us {text}", value=found[subject])

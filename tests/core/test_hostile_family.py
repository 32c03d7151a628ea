"""Another user against a family: what he cannot read, make, set, remove, and what he can get in the way of.

The attacker (NOBODY) is told the family's nonce, which he could not find out by himself: that it is secret is a second
wall, and the first has to hold without it. See SECURITY.md.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import NOBODY, Script, can_become, kernel_objects, processes, run_script, start_script, wait_until

from mpipc._core import infrastructure

VICTIM = 65533

pytestmark = pytest.mark.skipif(
    not (can_become(NOBODY) and can_become(VICTIM)), reason="not permitted to change the user"
)

VICTIM_BEGINS = """
import os, sys, time
import mpipc
from mpipc import _core as family
print(family.current().ticket, flush=True)
sys.stdin.readline()
"""

ATTACKER = """
import ctypes, os, sys
from mpipc import sysv
from mpipc.sysv.listing import message_queues, semaphore_sets, shared_memory_segments
VICTIM = 65533
M = (1 << 64) - 1
def mix(x):
    x = (x + 0x9e3779b97f4a7c15) & M
    x = ((x ^ x >> 30) * 0xbf58476d1ce4e5b9) & M
    x = ((x ^ x >> 27) * 0x94d049bb133111eb) & M
    return x ^ x >> 31
def key(nonce, which, attempt):
    return 0x6d000000 | (mix(nonce ^ mix((which << 8) + attempt)) & 0xffffff)
BELLS = 1 << 16
shmid, nonce = sys.argv[1].split(":")
nonce = int(nonce, 16)
mark = 1 + mix(nonce) % 32767
def squat(attempts, mode=0o666, nsems=250, forge=False):
    made = []
    for which in (BELLS, BELLS + (1 << 18) // 249):  # of the first blocks, and of the cells of Condition
        for attempt in attempts:
            semid = sysv.semget(key(nonce, which, attempt), nsems, sysv.IPC_CREAT | sysv.IPC_EXCL | mode)
            sysv.semctl(semid, 0, sysv.SETVAL, mark)
            if forge:
                sysv.semctl(semid, 0, sysv.IPC_SET, uid=VICTIM, gid=VICTIM, mode=0o600)
            made.append(semid)
    return made
"""

SQUAT_BANKS = """
def squat_banks(attempts, mode=0o666, size=4096 * 256 + 64, mark=nonce, forge=False):
    for attempt in attempts:
        shmid = sysv.shmget(key(nonce, (1 << 18) + 1, attempt), size, sysv.IPC_CREAT | sysv.IPC_EXCL | mode)
        with sysv.shmat(shmid) as attached, memoryview(attached) as memory:
            memory[:8] = mark.to_bytes(8, "little")
        if forge:
            sysv.shmctl(shmid, sysv.IPC_SET, uid=VICTIM, gid=VICTIM, mode=0o600)
"""

VICTIM_GROWS = """
locks = [mpipc.Lock() for _ in range(4100)]
print(locks[-1].block.index >= 4096, locks[-1].acquire(False), flush=True)
"""

VICTIM_GOES_ON = """
event, condition, lock = mpipc.Event(), mpipc.Condition(), mpipc.Lock()
print(event.is_set(), event.wait(0.05), lock.acquire(False), flush=True)
with condition:
    print(condition.wait(0.05), flush=True)
"""


@contextlib.contextmanager
def victim(rest: str) -> Iterator[tuple[Any, str]]:
    with start_script(VICTIM_BEGINS + rest, user=VICTIM, env={"MPIPC_FAMILY": ""}) as script:
        assert script.stdout is not None
        yield script, script.stdout.readline().strip()


@pytest.fixture(autouse=True)
def remove_what_the_attacker_made() -> Iterator[None]:
    before = kernel_objects()
    yield
    run_script(
        """
        from mpipc import sysv
        from mpipc.sysv.listing import semaphore_sets, shared_memory_segments
        for found in semaphore_sets():
            if found.cuid == 65534:
                sysv.semctl(found.semid, 0, sysv.IPC_RMID)
        for found in shared_memory_segments():
            if found.cuid == 65534:
                sysv.shmctl(found.shmid, sysv.IPC_RMID)
        """
    )
    wait_until(lambda: kernel_objects().minus(before, infrastructure()).count == 0)


def attack(ticket: str, source: str) -> str:
    return run_script(ATTACKER + source, user=NOBODY, arguments=[ticket]).stdout


SQUATS = {
    "open to all": "squat(range(3))",
    "his own": "squat(range(3), mode=0o600)",
    "with the victim's uid": "squat(range(3), forge=True)",
    "smaller": "squat(range(3), nsems=100)",
    "larger": "squat(range(3), nsems=400)",
    "all keys but one": "squat(range(15))",
}


@pytest.mark.parametrize("squat", SQUATS)
def test_sets_of_another_user_are_stepped_over(squat: str) -> None:
    with victim(VICTIM_GOES_ON) as (script, ticket):
        attack(
            ticket,
            SQUATS[squat]
            + """
for found in semaphore_sets():
    if found.cuid == os.getuid():
        try:
            sysv.semctl(found.semid, 0, sysv.SETALL, [0] * found.nsems)  # sets every event that might lie in it
        except OSError:
            pass
""",
        )
        result = script.finish("\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False", "False", "True", "False"]


@pytest.mark.parametrize("mode", ["0o666", "0o600"])
def test_when_all_keys_are_taken_the_error_names_who_has_them(mode: str) -> None:
    with victim("mpipc.Event()") as (script, ticket):
        attack(ticket, f"squat(range(16), mode={mode})")
        result = script.finish("\n")
    assert result.returncode == 1
    assert f"user id {NOBODY} has made some under the keys" in result.stderr.splitlines()[-1]


BANK_SQUATS = {
    "open to all": "squat_banks(range(3))",
    "his own": "squat_banks(range(3), mode=0o600)",
    "with the victim's uid": "squat_banks(range(3), forge=True)",
    "without a mark": "squat_banks(range(3), mark=0, forge=True)",
    "smaller": "squat_banks(range(3), size=4096)",
    "larger": "squat_banks(range(3), size=2 << 20)",
    "all keys but one": "squat_banks(range(15))",
    "all keys": "squat_banks(range(16))",  # then the next bank is made
}


@pytest.mark.parametrize("squat", BANK_SQUATS)
def test_banks_of_another_user_are_stepped_over(squat: str) -> None:
    with victim(VICTIM_GROWS) as (script, ticket):
        attack(ticket, SQUAT_BANKS + BANK_SQUATS[squat])
        result = script.finish("\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "True"]


def test_nothing_of_a_family_can_be_touched() -> None:
    """Its segment, its sets, its queues, arrays and named segments; by every call there is."""
    source = """
from mpipc.shared_memory import SharedMemory
queue, array, event, named = mpipc.Queue(), mpipc.Array("d", 100_000), mpipc.Event(), SharedMemory(create=True, size=5)
queue.put("secret")
queue.put(bytes(100_000))
print("made", flush=True)
sys.stdin.readline()
print(queue.get(timeout=10), len(queue.get(timeout=10)), event.is_set(), set(array[:]), bytes(named.buf))
named.unlink()
"""
    with victim(source) as (script, ticket):
        script.stdin.write("\n")
        script.stdin.flush()
        assert script.stdout.readline() == "made\n"
        output = attack(
            ticket,
            """
calls = {}
def attempt(name, call, *arguments, **more):
    try:
        calls.setdefault(name, set()).add(repr(call(*arguments, **more)))
    except OSError as error:
        calls.setdefault(name, set()).add(error.errno)
for found in shared_memory_segments():
    if found.cuid == VICTIM:
        attempt("shmat", sysv.shmat, found.shmid)
        attempt("shmat read", sysv.shmat, found.shmid, None, sysv.SHM_RDONLY)
        attempt("shm rmid", sysv.shmctl, found.shmid, sysv.IPC_RMID)
        attempt("shm set", sysv.shmctl, found.shmid, sysv.IPC_SET, mode=0o666)
for found in semaphore_sets():
    if found.cuid == VICTIM:
        for number in range(found.nsems):
            attempt("semop", sysv.semop, found.semid, [(number, -1, sysv.IPC_NOWAIT)])
            attempt("setval", sysv.semctl, found.semid, number, sysv.SETVAL, 0)
            attempt("getval", sysv.semctl, found.semid, number, sysv.GETVAL)
        attempt("sem rmid", sysv.semctl, found.semid, 0, sysv.IPC_RMID)
        attempt("semget", sysv.semget, found.key, 0, 0o600)
for found in message_queues():
    if found.cuid == VICTIM:
        attempt("msgrcv", sysv.msgrcv, found.msqid, 10000, 0, sysv.IPC_NOWAIT)
        attempt("msgsnd", sysv.msgsnd, found.msqid, 1, b"")
        attempt("msg rmid", sysv.msgctl, found.msqid, sysv.IPC_RMID)
print(sorted(calls))
print({answer for answers in calls.values() for answer in answers})
print([found.cuid for found in shared_memory_segments() + semaphore_sets() + message_queues() if found.cuid == VICTIM
       and found.perms & 0o77])
""",
        ).splitlines()
        result = script.finish("\n")
    assert len(output[0].split(",")) == 12
    assert eval(output[1]) <= {errno.EACCES, errno.EPERM}
    assert output[2] == "[]"
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["secret", "100000", "False", "{0.0}", repr(b"\0" * 5)]


def test_the_nonce_is_nowhere_to_be_read() -> None:
    def reaper(script: Script, ticket: str) -> int:
        return next((process.pid for process in processes().values() if process.is_reaper_of(ticket)), 0)

    with victim("") as (script, ticket):
        nonce = ticket.partition(":")[2]
        pid = wait_until(lambda: reaper(script, ticket))
        for command in ("cmdline", "comm", "stat", "status"):
            assert nonce not in Path(f"/proc/{pid}/{command}").read_text(errors="replace")
        output = attack(
            ticket,
            f"""
for name in ("environ", "maps", "mem"):
    for pid in ({pid}, {script.pid}):
        try:
            open(f"/proc/{{pid}}/{{name}}", "rb").read(1)
            print("read", name)
        except OSError as error:
            print(type(error).__name__)
print(any({nonce!r}[:8] in line for kind in ("shm", "sem", "msg") for line in open(f"/proc/sysvipc/{{kind}}")))
keys = [found.key & 0xffffff for found in shared_memory_segments() if found.cuid == VICTIM]
print(any(key == (nonce >> shift) & 0xffffff for key in keys for shift in range(41)))
""",
        )
        script.finish("\n")
    assert output.split() == ["PermissionError"] * 6 + ["False"] * 2

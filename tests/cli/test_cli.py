"""python -m mpipc families, and list: what is in use, seen from outside. (run: test_install.py)"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support import start_script

PROGRAM = """
    import mpipc, os

    def child(queue, event):
        event.wait()

    if __name__ == "__main__":
        queue, event, lock = mpipc.Queue(), mpipc.Event(), mpipc.Lock()
        process = mpipc.Process(target=child, args=(queue, event))
        process.start()
        print(os.getpid(), process.pid, queue._messages.block.family.shmid, queue._messages.block.id, flush=True)
        input()
        event.set()
        process.join()
    """


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    import mpipc

    environment = {**os.environ, "PYTHONPATH": str(Path(mpipc.__path__[0]).parent)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "mpipc", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def test_families_and_list() -> None:
    with start_script(PROGRAM) as running:
        assert running.stdout is not None
        parent, child, family, queue = running.stdout.readline().split()

        lines = [line.split() for line in command("families").stdout.splitlines()]
        assert lines[0][:2] == ["FAMILY", "PROCESSES"]
        line = next(line for line in lines if line[0] == family)
        assert line[1] == "2" and line[-1].endswith("script.py")

        for result in (command("list"), command("list", family)):
            assert result.returncode == 0, result.stderr
            words = [line.split() for line in result.stdout.splitlines()]
            assert [parent, "alive"] in [line[:2] for line in words]
            assert [child, "alive"] in [line[:2] for line in words]
            assert ["queue", "msqid", queue, f"{parent},", child] in words
            assert "1 event, 1 lock" in result.stdout
        assert running.finish("\n").returncode == 0


WAITING = """
import os, sys, threading
import mpipc
from mpipc._core import current
from mpipc._core.snapshot import waits

def take(lock):
    with lock:
        pass

def take_twice(lock, event, queue, items):
    threads = [threading.Thread(target=take, args=(lock,)), threading.Thread(target=event.wait)]
    threads += [threading.Thread(target=queue.get), threading.Thread(target=items.put, args=(2,))]
    threads += [threading.Thread(target=queue.get, kwargs={"timeout": 3600})]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join()

context = mpipc.get_context("fork")
lock, event, queue, items = context.Lock(), context.Event(), context.Queue(), context.Queue(1)
items.put(1)
with lock:
    child = context.Process(target=take_twice, args=(lock, event, queue, items))
    child.start()
    while len(waits(current())) < 5:
        os.sched_yield()
    print(os.getpid(), threading.get_native_id(), child.pid, current().shmid, flush=True)
    sys.stdin.readline()
event.set()
items.get(), items.get(), queue.put(3), queue.put(4)
child.join()
assert waits(current()) == []
"""


def test_list_says_who_waits_for_what() -> None:
    with start_script(WAITING) as running:
        assert running.stdout is not None
        parent, thread, child, family = running.stdout.readline().split()
        output = command("list", family).stdout
        lines = output[output.index("WAITING") :].splitlines()
        assert lines[0].split() == ["WAITING", "THREAD", "FOR", "SECONDS", "HAS", "IT"]
        waits = [line.split() for line in lines[1:]]
        assert {wait[0] for wait in waits} == {child}
        assert len({wait[1] for wait in waits}) == 5, "each thread has its number"
        found = sorted(re.sub(r"[^a-z ]", "", " ".join(wait[2:])).strip() for wait in waits)
        assert found == ["a message of queue"] * 2 + ["event", "lock    thread", "room of queue"], output
        assert next(wait for wait in waits if wait[2] == "lock")[-3:] == [f"{parent},", "thread", thread]
        assert running.finish("\n").returncode == 0


def test_family_that_is_not_there() -> None:
    result = command("list", "999999999")
    assert result.returncode == 1 and "no family 999999999" in result.stderr


def test_without_a_command() -> None:
    result = command()
    assert result.returncode == 2 and "usage: python -m mpipc" in result.stderr


def test_looking_does_not_join_or_found() -> None:
    result = command("families")
    assert result.returncode == 0
    assert "python -m mpipc" not in result.stdout

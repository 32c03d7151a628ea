"""What it costs to have the package: the time of the import and the memory of the processes.

Each measurement is a fresh interpreter that runs one of the programs below and prints a number.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from harness import Case, Operation, Unit

from . import CASES
from .common import PACKAGES

IMPORT = """
import time
begin = time.perf_counter_ns()
import PACKAGE
print(time.perf_counter_ns() - begin)
"""

MEMORY = """
import os, time

def memory(pid, fields):
    # Kilobytes, from proc_pid_smaps(5).
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        lines = dict(line.split(":", 1) for line in rollup.readlines()[1:])
    return sum(int(lines[field].split()[0]) for field in fields) * 1024

def settled(pid, fields):
    # For a process that is only just starting.
    before = 0
    while (now := memory(pid, fields)) != before or time.monotonic() < begin + 0.3:
        before = now
        time.sleep(0.1)
    return now

begin = time.monotonic()
RESIDENT = ["Rss"]
PRIVATE = ["Private_Clean", "Private_Dirty"]

def worker(ready, go):
    ready.put(os.getpid())
    go.acquire()

def tracker():
    from multiprocessing import resource_tracker
    resource_tracker.ensure_running()
    return resource_tracker._resource_tracker._pid

def reaper():
    # Its arguments name its family's segment.
    from mpipc import _core as family
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline") as file:
                    name, *arguments = file.read().split("\\0")
            except OSError:
                continue
            if name == "mpipc-reaper" and arguments[0] == str(family.current().shmid):
                return int(entry)
    raise SystemExit("no mpipc-reaper")

if __name__ == "__main__":
    import PACKAGE
    ctx = PACKAGE.get_context("fork")
    lock, value = ctx.Lock(), ctx.Value("i", 0)
    ready, go = ctx.Queue(), ctx.Semaphore(0)
    process = ctx.Process(target=worker, args=(ready, go))
    process.start()
    pid = ready.get()
    print(WHAT)
    go.release()
    process.join()
"""


def interpreter(program: str) -> float:
    """What the program prints."""
    # -P: not the sources in the current folder, which need not be compiled.
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"the interpreter ended with status {result.returncode}")
    return float(result.stdout)


def sum_of(program: str) -> Operation:
    return Operation(lambda count: sum(interpreter(program) for _ in range(count)))


def importing(package: str) -> Operation:
    return sum_of(IMPORT.replace("PACKAGE", package))


def memory(package: str, what: str) -> Operation:
    return sum_of(MEMORY.replace("PACKAGE", package).replace("WHAT", what))


CASES.add(
    Case(
        "footprint/import",
        "import of the package, in a fresh interpreter",
        {package: partial(importing, package) for package in PACKAGES},
        fixed_count=5,
        quick=True,
    )
)

BYTES: Unit = "bytes"
PROCESSES = {
    "parent": ("the parent, with a lock, a Value, a Queue and a child", "os.getpid()"),
    "worker": ("a child started by fork, that uses them", "pid"),
}
for name, (text, pid) in PROCESSES.items():
    for kind, fields in (("resident", "RESIDENT"), ("private", "PRIVATE")):
        CASES.add(
            Case(
                f"footprint/{name}-{kind}",
                f"{kind} memory of {text}",
                {package: partial(memory, package, f"memory({pid}, {fields})") for package in PACKAGES},
                unit=BYTES,
                fixed_count=1,
            )
        )
for kind, fields in (("resident", "RESIDENT"), ("private", "PRIVATE")):
    CASES.add(
        Case(
            f"footprint/helper-{kind}",
            f"{kind} memory of the process in the background",
            {
                "mpipc reaper": partial(memory, "mpipc", f"settled(reaper(), {fields})"),
                # multiprocessing has one only with spawn and forkserver.
                "multiprocessing resource tracker": partial(memory, "multiprocessing", f"settled(tracker(), {fields})"),
            },
            unit=BYTES,
            fixed_count=1,
        )
    )

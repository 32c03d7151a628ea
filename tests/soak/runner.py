"""Runs rounds, one after the other, in one process.

`python -m soak.runner DESCRIPTOR SEED FIRST COUNT SECONDS [FAULT]`

Tells the process that watches over it, by lines of JSON, when a round begins and what came of it. A round that leaves a
kernel object, a control block, a process, a thread or a descriptor has failed, and so has a series of them that makes
this process grow.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

from support import KernelObjects, dump_stacks, kernel_objects

from mpipc import _core as family
from mpipc.heap import BufferWrapper
from soak import broadcasts, memory, pools, queues, sync
from soak.crew import INTERRUPTION, STACKS
from soak.scenario import PATIENCE, Scenario, Wrong
from soak.storm import neighbours

SCENARIOS: tuple[type[Scenario], ...] = (
    *sync.SCENARIOS,
    *queues.SCENARIOS,
    *broadcasts.SCENARIOS,
    *memory.SCENARIOS,
    *pools.SCENARIOS,
)
GROWTH = 24 << 20
"""Bytes by which this process and what it shares may grow from its third pass through all scenarios on."""


class Plan(NamedTuple):
    """What a round is, by the seed and its number."""

    scenario: type[Scenario]
    method: str
    length: float
    rng: random.Random


TRIES = 10
"""A round lasts for seconds. On a busy machine it may be over before what is broken on purpose has been used."""


def plan(seed: int, number: int) -> Plan:
    """Each scenario once, in an order of its own for each pass."""
    order = random.Random(f"{seed} {number // len(SCENARIOS)}").sample(range(len(SCENARIOS)), len(SCENARIOS))
    rng = random.Random(f"{seed} {number} round")
    method = rng.choice(("fork", "fork", "fork", "spawn", "forkserver"))
    return Plan(SCENARIOS[order[number % len(SCENARIOS)]], method, rng.uniform(1.5, 3.5), rng)


def left_objects() -> KernelObjects:
    return kernel_objects().minus(family.infrastructure())


def left_processes() -> list[str]:
    """But for the reaper, and the helpers that multiprocessing starts once a process."""
    helpers = (".forkserver import main", ".resource_tracker import main")
    return [
        each.describe()
        for each in neighbours()
        if each.name != "mpipc-reaper"
        and each.pid != os.getppid()
        and not (each.ppid == os.getpid() and any(helper in each.command() for helper in helpers))
    ]


def blocks() -> list[str]:
    return [f"block {index}, a {kind}, held by {pids}" for index, kind, _, pids in family.current().blocks()]


def eventually(value: Callable[[], Any]) -> Any:
    """`value()` when it has become empty, or what it still is when patience has gone."""
    until = time.monotonic() + PATIENCE / 2
    while (found := value()) and time.monotonic() < until:
        with contextlib.suppress(OSError):
            family.current().tick()
        gc.collect()
        BufferWrapper._heap.trim()
        time.sleep(0.02)
    return found


def nothing_is_left(threads: int, descriptors: int) -> None:
    gc.collect()
    BufferWrapper._heap.trim()
    for what, value in (
        ("processes", left_processes),
        ("kernel objects", lambda: left_objects().describe()),
        ("control blocks", blocks),
        ("threads", lambda: threading.enumerate()[threads:]),
    ):
        if left := eventually(value):
            raise Wrong(f"{what} are left: {left}\n{dump_stacks(each.pid for each in neighbours())}")
    if eventually(lambda: len(os.listdir("/proc/self/fd")) > descriptors):
        raise Wrong(f"descriptors are left: {[os.readlink(each) for each in Path('/proc/self/fd').iterdir()]}")
    if eventually(lambda: not family.current().has_reaper()):
        raise Wrong("there is no reaper any more")


def footprint() -> int:
    """Bytes of memory that this process has for itself, and of System V segments."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()
    column = rows[0].split().index("rss")
    return int(status["RssAnon"].split()[0]) * 1024 + sum(int(row.split()[column]) for row in rows[1:])


def main() -> int:
    descriptor, seed, first, count, seconds = (*map(int, sys.argv[1:5]), float(sys.argv[5]))
    fault = sys.argv[6] if len(sys.argv) > 6 else ""
    faulthandler.register(STACKS)
    signal.signal(INTERRUPTION, signal.SIG_IGN)  # in all that is started, until it has a handler
    forkserver.ensure_running()  # now: a round of pools has a handler, which in a program that is executed is none
    out = os.fdopen(int(descriptor), "w", buffering=1)

    def tell(**what: Any) -> None:
        print(json.dumps(what), file=out)

    family.current()
    until = time.monotonic() + seconds
    threads, descriptors = len(threading.enumerate()), 0
    at_first: int | None = None
    number, tries = int(first), 0
    while number < first + count and time.monotonic() < until:
        scenario, method, length, rng = plan(int(seed), number)
        if fault:
            scenario = next(each for each in SCENARIOS if f"{each.__name__}:" in fault)
        tell(begins=number, scenario=scenario.__name__, method=method)
        try:
            with tempfile.TemporaryDirectory(prefix="mpipc-soak-") as folder:
                round_ = scenario(method, rng, length, Path(folder), fault.partition(":")[2])
                try:
                    round_.run()
                    counts = dict(round_.counts)
                finally:
                    round_.close()
                    del round_
            descriptors = max(descriptors, len(os.listdir("/proc/self/fd"))) if number < first + 30 else descriptors
            nothing_is_left(threads, descriptors)
            now = footprint()
            if number >= first + 2 * len(SCENARIOS):
                at_first = now if at_first is None else at_first
                if now > at_first + GROWTH:
                    raise Wrong(f"memory: {at_first >> 20} MiB have become {now >> 20}")
            tell(ended=number, counts=counts, memory=now)
        except BaseException as error:
            text = traceback.format_exc() if not isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
            tell(failed=number, text=text)
            return 1
        tries += 1
        if not fault or tries == TRIES:
            number += 1
    tell(finished=number)
    return 0


if __name__ == "__main__":
    sys.exit(main())

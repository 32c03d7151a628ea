"""Where workers run, and how they share the processors: `cpu_affinity` and `nice`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterable
from operator import index
from typing import Any

from mpipc._core.greenlets import start_thread

__all__ = ["Places", "apply", "checked_affinity", "checked_nice", "try_out"]

Affinity = tuple[frozenset[int], ...]

EXPECTED = "a set of CPU numbers, or a list of such sets, one for each worker in turn"


def checked_nice(nice: int | None) -> int:
    """The argument `nice`. TypeError, ValueError."""
    if nice is None:
        return 0
    if not isinstance(nice, int) or isinstance(nice, bool):
        raise TypeError(f"nice must be an int, which is added to the niceness of the workers, not {nice!r}")
    if not -40 < nice < 40:
        raise ValueError(f"nice must be between -39 and 39, which leads from any niceness to any other, not {nice}")
    return nice


def checked_affinity(affinity: Any) -> Affinity | None:
    """The argument `cpu_affinity`: the sets, one for each worker in turn. TypeError, ValueError."""
    if affinity is None:
        return None
    if isinstance(affinity, (str, bytes)) or not isinstance(affinity, Iterable):
        raise TypeError(f"cpu_affinity must be {EXPECTED}, not {affinity!r}")
    given: list[Any] = list(affinity)
    if all(hasattr(type(cpu), "__index__") for cpu in given):
        sets = [_cpus(given, affinity)]
    elif all(isinstance(cpus, Collection) and not isinstance(cpus, (str, bytes)) for cpus in given):
        sets = [_cpus(cpus, affinity) for cpus in given]
    else:
        raise TypeError(f"cpu_affinity must be {EXPECTED}, not {affinity!r}")
    return tuple(sets)


def _cpus(cpus: Iterable[Any], affinity: Any) -> frozenset[int]:
    try:
        found = frozenset(index(cpu) for cpu in cpus)
    except TypeError:
        raise TypeError(f"cpu_affinity must be {EXPECTED}, not {affinity!r}") from None
    if not found or any(isinstance(cpu, bool) or cpu < 0 for cpu in cpus):
        raise ValueError(f"cpu_affinity must be {EXPECTED}, none of which is empty or has a negative one: {affinity!r}")
    return found


def apply(nice: int, affinity: Affinity | None, *, everywhere: bool = False) -> None:
    """Have this thread, and what it starts, run that way; `everywhere`: also the other threads of the process, which a
    library may have started when it was imported. PermissionError, ValueError: that cannot be."""
    if nice:
        try:
            os.nice(nice)
        except PermissionError as error:
            message = f"nice={nice}: this process may not lower its niceness so far (see RLIMIT_NICE, CAP_SYS_NICE)"
            raise PermissionError(error.errno, message) from None
    for cpus in affinity or ():
        before, after = os.sched_getaffinity(0), set()
        with contextlib.suppress(OSError, OverflowError, ValueError):
            os.sched_setaffinity(0, cpus)
            after = os.sched_getaffinity(0)
        if after != cpus:
            raise ValueError(
                f"cpu_affinity: of the CPUs {sorted(cpus)} this process can use {sorted(after) or 'none'}; it runs on"
                f" {sorted(before)}"
            )
    for thread in _other_threads() if everywhere and (nice or affinity) else ():
        with contextlib.suppress(OSError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0))
            os.sched_setaffinity(thread, os.sched_getaffinity(0))


def _other_threads() -> list[int]:
    own = threading.get_native_id()
    try:
        return [int(name) for name in os.listdir("/proc/self/task") if int(name) != own]
    except OSError:  # there is no /proc
        return []


def try_out(nice: int, affinity: Affinity | None) -> None:
    """apply() in a thread that ends with it: what no worker could do, nobody has to find out from a broken pool."""
    if not nice and affinity is None:
        return
    errors: list[Exception] = []
    reader, writer = os.pipe()  # and not a lock, which a library may have made one of greenlets

    def attempt() -> None:
        try:
            apply(nice, affinity)
        except Exception as error:
            errors.append(error)
        finally:
            os.close(writer)

    try:
        start_thread(attempt, (), "mpipc-pool-trial")
    except BaseException:
        os.close(writer)
        os.close(reader)
        raise
    os.read(reader, 1)
    os.close(reader)
    if errors:
        raise errors[0]


class Places:
    """Which of the sets of CPUs each worker has: a new one gets one that the fewest others have, the first of those."""

    def __init__(self, affinity: Affinity | None) -> None:
        self._affinity = affinity
        self._places: dict[int, int] = {}

    def take(self, tag: int, others: Collection[int]) -> Affinity | None:
        """For the worker `tag`; `others` are those that are there."""
        if self._affinity is None:
            return None
        self._places = {other: place for other, place in self._places.items() if other in others}
        taken = list(self._places.values())
        place = min(range(len(self._affinity)), key=taken.count)
        self._places[tag] = place
        return (self._affinity[place],)

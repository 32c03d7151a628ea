"""What children of the tests of mpipc.arrays run. It does not import mpipc.arrays: nor need they."""

from __future__ import annotations

import os
import sys
from typing import Any


def add_one(queues: dict[str, Any], imported: bool) -> None:
    """Takes an array from each queue, adds 1 to it in place, and puts it back; then the end comes back by "Queue"."""
    for queue in queues.values():
        array = queue.get()
        array += 1
        queue.put(array)
        if hasattr(queue, "task_done"):
            queue.task_done()
    assert imported or "mpipc.arrays" not in sys.modules


def pass_on(source: Any, target: Any, told: Any) -> None:
    """One message, from a queue to another."""
    target.put(source.get())
    told.put("mpipc.arrays" in sys.modules)


def seen(value: Any) -> dict[str, Any]:
    """Of views by name: what they look like where they arrive."""
    return {
        name: (view.shape, view.strides, view.dtype.str, view.flags.writeable, view.tobytes())
        for name, view in value.items()
    }


def look_at_views(source: Any, target: Any) -> None:
    """What views look like, then they are written to."""
    views = source.get()
    target.put(seen(views))
    views["whole"][...] = 7
    target.put(None)


def write_to(array: Any, part: Any, view: Any, memory: Any) -> None:
    """Arguments of a process."""
    array[0] = 11
    part[...] = 22
    view[0] = 33
    memoryview(memory)[0] = 44


def hold(source: Any, told: Any, go: Any) -> None:
    """Has an array until it is killed, or told to end."""
    array = source.get()
    told.put((os.getpid(), int(array[0])))
    go.wait()


def hold_more(array: Any, told: Any, go: Any) -> None:
    """The same, of an argument."""
    told.put((os.getpid(), int(array[0])))
    go.wait()


def put_and_hang(target: Any, array: Any, go: Any) -> None:
    """Sends, and stays."""
    for number in range(3):
        target.put((number, array[number:]))
    go.wait()


# ---- tasks of pools


def in_place(array: Any) -> Any:
    """The argument back, with 1 added where it lies."""
    array += 1
    return array


def sums(array: Any, other: Any = None) -> float:
    return float(array.sum() + (0 if other is None else other.sum()))


def new_array(length: int) -> Any:
    from mpipc import arrays

    made = arrays.empty(length)
    made[...] = length
    return made


def pieces_of(array: Any) -> list[Any]:
    return [array[:10], array[::-1], array.T]


def read_only(array: Any) -> tuple[bool, float]:
    return not array.flags.writeable, float(array.sum())


def ordinary(length: int) -> Any:
    import numpy

    return numpy.full(length, length, "float64")


def has_inherited() -> int:
    """Bytes of memory that this worker has from its parent."""
    from mpipc._memory.memory import held

    return sum(memory.nbytes for memory in held() if memory.inherited and memory.block is not None)


def die_with(array: Any) -> None:
    import signal

    os.kill(os.getpid(), signal.SIGKILL)

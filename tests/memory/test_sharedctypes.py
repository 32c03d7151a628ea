"""mpipc.sharedctypes: every ctypes type, with and without locks, in several processes."""

from __future__ import annotations

import ctypes
import multiprocessing.sharedctypes
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from support import kernel_objects, run_script, wait_until

import mpipc
from mpipc import sharedctypes
from mpipc._core import current

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

MIB = 1 << 20


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_double))


class Nested(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * 20), ("points", Point * 3), ("flags", ctypes.c_uint, 3))


class Either(ctypes.Union):
    _fields_ = (("number", ctypes.c_uint32), ("bytes", ctypes.c_uint8 * 4))


SAMPLES = {
    "c": b"x",
    "u": "ü",
    "b": -5,
    "B": 200,
    "h": -30000,
    "H": 60000,
    "i": -(1 << 31),
    "I": (1 << 32) - 1,
    "l": -(1 << 40),
    "L": 1 << 63,
    "q": -(1 << 62),
    "Q": (1 << 64) - 1,
    "f": 0.5,
    "d": 2.718281828459045,
}
TYPES = [
    ctypes.c_bool,
    ctypes.c_longdouble,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int8,
    ctypes.c_uint16.__ctype_be__,
]


# --- one process ------------------------------------------------------------------------------------------------------


def test_every_typecode_is_tried() -> None:
    assert set(SAMPLES) == set(sharedctypes.typecode_to_type)


@pytest.mark.parametrize("typecode", ["x", "ii", "", 5, int, None])
def test_bad_typecodes(typecode: Any) -> None:
    for make in (mpipc.Value, mpipc.RawValue):
        with pytest.raises(TypeError, match=r"bad typecode .*: it must be a ctypes type or one of c u b"):
            make(typecode, 1)
    for make in (mpipc.Array, mpipc.RawArray):
        with pytest.raises(TypeError, match=r"bad typecode .*: it must be a ctypes type or one of c u b"):
            make(typecode, 1)


@pytest.mark.parametrize("typecode", SAMPLES)
def test_values(typecode: str) -> None:
    sample = SAMPLES[typecode]
    zero = type(sample)() if typecode not in "cu" else {"c": b"\0", "u": "\0"}[typecode]
    value = mpipc.Value(typecode)
    assert value.value == zero
    value.value = sample
    assert value.value == sample
    assert mpipc.Value(typecode, sample).value == sample
    assert mpipc.RawValue(typecode, sample).value == sample
    assert isinstance(value.get_obj(), sharedctypes.typecode_to_type[typecode])


@pytest.mark.parametrize("type_", TYPES)
def test_ctypes_types(type_: Any) -> None:
    value = mpipc.Value(type_, 1)
    assert value.value == 1
    array = mpipc.Array(type_, 5)
    array[4] = 1
    assert [bool(item) for item in array[:]] == [False, False, False, False, True]


@pytest.mark.parametrize("typecode", [code for code in SAMPLES if code != "c"])
def test_arrays(typecode: str) -> None:
    sample = SAMPLES[typecode]
    array = mpipc.Array(typecode, [sample] * 10)
    assert len(array) == 10
    joined: Any = "ü" * 10 if typecode == "u" else [sample] * 10
    assert array[:] == joined
    raw = mpipc.RawArray(typecode, 10)
    raw[3:5] = [sample] * 2 if typecode != "u" else "üü"
    assert raw[2:6] == ([0, sample, sample, 0] if typecode != "u" else "\0üü\0")


def test_items_and_slices() -> None:
    array = mpipc.Array("i", range(10))
    assert (array[0], array[-1], array[2:5], array[::3], array[::-5]) == (0, 9, [2, 3, 4], [0, 3, 6, 9], [9, 4])
    array[2:4] = [20, 30]
    array[-1] = 90
    assert list(array) == [0, 1, 20, 30, 4, 5, 6, 7, 8, 90]
    with pytest.raises(IndexError):
        array[10]
    with pytest.raises(ValueError, match="size"):
        array[0:3] = [1, 2]
    with pytest.raises(TypeError):
        array[0] = "text"


def test_strings() -> None:
    string = mpipc.Array("c", 10)
    assert isinstance(string, sharedctypes.SynchronizedString)
    string.value = b"hello"
    assert (string.value, string.raw, string[1], string[1:3]) == (b"hello", b"hello" + bytes(5), b"e", b"el")
    string.raw = b"0123456789"
    assert string.value == b"0123456789"
    with pytest.raises(ValueError, match="too long"):
        string.value = b"x" * 11
    assert mpipc.Array("c", b"bytes").raw == b"bytes"


def test_structures() -> None:
    point = mpipc.Value(Point, 3, 0.5)
    assert (point.x, point.y) == (3, 0.5)
    point.x += 1
    assert (point.x, type(point).__name__) == (4, "SynchronizedPoint")
    assert type(mpipc.Value(Point)) is type(point)
    nested = mpipc.Value(Nested)
    nested.points[1].y = 7.0
    nested.name = b"name"
    nested.flags = 5
    assert (nested.points[1].y, nested.name, nested.flags, nested.points[0].x) == (7.0, b"name", 5, 0)
    either = mpipc.Value(Either, 0x01020304)
    assert sorted(either.bytes) == [1, 2, 3, 4]
    points = mpipc.Array(Point, [(1, 2.0), (3, 4.0)])
    assert [(p.x, p.y) for p in points] == [(1, 2.0), (3, 4.0)]


def test_locks() -> None:
    assert isinstance(mpipc.Value("i", lock=False), ctypes.c_int)
    assert isinstance(mpipc.Array("i", 3, lock=False), ctypes.Array)
    lock = mpipc.Lock()
    value = mpipc.Value("i", lock=lock)
    assert value.get_lock() is lock
    assert mpipc.Array("i", 3, lock=lock).get_lock() is lock
    for chosen in (True, None):
        value = mpipc.Value("i", lock=chosen)
        with value.get_lock(), value:
            value.value += 1
    for wrong in (5, "lock", object()):
        with pytest.raises(AttributeError, match="acquire"):
            mpipc.Value("i", lock=wrong)
        with pytest.raises(AttributeError, match="acquire"):
            mpipc.Array("i", 3, lock=wrong)


def test_a_wrapper_locks_every_access() -> None:
    log = []

    class Recorder:
        def acquire(self) -> None:
            log.append("+")

        def release(self) -> None:
            log.append("-")

        __enter__ = acquire

        def __exit__(self, *details: object) -> None:
            self.release()

    array = mpipc.Array("i", 3, lock=Recorder())
    array[0] = 5
    array[:2]
    value = mpipc.Value("i", lock=Recorder())
    value.value += 1
    mpipc.Value(Point, lock=Recorder()).x = 4
    assert "".join(log) == "+-" * 5


def test_wrappers_are_instances_of_multiprocessings_classes() -> None:
    for ours, name in (
        (mpipc.Value("i"), "Synchronized"),
        (mpipc.Array("i", 1), "SynchronizedArray"),
        (mpipc.Array("c", 1), "SynchronizedString"),
        (mpipc.Value(Point), "SynchronizedBase"),
    ):
        assert isinstance(ours, getattr(multiprocessing.sharedctypes, name))
        assert isinstance(ours, getattr(sharedctypes, name))


def test_repr() -> None:
    assert repr(mpipc.Value("i", 5)) == "<Synchronized wrapper for c_int(5)>"


def test_copy_and_synchronized() -> None:
    point = sharedctypes.RawValue(Point, 1, 2.0)
    copy = sharedctypes.copy(point)
    copy.x = 9
    assert (point.x, copy.x, copy.y) == (1, 9, 2.0)
    array = sharedctypes.copy(sharedctypes.RawArray("i", [1, 2, 3]))
    assert array[:] == [1, 2, 3]
    wrapped = sharedctypes.synchronized(array)
    assert wrapped.get_obj() is array
    with pytest.raises(AssertionError):
        sharedctypes.synchronized(wrapped)


@pytest.mark.compares
def test_bad_arguments() -> None:
    before = current().blocks()
    for function, arguments, error in (
        (mpipc.Value, ("i", "text"), TypeError),
        (mpipc.Value, ("i", 1, 2), TypeError),
        (mpipc.Value, (5,), TypeError),
        (mpipc.Value, (int,), TypeError),
        (mpipc.Value, (Point, 1, 2.0, 3), TypeError),
        (mpipc.Array, ("i", -1), ValueError),
        (mpipc.Array, ("i", ["text"]), TypeError),
        (mpipc.Array, ("i", 1.5), TypeError),
        (mpipc.Array, ("i", 1 << 61), (OverflowError, ValueError, OSError)),
        (mpipc.Array, ("i", None), TypeError),
    ):
        with pytest.raises(error):  # type: ignore[call-overload]
            function(*arguments)
        with pytest.raises(error):  # type: ignore[call-overload]
            getattr(multiprocessing, function.__name__)(*arguments)
    assert current().blocks() == before


def test_empty_array() -> None:
    assert mpipc.Array("i", 0)[:] == mpipc.RawArray("i", [])[:] == []


def test_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    array = mpipc.Array("d", 1000)
    view = numpy.frombuffer(array.get_obj())
    view[:] = range(1000)
    assert sum(array) == 499_500
    assert view.flags.aligned and view.flags.writeable
    del array
    assert view.sum() == 499_500  # numpy keeps the memory
    raw = numpy.frombuffer(mpipc.RawArray(ctypes.c_uint8, 5), dtype="uint8")
    assert not raw.any()


def test_pickling_is_for_spawning_only() -> None:
    for shared in (mpipc.Value("i"), mpipc.Array("i", 3), mpipc.RawArray("i", 3), mpipc.Value(Point)):
        with pytest.raises((RuntimeError, ValueError, pickle.PicklingError)):
            multiprocessing.reduction.ForkingPickler.dumps(shared)


def test_an_array_that_is_too_large_names_the_limit() -> None:
    before = current().blocks()
    with pytest.raises(mpipc_limit_error(), match=r"memory|SHM"):
        mpipc.RawArray("b", 1 << 46)
    assert current().blocks() == before


def mpipc_limit_error() -> type[OSError]:
    from mpipc.sysv import LimitError

    return LimitError


# --- several processes ------------------------------------------------------------------------------------------------


def _double(value: Any, array: Any, raw: Any, point: Any, text: Any) -> None:
    value.value *= 2
    for i in range(len(array)):
        array[i] *= 2
        raw[i] *= 2
    point.x *= 2
    point.y *= 2
    text.value *= 2


@pytest.mark.slow_with("forkserver")
@pytest.mark.parametrize("lock", [True, False])
def test_children_change_them(ctx: Any, lock: bool) -> None:
    """The body of multiprocessing's own test."""
    value = ctx.Value("i", 7, lock=lock)
    array = ctx.Array("d", range(10), lock=lock)
    raw = ctx.RawArray("q", range(10))
    point = ctx.Value(Point, 3, 2.0, lock=lock)
    text = ctx.Array("c", 20, lock=lock)
    text.value = b"hello"
    process = ctx.Process(target=_double, args=(value, array, raw, point, text))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (value.value, point.x, point.y, text.value) == (14, 6, 4.0, b"hellohello")
    assert list(array) == list(raw) == [2 * i for i in range(10)]


def _increment(counter: Any, times: int, started: Any) -> None:
    started.send(None)
    for _ in range(times):
        with counter.get_lock():
            counter.value += 1


@pytest.mark.slow_with("spawn")
def test_increments_are_exact(ctx: Any) -> None:
    counter = ctx.Value("q", 0)
    _ours, theirs = ctx.Pipe()
    processes = [ctx.Process(target=_increment, args=(counter, 3000, theirs)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.value == 12_000


@pytest.mark.slow_with("spawn")
def test_increments_of_the_survivors(ctx: Any) -> None:
    counter = ctx.Value("q", 0)
    ours, theirs = ctx.Pipe()
    processes = [ctx.Process(target=_increment, args=(counter, 3000, theirs)) for _ in range(4)]
    for process in processes:
        process.start()
    victims = [ctx.Process(target=_increment, args=(counter, 1 << 40, theirs)) for _ in range(2)]
    for process in victims:
        process.start()
    for _ in range(6):
        ours.recv()
    before = counter.value
    wait_until(lambda: counter.value > before + 100)
    for process in victims:
        process.kill()
    for process in processes + victims:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert counter.value >= 12_000
    with counter.get_lock():
        counter.value += 1


def _check_array(array: Any, connection: Any) -> None:
    connection.recv()
    connection.send(array[:] == list(range(1000)))
    array[0] = 99
    connection.send(array[0])


def test_an_array_lives_as_long_as_a_child_uses_it(ctx: Any) -> None:
    array = ctx.Array("i", range(1000))
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=_check_array, args=(array, theirs))
    process.start()
    del array
    others = [ctx.RawArray("i", [-1] * 1000) for _ in range(10)]
    ours.send(None)
    assert ours.recv() is True
    assert ours.recv() == 99
    assert all(other[0] == -1 for other in others)
    process.join()


def _both(ours: Any, theirs: Any) -> None:
    ours.value += 1
    theirs.value += 2


@pytest.mark.compares
def test_beside_multiprocessings_own(start_method: str) -> None:
    """Values of both packages, of one ctypes type, go to one child."""
    standard = multiprocessing.get_context(start_method).Value("i", 10)
    own_context = mpipc.get_context(start_method)
    own = own_context.Value("i", 10)
    process = own_context.Process(target=_both, args=(own, standard))
    process.start()
    process.join()
    assert (own.value, standard.value) == (11, 12)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hundred_thousand_values() -> None:
    for _ in range(100):
        mpipc.Value("i", 1)
    before = kernel_objects(), len(current().blocks())
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    for _ in range(100_000):
        mpipc.Value("i", 1)
    assert (kernel_objects(), len(current().blocks())) == before
    assert int(Path("/proc/self/statm").read_text().split()[1]) - resident < 256  # pages


SMALL_DEV_SHM = """
    import os, sys, mpipc
    from mpipc.shared_memory import SharedMemory

    def child(array, name):
        array[0] = array[len(array) - 1] = 7
        segment = SharedMemory(name)
        segment.buf[-1] = 8

    if __name__ == "__main__":
        context = mpipc.get_context(sys.argv[1])
        array = context.Array("b", 16 << 20)
        segment = SharedMemory(create=True, size=100 << 20)
        for start in range(0, segment.size, 1 << 20):
            segment.buf[start : start + (1 << 20)] = b"x" * (1 << 20)
        process = context.Process(target=child, args=(array, segment.name))
        process.start()
        process.join()
        print(array[0], array[len(array) - 1], segment.buf[-1], os.listdir("/dev/shm"))
        segment.unlink()
"""


def can_mount() -> bool:
    return os.system("unshare --mount true 2>/dev/null") == 0


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace")
def test_a_dev_shm_of_64_kib_is_enough(start_method: str) -> None:
    result = run_script(
        f"""
        import os, subprocess, sys
        script = sys.argv[0] + ".inner.py"
        open(script, "w").write({_dedented(SMALL_DEV_SHM)!r})
        command = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec $0 $1 {start_method}"
        sys.exit(subprocess.run(["unshare", "--mount", "sh", "-c", command, sys.executable, script]).returncode)
        """
    )
    assert result.stdout == "7 7 8 []\n", result.stderr


def _dedented(source: str) -> str:
    import textwrap

    return textwrap.dedent(source)

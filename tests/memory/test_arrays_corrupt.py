"""What another program of the same user has written into a message that refers to memory, or into what says who holds
it: an error or an object, never a crash, and the queue works afterwards."""

from __future__ import annotations

import random

import pytest
from support import run_script

pytest.importorskip("numpy")

HEAD = """
import ctypes, errno, faulthandler, gc, os, pickle, random, struct, sys, time
import numpy as np
import mpipc
from mpipc import arrays
from mpipc._core import current
from mpipc._core.family import extra

faulthandler.enable()
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
LENGTH = 12345                     # of the arrays: what it is found by
family = current()

def segments():
    return {id for _, name, id, _ in family.blocks() if name == "segment" and id >= 0}

attached = {}

def head(array):
    # Of the message that refers to the array: a view of it, found by what its span says.
    wanted = struct.pack("QQQ", 0, 0, array.nbytes)
    for id in segments():
        if id not in attached:
            address = libc.shmat(id, None, 0)
            if address in (None, ctypes.c_void_p(-1).value):
                continue
            attached[id] = (ctypes.c_ubyte * size_of(id)).from_address(address)
        memory = attached[id]
        at = bytes(memory).find(wanted)
        if at >= 16:
            return memoryview(memory).cast("B")[at - 16 : at + 24]  # count, spans; a reference; which, offset, bytes

def size_of(id):
    from mpipc.sysv import IPC_STAT, shmctl
    return shmctl(id, IPC_STAT).shm_segsz

def let_go():
    while attached:
        libc.shmdt(ctypes.addressof(attached.popitem()[1]))

def message():
    queue = mpipc.Queue()
    array = arrays.zeros(LENGTH, "uint8")
    queue.put(array)
    found = head(array)
    assert found is not None
    return queue, array, found
"""

SPOILT = {
    "no references": (0, "I", 0),
    "two references": (0, "I", 2),
    "very many references": (0, "I", 0xFFFFFFFF),
    "as many as there may be": (0, "I", 65536),
    "no spans": (4, "I", 0),
    "very many spans": (4, "I", 0xFFFFFFFF),
    "a block that is none": (8, "I", 0x3FFFF),
    "another block": (8, "I", 1),
    "block 0": (8, "I", 0),
    "a block that is free": (8, "I", 200_000),
    "another life": (12, "I", 77),
    "a copy": (8, "B", 255),
    "memory that is not there": (16, "Q", 1),
    "memory far away": (16, "Q", (1 << 64) - 1),
    "an offset behind the end": (24, "Q", 1 << 40),
    "an offset that overflows": (24, "Q", (1 << 64) - 8),
    "one byte more": (32, "Q", 12346),
    "endless": (32, "Q", (1 << 64) - 1),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_heads(name: str) -> None:
    at, kind, value = SPOILT[name]
    source = (
        HEAD
        + f"""
queue, array, found = message()
struct.pack_into({kind!r}, found, {at}, {value})
try:
    arrived = queue.get(timeout=30)
    print("object")
    arrived.tobytes()
except OSError as error:
    assert error.errno in (errno.EBADMSG, errno.ESTALE), error
    print("error", error)
except (pickle.UnpicklingError, ValueError, TypeError) as error:
    print("error", error)       # a head of another length: what follows is no pickle
array[...] = 3
queue.put(array)
assert (queue.get(timeout=30) == 3).all()
assert queue.empty()
queue, more, _ = message()
assert not queue.get(timeout=30).any()
"""
    )
    print(run_script(source).stdout)


FUZZ = (
    HEAD
    + """
source = random.Random(int(sys.argv[1]))
ALLOWED = (OSError, EOFError, MemoryError, ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError,
           pickle.UnpicklingError, OverflowError, UnicodeDecodeError, BufferError)
deadline = time.monotonic() + float(sys.argv[2])
rounds = errors = 0
while time.monotonic() < deadline:
    queue, array, found = message()
    for _ in range(source.choice((1, 1, 2, 5))):
        at = source.choice((0, 4, 8, 12, 16, 20, 24, 28, 32, 36))
        word = struct.unpack_from("I", found, at)[0]
        struct.pack_into("I", found, at, source.choice((
            0, 1, word + 1, word - 1, word ^ 1 << source.randrange(32), source.getrandbits(32), source.getrandbits(12),
            0xFFFFFFFF)) & 0xFFFFFFFF)
    try:
        arrived = queue.get(source.random() < 0.5, 1, copy=source.choice((None, False, True)))
        if isinstance(arrived, np.ndarray):
            arrived.tobytes()
    except ALLOWED:
        errors += 1
    arrived = found = None
    let_go()
    other = mpipc.Queue()
    array[...] = rounds % 256
    other.put(array)
    assert (other.get(timeout=30) == rounds % 256).all()
    rounds += 1
print(rounds, "rounds,", errors, "errors")
sys.stdout.flush()
os._exit(0)
"""
)


def test_heads_spoilt_at_random() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    print(run_script(FUZZ, arguments=[str(seed), "5"], timeout=100).stdout)


BLOCKS = (
    HEAD
    + """
source = random.Random(int(sys.argv[1]))
deadline = time.monotonic() + float(sys.argv[2])
rounds = 0
while time.monotonic() < deadline:
    array = arrays.zeros(LENGTH, "uint8")
    memory = arrays._memory_of(array)
    queue = mpipc.Queue()
    queue.put(array)
    extra(memory.block, source.choice((0, 1, 2)), source.choice((
        0, 1, source.getrandbits(64), source.getrandbits(16), (1 << 64) - 1, 1 << 63)))
    for call in (lambda: arrays.holders(array), lambda: queue.put(array), lambda: queue.get(timeout=1),
                 lambda: queue.get(timeout=0), lambda: arrays.usage(), lambda: arrays.trim()):
        try:
            call()
        except (OSError, MemoryError, ValueError, mpipc.queues.Empty):
            pass
    rounds += 1
    del array, memory, queue
fresh = arrays.zeros(LENGTH, "uint8")
queue = mpipc.Queue()
queue.put(fresh)
assert not queue.get(timeout=30).any()
print(rounds, "rounds")
sys.stdout.flush()
os._exit(0)
"""
)


def test_spoilt_blocks() -> None:
    """What a block says of its memory: size, piece."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    print(run_script(BLOCKS, arguments=[str(seed), "3"], timeout=100).stdout)

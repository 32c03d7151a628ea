"""What another program of the same user has written into a queue: never a crash, never an endless loop; an error that
names the queue, and what cannot be a message is gone."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from support import run_script, sysctl

from mpipc._queue.plain import decode, encode
from mpipc.queues import JoinableQueue, PriorityQueue, Queue
from mpipc.sysv import IPC_SET, msgctl

LEVEL = 0x20000  # MP_TYPE_LEVEL
INLINE, PLAIN, PIECE = 0, 1, 2

libc = ctypes.CDLL(None, use_errno=True)


def _send(queue: Any, body: bytes, kind: int = LEVEL) -> None:
    buffer = struct.pack("l", kind) + body
    assert libc.msgsnd(queue._messages.block.id, buffer, len(body), 0) == 0, os.strerror(ctypes.get_errno())


FORGED = {
    "empty body": b"",
    "descriptor of a piece": bytes([PIECE]) + b"\xff" * 24,
    "descriptor of the first piece": bytes([PIECE]) + bytes(24),
    "unknown kind": b"\x09abc",
    "plain, cut off": bytes([PLAIN]) + b"\x0b\xff\xff",
    "plain, long list": bytes([PLAIN]) + b"\x0c\xff\xff" + bytes(10),
    "plain, deep": bytes([PLAIN]) + b"\x0c\x01\x00" * 600,
    "plain, unknown tag": bytes([PLAIN]) + b"\xee",
    "plain, with a rest": bytes([PLAIN]) + bytes(5),
    "plain, not ASCII": bytes([PLAIN]) + b"\x06\x04\x00\xff\xfe\xfd\xfc",
    "plain, beyond Unicode": bytes([PLAIN]) + b"\x09\x01\x00\xff\xff\xff\xff",
    "plain, a list as a key": bytes([PLAIN]) + b"\x0d\x01\x00\x0c\x00\x00\x00",
    "pickle, cut off": bytes([INLINE]) + b"\x80\x05",
    "empty pickle": bytes([INLINE]),
    "too long": bytes([INLINE]) + b"x" * 4000,
    "a little too long": bytes([INLINE]) + b"x" * 2049,
}


@pytest.mark.parametrize("make", [Queue, lambda: Queue(10), JoinableQueue, PriorityQueue])
@pytest.mark.parametrize("name", FORGED)
def test_forged_messages_are_dropped(make: Callable[[], Any], name: str) -> None:
    queue = make()
    queue.put("before")
    _send(queue, FORGED[name], LEVEL + (32767 if make is PriorityQueue else 0))
    queue.put("after")
    assert queue.get(timeout=60) == "before"
    with pytest.raises(OSError, match=f"message queue {queue._messages.block.id} ") as caught:
        queue.get(timeout=60)
    assert caught.value.errno == errno.EBADMSG
    assert queue.get(timeout=60) == "after"
    assert queue.empty()
    queue.put(1)
    assert queue.get() == 1
    if isinstance(queue, JoinableQueue):
        for _ in range(queue._messages.unfinished()):
            queue.task_done()
        queue.join()


@pytest.mark.parametrize("kind", [1, 2, 0xFFFF, 0x10000, 0x1FFFF, LEVEL + 1, LEVEL + 32768, (1 << 62)])
@pytest.mark.parametrize("make", [Queue, PriorityQueue])
def test_forged_types(make: Callable[[], Any], kind: int) -> None:
    queue = make()
    _send(queue, bytes([PLAIN, 1]), kind)
    queue.put("after")
    received = []
    while "after" not in received:
        try:
            received.append(queue.get(timeout=60))
        except OSError as error:
            assert error.errno == errno.EBADMSG
    if make is PriorityQueue and kind >= LEVEL + 32768:  # it comes last
        with pytest.raises(OSError, match="message queue"):
            queue.get(timeout=60)
    assert queue.empty()


def test_a_dropped_message_does_not_keep_join_waiting() -> None:
    queue: JoinableQueue[int] = JoinableQueue()
    _send(queue, b"\x09")
    with pytest.raises(OSError, match="message queue"):
        queue.get()
    queue.join()


def test_get_many_gives_the_others() -> None:
    queue: Queue[int] = Queue()
    queue.put(1)
    _send(queue, b"\x09")
    queue.put(2)
    with pytest.raises(OSError, match="message queue") as caught:
        queue.get_many(10)
    assert getattr(caught.value, "received", None) == [1]
    assert queue.get_many(10) == [2]


# ---- plain objects ---------------------------------------------------------------------------------------------------


def test_garbage_is_an_error_or_an_object() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    good = encode([1, "text", "\xff", "\u20ac", "\U0001f600", {"key": (None, 2.5, b"bytes", 1 << 40)}, [True, [False]]])
    assert good is not None
    for _ in range(20000):
        data = bytearray(good)
        for _ in range(source.randrange(1, 6)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            obj = decode(bytes(data[: source.randrange(1, len(data) + 1)]))
        except (ValueError, TypeError, MemoryError):
            continue
        repr(obj).encode("utf-8", "surrogatepass")


# ---- shared memory ---------------------------------------------------------------------------------------------------

FUZZ = """
import ctypes, faulthandler, os, pickle, queue as q, random, signal, sys, time, traceback
import mpipc
from mpipc import queues
from mpipc._core import current
from mpipc._core.family import extra, payload

faulthandler.enable()
source = random.Random(int(sys.argv[1]))
kind = sys.argv[2]
ALLOWED = (OSError, EOFError, MemoryError, ValueError, q.Empty, q.Full, queues.ShutDown, pickle.UnpicklingError)
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
family = current()

attached = []

def segments():
    return {id for _, name, id, _ in family.blocks() if name == "segment" and id >= 0}

def spoil(memory, first, last):
    for _ in range(source.choice((1, 3, 30))):
        at = source.randrange(first, last) & ~7
        word = int.from_bytes(bytes(memory[at : at + 8]), sys.byteorder)
        word = source.choice((
            0, 1, (1 << 64) - 1, source.getrandbits(64), source.getrandbits(16), word ^ 1 << source.randrange(64),
            word + 8, word << 32 & (1 << 64) - 1, word + (1 << 32), 0xffffffff, 1 << 63)) & (1 << 64) - 1
        for i, byte in enumerate(word.to_bytes(8, sys.byteorder)):
            memory[at + i] = byte

class Stuck(BaseException):
    pass

def stuck(*a):
    raise Stuck  # in a loop that looks for signals: not one that never ends

signal.signal(signal.SIGALRM, stuck)

def make():
    if kind == "priority":
        return queues.PriorityQueue()
    return queues.JoinableQueue() if kind == "counted" else queues.Queue(50 if kind == "bounded" else 0)

def use(queue, *calls):
    # each call with a deadline, or one that never waits
    for call in calls or (
        lambda: queue.put_many([b"m" * 900] * 20, False), lambda: queue.put(1, timeout=0.01),
        lambda: queue.put(os.urandom(70000), timeout=0.01), lambda: queue.get(timeout=0.01), lambda: queue.get_nowait(),
        lambda: queue.get_many(30, False), lambda: queue.qsize(), lambda: queue.statistics(), lambda: queue.trim(),
        lambda: queue.empty(), lambda: queue._messages.hold() or queue._messages.let_go(),
    ):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            call()
        except (*ALLOWED, Stuck) as e:
            assert not isinstance(e, BlockingIOError), e
        except Exception:
            # What a spoilt pickle may raise, once it is at it.
            if not traceback.extract_tb(sys.exc_info()[2])[-1].name.endswith("MessageQueue.unpack"):
                raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

# struct mp_arena: stamp, number of segments, their table, the marks, the bits of lanes in use, the first lane
DIRECTORY = ((0, 16), (16, 64), (16, 8208), (8208, 12304), (12304, 12312), (12304, 16400), (16400, 16416))
DATA = ((0, 4096), (0, 64), (4096, 4160), (4096, 20480), (20480, 20544))

deadline = time.monotonic() + float(sys.argv[3])
rounds = errors = 0
while time.monotonic() < deadline:
    before = segments()
    queue = make()
    try:
        queue.put_many([bytes([i]) * source.randrange(1, 1900) for i in range(48)], False)
        for i in range(20 if kind != "bounded" else 0):
            queue.put(os.urandom(source.choice((100, 3000, 20000))))
    except ALLOWED:
        pass
    mine = sorted(segments() - before)
    for id in mine:
        memory = libc.shmat(id, None, 0)
        whole = (ctypes.c_ubyte * 20544).from_address(memory)
        if source.random() < 0.5:
            spoil(whole, *source.choice(DIRECTORY if id == mine[0] else DATA))
        attached.append(memory)
    if source.random() < 0.3:
        spoil(payload(queue._messages.block), 0, 64)
    if source.random() < 0.1:
        extra(queue._messages.block, 2, source.choice((source.getrandbits(64), (1 << 64) - 1)))  # what was posted
    if source.random() < 0.2:
        use(queue)
        use(queue, lambda: queue.shutdown(source.random() < 0.5))
    for _ in range(3):
        use(queue)
    while attached:
        libc.shmdt(attached.pop())
    other = queues.Queue()
    other.put(rounds)
    assert other.get(timeout=30) == rounds
    rounds += 1
print("rounds", rounds)
sys.stdout.flush()
os._exit(0)
"""


# The last: a room's bell is spoilt, and a set is made for its number, far from all others.
@pytest.mark.slow_but("unlimited-None")
@pytest.mark.parametrize(
    ("kind", "seed"),
    [("unlimited", None), ("bounded", None), ("counted", None), ("priority", None), ("bounded", 3796228478)],
)
def test_spoilt_shared_memory(kind: str, seed: int | None) -> None:
    seed = random.randrange(1 << 32) if seed is None else seed
    print("seed", seed)
    result = run_script(FUZZ, arguments=[str(seed), kind, "5"], timeout=100)
    assert int(result.stdout.split()[1]) > 0


# ---- limits of the kernel --------------------------------------------------------------------------------------------

SIZES = [0, 1, 10, 100, 900, 1100, 1900, 2040, 3000, 100000]


@pytest.mark.parametrize("limit", [1, 16, 1000, 2048])
@pytest.mark.parametrize("make", [Queue, lambda: Queue(100), PriorityQueue])
def test_small_msgmax(make: Callable[[], Any], limit: int) -> None:
    with sysctl("msgmax", limit):
        queue = make()
        for _ in range(3):
            for size in SIZES:
                queue.put(b"x" * size)
                assert queue.get(timeout=60) == b"x" * size
        for size in SIZES:
            queue.put(b"x" * size)
        assert [len(queue.get(timeout=60)) for _ in SIZES] == SIZES


def _consume(queue: Any, results: Any) -> None:
    for obj in iter(queue.get, None):
        results.put(len(obj))


@pytest.mark.slow_with("spawn", "forkserver")
@pytest.mark.parametrize("limit", [1, 2, 100, 3000])
def test_small_msgmnb(ctx: Any, limit: int) -> None:
    with sysctl("msgmnb", limit):
        queue, results = ctx.Queue(), ctx.Queue()
        process = ctx.Process(target=_consume, args=(queue, results))
        process.start()
        for size in SIZES * 5:
            queue.put(b"x" * size)
        queue.put(None)
        assert [results.get(timeout=60) for _ in SIZES * 5] == SIZES * 5
        process.join()


@pytest.mark.slow_with("spawn", "forkserver")
@pytest.mark.parametrize("limit", [0, 1, 50, 2000])
def test_msg_qbytes_lowered_in_use(ctx: Any, limit: int) -> None:
    """By somebody who has seen it in ipcs. Whoever sleeps has to be woken nevertheless."""
    queue, results = ctx.Queue(), ctx.Queue()
    process = ctx.Process(target=_consume, args=(queue, results))
    process.start()
    sent = 0
    for n in range(20):
        for size in SIZES:
            queue.put(b"x" * size)
            sent += 1
        if n % 4 == 2:
            assert [results.get(timeout=60) for _ in range(sent)] == SIZES * (sent // len(SIZES))
            sent = 0
            id = queue._messages.block.id
            msgctl(id, IPC_SET, msg_qbytes=limit)
    queue.put(None)
    assert [results.get(timeout=60) for _ in range(sent)] == SIZES * (sent // len(SIZES))
    process.join()

"""How a pool and its workers talk: one System V message queue a worker for tasks, one for all results.

A message is a header, and up to two parcels. A parcel is a pickled object: in the message itself if it is small,
otherwise in a shared memory segment that the message names. The segment is marked for removal before the message is
sent (Linux lets others attach it as long as somebody has it attached), so it is gone with the last of its users,
however they end. The sender has to keep its `Parcel` until the receiver has unpacked it.

A task queue never holds more than `WINDOW` tasks and a few messages without parcels, and parcels in messages are
limited so that this fits: sending to a worker does not block.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, NamedTuple

from mpipc.family import Block, new_queue, new_segment
from mpipc.reduction import ForkingPickler
from mpipc.sysv import IPC_NOWAIT, IPC_RMID, IPC_STAT, SHM_RDONLY, Attachment, msgctl, msgrcv, msgsnd, shmat, shmctl
from mpipc.sysv.errors import SysVBlockingIOError, SysVError
from mpipc.sysv.limits import limits

__all__ = ["WINDOW", "Channel", "Message", "Parcel", "Vanished", "unpack"]

WINDOW = 2
"""Tasks a worker has at most: one that runs, and one that waits so that the worker need not wait for it."""

# Message types. The parent takes tasks that wait out of a worker's queue again, and leaves the rest there.
TASK = 1
NOTICE = 2

_HEADER = struct.Struct("<QQII")  # number, tag, kind, length of the first parcel
_DESCRIPTOR = struct.Struct("<ciQ")  # b"S", shmid, size
_COUNT = struct.Struct("<Q")
_SPARE = 1024  # bytes of a queue that are left for messages without parcels


class Vanished(Exception):
    """The sender of a parcel died before it could be unpacked."""


class Message(NamedTuple):
    """What was received; the parcels are still packed."""

    number: int
    tag: int
    kind: int
    first: bytes
    second: bytes


class Parcel:
    """A pickled object, ready to be sent any number of times.

    Raises whatever the object raises when it is pickled, and OSError if it is large and there is no shared memory.
    """

    __slots__ = ("_memory", "wire")

    def __init__(self, value: Any, room: int) -> None:
        """Pickle `value`; up to `room` bytes are put into the message itself."""
        buffers: list[memoryview] = []

        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            try:
                view = buffer.raw()
            except BufferError:  # not contiguous
                return True
            if view.nbytes < room:
                return True
            buffers.append(view)
            return False

        stream = io.BytesIO()
        # A positional argument each: multiprocessing's pickler passes on no others.
        ForkingPickler(stream, 5, True, keep_in_band).dump(value)
        self._memory: Attachment | None = None
        if not buffers and stream.tell() <= room:
            self.wire = b"P" + stream.getvalue()
            return
        with stream.getbuffer() as data:
            self._memory = _write_segment([data, *buffers])
        self.wire = _DESCRIPTOR.pack(b"S", self._memory.shmid, self._memory.size)

    @property
    def in_shared_memory(self) -> bool:
        """Whether the receiver needs this object to be kept until it has unpacked it."""
        return self._memory is not None


def _write_segment(parts: list[memoryview]) -> Attachment:
    """A segment with the number of parts, their lengths and the parts, each of which starts at a multiple of 64."""
    table = [len(parts), *(part.nbytes for part in parts)]
    offsets = []
    position = _aligned(_COUNT.size * len(table))
    for part in parts:
        offsets.append(position)
        position = _aligned(position + part.nbytes)
    # The block makes the segment findable until it is marked: nothing is left if we are killed in between.
    block = new_segment(position)
    memory = shmat(block.id)
    shmctl(block.id, IPC_RMID)
    with memoryview(memory) as view:
        struct.pack_into(f"<{len(table)}Q", view, 0, *table)
        for offset, part in zip(offsets, parts, strict=True):
            view[offset : offset + part.nbytes] = part.cast("B") if part.nbytes else part
    return memory


def _aligned(position: int) -> int:
    return -(-position // 64) * 64


def unpack(wire: bytes) -> Any:
    """The object in a parcel. Raises Vanished, and whatever unpickling raises."""
    if wire[:1] == b"P":
        return pickle.loads(memoryview(wire)[1:])
    _, shmid, size = _DESCRIPTOR.unpack(wire)
    try:
        memory = shmat(shmid, None, SHM_RDONLY)
    except SysVError as error:
        raise Vanished(str(error)) from None
    with memory, memoryview(memory) as view:
        if memory.size != size:
            raise Vanished(f"segment {shmid} has {memory.size} bytes, not {size}")
        (count,) = _COUNT.unpack_from(view)
        lengths = struct.unpack_from(f"<{count}Q", view, _COUNT.size)
        position = _aligned(_COUNT.size * (count + 1))
        spans = []
        for length in lengths:
            spans.append((position, position + length))
            position = _aligned(position + length)
        # Buffers are copied: what is unpickled belongs to the receiver and can be written to.
        buffers = []
        for begin, end in spans[1:]:
            with view[begin:end] as part:
                buffers.append(bytearray(part))
        with view[spans[0][0] : spans[0][1]] as data:
            return pickle.loads(data, buffers=buffers)


class Channel:
    """A message queue. Any number of processes may send to it and receive from it; a message is received once."""

    def __init__(self) -> None:
        self._block: Block = new_queue()
        self._id: int = self._block.id
        capacity: int = msgctl(self._id, IPC_STAT).msg_qbytes
        longest = min(limits().msgmax, (capacity - _SPARE) // WINDOW) - _HEADER.size
        self.function_room = max(longest // 8, 32)
        """Bytes of a first parcel in the message itself."""
        self.room = max(longest - self.function_room - 2, 32)
        """Bytes of a second parcel in the message itself."""

    def send(
        self,
        kind: int,
        number: int,
        tag: int = 0,
        first: bytes = b"",
        second: bytes = b"",
        *,
        type: int = TASK,
        wait: bool = True,
    ) -> bool:
        """Send a message; False if the queue is full and `wait` is false."""
        text = _HEADER.pack(number, tag, kind, len(first)) + first + second
        try:
            msgsnd(self._id, type, text, 0 if wait else IPC_NOWAIT)
        except SysVBlockingIOError:
            return False
        return True

    def receive(self) -> Message:
        """Wait for the next message. RemovedError if somebody removes the queue."""
        return _parse(msgrcv(self._id)[1])

    def take(self, type: int = 0) -> Message | None:
        """The next message (of a type, if that is not 0), or None if there is none now."""
        try:
            return _parse(msgrcv(self._id, None, type, IPC_NOWAIT)[1])
        except SysVBlockingIOError:
            return None


def _parse(text: bytes) -> Message:
    number, tag, kind, length = _HEADER.unpack_from(text)
    middle = _HEADER.size + length
    return Message(number, tag, kind, text[_HEADER.size : middle], text[middle:])

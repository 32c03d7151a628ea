"""How a pool and its workers talk: one message queue a worker for tasks, one for all results.

A message is an `Envelope`. What is the user's in it, arguments and results, is pickled by itself: receiving a message
runs no code of the user, so whoever receives one knows which task it is about before anything can go wrong with its
contents.

The queues are those of mpipc.queues: sending never waits, large messages go through shared memory, and what a process
has sent arrives even if it is dead by then, and before what others send after its death.
"""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from collections.abc import Callable, Mapping
from queue import Empty
from typing import Any, NamedTuple

from mpipc._queues import MessageQueue, Reducers, dumps

__all__ = ["WINDOW", "Channel", "Envelope", "OwnReducers", "pack", "pack_whole", "unpack"]

WINDOW = 2
"""Tasks a worker has at most: one that runs, and one that waits so that the worker need not wait for it."""

OUT_OF_BAND = 1 << 14
"""Bytes from which a buffer (of a numpy array, say) is kept apart from the pickle, so that it is copied less often."""

# Objects of these very types are sent as they are: nothing can go wrong with them.
_PLAIN = frozenset([int, float, complex, bool, str, bytes, type(None)])
_FEW = 16

_reducers = Reducers()

OwnReducers = Mapping[type, Callable[[Any], Any]]
"""Functions that reduce objects of a type, as in a dispatch table of pickle's; they go before registered ones."""


class Envelope(NamedTuple):
    """A message. Sent as a plain tuple."""

    kind: int
    tag: int
    """Of the worker."""
    number: int = 0
    """Of the task."""
    function: bytes | None = None
    """The function of a task, pickled; None if the worker has it."""
    function_id: int = 0
    """Under which the worker remembers it; 0 if it need not."""
    body: Any = None
    """Arguments or result: pickled if `buffers` is not None, else the thing itself."""
    buffers: Any = None
    """What the pickle has out of band."""


def pack(value: Any, own: OwnReducers | None = None) -> tuple[Any, list[pickle.PickleBuffer] | None]:
    """Body and buffers for a value. Raises whatever pickling it raises."""
    kind = type(value)
    plain = kind in _PLAIN or (kind is tuple and len(value) <= _FEW and all(type(item) in _PLAIN for item in value))
    if plain and not own:
        return value, None
    buffers: list[pickle.PickleBuffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            if buffer.raw().nbytes < OUT_OF_BAND:
                return True
        except BufferError:  # not contiguous
            return True
        buffers.append(buffer)
        return False

    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 5, buffer_callback=keep_in_band)
    pickler.dispatch_table = _dispatch_table(own)
    pickler.dump(value)
    return stream.getvalue(), buffers


def pack_whole(value: Any, own: OwnReducers | None) -> bytes:
    """The pickle of a value, with its buffers in it. Raises whatever pickling it raises."""
    if not own:
        return dumps(value)
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 5)
    pickler.dispatch_table = _dispatch_table(own)
    pickler.dump(value)
    return stream.getvalue()


def _dispatch_table(own: OwnReducers | None) -> Any:
    tables: Any = (own, _reducers)  # not all that a mapping has, but pickle looks things up only
    return ChainMap(*tables) if own else _reducers


def unpack(body: Any, buffers: Any) -> Any:
    """The value. Raises whatever unpickling it raises."""
    return body if buffers is None else pickle.loads(body, buffers=buffers)


def _closed(*arguments: Any) -> Any:
    raise BrokenPipeError("the pool has ended")


class Channel:
    """A message queue. Any number of processes may send to it and receive from it; a message is received once."""

    def __init__(self) -> None:
        self._open(MessageQueue())

    def _open(self, messages: MessageQueue) -> None:
        self._messages = messages
        self.send: Callable[..., object] = messages.put
        """Send an envelope's fields as a tuple. Does not wait. BrokenPipeError if somebody has removed the queue."""
        self.receive: Callable[..., Any] = messages.get
        """Wait for the next message. EOFError if somebody removes the queue."""

    def close(self) -> None:
        """Let go of the queue, which is gone when its last user has done so. Nothing can be sent any more."""
        self.send = self.receive = _closed
        del self._messages

    def __getstate__(self) -> Any:
        return self._messages.block

    def __setstate__(self, state: Any) -> None:
        self._open(MessageQueue(block=state))

    def take(self) -> Envelope | None:
        """The next message, or None if there is none now."""
        try:
            return Envelope._make(self._messages.get(False))
        except Empty:
            return None

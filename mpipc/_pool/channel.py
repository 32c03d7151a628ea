"""How a pool and its workers talk: one message queue a worker for tasks, one for all results.

A message is an `Envelope`. What is the user's in it, arguments and results, is pickled by itself: receiving a message
runs no code of the user, so whoever receives one knows which task it is about before anything can go wrong with its
contents.

The queues are those of mpipc.queues: sending never waits, large messages go through shared memory, and what a process
has sent arrives even if it is dead by then, and before what others send after its death.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mpipc._queue.batch import BatchQueue

__all__ = ["DRAUGHT", "Channel", "Envelope", "OwnReducers"]

DRAUGHT = 1000
"""Messages taken at a time, at most."""

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


def _closed(*arguments: Any) -> Any:
    raise BrokenPipeError("the pool has ended")


class Channel:
    """A message queue. Any number of processes may send to it and receive from it; a message is received once."""

    def __init__(self, views: bool = False) -> None:
        self._open(BatchQueue(views=views))

    def _open(self, messages: BatchQueue) -> None:
        self._messages: BatchQueue | None = messages
        self.send: Callable[..., object] = messages.put
        """Send an envelope's fields as a tuple. Does not wait. BrokenPipeError if somebody has removed the queue."""
        self.receive: Callable[..., Any] = messages.get
        """Wait for the next message. EOFError if somebody removes the queue."""
        self.receive_unless_interrupted: Callable[..., Any] = messages.get_unless_interrupted
        """As receive(); None after a signal handler has run."""
        self.receive_many: Callable[[int], list[Any]] = messages.get_many
        """Up to so many messages that are there; if there are none, wait for the next. EOFError as above."""

    def close(self) -> None:
        """Let go of the queue, which is gone when its last user has done so. Nothing can be sent any more."""
        self.send = self.receive = self.receive_unless_interrupted = self.receive_many = _closed
        self._messages = None

    def remove(self) -> None:
        """Take the queue away from all its users: who waits in receive() gets EOFError. Waits for nobody."""
        messages = self._messages
        if messages is not None:
            messages.remove()

    def size(self) -> int:
        """How many messages there are that nobody has received. 0 when it is closed."""
        messages = self._messages
        return 0 if messages is None else messages.size()

    def __getstate__(self) -> Any:
        assert self._messages is not None
        return self._messages.block

    def __setstate__(self, state: Any) -> None:
        self._open(BatchQueue(block=state))

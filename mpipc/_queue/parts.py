"""What queues are made of, with a pickler of their own or without; and what programs know of the inside of
multiprocessing's queues, as far as these have something that means the same.

docs/compatibility.md has the list of the latter, and what there is none of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpipc._queue.batch import BatchQueue

if TYPE_CHECKING:
    from mpipc._stdlib.by_pickler import ByPickler

__all__ = ["JoinableQueueParts", "QueueParts", "SimpleQueueParts", "new_messages", "opened", "settled", "state_of"]


# ---- the messages ----------------------------------------------------------------------------------------------------


def settled(pickler: Any, context: Any) -> ByPickler | None:
    """The pickler of a queue, which is that of its context if it was not given one. See by_pickler()."""
    if pickler is None:
        by: ByPickler | None = getattr(context, "_by_pickler", None)
        return by
    from mpipc._stdlib.by_pickler import by_pickler

    return by_pickler(pickler)


def new_messages(by: ByPickler | None, *args: Any, **options: Any) -> BatchQueue:
    """A new BatchQueue, which pickles by a pickler if it is given one."""
    if by is None:
        return BatchQueue(*args, **options)
    from mpipc._queue.pickled import PickledQueue

    return PickledQueue(by, *args, **options)


def state_of(messages: BatchQueue) -> Any:
    """What the queue is opened with in another process. It pickles there as it does here."""
    by = getattr(messages, "by", None)
    return messages.block if by is None else (messages.block, by)


def opened(state: Any) -> BatchQueue:
    """The queue of state_of()."""
    block, by = state if type(state) is tuple else (state, None)
    return new_messages(by, block=block)


# ---- the inside ------------------------------------------------------------------------------------------------------


class _NoLock:
    """The lock at an end of a pipe. Here is none, and none is needed: each call takes or leaves a whole message.

    Whoever has it keeps nobody out.
    """

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """True."""
        return True

    def release(self) -> None:
        """Nothing."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *details: object) -> None:
        pass


_no_lock = _NoLock()


class _Count:
    """A number that is read like the value of a semaphore. It cannot be acquired or released."""

    def __init__(self, value: Callable[[], int]) -> None:
        self._value = value

    def get_value(self) -> int:
        """The number now."""
        return max(self._value(), 0)

    @property
    def _semlock(self) -> _Count:
        return self

    _get_value = get_value

    def _is_zero(self) -> bool:
        return self.get_value() == 0


class SimpleQueueParts:
    """Those of all queues."""

    _messages: BatchQueue
    _reader: Any
    _writer: Any

    @property
    def _rlock(self) -> _NoLock:
        return _no_lock

    @property
    def _wlock(self) -> _NoLock:
        return _no_lock

    @property
    def _poll(self) -> Callable[..., bool]:
        return self._reader.poll  # type: ignore[no-any-return]


class QueueParts(SimpleQueueParts):
    """Those of queues with a feeder thread, which is not here."""

    _maxsize: int

    @property
    def _buffer(self) -> deque[Any]:
        """What was put and is not yet in the queue: nothing, and what is put here goes nowhere."""
        return deque()

    @property
    def _thread(self) -> None:
        """The feeder thread."""
        return None

    @property
    def _sem(self) -> _Count:
        """How many more objects there is room for."""
        return _Count(lambda: self._maxsize - self._messages.size())

    @property
    def _send_bytes(self) -> Callable[..., None]:
        return self._writer.send_bytes  # type: ignore[no-any-return]

    @property
    def _recv_bytes(self) -> Callable[..., bytes]:
        return self._reader.recv_bytes  # type: ignore[no-any-return]


class JoinableQueueParts:
    """Those of queues with task_done()."""

    _messages: BatchQueue

    @property
    def _unfinished_tasks(self) -> _Count:
        """How many objects are in the queue, or taken and not done."""
        return _Count(self._messages.unfinished)

"""Broadcast: each of its subscriptions gets each message. multiprocessing has nothing like it.

There is one log in shared memory, and for each subscription a number that says how far it has got. So a message is
there for all of them or for none, and all get the messages in the same order, whoever is killed meanwhile.
"""

import weakref
from collections.abc import Iterator
from multiprocessing import util
from multiprocessing.context import BaseContext
from multiprocessing.process import current_process
from queue import Empty, Full
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from mpipc._queue.broadcast import Cursor, Log
from mpipc._queue.parts import settled
from mpipc._stdlib.given import given
from mpipc._stdlib.shut_down import ShutDown
from mpipc._stdlib.start_method import assert_shareable, is_fork

__all__ = ["Broadcast", "Empty", "Full", "ShutDown", "Subscription"]

T = TypeVar("T")


class Subscriber(NamedTuple):
    """One of those that Broadcast.subscribers() returns."""

    pids: list[int]
    """Processes that have the subscription: the one that has subscribed, and those that it was shared with."""
    behind: int
    """Messages that are there for it."""
    lost: int
    """Messages that it was too slow for."""


class Statistics(NamedTuple):
    """What Broadcast.statistics() returns."""

    messages: int
    """Messages that are kept, because a subscription has not got them yet."""
    bytes: int
    """What they take of `maxbytes`."""
    subscribers: int
    """Subscriptions."""
    waiting_readers: int
    """Threads that wait in get()."""
    waiting_writers: int
    """Threads that wait in put()."""
    is_shutdown: bool
    """Whether shutdown() has been called."""


class Broadcast(Generic[T]):
    """A channel from which each subscription gets each message that is put after it was made.

    It keeps the messages that not all subscriptions have got yet: at most `maxsize` of them, of at most `maxbytes`
    bytes as they are pickled; so large may a single one be. What becomes of a subscription that is so slow that there
    is no room for one more is said by `slow`: "block", and put() waits for it, or "drop", and it loses the oldest ones.
    Without subscriptions, put() succeeds, and nobody gets what was put.

    A subscription lasts until all processes that have it have closed it, or are dead. A process that is killed in put()
    has put the whole message or nothing, and holds up nobody; nor does one that is killed in get(): the message that it
    had in its hand is gone, if no other process shares its subscription.

    Like a queue it gets to other processes by inheritance, and as an argument of a Process. `pickler` is that of
    mpipc.Queue.
    """

    _is_fork_ctx = False

    def __init__(
        self,
        *,
        maxsize: int = 1024,
        maxbytes: int = 1 << 24,
        slow: Literal["block", "drop"] = "block",
        pickler: Any = None,
        ctx: BaseContext | None = None,
    ) -> None:
        if slow not in ("block", "drop"):
            raise ValueError(f'slow must be "block" or "drop", got {slow!r}')
        if maxsize < 1 or maxbytes < 1:
            raise ValueError(f"maxsize and maxbytes must be at least 1, got {maxsize} and {maxbytes}")
        self._is_fork_ctx = is_fork(ctx)
        self._log = Log(maxsize, maxbytes, slow == "drop")
        self._by = settled(pickler, ctx)
        self._closed = False

    def __getstate__(self) -> Any:
        assert_shareable(self)
        return self._log.block, self._by

    def __setstate__(self, state: Any) -> None:
        block, self._by = state
        self._log = Log(block=block)
        self._closed = False

    def __repr__(self) -> str:
        slow = "drop" if self._log.drops else "block"
        return f"<{type(self).__name__} maxsize={self._log.maxsize} maxbytes={self._log.maxbytes} slow={slow!r}>"

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"Broadcast {self!r} is closed")

    def subscribe(self) -> "Subscription[T]":
        """A new subscription, which gets what is put when this has returned. OSError: there are 1024 of them."""
        self._check_open()
        return Subscription(self._log.subscribe(), self._is_fork_ctx)

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Puts obj, for all subscriptions that there are.

        If there is no room and slow is "block", waits for the slowest subscription, at most `timeout` seconds if that
        is not None, and not at all without `block`; then raises queue.Full. ShutDown: it was shut down; ValueError: it
        is closed, or obj is larger than `maxbytes`; or what pickling obj raises. Nothing was put then.
        """
        self._check_open()
        if self._by is not None:
            from mpipc._queue.pickled import to_be_pickled

            obj = to_be_pickled(self._by, obj)
        if not self._log.put(obj, block, timeout):
            raise Full

    def put_nowait(self, obj: T) -> None:
        """put(obj, block=False)."""
        self.put(obj, False)

    def shutdown(self, immediate: bool = False) -> None:
        """Ends the channel, in all processes that share it.

        From now on put() raises ShutDown at once, also where it is waiting for room. get() goes on until the
        subscription has got all messages, and raises ShutDown then, also where it is waiting for one; with `immediate`,
        it does so at once. It cannot be undone. A process that is killed in it has shut the channel down for all, or
        not at all.
        """
        self._check_open()
        self._log.shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Whether shutdown() has been called, by any process."""
        return self._log.is_shutdown

    def subscribers(self) -> list[Subscriber]:
        """The subscriptions that there are: who has them, and how slow they are."""
        return [Subscriber(*found) for found in self._log.subscriptions()]

    def statistics(self) -> Statistics:
        """What is kept, and who waits."""
        messages, size, readers, writers = self._log.usage()
        return Statistics(messages, size, len(self._log.subscriptions()), readers, writers, self._log.is_shutdown)

    def close(self) -> None:
        """This process will use the channel no more; its subscriptions stay. What it has put stays there for others."""
        self._closed = True


class Subscription(Generic[T]):
    """What Broadcast.subscribe() returns. Iterating over it gets messages until the channel was shut down.

    A child process that has it as an argument shares it: each message is got by one of those who do. So does one that
    was forked, and has it by inheritance alone, but only from the moment that it uses it, if the subscription is still
    there (if it is not: OSError, ESTALE): else nobody's death would free put() from waiting, as long as there are
    children that have never heard of it. A child of os.fork() has all that its parent has, until it calls close().
    """

    def __init__(self, cursor: Cursor, is_fork_ctx: bool = False) -> None:
        self._cursor: Cursor | None = cursor
        _all.add(self)
        self._is_fork_ctx = is_fork_ctx

    def __getstate__(self) -> Any:
        assert_shareable(self)
        cursor = self._open()
        return cursor.log.block, cursor.block

    def __setstate__(self, state: Any) -> None:
        log, block = state
        self.__init__(Cursor(Log(block=log), block))  # type: ignore[misc]

    def _open(self) -> Cursor:
        if self._cursor is None:
            raise ValueError(f"Subscription {self!r} is closed")
        return self._cursor

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """The next message.

        If there is none, waits for one, at most `timeout` seconds if that is not None, and not at all without `block`;
        then raises queue.Empty. ShutDown: the channel was shut down, and there is nothing more; ValueError: the
        subscription is closed. What unpickling raises is raised here; the message is gone then.
        """
        return self._open().get(block, timeout)  # type: ignore[no-any-return]

    def get_nowait(self) -> T:
        """get(block=False)."""
        return self.get(False)

    def qsize(self) -> int:
        """How many messages are there for it."""
        return self._open().behind()

    def empty(self) -> bool:
        """Whether there is none."""
        return self.qsize() == 0

    @property
    def lost(self) -> int:
        """How many messages it was too slow for."""
        return self._open().lost

    def close(self) -> None:
        """This process will get no more. If no other process shares the subscription it is over, and nobody waits for
        it any more. Can be called again."""
        self._cursor = None

    def __enter__(self) -> "Subscription[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self.get()
        except ShutDown:
            raise StopIteration from None


_all: weakref.WeakSet[Subscription[Any]] = weakref.WeakSet()


def _after_fork(_: object) -> None:
    """In a forked child of a context: what it was not given, it only has if it uses it."""
    mine = {id(subscription) for subscription in given(current_process(), _all)}
    for subscription in _all:
        if id(subscription) not in mine and subscription._cursor is not None:
            subscription._cursor.leave()


util.register_after_fork(Subscription, _after_fork)

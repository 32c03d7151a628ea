"""The worker process of a pool."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from multiprocessing import pool as _base
from multiprocessing import util
from typing import Any

from mpipc._pool_channel import Channel, Message, Parcel, unpack
from mpipc._pool_ledger import Ledger, exit_with_parent
from mpipc._pool_tasks import CALL, CHUNK, ITEM, STAR_CHUNK
from mpipc.sysv.errors import RemovedError

__all__ = ["FAILED", "INITIALIZER_FAILED", "QUIT", "READY", "RELEASE", "RETURNED", "UNKNOWN_FUNCTION", "work"]

_base_private: Any = _base

# Kinds of messages to a worker, besides the kinds of tasks.
QUIT = 10  # there is nothing more to do
RELEASE = 11  # the result of this number has been unpacked

# Kinds of messages from a worker.
READY = 20  # the initializer has returned
RETURNED = 21  # result
FAILED = 22  # exception
UNKNOWN_FUNCTION = 23  # the task was not begun: the function it names is not known here
INITIALIZER_FAILED = 24  # exception

_FUNCTIONS = 64  # how many functions a worker remembers


def work(
    tag: int,
    tasks: Channel,
    results: Channel,
    ledger: Ledger,
    parent: tuple[int, int],
    initializer: Callable[..., object] | None,
    initargs: Iterable[Any],
    limit: int | None,
) -> None:
    """Run in the worker: the initializer, then tasks until told to quit, or until `limit` tasks are done."""
    # A thread, because nothing else tells a process that sleeps in msgrcv(2) or runs the user's code.
    threading.Thread(target=exit_with_parent, args=parent, name="mpipc-parent-watch", daemon=True).start()
    worker = Worker(tag, tasks, results, ledger)
    try:
        worker.initialize(initializer, initargs)
        worker.run(limit)
    except KeyboardInterrupt:
        # Ctrl-C in a terminal is sent to all its processes. What it means is for the parent to say.
        sys.exit(128 + signal.SIGINT)
    except RemovedError as error:
        util.debug("worker's queue was removed: %s", error)


class Worker:
    """State of the worker process; used by its main thread only.

    `_unreleased` has the results that lie in shared memory and that the parent may have yet to read, by task number:
    the process must not end before that.
    """

    def __init__(self, tag: int, tasks: Channel, results: Channel, ledger: Ledger) -> None:
        self._tag = tag
        self._tasks = tasks
        self._results = results
        self._ledger = ledger
        self._pid = os.getpid()
        self._functions: dict[int, Callable[..., Any]] = {}
        self._unreleased: dict[int, Parcel] = {}

    def initialize(self, initializer: Callable[..., object] | None, initargs: Iterable[Any]) -> None:
        """Run the pool's initializer. If it raises, tell the parent why, and go down with it."""
        self._ledger.arrive()
        if initializer is not None:
            try:
                initializer(*initargs)
            except Exception as error:
                self._send(INITIALIZER_FAILED, 0, _failure(error, self._results.room))
                raise
        self._ledger.ready()
        self._results.send(READY, 0, self._tag)

    def run(self, limit: int | None) -> None:
        """Run tasks."""
        done = 0
        while limit is None or done < limit:
            message = self._tasks.receive()
            if message.kind == QUIT:
                util.debug("worker got QUIT -- exiting")
                break
            if message.kind == RELEASE:
                self._unreleased.pop(message.number, None)
            else:
                done += self._perform(message)
            del message
        while self._unreleased:
            message = self._tasks.receive()
            if message.kind == RELEASE:
                self._unreleased.pop(message.number, None)
        util.debug("worker exiting after %d tasks", done)

    def _perform(self, message: Message) -> bool:
        """Run a task and send its result; False if it could not be begun."""
        number = message.number
        if message.kind != CALL and not message.first and message.tag not in self._functions:
            self._results.send(UNKNOWN_FUNCTION, number, self._tag)
            return False
        self._ledger.start(number)
        room = self._results.room
        try:
            value = self._call(message)
            kind = RETURNED
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # asyncio.CancelledError, for one, is no Exception
            if os.getpid() != self._pid:
                os._exit(1)
            kind = FAILED
            parcel = _failure(error, room)
        else:
            if os.getpid() != self._pid:
                os._exit(0)  # the function has forked, and its child returned from it too: the task is not the child's
            try:
                parcel = Parcel(value, room)
            except Exception as error:
                kind = FAILED
                parcel = _unsendable(error, value, room)
            del value
        self._ledger.finish(number)
        self._send(kind, number, parcel)
        return True

    def _call(self, message: Message) -> Any:
        if message.kind == CALL:
            function, arguments, keywords = unpack(message.second)
            return function(*arguments, **keywords)
        if message.first:
            self._remember(message.tag, unpack(message.first))
        function = self._functions[message.tag]
        payload = unpack(message.second)
        if message.kind == ITEM:
            return function(payload)
        results = []
        note = self._ledger.item
        if message.kind == CHUNK:
            for index, item in enumerate(payload):
                note(index)
                results.append(function(item))
        else:
            assert message.kind == STAR_CHUNK
            for index, item in enumerate(payload):
                note(index)
                results.append(function(*item))
        return results

    def _remember(self, id: int, function: Callable[..., Any]) -> None:
        self._functions.pop(id, None)
        self._functions[id] = function
        if len(self._functions) > _FUNCTIONS:
            del self._functions[next(iter(self._functions))]

    def _send(self, kind: int, number: int, parcel: Parcel) -> None:
        if parcel.in_shared_memory:
            self._unreleased[number] = parcel
        self._results.send(kind, number, self._tag, b"", parcel.wire)


def _failure(error: BaseException, room: int) -> Parcel:
    """An exception with its traceback as text, as multiprocessing sends it."""
    wrapped = _base_private.ExceptionWithTraceback(error, error.__traceback__)
    try:
        parcel = Parcel(wrapped, room)
        # Many exceptions can be pickled but not unpickled (their __init__ wants other arguments than they pass on).
        unpack(parcel.wire)
    except Exception as reason:
        substitute = _base_private.ExceptionWithTraceback(_base_private.MaybeEncodingError(reason, error), None)
        substitute.tb = wrapped.tb
        return Parcel(substitute, room)
    return parcel


def _unsendable(reason: Exception, value: Any, room: int) -> Parcel:
    """The error for a result that cannot be pickled."""
    try:
        return Parcel(_base_private.MaybeEncodingError(reason, value), room)
    except Exception as error:  # a __repr__ that raises
        return Parcel(_base_private.MaybeEncodingError(error, type(value)), room)

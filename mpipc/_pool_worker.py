"""The worker process of a pool."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from multiprocessing import pool as _base
from multiprocessing import util
from typing import Any

from mpipc._pool_channel import Channel, Envelope, OwnReducers
from mpipc._pool_hot import APPLY, CALL, CHUNK, ITEM, STAR_CHUNK, pack, unpack
from mpipc._pool_ledger import Ledger, exit_with_parent

__all__ = [
    "BATCH",
    "FAILED",
    "FUNCTIONS",
    "INITIALIZER_FAILED",
    "QUIT",
    "READY",
    "RETURNED",
    "UNKNOWN_FUNCTION",
    "work",
]

_base_private: Any = _base

# A message to a worker, besides the kinds of tasks.
QUIT = 10  # there is nothing more to do
BATCH = 11  # body: envelopes of tasks

# Kinds of messages from a worker.
READY = 20  # the initializer has returned
RETURNED = 21  # result
FAILED = 22  # exception
UNKNOWN_FUNCTION = 23  # the task was not begun: the function it names is not known here
INITIALIZER_FAILED = 24  # exception

FUNCTIONS = 64
"""How many functions a worker remembers."""


def work(
    tag: int,
    tasks: Channel,
    results: Channel,
    ledger: Ledger,
    parent: tuple[int, int, int],
    initializer: Callable[..., object] | None,
    initargs: Iterable[Any],
    limit: int | None,
    interruptible: bool,
    own_reducers: OwnReducers | None,
) -> None:
    """Run in the worker: the initializer, then tasks until told to quit, or until `limit` tasks are done.

    SIGINT is blocked up to here, and is to be unblocked if `interruptible`.
    """
    # A thread, because nothing else tells a process that sleeps in msgrcv(2) or runs the user's code.
    threading.Thread(target=exit_with_parent, args=parent, name="mpipc-parent-watch", daemon=True).start()
    worker = Worker(tag, tasks, results, ledger, own_reducers)
    try:
        if interruptible:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        worker.initialize(initializer, initargs)
        worker.run(limit)
    except KeyboardInterrupt:
        # Ctrl-C in a terminal is sent to all its processes. What it means is for the parent to say.
        sys.exit(128 + signal.SIGINT)
    except (EOFError, BrokenPipeError):
        util.debug("a queue of the pool was removed -- exiting")


class Worker:
    """State of the worker process; used by its main thread only."""

    def __init__(
        self, tag: int, tasks: Channel, results: Channel, ledger: Ledger, own_reducers: OwnReducers | None
    ) -> None:
        self._tag = tag
        self._tasks = tasks
        self._results = results
        self._ledger = ledger
        self._own_reducers = own_reducers
        self._pid = os.getpid()
        self._functions: dict[int, Callable[..., Any]] = {}

    def initialize(self, initializer: Callable[..., object] | None, initargs: Iterable[Any]) -> None:
        """Run the pool's initializer. If it raises, tell the parent why, and go down with it."""
        self._ledger.arrive()
        if initializer is not None:
            try:
                initializer(*initargs)
            except Exception as error:
                self._send(INITIALIZER_FAILED, 0, *_failure(error))
                raise
        self._ledger.ready()
        self._send(READY, 0, None, None)

    def run(self, limit: int | None) -> None:
        """Run tasks."""
        done = 0
        receive = self._tasks.receive
        while limit is None or done < limit:
            message = receive()
            if message[0] == QUIT:
                util.debug("worker got QUIT -- exiting")
                break
            if message[0] == BATCH:
                tasks = message[5]
                tasks.reverse()
                while tasks:
                    done += self._perform(Envelope._make(tasks.pop()))
            else:
                done += self._perform(Envelope._make(message))
            del message
        util.debug("worker exiting after %d tasks", done)

    def _perform(self, message: Envelope) -> bool:
        """Run a task and send its result; False if it was not begun."""
        number = message.number
        if message.function is None and message.function_id not in self._functions:
            self._send(UNKNOWN_FUNCTION, number, None, None)
            return False
        if not self._ledger.start(number):
            return False  # another worker has it now
        try:
            value = self._call(message)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # asyncio.CancelledError, for one, is no Exception
            if os.getpid() != self._pid:
                os._exit(1)
            kind = FAILED
            contents = _failure(error)
        else:
            if os.getpid() != self._pid:
                os._exit(0)  # the function has forked, and its child returned from it too: the task is not the child's
            kind = RETURNED
            try:
                contents = pack(value, self._own_reducers)
            except Exception as error:
                kind = FAILED
                contents = _unsendable(error, value)
        self._ledger.finish(number)
        try:
            self._send(kind, number, *contents)
        except OSError as error:  # no memory for it
            self._send(FAILED, number, *_failure(error))
        return True

    def _call(self, message: Envelope) -> Any:
        if message.function is None:
            function = self._functions[message.function_id]
        else:
            function = pickle.loads(message.function)
            if message.function_id:
                self._remember(message.function_id, function)
        payload = unpack(message.body, message.buffers)
        kind = message.kind
        if kind == ITEM:
            return function(payload)
        if kind == APPLY:
            return function(*payload)
        if kind == CALL:
            arguments, keywords = payload
            return function(*arguments, **keywords)
        results = []
        note = self._ledger.item
        if kind == CHUNK:
            for index, item in enumerate(payload):
                note(index)
                results.append(function(item))
        else:
            assert kind == STAR_CHUNK
            for index, item in enumerate(payload):
                note(index)
                results.append(function(*item))
        return results

    def _remember(self, id: int, function: Callable[..., Any]) -> None:
        self._functions.pop(id, None)
        self._functions[id] = function
        if len(self._functions) > FUNCTIONS:
            del self._functions[next(iter(self._functions))]

    def _send(self, kind: int, number: int, body: Any, buffers: Any) -> None:
        self._results.send((kind, self._tag, number, None, 0, body, buffers))


def _failure(error: BaseException) -> tuple[Any, Any]:
    """An exception with its traceback as text, as multiprocessing sends it."""
    wrapped = _base_private.ExceptionWithTraceback(error, error.__traceback__)
    try:
        contents = pack(wrapped)
        # Many exceptions can be pickled but not unpickled (their __init__ wants other arguments than they pass on).
        unpack(*contents)
    except Exception as reason:
        substitute = _base_private.ExceptionWithTraceback(_base_private.MaybeEncodingError(reason, error), None)
        substitute.tb = wrapped.tb
        return pack(substitute)
    return contents


def _unsendable(reason: Exception, value: Any) -> tuple[Any, Any]:
    """The error for a result that cannot be pickled."""
    try:
        return pack(_base_private.MaybeEncodingError(reason, value))
    except Exception as error:  # a __repr__ that raises
        return pack(_base_private.MaybeEncodingError(error, type(value)))

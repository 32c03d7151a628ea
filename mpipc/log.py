"""Log records of child processes, in the parent's logging: `mpipc.log.forward()`.

In the parent a thread takes records out of a queue and hands each to the logger of its name. In a child one handler, at
the root logger and in the place of all that are there, puts records into it. A put that has returned is in the queue,
so the last record before a kill is; and it never waits: when the queue is full, the oldest record is taken out.

Who takes one out counts it, and sends the count with the record that it puts next. A record that is taken out may have
such a count with it: that is added. So what the parent has received and what it has been told of make the whole, and
nothing is shared but the queue. Only a process that is killed between the two takes its count with it.

A child learns of it when it begins to run (`arrived()`), from its parent's memory if it is forked; another one is sent
a letter with its preparation data, see mpipc._stdlib.parcel, and forwards what is emitted while it imports `__main__`.
os.register_at_fork() would be too much: what a daemon logs is not for the process that it has left.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import sys
import threading
from contextlib import suppress
from multiprocessing import util
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any

from mpipc._queue.plain import encode
from mpipc._stdlib import start_method
from mpipc.queues import Empty, Queue, ShutDown

__all__ = ["MAXSIZE", "Forwarding", "forward"]

MAXSIZE = 100_000
"""How many records wait for the parent at most, by default."""
BATCH = 128
"""How many records the parent takes at once."""
AFTER_CHILDREN = -100
"""When the parent ends, by the order of multiprocessing.util.Finalize: below 0 it has waited for its children."""

NAMES = (
    "name",
    "levelno",
    "levelname",
    "pathname",
    "filename",
    "module",
    "lineno",
    "funcName",
    "created",
    "msecs",
    "relativeCreated",
    "thread",
    "threadName",
    "process",
    "processName",
    "stack_info",
    *(["taskName"] if sys.version_info >= (3, 12) else []),
)
"""The attributes of a record that travel as they are."""
KNOWN = frozenset({*NAMES, "msg", "args", "exc_info", "exc_text", "message", "asctime"})
SIMPLE = frozenset({str, int, float, bool, type(None)})


# ---- a record on its way ---------------------------------------------------------------------------------------------

_formatter = logging.Formatter()


def packed(record: logging.LogRecord) -> tuple[Any, ...]:
    """What unpacked() makes the record of: nothing in it needs the program's classes to be received.

    The message is formatted, as by logging.handlers.QueueHandler, and a traceback is text. Raises what formatting does.
    """
    state = record.__dict__
    text = record.exc_text
    if text is None and record.exc_info:
        text = _formatter.formatException(record.exc_info)
    extra, pickled = {}, {}
    for name, value in state.items():
        if name in KNOWN:
            continue
        if type(value) in SIMPLE or encode(value) is not None:
            extra[name] = value
        else:
            pickled[name] = _pickle(value), _text(value)
    values = [value if type(value) in SIMPLE else _text(value) for value in map(state.get, NAMES)]
    return (str(record.getMessage()), text, extra, pickled, *values)


def unpacked(message: tuple[Any, ...]) -> logging.LogRecord:
    """The record of packed(). An attribute that cannot be unpickled here is its repr()."""
    msg, text, extra, pickled, *values = message
    # Not by the factory of records, which would see this process, and whose getMessage() has been called already.
    record = logging.LogRecord.__new__(logging.LogRecord)
    state = record.__dict__
    state.update(zip(NAMES, values, strict=True))
    state.update(msg=msg, args=None, exc_info=None, exc_text=text, **extra)
    for name, (data, as_text) in pickled.items():
        state[name] = as_text
        if data is not None:
            with suppress(Exception):
                state[name] = pickle.loads(data)
    return record


def _pickle(value: Any) -> bytes | None:
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return None


def _text(value: Any) -> str:
    try:
        return str(value) if isinstance(value, str) else repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr() raises {type(error).__name__}>"


# ---- in a child ------------------------------------------------------------------------------------------------------


class Forwarder(logging.Handler):
    """The handler at a child's root logger."""

    def __init__(self, queue: Queue[Any], maxsize: int) -> None:
        super().__init__()
        self.queue = queue
        self.maxsize = maxsize
        self.dropped = 0  # and nobody has been told
        self._is_over = False

    def emit(self, record: logging.LogRecord) -> None:
        """Put the record into the queue. Who handles it adds no other meanwhile, so they are in order."""
        if self._is_over:
            return
        try:
            message = packed(record)
        except Exception:
            self.handleError(record)
            return
        try:
            self._put(message)
        except ShutDown:
            self._is_over = True
        except (OSError, EOFError, MemoryError):  # there is no room for it at all, or somebody has removed the queue
            self.dropped += 1

    def _put(self, message: tuple[Any, ...]) -> None:
        if self.queue.qsize() >= self.maxsize:
            try:
                self.dropped += 1 + self.queue.get(False)[0]
            except Empty:
                if self.queue.qsize() >= self.maxsize:  # somebody is in the middle of a call, and does not run
                    self.dropped += 1
                    return
        told = self.dropped
        self.queue.put((told, *message))
        self.dropped -= told


_forwarder: Forwarder | None = None  # of a child
_set_aside: list[logging.Handler] = []  # the parent's: what they have buffered is not to be written here, by __del__
_levels: Any = None  # of the parent, until this process has arrived


def _loggers() -> list[logging.Logger]:
    named = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(each for each in named if isinstance(each, logging.Logger))]


def letter(by: Any) -> bytes:
    """What arrive() has to be given in a child that is a fresh interpreter. Made while that one is started."""
    levels = {logger.name: logger.level for logger in _loggers() if logger.level and logger is not logging.root}
    of_all = logging.root.level, levels, logging.root.manager.disable
    return bytes(ForkingPickler.dumps((by.queue, by.maxsize, of_all)))


def arrive(data: bytes) -> None:
    """In a fresh interpreter, before `__main__` is imported: forward from now on."""
    global _levels
    queue, maxsize, _levels = pickle.loads(data)
    _forward_to(queue, maxsize)
    _take_over(_levels)


def arrived() -> None:
    """In a child of any start method, before it runs what it was started for.

    Of handlers that the modules of the program have added when they were imported, the parent has its own.
    """
    global _levels
    if _levels is not None and _forwarder is not None:
        _forward_to(_forwarder.queue, _forwarder.maxsize)
        _take_over(_levels)
        _levels = None
    elif _forwarding is not None and _forwarding.pid != os.getpid():
        _forward_to(_forwarding.queue, _forwarding.maxsize)
    elif _forwarder is not None:  # forked by one that forwards
        _forwarder.dropped = 0


def forwards_by() -> Forwarding | Forwarder | None:
    """By whose queue the children of this process are to forward, for letter(); None: not at all."""
    return _forwarder if _forwarding is None else _forwarding


def _forward_to(queue: Queue[Any], maxsize: int) -> None:
    global _forwarder, _forwarding
    for logger in _loggers():
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            _set_aside.append(handler)
        logger.propagate = True
    _forwarder, _forwarding = Forwarder(queue, maxsize), None
    logging.root.addHandler(_forwarder)


def _take_over(levels: Any) -> None:
    root, named, disabled = levels
    logging.root.setLevel(root)
    for name, level in named.items():
        logging.getLogger(name).setLevel(level)
    logging.disable(disabled)


# ---- in the parent ---------------------------------------------------------------------------------------------------


class Forwarding:
    """What forward() returns. Left as a context manager, it is closed."""

    def __init__(self, maxsize: int) -> None:
        self.pid = os.getpid()
        self.maxsize = maxsize
        # One of a context other than fork's can be sent to children of all.
        self.queue: Queue[Any] = Queue(ctx=start_method.default.get_context("spawn"), raise_on_pickle_error=True)
        self._dropped = 0  # and not said yet
        self._thread = threading.Thread(target=self._run, args=(self.queue,), name="LogForwardingThread", daemon=True)
        self._thread.start()
        self._finalizer = util.Finalize(None, self.close, exitpriority=AFTER_CHILDREN)

    def close(self) -> None:
        """Handle what has come, and end it: what children emit from now on is dropped, and not counted.

        Once is enough, more does no harm; at the normal end of the process it is done after its children have ended.
        A process that was forked cannot close it for the one that forwards.
        """
        global _forwarding
        if self.pid != os.getpid():
            return
        if _forwarding is self:
            _forwarding = None
        self._finalizer.cancel()
        self.queue.shutdown()
        if threading.current_thread() is not self._thread:  # a handler may call this
            self._thread.join()

    def __enter__(self) -> Forwarding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, queue: Queue[Any]) -> None:
        """The thread."""
        most = min(BATCH, self.maxsize)
        while True:
            try:
                batch = queue.get_many(most)
            except (ShutDown, EOFError):
                break
            except OSError as error:
                if not hasattr(error, "received"):
                    raise
                batch = error.received  # a stranger has written into the queue, and this is what is between
            told = 0
            for dropped, *message in batch:
                told += dropped
                self._handle(tuple(message))
            self._dropped += told
            # While they are being dropped they come with counts: then there is more to be said later.
            if self._dropped and (not told or queue.empty()):
                self._say()
        if self._dropped:
            self._say()

    def _handle(self, message: tuple[Any, ...]) -> None:
        record = unpacked(message)
        logger = logging.getLogger(record.name)
        try:
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        except Exception:  # handlers deal with their own errors, filters do not
            logging.Handler().handleError(record)

    def _say(self) -> None:
        dropped, self._dropped = self._dropped, 0
        logging.getLogger("mpipc.log").warning(
            "%d log records of child processes were dropped, the oldest first: %d were waiting for this process,"
            " which has not handled them in time. mpipc.log.forward(maxsize=...) lets more wait.",
            dropped,
            self.maxsize,
        )


def _keep_handlers_open() -> None:
    """At the end of the process logging closes its handlers. That has to be after the children's last records.

    Both are done by functions of atexit: in the right order if `logging` was imported before multiprocessing.util.
    """
    global _are_kept_open
    loaded = list(sys.modules)
    if not _are_kept_open and loaded.index("multiprocessing.util") < loaded.index("logging"):
        _are_kept_open = True
        atexit.unregister(logging.shutdown)
        util.Finalize(None, logging.shutdown, exitpriority=AFTER_CHILDREN - 1)


_are_kept_open = False
_forwarding: Forwarding | None = None  # of the process that has called forward()


def forward(maxsize: int = MAXSIZE) -> Forwarding:
    """From now on what child processes log is handled by this process's logging, as it is emitted.

    Children are those that mpipc starts after this call, by any start method, workers of pools and executors too, and
    their children. Their records, in the order in which each has emitted them and up to the last one before a kill,
    are handed to the loggers of the same names here: levels, filters and handlers are those of this process. A child
    begins to run without the handlers that it has from its parent, or that its modules have added when it imported
    them, and with the levels that loggers have here. What it sets up when it runs is its own.

    No child ever waits for this process. When `maxsize` records wait for it (and as many more as are being put at that
    moment), the oldest are dropped; one record of the logger "mpipc.log", a WARNING, says how many.

    RuntimeError: it is being done already; ValueError: `maxsize` is less than 1; OSError: there can be no queue.
    """
    global _forwarding
    if maxsize < 1:
        raise ValueError(f"maxsize must be at least 1, got {maxsize}")
    if _forwarding is not None and _forwarding.pid == os.getpid():
        raise RuntimeError("mpipc.log.forward() was called before: close() what it has returned, then call it again")
    _forwarding = made = Forwarding(maxsize)
    _keep_handlers_open()
    return made

"""The worker process of a pool."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import util
from typing import Any

from mpipc._core.greenlets import start_thread
from mpipc._pool.channel import Channel, OwnReducers
from mpipc._pool.codec import TIMED, pack, unpack
from mpipc._pool.ledger import Ledger, exit_with_parent
from mpipc._pool.longest import Longest, arguments_text
from mpipc._pool.losses import CrashReport
from mpipc._pool.memory import private_memory
from mpipc._pool.options import WorkerOptions
from mpipc._pool.placing import apply
from mpipc._pool.progress import drop_rich
from mpipc._pool.state import WorkerState, begin
from mpipc._stdlib.by_pickler import ByPickler
from mpipc._stdlib.standard import standard_module

__all__ = [
    "BATCH",
    "FAILED",
    "FUNCTIONS",
    "INITIALIZER_FAILED",
    "LONG",
    "PASSING",
    "PAUSE",
    "QUIT",
    "READY",
    "RETURNED",
    "UNKNOWN_FUNCTION",
    "Quoted",
    "work",
]

_base: Any = standard_module("pool")  # its private names are unknown to type checkers

# A message to a worker, besides the kinds of tasks.
QUIT = 10  # there is nothing more to do
BATCH = 11  # body: envelopes of tasks

# Kinds of messages from a worker.
READY = 20  # the initializer has returned
RETURNED = 21  # result
FAILED = 22  # exception
UNKNOWN_FUNCTION = 23  # the task was not begun: the function it names is not known here
INITIALIZER_FAILED = 24  # exception
LONG = 25  # seconds, arguments as text: the task has taken longer than all others of this worker but a few

PASSING = (BlockingIOError, InterruptedError, MemoryError)
"""What a queue may raise that need not be so the next time."""
PAUSE = 0.01
"""Seconds until then."""

EARLY = 0.9
"""Part of a task's timeout after which the worker writes down where it is, in case it is killed at the end of it."""

LONGEST_REPR = 4096

FUNCTIONS = 64
"""How many functions a worker remembers."""


def work(
    tag: int,
    tasks: Channel,
    results: Channel,
    ledger: Ledger,
    parent: tuple[int, int, int],
    options: WorkerOptions,
    interruptible: bool,
) -> None:
    """Run in the worker: the initializer, then tasks until told to quit, or until the quota is used up.

    SIGINT is blocked up to here, and is to be unblocked if `interruptible`.
    """
    # A thread, because nothing else tells a process that sleeps in msgrcv(2) or runs the user's code.
    start_thread(exit_with_parent, (*parent, ledger), "mpipc-parent-watch")
    worker = Worker(tag, tasks, results, ledger, options)
    try:
        if interruptible:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        worker.initialize()
        ends = worker.run()
    except KeyboardInterrupt:
        # Ctrl-C in a terminal is sent to all its processes. What it means is for the parent to say.
        sys.exit(128 + signal.SIGINT)
    except (EOFError, BrokenPipeError):
        util.debug("a queue of the pool was removed -- exiting")
    else:
        if ends:
            worker.leave()


class Pickled:
    """A function that has come and was not used."""

    __slots__ = ("pickle",)

    def __init__(self, pickle: bytes) -> None:
        self.pickle = pickle


class Worker:
    """State of the worker process; used by its main thread only."""

    def __init__(self, tag: int, tasks: Channel, results: Channel, ledger: Ledger, options: WorkerOptions) -> None:
        self._tag = tag
        self._tasks = tasks
        self._results = results
        self._ledger = ledger
        self._options = options
        self._report = CrashReport()
        self._pid = os.getpid()
        self._functions: dict[int, Any] = {}
        """Those that have come last, by number; `Pickled` until they are used."""
        self._longest = Longest()
        self._state: WorkerState | None = None
        self._exit: Callable[[Any], object] | None = None

    def initialize(self) -> None:
        """Run the pool's initializer and worker_init. If one raises, tell the parent why, and go down with it."""
        self._ledger.arrive()
        if self._ledger.ending:
            return
        drop_rich()
        if not self._options.inherit and "mpipc._memory.memory" in sys.modules:
            sys.modules["mpipc._memory.memory"].drop_inherited()
        start = self._options.start
        self._state = begin(start.shared)
        try:
            apply(self._options.nice, self._options.cpu_affinity, everywhere=True)
            if start.initializer is not None:
                start.initializer(*start.initargs)
            if start.worker_init is not None:
                start.worker_init(self._state)
        except Exception as error:
            self._send(INITIALIZER_FAILED, 0, *_failure(error, self._options.result_reducers))
            raise
        self._exit = start.worker_exit
        self._ledger.on_long = self._tell_of_long
        self._ledger.ready()
        self._send(READY, 0, self._report.number, None)

    def leave(self) -> None:
        """Run worker_exit. What it raises is shown as of any process."""
        if self._exit is not None:
            self._exit(self._state)

    def run(self) -> bool:
        """Run tasks. Whether it is a normal end: not if the pool is being terminated."""
        done = 0
        limit, most = self._options.quota, self._options.max_memory
        receive = self._tasks.receive
        ledger = self._ledger
        while (limit is None or done < limit) and ledger.wait():
            try:
                message = receive()
            except PASSING:
                time.sleep(PAUSE)
                continue
            if message[0] == QUIT:
                util.debug("worker got QUIT -- exiting")
                break
            if message[0] == BATCH:
                tasks = message[5]
                tasks.reverse()
                while tasks:
                    done += self._perform(tasks.pop())
            else:
                done += self._perform(message)
            del message
            if most is not None and private_memory("self", most) > most:
                break  # what it has not begun goes to another one
        util.debug("worker exiting after %d tasks", done)
        return not ledger.ending

    def _perform(self, message: tuple[Any, ...]) -> bool:
        """Run a task, which came in an envelope, and send its result; False if it was not begun."""
        kind, _, number, pickled, function_id, body, buffers = message
        if pickled is None:
            if function_id not in self._functions:
                self._send(UNKNOWN_FUNCTION, number, None, None)
                return False
        elif function_id:
            # Whatever becomes of this task: those behind it are sent without the function.
            self._remember(function_id, Pickled(pickled))
        if not self._ledger.start(number):
            return False  # another worker has it now
        contents: tuple[Any, Any, str | None]
        timed = kind > TIMED
        if timed:
            timeout, body = body
            kind -= TIMED
            self._report.arm(timeout * EARLY)
        try:
            value = self._call(kind, pickled, function_id, body, buffers)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # asyncio.CancelledError, for one, is no Exception
            if os.getpid() != self._pid:
                os._exit(1)
            answer = FAILED
            contents = _failure(error, self._options.result_reducers)
        else:
            if os.getpid() != self._pid:
                os._exit(0)  # the function has forked, and its child returned from it too: the task is not the child's
            answer = RETURNED
            try:
                contents = *pack(value, self._options.result_reducers), None
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever the user's methods raise
                answer = FAILED
                contents = _unsendable(error, value)
        self._ledger.finish(number)
        if timed:
            self._report.disarm()
        try:
            self._send(answer, number, *contents)
        except (OSError, MemoryError) as error:  # no memory for it
            self._send(FAILED, number, *_failure(error, None))
        return True

    def _call(self, kind: int, pickled: bytes | None, function_id: int, body: Any, buffers: Any) -> Any:
        function: Any
        if function_id:
            function = self._functions[function_id]
            if type(function) is Pickled:
                function = pickle.loads(function.pickle)
                self._functions[function_id] = function
        else:
            assert pickled is not None
            function = pickle.loads(pickled)
        return self._ledger.run(kind, function, unpack(body, buffers))

    def _tell_of_long(self, spent: int, kind: int, payload: Any) -> None:
        self._ledger.longest = self._longest.note(spent) or self._ledger.longest
        with contextlib.suppress(OSError, MemoryError):  # nobody hears of it, then
            self._send(LONG, self._ledger.started, (spent / 1e9, arguments_text(kind, payload)), None)

    def _remember(self, id: int, function: Pickled) -> None:
        self._functions.pop(id, None)
        self._functions[id] = function
        if len(self._functions) > FUNCTIONS:
            del self._functions[next(iter(self._functions))]

    def _send(self, kind: int, number: int, body: Any, buffers: Any, summary: str | None = None) -> None:
        self._results.send((kind, self._tag, number, summary, 0, body, buffers))


# --- exceptions -------------------------------------------------------------------------------------------------------
#
# An exception is an object of the user, whose methods may raise anything. In this process nobody but the one who waits
# for the task is to suffer from that.


class Quoted:
    """An object for MaybeEncodingError, which asks for the repr(): a string is taken as it is, what has no repr() is
    named by its class, and none is longer than anybody wants to read."""

    def __init__(self, what: object) -> None:
        self._what = what

    def __repr__(self) -> str:
        text = self._what
        if not isinstance(text, str):
            try:
                text = repr(text)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                text = f"<{type(self._what).__qualname__} object, whose repr() raises {type(error).__qualname__}>"
        return text if len(text) <= LONGEST_REPR else f"{text[:LONGEST_REPR]}... ({len(text)} characters)"


def _traceback(error: BaseException) -> str:
    """The traceback as text, as far as it can be had."""
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except KeyboardInterrupt:
        raise
    except BaseException as reason:
        try:
            frames = "".join(traceback.format_tb(error.__traceback__))
        except Exception:
            frames = ""
        return f"{frames}{Quoted(error)!r}\n(formatting the exception raised {type(reason).__qualname__})\n"


def _failure(error: BaseException, own: OwnReducers | ByPickler | None) -> tuple[Any, Any, str]:
    """An exception with its traceback as text, as multiprocessing sends it, and what it is called if it cannot be
    unpickled by whoever receives it."""
    text = _traceback(error)
    summary = repr(Quoted(error))
    try:
        contents = pack(_with_traceback(error, text), own if isinstance(own, ByPickler) else None)
        # Many exceptions can be pickled but not unpickled (their __init__ wants other arguments than they pass on).
        unpack(*contents)
    except KeyboardInterrupt:
        raise
    except BaseException as reason:
        substitute = _base.MaybeEncodingError(Quoted(reason), Quoted(summary))
        return *pack(_with_traceback(substitute, text)), summary
    return *contents, summary


def _with_traceback(error: BaseException, text: str) -> Any:
    cls = _base.ExceptionWithTraceback
    wrapped = cls.__new__(cls)  # its constructor would do the formatting
    wrapped.exc = error
    wrapped.tb = f'\n"""\n{text}"""'
    return wrapped


def _unsendable(reason: BaseException, value: Any) -> tuple[Any, Any, str]:
    """The error for a result that cannot be pickled."""
    error = _base.MaybeEncodingError(Quoted(reason), Quoted(value))
    return *pack(error), str(error)

"""Queue, SimpleQueue and JoinableQueue on System V message queues, and PriorityQueue, which multiprocessing has not.

The classes have the names, signatures and errors of multiprocessing.queues. What is different:

* put() sends the message itself, there is no feeder thread: when it has returned, the object is in the queue for all
  processes to see, empty() and qsize() count it, and it stays there whatever happens to the process that put it;
* put() into a queue without maxsize never waits: what the kernel has no room for waits in shared memory;
* a process that is killed takes with it what it had in its hands, and nothing else: nobody hangs, no message is torn or
  delivered twice;
* large objects travel through shared memory, which is used again and again and returned when idle;
* shutdown() ends a queue for all who use it, as that of queue.Queue does from Python 3.13 on, in every Python;
* no queue needs a file descriptor, until somebody asks for one (`queue.fileno()`).
"""

import os
import sys
import weakref
from collections.abc import Iterable
from multiprocessing.context import BaseContext
from queue import Empty, Full
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from mpipc._queue.batch import BatchQueue
from mpipc._queue.message_queue import LEVELS, Watch
from mpipc._queue.parts import JoinableQueueParts, QueueParts, SimpleQueueParts, new_messages, opened, settled, state_of
from mpipc._stdlib import picklers
from mpipc._stdlib.likeness import Likeness
from mpipc._stdlib.shut_down import ShutDown
from mpipc._stdlib.start_method import assert_shareable, is_fork
from mpipc._stdlib.subclasses import settle_queue

__all__ = ["Empty", "Full", "JoinableQueue", "PriorityQueue", "Queue", "ShutDown", "SimpleQueue"]

T = TypeVar("T")


class Statistics(NamedTuple):
    """What statistics() of a queue returns."""

    messages: int
    """Objects in the queue."""
    kernel_messages: int
    """Those of them in the kernel's message queue."""
    kernel_bytes: int
    """Their size there (descriptors only, of those that travel through shared memory)."""
    overflow: int
    """Objects in shared memory because the kernel's queue had no room for them."""
    shared_bytes: int
    """Memory of the queue's shared blocks."""
    shared_bytes_in_use: int
    """Part of it that holds objects."""
    segments: int
    """Shared memory segments of the queue."""
    waiting_readers: int
    """Threads that wait in get(), in poll() or for the file descriptor."""
    waiting_writers: int
    """Threads that wait in put() of a bounded queue."""
    unfinished: int
    """Of a JoinableQueue, objects that were taken and for which task_done() has not been called."""
    last_sender: int
    """Pid of the process that last sent to the kernel's queue, 0 if none has."""
    last_receiver: int
    """Pid of the process that last received from it, 0 if none has."""
    is_shutdown: bool = False
    """Whether shutdown() has been called."""
    copied: int = 0
    """Without copy=, how many objects this process has got as copies: it has views of too much memory already."""


def _statistics(messages: BatchQueue) -> Statistics:
    from mpipc.sysv import IPC_STAT, msgctl

    spilled, shared, in_use, segments, readers, writers, _joiners, pending = messages.usage()
    kernel = msgctl(messages.block.id, IPC_STAT)
    size = messages.size()
    return Statistics(
        size,
        max(size - spilled, 0),
        kernel.msg_cbytes,
        spilled,
        shared,
        in_use,
        segments,
        readers,
        writers,
        pending,
        kernel.msg_lspid,
        kernel.msg_lrpid,
        messages.is_shutdown,
        messages.copied,
    )


def _debug(message: str) -> None:
    from multiprocessing.util import debug

    debug(message)


# ---- the ends of a queue, as multiprocessing's queues have them ------------------------------------------------------


class _End(Likeness):
    """What code that uses `queue._reader` or `queue._writer` expects of a multiprocessing.connection.Connection."""

    _like = "connection", "Connection"

    def __init__(self, messages: BatchQueue) -> None:
        self._messages = messages
        self.closed = False

    def _check_open(self) -> None:
        if self.closed:
            raise OSError("handle is closed")

    def close(self) -> None:
        """Makes further calls fail in this process. The queue itself stays."""
        self.closed = True

    def __enter__(self) -> "_End":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


class Reader(_End):
    """The receiving end of a queue: readable, for select and the like, while the queue is not empty.

    With several consumers it may be empty again by the time one of them calls recv() or get(): use get_nowait(), or
    poll().
    """

    readable = True
    writable = False

    def __init__(self, messages: BatchQueue) -> None:
        super().__init__(messages)
        self._watch: Watch | None = None
        self._stop: Any = None
        self._failure: RuntimeError | None = None
        messages.read_by(self)

    def fileno(self) -> int:
        """A file descriptor that is readable while the queue is not empty, or was shut down; only for waiting.

        The first call in a process starts a thread, which sleeps until there is something in the queue.
        """
        self._check_open()
        if self._watch is not None and self._watch.pid != os.getpid():
            os.close(self._watch.fd)  # inherited from the parent by fork, without the thread behind it
            self._watch = None
        if self._watch is None:
            from mpipc._core.greenlets import start_thread

            self._watch = watch = Watch(self._messages)
            self._messages.watched_by(watch)
            try:
                start_thread(_watch, (watch,), "QueueWatcherThread")
            except RuntimeError as error:  # there can be no new one: the interpreter is ending, for instance
                # Whoever waits expects no error from waiting, and is told when he receives.
                self._failure = error
                os.eventfd_write(watch.fd, 1)
                return watch.fd
            self._stop = weakref.finalize(self, watch.stop)
        elif self._failure is None:
            self._watch.look_again()  # another process may have taken what there was; who asks is about to wait
        return self._watch.fd

    def watched(self) -> int:
        """fileno(), or -1 if it is closed, or the thread could not be started."""
        descriptor = -1 if self.closed else self.fileno()
        return -1 if self._failure is not None else descriptor

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something to receive, waited for at most `timeout` seconds (None: without a limit).

        Also if the queue was shut down: nobody need wait to be told that.
        """
        self._check_open()
        return self._messages.poll(timeout)

    def recv(self) -> Any:
        """The next object, waited for; EOFError if the queue was removed, ShutDown if it was shut down.

        RuntimeError if the thread that fileno() needs could not be started.
        """
        self._check_open()
        if self._failure is not None and self._watch is not None:
            failure, self._failure = self._failure, None
            os.close(self._watch.fd)
            self._watch = None
            raise failure
        return self._messages.get()

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """The next object as it is pickled, or what a Writer has sent with send_bytes(), waited for.

        EOFError: the queue was removed; ShutDown: it was shut down; OSError: it is longer than `maxlength` bytes, and
        gone.
        """
        self._check_open()
        data = self._messages.get_pickle()
        if maxlength is not None and len(data) > maxlength:
            raise OSError(f"got {len(data)} bytes where at most {maxlength} were expected")
        return data

    def close(self) -> None:
        super().close()
        self._messages.watched_by(None)
        if self._stop is not None:
            self._stop()
        self._watch = None


def _watch(watch: Watch) -> None:
    watch.run()
    os.close(watch.fd)  # not before: the thread might write to somebody else's file


class Writer(_End):
    """The sending end of a queue."""

    readable = False
    writable = True

    def __init__(self, messages: BatchQueue) -> None:
        super().__init__(messages)
        self._descriptor: int | None = None

    def fileno(self) -> int:
        """A file descriptor that can always be written to, as far as select and the like can tell; only for waiting."""
        self._check_open()
        if self._descriptor is None:
            self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            weakref.finalize(self, os.close, self._descriptor).atexit = False
        return self._descriptor

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Puts bytes into the queue: an object as it is pickled, or anything if a Reader's recv_bytes() is to get it.

        ValueError: they are none, or not in `buf`; ShutDown: the queue was shut down.
        """
        self._check_open()
        view = memoryview(buf).cast("B")
        size = len(view) - offset if size is None else size
        if offset < 0 or size < 0 or offset + size > len(view):
            raise ValueError(f"there are not {size} bytes from {offset} on in a buffer of {len(view)}")
        self._messages.put_pickle(bytes(view[offset : offset + size]))

    def send(self, obj: Any) -> None:
        """Puts obj into the queue; raises what pickling it raises. ShutDown: the queue was shut down."""
        self._check_open()
        self._messages.put(obj)


# ---- the queues ------------------------------------------------------------------------------------------------------


class _Base(SimpleQueueParts, Likeness):
    """What all queues have in common."""

    _messages: BatchQueue
    _reader: Reader
    _writer: Writer
    _is_fork_ctx = False

    def _open(self, messages: BatchQueue) -> None:
        self._messages = messages
        self._reader = Reader(messages)
        self._writer = Writer(messages)

    def fileno(self) -> int:
        """A file descriptor that is readable while the queue is not empty, or was shut down.

        For select, selectors, asyncio's add_reader() and multiprocessing.connection.wait(); see Reader.
        """
        return self._reader.fileno()

    def shutdown(self, immediate: bool = False) -> None:
        """Ends the queue, in all processes that share it: as queue.Queue.shutdown(), and for all kinds of queues.

        From now on put() and put_many() raise ShutDown at once, also where they are waiting for room. get() and
        get_many() go on until the queue is empty, and raise ShutDown then, also where they are waiting for an object;
        poll() says True, and the file descriptor is readable. What a put() that had begun before has put can be got:
        when a get() has raised ShutDown nothing more comes.

        With `immediate`, what is in the queue is dropped: it is empty from now on, get() raises ShutDown at once, and
        the objects count as unfinished no more, so that join() returns if none of those that were taken is unfinished,
        or when they are. A get() that is under way may still return an object. The memory of what was dropped is free
        when this returns; only if another process has the queue's lock and does not run is it freed by the next one
        who uses the queue.

        It cannot be undone, and can be called again, also with `immediate` when it was without. A process that is
        killed in it has shut the queue down for all, or not at all.
        """
        self._check_usable()
        self._messages.shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Whether shutdown() has been called, by any process."""
        return self._messages.is_shutdown

    def _check_usable(self) -> None:
        self._reader._check_open()

    def statistics(self) -> Statistics:
        """What is in the queue, what memory it has, and who waits for it."""
        return _statistics(self._messages)

    def trim(self) -> int:
        """Returns all shared memory that holds no object to the system now; how many bytes that were."""
        return self._messages.trim()


class Queue(QueueParts, _Base, Generic[T]):
    """A queue of objects between processes: multiprocessing.Queue.

    `maxsize` limits the number of objects; 0 or less means no limit. With `raise_on_pickle_error`, put() raises what
    pickling an object raises, instead of telling `_on_queue_feeder_error()`. `pickler` ("cloudpickle", "dill", or as of
    mpipc.Pool; by default that of the context) pickles what is put, in all processes; who gets it need not. Without
    `copy`, arrays (of numpy, and what else has large buffers) arrive as read-only views of what put() has copied.
    """

    _like = "queues", "Queue"
    _kind: dict[str, Any] = {}  # noqa: RUF012

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        settle_queue(cls, "Queue", Queue)

    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: BaseContext | None = None,
        raise_on_pickle_error: bool = False,
        pickler: Any = None,
        copy: bool = True,
    ) -> None:
        self._is_fork_ctx = is_fork(ctx)
        self._raise_on_pickle_error = raise_on_pickle_error
        self._ignore_epipe = False  # concurrent.futures sets it
        self._opid = os.getpid()
        self._reset(new_messages(settled(pickler, ctx), max(maxsize, 0), views=not copy, **self._kind))

    def _reset(self, messages: BatchQueue) -> None:
        self._open(messages)
        self._maxsize = messages.maxsize or LIMIT
        self._closed = False
        self._joincancelled = False
        self._has_put = False

    def __getstate__(self) -> Any:
        assert_shareable(self)
        return (self._ignore_epipe, self._raise_on_pickle_error, self._opid, state_of(self._messages))

    def __setstate__(self, state: Any) -> None:
        self._ignore_epipe, self._raise_on_pickle_error, self._opid, messages = state
        self._reset(opened(messages))

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Puts obj into the queue.

        If the queue is full, waits for room, at most `timeout` seconds if that is not None, and not at all without
        `block`; then raises queue.Full. ShutDown: it was shut down; ValueError: it is closed; BrokenPipeError: it was
        removed; MemoryError: there is no memory for it. An object that cannot be pickled is reported, and not put (see
        the class).
        """
        self._put(obj, block, timeout)

    def _put(self, obj: Any, block: bool, timeout: float | None, level: int = -1) -> None:
        if self._closed:
            self._check_usable()
        self._has_put = True
        try:
            if not self._messages.put(obj, block, timeout, self._errors(), level):
                raise Full
        except BrokenPipeError:
            if not self._ignore_epipe:
                raise

    def _check_usable(self) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    def _errors(self) -> Any:
        """Who is told what cannot be pickled; None: whoever called put()."""
        return None if self._raise_on_pickle_error else self

    def get(self, block: bool = True, timeout: float | None = None, *, copy: bool | None = None) -> T:
        """Removes the next object from the queue and returns it. `copy`: as of the class, for this object.

        If the queue is empty, waits for one, at most `timeout` seconds if that is not None, and not at all without
        `block`; then raises queue.Empty. ShutDown: it was shut down, and is empty; ValueError: it is closed; EOFError:
        it was removed. What unpickling raises is raised here; the object is gone then.
        """
        if self._closed:
            self._check_usable()
        return self._messages.get(block, timeout, copy)  # type: ignore[no-any-return]

    def put_many(self, objects: Iterable[T], block: bool = True, timeout: float | None = None) -> int:
        """Puts the objects into the queue in their order, many of them with one system call; returns how many.

        Those are fewer than all if the queue is full: it waits for room as put() does, `timeout` seconds for all of
        them together. Otherwise as put(); what raises there raises here when the objects before it have been put. Of
        ShutDown, the attribute `sent` says how many were.
        """
        self._check_usable()
        return self._messages.put_many(objects, block, timeout, self._errors())

    def get_many(self, max_items: int, block: bool = True, timeout: float | None = None) -> list[T]:
        """Removes up to `max_items` objects from the queue, at least one, and returns them in their order.

        Waits as get() does if there is none; it returns what is there, and never more than 128 objects. If one cannot
        be unpickled, what that raises is raised, and its attribute `received` has the others.
        """
        self._check_usable()
        if max_items < 1:
            raise ValueError(f"max_items must be at least 1, got {max_items}")
        return self._messages.get_many(max_items, block, timeout)

    def put_nowait(self, obj: T) -> None:
        """put(obj, block=False)."""
        return self.put(obj, False)

    def get_nowait(self) -> T:
        """get(block=False)."""
        return self.get(False)

    def qsize(self) -> int:
        """The number of objects in the queue."""
        return self._messages.size()

    def empty(self) -> bool:
        """Whether there is nothing in the queue.

        OSError: it is closed here, and this process has put something; so multiprocessing has it.
        """
        if self._closed and self._has_put:
            raise OSError("handle is closed")
        return self._messages.size() == 0

    def full(self) -> bool:
        """Whether there are maxsize objects in the queue."""
        return self._messages.size() >= self._maxsize

    def close(self) -> None:
        """This process will use the queue no more. What it has put stays there for the others."""
        self._closed = True
        self._reader.close()
        self._writer.close()

    def join_thread(self) -> None:
        """Returns at once: what was put has been sent. For programs written for multiprocessing; after close() only."""
        _debug("Queue.join_thread()")
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Does nothing: there is no thread to be waited for."""
        _debug("Queue.cancel_join_thread()")
        self._joincancelled = True

    def _terminate_broken(self) -> None:
        # concurrent.futures (from Python 3.12 on) calls it when its workers are gone.
        self.close()

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        """Called by put() when obj could not be pickled, while e is being handled. Prints the traceback; subclasses do
        other things."""
        import traceback

        traceback.print_exc()


LIMIT = 0x7FFFFFFF  # what multiprocessing's queues have as _maxsize when there is none


class JoinableQueue(JoinableQueueParts, Queue[T]):
    """A Queue that knows when all that was put has been dealt with: multiprocessing.JoinableQueue.

    An object that a consumer took counts as unfinished until task_done() is called for it, also if the consumer is
    killed: nobody knows how far it had come. Any process may call task_done() for it.
    """

    _like = "queues", "JoinableQueue"
    _kind = {"counted": True}  # noqa: RUF012

    def task_done(self) -> None:
        """One of the objects taken has been dealt with. ValueError if none is unfinished."""
        self._messages.task_done()

    def join(self) -> None:
        """Waits until no object is unfinished."""
        self._messages.join()


def _level(priority: int) -> int:
    if not 0 <= priority < LEVELS:
        raise ValueError(f"priority must be from 0 to {LEVELS - 1}, got {priority}")
    return LEVELS - 1 - priority


class PriorityQueue(Queue[T]):
    """A Queue whose objects have priorities, as those of mq_send(3) have: the highest comes first.

    Of the same priority, the first one put comes first. Priorities are integers from 0, the default, to 32767.
    """

    _kind = {"priority": True}  # noqa: RUF012

    def put(self, obj: T, block: bool = True, timeout: float | None = None, *, priority: int = 0) -> None:
        """As Queue.put(). ValueError also if the priority is not one."""
        self._put(obj, block, timeout, _level(priority))

    def put_nowait(self, obj: T, *, priority: int = 0) -> None:
        """put(obj, block=False, priority=priority)."""
        self.put(obj, False, priority=priority)

    def put_many(
        self, objects: Iterable[T], block: bool = True, timeout: float | None = None, *, priority: int = 0
    ) -> int:
        """As Queue.put_many(), all with the same priority."""
        self._check_usable()
        return self._messages.put_many(objects, block, timeout, self._errors(), _level(priority))


class SimpleQueue(_Base, Generic[T]):
    """A queue with get(), put(), empty() and close() only: multiprocessing.SimpleQueue. `pickler`: see Queue."""

    _like = "queues", "SimpleQueue"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        settle_queue(cls, "SimpleQueue", SimpleQueue)

    def __init__(self, *, ctx: BaseContext | None = None, pickler: Any = None, copy: bool = True) -> None:
        self._is_fork_ctx = is_fork(ctx)
        self._open(new_messages(settled(pickler, ctx), views=not copy))

    def __getstate__(self) -> Any:
        assert_shareable(self)
        return state_of(self._messages)

    def __setstate__(self, state: Any) -> None:
        self._open(opened(state))

    def put(self, obj: T) -> None:
        """Puts obj into the queue; raises what pickling it raises.

        OSError: the queue is closed; ShutDown: it was shut down.
        """
        self._writer._check_open()
        self._messages.put(obj)

    def get(self) -> T:
        """Removes the next object from the queue and returns it, waiting for one.

        OSError: the queue is closed; ShutDown: it was shut down, and is empty.
        """
        self._reader._check_open()
        return self._messages.get()  # type: ignore[no-any-return]

    def empty(self) -> bool:
        """Whether there is nothing in the queue. OSError: the queue is closed."""
        self._reader._check_open()
        return self._messages.size() == 0

    def close(self) -> None:
        """This process will use the queue no more."""
        self._reader.close()
        self._writer.close()


# ---- the module ------------------------------------------------------------------------------------------------------


class _Module(picklers.Module):
    """This module, which is told when a program puts another pickler into it."""

    @property
    def _ForkingPickler(self) -> Any:
        """The pickler of the queues: whatever is assigned pickles, and unpickles, from then on."""
        return picklers.current()

    @_ForkingPickler.setter
    def _ForkingPickler(self, pickler: Any) -> None:
        picklers.set_for_queues(pickler)

    @_ForkingPickler.deleter
    def _ForkingPickler(self) -> None:
        picklers.set_for_queues(None)


sys.modules[__name__].__class__ = _Module

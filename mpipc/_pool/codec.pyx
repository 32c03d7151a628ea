# distutils: language = c
"""What a pool does once for each task: the tasks themselves, and packing what they carry."""

import io
import pickle

from mpipc._queue.serializer cimport is_replaced, pickled_by_own

from collections import ChainMap

from mpipc._queue.serializer import Reducers, dumps, is_shared
from mpipc._stdlib.by_pickler import ByPickler

cdef object PickleBuffer = pickle.PickleBuffer
cdef object Pickler = pickle.Pickler
cdef object loads = pickle.loads
cdef object BytesIO = io.BytesIO
cdef object reducers = Reducers()
cdef enum:
    ITEM_KIND = 3

# Bytes from which a buffer (of a numpy array, say) is kept apart from the pickle, so that it is copied less often.
cdef Py_ssize_t OUT_OF_BAND = 1 << 14
# Items of a list or tuple that are looked at, to send it as it is.
cdef Py_ssize_t MANY = 1 << 12

# Kinds of tasks: what the payload holds, and what the worker does with it.
CALL = 1  # (args, kwargs): function(*args, **kwargs)
APPLY = 2  # args: function(*args)
ITEM = 3  # x: function(x)
CHUNK = 4  # items: [function(x) for x in items]
STAR_CHUNK = 5  # items: [function(*x) for x in items]
# Added to the kind of a task with a timeout: the body is a pair, of its timeout and what would be the body without.
TIMED = 64


# ---- packing ---------------------------------------------------------------------------------------------------------

cdef inline bint is_plain(object value):
    """Whether it is of just such a type that nothing can go wrong with it when it is pickled or unpickled."""
    cdef type kind = type(value)
    return (
        kind is int or kind is str or value is None or kind is float or kind is bytes or kind is bool
        or kind is complex)


cdef bint is_plain_or_of_plain(object value):
    """A list has to be a copy: else somebody may change it before it is sent, and two tasks of a message share it."""
    cdef object item
    if is_plain(value):
        return True
    if type(value) is tuple:
        if len(<tuple> value) > MANY:
            return False
        for item in <tuple> value:
            if not is_plain(item):
                return False
        return True
    if type(value) is list:
        if len(<list> value) > MANY:
            return False
        for item in <list> value:
            if not is_plain(item):
                return False
        return True
    return False


def pack(value, own=None):
    """Body and buffers for a value: itself and None if it is plain, else its pickle. Raises what pickling raises.

    `own` reducers go before those that are registered; it may also be a ByPickler, which pickles what is not plain.
    """
    if type(own) is ByPickler:
        copy = list(value) if type(value) is list else value
        if is_plain_or_of_plain(copy):
            return copy, None
        value, own = own.sent(value), None
    elif is_replaced and not own:
        value = pickled_by_own(value)
    elif type(value) is list and not own:
        copy = list(value)
        if is_plain_or_of_plain(copy):
            return copy, None
    elif not own and is_plain_or_of_plain(value):
        return value, None
    cdef list buffers = []

    def keep_in_band(buffer):
        try:
            if buffer.raw().nbytes < OUT_OF_BAND and not is_shared(buffer):
                return True
        except BufferError:  # not contiguous
            return True
        buffers.append(buffer)
        return False

    stream = BytesIO()
    pickler = Pickler(stream, 5, buffer_callback=keep_in_band)
    pickler.dispatch_table = ChainMap(own, reducers) if own else reducers
    pickler.dump(value)
    return stream.getvalue(), buffers


def pack_whole(value, own):
    """The pickle of a value, with its buffers in it. Raises whatever pickling raises."""
    if type(own) is ByPickler:
        return dumps(own.sent(value))
    if not own:
        return dumps(value)
    stream = BytesIO()
    pickler = Pickler(stream, 5)
    pickler.dispatch_table = ChainMap(own, reducers)
    pickler.dump(value)
    return stream.getvalue()


def unpack(body, buffers):
    """The value. Raises whatever unpickling it raises."""
    return body if buffers is None else loads(body, buffers=buffers)


# ---- tasks -----------------------------------------------------------------------------------------------------------

cdef class Task:
    """What is run as a whole by one worker: a call, or a chunk of a map.

    It is in one place at a time: in the backlog, in the window of a worker, or in the hands of the one thread that
    moves it.
    """

    def __init__(
            self, job, Py_ssize_t index, int kind, function, payload, *, Py_ssize_t first=0, Py_ssize_t retries=0,
            timeout=None, feed=None, pinned=None):
        self.job = job
        self.index = index
        self.kind = kind
        self.function = function
        self.payload = payload
        self.first = first
        self.retries = retries
        self.timeout = timeout
        self.feed = feed
        self.pinned = pinned

    cdef tuple envelope(self, object tag, object number, bint known, object own):
        """The message for a worker, to which the function is `known` or not. Runs the user's code, to pickle."""
        cdef object function = self.function, body = self.payload, buffers = None
        if own or type(body) is list or is_replaced or not is_plain_or_of_plain(body):
            body, buffers = pack(body, own)
        cdef object kind = self.kind
        if self.timeout is not None:
            kind, body = kind + TIMED, (self.timeout, body)
        return (
            kind, tag, number, None if known else function.pickled(own), function.id if function.lasting else 0,
            body, buffers)


cdef class Source:
    """The chunks of a map over a tuple or range that is not empty, made when a worker has room for one.

    Runs no code of the user.
    """

    def __init__(self, job, int kind, function, items, Py_ssize_t size, Py_ssize_t retries=0, timeout=None):
        self.job = job
        self.kind = kind
        self.function = function
        self.items = items
        self.size = min(size, len(items))
        self.retries = retries
        self.timeout = timeout
        self.remaining = (len(items) - 1) // self.size + 1

    cdef Task draw(self):
        """The next chunk, of at least one."""
        cdef Task task = Task.__new__(Task)
        cdef Py_ssize_t first = self.index * self.size
        task.job = self.job
        task.index = self.index
        task.kind = self.kind
        task.function = self.function
        task.first = first
        task.payload = self.items[first] if self.kind == ITEM_KIND else tuple(self.items[first:first + self.size])
        task.retries = self.retries
        task.timeout = self.timeout
        self.index += 1
        self.remaining -= 1
        return task

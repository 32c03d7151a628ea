"""Pickling: objects into bytes, without gathering them more often than it takes.

Where a program has put a pickler of its own in the place of ForkingPickler (_stdlib/picklers.py), what that makes of an
object travels as the contents of an `Own`: whoever receives it need not know before it is unpickled.
"""

import copyreg
import pickle

cimport cython
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.string cimport memcpy

from mpipc._core.family cimport MP_OK
from mpipc._core.queue cimport mp_piece_claim, mp_piece_free

from mpipc._core.errors import queue_error
from mpipc._stdlib import picklers
from mpipc._stdlib.private import ORIGINAL_PICKLER as _ORIGINAL_PICKLER
from mpipc._stdlib.private import extra_reducers as _extra_reducers

# Copying this much takes longer than giving up the GIL and getting it back.
cdef Py_ssize_t LONG_COPY = 1 << 18
# What a serializer keeps of its buffers between messages.
cdef Py_ssize_t LARGE_PICKLE = 1 << 20

cdef dict extra_reducers = _extra_reducers
cdef dict copyreg_reducers = copyreg.dispatch_table

cdef object original_pickler = _ORIGINAL_PICKLER


# ---- a pickler of the program's own ----------------------------------------------------------------------------------

def _note(bint value):
    global is_replaced
    is_replaced = value


picklers.tell(_note)


@cython.final
cdef class Own:
    """An object that a pickler of the program's has pickled."""

    cdef bytes data

    def __reduce__(self):
        return load_own, (self.data,)


def load_own(data):
    """What was pickled by the pickler of the process that has sent it, unpickled by that of this process."""
    return picklers.loads(data)


cdef object pickled_by_own(object obj):
    """The object itself if the pickler is the usual one after all."""
    cdef Own own
    if picklers.current() is original_pickler:
        return obj
    own = Own.__new__(Own)
    own.data = picklers.dumps(obj)
    return own


# ---- the usual one ---------------------------------------------------------------------------------------------------

cdef class Reducers:
    """The dispatch table of ForkingPickler: its registered reducers, then copyreg's. Both may change at any time."""

    def __getitem__(self, cls):
        reducer = extra_reducers.get(cls)
        if reducer is not None:
            return reducer
        return copyreg_reducers[cls]


cdef Reducers reducers = Reducers()
cdef list serializers = []  # that nobody is using


@cython.final
cdef class Serializer:
    """A reusable C pickler (protocol 5) that does not gather its output.

    A pickler that writes to a file hands over large bytes, bytearrays and the buffers of PickleBuffers (numpy's arrays)
    as they are, without copying them into the stream. So they are copied once, to shared memory; and
    reading the stream from there copies them once more, to where they stay.
    """

    def __cinit__(self):
        self.chunks = []
        self.pickler = pickle.Pickler(self, 5)
        self.pickler.dispatch_table = reducers
        self.dump = self.pickler.dump
        self.clear_memo = self.pickler.clear_memo

    def write(self, data):
        if not PyBytes_CheckExact(data):
            data = memoryview(data)  # from now on the object cannot be resized
            self.total += data.nbytes
        else:
            self.total += PyBytes_GET_SIZE(data)
        self.chunks.append(data)

    cdef int write_pickle_of(self, object obj) except -1:
        if is_replaced:
            obj = pickled_by_own(obj)
        self.total = 0
        self.dump(obj)
        return 0

    cdef int copy_to(self, unsigned char *target) except -1:
        cdef Py_buffer view
        for chunk in self.chunks:
            if PyBytes_CheckExact(chunk) and PyBytes_GET_SIZE(chunk) < LONG_COPY:
                memcpy(target, PyBytes_AS_STRING(chunk), PyBytes_GET_SIZE(chunk))
                target += PyBytes_GET_SIZE(chunk)
                continue
            PyObject_GetBuffer(chunk, &view, PyBUF_ANY_CONTIGUOUS)
            with nogil:
                memcpy(target, view.buf, view.len)
            target += view.len
            PyBuffer_Release(&view)
        return 0

    cdef void reset(self):
        self.chunks.clear()
        self.clear_memo()


cdef Serializer take_serializer():
    return serializers.pop() if serializers else Serializer()


cdef int give_back(Serializer serializer) except -1:
    # A pickler keeps a memo as large as its largest object needed.
    large = serializer.total > LARGE_PICKLE
    serializer.reset()
    if not large and len(serializers) < 8:
        serializers.append(serializer)
    return 0


def dumps(obj):
    """The bytes that obj travels as."""
    cdef Serializer serializer = take_serializer()
    try:
        serializer.write_pickle_of(obj)
        return b"".join(serializer.chunks)
    finally:
        give_back(serializer)


cdef int claim(mp_queue_view *v, Serializer serializer, mp_piece *piece) except -1:
    """Copies a large message into a piece, which is the caller's to send or free."""
    cdef unsigned char *data
    cdef int error
    with nogil:
        error = mp_piece_claim(v, serializer.total, piece, &data)
    if error != MP_OK:
        raise queue_error(error, True, v.id, serializer.total)
    try:
        serializer.copy_to(data)
    except BaseException:
        mp_piece_free(v, piece)
        raise
    return 0

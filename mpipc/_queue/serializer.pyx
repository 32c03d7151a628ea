"""Pickling: objects into bytes, without gathering them more often than it takes.

Where a program has put a pickler of its own in the place of ForkingPickler (_stdlib/picklers.py), what that makes of an
object travels as the contents of an `Own`: whoever receives it need not know before it is unpickled.
"""

import copyreg
import pickle

cimport cython
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from mpipc._core.family cimport MP_OK, fail_growing
from mpipc._core.memory cimport (
    MP_REFERENCE_COPY,
    MP_REFERENCES_MOST,
    mp_carrier_end,
    mp_carrier_hold,
    mp_carrier_new,
    mp_carrier_send,
)
from mpipc._core.queue cimport mp_piece_claim, mp_piece_free
from mpipc._memory.memory cimport memory_at, new_memory

from mpipc._core.errors import queue_error
from mpipc._memory import awaiting_torch
from mpipc._memory.memory import for_children as _for_children
from mpipc._memory.memory import reducers as _by_reference
from mpipc._stdlib import picklers
from mpipc._stdlib.private import ORIGINAL_PICKLER as _ORIGINAL_PICKLER
from mpipc._stdlib.private import extra_reducers as _extra_reducers

cdef extern from "Python.h":
    const Py_buffer *PyPickleBuffer_GetBuffer(object picklebuf) except NULL
    int PyBuffer_IsContiguous(const Py_buffer *view, char order)

# Copying this much takes longer than giving up the GIL and getting it back.
cdef Py_ssize_t LONG_COPY = 1 << 18
# What a serializer keeps of its buffers between messages.
cdef Py_ssize_t LARGE_PICKLE = 1 << 20
# Buffers of objects (numpy's arrays) travel apart from the pickle from here on, in memory that the message holds.
cdef size_t APART = 1 << 18
# ... and where receivers take them as they are, from here: below it a copy is as cheap as a block that says who has it.
cdef size_t APART_FOR_VIEWS = 1 << 14

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

cdef dict by_reference = _by_reference
cdef dict for_children = _for_children


cdef object reducer_of_subclass(object cls):
    """Of one that has one; None for all other classes."""
    for base in cls.__mro__[1:-1]:
        reducer = by_reference.get(base)
        if reducer is not None:
            return reducer
    return None


def is_shared(buffer):
    """Whether a PickleBuffer is of memory that can be referred to."""
    cdef const Py_buffer *view = PyPickleBuffer_GetBuffer(buffer)
    return PyBuffer_IsContiguous(view, b"A") and memory_at(view.buf, view.len) is not None


cdef class Reducers:
    """The dispatch table of ForkingPickler: its registered reducers, then copyreg's. Both may change at any time. After
    the former come those for what may lie in memory that travels by reference."""

    def __getitem__(self, cls):
        reducer = extra_reducers.get(cls)
        if reducer is not None and reducer is not for_children.get(cls) and cls.__name__ == "UntypedStorage":
            awaiting_torch.look()  # torch has been imported, and has registered its reducer, which gives way to ours
            reducer = extra_reducers.get(cls)
        if by_reference and (reducer is None or reducer is for_children.get(cls)):
            reducer = by_reference.get(cls) or reducer_of_subclass(cls)
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
        self.memories = {}
        self.spans = []
        self.carrier = -1
        self.pickler = pickle.Pickler(self, 5, buffer_callback=self.keep_in_pickle)
        self.pickler.dispatch_table = reducers
        self.dump = self.pickler.dump
        self.clear_memo = self.pickler.clear_memo

    def __dealloc__(self):
        PyMem_Free(self.references)

    cdef void goes_to(self, Family family, bint views) noexcept:
        """A message may refer to memory of that family."""
        self.family = family
        self.apart = APART_FOR_VIEWS if views else APART

    def keep_in_pickle(self, buffer):
        """What pickle asks for each PickleBuffer: False if it goes apart from the pickle, and the message refers to its
        memory."""
        cdef const Py_buffer *view
        cdef Memory memory
        cdef size_t offset = 0
        cdef bint ours = True
        if self.family is None:
            return True
        view = PyPickleBuffer_GetBuffer(buffer)
        if not PyBuffer_IsContiguous(view, b"A"):
            return True
        memory = memory_at(view.buf, view.len)
        if memory is not None and memory.block.family is self.family:
            offset = <unsigned char *> view.buf - memory.start
        elif <size_t> view.len < self.apart:
            return True
        else:
            memory = self.copied(<Py_buffer *> view)
            if memory is None:
                return True
            ours = False
        try:
            self.refer(memory, offset, view.len)
        except (OSError, ValueError) as e:
            if not ours:
                return True
            self.refused = e
            raise
        return False

    cdef Memory copied(self, Py_buffer *view):
        """Memory with the same bytes; None if there is none to be had: then they go with the pickle."""
        cdef Memory memory
        try:
            memory = new_memory(view.len, True)
        except OSError:
            return None
        if memory.block.family is not self.family:
            return None
        with nogil:
            memcpy(memory.start, view.buf, view.len)
        return memory

    cdef int refer(self, Memory memory, size_t offset, size_t nbytes) except -1:
        """The message that is being pickled holds the memory. OSError if there is no carrier for it."""
        cdef uint32_t count = len(self.memories)
        cdef mp_references *grown
        found = self.memories.get(memory)
        if found is not None:
            self.spans.append((found, offset, nbytes))
            return 0
        if count == MP_REFERENCES_MOST:
            raise ValueError(f"a message can refer to {MP_REFERENCES_MOST} pieces of shared memory, and no more")
        if self.carrier < 0:
            self.family.ensure()
            self.carrier = mp_carrier_new(self.family.f)
            if self.carrier < 0:
                fail_growing(errno, "sending a message that refers to shared memory")
        if count == self.room:
            grown = <mp_references *> PyMem_Realloc(
                self.references, sizeof(mp_references) + (2 * self.room + 8) * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError
            self.references = grown
            self.room = 2 * self.room + 8
        self.references.count = count
        if mp_carrier_hold(self.family.f, <uint32_t> self.carrier, memory.block.index) != MP_OK:
            fail_growing(errno, "sending a message that refers to shared memory")
        self.references.blocks[count] = (
            memory.block.index | (<uint64_t> MP_REFERENCE_COPY if memory.readonly else 0)
            | <uint64_t> memory.block.serial << 32)
        self.references.count = count + 1
        self.memories[memory] = count
        self.spans.append((count, offset, nbytes))
        return 0

    cdef size_t head_size(self) noexcept:
        """Bytes before the pickle: 0 if the message refers to nothing."""
        if self.carrier < 0:
            return 0
        return sizeof(mp_references) + (len(self.memories) + len(self.spans) * 3) * sizeof(uint64_t)

    cdef void write_head(self, unsigned char *target):
        """struct mp_references (with the number of spans), then which memory, offset, and size of each span."""
        cdef size_t size = sizeof(mp_references) + len(self.memories) * sizeof(uint64_t)
        cdef uint64_t *words
        self.references.spans = <uint32_t> len(self.spans)
        memcpy(target, self.references, size)
        words = <uint64_t *> (target + size)
        for which, offset, nbytes in self.spans:
            words[0] = which
            words[1] = offset
            words[2] = nbytes
            words += 3

    cdef void release(self) noexcept:
        """What was not sent holds nothing any more."""
        if self.carrier >= 0:
            mp_carrier_end(self.family.f, <uint32_t> self.carrier, self.references, <uint32_t> len(self.memories))
            self.carrier = -1

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
        self.refused = None
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
        self.release()
        self.memories.clear()
        self.spans.clear()
        self.chunks.clear()
        self.refused = None
        self.clear_memo()


cdef Serializer take_serializer():
    return serializers.pop() if serializers else Serializer()


cdef int give_back(Serializer serializer) except -1:
    # A pickler keeps a memo as large as its largest object needed.
    large = serializer.total > LARGE_PICKLE
    serializer.reset()
    serializer.family = None
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
    """Copies a message that is large, or refers to memory, into a piece, which is the caller's to send or end."""
    cdef unsigned char *data
    cdef size_t head = serializer.head_size()
    cdef uint64_t size = head + serializer.total
    cdef int error
    with nogil:
        error = mp_piece_claim(v, size, piece, &data)
    if error != MP_OK:
        raise queue_error(error, True, v.id, size)
    try:
        if head:
            serializer.write_head(data)
        serializer.copy_to(data + head)
    except BaseException:
        mp_piece_free(v, piece)
        raise
    if head:
        mp_carrier_send(v, <uint32_t> serializer.carrier, piece)
        serializer.carrier = -1
    return 0

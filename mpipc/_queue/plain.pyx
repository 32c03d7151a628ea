"""Small objects of plain built-in types, written straight into a message and read straight from it.

Making a pickler and an unpickler costs more than sending the message. Most messages do not need them: None, bool, int,
float, str and bytes, and tuples, lists and dicts of those, mean the same to every pickler, whatever has been registered
with ForkingPickler or copyreg (C's pickler looks there for none of these types). What this module does not take is for
pickle: instances of other types, subclasses included, integers beyond 64 bits, what is nested deeply, and what is too
large for a message.

pickle keeps identities: of two references to one list, the receiver gets two references to one list. Here nothing does,
so a container that is found twice makes the whole object one for pickle; a cycle is such a case. Of immutable objects
nobody can tell.

The GIL is held throughout, and no code of the program runs in between: what is written is one state of the object.
"""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int8_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        pass
    PyTypeObject *Py_TYPE(PyObject *)
    Py_ssize_t Py_REFCNT(PyObject *)
    PyTypeObject PyLong_Type, PyFloat_Type, PyUnicode_Type, PyBytes_Type, PyTuple_Type, PyList_Type, PyDict_Type
    PyObject *Py_None
    PyObject *Py_True
    PyObject *Py_False
    long long PyLong_AsLongLongAndOverflow(PyObject *, int *)
    object PyLong_FromLongLong(long long)
    double PyFloat_AS_DOUBLE(PyObject *)
    object PyFloat_FromDouble(double)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *)
    int PyUnicode_KIND(PyObject *)
    void *PyUnicode_DATA(PyObject *)
    object PyUnicode_New(Py_ssize_t, uint32_t)
    object PyUnicode_FromKindAndData(int, const void *, Py_ssize_t)
    char *PyBytes_AS_STRING(PyObject *)
    Py_ssize_t PyBytes_GET_SIZE(PyObject *)
    object PyBytes_FromStringAndSize(const char *, Py_ssize_t)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *)
    PyObject *PyTuple_GET_ITEM(PyObject *, Py_ssize_t)
    tuple PyTuple_New(Py_ssize_t)
    void PyTuple_SET_ITEM(tuple, Py_ssize_t, object)
    Py_ssize_t PyList_GET_SIZE(PyObject *)
    PyObject *PyList_GET_ITEM(PyObject *, Py_ssize_t)
    list PyList_New(Py_ssize_t)
    void PyList_SET_ITEM(list, Py_ssize_t, object)
    Py_ssize_t PyDict_GET_SIZE(PyObject *)
    bint PyDict_Next(PyObject *, Py_ssize_t *, PyObject **, PyObject **)
    void Py_INCREF(object)

# A message: one item. An item: its tag, and what the comment says.
cdef enum:
    NONE
    TRUE
    FALSE
    SMALL  # int8
    INTEGER  # int64
    FLOAT  # double
    ASCII  # length:16, characters
    LATIN1  # length:16, characters of 1 byte
    UCS2  # length:16, characters of 2 bytes
    UCS4  # length:16, characters of 4 bytes
    BYTES  # length:16, bytes
    TUPLE  # length:16, items
    LIST  # length:16, items
    DICT  # length:16, keys and values

cdef enum:
    DEEPEST = 16
    SHARED = 16  # containers with other references to them
    KEYS = 256
    LONGEST_KEY = 32


# ---- writing ---------------------------------------------------------------------------------------------------------

cdef struct Writer:
    unsigned char *at
    unsigned char *end
    int depth
    int shared
    PyObject *found[SHARED]


cdef inline bint put_bytes(Writer *w, unsigned char tag, Py_ssize_t length, const void *data, Py_ssize_t size) noexcept:
    cdef uint16_t short_length = <uint16_t> length
    if w.end - w.at < size + 3:
        return False
    w.at[0] = tag
    memcpy(w.at + 1, &short_length, 2)
    memcpy(w.at + 3, data, size)
    w.at += 3 + size
    return True


cdef inline bint put_text(Writer *w, PyObject *obj) noexcept:
    cdef Py_ssize_t length = PyUnicode_GET_LENGTH(obj)
    cdef int kind = PyUnicode_KIND(obj)
    cdef unsigned char tag = LATIN1 if kind == 1 else UCS2 if kind == 2 else UCS4
    if kind == 0:  # of an extension that uses the old API of Python 3.11, and not ready
        return False
    if PyUnicode_IS_COMPACT_ASCII(obj):
        tag = ASCII
    return put_bytes(w, tag, length, PyUnicode_DATA(obj), length * kind)


cdef bint put_integer(Writer *w, PyObject *obj) noexcept:
    cdef int overflow
    cdef int64_t value = PyLong_AsLongLongAndOverflow(obj, &overflow)
    if overflow != 0 or w.end - w.at < 9:
        return False
    if -128 <= value <= 127:
        w.at[0] = SMALL
        w.at[1] = <unsigned char> <int8_t> value
        w.at += 2
    else:
        w.at[0] = INTEGER
        memcpy(w.at + 1, &value, 8)
        w.at += 9
    return True


cdef bint first_time(Writer *w, PyObject *obj) noexcept:
    """Of a container: whether this is not another reference to one that was written."""
    cdef int i
    if Py_REFCNT(obj) == 1:
        return True
    for i in range(w.shared):
        if w.found[i] == obj:
            return False
    if w.shared == SHARED:
        return False
    w.found[w.shared] = obj
    w.shared += 1
    return True


cdef bint put_container(Writer *w, PyObject *obj, PyTypeObject *kind) noexcept:
    cdef Py_ssize_t i, length, position = 0
    cdef PyObject *key
    cdef PyObject *value
    if kind == &PyTuple_Type:
        length = PyTuple_GET_SIZE(obj)
        if length != 0 and not first_time(w, obj) or not put_bytes(w, TUPLE, length, w.at, 0):
            return False
        if length > w.end - w.at:
            return False
        for i in range(length):
            if not put(w, PyTuple_GET_ITEM(obj, i)):
                return False
    elif kind == &PyList_Type:
        length = PyList_GET_SIZE(obj)
        if not first_time(w, obj) or length > w.end - w.at or not put_bytes(w, LIST, length, w.at, 0):
            return False
        for i in range(length):
            if not put(w, PyList_GET_ITEM(obj, i)):
                return False
    else:
        length = PyDict_GET_SIZE(obj)
        if not first_time(w, obj) or length > w.end - w.at or not put_bytes(w, DICT, length, w.at, 0):
            return False
        while PyDict_Next(obj, &position, &key, &value):
            if not put(w, key) or not put(w, value):
                return False
    return True


cdef bint put(Writer *w, PyObject *obj) noexcept:
    """False: this is one for pickle."""
    cdef PyTypeObject *kind = Py_TYPE(obj)
    cdef double number
    cdef bint done
    if kind == &PyUnicode_Type:
        return put_text(w, obj)
    if kind == &PyLong_Type:
        return put_integer(w, obj)
    if w.end - w.at < 9:
        return False
    if kind == &PyFloat_Type:
        number = PyFloat_AS_DOUBLE(obj)
        w.at[0] = FLOAT
        memcpy(w.at + 1, &number, 8)
        w.at += 9
        return True
    if obj == Py_None or obj == Py_True or obj == Py_False:
        w.at[0] = NONE if obj == Py_None else TRUE if obj == Py_True else FALSE
        w.at += 1
        return True
    if kind == &PyBytes_Type:
        return put_bytes(w, BYTES, PyBytes_GET_SIZE(obj), PyBytes_AS_STRING(obj), PyBytes_GET_SIZE(obj))
    if kind != &PyTuple_Type and kind != &PyList_Type and kind != &PyDict_Type or w.depth == DEEPEST:
        return False
    w.depth += 1
    done = put_container(w, obj, kind)
    w.depth -= 1
    return done


cdef Py_ssize_t write_plain(object obj, unsigned char *target, Py_ssize_t room) noexcept:
    """The number of bytes written, at most `room`, which is at most 0xffff; 0: obj is one for pickle."""
    cdef Writer w
    w.at = target
    w.end = target + room
    w.depth = 0
    w.shared = 0
    return w.at - target if put(&w, <PyObject *> obj) else 0


# ---- reading ---------------------------------------------------------------------------------------------------------

cdef struct Reader:
    const unsigned char *at
    const unsigned char *end


cdef int torn() except -1:
    raise ValueError("mpipc: what was received is not what was sent: another program writes to this message queue?")


cdef inline const unsigned char *take(Reader *r, Py_ssize_t size) except NULL:
    cdef const unsigned char *data = r.at
    if r.end - r.at < size:
        torn()
    r.at += size
    return data


cdef inline Py_ssize_t take_length(Reader *r) except -1:
    cdef uint16_t length
    memcpy(&length, take(r, 2), 2)
    return length


cdef str new_ucs4(const unsigned char *data, Py_ssize_t length):
    cdef uint32_t character
    cdef Py_ssize_t i
    for i in range(length):
        memcpy(&character, data + 4 * i, 4)
        if character > 0x10ffff:  # CPython does not look
            torn()
    return PyUnicode_FromKindAndData(4, data, length)


# Keys come again and again: the same string, whose hash is known, does for all.
cdef list keys = [""] * KEYS


cdef bint is_ascii(const unsigned char *data, Py_ssize_t length) noexcept:
    cdef uint64_t word, bits = 0
    while length >= 8:
        memcpy(&word, data, 8)
        bits |= word
        data += 8
        length -= 8
    while length > 0:
        bits |= data[0]
        data += 1
        length -= 1
    return not bits & <uint64_t> 0x8080808080808080


cdef str new_ascii(const unsigned char *data, Py_ssize_t length):
    cdef str text
    if length < 2:
        return PyUnicode_FromKindAndData(1, data, length)  # one of the interpreter's own
    if not is_ascii(data, length):
        torn()
    text = PyUnicode_New(length, 127)
    memcpy(PyUnicode_DATA(<PyObject *> text), data, length)
    return text


cdef object get_key(Reader *r):
    """An item that is a key of a dict."""
    cdef Py_ssize_t length
    cdef const unsigned char *data
    cdef uint64_t hashed = 0
    cdef PyObject *known
    cdef str text
    if r.end - r.at < 3 or r.at[0] != ASCII:
        return get(r)
    r.at += 1
    length = take_length(r)
    data = take(r, length)
    if not 2 <= length <= LONGEST_KEY:
        return new_ascii(data, length)
    memcpy(&hashed, data, length if length < 8 else 8)
    hashed ^= <uint64_t> length << 56 ^ <uint64_t> data[length - 1] << 48
    hashed = hashed * <uint64_t> 0x9e3779b97f4a7c15 >> 56
    known = PyList_GET_ITEM(<PyObject *> keys, hashed)
    if PyUnicode_GET_LENGTH(known) == length and memcmp(PyUnicode_DATA(known), data, length) == 0:
        return <object> known
    text = new_ascii(data, length)
    keys[hashed] = text
    return text


@cython.boundscheck(False)
@cython.wraparound(False)
cdef object get(Reader *r):
    cdef unsigned char tag = take(r, 1)[0]
    cdef Py_ssize_t i, _i, length
    cdef int64_t integer
    cdef double number
    cdef tuple items
    cdef list values
    cdef dict mapping
    cdef object item
    if tag == ASCII:
        length = take_length(r)
        return new_ascii(take(r, length), length)
    if tag == SMALL:
        return PyLong_FromLongLong(<int8_t> take(r, 1)[0])
    if tag == INTEGER:
        memcpy(&integer, take(r, 8), 8)
        return PyLong_FromLongLong(integer)
    if tag == FLOAT:
        memcpy(&number, take(r, 8), 8)
        return PyFloat_FromDouble(number)
    if tag == NONE:
        return None
    if tag == TRUE:
        return True
    if tag == FALSE:
        return False
    length = take_length(r)
    if tag == DICT:
        mapping = {}
        for _i in range(length):
            item = get_key(r)
            mapping[item] = get(r)
        return mapping
    if tag == LIST:
        values = PyList_New(length)
        for i in range(length):
            item = get(r)
            Py_INCREF(item)
            PyList_SET_ITEM(values, i, item)
        return values
    if tag == TUPLE:
        if length == 0:
            return ()
        items = PyTuple_New(length)
        for i in range(length):
            item = get(r)
            Py_INCREF(item)
            PyTuple_SET_ITEM(items, i, item)
        return items
    if tag == BYTES:
        return PyBytes_FromStringAndSize(<const char *> take(r, length), length)
    if tag == LATIN1:
        return PyUnicode_FromKindAndData(1, take(r, length), length)
    if tag == UCS2:
        return PyUnicode_FromKindAndData(2, take(r, 2 * length), length)
    if tag == UCS4:
        return new_ucs4(take(r, 4 * length), length)
    torn()


cdef object read_plain(const unsigned char *source, Py_ssize_t size):
    """The object that write_plain() wrote."""
    cdef Reader r
    cdef object obj
    r.at = source
    r.end = source + size
    obj = get(&r)
    if r.at != r.end:
        torn()
    return obj


# ---- for Python ------------------------------------------------------------------------------------------------------

def encode(obj, uint16_t room=2048):
    """What obj is written as if it takes at most `room` bytes; None if it is one for pickle."""
    cdef unsigned char[0x10000] target
    cdef Py_ssize_t size = write_plain(obj, target, room)
    return PyBytes_FromStringAndSize(<char *> target, size) if size != 0 else None


def decode(bytes data not None):
    """The object that encode() wrote."""
    return read_plain(<const unsigned char *> PyBytes_AS_STRING(<PyObject *> data), len(data))

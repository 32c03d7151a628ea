"""Objects of plain types in messages: what is received equals what was sent, and pickle gets all that is not plain."""

from __future__ import annotations

import collections
import enum
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpipc
from mpipc._queue.plain import decode, encode

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=20)
    | st.binary(max_size=20)
)
KEYS = LEAVES | st.tuples(LEAVES, LEAVES)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.lists(inner, max_size=5).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down, with dicts in the same order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return bool(a == b)


DEEPEST = 16
"""Containers in one another; what is nested more deeply is for pickle."""


def depth(obj: Any) -> int:
    if isinstance(obj, dict):
        return 1 + max(map(depth, (*obj, *obj.values())), default=0)
    return 1 + max(map(depth, obj), default=0) if isinstance(obj, (list, tuple)) else 0


def unshared(obj: Any) -> Any:
    """The same, of containers that are referred to from one place each."""
    if isinstance(obj, dict):
        return {unshared(key): unshared(value) for key, value in obj.items()}
    return type(obj)([unshared(item) for item in obj]) if isinstance(obj, (list, tuple)) else obj


@given(OBJECTS)
def test_what_is_written_is_read(obj: Any) -> None:
    data = encode(unshared(obj), 0xFFFF)
    if depth(obj) > DEEPEST:
        assert data is None
    else:
        assert data is not None
        assert same(decode(data), obj)
    data = encode(obj, 0xFFFF)
    if data is not None:  # a container may be in it twice: see test_identities_are_kept
        assert same(decode(data), obj)


@pytest.mark.parametrize("make", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"": inner}])
def test_what_is_nested_too_deeply_is_for_pickle(make: Any) -> None:
    obj: Any = 1
    for level in range(1, DEEPEST + 3):
        obj = make(obj)
        data = encode(unshared(obj))
        assert (data is None) == (level > DEEPEST)
        assert data is None or same(decode(data), obj)


ATOMS = [None, True, 0, -128, 127, 128, -129, 2**63 - 1, -(2**63), 0.0, -0.0, math.inf, b"", b"\x00", b"x" * 2045]
TEXTS = ["", "a", "é", "\x80", "日", "\U0001f600", "\udc80", "k" * 2045]
CONTAINERS = [(), (1,), [], [[]], {}, {"a": 1, None: 2, 3: "b", ("x", 1): []}]


@pytest.mark.parametrize("obj", [*ATOMS, *TEXTS, *CONTAINERS], ids=ascii)
def test_plain_objects(obj: Any) -> None:
    data = encode(obj)
    assert data is not None
    assert same(decode(data), obj)


def test_nan() -> None:
    data = encode([math.nan])
    assert data is not None
    assert math.isnan(decode(data)[0])  # type: ignore[index]


class Colour(enum.IntEnum):
    RED = 1


class Words(str):
    pass


Point = collections.namedtuple("Point", "x y")


OTHERS = [2**63, -(2**63) - 1, 1j, set(), frozenset(), bytearray(b"x"), object, len, range(3)]
INSTANCES = [Colour.RED, Words("a"), Point(1, 2), collections.OrderedDict(a=1)]


@pytest.mark.parametrize("obj", [*OTHERS, *INSTANCES, [1, Words("a")], {"a": {1}}, {Colour.RED: 1}], ids=ascii)
def test_what_is_not_plain_is_for_pickle(obj: Any) -> None:
    assert encode(obj) is None


LARGE = ["k" * 2046, "日" * 1023, b"x" * 2046, [1] * 1023, [None] * 2046, {"a": "k" * 2040}]


@pytest.mark.parametrize("obj", LARGE, ids=len)
def test_what_is_too_large_is_for_pickle(obj: Any) -> None:
    assert encode(obj) is None
    assert same(decode(encode(obj, 4096) or b""), obj)


def test_every_room() -> None:
    """Whatever the room is, nothing is written beyond it, and what fits is written."""
    obj = [None, True, 5, 500, 1.5, "abc", "é", "日本", b"xyz", (1, 2), {"key": [1, {"other": "value"}]}, "end"]
    whole = encode(obj)
    assert whole is not None
    assert [encode(obj, room) for room in range(len(whole))] == [None] * len(whole)
    assert encode(obj, len(whole)) == whole


def test_identities_are_kept() -> None:
    """A list that is there twice is there twice for the receiver, and a cycle is a cycle."""
    queue: mpipc.Queue[Any] = mpipc.Queue()
    one: list[Any] = [1]
    inside = (one,)
    cycle: list[Any] = []
    cycle.append({"again": cycle})
    queue.put([one, one])
    queue.put({"a": inside, "b": [inside]})
    queue.put(cycle)
    first, second = queue.get()
    assert first == [1] and first is second
    received = queue.get()
    assert received["a"][0] is received["b"][0][0]
    received = queue.get()
    assert received[0]["again"] is received


def test_deep_objects() -> None:
    queue: mpipc.Queue[Any] = mpipc.Queue()
    for depth in (1, 15, 16, 17, 18, 100):
        obj: Any = "core"
        for _ in range(depth):
            obj = [obj]
        queue.put(obj)
        assert queue.get() == obj


def test_what_is_torn_is_reported() -> None:
    whole = encode({"key": [1, 500, 1.5, "text", "é", "日", b"bytes", (None, True)]})
    assert whole is not None
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="not what was sent"):
            decode(whole[:length])
    with pytest.raises(ValueError, match="not what was sent"):
        decode(whole + b"\0")
    with pytest.raises(ValueError, match="not what was sent"):
        decode(b"\xff\0\0")


def test_keys_with_one_place_in_the_cache() -> None:
    obj = {f"key number {n}": n for n in range(100)}
    more = {f"key {n}": n for n in range(100)}
    for mapping in (obj, more, obj, {"": 1, "a": 2, "k" * 33: 3}):
        data = encode(mapping, 0xFFFF)
        assert data is not None
        assert same(decode(data), mapping)

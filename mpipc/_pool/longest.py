"""The longest tasks of a pool: which ones a worker tells of, and with which words.

A worker tells of a task that has taken longer than a millisecond, and than all that it has run before but for MOST of
them. So the longest of a pool's tasks are among those that its workers have told of, and these are few.
"""

from __future__ import annotations

import heapq
from itertools import islice
from typing import Any

from mpipc._pool.codec import APPLY, CALL, CHUNK, STAR_CHUNK

__all__ = ["MOST", "Longest", "arguments_text"]

MOST = 5
"""How many are told of in a report."""

WIDTH = 60
"""Characters of a task's arguments that are shown, at most."""
FEW = 4
"""Items of a list, a tuple, a dict or a set."""
DEEP = 3
"""Such things in each other."""

BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}


class Longest:
    """In a worker: how long its longest tasks were."""

    def __init__(self) -> None:
        self._heap: list[int] = []

    def note(self, spent: int) -> int | None:
        """There is another one, which took so many ns. Returns what a task has to exceed now to be one; None if that
        has not changed."""
        heapq.heappush(self._heap, spent)
        if len(self._heap) > MOST:
            heapq.heappop(self._heap)
        return self._heap[0] if len(self._heap) == MOST else None


def arguments_text(kind: int, payload: Any) -> str:
    """The arguments of a task of this kind as they stand in a call; of a chunk, those of its first and its last item.

    It runs no code of the user, since nobody has asked for that: an object is named by its class.
    """
    try:
        if kind in (CHUNK, STAR_CHUNK):
            text = _arguments if kind == STAR_CHUNK else _text
            first = _cut(text(payload[0]))
            return first if len(payload) == 1 else f"{len(payload)} items: {first} to {_cut(text(payload[-1]))}"
        if kind == CALL:
            keywords = [f"{name}={_text(value)}" for name, value in islice(payload[1].items(), FEW)]
            return _cut(", ".join(filter(None, [_arguments(payload[0]), *keywords])))
        return _cut(_arguments(payload) if kind == APPLY else _text(payload))
    except Exception:  # a class without a name, say
        return "..."


def _text(what: Any, depth: int = DEEP) -> str:
    kind = type(what)
    if kind in (str, bytes):
        return repr(what) if len(what) <= WIDTH else f"{what[: WIDTH // 2]!r}..."
    if kind is int and what.bit_length() > 200:
        return f"<int of {what.bit_length()} bits>"
    if what is None or kind in (int, float, bool, complex):
        return repr(what)
    if kind in BRACKETS:
        return _text_of_many(what, kind, depth - 1)
    return f"<{kind.__module__}.{kind.__qualname__} object>"


def _text_of_many(what: Any, kind: type, depth: int) -> str:
    if not what:
        return repr(what)
    if depth == 0:
        inside = "..."
    elif kind is dict:
        inside = ", ".join(f"{_text(key, depth)}: {_text(value, depth)}" for key, value in islice(what.items(), FEW))
    else:
        inside = ", ".join(_text(item, depth) for item in islice(what, FEW))
    more = ", ..." if depth and len(what) > FEW else "," if kind is tuple and len(what) == 1 else ""
    opening, closing = BRACKETS[kind]
    return f"{opening}{inside}{more}{closing}"


def _arguments(items: Any) -> str:
    if type(items) not in (tuple, list):
        return f"*{_text(items)}"
    return ", ".join([_text(item) for item in items[:FEW]] + ["..."] * (len(items) > FEW))


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."

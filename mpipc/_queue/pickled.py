"""The messages of a queue that has a pickler of its own."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from mpipc._queue.batch import BatchQueue
from mpipc._queue.plain import encode
from mpipc._stdlib.by_pickler import ByPickler, Sent

__all__ = ["PickledQueue", "to_be_pickled"]

SIMPLE = frozenset({str, bytes, int, float, bool, type(None)})


class _Waiting:
    """An object that is pickled when the queue has room for it, and not before."""

    __slots__ = ("_by", "value")

    def __init__(self, by: ByPickler, value: Any) -> None:
        self._by = by
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        sent: Sent = self._by.sent(self.value)
        return sent.__reduce_ex__(protocol)


def to_be_pickled(by: ByPickler, obj: Any) -> Any:
    """The object if every pickler means the same by it, or what pickles it."""
    return obj if type(obj) in SIMPLE or encode(obj) is not None else _Waiting(by, obj)


class _Owner:
    """Tells the queue's owner of the object, where a queue tells of what it was given."""

    __slots__ = ("_owner",)

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def _on_queue_feeder_error(self, error: Exception, obj: Any) -> None:
        self._owner._on_queue_feeder_error(error, obj.value if type(obj) is _Waiting else obj)


class PickledQueue(BatchQueue):
    """A BatchQueue that pickles by a pickler what takes a pickle at all. Who receives need not know it."""

    def __init__(self, by: ByPickler, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.by = by

    def put(
        self, obj: object, block: bool = True, timeout: float | None = None, owner: Any = None, level: int = -1
    ) -> bool:
        """See MessageQueue."""
        return super().put(to_be_pickled(self.by, obj), block, timeout, None if owner is None else _Owner(owner), level)

    def put_many(
        self,
        objects: Iterable[object],
        block: bool = True,
        timeout: float | None = None,
        owner: Any = None,
        level: int = -1,
    ) -> int:
        """See BatchQueue."""
        tells = None if owner is None else _Owner(owner)
        return super().put_many(map(partial(to_be_pickled, self.by), objects), block, timeout, tells, level)

from collections.abc import Iterable
from typing import Any

from mpipc._queue.message_queue import MessageQueue

class Bundle: ...

class BatchQueue(MessageQueue):
    def put_pickle(self, pickled: bytes) -> None: ...
    def get_pickle(self) -> bytes: ...
    def put_many(
        self,
        objects: Iterable[object],
        block: bool = True,
        timeout: float | None = None,
        owner: Any = None,
        level: int = -1,
    ) -> int: ...
    def get_many(self, most: int, block: bool = True, timeout: float | None = None) -> list[Any]: ...

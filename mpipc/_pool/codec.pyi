from collections.abc import Sequence
from typing import Any

from mpipc._pool.channel import OwnReducers
from mpipc._pool.tasks import Feed, Function
from mpipc._stdlib.by_pickler import ByPickler

CALL: int
APPLY: int
ITEM: int
CHUNK: int
STAR_CHUNK: int
TIMED: int

def pack(value: Any, own: OwnReducers | ByPickler | None = None) -> tuple[Any, Any]: ...
def pack_whole(value: Any, own: OwnReducers | ByPickler | None) -> bytes: ...
def unpack(body: Any, buffers: Any) -> Any: ...

class Task:
    job: Any
    index: int
    kind: int
    function: Function
    payload: Any
    first: int
    retries: int
    timeout: float | None
    feed: Feed | None
    pinned: Any
    attempts: int
    def __init__(
        self,
        job: Any,
        index: int,
        kind: int,
        function: Function,
        payload: Any,
        *,
        first: int = 0,
        retries: int = 0,
        timeout: float | None = None,
        feed: Feed | None = None,
        pinned: Any = None,
    ) -> None: ...

class Source:
    @property
    def job(self) -> Any: ...
    def __init__(
        self,
        job: Any,
        kind: int,
        function: Function,
        items: Sequence[Any],
        size: int,
        retries: int = 0,
        timeout: float | None = None,
    ) -> None: ...
    @property
    def function(self) -> Function: ...
    @property
    def remaining(self) -> int: ...

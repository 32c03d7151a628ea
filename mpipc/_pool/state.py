"""What a worker keeps between its tasks: mpipc.worker_state()."""

from __future__ import annotations

import gc
import os
from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["WorkerState", "begin", "worker_state"]


class WorkerState(SimpleNamespace):
    """What the tasks of one worker have in common: attributes, which are set and read freely.

    `worker_init(state)` of the pool sets some, tasks find it by mpipc.worker_state(), `worker_exit(state)` is given it
    at the end. From the beginning it has `shared`, if the pool was given that.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "shared":
            raise AttributeError("the state of this worker has no 'shared': give the pool one, with shared=")
        raise AttributeError(
            f"the state of this worker has no {name!r}: have worker_init= of the pool set it, or a task before that"
        )


_states: dict[int, WorkerState] = {}
"""By process: a forked child of a worker is no worker."""


def begin(shared: Any = None) -> WorkerState:
    """This process is a worker from now on; its state, which has nothing but `shared`, if that is not None.

    The garbage collection writes to each object that it looks at, and so would make a copy of each page of a shared
    object's. It is told to leave alone what there is now.
    """
    _states.clear()
    state = _states.setdefault(os.getpid(), WorkerState())
    if shared is not None:
        gc.freeze()
        state.shared = shared
    return state


def worker_state() -> WorkerState:
    """The state of the worker that this process is, for the functions that a Pool or ProcessPoolExecutor runs.

    An object whose attributes last as long as the worker does. RuntimeError if this process is no worker.
    """
    state = _states.get(os.getpid())
    if state is None:
        raise RuntimeError(
            "worker_state() is for functions that a worker of a Pool or a ProcessPoolExecutor of mpipc runs, and this"
            " process is none"
        )
    return state

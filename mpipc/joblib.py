"""joblib's backend "mpipc": `import mpipc.joblib`, then `joblib.parallel_config("mpipc")`. scikit-learn runs on it.

As with joblib's default, loky, functions are pickled by cloudpickle, large arrays among the arguments become memory
maps, and the workers are used again by the next call. What is different: a worker that dies fails the batch that it was
running, with WorkerLostError, which says why; with `parallel_config("mpipc", retries=2)` another one runs it again.

The workers are those of mpipc.get_reusable_executor(), started by mpipc's start method.
"""

from __future__ import annotations

import os
import pickle
import sys
from io import BytesIO
from typing import Any

import joblib  # type: ignore[import-untyped, import-not-found, unused-ignore]
from joblib._memmapping_reducer import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    TemporaryResourcesManager,
    get_memmapping_reducers,
)
from joblib._parallel_backends import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    FallbackToBackend,
    LokyBackend,
    SequentialBackend,
)
from joblib.externals.loky.backend.reduction import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    get_loky_pickler,
)

from mpipc.executor import ProcessPoolExecutor, get_reusable_executor

__all__ = ["MpipcBackend"]

MEMMAPPING = ("max_nbytes", "mmap_mode", "prewarm", "temp_folder", "verbose")
"""Options of joblib.Parallel that concern memory maps."""
EXECUTOR = ("retries", "timeout", "memory_limit", "max_memory_per_child", "max_tasks_per_child")
"""Options of mpipc.ProcessPoolExecutor that parallel_config("mpipc", ...) takes."""


loads = pickle.loads


def dumps(obj: Any, reducers: Any = None) -> bytes:
    """An object as loky pickles it: by cloudpickle, if that is not set otherwise (set_loky_pickler)."""
    stream = BytesIO()
    get_loky_pickler()(stream, reducers).dump(obj)
    return stream.getvalue()


def call(task: bytes) -> Any:
    """In the worker: what was submitted, called."""
    try:
        return loads(task)()
    except KeyboardInterrupt:
        return Interrupted  # the caller is to have it; of a worker it would be the end


class Interrupted:
    """In the place of a result: the function has raised KeyboardInterrupt."""


def _limit_threads(environment: dict[str, str]) -> None:
    """In a new worker: as many threads for the libraries that it calls as it has processors for itself."""
    os.environ.update(environment)
    threadpoolctl = sys.modules.get("threadpoolctl")
    if threadpoolctl is not None:  # a forked worker has loaded the libraries already
        threadpoolctl.threadpool_limits(int(environment["OMP_NUM_THREADS"]))


class MpipcBackend(LokyBackend):  # type: ignore[misc, unused-ignore]
    """joblib's LokyBackend with mpipc's workers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._workers: ProcessPoolExecutor | None = None
        self._reducers: dict[Any, Any] = {}

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, require: Any = None, **options: Any
    ) -> int:
        """Get the workers, and a place for memory maps; returns how many workers there are."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = {**self.backend_kwargs, **options}
        options.pop("idle_worker_timeout", None)  # they wait without cost
        options.pop("context_id", None)
        memmapping = {name: options.pop(name) for name in MEMMAPPING if name in options}
        unknown = options.keys() - {*EXECUTOR, "initializer", "initargs", "context"}
        if unknown:
            raise TypeError(
                f"the backend 'mpipc' has no option {', '.join(sorted(unknown))}; it has {', '.join(EXECUTOR)}"
            )
        environment = self._prepare_worker_env(n_jobs=n_jobs)
        initializer, initargs = options.pop("initializer", None), options.pop("initargs", ())
        self._workers = get_reusable_executor(
            n_jobs,
            options.pop("context", None),
            initializer=_start,
            initargs=(environment, initializer, tuple(initargs)),
            pickler=sys.modules[__name__],
            **options,
        )
        # Where joblib.Parallel looks for it, which tells it when it begins to pickle.
        folder = memmapping.pop("temp_folder", None)
        manager = getattr(self._workers, "_temp_folder_manager", None)
        if manager is None or manager._temp_folder_root != folder:
            manager = TemporaryResourcesManager(folder)
            self._workers._temp_folder_manager = manager  # type: ignore[attr-defined]
        manager.register_new_context(parallel._id)
        self._reducers, _ = get_memmapping_reducers(
            unlink_on_gc_collect=False, temp_folder_resolver=manager.resolve_temp_folder_name, **memmapping
        )
        self.parallel = parallel
        return int(n_jobs)

    def submit(self, func: Any, callback: Any = None) -> Any:
        """Have a batch of calls run. What pickling raises, is raised."""
        workers = self._workers
        assert workers is not None, "the backend is not configured"
        future = workers.submit(call, dumps(func, self._reducers))
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future: Any) -> Any:
        """The result of a batch."""
        result = future.result()
        if result is Interrupted:
            raise KeyboardInterrupt
        return result

    def terminate(self) -> None:
        """The call is over. The workers stay for the next one."""
        workers, self._workers = self._workers, None
        if workers is not None:
            self._clean(workers)
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the workers, whatever they run: the call has failed."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.kill_workers()
            self._clean(workers)
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel, **self.parallel._backend_kwargs)

    def _clean(self, workers: Any) -> None:
        """Remove the files of this call's memory maps. A worker that has one mapped keeps what is in it."""
        workers._temp_folder_manager._clean_temporary_resources(self.parallel._id, force=True, allow_non_empty=True)


def _start(environment: dict[str, str], initializer: Any, initargs: tuple[Any, ...]) -> None:
    _limit_threads(environment)
    if initializer is not None:
        initializer(*initargs)


joblib.register_parallel_backend("mpipc", MpipcBackend)

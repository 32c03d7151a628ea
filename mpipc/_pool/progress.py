"""Progress bars of maps: by tqdm, by rich, or one in a display of rich's that the user has."""

from __future__ import annotations

import contextlib
import sys
from multiprocessing import TimeoutError
from typing import Any, Protocol

from mpipc.exceptions import TaskTimeoutError

__all__ = ["Bar", "Showing", "bar_of", "drop_rich"]


class Bar(Protocol):
    """What is told how far a map is."""

    def advance(self, count: int) -> None:
        """So many items are done."""

    def finish(self) -> None:
        """Nothing more will come."""


def bar_of(progress: Any, total: int | None, description: str) -> Bar | None:
    """The bar that the argument `progress` asks for; None for none. `total` is None if that is not known.

    ValueError, TypeError: it asks for nothing that there is. ImportError: a package is missing.
    """
    if progress is None or progress is False:
        return None
    if progress is True or progress == "tqdm":
        return _Tqdm(progress, total, description)
    if progress == "rich":
        return _Rich(None, total, description)
    if isinstance(progress, str):
        raise ValueError(f"progress must be True, 'tqdm', 'rich' or a rich.progress.Progress, not {progress!r}")
    if callable(getattr(progress, "add_task", None)) and callable(getattr(progress, "stop_task", None)):
        return _Rich(progress, total, description)
    if isinstance(progress, int):  # as bool is
        return _Tqdm(True, total, description) if progress else None
    raise TypeError(f"progress must be True, 'tqdm', 'rich' or a rich.progress.Progress, not {progress!r}")


class _Tqdm:
    """In a terminal or a notebook."""

    def __init__(self, progress: Any, total: int | None, description: str) -> None:
        try:
            from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            raise ImportError(f"progress={progress!r} needs the package tqdm: pip install tqdm") from None
        self._bar: Any = tqdm(total=total, desc=description)

    def advance(self, count: int) -> None:
        with contextlib.suppress(Exception):  # the terminal is gone, say: the results are not to suffer from it
            self._bar.update(count)

    def finish(self) -> None:
        with contextlib.suppress(Exception):
            self._bar.close()


class _Rich:
    """In a display of its own, or in one that is there, which others share and somebody else starts and stops."""

    def __init__(self, display: Any, total: int | None, description: str) -> None:
        self._own = display is None
        self._display: Any = _own_display() if self._own else display
        self._total = total
        self._done = 0
        self._finished = False
        # Text in brackets would be markup: "<lambda>" is none, but a name may have anything in it.
        self._task: Any = self._display.add_task(description.replace("[", r"\["), total=total)
        if self._own:
            self._display.start()

    def advance(self, count: int) -> None:
        with contextlib.suppress(Exception):
            self._done += count
            self._display.advance(self._task, count)

    def finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        with contextlib.suppress(Exception):
            if self._total is None:  # now it is known
                self._display.update(self._task, total=self._done)
            self._display.stop_task(self._task)
        with contextlib.suppress(Exception):
            if self._own:
                self._display.stop()


def _own_display() -> Any:
    try:
        from rich import console, progress  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ImportError("progress='rich' needs the package rich: pip install 'mpipc[rich]'") from None
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    # On stderr, as tqdm: stdout may be a file that somebody wants to have. What the program prints meanwhile goes above
    # the bar, but for what does not go to the terminal.
    stderr = console.Console(stderr=True)
    return progress.Progress(*columns, console=stderr, redirect_stdout=sys.stdout.isatty())


def drop_rich() -> None:
    """In a worker: what it prints goes where it always does.

    While a display of rich's is there, it stands in the place of stdout and stderr. A forked child has a copy of it,
    perhaps with a lock that a thread of the parent held, and what it printed would be waiting for that forever.
    """
    if "rich.file_proxy" in sys.modules:
        for name in ("stdout", "stderr"):
            behind = getattr(getattr(sys, name), "rich_proxied_file", None)
            if behind is not None:
                setattr(sys, name, behind)


class Showing:
    """An iterator over the results of imap() that moves a progress bar. A task that fails is done, too."""

    def __init__(self, bar: Bar, items: Any) -> None:
        self._bar = bar
        self._items = items

    def __iter__(self) -> Showing:
        return self

    def __next__(self) -> Any:
        return self.next()

    def __del__(self) -> None:
        self._bar.finish()  # nobody will ask for the rest

    def next(self, timeout: float | None = None) -> Any:
        """The next result, waited for at most `timeout` seconds, as IMapIterator.next()."""
        try:
            item = next(self._items) if timeout is None else self._items.next(timeout)
        except StopIteration:
            self._bar.finish()
            raise
        except TimeoutError as error:
            if isinstance(error, TaskTimeoutError):
                self._bar.advance(1)
            raise
        except Exception:
            self._bar.advance(1)
            raise
        self._bar.advance(1)
        return item

"""progress= of a pool's maps: by tqdm, by rich, and in a display of rich's that several maps share."""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import pool_tasks as tasks
from support import run_script, wait_until

import mpipc
from mpipc._pool.progress import bar_of, drop_rich

pytestmark = pytest.mark.slow_with("spawn", "forkserver")  # bars are the parent's: it is the same to them

LONG = 60
SQUARES = [x * x for x in range(20)]
NAME = "support.pool_tasks.square"

Map = Callable[[Any, Any], list[Any]]


def by_map(pool: Any, progress: Any) -> list[Any]:
    found: list[Any] = pool.map(tasks.square, range(20), 3, progress=progress)
    return found


def by_map_async(pool: Any, progress: Any) -> list[Any]:
    found: list[Any] = pool.map_async(tasks.square, range(20), 1, progress=progress).get(LONG)
    return found


def by_starmap(pool: Any, progress: Any) -> list[Any]:
    found: list[Any] = pool.starmap(tasks.square, [(x,) for x in range(20)], progress=progress)
    return found


def by_imap(pool: Any, progress: Any) -> list[Any]:
    return list(pool.imap(tasks.square, range(20), progress=progress))


def by_imap_of_chunks(pool: Any, progress: Any) -> list[Any]:
    return list(pool.imap(tasks.square, range(20), 3, progress=progress))


def by_imap_unordered(pool: Any, progress: Any) -> list[Any]:
    return sorted(pool.imap_unordered(tasks.square, iter(range(20)), progress=progress))


MAPS = [by_map, by_map_async, by_starmap, by_imap, by_imap_of_chunks, by_imap_unordered]


@pytest.mark.parametrize("run", MAPS)
def test_a_bar_by_rich(ctx: Any, run: Map, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with ctx.Pool(2) as pool:
        assert run(pool, "rich") == SQUARES
    out, err = capfd.readouterr()
    assert out == "", "which may be a file"
    assert "20/20" in err
    assert NAME in err.replace("\n", "") or "20/20" in err


def test_tqdm_by_its_name(ctx: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    with ctx.Pool(1) as pool:
        assert by_map(pool, "tqdm") == SQUARES
    assert "20/20" in capfd.readouterr().err


def display() -> Any:
    """One that draws nothing anybody sees."""
    pytest.importorskip("rich")
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(file=io.StringIO(), force_terminal=True))


@pytest.mark.parametrize("run", MAPS)
def test_in_a_display_that_there_is(ctx: Any, run: Map) -> None:
    with display() as shared, ctx.Pool(2) as pool:
        assert run(pool, shared) == SQUARES
        (task,) = shared.tasks
        assert (task.description, task.completed, task.total, task.finished) == (NAME, 20, 20, True)
        assert shared.live.is_started, "who has started it stops it"


def test_several_maps_in_one(ctx: Any) -> None:
    with display() as shared, ctx.Pool(2) as pool:
        shared.add_task("the caller's own", total=7)
        results = [pool.map_async(tasks.square, range(n), progress=shared) for n in (5, 6, 7)]
        items = pool.imap(tasks.identity, iter(range(8)), progress=shared)
        for result, n in zip(results, (5, 6, 7), strict=True):
            assert result.get(LONG) == [x * x for x in range(n)]
        assert next(items) == 0
        assert shared.tasks[-1].total is None, "nobody knows how many there will be"
        assert len(list(items)) == 7
        assert [task.total for task in shared.tasks] == [7, 5, 6, 7, 8]
        assert [task.completed for task in shared.tasks] == [0, 5, 6, 7, 8]


def test_a_map_that_fails_ends_its_bar(ctx: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with ctx.Pool(1) as pool:
        with pytest.raises(KeyError):
            pool.map(tasks.fail, range(5), 1, progress="rich")
        wait_until(lambda: not rich_threads())
        assert pool.map(tasks.square, [], progress="rich") == []
        wait_until(lambda: not rich_threads())
        endless = pool.map_async(tasks.spin, range(2), 1, progress="rich")
        pool.terminate()
        with pytest.raises(mpipc.BrokenPoolError):
            endless.get(LONG)
    wait_until(lambda: not rich_threads())


def test_an_iterator_that_nobody_has_any_more_ends_its_bar(ctx: Any) -> None:
    pytest.importorskip("rich")
    with ctx.Pool(1) as pool:
        items = pool.imap(tasks.square, range(5), progress="rich")
        assert next(items) == 0
        assert rich_threads() != []
        del items
        gc.collect()
        wait_until(lambda: not rich_threads())


def rich_threads() -> list[Any]:
    import threading

    return [thread for thread in threading.enumerate() if type(thread).__name__ == "_RefreshThread"]


def test_markup_in_a_name() -> None:
    shared = display()
    with shared:
        bar = bar_of(shared, 3, "module.f[red]")
        assert bar is not None
        bar.advance(3)
        bar.finish()
        bar.finish()
    assert "module.f[red]" in shared.console.file.getvalue()


def test_a_display_that_raises_is_not_the_results_fault(ctx: Any) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError("the terminal is gone")

    shared = display()
    shared.advance = shared.stop_task = refuse
    with ctx.Pool(1) as pool:
        assert by_map(pool, shared) == SQUARES


def test_workers_print_past_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the place of stdout, with a lock that a thread of the parent may have held as they were forked."""
    pytest.importorskip("rich")
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=io.StringIO(), force_terminal=True)
    behind = sys.stdout
    with Progress(console=console) as shared:
        assert type(sys.stdout).__name__ == "FileProxy"
        with console._lock, mpipc.get_context("fork").Pool(1) as pool:
            assert pool.apply_async(print_and_tell, ("a line",)).get(LONG) == type(behind).__name__
        assert pool.report().total.tasks == 1
        assert len(shared.tasks) == 0
        proxy = sys.stdout
        drop_rich()
        assert sys.stdout is behind
        sys.stdout = proxy  # type: ignore[assignment]
    assert sys.stdout is behind
    assert "a line" not in console.file.getvalue()  # type: ignore[attr-defined]


def print_and_tell(text: str) -> str:
    print(text, flush=True)
    return type(sys.stdout).__name__


def test_what_the_program_prints_meanwhile_is_where_it_was_to_go() -> None:
    """In a terminal, above the bar; a file that stdout is gets it all, and nothing else."""
    pytest.importorskip("rich")
    script = """
        import mpipc, os, pty, sys, threading
        from support import pool_tasks

        def read(descriptor, found):
            while True:
                try:
                    found.append(os.read(descriptor, 65536))
                except OSError:
                    return
                if not found[-1]:
                    return

        def main():
            terminal, end = pty.openpty()
            os.dup2(end, 2)
            os.close(end)
            found = []
            thread = threading.Thread(target=read, args=(terminal, found), daemon=True)
            thread.start()
            with mpipc.Pool(1) as pool:
                for value in pool.imap(pool_tasks.square, range(3), progress="rich"):
                    print(value)
            os.dup2(1, 2)
            thread.join(10)
            print("3/3" in b"".join(found).decode())

        if __name__ == "__main__":
            main()
        """
    assert run_script(script, env={"TERM": "xterm", "COLUMNS": "120"}).stdout.split() == ["0", "1", "4", "True"]


@pytest.mark.parametrize(
    ("progress", "error"), [("bar", ValueError), ("", ValueError), (1.5, TypeError), (object(), TypeError)]
)
def test_what_asks_for_none_that_there_is(ctx: Any, progress: Any, error: type[Exception]) -> None:
    with ctx.Pool(1) as pool:
        for run in MAPS:
            with pytest.raises(error, match="progress must be True, 'tqdm', 'rich' or a "):
                run(pool, progress)
        assert by_map(pool, None) == by_map(pool, 0) == by_map(pool, False) == SQUARES


@pytest.mark.parametrize(
    ("progress", "module", "words"),
    [
        ("rich", "rich", r"progress='rich' needs the package rich: pip install 'mpipc\[rich\]'"),
        (True, "tqdm.auto", "progress=True needs the package tqdm: pip install tqdm"),
        ("tqdm", "tqdm.auto", "progress='tqdm' needs the package tqdm: pip install tqdm"),
    ],
)
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, progress: Any, module: str, words: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with mpipc.get_context("fork").Pool(1) as pool:
        for run in MAPS:
            with pytest.raises(ImportError, match=words):
                run(pool, progress)
        assert pool.statistics().outstanding == 0

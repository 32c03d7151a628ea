"""Hash every file of a directory tree with a pool of processes, as `sha256sum` does, while workers may be killed.

    python examples/hashtree.py [path ...] [--kill-worker N] [--retries N] [--timeout SECONDS] [--backend ...]

On stdout: files and bytes of what is at the top of the tree, and one digest of it all, which depends on nothing but
names and contents: not on the backend, the start method, the number of processes, or on who was killed meanwhile. With
--list, a line a file as sha256sum(1) writes it, so `sha256sum --check` can read it. Progress, the files that could not
be read, and the time taken go to stderr.

--kill-worker N sends SIGKILL to a worker N times while they work. Without --retries, the file that it was hashing is
reported as lost, and all others are there; with --retries, nothing is missing. --timeout ends a worker that takes
longer for a file (a FIFO that nobody writes to, a network drive that is gone). With multiprocessing, none of the three
is possible, and a killed worker would be waited for forever.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import random
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PIECE = 1 << 20
"""Bytes read at a time."""


class Hashed(NamedTuple):
    """What a worker returns for a file."""

    digest: str
    size: int


class Failed(NamedTuple):
    """What a worker returns for a file that it could not read."""

    reason: str


def start_worker() -> None:
    """The pool's initializer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends the pool


def hash_file(path: str) -> Hashed | Failed:
    """Runs in a worker."""
    digest = hashlib.sha256()
    size = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        return Failed(error.strerror or type(error).__name__)
    return Hashed(digest.hexdigest(), size)


def results(pool: Any, paths: list[str], options: dict[str, Any]) -> Iterator[tuple[str, Hashed | Failed]]:
    """Each file with its result, in order. A task that got lost is an error at its place in imap(), and no more."""
    found = pool.imap(hash_file, paths, **options)
    for path in paths:
        try:
            yield path, next(found)
        except (sys.modules["multiprocessing"].TimeoutError, sys.modules["multiprocessing"].ProcessError) as error:
            yield path, Failed(str(error))


class Killer(threading.Thread):
    """Sends SIGKILL to a worker that is at work, `count` times, each time when some more files are done."""

    def __init__(self, pool: Any, count: int, total: int, done: Callable[[], int]) -> None:
        super().__init__(name="killer", daemon=True)
        self.killed: list[int] = []
        self._pool = pool
        self._count = count
        self._step = max(total // (count + 1), 1)
        self._done = done
        self._over = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self._count and not self._over.wait(0.001):
            if self._done() < self._step * len(self.killed):
                continue
            workers = self._pool.statistics().workers
            busy = [worker.pid for worker in workers if worker.function and worker.pid not in self.killed]
            if busy:
                victim = random.choice(busy)
                os.kill(victim, signal.SIGKILL)
                self.killed.append(victim)

    def stop(self) -> None:
        self._over.set()
        self.join()


def files_below(roots: Iterable[Path]) -> list[str]:
    """Every regular file at or below the roots, each one once, in a stable order; FIFOs and devices if named."""
    found: set[str] = set()
    for root in roots:
        if not root.is_dir():
            found.add(str(root))
        for folder, _, names in os.walk(root):
            paths = (os.path.join(folder, name) for name in names)
            found.update(path for path in paths if os.path.isfile(path) and not os.path.islink(path))
    return sorted(found)


def summarize(root: str, hashed: dict[str, Hashed], top: int) -> None:
    """Like du(1): what is directly below the root, the largest first, and the total with a digest of all digests."""
    sizes: dict[str, tuple[int, int]] = {}
    whole = hashlib.sha256()
    for path, result in sorted(hashed.items()):
        name = os.path.relpath(path, root)
        whole.update(f"{result.digest}  {name}\n".encode(errors="surrogateescape"))
        head, separator, _ = name.partition(os.sep)
        count, size = sizes.get(head + separator, (0, 0))
        sizes[head + separator] = count + 1, size + result.size
    print(f"{'bytes':>14}  {'files':>7}  name")
    for name, (count, size) in sorted(sizes.items(), key=lambda item: (-item[1][1], item[0]))[:top]:
        print(f"{size:>14,}  {count:>7,}  {name}")
    count, size = (sum(column) for column in zip(*sizes.values(), strict=True)) if sizes else (0, 0)
    print(f"{size:>14,}  {count:>7,}  in all")
    print(f"sha256 of all: {whole.hexdigest()}")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Hash every file of a directory tree with a pool of processes.")
    parser.add_argument("paths", nargs="*", type=Path, help="default: the standard library with its site-packages")
    parser.add_argument("--backend", choices=("mpipc", "multiprocessing"), default="mpipc")
    parser.add_argument("--start-method", choices=("fork", "spawn", "forkserver"), help="default: the backend's")
    parser.add_argument("--processes", type=positive, default=os.cpu_count() or 1, help="default: one a CPU")
    parser.add_argument("--list", action="store_true", help="a line for each file, as sha256sum writes it")
    parser.add_argument("--top", type=positive, default=8, help="how many lines the summary has at most (default: 8)")
    own = parser.add_argument_group("with mpipc only")
    own.add_argument("--timeout", type=float, metavar="SECONDS", help="kill a worker that takes longer for a file")
    own.add_argument("--retries", type=int, default=0, metavar="N", help="hash a file whose worker died again, N times")
    own.add_argument("--kill-worker", type=int, default=0, metavar="N", help="kill a worker at random, N times")
    arguments = parser.parse_args()
    if arguments.backend != "mpipc" and (arguments.timeout or arguments.retries or arguments.kill_worker):
        parser.error("--timeout, --retries and --kill-worker need --backend mpipc")
    for root in arguments.paths:
        if not root.exists():
            parser.error(f"no such file or directory: {root}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    roots = arguments.paths or [Path(sysconfig.get_path("stdlib"))]
    paths = files_below(roots)
    if not paths:
        print(f"hashtree: no files in {', '.join(map(str, roots))}", file=sys.stderr)
        return 2
    root = os.path.commonpath([str(root) if root.is_dir() else str(root.parent) for root in roots])
    try:
        multiprocessing = importlib.import_module(arguments.backend)  # the one line that differs
    except ImportError as error:
        print(f"hashtree: {arguments.backend} cannot be imported: {error}", file=sys.stderr)
        return 2
    context = multiprocessing.get_context(arguments.start_method)
    pool_options: dict[str, Any] = {}
    map_options: dict[str, Any] = {}
    if arguments.backend == "mpipc":
        pool_options["retries"] = arguments.retries
        map_options["timeout"] = arguments.timeout
        map_options["progress"] = sys.stderr.isatty()

    hashed: dict[str, Hashed] = {}
    failed: dict[str, str] = {}
    killed: list[int] = []
    began = time.perf_counter()
    try:
        with context.Pool(arguments.processes, start_worker, **pool_options) as pool:
            killer = Killer(pool, arguments.kill_worker, len(paths), lambda: len(hashed) + len(failed))
            if arguments.kill_worker:
                killer.start()
            for path, result in results(pool, paths, map_options):
                if isinstance(result, Hashed):
                    hashed[path] = result
                else:
                    failed[path] = result.reason
            if arguments.kill_worker:
                killer.stop()
                killed = killer.killed
    except KeyboardInterrupt:
        print("\nhashtree: interrupted", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - began

    if arguments.list:
        for path, result in hashed.items():
            print(f"{result.digest}  {path}")
    else:
        summarize(root, hashed, arguments.top)
    for path, reason in failed.items():
        print(f"hashtree: {path}: {reason}", file=sys.stderr)
    method = context.get_start_method()
    print(f"{arguments.backend}, {method}, {arguments.processes} processes: {seconds:.2f} s", file=sys.stderr)
    if arguments.kill_worker:
        print(f"{len(killed)} workers killed, {len(failed)} of {len(paths)} files missing", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

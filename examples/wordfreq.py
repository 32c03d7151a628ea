"""Count the identifiers in a tree of Python sources with a pool of processes.

    python examples/wordfreq.py [path ...] [--backend mpipc | multiprocessing]

An ordinary multiprocessing program: a Pool whose workers get a Lock, two Values and a Queue from their initializer. The
only thing that has to do with mpipc is the name of the module that is imported. The result goes to stdout and does not
depend on the backend, the start method or the number of processes; progress and the time taken go to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import io
import keyword
import os
import re
import signal
import sys
import sysconfig
import threading
import time
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Comments and strings are matched so that they are passed over as a whole; group 1 is a name. Prefixes of strings need
# to be here, or they would count as names. The possessive quantifiers (*+) keep long strings from being tried again.
TOKEN = re.compile(
    r'''
      \#[^\n]*+
    | (?i:\b(?:[bfu]|r[bf]?|[bf]r))?
      (?: """ (?: [^"\\] | \\. | "(?!"") )*+ (?: """ )?
        | \'\'\' (?: [^'\\] | \\. | '(?!'') )*+ (?: \'\'\' )?
        | "  (?: [^"\\\n] | \\. )*+ "?
        | '  (?: [^'\\\n] | \\. )*+ '?
      )
    | \b ([^\W\d]\w*+)
    ''',
    re.VERBOSE | re.DOTALL,
)


class Shared(NamedTuple):
    """What all workers of the pool have in common."""

    lock: Any
    files: Any
    bytes: Any
    events: Any


class Skipped(NamedTuple):
    """An event: a file that is not Python text, or cannot be read."""

    path: str
    reason: str


class Counted(NamedTuple):
    """An event: one more file is done."""

    size: int


shared: Shared


def start_worker(*arguments: Any) -> None:
    """The pool's initializer."""
    global shared
    shared = Shared(*arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends the pool


def identifiers(text: str) -> Iterator[str]:
    for match in TOKEN.finditer(text):
        name = match[1]
        if name is not None and not keyword.iskeyword(name):
            yield name


def count_file(path: str) -> Counter[str]:
    """Runs in a worker."""
    try:
        data = Path(path).read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError) as error:
        # The message of a SyntaxError names the file or not, depending on the version.
        shared.events.put(Skipped(path, "not decodable" if isinstance(error, SyntaxError) else f"not {error.encoding}"))
        return Counter()
    except OSError as error:
        shared.events.put(Skipped(path, error.strerror or type(error).__name__))
        return Counter()
    with shared.lock:
        shared.files.value += 1
        shared.bytes.value += len(data)
    shared.events.put(Counted(len(data)))
    return Counter(identifiers(text))


class Result(NamedTuple):
    names: Counter[str]
    files: int
    bytes: int
    skipped: list[Skipped]


def count_tree(context: Any, paths: list[str], processes: int, advance: Callable[[], object]) -> Result:
    """Count all files with a pool made by `context`; `advance` is called once for each file that is done."""
    lock = context.Lock()
    files = context.Value("q", 0, lock=False)
    size = context.Value("q", 0, lock=False)
    events = context.Queue()
    skipped: list[Skipped] = []

    def listen() -> None:
        while (event := events.get()) is not None:
            if isinstance(event, Skipped):
                skipped.append(event)
            advance()

    names: Counter[str] = Counter()
    with context.Pool(processes, start_worker, (lock, files, size, events)) as pool:
        listener = threading.Thread(target=listen)
        listener.start()
        try:
            for counted in pool.imap_unordered(count_file, paths, chunksize=8):
                names.update(counted)
            pool.close()
            pool.join()
        finally:
            events.put(None)  # comes after all that the workers have put: they have ended
            listener.join()
    return Result(names, files.value, size.value, sorted(skipped))


def progress(total: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions, to advance and to finish: a bar on a terminal, by tqdm if it is installed; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda: None, lambda: None
    try:
        from tqdm import tqdm
    except ImportError:
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if done % 50 == 0 or done == total:
                print(f"\r{done}/{total} files", end="", file=sys.stderr, flush=True)

        return advance, lambda: print("\r\033[K", end="", file=sys.stderr, flush=True)
    bar = tqdm(total=total, unit=" files", leave=False, file=sys.stderr)
    return bar.update, bar.close


def python_files(roots: Iterable[Path]) -> list[str]:
    """Every .py file at or below the roots, each one once, in a stable order."""
    found: set[str] = set()
    for root in roots:
        if root.is_file():
            found.add(str(root))
        for folder, _, names in os.walk(root):
            found.update(os.path.join(folder, name) for name in names if name.endswith(".py"))
    return sorted(found)


def report(result: Result, top: int) -> None:
    total = sum(result.names.values())
    for name, count in sorted(result.names.items(), key=lambda item: (-item[1], item[0]))[:top]:
        print(f"{count:>11,}  {name}")
    print(f"{total:>11,}  identifiers, {len(result.names):,} different ones")
    print(f"{result.files:>11,}  files, {result.bytes:,} bytes")
    print(f"{len(result.skipped):>11,}  files skipped")
    for path, reason in result.skipped:
        print(f"{'':>11}  {path}: {reason}")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the identifiers in a tree of Python sources.")
    parser.add_argument("paths", nargs="*", type=Path, help="default: the standard library with its site-packages")
    parser.add_argument("--backend", choices=("mpipc", "multiprocessing"), default="mpipc")
    parser.add_argument("--start-method", choices=("fork", "spawn", "forkserver"), help="default: the backend's")
    parser.add_argument("--processes", type=positive, default=os.cpu_count() or 1, help="default: one a CPU")
    parser.add_argument("--top", type=positive, default=20, help="how many names to show (default: 20)")
    arguments = parser.parse_args()

    roots = arguments.paths or [Path(sysconfig.get_path("stdlib"))]
    for root in roots:
        if not root.exists():
            print(f"wordfreq: no such file or directory: {root}", file=sys.stderr)
            return 2
    files = python_files(roots)
    if not files:
        print(f"wordfreq: no Python files in {', '.join(map(str, roots))}", file=sys.stderr)
        return 2

    try:
        multiprocessing = importlib.import_module(arguments.backend)  # the one line that differs
    except ImportError as error:
        print(f"wordfreq: {arguments.backend} cannot be imported: {error}", file=sys.stderr)
        return 2
    context = multiprocessing.get_context(arguments.start_method)

    advance, finish = progress(len(files))
    began = time.perf_counter()
    try:
        result = count_tree(context, files, arguments.processes, advance)
    except KeyboardInterrupt:
        print("\nwordfreq: interrupted", file=sys.stderr)
        return 130
    finally:
        finish()
    seconds = time.perf_counter() - began

    report(result, arguments.top)
    method = context.get_start_method()
    print(f"{arguments.backend}, {method}, {arguments.processes} processes: {seconds:.2f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

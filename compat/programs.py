"""Runs unmodified programs on multiprocessing and with `python -m mpipc run`, and compares what they put out.

    python compat/programs.py [PROGRAM ...]

While a program runs on mpipc, its System V objects are watched from outside: that it used them is the proof that it ran
on mpipc, and that none is left the proof that it cleaned up. Exit status: 0 if that is so for every program and the
outputs are the same, 1 if not.
"""

from __future__ import annotations

import argparse
import importlib.util
import marshal
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import HERE, SIDES, isolation

INTERVAL = 0.002  # seconds between two looks at the kernel's tables
PATIENCE = 20.0  # seconds for the reaper, after the program has ended
TIMEOUT = 300.0  # seconds for a program


# --- the programs -----------------------------------------------------------------------------------------------------


@dataclass
class Program:
    """What to run, and what of it is to be the same on both packages."""

    name: str
    describes: str
    arguments: list[str]
    """What stands after `python`."""
    needs: tuple[str, ...] = ()
    """Packages that it is from; those of the extra `programs`."""
    prepare: Callable[[], None] = lambda: None
    options: tuple[str, ...] = ()
    """Of `python -m mpipc run`."""
    products: Callable[[], Any] = lambda: None
    """What it has made beside its output."""
    varies: str = "(?!)"
    """Pattern of what in its lines is never the same twice."""
    same: tuple[str, ...] = ("status", "stdout", "stderr", "products")
    """What of a run is compared."""


def programs(folder: Path) -> list[Program]:
    """All programs; `folder` is theirs to write to."""
    tree = folder / "stdlib"
    return [
        Program(
            "compileall",
            "the standard library compiles itself, by a ProcessPoolExecutor of 4 workers",
            ["-m", "compileall", "-j", "4", "-q", str(tree)],
            prepare=lambda: _copy_standard_library(tree),
            products=lambda: _compiled(tree),
        ),
        Program(
            "joblib",
            'joblib.Parallel(backend="multiprocessing"): a pool of its own class, with memory maps',
            [str(HERE / "joblib_program.py")],
            ("joblib", "numpy"),
        ),
        Program(
            "batchgenerators",
            "the package's example of its data loader: workers, each with a Queue(1), and Events",
            ["-m", "batchgenerators.examples.multithreaded_dataloading"],
            ("batchgenerators",),
            # At the end multiprocessing kills the workers, and a thread of the program may be in time to complain.
            same=("status", "stdout"),
        ),
        Program(
            "gensim",
            "the package's program that reads a Wikipedia dump (the one in its tests), by a Pool of 2 workers",
            ["-m", "gensim.scripts.segment_wiki", "-w", "2", "-i", "-f", str(_wikipedia_dump())],
            ("gensim",),
            varies=r"^[\d-]+ [\d:,]+",
        ),
        Program(
            "pathos",
            "maps of lambdas, closures and methods by pathos and p_tqdm, which are written for `multiprocess`",
            [str(HERE / "pathos_program.py")],
            ("pathos", "p_tqdm"),
            options=("--also", "multiprocess"),
            same=("status", "stdout"),  # stderr has progress bars
        ),
        Program(
            "datasets",
            "HuggingFace's datasets with num_proc: map, filter, ranks, shards; a worker raises, one is killed",
            [str(HERE / "datasets_program.py")],
            ("datasets",),
            options=("--also", "multiprocess"),
        ),
    ]


def _copy_standard_library(tree: Path) -> None:
    """Its sources with their times, but for its tests, which are as much again."""
    shutil.rmtree(tree, ignore_errors=True)
    source = sysconfig.get_path("stdlib")
    leave_out = shutil.ignore_patterns("__pycache__", "site-packages", "test", "tests", "idle_test", "config-*", "*.so")
    shutil.copytree(source, tree, ignore=leave_out)


def _compiled(tree: Path) -> dict[str, Any]:
    """File name -> header and code. Not the bytes: what marshal shares depends on what was compiled before."""
    compiled = {}
    for path in tree.rglob("*.pyc"):
        content = path.read_bytes()
        compiled[str(path.relative_to(tree))] = content[:16], marshal.loads(content[16:])
    return compiled


def _wikipedia_dump() -> Path:
    """The dump that comes with gensim; if gensim is not there, nothing is run that would miss it."""
    spec = importlib.util.find_spec("gensim")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path()
    return folder / "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


# --- watching ---------------------------------------------------------------------------------------------------------


@dataclass
class Objects:
    """What was seen of System V objects while a program ran."""

    queues: set[int] = field(default_factory=set)
    sets: set[int] = field(default_factory=set)
    segments: set[int] = field(default_factory=set)
    correspondents: set[int] = field(default_factory=set)
    """Pids of who has sent to a queue or received from it."""
    attached: int = 0
    """Greatest number of processes that had a segment attached."""

    def look(self, before: Objects) -> int:
        """Add what is there now and was not before. How many there are."""
        from mpipc import sysv

        queues = [queue for queue in sysv.message_queues() if queue.msqid not in before.queues]
        sets = [each for each in sysv.semaphore_sets() if each.semid not in before.sets]
        segments = [segment for segment in sysv.shared_memory_segments() if segment.shmid not in before.segments]
        self.queues.update(queue.msqid for queue in queues)
        self.sets.update(each.semid for each in sets)
        self.segments.update(segment.shmid for segment in segments)
        self.correspondents.update({pid for queue in queues for pid in (queue.lspid, queue.lrpid)} - {0})
        self.attached = max([self.attached, *(segment.nattch for segment in segments)])
        return len(queues) + len(sets) + len(segments)

    @property
    def in_use(self) -> bool:
        """Whether processes have shared memory, and have a lock or have sent one another messages."""
        return self.attached > 1 and bool(self.sets or len(self.correspondents) > 1)

    def __str__(self) -> str:
        return (
            f"{len(self.queues):>6} {len(self.correspondents):>13} {len(self.sets):>14} "
            f"{len(self.segments):>8} {self.attached:>11}"
        )


HEADER = f"{'queues':>6} {'used by':>13} {'semaphore sets':>14} {'segments':>8} {'attached by':>11}"


@dataclass
class Run:
    """A program on one of the packages."""

    status: int
    stdout: list[str]
    stderr: list[str]
    products: Any
    objects: Objects
    left: int
    """Objects that were there after its end, when all who could take them away had had their time."""
    seconds: float


def run(program: Program, side: str, folder: Path) -> Run:
    """Run it and watch. TimeoutExpired if it does not end."""
    before = Objects()
    before.look(Objects())
    program.prepare()
    way = ["-m", "mpipc", "run", *program.options] if side == "mpipc" else []
    command = [sys.executable, *way, *program.arguments]
    objects = Objects()
    with (folder / "stdout").open("w+") as stdout, (folder / "stderr").open("w+") as stderr:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        try:
            while process.poll() is None:
                objects.look(before)
                if time.monotonic() - began > TIMEOUT:
                    raise subprocess.TimeoutExpired(command, TIMEOUT)
                time.sleep(INTERVAL)
        finally:
            process.kill()
            process.wait()
        ended = time.monotonic()
        while (left := Objects().look(before)) and time.monotonic() - ended < PATIENCE:
            time.sleep(INTERVAL)
        lines = []
        for file in (stdout, stderr):
            file.seek(0)
            lines.append([re.sub(program.varies, "", line) for line in file.read().splitlines()])
    return Run(process.returncode, *lines, program.products(), objects, left, ended - began)


# --- the table --------------------------------------------------------------------------------------------------------


def compare(program: Program, plain: Run, ours: Run) -> list[str]:
    """What speaks against mpipc."""
    against = [
        f"{what} is not that of plain python" for what in program.same if getattr(plain, what) != getattr(ours, what)
    ]
    if plain.status:
        against.append(f"plain python ended with status {plain.status}: {' '.join(plain.stderr[-1:])}")
    if ours.status:
        against.append(f"status {ours.status} on mpipc: {' '.join(ours.stderr[-1:])}")
    if not ours.objects.in_use:
        against.append("no System V objects were seen in use")
    if ours.left:
        against.append(f"{ours.left} System V objects were left")
    return against


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="mpipc-programs-") as name:
        folder = Path(name).resolve()
        known = {program.name: program for program in programs(folder)}
        parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(known)} (default: all)")
        parser.add_argument("--here", action="store_true", help="stay in this IPC namespace")
        options = parser.parse_args()
        if unknown := set(options.programs) - known.keys():
            parser.error(f"there is no program {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        if isolation() and not options.here:
            return subprocess.run([*isolation(), sys.executable, *sys.argv, "--here"], check=False).returncode
        return _run_all([known[name] for name in options.programs or known], folder)


def _run_all(selected: list[Program], folder: Path) -> int:
    failed = False
    print(f"{'':<16} {'lines':>6} {'files':>6} {HEADER} {'left':>4} {'result':>8} {'seconds':>9}")
    notes = []
    for program in selected:
        missing = [package for package in program.needs if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{program.name:<16} needs {', '.join(missing)}: pip install 'mpipc[programs]'")
            failed = True
            continue
        plain, ours = (run(program, side, folder) for side in SIDES)
        against = compare(program, plain, ours)
        failed = failed or bool(against)
        print(
            f"{program.name:<16} {len(ours.stdout):>6} {len(ours.products or ()):>6} {ours.objects} {ours.left:>4}"
            f" {'FAILED' if against else 'the same':>8} {plain.seconds:4.1f} {ours.seconds:4.1f}"
        )
        notes += [f"{program.name}: {program.describes}", *(f"    {text}" for text in against)]
    print(
        "\nlines, files: of the output. used by: processes that sent or received. attached by: processes that had a"
        "\nsegment in common. left: objects after the end. seconds: multiprocessing, mpipc.\n",
        *notes,
        sep="\n",
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

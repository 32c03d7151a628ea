"""A pipeline of processes for the frames of a video, 8 MB each, as people write them with a queue between each two.

    python examples/frames.py [--frames N] [--kill-worker N] [--list] [--backend ...] [--start-method ...]

A camera makes frames; `invert`, `sharpen` and `measure` are a process each. On mpipc the frames lie in shared memory
and travel by reference: a queue passes 8 MB on in microseconds, and each stage changes the frame where it lies. On
multiprocessing the same program copies them three times through a pipe.

On stdout: one digest of all measurements (with --list a line for each frame), which depends on nothing but the number
of frames: not on the backend, the start method, or on who was killed meanwhile. What it took goes to stderr.

--kill-worker N sends SIGKILL to a stage in the middle of its work, N times. A new process takes its place. The frame
that it had is in nobody's hands then but the camera's, which mpipc.arrays.holders() tells: it is made again, and sent
again. The memory that the dead had is the others' again, and nothing is left when the program ends. With
multiprocessing, that is not possible: a process that is killed in get() leaves the queue locked.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import random
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import wait
from queue import Empty
from typing import Any

import numpy

SHAPE = (2160, 3840)
"""Of a frame, one byte for each point: 8.3 MB."""

WINDOW = 6
"""How many frames are on their way at a time."""


def draw(number: int, frame: Any) -> None:
    """What the camera sees: a frame that has only to do with its number."""
    rows = numpy.arange(SHAPE[0], dtype="uint8")[:, None]
    columns = numpy.arange(SHAPE[1], dtype="uint8")[None, :]
    numpy.add(rows * (number % 7 + 1), columns + number % 251, out=frame)


# ---- the stages: each in a process of its own ------------------------------------------------------------------------


def invert(frame: Any) -> Any:
    """In place."""
    numpy.subtract(255, frame, out=frame)
    return frame


def sharpen(frame: Any) -> Any:
    """In place."""
    frame[1:] ^= frame[:-1] >> 1
    return frame


def measure(frame: Any) -> int:
    return zlib.crc32(frame)


STAGES: tuple[Callable[[Any], Any], ...] = (invert, sharpen, measure)


def run_stage(function: Callable[[Any], Any], source: Any, target: Any) -> None:
    """Takes from one queue, puts into the next, until None comes, which it passes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the camera, which ends the others
    if "mpipc.arrays" in sys.modules:
        # By fork, one that takes another's place has the camera's frames, too: it is to hold what it receives, and no
        # more.
        sys.modules["mpipc.arrays"].drop_inherited()
    for number, frame in iter(source.get, None):
        target.put((number, function(frame)))
        del frame  # while it waits for the next one, it is no holder of this one
    target.put(None)


# ---- the camera, and who looks after the stages ----------------------------------------------------------------------


class Pipeline:
    """The processes of the stages with the queues between them."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._queues = [context.Queue() for _ in range(len(STAGES) + 1)]
        self.put, self.get = self._queues[0].put, self._queues[-1].get
        self.processes = [self._start(stage) for stage in range(len(STAGES))]

    def _start(self, stage: int) -> Any:
        queues = self._queues[stage : stage + 2]
        process = self._context.Process(target=run_stage, args=(STAGES[stage], *queues), daemon=True)
        process.start()
        return process

    def replace_the_dead(self) -> None:
        for stage, process in enumerate(self.processes):
            if process.exitcode not in (None, 0):
                self.processes[stage] = self._start(stage)

    def end(self) -> None:
        self.put(None)
        while True:
            try:
                if self.get(timeout=0.1) is None:
                    break
            except Empty:
                self.replace_the_dead()
        for process in self.processes:
            process.join()


class Killer(threading.Thread):
    """Sends SIGKILL to a stage, `count` times, each time when some more frames are done."""

    def __init__(self, pipeline: Pipeline, count: int, total: int, done: Callable[[], int]) -> None:
        super().__init__(name="killer", daemon=True)
        self.killed: list[int] = []
        self._pipeline = pipeline
        self._count = count
        self._step = max(total // (count + 1), 1)
        self._done = done
        self._over = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self._count and not self._over.wait(0.001):
            victim = random.choice(self._pipeline.processes)
            if self._done() >= self._step * (len(self.killed) + 1) and victim.pid not in self.killed:
                os.kill(victim.pid, signal.SIGKILL)
                wait([victim.sentinel])  # from now on it takes nothing from a queue
                self.killed.append(victim.pid)

    def stop(self) -> None:
        self._over.set()
        self.join()


def film(pipeline: Pipeline, count: int, new_frame: Callable[[], Any], measured: dict[int, int], arrays: Any) -> int:
    """Sends so many frames, and has what they measure. How many had to be sent again: `arrays` tells."""
    on_their_way: dict[int, Any] = {}
    again = 0

    def receive(timeout: float) -> bool:
        try:
            number, value = pipeline.get(timeout=timeout)
        except Empty:
            return False
        measured[number] = value
        on_their_way.pop(number, None)
        return True

    numbers = iter(range(count))
    while len(measured) < count:
        while len(on_their_way) < WINDOW and (number := next(numbers, None)) is not None:
            on_their_way[number] = frame = new_frame()
            draw(number, frame)
            pipeline.put((number, frame))
        if receive(0.05) or arrays is None:
            continue
        pipeline.replace_the_dead()
        # Neither a stage nor a message has it: if its measurement has not come either, it is lost.
        lost = [n for n, frame in on_their_way.items() if arrays.holders(frame)[:2] == ([os.getpid()], 0)]
        while lost and receive(0.0):
            pass
        for number in lost:
            if number in on_their_way:
                again += 1
                draw(number, on_their_way[number])
                pipeline.put((number, on_their_way[number]))
    return again


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A pipeline of processes for the frames of a video.")
    parser.add_argument("--frames", type=positive, default=100, help="how many (default: 100)")
    parser.add_argument("--backend", choices=("mpipc", "multiprocessing"), default="mpipc")
    parser.add_argument("--start-method", choices=("fork", "spawn", "forkserver"), help="default: the backend's")
    parser.add_argument("--list", action="store_true", help="a line for each frame")
    parser.add_argument("--kill-worker", type=int, default=0, metavar="N", help="with mpipc: kill a stage, N times")
    arguments = parser.parse_args()
    if arguments.backend != "mpipc" and arguments.kill_worker:
        parser.error("--kill-worker needs --backend mpipc")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    try:
        multiprocessing = importlib.import_module(arguments.backend)
        arrays = importlib.import_module("mpipc.arrays") if arguments.backend == "mpipc" else None
    except ImportError as error:
        print(f"frames: {arguments.backend} cannot be imported: {error}", file=sys.stderr)
        return 2
    context = multiprocessing.get_context(arguments.start_method)

    def new_frame() -> Any:
        return (arrays or numpy).empty(SHAPE, "uint8")  # the one line that differs

    measured: dict[int, int] = {}
    killed: list[int] = []
    began = time.perf_counter()
    pipeline = Pipeline(context)
    try:
        killer = Killer(pipeline, arguments.kill_worker, arguments.frames, lambda: len(measured))
        if arguments.kill_worker:
            killer.start()
        again = film(pipeline, arguments.frames, new_frame, measured, arrays)
        if arguments.kill_worker:
            killer.stop()
            killed = killer.killed
            pipeline.replace_the_dead()
        pipeline.end()
    except KeyboardInterrupt:
        print("\nframes: interrupted", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - began

    lines = [f"{number:06} {value:08x}" for number, value in sorted(measured.items())]
    if arguments.list:
        print("\n".join(lines))
    else:
        print(f"{len(lines)} frames, sha256 of all: {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}")
    method = context.get_start_method()
    rate = len(lines) / seconds
    print(f"{arguments.backend}, {method}, {len(STAGES)} stages: {seconds:.2f} s, {rate:.0f} frames/s", file=sys.stderr)
    if arguments.kill_worker:
        print(f"{len(killed)} stages killed, {again} frames sent again, 0 missing", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

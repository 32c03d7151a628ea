"""Processes that wait for the word, do their part of an operation, and say from when to when it took."""

from __future__ import annotations

import os
import select
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from harness import Operation

COUNT = struct.Struct("q")
REPORT = struct.Struct("?qq")


class Crew:
    """Processes made by fork with `ctx.Process`, one for each part, that live until close().

    The word and the answers go through pipes, the same for all contestants: how a package starts and synchronizes
    processes is not part of what is measured. Timed is from the first one's beginning to the last one's end, by the
    clock that all processes share (CLOCK_MONOTONIC).
    """

    def __init__(self, ctx: Any, parts: Sequence[Callable[[int], None]]) -> None:
        self._reports, writer = os.pipe()
        self._commands: list[int] = []
        self._processes: list[Any] = []
        for part in parts:
            reader, command = os.pipe()
            self._commands.append(command)
            process = ctx.Process(target=_member, args=(part, reader, writer, self._commands[:]), daemon=True)
            process.start()
            os.close(reader)
            self._processes.append(process)
        os.close(writer)

    def run(self, counts: Sequence[int]) -> float:
        """Has each do its part so often; nanoseconds from the first beginning to the last end."""
        for command, count in zip(self._commands, counts, strict=True):
            os.write(command, COUNT.pack(count))
        begins, ends = [], []
        for _ in counts:
            ok, begin, end = REPORT.unpack(self._read_report())
            if not ok:
                raise RuntimeError("a process of the crew failed: see its traceback above")
            begins.append(begin)
            ends.append(end)
        return float(max(ends) - min(begins))

    def close(self) -> None:
        for command in self._commands:
            os.close(command)
        for process in self._processes:
            process.join()
        os.close(self._reports)

    def _read_report(self) -> bytes:
        while not select.select([self._reports], [], [], 1.0)[0]:
            for process in self._processes:
                if not process.is_alive():
                    raise RuntimeError(f"a process of the crew died, exit code {process.exitcode}")
        data = os.read(self._reports, REPORT.size)
        if not data:
            raise RuntimeError("all processes of the crew died")
        return data


def _member(part: Callable[[int], None], reader: int, writer: int, others: Sequence[int]) -> None:
    for descriptor in others:  # or the end of the input would not be seen when the parent closes its own
        os.close(descriptor)
    while word := os.read(reader, COUNT.size):
        (count,) = COUNT.unpack(word)
        ok = True
        begin = time.perf_counter_ns()
        try:
            part(count)
        except Exception:
            traceback.print_exc()
            ok = False
        os.write(writer, REPORT.pack(ok, begin, time.perf_counter_ns()))


def together(ctx: Any, parts: Sequence[Callable[[int], None]]) -> Operation:
    """All parts do the operation as often as is asked for: two that play ping-pong, for instance."""
    crew = Crew(ctx, parts)
    return Operation(lambda count: crew.run([count] * len(parts)), close=crew.close)


def shared(ctx: Any, part: Callable[[int], None], processes: int) -> Operation:
    """The operations are divided among so many processes that do the same."""
    crew = Crew(ctx, [part] * processes)
    return Operation(lambda count: crew.run([count // processes] * processes), step=processes, close=crew.close)


def stream(
    ctx: Any, put: Callable[[int], None], get: Callable[[int], None], producers: int, consumers: int, chunk: int = 1
) -> Operation:
    """One operation is a message. Each producer puts its share, each consumer gets its share, in chunks where those are
    more than 1."""
    crew = Crew(ctx, [put] * producers + [get] * consumers)

    def run(count: int) -> float:
        return crew.run([count // producers] * producers + [count // consumers] * consumers)

    return Operation(run, step=producers * consumers * chunk, close=crew.close)

"""Starting the processes of the contestants, giving them turns, and ending them, hung or not."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import FAILED, MISSING, SKIPPED, Case, Measurement, Result, calibrated, common_count

PROGRAM = Path(__file__).resolve().parent / "lane.py"

MARK = "MPIPC_BENCHMARK_LANE"
"""Environment variable by which the processes of a lane are found, whatever has become of their parents."""

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""


class LaneError(Exception):
    """A contestant that cannot go on."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Lane:
    """One contestant's process; see lane.py."""

    def __init__(self, case: Case, contestant: str, *, timeout: float, modules: Sequence[str] = ()) -> None:
        self.timeout = timeout
        self._mark = uuid.uuid4().hex
        self._errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (kill() closes it)
        self._received = b""
        # -W: newer versions of Python warn of fork() in a process with threads, which some contestants do.
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(PROGRAM), case.key, contestant, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            env={**os.environ, MARK: self._mark},
        )
        try:
            self.step = int(self._answer()["step"])
        except BaseException:
            self.kill()
            raise

    def turn(self, count: int) -> float:
        """Nanoseconds (or bytes) that `count` operations took."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer, or that there is none, says why
            self._process.stdin.write(b"%d\n" % count)
            self._process.stdin.flush()
        return float(self._answer()["value"])

    def close(self) -> None:
        """Ends the process in order; LaneError if that fails."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LaneError(FAILED, f"did not end within {self.timeout:.0f} s") from None
        words = self._last_words()
        self.kill()
        if status != 0:
            raise LaneError(FAILED, f"ended with status {status}{': ' + words if words else ''}")

    def kill(self) -> None:
        """Ends what there still is of the lane's processes: with SIGTERM, upon which what the raw packages have created
        is removed, then with SIGKILL. mpipc's reaper is not among them: it goes by itself."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            pids = list(_marked(self._mark))
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            end = time.monotonic() + GRACE
            while any(_marked(self._mark)) and time.monotonic() < end:
                time.sleep(0.02)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + self.timeout
        while b"\n" not in self._received:
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not readable:
                self.kill()
                raise LaneError(FAILED, f"no answer within {self.timeout:.0f} s")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                status = self._process.wait()
                words = self._last_words()
                self.kill()
                raise LaneError(FAILED, f"ended with status {status}{': ' + words if words else ''}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer or "error" in answer:
            self.kill()
            if "missing" in answer:
                raise LaneError(MISSING, answer["missing"])
            raise LaneError(FAILED, answer["error"])
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _marked(mark: str) -> Iterator[int]:
    """The processes of a lane that are still there; zombies have no environment, and so do not count."""
    wanted = f"{MARK}={mark}".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                environment = Path(entry.path, "environ").read_bytes()
            except OSError:
                continue  # gone, or somebody else's
            if wanted in environment.split(b"\0"):
                yield int(entry.name)


def measure(
    case: Case,
    *,
    repeat: int,
    seconds: float,
    timeout: float,
    deadline: float = float("inf"),
    modules: Sequence[str] = (),
    progress: Callable[[str], None] = lambda contestant: None,
) -> Result:
    """Runs the contestants of a case in turns, `repeat` times each, each turn about `seconds` long.

    One that cannot be prepared, fails or gives no answer for `timeout` seconds is out of the race, and the others go
    on. Nothing is begun after `deadline`, a time.monotonic().
    """
    measurements = {name: Measurement() for name in case.contestants}
    lanes: dict[str, Lane] = {}
    steps: dict[str, int] = {}
    nanoseconds = seconds * case.speed * 1e9

    def attempt(name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except LaneError as error:
            lanes.pop(name, None)
            measurements[name].fail(error.status, str(error))

    def prepare(name: str) -> None:
        progress(name)
        lane = Lane(case, name, timeout=timeout, modules=modules)
        lanes[name] = lane
        steps[name] = lane.step
        if case.fixed_count is None:
            measurements[name].count = calibrated(lane.turn, nanoseconds, lane.step)
        else:
            measurements[name].count = case.fixed_count
            lane.turn(case.fixed_count)  # warms up

    def turn(name: str) -> None:
        progress(name)
        count = measurements[name].count
        measurements[name].values.append(lanes[name].turn(count) / count)

    try:
        for name in case.contestants:
            if time.monotonic() < deadline:
                attempt(name, lambda name=name: prepare(name))  # type: ignore[misc]
            else:
                measurements[name].fail(SKIPPED, "the time for the whole run was over")
        if case.shared_count and lanes:
            count = common_count({n: measurements[n].count for n in lanes}, {n: steps[n] for n in lanes})
            for name in lanes:
                measurements[name].count = count
        for _ in range(repeat):
            for name in list(lanes):
                attempt(name, lambda name=name: turn(name))  # type: ignore[misc]
        for name in list(lanes):
            attempt(name, lanes.pop(name).close)
    finally:
        for lane in lanes.values():  # an interrupt, or a mistake of the suite
            lane.kill()
    return Result(case.key, case.title, case.unit, case.amount, measurements)

"""Pools and executors, whose workers are struck, and whose parent is interrupted."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from support import ProcessInfo

from soak.crew import INTERRUPTION, Handler, Interrupted
from soak.scenario import PATIENCE, Hang, Scenario, expect
from soak.storm import Storm, forecast, neighbours

WORKERS = 3
SERVERS = (".forkserver import main", ".resource_tracker import main")
handler: Handler | None = None


def prepare() -> None:
    """The initializer of the workers."""
    global handler
    handler = Handler()


def answer(x: int, seconds: float = 0.0, fault: str = "") -> tuple[str, int]:
    """The task: a right answer, or the news that a signal handler has raised in it."""
    try:
        if handler is not None:
            handler.armed = True
        if seconds:
            time.sleep(seconds)
        value = x * x + (fault == "answers wrongly" and x % 100 == 7)
        if handler is not None:
            handler.armed = False
    except Interrupted:
        return ("interrupted", x)
    return ("done", value)


def large(x: int, data: bytes) -> tuple[int, bytes]:
    return x, data[::-1]


def workers() -> list[ProcessInfo]:
    """What a pool of this process has started, by the fork server's hand, too."""
    everybody = neighbours()
    servers = {
        each.pid
        for each in everybody
        if each.ppid == os.getpid()
        and any(name in each.command() for name in (".forkserver import", "resource_tracker"))
    }
    return [
        each
        for each in everybody
        if each.pid not in servers and each.state != "Z" and (each.ppid == os.getpid() or each.ppid in servers)
    ]


class Pools(Scenario):
    """Each task has its right answer, or the error that its worker was lost; no more of these than workers were killed.
    With retries there is none at all."""

    faults = ("answers wrongly", "hangs")

    def run(self) -> None:
        self.main = Handler()
        self.broken = 0
        self.retries = self.rng.choice((0, 50))
        blows = forecast(self.rng, self.length, self.method != "fork")
        self.storm = Storm(blows, None, workers)
        self.prods = threading.Thread(target=self.interrupt, args=(self.rng.choice((0.0, 0.02, 0.2)),), daemon=True)
        self.over = threading.Event()
        until = time.monotonic() + self.length
        pool = self.open()
        try:
            self.storm.start()
            self.prods.start()
            while time.monotonic() < until:
                self.one()
        finally:
            self.over.set()
            self.prods.join()
            self.storm.end()
            self.end(pool)
        allowed = self.storm.counts["kills"] if not self.retries else 0
        expect(self.broken <= allowed, f"{self.broken} tasks were lost, {allowed} workers killed")
        self.counts += self.storm.counts
        self.counts["exceptions"] += self.main.raised
        signal.signal(INTERRUPTION, signal.SIG_IGN)

    def interrupt(self, gap: float) -> None:
        main = threading.main_thread().ident
        while gap and main is not None and not self.over.wait(gap):
            signal.pthread_kill(main, INTERRUPTION)

    def guard(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A call that signal handlers may break off. It is made again."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                self.main.armed = True
                result = function(*arguments)
                self.main.armed = False
                return result
            except Interrupted:
                continue
            finally:
                self.main.armed = False
        raise Hang(f"{function}{arguments}")

    def right(self, x: int, got: Any) -> None:
        expect(got in (("done", x * x), ("interrupted", x)), f"the answer to {x} is {got}")
        self.counts["interrupted tasks"] += got[0] == "interrupted"
        self.counts["tasks"] += 1

    def reply(self, function: Callable[..., Any], *arguments: Any, guarded: bool = True) -> tuple[bool, Any]:
        """(False, None) if the worker was lost. A reply that does not come is a hang."""
        from mpipc.exceptions import WorkerLostError

        self.counts["operations"] += 1
        try:
            return True, self.guard(function, *arguments) if guarded else function(*arguments)
        except multiprocessing.TimeoutError:
            raise Hang(f"{function}{arguments}") from None
        except WorkerLostError:
            self.broken += 1
            return False, None

    def open(self) -> Any:
        self.pool = self.context.Pool(WORKERS, prepare, retries=self.retries)
        return self.pool

    def end(self, pool: Any) -> None:
        if self.rng.random() < 0.5:
            pool.close()
        else:
            pool.terminate()
        pool.join()
        self.pool = None

    def one(self) -> None:
        """One call of the pool, of any kind."""
        rng, pool = self.rng, self.pool
        first = rng.randrange(10_000)
        items = [
            (x, 0.001 if rng.random() < 0.1 else 0.0, self.fault) for x in range(first, first + rng.randint(1, 60))
        ]
        kind = rng.choice(("apply", "starmap", "imap", "unordered", "large"))
        if self.fault == "hangs":
            pool.apply_async(time.sleep, (3600,)).get(PATIENCE + 1000)
        if kind == "apply":
            results = [pool.apply_async(answer, item) for item in items]
            for item, result in zip(items, results, strict=True):
                ok, got = self.reply(result.get, PATIENCE)
                if ok:
                    self.right(item[0], got)
        elif kind == "starmap":
            ok, got = self.reply(pool.starmap_async(answer, items, rng.choice((None, 1, 7))).get, PATIENCE)
            if ok:
                expect(len(got) == len(items), f"{len(got)} answers to {len(items)}")
                for item, each in zip(items, got, strict=True):
                    self.right(item[0], each)
        elif kind == "large":
            data = [bytes([x & 255, 1]) * rng.choice((50, 5000, 300_000)) for x, *_ in items[:5]]
            results = [pool.apply_async(large, (i, each)) for i, each in enumerate(data)]
            for i, result in enumerate(results):
                ok, got = self.reply(result.get, PATIENCE)
                expect(not ok or got == (i, data[i][::-1]), f"another answer of {len(data[i])} bytes")
        else:
            method = pool.imap if kind == "imap" else pool.imap_unordered
            iterator = method(answer, [x for x, *_ in items])
            wanted = [x for x, *_ in items]
            for place in range(len(items)):
                # Not to be interrupted: next() may have taken an item, and there is no second of it.
                ok, got = self.reply(iterator.next, PATIENCE, guarded=False)
                if ok and kind == "imap":
                    self.right(wanted[place], got)
                elif ok:
                    candidates = [x for x in wanted if got in (("done", x * x), ("interrupted", x))]
                    expect(candidates, f"an answer to nothing: {got}")
                    wanted.remove(candidates[0])

    def check(self) -> None:
        pass

    def close(self) -> None:
        self.pool = None
        super().close()


class Executors(Pools):
    """The same of ProcessPoolExecutor."""

    faults = ("answers wrongly",)

    def open(self) -> Any:
        from mpipc.executor import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(WORKERS, self.context, prepare, retries=self.retries)
        return self.pool

    def end(self, pool: Any) -> None:
        pool.shutdown(wait=True, cancel_futures=self.rng.random() < 0.5)
        self.pool = None

    def one(self) -> None:
        rng, pool = self.rng, self.pool
        first = rng.randrange(10_000)
        items = list(range(first, first + rng.randint(1, 60)))
        if rng.random() < 0.5:
            futures = [pool.submit(answer, x, 0.001 if rng.random() < 0.1 else 0.0, self.fault) for x in items]
            for x, future in zip(items, futures, strict=True):
                ok, got = self.reply(future.result, PATIENCE)
                if ok:
                    self.right(x, got)
            return
        size = rng.choice((1, 7))
        answers = pool.map(answer, items, chunksize=size)
        ok, got = self.reply(list, answers)
        if ok:
            # An interruption ends the iterator: what had come before is lost to who asked.
            for x, each in zip(items[len(items) - len(got) :], got, strict=True):
                self.right(x, each)


SCENARIOS = (Pools, Executors)

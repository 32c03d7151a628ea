"""mpipc.heap: pieces of shared memory, who has them, and when they are free again."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import SANITIZED, kernel_objects, kill_process, processes, run_script, start_script, sysctl, wait_until

from mpipc._core import current, infrastructure
from mpipc.heap import BufferWrapper, Heap
from mpipc.sysv import LimitError

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

PAGE = 4096
MIB = 1 << 20


@pytest.fixture
def heap(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heap]:
    """A heap of the test's own, empty at first, that BufferWrapper allocates from."""
    fresh = Heap()
    monkeypatch.setattr(BufferWrapper, "_heap", fresh)
    yield fresh
    fresh.trim()


def address(wrapper: BufferWrapper) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(wrapper.create_memoryview()))


def segments() -> int:
    """Shared memory segments of this IPC namespace, without those of the family itself."""
    return len(kernel_objects().shm - current().infrastructure()["shm"])


def blocks_of(kind: str) -> int:
    return sum(1 for _, name, _, _ in current().blocks() if name == kind)


# --- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8, 63, 64, 65, 1000, 4096, 32767, 32768, 100_000, 5 * MIB])
def test_memory_is_writable_zero_and_aligned(heap: Heap, size: int) -> None:
    wrapper = BufferWrapper(size)
    view = wrapper.create_memoryview()
    assert (view.nbytes, view.format, view.readonly, view.ndim) == (size, "B", False, 1)
    assert view == bytes(size)
    if size:
        assert address(wrapper) % (PAGE if size >= 32768 else 64) == 0
        view[0] = view[-1] = 255
        assert wrapper.create_memoryview()[0] == 255


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), (1 << 63, OverflowError), ("5", TypeError)])
def test_impossible_sizes(heap: Heap, size: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        BufferWrapper(size)


def test_small_objects_need_no_segment(heap: Heap) -> None:
    before = segments()
    wrappers = [BufferWrapper(64) for _ in range(1000)]
    assert segments() == before
    assert heap.statistics()["arenas"] == []
    del wrappers


def test_many_pieces_need_few_segments(heap: Heap) -> None:
    before = segments()
    wrappers = [BufferWrapper(1000) for _ in range(20_000)]
    assert segments() - before <= 20
    wrappers += [BufferWrapper(50_000) for _ in range(1000)]
    assert segments() - before <= 50
    del wrappers


def test_random_allocations_do_not_overlap_and_are_zero(heap: Heap) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    live: list[tuple[memoryview, int, int]] = []
    for step in range(6000):
        if live and (rng.random() < 0.45 or len(live) > 120):
            view, size, mark = live.pop(rng.randrange(len(live)))
            assert view[0] == view[size // 2] == view[-1] == mark, f"step {step}, {size} bytes"
            continue
        size = int(2 ** rng.uniform(0, 19))
        view = BufferWrapper(size).create_memoryview()  # the view alone keeps the memory
        assert not any(view[: min(size, 64)]) and not any(view[-64:]) and view[size // 2] == 0, f"step {step}"
        mark = step % 255 + 1
        view[0] = view[size // 2] = view[-1] = mark
        live.append((view, size, mark))
    del view
    used = sum(-(-size // 64) * 64 if size < 32768 else -(-size // PAGE) * PAGE for _, size, _ in live if size > 64)
    assert heap.statistics()["used"] == used
    live.clear()
    assert heap.statistics()["used"] == 0
    assert len(heap.statistics()["arenas"]) <= 2  # one empty arena of each kind is kept
    heap.trim()
    assert heap.statistics()["arenas"] == []


def test_whole_pieces_are_zero_when_reused(heap: Heap) -> None:
    for size in (500, 40_000, 3 * MIB):
        keep = BufferWrapper(size)  # or the arena would go
        for _ in range(3):
            view = BufferWrapper(size).create_memoryview()
            assert view == bytes(size)
            view[:] = b"\xff" * size
            del view
        del keep


def test_empty_segments_are_returned(heap: Heap) -> None:
    before = segments()
    large = BufferWrapper(64 * MIB)
    assert segments() == before + 1
    del large
    assert segments() == before


def test_freed_pages_go_back_to_the_kernel(heap: Heap) -> None:
    """Also those of a piece in the middle of an arena that is still in use."""

    def resident() -> int:
        return sum(int(line.split()[14]) for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:])

    pieces = [BufferWrapper(4 * MIB) for _ in range(12)]
    for piece in pieces:
        piece.create_memoryview()[:] = b"x" * (4 * MIB)
    full = resident()
    assert full >= 48 * MIB
    del pieces[1::2], piece
    assert resident() <= full - 23 * MIB
    assert pieces[1].create_memoryview()[-1] == ord("x")


def test_an_array_that_is_not_touched_costs_nothing(heap: Heap) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    wrapper = BufferWrapper(256 * MIB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
    assert wrapper.create_memoryview()[200 * MIB] == 0


def test_hundred_thousand_values_leave_nothing(heap: Heap) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    def allocate(count: int) -> None:
        for size in (4, 100):
            for _ in range(count):
                BufferWrapper(size)

    allocate(1000)
    objects, memory, blocks = kernel_objects(), resident(), len(current().blocks())
    allocate(50_000)
    assert kernel_objects() == objects
    assert len(current().blocks()) == blocks
    assert resident() - memory < MIB


# --- finalizers and threads -------------------------------------------------------------------------------------------


def test_freeing_from_the_garbage_collector(heap: Heap) -> None:
    """Collections happen inside allocations, and free pieces of the same heap (CPython issue 12352)."""
    thresholds = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for i in range(3000):
            first, second = BufferWrapper(1 + i % 300), BufferWrapper(70)
            first.buddy, second.buddy = second, first  # type: ignore[attr-defined]
    finally:
        gc.set_threshold(*thresholds)
    del first, second
    gc.collect()
    assert heap.statistics()["used"] == 0


def test_threads_allocate_and_free_each_others_pieces(heap: Heap) -> None:
    shared: list[memoryview] = []
    errors: list[str] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(3000):
            size = rng.randrange(65, 3000)
            view = BufferWrapper(size).create_memoryview()
            view[0] = view[-1] = seed
            shared.append(view)
            if len(shared) > 50:
                other = shared.pop(rng.randrange(20))
                if other[0] != other[-1]:
                    errors.append(f"{other[0]} {other[-1]}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    shared.clear()
    assert heap.statistics()["used"] == 0


# --- several processes ------------------------------------------------------------------------------------------------


def _hold(wrapper: BufferWrapper, connection: Any) -> None:
    view = wrapper.create_memoryview()
    while True:
        command = connection.recv()
        if command == "sum":
            connection.send((view[0], view[-1]))
        elif command == "write":
            view[0] = view[-1] = 77
            connection.send(None)
        else:
            return


class Holder:
    """A child that has a piece; leaving the `with` block ends it. Keeps no reference to the piece."""

    def __init__(self, ctx: Any, wrapper: BufferWrapper) -> None:
        self.connection, theirs = ctx.Pipe()
        self.process = ctx.Process(target=_hold, args=(wrapper, theirs))
        self.process.start()
        theirs.close()

    def __enter__(self) -> tuple[Any, Any]:
        return self.process, self.connection

    def __exit__(self, *details: Any) -> None:
        if self.process.is_alive():
            self.connection.send("end")
        self.process.join(30)
        self.process.close()
        self.connection.close()


def ask(connection: Any, question: str) -> Any:
    connection.send(question)
    return connection.recv()


@pytest.mark.parametrize("size", [64, 5000, 2 * MIB])
def test_memory_is_shared(heap: Heap, ctx: Any, size: int) -> None:
    wrapper = BufferWrapper(size)
    wrapper.create_memoryview()[0] = 5
    with Holder(ctx, wrapper) as (_, connection):
        assert ask(connection, "sum") == (5, 0)
        ask(connection, "write")
        view = wrapper.create_memoryview()
        assert (view[0], view[-1]) == (77, 77)


@pytest.mark.parametrize("size", [64, 5000, 2 * MIB])
def test_memory_is_not_reused_while_a_child_has_it(heap: Heap, ctx: Any, size: int) -> None:
    """multiprocessing frees it when its creator drops it."""
    keep = BufferWrapper(size)  # so that the arena stays in any case
    used = heap.statistics()["used"]
    wrapper = BufferWrapper(size)
    where = address(wrapper)
    view = wrapper.create_memoryview()
    view[0] = view[-1] = 33
    del view
    with Holder(ctx, wrapper) as (_, connection):
        assert ask(connection, "sum") == (33, 33)
        del wrapper
        gc.collect()
        others = [BufferWrapper(size) for _ in range(20)]
        for other in others:
            other.create_memoryview()[:] = b"\xff" * size
        assert where not in map(address, others)
        assert ask(connection, "sum") == (33, 33)
        del other, others
    if size > 64:
        wait_until(lambda: heap.statistics()["pending"] == 0, message="the piece is free again")
        assert heap.statistics()["used"] == used
    if size == 5000:  # of the large one the arena is another now, and may be elsewhere
        assert where in [address(piece) for piece in [BufferWrapper(size) for _ in range(20)]]
    assert not any(keep.create_memoryview())


@pytest.mark.parametrize("size", [64, 5000, 2 * MIB])
def test_a_killed_holder_gives_its_memory_back(heap: Heap, ctx: Any, size: int) -> None:
    kind = "data" if size <= 64 else "piece"
    wrapper = BufferWrapper(size)
    before = blocks_of(kind)
    with Holder(ctx, wrapper) as (process, connection):
        ask(connection, "sum")
        del wrapper
        assert blocks_of(kind) == before
        process.kill()
        process.join()
        wait_until(lambda: blocks_of(kind) == before - 1, message="the block is free")
        assert heap.statistics()["used"] == 0


def test_a_child_may_arrive_after_the_parent_has_dropped_it(heap: Heap, ctx: Any) -> None:
    wrapper = BufferWrapper(100_000)
    wrapper.create_memoryview()[0] = 9
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=_hold, args=(wrapper, theirs))
    process.start()
    del wrapper
    heap.trim()
    assert ask(ours, "sum") == (9, 0)
    ours.send("end")
    process.join()


def _allocate_in_child(inherited: BufferWrapper, connection: Any) -> None:
    mine = [BufferWrapper(500) for _ in range(100)]
    for piece in mine:
        piece.create_memoryview()[:] = b"c" * 500
    connection.send(sorted(BufferWrapper._heap.statistics()["arenas"]))
    connection.recv()
    connection.send(all(piece.create_memoryview() == b"c" * 500 for piece in mine))
    connection.recv()


def test_a_child_allocates_from_arenas_of_its_own(heap: Heap, ctx: Any) -> None:
    inherited = BufferWrapper(500)
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=_allocate_in_child, args=(inherited, theirs))
    process.start()
    assert ours.recv()  # it has arenas, and none of ours:
    pieces = [BufferWrapper(500) for _ in range(100)]
    for piece in pieces:
        piece.create_memoryview()[:] = b"p" * 500
    ours.send(None)
    assert ours.recv() is True
    assert all(piece.create_memoryview() == b"p" * 500 for piece in pieces)
    ours.send(None)
    process.join()


def test_fork_by_hand(heap: Heap) -> None:
    wrapper = BufferWrapper(5000)
    wrapper.create_memoryview()[0] = 4
    end, hold = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(hold)
            os.read(end, 1)
            other = BufferWrapper(5000)
            status = 0 if wrapper.create_memoryview()[0] == 4 and other.create_memoryview()[0] == 0 else 2
        finally:
            os._exit(status)
    os.close(end)
    del wrapper
    others = [BufferWrapper(5000) for _ in range(30)]
    for other in others:
        other.create_memoryview()[:] = b"\xff" * 5000
    os.close(hold)
    assert os.waitpid(pid, 0)[1] == 0


def test_pickling_is_for_spawning_only(heap: Heap) -> None:
    import pickle

    for size in (8, 800):
        with pytest.raises(RuntimeError, match="inheritance"):
            pickle.dumps(BufferWrapper(size))


# --- kills ------------------------------------------------------------------------------------------------------------

CREATOR = """
    import os, sys, signal
    import mpipc
    from mpipc.heap import BufferWrapper

    def grandchild(wrappers, connection):
        connection.send(os.getpid())
        connection.recv()                      # until the creator is dead
        for wrapper in wrappers:
            view = wrapper.create_memoryview()
            assert view[0] == view[-1] == 21, view[0]
            view[:] = b"g" * len(view)
        own = [BufferWrapper(5000) for _ in range(50)]
        for piece in own:
            piece.create_memoryview()[:] = b"o" * 5000
        assert all(wrapper.create_memoryview()[-1] == ord("g") for wrapper in wrappers)
        connection.send("fine")
        connection.recv()

    def creator(method, connection):
        wrappers = [BufferWrapper(size) for size in (8, 5000, 3_000_000)]
        for wrapper in wrappers:
            view = wrapper.create_memoryview()
            view[0] = view[-1] = 21
        process = mpipc.get_context(method).Process(target=grandchild, args=(wrappers, connection))
        process.start()
        signal.pause()

    if __name__ == "__main__":
        method = sys.argv[1]
        context = mpipc.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=creator, args=(method, theirs))
        process.start()
        pid = ours.recv()
        process.kill()
        process.join()
        ours.send("go")
        assert ours.recv() == "fine"
        ours.send("end")
"""


def test_memory_outlives_its_killed_creator(start_method: str) -> None:
    run_script(CREATOR, arguments=[start_method])


TREE = """
    import signal, sys
    import mpipc, mpipc._core
    from mpipc.heap import BufferWrapper

    def child(wrappers, started):
        own = [BufferWrapper(100_000) for _ in range(10)]
        started.release()
        signal.pause()

    if __name__ == "__main__":
        context = mpipc.get_context(sys.argv[1])
        started = context.Semaphore(0)
        wrappers = [BufferWrapper(size) for size in (8, 5000, 3_000_000)]
        children = [context.Process(target=child, args=(wrappers, started)) for _ in range(3)]
        for process in children:
            process.start()
        for process in children:
            started.acquire()
        print("ready", mpipc._core.current().shmid, flush=True)
        signal.pause()
"""


def test_a_killed_tree_leaves_nothing(start_method: str) -> None:
    before = kernel_objects()
    with start_script(TREE, arguments=[start_method], env={"MPIPC_FAMILY": ""}) as script:
        assert script.stdout is not None
        assert script.stdout.readline().startswith("ready ")
        assert len(kernel_objects().shm - before.shm) >= 4
        script.kill_session()
    wait_until(lambda: kernel_objects().minus(before, infrastructure()).count == 0, message="nothing is left")


def test_the_kernel_frees_arenas_when_even_the_reaper_is_dead() -> None:
    before = kernel_objects()
    with start_script(TREE, arguments=["fork"], env={"MPIPC_FAMILY": ""}) as script:
        assert script.stdout is not None
        family = int(script.stdout.readline().removeprefix("ready "))
        assert len(kernel_objects().shm - before.shm) >= 4
        reapers = [
            process
            for process in processes().values()
            if process.name == "mpipc-reaper" and str(family) in process.command().split()
        ]
        assert len(reapers) == 1
        kill_process(reapers[0])
        script.kill_session()
    wait_until(lambda: kernel_objects().minus(before, infrastructure()).shm == {family}, message="the arenas are gone")
    run_script("import mpipc; mpipc.Lock()", env={"MPIPC_FAMILY": ""})  # sweeps
    wait_until(lambda: kernel_objects().minus(before, infrastructure()).count == 0, message="nothing is left")


RELAY = """
    import os, signal, sys
    import mpipc
    from mpipc.heap import BufferWrapper

    def last(wrapper, connection):
        connection.send(wrapper.create_memoryview()[0])

    def relay(method, wrappers, connection):
        connection.send("here")
        connection.recv()                     # until the creator is dead
        process = mpipc.get_context(method).Process(target=last, args=(wrappers.pop(), connection))
        process.start()
        connection.recv()                     # here nobody but the child that is on its way has the piece
        process.join()

    def creator(method, connection):
        wrapper = BufferWrapper(3_000_000)
        wrapper.create_memoryview()[0] = 21
        mpipc.get_context(method).Process(target=relay, args=(method, [wrapper], connection)).start()
        signal.pause()

    if __name__ == "__main__":
        context = mpipc.get_context(sys.argv[1])
        ours, theirs = context.Pipe()
        process = context.Process(target=creator, args=(sys.argv[1], theirs))
        process.start()
        assert ours.recv() == "here"
        process.kill()
        process.join()
        ours.send("go")
        assert ours.recv() == 21
        ours.send("end")
"""


def test_a_piece_is_passed_on_when_its_creator_is_dead(start_method: str) -> None:
    run_script(RELAY, arguments=[start_method])


def test_killed_at_any_moment_of_allocating() -> None:
    """A process that allocates and frees without pause is killed, again and again."""
    before = blocks_of("piece") + blocks_of("segment") + blocks_of("data")
    rng = random.Random(4)
    for _ in range(25):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            live: list[Any] = []
            while True:
                live.append(BufferWrapper(rng.choice([8, 100, 5000, 40_000, 200_000])))
                if len(live) > 40:
                    del live[rng.randrange(40)]
                    os.write(write, b"x")
        for _ in range(rng.randrange(1, 200)):
            os.read(read, 1)
        os.kill(pid, signal.SIGKILL)
        os.close(write)
        os.close(read)
        os.waitpid(pid, 0)
    wait_until(
        lambda: blocks_of("piece") + blocks_of("segment") + blocks_of("data") == before, message="all blocks are free"
    )


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "value"), [("shmmax", 10 * MIB), ("shmmni", 0), ("shmall", 0)])
def test_limits_are_named_and_nothing_is_left(heap: Heap, limit: str, value: int) -> None:
    current()
    blocks = current().blocks()
    with sysctl(limit, value), pytest.raises(LimitError) as caught:
        BufferWrapper(64 * MIB)
    assert caught.value.limit == limit.upper()
    assert f"kernel.{limit}" in str(caught.value)
    assert current().blocks() == blocks
    assert BufferWrapper(64 * MIB).create_memoryview()[-1] == 0


@pytest.mark.skipif(SANITIZED, reason="sanitizers need more address space")
def test_without_address_space(heap: Heap) -> None:
    result = run_script(
        """
        import resource
        from mpipc.heap import BufferWrapper
        from mpipc._core import current
        BufferWrapper(1000)
        before = current().blocks()
        size = 1 << 30
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        try:
            BufferWrapper(size)
        except OSError as error:
            print(error)
        assert current().blocks() == before
        """
    )
    assert "RLIMIT_AS" in result.stdout


ORPHANS = """
import os, signal, subprocess, sys
import mpipc
from support.reaper import wait_for_reaper

def child(array, value, queue, lock, number):
    with lock:
        value.value += 1
        queue.put(number)
    os.write(1, f"{number} {array[0]} {array[9999]} {queue.get(timeout=30) in range(4)}\\n".encode())

if __name__ == "__main__":
    ctx = mpipc.get_context(sys.argv[1])
    shared = ctx.Array("i", range(10000)), ctx.Value("i"), ctx.Queue(), ctx.Lock()
    if sys.argv[2] == "slow":
        reaper = wait_for_reaper()
        os.kill(reaper, signal.SIGSTOP)
        subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -CONT {reaper}"])
    for number in range(4):
        ctx.Process(target=child, args=(*shared, number)).start()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("reaper", ["quick", "slow"])
def test_children_whose_parent_dies_before_they_have_come_find_everything(start_method: str, reaper: str) -> None:
    """The parent's arenas are marked for removal. Until a child has unpickled its arguments, only the parent has them
    attached, and the reaper for the child's sake, however long that takes to come."""
    before = kernel_objects()
    with start_script(ORPHANS, arguments=[start_method, reaper], env={"MPIPC_FAMILY": ""}) as script:
        result = script.finish(timeout=60)
    assert result.returncode == -signal.SIGKILL
    assert sorted(result.stdout.splitlines()) == [f"{number} 0 9999 True" for number in range(4)], result.stderr
    wait_until(lambda: kernel_objects().minus(before, infrastructure()).count == 0, message="nothing is left")


INTERRUPTED = """
import gc, signal, sys
from mpipc.heap import Heap

class Interrupted(Exception):
    pass

def interrupt(*_):
    global sent, armed
    if armed or lost:
        armed = False
        sent += 1
        raise Interrupted

sent, armed, lost = 0, False, []
heaps = [Heap() for _ in range(100)]
gc.collect()
gc.freeze()  # what is collected is nearly nothing, so that most signals come while the callbacks run
sys.unraisablehook = lost.append
signal.signal(signal.SIGALRM, interrupt)
while sent < 300:
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, 0.0001 + sent % 10 * 0.00005, 0.01)
        while True:
            gc.collect()
    except Interrupted:
        pass
assert not lost, f"{len(lost)} of {sent} are lost"
"""


def test_what_a_signal_handler_raises_is_not_lost_in_a_collection() -> None:
    """Ctrl-C, say: what a callback of the garbage collector raises goes to sys.unraisablehook, and to nobody else."""
    run_script(INTERRUPTED)

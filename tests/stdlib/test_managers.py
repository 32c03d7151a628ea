"""Managers: objects in a server process that mpipc starts, reached by proxies from every kind of child."""

from __future__ import annotations

import collections.abc
import multiprocessing.managers
import operator
import os
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import run_script

import mpipc
from mpipc.managers import BaseManager, SharedMemoryManager, SyncManager

pytestmark = pytest.mark.slow_with("spawn")  # which costs most; other files of the room have it

GONE = (EOFError, ConnectionError)
"""What multiprocessing raises when the server does not answer any more."""


@pytest.fixture
def manager(ctx: Any) -> Iterator[SyncManager]:
    with ctx.Manager() as started:
        yield started


def run(ctx: Any, target: Any, *args: Any) -> None:
    process = ctx.Process(target=target, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0


# --- the server -------------------------------------------------------------------------------------------------------


def test_server_is_a_process_of_the_context(ctx: Any, manager: SyncManager) -> None:
    assert type(manager) is SyncManager
    assert isinstance(manager, multiprocessing.managers.SyncManager)
    server = manager._process  # type: ignore[attr-defined]
    assert type(server) is ctx.Process
    assert server in mpipc.active_children()
    assert server.name.startswith("SyncManager-")
    manager.shutdown()
    assert not server.is_alive() and server.exitcode == 0


def test_default_context() -> None:
    assert SyncManager()._ctx is mpipc.get_context()  # type: ignore[attr-defined]
    run_script(
        """
        import mpipc
        if __name__ == "__main__":
            mpipc.set_start_method("spawn")
            with mpipc.Manager() as manager:
                assert type(manager._process) is mpipc.get_context("spawn").Process
        """
    )


def test_set(manager: SyncManager) -> None:
    """Of Python 3.14, and here of all."""
    numbers = manager.set([1, 2])  # type: ignore[attr-defined]
    assert type(numbers) is mpipc.managers.SetProxy
    same = numbers
    numbers |= {3, 4}
    numbers -= {1}
    numbers &= {2, 3, 4, 5}
    numbers ^= {5, 6}
    assert numbers is same
    assert (len(numbers), 2 in numbers, 1 in numbers, sorted(numbers)) == (5, True, False, [2, 3, 4, 5, 6])
    numbers.add(7)
    numbers.discard(6)
    numbers.remove(5)
    with pytest.raises(KeyError):
        numbers.remove(5)
    assert numbers.copy() == {2, 3, 4, 7}
    assert (numbers | {9}, numbers & {2}, {2, 9} - numbers, numbers ^ {2}) == ({2, 3, 4, 7, 9}, {2}, {9}, {3, 4, 7})
    assert (
        numbers.union([8]) == {2, 3, 4, 7, 8} and numbers.issuperset({2}) and numbers > {2} and numbers <= {2, 3, 4, 7}
    )
    numbers.clear()
    assert len(numbers) == 0


def test_dict_and_list_have_what_python_3_14_has(manager: SyncManager) -> None:
    table, same = (manager.dict(a=1),) * 2
    table |= {"b": 2}
    assert table is same
    assert (table | {"c": 3}, {"z": 0} | table) == ({"a": 1, "b": 2, "c": 3}, {"z": 0, "a": 1, "b": 2})
    assert list(reversed(table)) == ["b", "a"]
    assert isinstance(table, collections.abc.MutableMapping)
    items = manager.list([1, 2])
    assert items.copy() == [1, 2]
    items.clear()
    assert len(items) == 0
    assert isinstance(items, collections.abc.MutableSequence)


def test_lock_locked(manager: SyncManager) -> None:
    lock = manager.Lock()
    assert lock.locked() is False  # type: ignore[attr-defined]
    with lock:
        assert lock.locked() is True  # type: ignore[attr-defined]


def test_states(ctx: Any) -> None:
    manager = SyncManager(ctx=ctx)
    with pytest.raises(AssertionError, match="server not yet started"):
        manager.list()
    with manager:
        with pytest.raises(mpipc.ProcessError, match="Already started server"):
            manager.start()
        with pytest.raises(mpipc.ProcessError, match="Already started server"):
            manager.get_server()
    with pytest.raises(mpipc.ProcessError, match="Manager has shut down"):
        manager.start()


def _note(connection: Any, pid: int) -> None:
    connection.send((pid, os.getpid()))


def test_initializer(ctx: Any) -> None:
    reader, writer = ctx.Pipe(duplex=False)
    manager = SyncManager(ctx=ctx)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        manager.start(1)  # type: ignore[arg-type]
    manager.start(_note, (writer, os.getpid()))
    with manager:
        assert reader.recv() == (os.getpid(), manager._process.pid)  # type: ignore[attr-defined]


@pytest.mark.slow_with("spawn", "forkserver")
@pytest.mark.parametrize("serializer", ["pickle", "xmlrpclib"])
@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)])
def test_remote_manager(ctx: Any, address: Any, serializer: str) -> None:
    """A second manager object, in another process, that only knows the address and the key."""
    with SyncManager(address, b"secret", serializer, ctx) as served:
        run(ctx, _use_remote, served.address, serializer)
        stranger = SyncManager(served.address, b"wrong", serializer)
        with pytest.raises((mpipc.AuthenticationError, *GONE)):
            stranger.connect()


def _use_remote(address: Any, serializer: str) -> None:
    remote = SyncManager(address, b"secret", serializer)
    remote.connect()
    numbers = remote.list([1, 2])
    numbers.append(3)
    assert [numbers[index] for index in range(len(numbers))] == [1, 2, 3]


# --- the registered types ---------------------------------------------------------------------------------------------


def _use_everything(proxies: dict[str, Any]) -> None:
    proxies["list"].append("child")
    proxies["dict"]["child"] = os.getpid()
    proxies["Namespace"].child = "here"
    proxies["Value"].value += 1
    proxies["Array"][1] = 20
    proxies["Queue"].put("from the child")
    assert proxies["JoinableQueue"].get() == "task"
    proxies["JoinableQueue"].task_done()
    with proxies["Lock"], proxies["RLock"], proxies["RLock"], proxies["Semaphore"], proxies["BoundedSemaphore"]:
        pass
    with proxies["Condition"]:
        proxies["Condition"].notify_all()
    proxies["Event"].set()
    assert proxies["Barrier"].parties == 1
    assert proxies["Barrier"].wait() == 0


def test_every_type_in_a_child(ctx: Any, manager: SyncManager) -> None:
    proxies: dict[str, Any] = {
        "list": manager.list(["parent"]),
        "dict": manager.dict(parent=1),
        "Namespace": manager.Namespace(parent="here"),  # type: ignore[call-arg]
        "Value": manager.Value("i", 1),
        "Array": manager.Array("i", [1, 2, 3]),
        "Queue": manager.Queue(),
        "JoinableQueue": manager.JoinableQueue(),
        "Lock": manager.Lock(),
        "RLock": manager.RLock(),
        "Semaphore": manager.Semaphore(2),
        "BoundedSemaphore": manager.BoundedSemaphore(2),
        "Condition": manager.Condition(),
        "Event": manager.Event(),
        "Barrier": manager.Barrier(1),
    }
    registered = {typeid for typeid, (make, *_) in SyncManager._registry.items() if make}  # type: ignore[attr-defined]
    assert proxies.keys() == registered - {"Pool"} - NOT_IN_311.intersection(registered)
    proxies["JoinableQueue"].put("task")
    run(ctx, _use_everything, proxies)
    assert proxies["list"][:] == ["parent", "child"]
    assert set(proxies["dict"].keys()) == {"parent", "child"}
    assert proxies["Namespace"].child == "here"
    assert proxies["Value"].value == 2
    assert proxies["Array"][:].tolist() == [1, 20, 3]
    assert proxies["Queue"].get() == "from the child"
    proxies["JoinableQueue"].join()
    assert proxies["Event"].is_set()
    with pytest.raises(queue.Empty):
        proxies["Queue"].get_nowait()
    with pytest.raises(KeyError):
        proxies["dict"]["nobody"]


NOT_IN_311 = {"set"}
"""Types that later interpreters register; they need nothing of ours."""


def test_nested_proxies(manager: SyncManager) -> None:
    inner = manager.list([1])
    outer = manager.dict(inner=inner)
    inner.append(2)
    outer["inner"].append(3)
    del inner
    assert outer["inner"][:] == [1, 2, 3]


def test_pool_of_a_manager(manager: SyncManager, start_method: str) -> None:
    pool: Any = manager.Pool(2)
    with pool:
        assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
        assert pool.apply_async(abs, (-4,)).get() == 4
        assert list(pool.imap(abs, [-5, -6])) == [5, 6]
        server = manager._process.pid  # type: ignore[attr-defined]
        assert pool.apply(os.getppid) == server or start_method == "forkserver"  # then it is a child of the fork server


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def _hidden(self) -> None:
        pass


class CountingManager(BaseManager):
    """A manager as a program defines it."""


CountingManager.register("Counter", Counter)
CountingManager.register("deque", collections.deque, exposed=("append", "pop", "__len__"))
CountingManager.register("operator", callable=lambda: operator)  # as in the documentation; fork only


@pytest.mark.slow_with("spawn")
def test_own_manager_with_autoproxies(ctx: Any, start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = dict(CountingManager._registry)  # type: ignore[attr-defined]
    if start_method != "fork":
        del registry["operator"]
    monkeypatch.setattr(CountingManager, "_registry", registry)
    assert "Counter" not in BaseManager._registry  # type: ignore[attr-defined]
    with CountingManager(ctx=ctx) as manager:
        counter = manager.Counter(5)  # type: ignore[attr-defined]
        assert counter.add(1) == 6
        assert not hasattr(counter, "_hidden")
        run(ctx, _count, counter)
        assert counter.add(0) == 16
        numbers = manager.deque([1, 2])  # type: ignore[attr-defined]
        numbers.append(3)
        assert (numbers.pop(), len(numbers)) == (3, 2)
        if start_method == "fork":
            assert manager.operator().add(1, 2) == 3  # type: ignore[attr-defined]


def _count(counter: Any) -> None:
    assert counter.add(10) == 16


# --- the server is killed ---------------------------------------------------------------------------------------------


def test_server_killed(ctx: Any) -> None:
    """A call that waits for its answer, a call that comes later, a new object, and a shutdown: none of them hangs."""
    with ctx.Manager() as manager:
        numbers, items = manager.list(), manager.Queue()
        raised: list[BaseException] = []
        waiting = threading.Event()

        def wait() -> None:
            items.qsize()  # this thread's own connection is there
            waiting.set()
            try:
                items.get()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        os.kill(manager._process.pid, signal.SIGKILL)
        thread.join()
        assert isinstance(raised[0], GONE)
        with pytest.raises(GONE):
            numbers.append(1)
        with pytest.raises((*GONE, FileNotFoundError)):
            manager.list()
        manager._process.join()
        assert manager._process.exitcode == -signal.SIGKILL


def test_client_killed(ctx: Any, manager: SyncManager) -> None:
    """A client that dies in the middle of a call leaves the server and the others as they were."""
    items = manager.Queue()
    reader, writer = ctx.Pipe(duplex=False)
    process = ctx.Process(target=_get_forever, args=(writer, items))
    process.start()
    assert reader.recv() == "ready"
    process.kill()
    process.join()
    numbers = manager.list([1])
    numbers.append(2)
    assert numbers[:] == [1, 2]


def _get_forever(connection: Any, items: Any) -> None:
    assert items.empty()
    connection.send("ready")
    items.get()


# --- shared memory ----------------------------------------------------------------------------------------------------


def _attach(name: str, list_name: str) -> None:
    from mpipc.shared_memory import ShareableList, SharedMemory

    segment = SharedMemory(name)
    segment.buf[0] = 42
    segment.close()
    shared: Any = ShareableList(name=list_name)
    shared[0] = 10
    shared.shm.close()


def test_shared_memory_manager(ctx: Any) -> None:
    from mpipc import shared_memory

    with SharedMemoryManager(ctx=ctx) as manager:
        assert isinstance(manager, multiprocessing.managers.SharedMemoryManager)
        segment = manager.SharedMemory(100)
        shared = manager.ShareableList([1, "two", 3.0])
        assert type(segment) is shared_memory.SharedMemory and type(shared) is shared_memory.ShareableList
        assert segment.size >= 100
        run(ctx, _attach, segment.name, shared.shm.name)
        assert segment.buf[0] == 42
        assert list(shared) == [10, "two", 3.0]
        segment.close()
        shared.shm.close()
    for name in (segment.name, shared.shm.name):
        with pytest.raises(FileNotFoundError):
            shared_memory.SharedMemory(name)


def test_shared_memory_manager_not_started(ctx: Any) -> None:
    manager = SharedMemoryManager(ctx=ctx)
    server: Any = manager.get_server()
    assert type(server) is mpipc.managers.SharedMemoryServer
    server.listener.close()
    with manager:
        with pytest.raises(mpipc.ProcessError, match="Already started SharedMemoryServer"):
            manager.get_server()
        manager.SharedMemory(10)
    with pytest.raises(mpipc.ProcessError, match="SharedMemoryManager has shut down"):
        manager.get_server()


def test_shared_memory_is_given_back_when_the_manager_cannot_track_it(ctx: Any) -> None:
    """A segment that the server never heard of is not left behind (the leftovers fixture looks for it)."""
    with SharedMemoryManager(ctx=ctx) as manager:
        manager._process.kill()  # type: ignore[attr-defined]
        manager._process.join()  # type: ignore[attr-defined]
        with pytest.raises(OSError):
            manager.SharedMemory(1000)
        with pytest.raises(OSError):
            manager.ShareableList([1])

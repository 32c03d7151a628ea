"""torch's tensors and mpipc: by reference, in place, without descriptors. Each test is a program of its own: torch
stays out of pytest's process.
"""

from __future__ import annotations

import subprocess
import textwrap
from importlib.util import find_spec
from typing import Any

import pytest
from support import run_script, start_script

pytestmark = [
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed (make test-torch)"),
    pytest.mark.slow_with("spawn", "forkserver"),  # each child imports torch
]

HEAD = """
import os, signal, sys, threading, multiprocessing
import mpipc, mpipc.torch
from mpipc import arrays
from support import wait_until

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def dev_shm():
    # Of this process: other programs have some, too.
    with open("/proc/self/maps") as maps:
        return [line for line in maps if "/dev/shm" in line]

def soon(condition):
    # What a process has held that has ended is given back by the reaper.
    wait_until(condition, timeout=30)

def end(process):
    process.join()
    assert process.exitcode == 0, process.exitcode
"""

TORCH = """
import torch
from torch.utils.data import DataLoader, Dataset
torch.set_num_threads(1)
ours = mpipc.torch.is_ours

class Samples(Dataset):
    def __init__(self, length, side=387):  # 600 KB
        self.length, self.side = length, side
    def __len__(self):
        return self.length
    def __getitem__(self, index):
        return torch.full((self.side, self.side), float(index)), index
"""


def run(source: str, *arguments: str, head: str = HEAD + TORCH, **options: Any) -> str:
    found: subprocess.CompletedProcess[str] = run_script(
        head + textwrap.dedent(source), arguments=arguments, timeout=110, **options
    )
    assert "Traceback" not in found.stderr, found.stderr
    return found.stdout


def can_have_its_own_dev_shm() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


# --- by reference -----------------------------------------------------------------------------------------------------


def test_a_tensor_is_the_sender_s_and_the_receiver_s(start_method: str) -> None:
    """What each writes the other sees; what comes back is the storage that it was; nothing stays."""
    run(
        """
        def child(argument, parameter, inbox, outbox):
            argument += 1
            first, second = inbox.get(), inbox.get()
            assert first.untyped_storage()._cdata == second.untyped_storage()._cdata
            first.mul_(10)
            assert type(parameter) is torch.nn.Parameter and parameter.requires_grad
            outbox.put((second, argument, parameter))
            assert inbox.get() == "done"

        if __name__ == "__main__":
            ctx = mpipc.get_context(sys.argv[1])
            inbox, outbox = ctx.Queue(), ctx.Queue()
            argument, parameter = torch.zeros(4), torch.nn.Parameter(torch.ones(2))
            inbox.put((argument, parameter))  # moves them, so that a forked child has them, too
            assert ours(argument) and ours(parameter) and argument.is_shared()
            inbox.get()
            whole = torch.arange(6.0)
            inbox.put(whole[:4])
            inbox.put(whole[2:])
            process = ctx.Process(target=child, args=(argument, parameter, inbox, outbox))
            process.start()
            back, there, _ = outbox.get()
            assert whole.tolist() == [0, 10, 20, 30, 4, 5] and back.tolist() == [20, 30, 4, 5]
            assert back.untyped_storage()._cdata == whole.untyped_storage()._cdata
            assert there.untyped_storage()._cdata == argument.untyped_storage()._cdata and argument.tolist() == [1] * 4
            assert len(arrays.holders(whole.numpy()).processes) == 2
            inbox.put("done")
            end(process)
            process.close()
            soon(lambda: arrays.holders(whole.numpy()).processes == [os.getpid()])
            del whole, back, argument, there, parameter, _, process
            soon(lambda: arrays.usage().in_use == 0)
            assert not dev_shm()
        """,
        start_method,
    )


def test_tasks_of_pools_and_executors(start_method: str) -> None:
    run(
        """
        def doubled(tensor):
            assert ours(tensor)
            tensor *= 2
            return tensor, torch.ones(2)

        if __name__ == "__main__":
            ctx = mpipc.get_context(sys.argv[1])
            with ctx.Pool(1) as pool:
                tensors = [torch.full((3,), float(n)) for n in range(4)]
                for n, (same, new) in enumerate(pool.map(doubled, tensors)):
                    assert tensors[n].tolist() == [2 * n] * 3 and ours(new)
                    assert same.data_ptr() == tensors[n].data_ptr()
            with mpipc.ProcessPoolExecutor(1, mp_context=ctx) as executor:
                assert executor.submit(doubled, tensors[3]).result()[0].tolist() == [12] * 3
                assert tensors[3].tolist() == [12] * 3
        """,
        start_method,
    )


def test_tasks_by_another_pickler(start_method: str) -> None:
    """Lambdas and tensors."""
    pytest.importorskip("cloudpickle")
    run(
        """
        if __name__ == "__main__":
            with mpipc.get_context(sys.argv[1]).Pool(1, pickler="cloudpickle") as pool:
                tensor = torch.ones(3)
                found = pool.apply(lambda it: (mpipc.torch.is_ours(it), it.mul_(2), it.new_ones(2)), (tensor,))
                assert found[0] and tensor.tolist() == [2] * 3 and found[1].data_ptr() == tensor.data_ptr()
                assert ours(found[2])
        """,
        start_method,
    )


def test_an_array_of_mpipc_as_a_tensor() -> None:
    """It is not moved: it is in such memory, and the tensor is a part of it."""
    run(
        """
        import numpy
        array = arrays.zeros(10, "float32")
        tensor = torch.from_numpy(array[2:6])
        assert ours(tensor) and tensor.is_shared()
        queue = mpipc.Queue()
        queue.put((tensor, tensor.untyped_storage()))
        found, storage = queue.get()
        found[0] = 5
        assert array[2] == 5 and storage.nbytes() == 16 and storage._cdata == found.untyped_storage()._cdata
        """
    )


def test_threads_that_send_the_same_tensor() -> None:
    run(
        """
        queues = [mpipc.Queue() for _ in range(4)]
        for _ in range(50):
            tensor, together = torch.ones(100_000), threading.Barrier(4)
            def send(queue):
                together.wait()
                queue.put(tensor)
            threads = [threading.Thread(target=send, args=(queue,)) for queue in queues]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert {queue.get().data_ptr() for queue in queues} == {tensor.data_ptr()}
        """
    )


def test_memory_that_cannot_be_had() -> None:
    """Then it is torch's way."""
    run(
        """
        from mpipc._memory import storages
        def none(*args):
            raise OSError(28, "No space left")
        storages.copied_from = none
        tensor, queue = torch.ones(3), mpipc.Queue()
        queue.put(tensor)
        found = queue.get()
        assert not ours(found) and found.is_shared()
        found.add_(1)
        assert tensor.tolist() == [2] * 3
        """
    )


# --- where it acts ----------------------------------------------------------------------------------------------------


def test_where_share_memory_is_ours(start_method: str) -> None:
    """In what mpipc has started, and in an installed program; elsewhere it is torch's."""
    run(
        """
        def child(queue):
            tensor = torch.ones(3)
            assert not tensor.is_shared() and tensor.share_memory_() is tensor and tensor.is_shared()
            queue.put((ours(tensor), ours(torch.nn.Linear(2, 2).share_memory().weight),
                       ours(torch.UntypedStorage._new_shared(100))))

        if __name__ == "__main__":
            ctx = mpipc.get_context(sys.argv[1])
            queue = ctx.Queue()
            process = ctx.Process(target=child, args=(queue,))
            process.start()
            assert queue.get() == (True, True, True)
            end(process)
            child(queue)
            assert queue.get() == (False, False, False)
            mpipc.install()
            child(queue)
            assert queue.get() == (True, True, True)
            mpipc.uninstall()
            child(queue)
            assert queue.get() == (False, False, False)
        """,
        start_method,
    )


def test_torch_comes_late(start_method: str) -> None:
    """After install(), and in a child that has not had it."""
    run(
        """
        def child(queue):
            first = "torch" in sys.modules
            import inspect, torch
            assert "init_reductions" in inspect.getsource(torch.multiprocessing)
            assert torch.multiprocessing.__spec__.loader is torch.multiprocessing.__loader__
            queue.put((first, mpipc.torch.is_ours(torch.ones(3).share_memory_())))

        if __name__ == "__main__":
            mpipc.install()
            ctx = multiprocessing.get_context(sys.argv[1])
            queue = ctx.Queue()
            process = ctx.Process(target=child, args=(queue,))
            process.start()
            assert queue.get() == (False, True)
            end(process)
            child(queue)
            assert queue.get() == (False, True)
        """,
        start_method,
        head=HEAD,
    )


def test_nothing_is_loaded_without_torch() -> None:
    run(
        """
        assert "mpipc._memory.memory" not in sys.modules
        assert "torch" not in sys.modules and not mpipc.torch.can_move()
        queue = mpipc.Queue()
        queue.put({1: "2"})
        queue.get()
        assert "mpipc._memory.storages" not in sys.modules and "torch" not in sys.modules
        try:
            mpipc.torch.is_ours(3)
        except TypeError as error:
            assert "torch has not been imported" in str(error)
        """,
        head="import sys, mpipc, mpipc.torch\n",
    )


def test_queues_of_multiprocessing_are_what_they_are(start_method: str) -> None:
    """In the same process, also after a tensor has gone through one of mpipc's."""
    run(
        """
        def child(inbox, outbox, argument):
            argument += 1
            tensor = inbox.get()
            tensor.mul_(3)
            outbox.put((mpipc.torch.is_ours(tensor), tensor.is_shared(), tensor, mpipc.torch.is_ours(argument)))
            inbox.get()

        if __name__ == "__main__":
            other = mpipc.Queue()
            other.put(torch.ones(1))
            other.get()
            ctx = multiprocessing.get_context(sys.argv[1])
            inbox, outbox = ctx.Queue(), ctx.Queue()
            tensor, argument, moved = torch.ones(3), torch.zeros(2).share_memory_(), torch.ones(2)
            process = ctx.Process(target=child, args=(inbox, outbox, argument))
            process.start()
            inbox.put(tensor)
            found = outbox.get()
            assert found[:2] == (False, True) and not found[3], found
            assert tensor.tolist() == [3] * 3 and not ours(tensor) and argument.tolist() == [1, 1]
            other.put(tensor)  # torch has shared it, and so it stays
            assert other.get().data_ptr() == tensor.data_ptr() and not ours(tensor)
            inbox.put("done")
            end(process)
            other.put(moved)
            inbox.put(moved)  # it stays where others have it
            assert inbox.get().data_ptr() == moved.data_ptr() == other.get().data_ptr() and ours(moved)
        """,
        start_method,
    )


def test_what_has_been_moved_goes_through_a_pipe(start_method: str) -> None:
    """And is still the memory of all who have had it before, whoever's child the receiver is."""
    run(
        """
        def child(connection, first):
            for tensor in iter(connection.recv, None):
                tensor += 1
                connection.send((tensor, ours(tensor), first.tolist()))

        if __name__ == "__main__":
            queue = mpipc.Queue()
            for package in (mpipc, multiprocessing):
                ctx = package.get_context(sys.argv[1])
                tensor = torch.zeros(4)
                queue.put(tensor)
                assert ours(tensor)
                here, there = ctx.Pipe()
                process = ctx.Process(target=child, args=(there, tensor))
                process.start()
                for n in range(1, 4):
                    here.send(tensor[1:])
                    back, is_ours, first = here.recv()
                    assert tensor.tolist() == [0, n, n, n] == first and is_ours and ours(tensor), (tensor, first)
                    assert back.untyped_storage()._cdata == tensor.untyped_storage()._cdata
                here.send(torch.zeros(3))  # this one has not: torch's way
                assert here.recv()[1] is False
                here.send(None)
                end(process)
                queue.get()
        """,
        start_method,
    )


def test_a_receiver_of_another_family() -> None:
    """It gets a copy."""
    run(
        """
        from multiprocessing.connection import Listener
        from mpipc._core import ENVIRONMENT
        import subprocess
        if __name__ == "__main__":
            queue, tensor = mpipc.Queue(), torch.ones(3)
            queue.put(tensor)
            multiprocessing.current_process().authkey = b"key"
            with Listener(authkey=b"key") as listener:
                source = (
                    "import multiprocessing, torch; from multiprocessing.connection import Client;"
                    "multiprocessing.current_process().authkey = b'key';"
                    f"found = Client({listener.address!r}, authkey=b'key').recv(); found += 1;"
                    "print(found.tolist(), found.is_shared())"
                )
                os.unsetenv(ENVIRONMENT)
                environment = {name: value for name, value in os.environ.items() if name != ENVIRONMENT}
                other = subprocess.Popen([sys.executable, "-c", source], env=environment, stdout=-1, text=True)
                with listener.accept() as connection:
                    connection.send(tensor)
                    found = other.communicate()[0]
            assert found.strip() == "[2.0, 2.0, 2.0] False", found
            assert tensor.tolist() == [1] * 3
        """
    )


def test_tensors_without_data() -> None:
    """Of a FakeTensorMode, and of the device "meta"."""
    run(
        """
        from torch._subclasses.fake_tensor import FakeTensorMode
        queue = mpipc.Queue()
        queue.put(torch.empty(3, device="meta"))
        found = queue.get()
        assert found.device.type == "meta" and not found.is_shared()
        with FakeTensorMode():
            assert not torch.empty(3).untyped_storage().is_shared()
        with torch.device("meta"):
            queue.put(torch.ones(2, device="cpu"))
            assert queue.get().tolist() == [1, 1]
        lazy = torch._lazy_clone(torch.ones(3)) if hasattr(torch, "_lazy_clone") else torch.ones(3)
        queue.put(lazy)
        queue.get().add_(1)
        assert lazy.tolist() == [2] * 3
        """
    )


def test_disabled() -> None:
    """What has been moved stays where it is, and is understood."""
    run(
        """
        queue, before = mpipc.Queue(), torch.ones(2)
        queue.put(before)
        assert ours(before) and mpipc.torch.is_enabled()
        mpipc.torch.disable()
        found = queue.get()
        assert found.data_ptr() == before.data_ptr() and found.is_shared()
        tensor = torch.ones(2)
        queue.put(tensor)
        assert tensor.is_shared() and not ours(tensor) and queue.get().is_shared()
        mpipc.torch.enable()
        queue.put(torch.ones(2))
        assert ours(queue.get())
        """
    )


def test_disabled_in_children(start_method: str) -> None:
    run(
        """
        def child(queue):
            queue.put((mpipc.torch.is_enabled(), ours(torch.ones(2).share_memory_())))

        if __name__ == "__main__":
            ctx = mpipc.get_context(sys.argv[1])
            queue = ctx.Queue()
            for change, found in ((mpipc.torch.disable, (False, False)), (mpipc.torch.enable, (True, True))):
                change()
                process = ctx.Process(target=child, args=(queue,))
                process.start()
                assert queue.get() == found
                end(process)
        """,
        start_method,
    )


def test_a_reducer_of_the_program_s_goes_first() -> None:
    run(
        """
        from multiprocessing.reduction import ForkingPickler
        def reduce(storage):
            return torch.UntypedStorage, (storage.nbytes(),)
        ForkingPickler.register(torch.UntypedStorage, reduce)
        queue = mpipc.Queue()
        queue.put(torch.ones(3))
        found = queue.get()
        assert not ours(found) and not found.is_shared()
        """
    )


# --- torch itself -----------------------------------------------------------------------------------------------------


def test_the_names_of_torch_that_are_used_are_there() -> None:
    """Where one is gone, less goes our way: NAMES says what. This test says it first."""
    run(
        """
        from operator import attrgetter
        from mpipc._memory.storages import NAMES
        for where, names, why in NAMES:
            for name in names.split():
                assert hasattr(attrgetter(where)(torch), name), (where, name, why)
        assert mpipc.torch.can_move()
        """
    )


def test_a_torch_that_cannot_move_storages(start_method: str) -> None:
    """The batches of a DataLoader go our way, and all else torch's."""
    run(
        """
        del torch.storage._share_memory_lock_protected
        if __name__ == "__main__":
            ctx = mpipc.get_context(sys.argv[1])
            for batch, numbers in DataLoader(Samples(4, 10), num_workers=1, multiprocessing_context=ctx):
                assert ours(batch) and batch.is_shared() and not ours(numbers) and numbers.is_shared()
            assert not mpipc.torch.can_move()
            tensor, queue = torch.ones(2), ctx.Queue()
            queue.put(tensor)
            assert not ours(queue.get()) and tensor.is_shared() and not ours(tensor)
        """,
        start_method,
    )


# --- DataLoader -------------------------------------------------------------------------------------------------------


def test_batches_have_no_descriptors(start_method: str) -> None:
    run(
        """
        if __name__ == "__main__":
            ctx = mpipc.get_context(sys.argv[1])
            kept, counts = [], set()
            loader = DataLoader(Samples(48), batch_size=2, num_workers=2, multiprocessing_context=ctx)
            for batch, numbers in loader:
                kept.append(batch)
                counts.add(descriptors())
                assert ours(batch) and batch[:, 5, 5].tolist() == numbers.tolist() and not dev_shm()
            # The workers' own are gone when the loader is at its end.
            assert len(kept) == 24 and max(counts) == min(counts), counts
            assert arrays.usage().in_use >= 48 * 600_000 * 0.99
            assert [batch[0, 0, 0].item() for batch in kept] == [*range(0, 48, 2)]
            kept.clear()
            del batch, numbers, loader
            soon(lambda: arrays.usage().in_use == 0)
        """,
        start_method,
    )


@pytest.mark.skipif(not can_have_its_own_dev_shm(), reason="it needs a mount namespace")
def test_a_small_dev_shm(start_method: str) -> None:
    """Of 64 KB: torch's own way dies of it."""
    source = """
        if __name__ == "__main__":
            method = sys.argv[1]
            for ctx in (mpipc.get_context(method), multiprocessing.get_context(method)):
                loader = DataLoader(Samples(16), batch_size=4, num_workers=2, multiprocessing_context=ctx)
                print(sum(float(batch[:, 0, 0].sum()) for batch, _ in loader), flush=True)
        """
    program = HEAD + TORCH + textwrap.dedent(source)
    wrapped = f"""
        import subprocess, sys
        mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
        with open("program.py", "w") as file:
            file.write({program!r})
        command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "program.py", *sys.argv[1:]]
        found = subprocess.run(command, capture_output=True, text=True, timeout=100)
        print(found.returncode, found.stdout, found.stderr)
        """
    found = run_script(wrapped, arguments=[start_method], timeout=110).stdout
    assert found.startswith("1 120.0\n") and found.count("120.0") == 1, found
    assert "unable to allocate shared memory" in found or "Bus error" in found, found


def test_workers_give_up_what_they_have_inherited() -> None:
    run(
        """
        def forget(worker):
            arrays.drop_inherited()

        for function, holders in ((None, 3), (forget, 1)):
            tensor, queue = torch.ones(1000), mpipc.Queue()
            queue.put(tensor)
            queue.get()
            ctx = mpipc.get_context("fork")
            loader = DataLoader(Samples(8), num_workers=2, worker_init_fn=function, multiprocessing_context=ctx)
            for batch, _ in loader:
                assert len(set(batch.flatten().tolist())) == 1
                found = len(arrays.holders(tensor.numpy()).processes)
                if batch[0, 0, 0] == 4:  # both have begun, and neither has come to its end
                    assert found == holders, found
        """
    )


@pytest.mark.parametrize("killed", ["one", "all"])
def test_workers_killed_while_batches_are_on_their_way(start_method: str, killed: str) -> None:
    run(
        """
        if __name__ == "__main__":
            ctx = mpipc.get_context(sys.argv[1])
            for _ in range(3):
                loader = iter(DataLoader(Samples(4000), num_workers=2, prefetch_factor=6, multiprocessing_context=ctx))
                kept = [next(loader)[0] for _ in range(5)]
                workers = mpipc.active_children()[: None if sys.argv[2] == "all" else 1]
                for worker in workers:
                    os.kill(worker.pid, signal.SIGKILL)
                try:
                    for batch, _ in loader:
                        kept = [*kept[-5:], batch]
                    raise AssertionError("nobody has noticed")
                except RuntimeError as error:
                    assert "killed by signal" in str(error) or "exited unexpectedly" in str(error), error
                assert all(len(set(batch.flatten().tolist())) == 1 for batch in kept[-5:])
                batch = kept = loader = _ = None
                for process in mpipc.active_children():
                    process.join()
                sys.last_value = sys.last_traceback = None
            import gc
            gc.collect()
            soon(lambda: arrays.usage().in_use == 0)
            assert arrays.usage().bytes < 100 << 20
        """,
        start_method,
        killed,
    )


def test_the_whole_program_is_killed(start_method: str) -> None:
    """Nothing is left: that is what tests/plugins look after."""
    source = """
        if __name__ == "__main__":
            ctx = mpipc.get_context(sys.argv[1])
            loader = iter(DataLoader(Samples(4000), num_workers=2, multiprocessing_context=ctx))
            kept = [next(loader)[0] for _ in range(5)]
            print(os.getpid(), flush=True)
            signal.pause()
        """
    with start_script(HEAD + TORCH + textwrap.dedent(source), arguments=[start_method]) as script:
        assert script.stdout is not None
        assert script.stdout.readline().strip() == str(script.pid), script.finish()
        script.kill_session()


def test_exit_with_tensors_that_live(start_method: str) -> None:
    """In whatever order the interpreter ends: no crash."""
    source = """
        def child(queue):
            global kept
            kept = [queue.get(), torch.ones(5).share_memory_()]
            queue.put(kept[1])

        if __name__ == "__main__":
            ctx = mpipc.get_context(sys.argv[1])
            queue = ctx.Queue()
            sent = torch.ones(3)
            queue.put(sent)
            process = ctx.Process(target=child, args=(queue,))
            process.start()
            end(process)
            kept = [queue.get(), sent, torch.nn.Linear(3, 3)]
            assert kept[0].tolist() == [1] * 5  # whoever sent it has gone
            torch.kept = kept
            torch.Tensor.kept = kept
        """
    found = run_script(HEAD + TORCH + textwrap.dedent(source), arguments=[start_method], timeout=110)
    assert found.stderr == "", found.stderr

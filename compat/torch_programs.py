"""What programs do with torch.multiprocessing and DataLoader, as torch documents it: each function is one program.

    python compat/torch_programs.py START_METHOD [PROGRAM ...]

Each prints what it has found. tests/memory/test_torch_programs.py runs them on multiprocessing and with `python -m
mpipc run`, and compares that. Nothing here knows of mpipc.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections import namedtuple
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info

PROGRAMS: dict[str, Callable[[Any], None]] = {}

Pair = namedtuple("Pair", "first second")


def program(function: Callable[[Any], None]) -> Callable[[Any], None]:
    PROGRAMS[function.__name__] = function
    return function


def show(*values: Any) -> None:
    """Tensors with all that is theirs."""
    for value in values:
        if isinstance(value, torch.Tensor):
            dense = value.to_dense() if value.layout is not torch.strided else value
            print(
                type(value).__name__, value.dtype, tuple(value.shape), value.layout, value.requires_grad, dense.tolist()
            )
        else:
            print(value)


def joined(process: Any) -> None:
    process.join()
    print("exit code", process.exitcode)


def child_of(ctx: Any, target: Callable[..., None], *args: Any) -> Any:
    process = ctx.Process(target=target, args=args)
    process.start()
    return process


def echo(inbox: Any, outbox: Any, times: int) -> None:
    """Sends back what it gets, and waits until that has been received: torch's documentation asks for it."""
    for _ in range(times):
        outbox.put(inbox.get())
    inbox.get()


def through(ctx: Any, *objects: Any) -> list[Any]:
    """What comes back of objects that were sent to another process, and back."""
    there, back = ctx.Queue(), ctx.Queue()
    process = child_of(ctx, echo, there, back, len(objects))
    for thing in objects:
        there.put(thing)
    found = [back.get() for _ in objects]
    there.put(None)
    joined(process)
    return found


# --- DataLoader -------------------------------------------------------------------------------------------------------


class Squares(Dataset[Any]):
    def __init__(self, length: int = 20, make: Callable[[int], Any] | None = None) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return (torch.full((3, 2), float(index * index)), index) if self.make is None else self.make(index)


class Counting(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        yield from (torch.tensor([n, info.id]) for n in range(info.id, 10, info.num_workers))


def as_mapping(index: int) -> Any:
    return {
        "image": torch.ones(2, 2) * index,
        "name": f"n{index}",
        "pair": Pair(index, [index / 2, torch.tensor(index)]),
        "array": torch.arange(3).numpy() + index,
    }


def failing(index: int) -> Any:
    if index == 7:
        raise ValueError(f"there is no {index}")
    return torch.tensor(index)


def killed(index: int) -> Any:
    if index == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.tensor(index)


def padded(batch: list[Any]) -> Any:
    return nn.utils.rnn.pad_sequence([torch.arange(int(n) % 4 + 1) for _, n in batch]), [n for _, n in batch]


def seeded(worker: int) -> None:
    torch.manual_seed(worker)


def random_number(index: int) -> Any:
    return torch.rand(2), get_worker_info().num_workers


@program
def loader_of_a_map(ctx: Any) -> None:
    for batch, numbers in DataLoader(Squares(), batch_size=6, num_workers=2, multiprocessing_context=ctx):
        show(batch, numbers, batch.is_shared(), batch.is_contiguous())
        batch.add_(1)


@program
def loader_of_an_iterable(ctx: Any) -> None:
    show(*DataLoader(Counting(), batch_size=2, num_workers=2, multiprocessing_context=ctx))


@program
def loader_with_workers_that_persist(ctx: Any) -> None:
    loader = DataLoader(
        Squares(), batch_size=4, num_workers=2, persistent_workers=True, prefetch_factor=4, multiprocessing_context=ctx
    )
    for _ in range(3):
        print(sum(float(batch.sum()) for batch, _ in loader))


@program
def loader_of_nested_samples(ctx: Any) -> None:
    loader = DataLoader(Squares(6, as_mapping), batch_size=3, num_workers=2, multiprocessing_context=ctx)
    for batch in loader:
        for key, value in batch.items():
            show(key, value)


@program
def loader_with_its_own_collate(ctx: Any) -> None:
    loader = DataLoader(Squares(), batch_size=5, num_workers=2, collate_fn=padded, multiprocessing_context=ctx)
    for batch, numbers in loader:
        show(batch, numbers)


@program
def loader_with_seeds_and_a_sampler(ctx: Any) -> None:
    dataset = Squares(8, random_number)
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(
        dataset, sampler=sampler, num_workers=2, worker_init_fn=seeded, drop_last=True, multiprocessing_context=ctx
    )
    for batch, workers in loader:
        show(batch, workers)


@program
def loader_without_batches(ctx: Any) -> None:
    show(*(batch for batch, _ in DataLoader(Squares(5), batch_size=None, num_workers=2, multiprocessing_context=ctx)))


@program
def loader_whose_dataset_raises(ctx: Any) -> None:
    seen = 0
    try:
        for _ in DataLoader(Squares(20, failing), batch_size=2, num_workers=2, multiprocessing_context=ctx):
            seen += 1
    except ValueError as error:
        print(seen, type(error).__name__, str(error).splitlines()[-1])


def unequal(index: int) -> Any:
    return torch.ones(index + 1)


@program
def loader_of_unequal_samples(ctx: Any) -> None:
    try:
        next(iter(DataLoader(Squares(4, unequal), batch_size=2, num_workers=1, multiprocessing_context=ctx)))
    except RuntimeError as error:
        print(str(error).splitlines()[-1])


@program
def loader_whose_worker_is_killed(ctx: Any) -> None:
    try:
        for _ in DataLoader(Squares(2000, killed), batch_size=1, num_workers=1, multiprocessing_context=ctx):
            pass
    except RuntimeError as error:
        print("killed by signal: Killed" in str(error) or "exited unexpectedly" in str(error))


@program
def loader_that_is_left_early(ctx: Any) -> None:
    for start in range(2):
        for batch, _ in DataLoader(Squares(400), batch_size=2, num_workers=2, multiprocessing_context=ctx):
            show(start, batch)
            break


@program
def loader_of_empty_tensors(ctx: Any) -> None:
    show(*DataLoader(Squares(4, empty_tensor), batch_size=2, num_workers=1, multiprocessing_context=ctx))


def empty_tensor(index: int) -> Any:
    return torch.ones(0, 3)


# --- share_memory_(), Hogwild -----------------------------------------------------------------------------------------


def add_one(tensor: Any, lock: Any, times: int) -> None:
    for _ in range(times):
        with lock:
            tensor += 1


@program
def tensor_shared_by_children(ctx: Any) -> None:
    tensor, lock = torch.zeros(3), ctx.Lock()
    part = tensor[1:]
    print(tensor.is_shared(), tensor.share_memory_() is tensor, tensor.is_shared(), part.is_shared())
    children = [child_of(ctx, add_one, part, lock, 50) for _ in range(3)]
    for child in children:
        joined(child)
    show(tensor, part)


def train(model: Any, lock: Any, steps: int) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        inputs = torch.randn(16, 2)
        with lock:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)).backward()
            optimizer.step()


@program
def hogwild(ctx: Any) -> None:
    torch.manual_seed(3)
    model, lock = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).share_memory(), ctx.Lock()
    print([value.is_shared() for value in model.state_dict().values()])
    inputs = torch.randn(64, 2)
    model.eval()
    before = float(nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)))
    model.train()
    for child in [child_of(ctx, train, model, lock, 120) for _ in range(2)]:
        joined(child)
    model.eval()
    after = float(nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)))
    print(after < before / 3, int(model[1].num_batches_tracked), all(p.grad is None for p in model.parameters()))


def gradients(model: Any, outbox: Any, done: Any, number: int) -> None:
    model(torch.full((1, 2), float(number))).sum().backward()
    outbox.put((number, [parameter.grad for parameter in model.parameters()]))
    done.wait()


@program
def gradients_of_children(ctx: Any) -> None:
    torch.manual_seed(3)
    model, outbox, done = nn.Linear(2, 2), ctx.Queue(), ctx.Event()
    model.share_memory()
    children = [child_of(ctx, gradients, model, outbox, done, number) for number in range(3)]
    for number, found in sorted((outbox.get() for _ in children), key=lambda pair: pair[0]):
        show(number, *found)
    done.set()
    for child in children:
        joined(child)


# --- through queues ---------------------------------------------------------------------------------------------------


def double(inbox: Any, done: Any) -> None:
    inbox.get().mul_(2)
    inbox.get().mul_(3)
    done.put("done")


@program
def sender_sees_the_receiver_s_writes(ctx: Any) -> None:
    inbox, done = ctx.Queue(), ctx.Queue()
    process = child_of(ctx, double, inbox, done)
    whole = torch.ones(6)
    inbox.put(whole[:4])
    inbox.put(whole[2:])
    print(done.get())
    show(whole, whole.is_shared())
    joined(process)


def look_at_views(inbox: Any, outbox: Any) -> None:
    views = [*inbox.get(), inbox.get()]
    views[0].fill_(7)
    outbox.put([len({view.untyped_storage().data_ptr() for view in views}), *(view.tolist() for view in views)])


@program
def views_of_one_storage(ctx: Any) -> None:
    inbox, outbox = ctx.Queue(), ctx.Queue()
    process = child_of(ctx, look_at_views, inbox, outbox)
    whole = torch.arange(12.0).reshape(3, 4)
    inbox.put((whole[1], whole.t(), whole[::2, 1::2]))
    inbox.put(whole)
    print(outbox.get())
    show(whole)
    joined(process)


@program
def all_dtypes(ctx: Any) -> None:
    dtypes = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16]
    dtypes += [torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
    show(*through(ctx, [torch.arange(3).to(dtype) for dtype in dtypes])[0])
    show(
        *through(
            ctx,
            torch.tensor([1 + 2j]).conj().resolve_conj(),
            torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8).int_repr(),
        )
    )


@program
def all_shapes(ctx: Any) -> None:
    whole = torch.arange(24).reshape(2, 3, 4)
    shapes = [torch.empty(0), torch.empty(2, 0, 3), torch.tensor(5), torch.ones(1).expand(3), whole.transpose(0, 2)]
    for found in through(ctx, [*shapes, whole[:, 1], whole[0, ::2], torch.ones(70_000)[-3:], torch.empty(0)[:0]])[0]:
        show(found, found.stride(), found.storage_offset())


@program
def sparse_tensors(ctx: Any) -> None:
    coo = torch.sparse_coo_tensor([[0, 1], [1, 0]], [3.0, 4.0], (2, 3))
    show(*through(ctx, coo, coo.coalesce(), coo.to_dense().to_sparse_csr(), coo.to_dense().to_sparse_csc()))


@program
def leaves_parameters_and_what_is_refused(ctx: Any) -> None:
    leaf = torch.ones(2, requires_grad=True)
    integers = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    show(*through(ctx, leaf, nn.Parameter(torch.zeros(2)), integers, leaf.detach() * 2))
    queue = ctx.SimpleQueue()
    for refused in (leaf * 2, lambda: 0):
        try:
            queue.put(refused)
        except Exception as error:
            print(isinstance(error, RuntimeError), "non-leaf" in str(error))
    queue.close()


@dataclass
class Episode:
    observations: list[Any]
    notes: dict[str, Any] = field(default_factory=dict)


@program
def nested_structures(ctx: Any) -> None:
    packed = nn.utils.rnn.pack_sequence([torch.arange(3.0), torch.arange(2.0)])
    episode = Episode([torch.ones(2), torch.zeros(1)], {"pair": Pair(torch.tensor(1), "b"), 3: (torch.tensor(2),)})
    found, sequence, several = through(ctx, episode, packed, {"a": [torch.ones(1)] * 2})
    show(*found.observations, found.notes)
    show(sequence.data, sequence.batch_sizes, several["a"][0] is several["a"][1])


@program
def modules_and_state_dicts(ctx: Any) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3)).eval()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    found, state, of_optimizer = through(ctx, model, model.state_dict(), optimizer.state_dict())
    print(torch.equal(found(torch.ones(1, 3)), model(torch.ones(1, 3))), found.training, list(state))
    show(*(value for value in of_optimizer["state"][0].values()))
    print(all(parameter.is_shared() for parameter in found.parameters()))


@program
def storages(ctx: Any) -> None:
    typed, untyped = torch.arange(4).untyped_storage(), torch.UntypedStorage(8).fill_(1)
    for found in through(ctx, typed, untyped, torch.UntypedStorage(0)):
        print(type(found).__name__, found.nbytes(), found.tolist(), found.device)
    print(typed.is_shared(), untyped.share_memory_().is_shared(), torch.UntypedStorage._new_shared(5).nbytes())


def serve(inbox: Any, outbox: Any) -> None:
    for task in iter(inbox.get, None):
        outbox.put(task * 2)
        inbox.task_done()
    inbox.task_done()


@program
def simple_and_joinable_queues(ctx: Any) -> None:
    inbox, outbox = ctx.JoinableQueue(), ctx.SimpleQueue()
    process = child_of(ctx, serve, inbox, outbox)
    for number in range(5):
        inbox.put(torch.full((2,), number))
        show(outbox.get())
    inbox.put(None)
    inbox.join()
    joined(process)


def act(free: Any, full: Any, buffers: Any) -> None:
    for index in iter(free.get, None):
        buffers["reward"][index] += index
        buffers["frame"][index].fill_(index * 2)
        full.put(index)


@program
def buffers_of_actors_and_a_learner(ctx: Any) -> None:
    buffers = {"reward": torch.zeros(4).share_memory_(), "frame": torch.zeros(4, 100, 100).share_memory_()}
    free, full = ctx.SimpleQueue(), ctx.SimpleQueue()
    actors = [child_of(ctx, act, free, full, buffers) for _ in range(2)]
    for _ in range(3):
        for index in range(4):
            free.put(index)
        print(sorted(full.get() for _ in range(4)))
    for _ in actors:
        free.put(None)
    for actor in actors:
        joined(actor)
    show(buffers["reward"], buffers["frame"].sum((1, 2)))


# --- pools, spawn(), pipes, managers ----------------------------------------------------------------------------------


def scaled(tensor: Any, factor: int = 2) -> Any:
    if factor == 0:
        raise ZeroDivisionError("no factor")
    return tensor * factor


@program
def pool_of_tensors(ctx: Any) -> None:
    with ctx.Pool(2) as pool:
        show(*pool.map(scaled, [torch.full((2,), n) for n in range(6)], chunksize=2))
        show(*pool.starmap(scaled, [(torch.ones(50_000)[:2], 3), (nn.Parameter(torch.ones(1)).detach(), 4)]))
        show(*pool.imap(scaled, torch.arange(4)))
        try:
            pool.apply(scaled, (torch.ones(1), 0))
        except ZeroDivisionError as error:
            print(error)


def rank(index: int, total: Any, fails: bool) -> None:
    if fails and index == 1:
        raise KeyError("rank 1")
    total[index] += index + 1


@program
def spawn_of_ranks(ctx: Any) -> None:
    total, method = torch.zeros(3).share_memory_(), ctx.get_start_method()
    mp.start_processes(rank, args=(total, False), nprocs=3, start_method=method)
    show(total)
    try:
        mp.start_processes(rank, args=(total, True), nprocs=2, start_method=method)
    except mp.ProcessRaisedException as error:
        print(error.error_index, "KeyError: 'rank 1'" in str(error))


def answer(connection: Any) -> None:
    for tensor in iter(connection.recv, None):
        tensor += 1
        connection.send(tensor)


@program
def pipes(ctx: Any) -> None:
    ours, theirs = ctx.Pipe()
    process = child_of(ctx, answer, theirs)
    for tensor in (torch.zeros(3), torch.ones(2, 2), torch.tensor(3)):
        ours.send(tensor)
        show(ours.recv(), tensor)
    ours.send(None)
    joined(process)


def fill(shared: Any) -> None:
    shared["tensor"] = torch.arange(3)


def answer_with(connection: Any, shared: Any) -> None:
    for tensor in iter(connection.recv, None):
        tensor += 1
        connection.send((tensor, shared))


@program
def a_shared_tensor_through_a_pipe(ctx: Any) -> None:
    shared = torch.zeros(3).share_memory_()
    ours, theirs = ctx.Pipe()
    process = child_of(ctx, answer_with, theirs, shared)
    for tensor in (shared, shared[1:]):
        ours.send(tensor)
        found, again = ours.recv()
        show(found, again, shared, found.data_ptr() == tensor.data_ptr(), again.data_ptr() == shared.data_ptr())
    ours.send(None)
    joined(process)


@program
def managers(ctx: Any) -> None:
    with ctx.Manager() as manager:
        shared = manager.dict()
        shared["other"] = torch.ones(2)
        shared["tensor"] = None
        process = child_of(ctx, fill, shared)
        joined(process)
        show(shared["other"], shared["tensor"])


@program
def another_sharing_strategy(ctx: Any) -> None:
    before = mp.get_sharing_strategy()
    mp.set_sharing_strategy("file_system")
    try:
        tensor = torch.arange(4)
        show(*through(ctx, tensor, [tensor[1:]]), tensor.is_shared())
    finally:
        mp.set_sharing_strategy(before)


# --- what can be done with a shared tensor ----------------------------------------------------------------------------


@program
def shared_tensors_in_use(ctx: Any) -> None:
    tensor = torch.arange(6.0).share_memory_()
    array = tensor.numpy()
    array[0] = 9
    copies = [deepcopy(tensor), tensor.clone(), tensor.to(torch.float64), tensor.reshape(2, 3), tensor[2:]]
    for copy in copies:
        show(copy, copy.is_shared())
    stream = BytesIO()
    torch.save({"t": tensor, "v": tensor[1:]}, stream)
    stream.seek(0)
    loaded = torch.load(stream)
    show(loaded["v"], loaded["t"].is_shared())
    tensor.set_(torch.ones(2))
    show(tensor, tensor.is_shared())
    parameter = nn.Parameter(torch.ones(2)).share_memory_()
    (parameter * 2).sum().backward()
    show(parameter, parameter.grad, parameter.grad.is_shared())


def main() -> None:
    method, *names = sys.argv[1:]
    context = mp.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["torch", "torch.utils.data"])
    for name in names or PROGRAMS:
        print("==", name, flush=True)
        try:
            PROGRAMS[name](context)
        except Exception as error:
            print("FAILED:", type(error).__name__, error)
            traceback.print_exc()
        # A DataLoader that is left over would be shut down in children, which a child of multiprocessing may hang in.
        gc.collect()
    print("== end", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

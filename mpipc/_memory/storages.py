"""torch's storages in memory that travels by reference.

torch has one way on which everything goes that it sends: tensors, parameters, modules, sparse and nested tensors are
reduced to storages, and an UntypedStorage, of the CPU's, to a file descriptor of /dev/shm. Only the last step is ours.
A storage that is sent, or whose share_memory_() is called, is moved *in place*: its bytes are copied to memory of
mpipc, and the storage is given this in the place of its own, so all tensors that are views of it follow. What a
receiver makes of it is one storage for one memory, as long as it lives, by whichever messages it comes.

What is not ours goes torch's way: storages of other devices, empty ones, those that torch has shared already, and
those for which there is no memory to be had. So does everything where torch lacks `_swap_data_ptr_`; then what lies in
memory of mpipc is still sent as a reference, as the batches of a DataLoader are. Through a pipe a storage that has
been moved goes as memory of mpipc (handed.py), and others torch's way.

Private names of torch that are used stand in NAMES; tests/memory/test_torch.py holds them against the torch that is
there.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import threading
from multiprocessing import context as _context
from multiprocessing import reduction as _reduction
from typing import Any

from mpipc._memory import torch_switch
from mpipc._memory.handed import hand_out, take
from mpipc._memory.memory import Memory, buffer, copied_from, for_children, memory_around, reducers
from mpipc._stdlib.private import extra_reducers

__all__ = ["NAMES", "can_move", "hook", "is_ours", "move", "storage_of"]

NAMES = (
    # Where it is in torch, its name; why, and what is done where it is not.
    (
        "UntypedStorage",
        "_swap_data_ptr_",
        "Gives a storage the bytes of another. Without it storages are not moved: they go torch's way.",
    ),
    (
        "UntypedStorage",
        "_new_shared",
        "Where collate() has the memory of a batch from. Without it, that is moved when it is sent.",
    ),
    (
        "storage",
        "_share_memory_lock_protected",
        "One thread at a time shares a storage, by torch's way or ours. Without it storages are not moved.",
    ),
    (
        "multiprocessing.reductions",
        "reduce_storage StorageWeakRef shared_cache storage_from_cache",
        "How torch sends a storage, and finds the one that it has received before; documented nowhere. Without them,"
        " nothing is done about torch at all.",
    ),
)

_torch: Any = None
_reductions: Any = None
_reduce_by_torch: Any = None  # torch's reducer for storages
_is_shared: Any = None  # the methods that torch's storages have had
_share_memory: Any = None
_new_shared: Any = None
_move: Any = None

_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have had it


os.register_at_fork(after_in_child=_after_fork)


def hook() -> bool:
    """Storages are sent as references from now on, if torch is there and has what it takes. Whether they are.

    While torch is just being imported it has not registered its reducers yet, and nothing is sent: who sends first
    asks again.
    """
    global _torch, _reductions, _reduce_by_torch
    with _lock:
        if _torch is None:
            torch: Any = sys.modules.get("torch")
            reductions: Any = sys.modules.get("torch.multiprocessing.reductions")
            names = NAMES[-1][1].split()
            if not hasattr(torch, "UntypedStorage") or not all(hasattr(reductions, name) for name in names):
                return False
            _torch, _reductions, _reduce_by_torch = torch, reductions, reductions.reduce_storage
            _replace_methods()
    cls = _torch.UntypedStorage
    # A program's own reducer stays, and goes first everywhere.
    if extra_reducers.get(cls) is _reduce_by_torch:
        _reduction.ForkingPickler.register(cls, reduce_for_child)
        for_children[cls] = reduce_for_child
        reducers[cls] = reduce_storage
    return True


def can_move() -> bool:
    """Whether this torch can give a storage other memory."""
    return _move is not None


# --- what storages do -------------------------------------------------------------------------------------------------


def _replace_methods() -> None:
    global _is_shared, _share_memory, _new_shared, _move
    cls = _torch.UntypedStorage
    _is_shared, _share_memory = cls.is_shared, cls.share_memory_
    cls.is_shared = functools.wraps(_is_shared)(is_shared)
    protected = getattr(sys.modules.get("torch.storage"), "_share_memory_lock_protected", None)
    if hasattr(cls, "_swap_data_ptr_") and protected is not None:
        _move = protected(_moved)
        cls.share_memory_ = functools.wraps(_share_memory)(share_memory_)
    if hasattr(cls, "_new_shared"):
        _new_shared = cls._new_shared.__func__
        cls._new_shared = classmethod(functools.wraps(_new_shared)(new_shared))


def is_shared(self: Any) -> bool:
    return bool(_is_shared(self)) or is_ours(self)


def share_memory_(self: Any, *args: Any, **kwargs: Any) -> Any:
    if torch_switch.is_acting() and move(self) is not None:
        return self
    return _share_memory(self, *args, **kwargs)


def new_shared(cls: Any, size: int, *args: Any, **kwargs: Any) -> Any:
    if torch_switch.is_acting() and size > 0 and _torch.device(kwargs.get("device", "cpu")).type == "cpu":
        try:
            memory = buffer(size, False)
        except OSError:
            pass
        else:
            return _known_as(_storage_in(memory, 0, size), memory, 0)
    return _new_shared(cls, size, *args, **kwargs)


def storage_of(obj: Any) -> Any:
    """The UntypedStorage of a tensor or of a storage. TypeError for what is neither."""
    if isinstance(obj, _torch.Tensor):
        return obj.untyped_storage()
    if isinstance(obj, (_torch.UntypedStorage, _torch.TypedStorage)):
        return obj.untyped()
    raise TypeError(f"{type(obj).__name__} is no tensor and no storage")


def is_ours(storage: Any) -> bool:
    """Whether a storage lies in memory that travels by reference."""
    return _place_of(storage) is not None


def move(storage: Any) -> tuple[Memory, int] | None:
    """Moves a storage into memory of mpipc, if it is not there: in which one, and where in there. None: that is not
    to be.
    """
    if storage.device.type != "cpu" or storage.nbytes() == 0:
        return None
    place = _place_of(storage)
    if place is None and _move is not None:
        place = _move(storage)
    return place


def _place_of(storage: Any) -> tuple[Memory, int] | None:
    if storage.device.type != "cpu":
        return None
    try:
        place = memory_around(storage.data_ptr(), (storage.nbytes(),), (1,), 1)
    except RuntimeError:  # it has no data: that of a FakeTensor
        return None
    return None if place is None or place[0].readonly else place


def _moved(storage: Any) -> tuple[Memory, int] | None:
    """One thread at a time does this with a storage."""
    place = _place_of(storage)
    if place is not None or _is_shared(storage):
        return place
    nbytes = storage.nbytes()
    try:
        memory = copied_from(storage.data_ptr(), nbytes)
    except OSError:
        return None
    storage._swap_data_ptr_(_storage_in(memory, 0, nbytes))
    _known_as(storage, memory, 0)
    return memory, 0


def _storage_in(buffer: Any, offset: int, nbytes: int) -> Any:
    """One that has no memory of its own: it keeps the buffer."""
    return _torch.frombuffer(buffer, dtype=_torch.uint8, count=nbytes, offset=offset).untyped_storage()


# --- sent, received ---------------------------------------------------------------------------------------------------


def _key(memory: Memory, offset: int, nbytes: int) -> Any:
    """In torch's table of storages that were received, where it has (inode, device) and names of files."""
    return "mpipc", memory.address + offset, nbytes


def _known_as(storage: Any, memory: Memory, offset: int) -> Any:
    _reductions.shared_cache[_key(memory, offset, storage.nbytes())] = _reductions.StorageWeakRef(storage)
    return storage


def reduce_storage(storage: Any) -> Any:
    place = move(storage) if torch_switch.is_enabled() and type(storage) is _torch.UntypedStorage else None
    if place is None:
        return _reduce_by_torch(storage)
    memory, offset = place
    # A child that is being started has no message that could hold the memory, but the way that all objects go.
    handle = memory if _context.get_spawning_popen() is not None else pickle.PickleBuffer(memory)
    return rebuild_storage, (handle, offset, storage.nbytes())


def reduce_for_child(storage: Any) -> Any:
    """By multiprocessing's pickler, which pickles for pipes as well, and for children of either package.

    There a storage is not moved. One that has been moved stays, since others may have it already.
    """
    if type(_context.get_spawning_popen()).__module__.startswith("mpipc."):
        return reduce_storage(storage)
    place = _place_of(storage) if type(storage) is _torch.UntypedStorage and storage.nbytes() else None
    if place is None:
        return _reduce_by_torch(storage)
    return rebuild_handed, (hand_out(place[0]), place[1], storage.nbytes())


def rebuild_handed(identifier: Any, offset: int, nbytes: int) -> Any:
    return rebuild_storage(take(identifier), offset, nbytes)


def rebuild_storage(buffer: Any, offset: int, nbytes: int) -> Any:
    if _torch is None:
        import torch.multiprocessing  # type: ignore[import-not-found, unused-ignore]  # noqa: F401

        hook()
    if not isinstance(buffer, Memory):  # of another family, or kept in between by something that cannot hold memory
        storage = _torch.UntypedStorage(nbytes)
        storage.copy_(_storage_in(bytearray(buffer), offset, nbytes))
        return storage
    key = _key(buffer, offset, nbytes)
    storage = _reductions.storage_from_cache(_torch.UntypedStorage, key)
    if storage is not None and storage.data_ptr() == key[1]:
        return storage
    return _known_as(_storage_in(buffer, offset, nbytes), buffer, offset)

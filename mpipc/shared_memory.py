"""Shared memory under a name: multiprocessing.shared_memory on System V segments.

A name belongs to one segment of the machine (of the IPC namespace). Its key follows from the name, and the whole name
stands in the segment's first page, so two names whose keys collide are never confused; the user's bytes start on the
second page, and are as many as were asked for. `ipcs -m` shows the keys as 0x6e......

A segment lives until it is unlinked. One that was created with `track=True`, the default, also goes when the last
process of the family that created it is dead (multiprocessing has its resource tracker for that). Attaching, and ending
while attached, never destroys anything.
"""

from __future__ import annotations

import errno
import itertools
import operator
import os
import sys
import types
import zlib
from collections.abc import Iterable
from functools import partial
from typing import Any, Generic, TypeVar

from mpipc._memory import named as _named
from mpipc._stdlib import private
from mpipc._stdlib.standard import standard_module
from mpipc.sysv import IPC_RMID, IPC_SET, IPC_STAT, SHM_DEST, SHM_HUGETLB, shmctl, shmid_ds

_base: Any = standard_module("shared_memory")  # its private names are unknown to type checkers
_make_filename, _SHM_NAME_PREFIX = private.segment_names()
_USE_POSIX = True  # "POSIX semantics", to whoever looks: a name can be unlinked, once, while the segment is in use

__all__ = ["ShareableList", "SharedMemory"]

_LONGEST_NAME = 255  # bytes; NAME_MAX

T = TypeVar("T")


def _hash_name(name: bytes) -> int:
    """24 bits; the same in every process and version, since segments are found by it."""
    return zlib.crc32(name) & 0xFFFFFF


def _encode(name: str) -> bytes:
    """The name as it is stored. What shm_open(3) does not accept raises the same here."""
    if "\0" in name:
        raise ValueError("embedded null character in the name of shared memory")
    encoded = name.lstrip("/").encode()
    if not encoded or b"/" in encoded:
        raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: a name is not empty and has no '/' in it", name)
    if len(encoded) > _LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, f"{os.strerror(errno.ENAMETOOLONG)} (at most {_LONGEST_NAME} bytes)", name)
    return encoded


def _checked(mode: int, group: int | str | None) -> int | None:
    """The id of the group. ValueError for a mode that cannot be meant."""
    if not isinstance(mode, int) or mode & ~0o777 or mode & 0o600 != 0o600:
        raise ValueError(f"'mode' is 0o600 and bits for the group and others, up to 0o777, not {mode!r}")
    if isinstance(group, str):
        import grp

        return grp.getgrnam(group).gr_gid
    return group


def set_track(name: str, track: bool) -> None:
    """Say whether a segment ends with the family of this process, as `track` does when it is created.

    Nothing happens if there is none of this name, if it is another user's, or if another family tracks it. ValueError
    for a name that is too long for any, as the resource tracker's is.
    """
    try:
        encoded = _encode(name)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"name too long: at most {_LONGEST_NAME} bytes") from None
        return
    except ValueError:
        return
    _named.track(encoded, _hash_name(encoded), track)


def _replaced_register() -> Any:
    """The function that a program has put in the place of resource_tracker.register(), to leave shared memory out."""
    tracker = sys.modules.get("mpipc.resource_tracker")
    register = getattr(tracker, "register", None)
    return None if register is getattr(tracker, "usual_register", None) else register


class SharedMemory(_base.SharedMemory):  # type: ignore[misc]
    """Create shared memory of `size` bytes, or attach that of this name; the constructor's first three arguments are
    multiprocessing's.

    `name`: any string without '/' and null characters, up to 255 bytes; None, when creating, makes one up.
    `create`: FileExistsError if the name is taken; otherwise FileNotFoundError if there is no such segment.
    `size`: in bytes; ignored when attaching. ValueError if it is not positive when creating.
    `track`: as said above; of no effect when attaching.
    `readonly`: attach so that `buf` cannot be written, by anybody in this process.
    `huge_pages`: create it in huge pages (SHM_HUGETLB); mpipc.sysv.LimitError says what to do if there are none.
    `mode`, `group`: who else may attach what is created: see chmod().

    PermissionError if the segment is another user's who has not permitted it. LimitError, an OSError, if a limit of the
    system is met, with its name, its value and the sysctl that raises it.
    """

    _mmap: Any
    _buf: Any
    _shmid: int

    def __init__(
        self,
        name: str | None = None,
        create: bool = False,
        size: int = 0,
        *,
        track: bool = True,
        readonly: bool = False,
        huge_pages: bool = False,
        mode: int = 0o600,
        group: int | str | None = None,
    ) -> None:
        if not size >= 0:
            raise ValueError(f"'size' must be a positive integer, not {size}")
        if create:
            self._flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
            if operator.index(size) > sys.maxsize:
                raise OverflowError(f"size {size} is more than an address space can hold")
            if readonly:
                raise ValueError("'readonly' is for attaching: what is created would stay empty")
            gid = _checked(mode, group)
        elif mode != 0o600 or group is not None:
            raise ValueError("'mode' and 'group' are for creating; chmod() changes them later")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        self._track = track
        self._readonly = readonly
        register = _replaced_register() if create and track else None
        self._track_at_once = track and register is None
        self._creation_flags = self._mode | (SHM_HUGETLB if huge_pages else 0)
        if name is None:
            while self._mmap is None:
                try:
                    self._open(_make_filename(), size)
                except FileExistsError:
                    continue
        else:
            self._open("/" + name, size)
        self._size = self._mmap.size
        self._buf = memoryview(self._mmap)
        if register is not None:
            register(self._name, "shared_memory")
        if create and (mode != 0o600 or group is not None):
            try:
                self._permit(mode, gid)
            except BaseException:
                self.close()
                self.unlink()
                raise

    def _open(self, name: str, size: int) -> None:
        encoded = _encode(name)
        hashed = _hash_name(encoded)
        for attempt in itertools.count(1):
            if not self._flags & os.O_EXCL:
                try:
                    self._mmap = _named.attach(encoded, hashed, self._readonly)
                    break
                except FileNotFoundError:
                    if not self._flags & os.O_CREAT:
                        raise
            try:
                self._mmap = _named.create(encoded, hashed, size, self._creation_flags, self._track_at_once)
                break
            except FileExistsError:
                # It has come since; and gone again, and come ...
                if self._flags & os.O_EXCL or attempt == 100:
                    raise
        self._name = name
        self._shmid = self._mmap.shmid

    def _permit(self, mode: int, gid: int | None) -> None:
        if gid is None:
            shmctl(self._shmid, IPC_SET, mode=mode)
        else:
            shmctl(self._shmid, IPC_SET, mode=mode, gid=gid)

    def close(self) -> None:
        """Let go of the memory here: `buf` is of no use afterwards. BufferError while there are slices of `buf`, or
        other objects that have its buffer.

        numpy keeps the object that an array was made of, but not its buffer: with multiprocessing the next look into
        such an array ends the process. Here the memory stays mapped as long as there is such an array. See
        multiprocessing.shared_memory.SharedMemory.close.
        """
        if self._buf is not None:
            self._buf.release()
            self._buf = None
        if self._mmap is not None:
            self._mmap.let_go()
            self._mmap = None

    def __del__(self) -> None:
        self._buf = self._mmap = None  # while there are views, the mapping lives on with them

    def __reduce__(self) -> tuple[Any, ...]:
        cls = partial(self.__class__, readonly=True) if self._readonly else self.__class__
        return cls, (self.name, False, self.size)

    @property
    def shmid(self) -> int:
        """Id of the segment, as `ipcs -m` shows it."""
        return self._shmid

    @property
    def readonly(self) -> bool:
        """Whether it was attached read-only."""
        return self._readonly

    def chmod(self, mode: int, group: int | str | None = None) -> None:
        """Say who may attach the segment from now on: `mode` has bits as for a file, 0o660 for a group, 0o644 to be
        read by everybody; a process that has it attached keeps it. `group` (a number or a name): whose it is from now
        on; at first it is that of the process that has created it.

        Nobody has such rights unless they are given here, or by the constructor's arguments of the same names. Whoever
        may write the memory may also write where its name stands, and so take the name away: see SECURITY.md.

        PermissionError if it is another user's; ValueError; KeyError for a group that is not there;
        mpipc.sysv.RemovedError if it is gone. Source: shmctl(2), IPC_SET.
        """
        self._permit(mode, _checked(mode, group))

    def stat(self) -> shmid_ds:
        """What the kernel knows about the segment: number of attachments, pids of its creator and of the last process
        that attached or detached it, times, owner, mode. shm_segsz includes the page for the name.

        Raises mpipc.sysv.RemovedError when it is unlinked and nobody has it attached any more. Source: shmctl(2).
        """
        return shmctl(self._shmid, IPC_STAT)

    def unlink(self) -> None:
        """Take the name away, and the memory once nobody has it attached any more.

        FileNotFoundError if that was done already, even if a new segment has got this name meanwhile; PermissionError.
        """
        if self._name:
            encoded = _encode(self._name)
            try:
                _named.unlink(encoded, _hash_name(encoded), self._shmid)
            except FileNotFoundError:
                if not self._has_lost_its_name():
                    raise
                shmctl(self._shmid, IPC_RMID)

    def _has_lost_its_name(self) -> bool:
        """Whether it is still there, ours, and where its name stood others may have written: see chmod()."""
        try:
            now = self.stat()
        except OSError:
            return False
        perm = now.shm_perm
        if perm.cuid != os.geteuid() or not perm.mode & 0o022 or perm.mode & SHM_DEST:
            return False
        hashed = _hash_name(_encode(self._name))
        return perm.key in (_named.key(hashed, position) for position in range(_named.PROBES))


def _bound(function: Any) -> Any:
    """The same function, but to it `SharedMemory` means mpipc's."""
    return types.FunctionType(
        function.__code__,
        {**vars(_base), "SharedMemory": SharedMemory},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


_initialize = _bound(_base.ShareableList.__init__)
_initialize.__kwdefaults__ = _base.ShareableList.__init__.__kwdefaults__


class ShareableList(_base.ShareableList, Generic[T]):  # type: ignore[misc]
    """multiprocessing.shared_memory.ShareableList in mpipc's shared memory, which is its attribute `shm`.

    A list of fixed length, of int (64 bits), float, bool, str, bytes and None. A str or bytes item can be replaced by
    one that is not longer (rounded up to 8 bytes); null bytes at its end are lost, as they are in multiprocessing.
    """

    shm: SharedMemory

    def __init__(self, sequence: Iterable[T] | None = None, *, name: str | None = None) -> None:
        try:
            _initialize(self, sequence, name=name)
        except BaseException:
            # An item that cannot be packed is noticed when the segment exists already.
            if "shm" in vars(self) and self.shm._flags & os.O_EXCL:
                self.shm.close()
                self.shm.unlink()
            raise

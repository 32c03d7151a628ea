"""Capabilities, user ids and namespaces for the tests, by way of the system calls (ctypes on libc).

Two things are done here:

- `isolate_ipc` gives the calling process an IPC namespace of its own (ipc_namespaces(7)), so that whatever
  `/proc/sysvipc` shows was made by it or by its descendants;
- `become` turns a child of root into an ordinary user that can still read the interpreter and the sources wherever
  they are (an interpreter below /root is closed to everybody else): it keeps CAP_DAC_READ_SEARCH and nothing more.
  That capability says nothing about System V objects, for which CAP_IPC_OWNER would be needed, so their permission
  checks are those that any user gets.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

NOBODY = 65534

CAP_DAC_READ_SEARCH = 2
CAP_SETGID = 6
CAP_SETUID = 7
CAP_IPC_OWNER = 15
CAP_SYS_ADMIN = 21

_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _check(result: int, call: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{call}: {os.strerror(errno)}")


def _prctl(option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _check(_libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)), f"prctl({option})")


def capabilities() -> frozenset[int]:
    """The effective capabilities of the calling thread."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(bit for bit in range(mask.bit_length()) if mask >> bit & 1)
    raise RuntimeError("no CapEff in /proc/thread-self/status")


def _set_capabilities(wanted: Iterable[int], *, inherit: bool) -> None:
    """Have exactly the capabilities `wanted`; with `inherit`, programs that are executed keep them (ambient set)."""
    wanted = tuple(wanted)
    data = (_CapData * 2)()
    for capability in wanted:
        word, bit = divmod(capability, 32)
        data[word].effective |= 1 << bit
        data[word].permitted |= 1 << bit
        data[word].inheritable |= (1 << bit) if inherit else 0
    # A capability that leaves the permitted or the inheritable set leaves the ambient set with it.
    _check(_libc.capset(ctypes.byref(_CapHeader(_CAPABILITY_VERSION_3, 0)), data), "capset")
    if inherit:
        for capability in wanted:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def can_become(uid: int = NOBODY) -> bool:
    """Whether `become(uid)` works here: root, with the right to change ids, in a namespace where `uid` exists."""
    if os.geteuid() != 0 or not capabilities() >= {CAP_SETUID, CAP_SETGID, CAP_DAC_READ_SEARCH}:
        return False
    ranges = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    return any(int(first) <= uid < int(first) + int(count) for first, _outside, count in ranges)


def become(uid: int = NOBODY, gid: int | None = None) -> None:
    """Make the calling process an ordinary user for good; what it executes may still read every file.

    For a child process only: there is no way back. Fit for subprocess's preexec_fn.
    """
    gid = uid if gid is None else gid
    os.setgroups([])
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _set_capabilities([CAP_DAC_READ_SEARCH], inherit=True)


def as_in_a_container() -> None:
    """Makes root one to whom the kernel's checks of System V objects apply."""
    _set_capabilities(capabilities() - {CAP_IPC_OWNER, CAP_SYS_ADMIN}, inherit=False)


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def _enter_user_namespace() -> None:
    """A user namespace that maps nobody but the caller, and an IPC namespace that belongs to it."""
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER | _CLONE_NEWIPC)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _user_namespace_works() -> bool:
    """Try it in a child: some systems let unshare succeed and then refuse the maps, and there is no way back."""
    child = os.fork()
    if child == 0:
        try:
            _enter_user_namespace()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def isolate_ipc(*, parent_of_workers: bool = False) -> bool:
    """Move the calling thread, and all that it starts from now on, into a new IPC namespace; False if not permitted.

    Root just does it. An ordinary user needs a user namespace around it, which the kernel refuses to a process with
    more than one thread; pytest-xdist's workers have several from the start. So their parent, which has one, enters the
    user namespace (`parent_of_workers`) and hands CAP_SYS_ADMIN, valid in there only, down to the workers; each makes
    itself an IPC namespace and gives the capability up. The tests run without any capability, as the same user id as
    before: as unprivileged as the user who started them.
    """
    privileged = os.geteuid() == 0
    if CAP_SYS_ADMIN in capabilities():
        try:
            _unshare(_CLONE_NEWIPC)
        except OSError:
            return False
        if not privileged:
            _set_capabilities(capabilities() - {CAP_SYS_ADMIN}, inherit=True)
        return True
    single_threaded = len(os.listdir("/proc/self/task")) == 1
    if privileged or capabilities() or not single_threaded or not _user_namespace_works():
        return False
    _enter_user_namespace()
    _set_capabilities([CAP_SYS_ADMIN] if parent_of_workers else [], inherit=parent_of_workers)
    return True

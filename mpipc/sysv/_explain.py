"""The text of an error: how a call is shown, which limit it met, who owns the object it was not allowed to touch.

Imported when the first error needs it. The figures are looked up after the call failed, so on a busy machine they can
be newer than the failure; an error therefore says only what they bear out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import keys, msg, sem, shm
from .errors import LimitError, LimitPermissionError, SysVError, SysVPermissionError, make
from .limits import limits, usage
from .listing import QueueInfo, SegmentInfo, SetInfo, message_queues, semaphore_sets, shared_memory_segments

Arguments = Mapping[str, object]

# ---- How a call is shown

_GET = {keys.IPC_CREAT: "IPC_CREAT", keys.IPC_EXCL: "IPC_EXCL"}
_MSG = {
    keys.IPC_NOWAIT: "IPC_NOWAIT",
    msg.MSG_NOERROR: "MSG_NOERROR",
    msg.MSG_EXCEPT: "MSG_EXCEPT",
    msg.MSG_COPY: "MSG_COPY",
}
_SHMAT = {
    shm.SHM_RDONLY: "SHM_RDONLY",
    shm.SHM_RND: "SHM_RND",
    shm.SHM_REMAP: "SHM_REMAP",
    shm.SHM_EXEC: "SHM_EXEC",
}
_FLAGS: dict[str, dict[int, str]] = {
    "msgget": _GET,
    "semget": _GET,
    "shmget": _GET | {shm.SHM_HUGETLB: "SHM_HUGETLB", shm.SHM_NORESERVE: "SHM_NORESERVE"},
    "msgsnd": _MSG,
    "msgrcv": _MSG,
    "shmat": _SHMAT,
}
_COMMANDS: dict[str, dict[int, str]] = {
    call: {getattr(module, name): name for module in (keys, own) for name in module.__all__ if name in names}
    for call, own, names in (
        ("msgctl", msg, {"IPC_RMID", "IPC_SET", "IPC_STAT", "IPC_INFO", "MSG_INFO"}),
        ("shmctl", shm, {"IPC_RMID", "IPC_SET", "IPC_STAT", "IPC_INFO", "SHM_INFO", "SHM_LOCK", "SHM_UNLOCK"}),
        (
            "semctl",
            sem,
            {"IPC_RMID", "IPC_SET", "IPC_STAT", "IPC_INFO", "SEM_INFO", "SETVAL", "SETALL"}
            | {"GETVAL", "GETALL", "GETPID", "GETNCNT", "GETZCNT"},
        ),
    )
}


def call_text(call: str, arguments: Arguments) -> str:
    """`msgget(key=0x6d006162, msgflg=IPC_CREAT|0o600)`: a call as one would write it, flags and commands by name."""
    return f"{call}({', '.join(f'{name}={_value_text(call, name, value)}' for name, value in arguments.items())})"


def _value_text(call: str, name: str, value: object) -> str:
    if isinstance(value, int):
        if name == "key":
            return "IPC_PRIVATE" if value == keys.IPC_PRIVATE else f"{value & 0xFFFFFFFF:#010x}"
        if name == "cmd":
            return _COMMANDS[call].get(value, str(value))
        if name in ("msgflg", "semflg", "shmflg"):
            return _flags_text(value, _FLAGS[call], octal=call.endswith("get"))
        if name == "mode":
            return f"0o{value:o}"
        if name == "shmaddr":
            return f"{value:#x}"
    text = value if isinstance(value, str) and name == "shmaddr" else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _flags_text(value: int, names: Mapping[int, str], octal: bool) -> str:
    found = [name for bit, name in names.items() if value & bit]
    rest = value & ~sum(bit for bit, name in names.items() if value & bit)
    if rest or not found:
        found.append(f"0o{rest:o}" if octal else f"{rest:#x}" if rest else "0")
    return "|".join(found)


# ---- Which limit was met


class Limit(NamedTuple):
    name: str
    value: int | None
    text: str
    sysctl: str | None = None


# What it limits, the sysctl, and which of the sysctl's numbers it is.
KERNEL: dict[str, tuple[str, str | None, str]] = {
    "MSGMNI": ("the most message queues there may be in this IPC namespace", "kernel.msgmni", ""),
    "MSGMAX": ("the most bytes in one message", "kernel.msgmax", ""),
    "MSGMNB": ("the most bytes in one queue (msg_qbytes) without CAP_SYS_RESOURCE", "kernel.msgmnb", ""),
    "SEMMSL": ("the most semaphores in one set", "kernel.sem", "first"),
    "SEMMNS": ("the most semaphores there may be in this IPC namespace", "kernel.sem", "second"),
    "SEMOPM": ("the most operations in one semop", "kernel.sem", "third"),
    "SEMMNI": ("the most semaphore sets there may be in this IPC namespace", "kernel.sem", "fourth"),
    "SEMVMX": ("the largest value of a semaphore", None, ""),
    "SHMMNI": ("the most shared memory segments there may be in this IPC namespace", "kernel.shmmni", ""),
    "SHMMAX": ("the most bytes in one segment", "kernel.shmmax", ""),
    "SHMALL": ("the most pages in all segments of this IPC namespace", "kernel.shmall", ""),
}


def kernel_limit(name: str) -> Limit:
    """A limit of the kernel, with its value now, and what raises it."""
    meaning, sysctl, position = KERNEL[name]
    value: int = getattr(limits(), name.lower())
    if sysctl is None:
        advice = "it is fixed in the kernel"
    elif position:
        advice = f"raise it with the {position} of the four numbers of sysctl {sysctl}"
    else:
        advice = f"raise it with sysctl {sysctl}"
    if name.endswith(("MNI", "MNS", "ALL")):
        who = who_has_them(name)
        advice += f", or remove objects that nobody needs (see ipcs){'; ' if who else ''}{who}"
    return Limit(name, value, f"{name}, {meaning}, is {value}; {advice}", sysctl)


# How much of a limit of the namespace an object takes up.
_SHARE: dict[str, tuple[Callable[[], Sequence[QueueInfo | SetInfo | SegmentInfo]], Callable[[Any], int]]] = {
    "MSGMNI": (message_queues, lambda found: 1),
    "SEMMNI": (semaphore_sets, lambda found: 1),
    "SEMMNS": (semaphore_sets, lambda found: int(found.nsems)),
    "SHMMNI": (shared_memory_segments, lambda found: 1),
    "SHMALL": (shared_memory_segments, lambda found: -(-int(found.size) // resource.getpagesize())),
}


def shares(name: str) -> Counter[int]:
    """How much each user id has of what a limit of the namespace is on; empty if that cannot be seen, or is none."""
    users: Counter[int] = Counter()
    if name in _SHARE:
        entries, share = _SHARE[name]
        with contextlib.suppress(OSError):
            for found in entries():
                users[found.cuid] += share(found)
    return users


def who_has_them(name: str) -> str:
    """The users that have the most of it: anybody can use up a limit of the namespace. Empty if there are none."""
    return ", ".join(f"user id {uid} has {count}" for uid, count in shares(name).most_common(3))


def _read_sysctl(name: str) -> int | None:
    try:
        with open("/proc/sys/" + name.replace(".", "/"), encoding="ascii") as file:
            return int(file.read().split()[0])
    except (OSError, ValueError):
        return None


def _sysctl(name: str, meaning: str) -> Limit:
    value = _read_sysctl(name)
    return Limit(name.rpartition(".")[2], value, f"{meaning}; sysctl {name} is {value}, raise it", name)


_MEMORY = Limit("memory", None, "the kernel has no memory for it (see free(1), and the memory limit of the cgroup)")


def _number(arguments: Arguments, name: str) -> int:
    value = arguments.get(name, 0)
    return value if isinstance(value, int) else 0


def _entry(call: str, arguments: Arguments) -> QueueInfo | SetInfo | SegmentInfo | None:
    """The object a call was about, found by its id or its key."""
    entries: Sequence[QueueInfo | SetInfo | SegmentInfo]
    try:
        if call.startswith("msg"):
            entries = message_queues()
        elif call.startswith("sem"):
            entries = semaphore_sets()
        else:
            entries = shared_memory_segments()
    except OSError:
        return None
    if call.endswith("get"):
        key = _number(arguments, "key") & 0xFFFFFFFF
        return next((entry for entry in entries if key and entry.key & 0xFFFFFFFF == key), None)
    index = 1  # key, then the id, in all three
    return next((entry for entry in entries if entry[index] == arguments.get(entry._fields[index])), None)


def _msgget(number: int, arguments: Arguments) -> Limit | str:
    return kernel_limit("MSGMNI") if number == errno.ENOSPC else ""


def _msgsnd(number: int, arguments: Arguments) -> Limit | str:
    if number != errno.EINVAL:
        return ""
    if _number(arguments, "mtype") < 1:
        return "mtype must be 1 or more"
    return kernel_limit("MSGMAX") if _number(arguments, "msgsz") > limits().msgmax else ""


def _msgrcv(number: int, arguments: Arguments) -> Limit | str:
    if number == errno.E2BIG:
        size = _number(arguments, "msgsz")
        text = f"the message has more than {size} bytes and stays in the queue; MSG_NOERROR would cut it off"
        return Limit("msgsz", size, text)
    if _number(arguments, "msgflg") & msg.MSG_COPY:
        if number == errno.ENOSYS:
            return "MSG_COPY needs a kernel with CONFIG_CHECKPOINT_RESTORE"
        if number == errno.EINVAL:
            return "MSG_COPY needs IPC_NOWAIT and does not go with MSG_EXCEPT"
    return ""


def _msgctl(number: int, arguments: Arguments) -> Limit | str:
    if number == errno.EPERM and _number(arguments, "msg_qbytes") > limits().msgmnb:
        entry = _entry("msgctl", arguments)
        if entry is not None and os.geteuid() in (0, entry.uid, entry.cuid):
            return kernel_limit("MSGMNB")
    return ""


def _semget(number: int, arguments: Arguments) -> Limit | str:
    nsems = _number(arguments, "nsems")
    if number == errno.ENOSPC:
        return kernel_limit("SEMMNI" if usage().sets >= limits().semmni else "SEMMNS")
    if number == errno.EINVAL:
        if nsems > limits().semmsl:
            return kernel_limit("SEMMSL")
        entry = _entry("semget", arguments)
        if isinstance(entry, SetInfo) and nsems > entry.nsems:
            return Limit("sem_nsems", entry.nsems, f"the set with this key has {entry.nsems} semaphore(s)")
        return "a new set needs at least one semaphore"
    return ""


def _semop(number: int, arguments: Arguments) -> Limit | str:
    if number == errno.E2BIG:
        return kernel_limit("SEMOPM")
    if number == errno.ERANGE:
        return kernel_limit("SEMVMX")
    if number == errno.EFBIG:
        return _set_size("semop", arguments)
    if number == errno.EINVAL and not arguments.get("sops"):
        return "sops must hold at least one operation"
    return ""


def _semctl(number: int, arguments: Arguments) -> Limit | str:
    if number == errno.ERANGE:
        return kernel_limit("SEMVMX")
    single = (sem.GETVAL, sem.SETVAL, sem.GETPID, sem.GETNCNT, sem.GETZCNT)
    return _set_size("semctl", arguments) if number == errno.EINVAL and arguments.get("cmd") in single else ""


def _set_size(call: str, arguments: Arguments) -> Limit | str:
    entry = _entry(call, arguments)
    if not isinstance(entry, SetInfo):
        return ""
    text = f"the set has {entry.nsems} semaphore(s), numbered from 0 to {entry.nsems - 1}"
    return Limit("sem_nsems", entry.nsems, text)


def _shmget(number: int, arguments: Arguments) -> Limit | str:
    size = _number(arguments, "size")
    huge = _number(arguments, "shmflg") & shm.SHM_HUGETLB
    if number == errno.ENOSPC:
        return kernel_limit("SHMMNI" if usage().segments >= limits().shmmni else "SHMALL")
    if number == errno.ENFILE:
        return _sysctl("fs.file-max", "the system has no file left, and a segment needs one")
    if number == errno.EPERM and huge:
        return "SHM_HUGETLB needs CAP_IPC_LOCK, or membership in the group sysctl vm.hugetlb_shm_group names"
    if number == errno.ENOMEM and huge:
        return _sysctl("vm.nr_hugepages", "there are not enough free huge pages")
    if number == errno.EINVAL:
        entry = _entry("shmget", arguments)
        if isinstance(entry, SegmentInfo) and size > entry.size:
            return Limit("shm_segsz", entry.size, f"the segment with this key has {entry.size} bytes")
        if size > limits().shmmax:
            return kernel_limit("SHMMAX")
        if size < limits().shmmin:
            return "a new segment needs at least one byte"
        if huge:
            return "this machine has no huge pages of this size (see /sys/kernel/mm/hugepages)"
    return ""


def _shmat(number: int, arguments: Arguments) -> Limit | str:
    if number == errno.ENOMEM:
        value, _ = resource.getrlimit(resource.RLIMIT_AS)
        if value != resource.RLIM_INFINITY:
            text = f"the address space has no room for it; RLIMIT_AS is {value} bytes, raise it with ulimit -v"
            return Limit("RLIMIT_AS", value, text)
        return _sysctl("vm.max_map_count", "the address space has no room for it, or too many mappings")
    if number == errno.EINVAL:
        if arguments.get("shmaddr") is None:
            return "SHM_REMAP needs an address" if _number(arguments, "shmflg") & shm.SHM_REMAP else ""
        return (
            f"shmaddr must be a multiple of SHMLBA ({shm.SHMLBA}), or SHM_RND given, and the addresses from there on"
            " must be free, or SHM_REMAP given"
        )
    return ""


def _shmdt(number: int, arguments: Arguments) -> Limit | str:
    return "it is detached already" if number == errno.EINVAL else ""


def _shmctl(number: int, arguments: Arguments) -> Limit | str:
    if arguments.get("cmd") == shm.SHM_LOCK and number in (errno.ENOMEM, errno.EPERM):
        value, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if number == errno.ENOMEM or value == 0:
            text = f"RLIMIT_MEMLOCK, the most bytes this user may lock, is {value}; raise it with ulimit -l"
            return Limit("RLIMIT_MEMLOCK", value, text)
    return ""


_EXPLAIN: dict[str, Callable[[int, Arguments], Limit | str]] = {
    "msgget": _msgget,
    "msgsnd": _msgsnd,
    "msgrcv": _msgrcv,
    "msgctl": _msgctl,
    "semget": _semget,
    "semop": _semop,
    "semtimedop": _semop,
    "semctl": _semctl,
    "shmget": _shmget,
    "shmat": _shmat,
    "shmdt": _shmdt,
    "shmctl": _shmctl,
}


def explain(number: int, call: str, arguments: Arguments) -> SysVError:
    """The exception for an errno that wants an explanation."""
    denied = number in (errno.EACCES, errno.EPERM)
    found = _EXPLAIN[call](number, arguments) if call in _EXPLAIN else ""
    if number == errno.ENOMEM and not found:
        found = _MEMORY
    if isinstance(found, Limit):
        error = make(LimitPermissionError if denied else LimitError, number, call, arguments, found.text)
        error.limit, error.value, error.sysctl = found.name, found.value, found.sysctl
        return error
    if denied:
        return make(SysVPermissionError, number, call, arguments, found or _owner_text(number, call, arguments))
    return make(SysVError, number, call, arguments, found)


def _owner_text(number: int, call: str, arguments: Arguments) -> str:
    if call == "ftok" or (entry := _entry(call, arguments)) is None:
        return ""
    owner = f"uid {entry.uid}" if entry.uid == entry.cuid else f"uid {entry.uid} and was created by uid {entry.cuid}"
    if number == errno.EPERM:
        return f"the object belongs to {owner}, and this process runs as uid {os.geteuid()}"
    return (
        f"the object belongs to {owner}, gid {entry.gid}, with mode 0o{entry.perms & 0o777:03o}, and this process runs"
        f" as uid {os.geteuid()}, gid {os.getegid()}"
    )

"""What mpipc.sysv raises.

Every failed system call is a SysVError, and so an OSError with the errno of the manual page. Where the standard library
has a subclass of OSError for the errno, ours is a subclass of that one too: `except PermissionError` and
`except SysVError` both work.

    SysVError(OSError)
        SysVFileExistsError(FileExistsError)        EEXIST
        SysVFileNotFoundError(FileNotFoundError)    ENOENT: no object with this key
        SysVPermissionError(PermissionError)        EACCES, EPERM
        SysVBlockingIOError(BlockingIOError)        EAGAIN, ENOMSG: the call would have to wait
            SysVTimeoutError(TimeoutError)          EAGAIN: semtimedop waited as long as it was asked to
        RemovedError                                EIDRM; EINVAL if no object has this id (any more)
        LimitError                                  ENOSPC, E2BIG, ERANGE, EFBIG, ENOMEM, ENFILE; EINVAL for a size
            LimitPermissionError(SysVPermissionError)   EPERM: a limit that only a privileged process may exceed
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

__all__ = [
    "LimitError",
    "LimitPermissionError",
    "RemovedError",
    "SysVBlockingIOError",
    "SysVError",
    "SysVFileExistsError",
    "SysVFileNotFoundError",
    "SysVPermissionError",
    "SysVTimeoutError",
]


class SysVError(OSError):
    """A System V IPC call failed.

    `call` is its name, `arguments` what it was called with (the length of a message, not the message), and `hint`
    says what to do about it, where that is known. The text is put together only when somebody reads it: a call that
    would block is an everyday event for the layers above.
    """

    call: str = ""
    arguments: Mapping[str, object] = MappingProxyType({})
    hint: str = ""

    def __str__(self) -> str:
        from ._explain import call_text

        text = f"{call_text(self.call, self.arguments)}: {self.strerror}" if self.call else str(self.strerror)
        return f"[Errno {self.errno}] {text}{'; ' if self.hint else ''}{self.hint}"


class SysVFileExistsError(SysVError, FileExistsError):
    """IPC_CREAT | IPC_EXCL was asked for, and there is an object with this key (EEXIST)."""


class SysVFileNotFoundError(SysVError, FileNotFoundError):
    """No object has this key, and IPC_CREAT was not asked for (ENOENT)."""


class SysVPermissionError(SysVError, PermissionError):
    """The object's mode does not allow this (EACCES), or only its owner may do it (EPERM)."""


class SysVBlockingIOError(SysVError, BlockingIOError):
    """The call would have to wait, and IPC_NOWAIT says not to (EAGAIN; ENOMSG from msgrcv)."""


class SysVTimeoutError(SysVBlockingIOError, TimeoutError):
    """semtimedop() waited for as long as it was asked to (EAGAIN)."""


class RemovedError(SysVError):
    """The object is gone: removed during the call (EIDRM), or its id names nothing (EINVAL)."""


class LimitError(SysVError):
    """A limit of the kernel, or of the caller's own buffer, is too low for this call.

    `limit` is its name in the manual pages, `value` its value when the call failed, and `sysctl` the setting
    that raises it, or None if it is fixed or depends on something other than a sysctl.
    """

    limit: str = ""
    value: int | None = None
    sysctl: str | None = None


class LimitPermissionError(LimitError, SysVPermissionError):
    """The value is above a limit that only a process with CAP_SYS_RESOURCE may exceed (EPERM)."""


# What needs no look at the kernel's figures, and so costs no system call and no import. Permission errors and limits go
# through _explain.
_SIMPLE: dict[int, type[SysVError]] = {
    errno.EAGAIN: SysVBlockingIOError,
    errno.ENOMSG: SysVBlockingIOError,
    errno.EEXIST: SysVFileExistsError,
    errno.ENOENT: SysVFileNotFoundError,
    errno.EIDRM: RemovedError,
}

_AnyError = TypeVar("_AnyError", bound=SysVError)


def make(kind: type[_AnyError], number: int, call: str, arguments: Mapping[str, object], hint: str = "") -> _AnyError:
    """An exception of the class `kind`; only (errno, strerror) are its args, so that it pickles like any OSError."""
    error = kind(number, os.strerror(number))
    error.call = call
    error.arguments = arguments
    error.hint = hint
    return error


def from_errno(number: int, call: str, arguments: Mapping[str, object], gone: bool = False) -> SysVError:
    """The exception for a failed call. `gone` says that the kernel knows no object with the id it was given."""
    if gone:
        return make(RemovedError, number, call, arguments, "no object of this IPC namespace has this id (any more)")
    kind = _SIMPLE.get(number)
    if kind is not None:
        return make(kind, number, call, arguments)
    from ._explain import explain

    return explain(number, call, arguments)

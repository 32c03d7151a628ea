"""Is there a System V IPC to work with? Answered without any compiled module, so that the answer can be a sentence."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

__all__ = ["require_sysv_ipc"]

_IPC_INFO = 3  # the same number on every architecture, see <linux/ipc.h>


def require_sysv_ipc(
    platform: str | None = None, proc: str = "/proc/sysvipc", probe: Callable[[], int] | None = None
) -> None:
    """Raise ImportError, with one sentence that says why, unless this kernel offers System V IPC.

    The parameters exist for tests: a value for `sys.platform`, the folder in which the kernel lists its objects, and
    a system call that returns 0 or an errno. The call is made only where the folder is missing, which is a
    kernel built without CONFIG_SYSVIPC or merely a /proc that is not mounted.
    """
    platform = sys.platform if platform is None else platform
    if not platform.startswith("linux") or hasattr(sys, "getandroidapilevel"):
        name = "android" if platform.startswith("linux") else platform
        raise ImportError(f"mpipc needs Linux, whose System V IPC it is built on, and this is {name}.")
    if os.path.isdir(proc):
        return
    number = (probe or _probe)()
    if number == errno.ENOSYS:
        raise ImportError(
            "mpipc needs System V IPC, and this kernel was built without it (CONFIG_SYSVIPC) or forbids it:"
            f" msgctl() fails with ENOSYS and {proc} does not exist."
        )


def _probe() -> int:
    """The errno of msgctl(0, IPC_INFO), a call that changes nothing and needs no object and no permission."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    info = ctypes.create_string_buffer(256)  # struct msginfo has 30 bytes
    return 0 if libc.msgctl(0, _IPC_INFO, info) >= 0 else ctypes.get_errno()

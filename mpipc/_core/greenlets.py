"""Greenlets, where a library has put them in the place of threads: gevent and eventlet, by monkey patching.

All greenlets of a thread stand still while one of them sleeps in the kernel. So who waits beside others asks here how
to wait, and what must be a thread, because it does nothing but sleep in the kernel, is started here.

The libraries are found among the modules that are loaded; nothing here imports one. Whether a thread has greenlets is
told by its hub: it has none as long as nobody has started one, and then a wait is an ordinary wait.

A child of fork(2) inherits the greenlets of its parent, and they would go on in it as soon as it let them: so it waits
in the kernel, but for what multiprocessing lets them run for, too (`as_everybody`).
"""

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["are_here", "inherit", "pause", "readable", "start_thread"]

_inherited: Any = None  # the hub of the thread that forked this process


def _gevents_hub() -> Any:
    monkey = sys.modules.get("gevent.monkey")
    local = sys.modules.get("gevent._hub_local")
    if monkey is None or local is None or not monkey.is_module_patched("time"):
        return None
    return local.get_hub_if_exists()


def _eventlets_hub() -> Any:
    patcher = sys.modules.get("eventlet.patcher")
    hubs = sys.modules.get("eventlet.hubs")
    if patcher is None or hubs is None or not patcher.is_monkey_patched("time"):
        return None
    hub = getattr(getattr(hubs, "_threadlocal", None), "hub", None)
    return getattr(hub, "greenlet", None)


def _hub() -> Any:
    """The greenlet to which the others of this thread switch when they wait; None while there is none."""
    hub = _gevents_hub()
    return _eventlets_hub() if hub is None else hub  # a greenlet that has not begun is false


def inherit() -> None:
    """After fork(2), in the child."""
    global _inherited
    _inherited = _hub()


def are_here(as_everybody: bool = False) -> bool:
    """Whether this thread may have greenlets that can run while this one waits."""
    hub = _hub() if "greenlet" in sys.modules else None
    if hub is None or sys.modules["greenlet"].getcurrent() is hub:
        return False
    return as_everybody or hub is not _inherited


def pause(seconds: float) -> None:
    """Let the other greenlets of this thread run for so long. May raise what somebody throws into this one."""
    time.sleep(seconds)


def readable(descriptor: int, seconds: float) -> None:
    """Let them run until a file descriptor is readable, or so long."""
    # One of its own: eventlet wants no two that wait for the same, and who closes it does not know of us.
    descriptor = os.dup(descriptor)
    try:
        select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)


def _start_new_thread() -> Callable[..., object] | None:
    """_thread.start_new_thread() where a library has something else in its place, else None."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return monkey.get_original("_thread", "start_new_thread")  # type: ignore[no-any-return]
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        return patcher.original("_thread").start_new_thread  # type: ignore[no-any-return]
    return None


def start_thread(target: Callable[..., object], args: tuple[Any, ...], name: str) -> None:
    """Start a thread of the kernel that nobody waits for, a daemon. RuntimeError: there can be no new one."""
    start = _start_new_thread()
    if start is None:
        threading.Thread(target=target, args=args, name=name, daemon=True).start()
    else:
        start(target, args)

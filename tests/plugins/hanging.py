"""A test that hangs: the stacks of all threads of pytest's process, and of all processes that the test has started.

pytest-timeout dumps those of pytest and ends it. Just before, the others are listed with the kernel function they sleep
in, and with Python stacks if py-spy is installed; they get SIGUSR1 if they have faulthandler on it (all forked children
have); then they are killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import descendants, dump_stacks, kill_process

from plugins.isolation import State


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """In place of pytest-timeout's own timer, which would leave the children running when it ends the process.

    The timer is a thread and needs the GIL. Where a C function never lets go of it, faulthandler, which needs nothing,
    ends the process a little later.
    """
    timer = threading.Timer(settings.timeout, _time_out, [item, settings])
    timer.daemon = True
    timer.name = "timeout"
    faulthandler.dump_traceback_later(settings.timeout + 30, exit=True, file=State.terminal)

    def cancel() -> None:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    timer.start()
    # Until it sleeps: what it allocates may be under a lock when the test forks, which glibc looks after and the
    # address sanitizer (of gcc 12) does not. Then the child waits for a thread that it does not have.
    while not timer.finished._cond._waiters:  # type: ignore[attr-defined]
        time.sleep(0)
    return True


def _time_out(item: pytest.Item, settings: Any) -> None:
    import pytest_timeout

    children = descendants()
    print(f"\n--- {item.nodeid} timed out after {settings.timeout:g} s", file=State.terminal)
    faulthandler.dump_traceback(State.terminal, all_threads=True)
    print(f"--- its {len(children)} processes:", file=State.terminal)
    print(dump_stacks(process.pid for process in children), file=State.terminal)
    for process in children:
        if _catches(process.pid, signal.SIGUSR1):
            print(f"--- stacks of pid {process.pid}:", file=State.terminal)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)
    time.sleep(0.5)  # for the children to write their stacks; nothing tells us when they have
    for process in children:
        kill_process(process)
    pytest_timeout.timeout_timer(item, settings)


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler; where it has none, SIGUSR1 would kill it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False

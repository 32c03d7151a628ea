"""Where and with what it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import native

PEERS = ("mpipc", "faster-fifo", "sysv-ipc", "posix-ipc", "loky", "pebble", "numpy", "matplotlib")

LIMITS = (
    "kernel/msgmni",
    "kernel/msgmnb",
    "kernel/msgmax",
    "kernel/sem",
    "kernel/shmmni",
    "fs/mqueue/msg_max",
    "fs/pipe-max-size",
)


def versions() -> dict[str, str]:
    """Of the packages; "not installed" for one that is not there."""
    found = {}
    for name in PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = _imported(name)
    return found


def _imported(name: str) -> str:
    """mpipc may run from its source tree, which is not an installed package."""
    if name != "mpipc":
        return "not installed"
    import mpipc

    return f"{mpipc.__version__} (not installed: {Path(mpipc.__file__).parent})"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def virtual() -> bool:
    """Whether the processor says that there is a hypervisor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return any(line.startswith("flags") and " hypervisor" in line for line in lines)


def compiler() -> str:
    try:
        result = subprocess.run([*native.compiler()[:1], "--version"], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return result.stdout.partition("\n")[0]


def limits() -> dict[str, str]:
    found = {}
    for name in LIMITS:
        path = Path("/proc/sys", name)
        if path.exists():
            found[name.replace("/", ".")] = " ".join(path.read_text().split())
    return found


def facts() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)),
        "virtual machine": virtual(),
        "memory": memory(),
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": compiler(),
        "load at the start": os.getloadavg()[0],
        "limits": limits(),
        "versions": versions(),
    }

"""What the tests share. `from support import ...` works in every test, and in the scripts that `run_script` runs.

What is needed everywhere is imported here: polling, what the kernel holds, which processes exist, scripts. The rest is
imported from the module that has it: programs in C, tasks of pools, a kernel without SEM_UNDO.
"""

from __future__ import annotations

from support.kernel import KernelObjects, describe_object, kernel_objects, kernel_rows, sysctl
from support.places import SANITIZED, START_METHODS, TEST_ID_VARIABLE, TESTS, package_folder
from support.privileges import NOBODY, become, can_become
from support.process_table import (
    ProcessInfo,
    child_processes,
    descendants,
    dump_stacks,
    ipc_namespace,
    kill_process,
    processes,
)
from support.scripts import Script, ScriptTimeout, run_script, start_script
from support.waiting import wait_until

__all__ = [
    "NOBODY",
    "SANITIZED",
    "START_METHODS",
    "TESTS",
    "TEST_ID_VARIABLE",
    "KernelObjects",
    "ProcessInfo",
    "Script",
    "ScriptTimeout",
    "become",
    "can_become",
    "child_processes",
    "descendants",
    "describe_object",
    "dump_stacks",
    "ipc_namespace",
    "kernel_objects",
    "kernel_rows",
    "kill_process",
    "package_folder",
    "processes",
    "run_script",
    "start_script",
    "sysctl",
    "wait_until",
]

"""PyInstaller's hook: what it does not find by itself.

Most imports are in compiled modules, or in functions that are called later; and the reaper is a program beside one of
the modules.
"""

from pathlib import Path

from PyInstaller.utils.hooks import (  # type: ignore[import-untyped, unused-ignore]
    collect_submodules,
    get_package_paths,
)

hiddenimports = [*collect_submodules("mpipc"), *collect_submodules("multiprocessing")]
reaper = Path(get_package_paths("mpipc")[1], "_core", "mpipc-reaper")
binaries = [(str(reaper), "mpipc/_core")]

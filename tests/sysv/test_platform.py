"""Where there is no System V IPC, the import says so, before anything compiled is loaded."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest
from support import run_script

from mpipc.sysv import _platform
from mpipc.sysv._platform import require_sysv_ipc


def never() -> NoReturn:
    raise AssertionError("this system call was not needed")


def test_this_machine_will_do() -> None:
    require_sysv_ipc(probe=never)


def test_another_platform(tmp_path: Path) -> None:
    for platform in ("darwin", "win32", "freebsd14", "android"):
        with pytest.raises(ImportError, match=f"needs Linux.*this is {platform}"):
            require_sysv_ipc(platform, str(tmp_path), never)


def test_a_kernel_without_it(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="CONFIG_SYSVIPC") as caught:
        require_sysv_ipc(proc=str(tmp_path / "missing"), probe=lambda: errno.ENOSYS)
    assert str(caught.value).count(".") == 1 and str(caught.value).endswith(".")


def test_without_proc_the_kernel_is_asked(tmp_path: Path) -> None:
    require_sysv_ipc(proc=str(tmp_path / "missing"), probe=lambda: 0)
    require_sysv_ipc(proc=str(tmp_path / "missing"))
    assert _platform._probe() == 0


@pytest.mark.parametrize("module", ["mpipc", "mpipc.sysv"])
def test_import_on_another_platform(module: str) -> None:
    root = Path(_platform.__file__).parents[2]
    result = run_script(
        f"""
        import sys

        sys.path.insert(0, {str(root)!r})
        sys.platform = "plan9"
        try:
            import {module}
        except ImportError as error:
            print(error)
        print(sorted(name for name in sys.modules if name.startswith("mpipc.sysv.") and name != "mpipc.sysv._platform"))
        """
    )
    assert result.stdout == "mpipc needs Linux, whose System V IPC it is built on, and this is plan9.\n[]\n"

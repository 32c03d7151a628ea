"""What tools that freeze programs have to know of mpipc."""

from __future__ import annotations

from pathlib import Path

__all__ = ["hook_folders"]


def hook_folders() -> list[str]:
    """Where PyInstaller finds hook-mpipc.py: this is what the package's entry point `pyinstaller40` names."""
    return [str(Path(__file__).parent)]

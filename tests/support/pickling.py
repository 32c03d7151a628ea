"""Which of the packages that pickle more than pickle are there."""

from __future__ import annotations

import importlib.util

import pytest

__all__ = ["dill_works", "needs_cloudpickle", "needs_dill"]


def dill_works() -> bool:
    """It is installed, and knows this Python's code objects: a release of dill is for the Pythons before it."""
    if importlib.util.find_spec("dill") is None:
        return False
    dill = importlib.import_module("dill")
    try:
        return dill.loads(dill.dumps(lambda: 3))() == 3  # type: ignore[no-any-return]
    except Exception:
        return False


needs_dill = pytest.mark.skipif(not dill_works(), reason="dill is not installed, or not for this Python")
needs_cloudpickle = pytest.mark.skipif(
    importlib.util.find_spec("cloudpickle") is None, reason="cloudpickle is not installed"
)

"""Where things are, and what the tests agree on."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

TEST_ID_VARIABLE = "MPIPC_TEST_ID"
"""Environment variable that names the running test; every program started by the test inherits it."""

START_METHODS = ("fork", "spawn", "forkserver")

TESTS = Path(__file__).resolve().parents[1]

SANITIZED = "MPIPC_SANITIZED" in os.environ
"""Whether this is `make sanitize`: the address sanitizer takes terabytes of address space."""


def package_folder() -> Path | None:
    """Where `import mpipc` finds the package, without importing it."""
    spec = importlib.util.find_spec("mpipc")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None

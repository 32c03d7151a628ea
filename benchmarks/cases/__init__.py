"""All cases, one module a subject. None imports what it measures: see harness.py."""

from harness import Registry

CASES = Registry()

from . import (
    locks,
    wakeups,
    queues,
    streams,
    broadcasts,
    messages,
    arrays,
    pools,
    objects,
    footprint,
    raw_calls,
    mechanisms,
)  # noqa: E402, F401, I001
from . import tensors  # noqa: E402, F401

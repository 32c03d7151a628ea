"""All cases, one module a subject. None imports what it measures: see harness.py."""

from harness import Registry

CASES = Registry()

from . import locks, wakeups, queues, streams, broadcasts, messages, arrays  # noqa: E402, F401, I001
from . import pools, objects, footprint, raw_calls, mechanisms, tensors  # noqa: E402, F401

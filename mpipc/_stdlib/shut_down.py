"""queue.ShutDown, which the standard library has from Python 3.13 on, in every Python.

Loaded when it is asked for or raised: `import mpipc` does not need it.
"""

import sys

__all__ = ["ShutDown"]

if sys.version_info >= (3, 13):
    from queue import ShutDown
else:

    class ShutDown(Exception):
        """Raised by put() and get() of a queue that was shut down: see Queue.shutdown()."""

        __module__ = "mpipc.queues"  # where pickle finds it

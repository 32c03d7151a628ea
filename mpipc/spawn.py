"""multiprocessing.spawn itself: how a fresh interpreter becomes a child process, with its executable and `__main__`.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys

from mpipc._stdlib.standard import standard_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing.spawn import *  # noqa: F403

sys.modules[__name__] = standard_module("spawn")

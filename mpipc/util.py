"""multiprocessing.util itself: finalizers, logging and the hooks that run after a fork.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys

from mpipc._stdlib.standard import standard_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing.util import *  # noqa: F403

sys.modules[__name__] = standard_module("util")

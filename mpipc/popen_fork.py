"""multiprocessing.popen_fork itself: a forked child needs no help from us; mpipc._core hooks into os.fork().

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys

from mpipc._stdlib.standard import standard_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing.popen_fork import *  # noqa: F403

sys.modules[__name__] = standard_module("popen_fork")

"""multiprocessing.dummy.connection itself: pipes between threads.

Under either name this is one and the same module object.
"""

import sys

from mpipc._stdlib.standard import standard_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing.dummy.connection import *  # noqa: F403

sys.modules[__name__] = standard_module("dummy.connection")

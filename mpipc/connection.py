"""multiprocessing.connection itself: pipes and sockets between processes, which need no System V IPC.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys
from multiprocessing import connection
from multiprocessing.connection import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = connection

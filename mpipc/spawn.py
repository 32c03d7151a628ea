"""multiprocessing.spawn itself: how a fresh interpreter becomes a child process, with its executable and `__main__`.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys
from multiprocessing import spawn
from multiprocessing.spawn import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = spawn

"""multiprocessing.forkserver itself: one fork server a program, whoever asked for it first.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys
from multiprocessing import forkserver
from multiprocessing.forkserver import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = forkserver

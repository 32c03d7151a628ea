"""multiprocessing.popen_fork itself: a forked child needs no help from us; mpipc._core hooks into os.fork().

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys
from multiprocessing import popen_fork
from multiprocessing.popen_fork import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = popen_fork

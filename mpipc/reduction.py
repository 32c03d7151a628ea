"""multiprocessing.reduction itself: how objects are pickled for other processes, and what programs register for it.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys
from multiprocessing import reduction
from multiprocessing.reduction import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = reduction

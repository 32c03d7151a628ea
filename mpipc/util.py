"""multiprocessing.util itself: finalizers, logging and the hooks that run after a fork.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys
from multiprocessing import util
from multiprocessing.util import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = util

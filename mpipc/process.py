"""multiprocessing.process itself: the current process, its parent and its children are the same for both packages.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys
from multiprocessing import process
from multiprocessing.process import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = process

"""multiprocessing.resource_sharer itself: the thread that hands descriptors to processes which unpickle them.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys
from multiprocessing import resource_sharer
from multiprocessing.resource_sharer import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = resource_sharer

"""multiprocessing.resource_tracker itself: the process that cleans up the standard library's named resources.

Under either name this is one and the same module object, so its state is one, whichever way it is read or assigned.
"""

import sys
from multiprocessing import resource_tracker
from multiprocessing.resource_tracker import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = resource_tracker

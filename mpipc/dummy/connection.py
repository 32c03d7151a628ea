"""multiprocessing.dummy.connection itself: pipes between threads.

Under either name this is one and the same module object.
"""

import sys
from multiprocessing.dummy import connection
from multiprocessing.dummy.connection import *  # noqa: F403  (for type checkers; at run time the line below counts)

sys.modules[__name__] = connection

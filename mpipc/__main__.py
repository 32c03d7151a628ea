"""python -m mpipc"""

import sys

from mpipc.cli import main

sys.exit(main())

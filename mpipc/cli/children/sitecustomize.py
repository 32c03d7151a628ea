"""Puts mpipc in the place of multiprocessing in every Python that is started below `python -m mpipc run --children`.

That puts this folder first into PYTHONPATH, and site imports `sitecustomize` (see the module site). The one that would
have been found otherwise is run after this.
"""

import os
import sys


def _install() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    path = sys.path
    sys.path = [*path, os.path.dirname(os.path.dirname(os.path.dirname(here)))]
    try:
        from mpipc._stdlib.also import stand_in
        from mpipc._stdlib.install import install
    except ImportError as error:  # another Python, say, for which mpipc is not compiled
        print(f"mpipc: this Python goes on with multiprocessing: {error}", file=sys.stderr)
        return
    finally:
        sys.path = path
    stand_in(os.environ.get("MPIPC_ALSO", "").split())
    install()


_install()
ours = sys.modules.pop("sitecustomize")
try:
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
    sys.modules["sitecustomize"] = ours  # where import looks for what it has loaded

"""The resource tracker kept from shared memory altogether: register() and unregister() replaced (bpo-38119)."""

import subprocess
import sys
from multiprocessing import resource_tracker, shared_memory


def remove_shm_from_resource_tracker():
    register, unregister = resource_tracker.register, resource_tracker.unregister

    def fix_register(name, rtype):
        if rtype == "shared_memory":
            return None
        return register(name, rtype)

    def fix_unregister(name, rtype):
        if rtype == "shared_memory":
            return None
        return unregister(name, rtype)

    resource_tracker.register = fix_register
    resource_tracker.unregister = fix_unregister
    if "shared_memory" in resource_tracker._CLEANUP_FUNCS:
        del resource_tracker._CLEANUP_FUNCS["shared_memory"]


if __name__ == "__main__":
    remove_shm_from_resource_tracker()
    if len(sys.argv) > 2:
        segment = shared_memory.SharedMemory(sys.argv[2], create=True, size=10)
        segment.buf[:4] = b"kept"
        segment.close()
        sys.exit()
    mine = shared_memory.SharedMemory(create=True, size=10)
    name = mine.name + "-kept"
    done = subprocess.run([sys.executable, __file__, "create", name], capture_output=True, text=True)
    print(done.returncode, done.stderr)
    kept = shared_memory.SharedMemory(name)
    print(bytes(kept.buf[:4]))
    for segment in (mine, kept):
        segment.close()
        segment.unlink()

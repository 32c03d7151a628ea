"""Shared memory that a program attaches, or makes for others, without its end's taking it away (bpo-38119)."""

import subprocess
import sys
from multiprocessing import resource_tracker, shared_memory


def attach(name):
    segment = shared_memory.SharedMemory(name)
    resource_tracker.unregister(segment._name, "shared_memory")
    segment.buf[0] += 1
    segment.close()


def create(name):
    segment = shared_memory.SharedMemory(name, create=True, size=10)
    segment.buf[0] = 7
    resource_tracker.unregister(segment._name, "shared_memory")
    segment.close()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        {"attach": attach, "create": create}[sys.argv[1]](sys.argv[2])
        sys.exit()

    def run(*arguments):
        done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
        return done.returncode, done.stderr

    mine = shared_memory.SharedMemory(create=True, size=10)
    resource_tracker.unregister(mine._name, "shared_memory")  # what track=False is from 3.13 on
    resource_tracker.register(mine._name, "shared_memory")
    name = mine.name + "-kept"
    print(run("create", name))
    kept = shared_memory.SharedMemory(name)
    print(kept.buf[0])
    print(run("attach", mine.name))
    print(mine.buf[0])
    for segment in (mine, kept):
        segment.close()
        segment.unlink()
    print("gone")

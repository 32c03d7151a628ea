"""A numpy array that workers share: over a RawArray, which they get by the pool's initializer."""

import multiprocessing
import sys

try:
    import numpy as np
except ImportError:
    print("skipped: numpy is not installed")
    sys.exit()

shared = {}


def initialize(raw, shape):
    shared["array"] = np.frombuffer(raw, dtype=np.float64).reshape(shape)


def fill(row):
    shared["array"][row] = row * np.arange(shared["array"].shape[1])
    return float(shared["array"][row].sum())


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    shape = 4, 6
    raw = context.RawArray("d", shape[0] * shape[1])
    array = np.frombuffer(raw, dtype=np.float64).reshape(shape)
    np.copyto(array, -1)
    with context.Pool(2, initialize, (raw, shape)) as pool:
        print(pool.map(fill, range(4)))
    print(array.sum(axis=0).tolist())
    locked = context.Array("i", 4)
    with locked.get_lock():
        np.frombuffer(locked.get_obj(), dtype=np.int32)[:] = [1, 2, 3, 4]
    print(locked[:])

"""A worker of a pool that takes its being a daemon from itself, to start processes."""

import multiprocessing
import sys


def leaf(connection, n):
    connection.send(n + 1)
    connection.close()


def outer(n):
    process = multiprocessing.current_process()
    before = process.daemon
    process._config["daemon"] = False
    try:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.Process(target=leaf, args=(theirs, n))
        child.start()
        result = ours.recv()
        child.join()
    finally:
        process._config["daemon"] = before
    return before, result


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    with multiprocessing.Pool(2) as pool:
        print(pool.map(outer, [1, 2, 3]))

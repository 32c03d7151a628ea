"""What all tasks of a worker use, made once by the initializer: globals, a lock, a counter, a queue for results."""

import multiprocessing
import sys

lock = None
counter = None
queue = None
table = {}


def initialize(*shared):
    global lock, counter, queue
    lock, counter, queue, more = shared
    table.update(more, ready=True)


def task(n):
    with lock:
        counter.value += n
    queue.put(n * table["factor"])
    return table["ready"]


def report(n):
    return n in table


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    shared = context.Lock(), context.Value("i", 0), context.SimpleQueue(), {"factor": 3}
    with context.Pool(2, initializer=initialize, initargs=shared, maxtasksperchild=3) as pool:
        print(pool.map(task, range(10), chunksize=1), shared[1].value)
        print(sorted(shared[2].get() for _ in range(10)), shared[2].empty())
        print(pool.map(report, ["factor", "other"]))
    print(table)

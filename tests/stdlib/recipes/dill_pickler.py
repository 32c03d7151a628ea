"""Lambdas and closures in queues and pools: dill in the place of multiprocessing's pickler."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.pool
import multiprocessing.queues
import multiprocessing.reduction
import sys

try:
    import dill

    dill.dumps(lambda: 3)
except Exception:
    print("skipped: dill is not installed, or not for this Python")
    sys.exit()

dill.Pickler.dumps, dill.Pickler.loads = dill.dumps, dill.loads
multiprocessing.reduction.ForkingPickler = dill.Pickler
multiprocessing.reduction.dump = dill.dump
multiprocessing.queues._ForkingPickler = dill.Pickler
multiprocessing.connection._ForkingPickler = dill.Pickler


def add(n):
    return lambda x: x + n


def answer(queue, function):
    queue.put(lambda: function(2))


if __name__ == "__main__":
    if sys.argv[1] != "fork":
        print("skipped: a fresh interpreter reads what it is sent before it knows of dill, and cannot read this")
        sys.exit()
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    queue.put(add(1))
    print(queue.get()(1))
    simple = context.SimpleQueue()
    process = context.Process(target=answer, args=(simple, add(5)))
    process.start()
    print(simple.get()())
    process.join()
    with context.Pool(2) as pool:
        print(pool.map(lambda x: x * x, range(5)), pool.apply(add(2), (3,)))
        print([function(1) for function in pool.imap(add, range(3))])
    queue.close()
    queue.join_thread()

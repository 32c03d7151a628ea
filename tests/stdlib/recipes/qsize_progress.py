"""Progress of a pool by what is left: tasks that wait, results that are missing; and no more submitted than that."""

import multiprocessing
import sys
import threading


def square(n):
    return n * n


def hold(started, go_on):
    started.release()
    go_on.acquire()
    return "held"


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with context.Manager() as manager:
        started, go_on = manager.Semaphore(0), manager.Semaphore(0)
        with context.Pool(2) as pool:
            held = [pool.apply_async(hold, (started, go_on)) for _ in range(2)]
            for _ in held:
                started.acquire()
            mapped = pool.map_async(square, range(20), chunksize=5)
            print(mapped._number_left, mapped._chunksize, len(pool._cache), mapped.ready())
            for _ in held:
                go_on.release()
            print([each.get() for each in held], mapped.get()[-1])
            results = []
            done = threading.Semaphore(0)
            for i in range(50):
                while pool._taskqueue.qsize() > 10:
                    results[-1].wait(0.01)
                results.append(pool.apply_async(square, (i,), callback=lambda _: done.release()))
            for _ in results:
                done.acquire()
            print(
                sum(each.get() for each in results), pool._taskqueue.qsize(), pool._taskqueue.empty(), len(pool._cache)
            )
            print([thread.is_alive() for thread in (pool._worker_handler, pool._task_handler, pool._result_handler)])

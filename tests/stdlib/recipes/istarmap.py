"""starmap() that gives each result as soon as it is there, put into the pool's own queue of tasks."""

import multiprocessing
import multiprocessing.pool as mpp
import sys


def istarmap(self, func, iterable, chunksize=1):
    self._check_running()
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize}")
    batches = mpp.Pool._get_tasks(func, iterable, chunksize)
    result = mpp.IMapIterator(self)
    tasks = self._guarded_task_generation(result._job, mpp.starmapstar, batches)
    self._taskqueue.put((tasks, result._set_length))
    return (item for chunk in result for item in chunk)


def istarmap_unordered(self, func, iterable):
    result = mpp.IMapUnorderedIterator(self)
    tasks = ((result._job, i, func, tuple(args), {}) for i, args in enumerate(iterable))
    self._taskqueue.put((tasks, result._set_length))
    return result


def starmap_with_result(self, func, iterable, callback):
    items = list(iterable)
    batches = mpp.Pool._get_tasks(func, items, 2)
    result = mpp.MapResult(self, 2, len(items), callback, error_callback=None)
    self._taskqueue.put((self._guarded_task_generation(result._job, mpp.starmapstar, batches), None))
    return result


mpp.Pool.istarmap = istarmap
mpp.Pool.istarmap_unordered = istarmap_unordered


def power(a, b):
    if a == 13:
        raise ArithmeticError("13")
    return a**b


def broken(n):
    yield from ((i, 2) for i in range(n))
    raise LookupError("the iterable")


def results(iterator):
    found = []
    while True:
        try:
            found.append(next(iterator))
        except StopIteration:
            return found
        except Exception as error:
            found.append(repr(error))


if __name__ == "__main__":
    done = []
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(list(pool.istarmap(power, [(2, i) for i in range(10)])))
        print(list(pool.istarmap(power, zip(range(9), range(9), strict=True), chunksize=4)))
        print(list(pool.istarmap(power, [])))
        print(results(iter(pool.istarmap(power, [(1, 1), (13, 1), (2, 2)]))))
        print(results(iter(pool.istarmap(power, broken(3)))))
        print(sorted(pool.istarmap_unordered(power, zip(range(5), range(5), strict=True))))
        print(starmap_with_result(pool, power, zip(range(5), range(5), strict=True), done.append).get(), done)
        pool.close()
        pool.join()
    try:
        pool.istarmap(power, [])
    except ValueError as error:
        print(error)

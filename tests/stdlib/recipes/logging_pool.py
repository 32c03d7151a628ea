"""A pool that logs what its tasks raise, where it is raised, by wrapping each function."""

import functools
import multiprocessing
import multiprocessing.pool
import sys
import traceback


class Logged:
    def __init__(self, function):
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        try:
            return self._function(*args, **kwargs)
        except Exception:
            last = traceback.format_exc().splitlines()[-1]
            raise RuntimeError(f"logged in {multiprocessing.current_process().name[:4]}: {last}") from None


class LoggingPool(multiprocessing.pool.Pool):
    def apply_async(self, func, args=(), kwds=None, callback=None, error_callback=None):
        return super().apply_async(Logged(func), args, kwds or {}, callback, error_callback)

    def map_async(self, func, iterable, chunksize=None, callback=None, error_callback=None):
        return super().map_async(Logged(func), iterable, chunksize, callback, error_callback)


def divide(a, b=1):
    return a / b


def inverse(n):
    return 1 / n


if __name__ == "__main__":
    seen = []
    with LoggingPool(2, context=multiprocessing.get_context(sys.argv[1])) as pool:
        good = pool.apply_async(divide, (6,), {"b": 3})
        bad = pool.apply_async(divide, (1, 0), error_callback=lambda error: seen.append(type(error).__name__))
        print(good.get())
        for result in (bad, pool.map_async(inverse, [2, 1, 0])):
            try:
                result.get()
            except RuntimeError as error:
                print(str(error).replace("Fork", "Work").replace("Spaw", "Work"))
    print(seen)

"""A pool whose tasks have pools of their own: workers of a process class that never is a daemon."""

import multiprocessing
import multiprocessing.pool
import sys


def make_pool_class(context):
    class NoDaemonProcess(context.Process):
        @property
        def daemon(self):
            return False

        @daemon.setter
        def daemon(self, value):
            pass

    class NestablePool(multiprocessing.pool.Pool):
        @staticmethod
        def Process(ctx, *args, **kwds):
            return NoDaemonProcess(*args, **kwds)

    return NestablePool


def outer(n):
    with multiprocessing.get_context("fork").Pool(2) as inner:
        return sum(inner.map(abs, range(-n, 0)))


if __name__ == "__main__":
    # A class made in a function cannot be sent to a fresh interpreter, as anywhere.
    with make_pool_class(multiprocessing.get_context("fork"))(2) as pool:
        print(pool.map(outer, [1, 2, 3, 4]))
        print(multiprocessing.current_process().daemon, sys.argv[1] in multiprocessing.get_all_start_methods())

"""A pool whose tasks have processes of their own: by a context with a process class that never is a daemon."""

import multiprocessing
import multiprocessing.pool
import sys

METHOD = sys.argv[1]
BASE = type(multiprocessing.get_context(METHOD))


class NoDaemonProcess(multiprocessing.get_context(METHOD).Process):
    @property
    def daemon(self):
        return False

    @daemon.setter
    def daemon(self, value):
        pass


class NoDaemonContext(BASE):
    Process = NoDaemonProcess


class NestablePool(multiprocessing.pool.Pool):
    def __init__(self, *args, **kwargs):
        kwargs["context"] = NoDaemonContext()
        super().__init__(*args, **kwargs)


def answer(queue, n):
    queue.put(n * n)


def outer(n):
    context = multiprocessing.get_context(METHOD)
    queue = context.SimpleQueue()
    process = context.Process(target=answer, args=(queue, n))
    process.start()
    result = queue.get()
    process.join()
    return result, process.exitcode


if __name__ == "__main__":
    pool = NestablePool(2)
    print(pool.map(outer, range(4)))
    pool.close()
    pool.join()
    print(isinstance(pool, multiprocessing.pool.Pool))

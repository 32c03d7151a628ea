"""Managers of the program's own: classes that are registered, proxies that expose what they say, attributes too."""

import multiprocessing
import sys
from multiprocessing.managers import BaseManager, NamespaceProxy, SyncManager


class Counter:
    def __init__(self, start=0):
        self.value = start
        self._hidden = "hidden"

    def add(self, n=1):
        self.value += n
        return self.value

    def _private(self):
        return self._hidden


class CounterProxy(NamespaceProxy):
    _exposed_ = ("__getattribute__", "__setattr__", "__delattr__", "add")

    def add(self, n=1):
        return self._callmethod("add", (n,))


def squares(n):
    return (i * i for i in range(n))


class CounterManager(BaseManager):
    pass


class EverythingManager(SyncManager):
    pass


CounterManager.register("Counter", Counter, CounterProxy)
CounterManager.register("Plain", Counter, exposed=("add", "_private"))
CounterManager.register("squares", squares, proxytype=multiprocessing.managers.IteratorProxy)
EverythingManager.register("Counter", Counter, CounterProxy)


def work(counter, results, lock):
    for _ in range(10):
        with lock:
            counter.value = counter.value + 1
    results.append(multiprocessing.current_process().exitcode)


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with CounterManager(ctx=context) as manager:
        counter, plain = manager.Counter(5), manager.Plain()
        print(counter.add(), counter.value, plain.add(3), plain._private(), list(manager.squares(4)))
    with EverythingManager(ctx=context) as manager:
        counter, results, lock = manager.Counter(), manager.list(), manager.Lock()
        nested = manager.dict({"inner": manager.list([1])})
        nested["inner"].append(2)
        processes = [context.Process(target=work, args=(counter, results, lock)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        print(counter.value, list(results), list(nested["inner"]), type(results).__name__)

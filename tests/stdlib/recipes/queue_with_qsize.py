"""A queue with a count of its own, as for macOS, whose qsize() is not implemented."""

import multiprocessing
import multiprocessing.queues
import sys


class SharedCounter:
    def __init__(self, context, n=0):
        self.count = context.Value("i", n)

    def increment(self, n=1):
        with self.count.get_lock():
            self.count.value += n

    @property
    def value(self):
        return self.count.value


class CountedQueue(multiprocessing.queues.Queue):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.size = SharedCounter(kwargs["ctx"])

    def __getstate__(self):
        return {"parent_state": super().__getstate__(), "size": self.size}

    def __setstate__(self, state):
        super().__setstate__(state["parent_state"])
        self.size = state["size"]

    def put(self, *args, **kwargs):
        super().put(*args, **kwargs)
        self.size.increment(1)

    def get(self, *args, **kwargs):
        item = super().get(*args, **kwargs)
        self.size.increment(-1)
        return item

    def qsize(self):
        return self.size.value

    def empty(self):
        return not self.qsize()


def work(source, target):
    for item in iter(source.get, None):
        target.put(item * 2)


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    source, target = CountedQueue(ctx=context), CountedQueue(ctx=context)
    for item in [*range(5), None]:
        source.put(item)
    print(source.qsize(), target.empty())
    process = context.Process(target=work, args=(source, target))
    process.start()
    process.join()
    print(source.qsize(), target.qsize(), [target.get() for _ in range(5)], target.empty())
    print(source.__class__ is CountedQueue or source.__class__ == CountedQueue, source.__class__.__name__)

"""A pickler of the program's own, for all its queues: by a reducer of the context, which is public."""

import io
import multiprocessing
import pickle
import sys
from multiprocessing.reduction import AbstractReducer, ForkingPickler

PROTOCOL = 4


class Marked:
    def __init__(self, value):
        self.value = value


class Pickler(ForkingPickler):
    def __init__(self, file, protocol=None):
        super().__init__(file, PROTOCOL)

    def reducer_override(self, obj):
        if type(obj) is Marked:
            return str, (f"marked {obj.value}",)
        return NotImplemented

    @classmethod
    def dumps(cls, obj, protocol=None):
        buffer = io.BytesIO()
        cls(buffer).dump(obj)
        return buffer.getbuffer()


def dump(obj, file, protocol=None):
    Pickler(file).dump(obj)


class Reducer(AbstractReducer):
    ForkingPickler = Pickler
    register = Pickler.register
    dump = staticmethod(dump)
    HAVE_SEND_HANDLE = True
    # multiprocessing's modules take these from the reducer, too, and would call them as methods.
    DupFd = staticmethod(AbstractReducer.DupFd)
    sendfds = staticmethod(AbstractReducer.sendfds)
    recvfds = staticmethod(AbstractReducer.recvfds)
    send_handle = staticmethod(AbstractReducer.send_handle)
    recv_handle = staticmethod(AbstractReducer.recv_handle)


def receive(queue, arguments):
    queue.put((arguments, Marked("in the child")))


multiprocessing.get_context().reducer = Reducer()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.SimpleQueue()
    queue.put([Marked(1), 2])
    print(queue.get())
    process = context.Process(target=receive, args=(queue, [1, "two"]))
    process.start()
    print(queue.get())
    process.join()
    print(context.reducer.ForkingPickler is Pickler, pickle.loads(Pickler.dumps({1: 2})))
    with context.Pool(1) as pool:
        print(pool.map(Marked, [3, 4]))

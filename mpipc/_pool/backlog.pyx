# distutils: language = c
"""What no worker of a pool has yet.

Compiled, as _pool/schedule.pyx is, which says why.
"""

from mpipc._pool.codec cimport Source, Task

from collections import deque

from mpipc._pool.tasks import SHALLOW as _SHALLOW

cdef Py_ssize_t SHALLOW = _SHALLOW

# A worker is given at most so many tasks that could be cancelled and were not begun.
cdef Py_ssize_t CANCELLABLE = 8


cdef class Backlog:
    """Tasks, and maps of which tasks can be drawn, first come first served. Guarded by the lock of the pool's life.

    waiting     the tasks and maps
    feeds       those whose feeder waits until there is room for more of its tasks
    """

    def __init__(self):
        self.waiting = deque()
        self.feeds = set()

    def __len__(self):
        return len(self.waiting)

    cdef add(self, object work):
        self.waiting.append(work)

    cdef add_all(self, list tasks):
        self.waiting.extend(tasks)

    cdef put_back(self, Task task):
        """To the front."""
        if task.feed is not None:
            task.feed.waiting += 1
        self.waiting.appendleft(task)

    cdef put_all_back(self, list tasks):
        for task in reversed(tasks):
            self.put_back(task)

    cdef Py_ssize_t depth_wanted(self):
        """How many of the tasks at the front a worker should have."""
        cdef object head = self.waiting[0], function = head.function
        cdef Py_ssize_t depth = function.pace.depth
        if depth > SHALLOW and isinstance(head, Task) and (<Task> head).job.cancellable:
            # What a worker has been given cannot be cancelled any more. (Of a map, nobody sees the futures.)
            depth = min(depth, CANCELLABLE) if function.lasting else SHALLOW
        return depth

    cdef Py_ssize_t count_at_front(self):
        """How many tasks there are, of the map at the front if there is one."""
        cdef object head = self.waiting[0]
        return len(self.waiting) if isinstance(head, Task) else (<Source> head).remaining

    cdef list take(self, Py_ssize_t most):
        """Up to so many tasks from the front."""
        cdef list tasks = []
        cdef object waiting = self.waiting, head, feed
        while waiting and len(tasks) < most:
            head = waiting[0]
            if isinstance(head, Task):
                waiting.popleft()
                feed = (<Task> head).feed
                if feed is not None:
                    feed.waiting -= 1
                    if feed.waiting == feed.low:
                        self.ring(feed)
                tasks.append(head)
                continue
            tasks.append((<Source> head).draw())
            if not (<Source> head).remaining:
                waiting.popleft()
        return tasks

    cpdef list remove(self, set cancelled):
        """Take out what is in the set: that."""
        cdef object kept = deque()
        cdef list dropped = []
        for work in self.waiting:
            (dropped if work in cancelled else kept).append(work)
        self.waiting = kept
        return dropped

    # ---- feeders

    def await_room(self, feed):
        """A feeder is to wait at its bell: True, else False."""
        if feed.waiting <= feed.low:
            return False
        self.feeds.add(feed)
        return True

    cdef ring(self, object feed):
        """Have a feeder go on that waits for that."""
        if feed in self.feeds:
            self.feeds.discard(feed)
            feed.bell.release()

    def ring_all(self):
        """Have all feeders go on."""
        for feed in list(self.feeds):
            self.ring(feed)

    def clear(self):
        """Nobody will run any of it."""
        self.waiting.clear()
        self.ring_all()

# distutils: language = c
"""What no worker of a pool has yet.

Compiled, as _pool/schedule.pyx is, which says why.
"""

from mpipc._pool.codec cimport Source, Task
from mpipc._pool.worker_handle cimport Member

from collections import deque

from mpipc._pool.tasks import SHALLOW as _SHALLOW

cdef Py_ssize_t SHALLOW = _SHALLOW

# A worker is given at most so many tasks that could be cancelled and were not begun.
cdef Py_ssize_t CANCELLABLE = 8


cdef class Broadcast:
    """A task for each worker: as many as there are to be workers, each of which is run by another one.

    A worker *has* a task from when it is given that; if it dies before it has begun it, nobody has it any more, and it
    goes to one that has none. If it dies after that, it is the same: its successor is not to be without.

    over        the job is complete
    tasks       all of them
    open        those that no worker has
    holders     the tags of those who have the others, by index
    """

    def __init__(self, job, list tasks):
        cdef Task task
        self.job = job
        self.tasks = tasks
        self.open = deque(tasks)
        self.holders = {}
        for task in tasks:
            task.pinned = self

    def finish(self):
        """The job is complete."""
        self.over = True
        self.tasks = []
        self.open.clear()
        self.holders.clear()

    cdef list match(self, dict members):
        """Give one of them to a worker: [worker, batch], which has to be sent. None: there is none that has none."""
        cdef Member worker
        cdef Task task
        if not self.open:
            return None
        for worker in members.values():
            if worker.is_open() and worker.room(1 << 30) > 0 and worker.tag not in self.holders.values():
                task = self.open.popleft()
                self.holders[task.index] = worker.tag
                return [worker, worker.assign([task])]
        return None

    cdef put_back(self, Task task):
        if not self.over:
            self.holders.pop(task.index, None)
            self.open.append(task)

    cdef worker_died(self, object tag, list lost):
        cdef object index, holder
        for index, holder in list(self.holders.items()):
            if holder == tag and self.tasks[index] not in lost and self.job._reopen(index):
                self.put_back(self.tasks[index])


cdef class Backlog:
    """Tasks, and maps of which tasks can be drawn, first come first served. Guarded by the lock of the pool's life.

    waiting     the tasks and maps
    broadcasts  those that are not complete; their tasks go before all others
    feeds       those whose feeder waits until there is room for more of its tasks
    """

    def __init__(self):
        self.waiting = deque()
        self.feeds = set()
        self.broadcasts = []

    def __len__(self):
        return len(self.waiting)

    cdef add(self, object work):
        if isinstance(work, Broadcast):
            self.broadcasts.append(work)
        else:
            self.waiting.append(work)

    cdef list match(self, dict members, dict idle):
        """As Schedule.match(), for what is only for certain workers."""
        cdef Broadcast broadcast
        cdef list matched
        for broadcast in self.broadcasts:
            matched = broadcast.match(members)
            if matched is not None:
                idle.pop(matched[0], None)
                return matched
        return None

    cdef list unpinned(self, list tasks):
        """Of tasks that were taken back from a worker, those that any other one may have."""
        cdef Task task
        cdef list free = []
        for task in tasks:
            if task.pinned is None:
                free.append(task)
            else:
                self.put_back(task)
        return free

    def worker_died(self, tag, list lost):
        """It was killed, and these tasks are lost with it; by the result thread."""
        cdef Broadcast broadcast
        self.broadcasts = [broadcast for broadcast in self.broadcasts if not broadcast.over]
        for broadcast in self.broadcasts:
            broadcast.worker_died(tag, lost)

    cdef Py_ssize_t count(self):
        """How many tasks there are."""
        cdef Py_ssize_t count = 0
        cdef Broadcast broadcast
        for broadcast in self.broadcasts:
            count += len(broadcast.open)
        for work in self.waiting:
            count += 1 if isinstance(work, Task) else (<Source> work).remaining
        return count

    cdef add_all(self, list tasks):
        self.waiting.extend(tasks)

    cdef put_back(self, Task task):
        """To the front."""
        if task.pinned is not None:
            (<Broadcast> task.pinned).put_back(task)
            return
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
        self.broadcasts.clear()
        self.ring_all()

# distutils: language = c
"""What a pool knows about a worker without being told: a ledger in shared memory, and the watch over the parent's life.

The ledger's protocol stands in _core/src/ledger.h, that of what is said in it about the worker's time in times.h.
"""

import os

from cpython.exc cimport PyErr_CheckSignals

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport nanosleep, timespec

from mpipc._core import new_data
from mpipc._core.family cimport (
    MP_OK,
    MP_SLOT_ALIVE,
    Block,
    Family,
    mp_alive,
    mp_family,
    mp_slot_generation,
    mp_slot_state_of,
)
from mpipc.sysv._waits cimport now_ns

from mpipc._core.family import families_of_this_process
from mpipc._pool.codec import APPLY as _APPLY
from mpipc._pool.codec import CALL as _CALL
from mpipc._pool.codec import CHUNK as _CHUNK
from mpipc._pool.codec import ITEM as _ITEM
from mpipc._pool.codec import STAR_CHUNK as _STAR_CHUNK

cdef int CALL = _CALL
cdef int APPLY = _APPLY
cdef int ITEM = _ITEM
cdef int CHUNK = _CHUNK
cdef int STAR_CHUNK = _STAR_CHUNK

cdef extern from "<sys/sem.h>" nogil:
    struct sembuf:
        unsigned short sem_num
        short sem_op
        short sem_flg
    int semtimedop(int semid, sembuf *sops, size_t nsops, timespec *timeout)

cdef extern from "<unistd.h>" nogil:
    void _exit(int status)

cdef extern from "ledger.h" nogil:
    struct mp_ledger:
        uint64_t finished
        uint64_t condemned
        uint64_t item
        uint64_t since
        uint64_t busy
        uint64_t ready
    uint64_t mp_ledger_claimed(mp_ledger *ledger)
    bint mp_ledger_start(mp_ledger *ledger, uint64_t number, uint64_t now_ns)
    bint mp_ledger_finish(mp_ledger *ledger, uint64_t number, uint64_t now_ns)
    uint64_t mp_ledger_revoke(mp_ledger *ledger, uint64_t oldest, uint64_t first, uint64_t last)
    bint mp_ledger_condemn(mp_ledger *ledger, uint64_t number)
    void mp_ledger_end(mp_ledger *ledger)
    bint mp_ledger_ending(mp_ledger *ledger)

cdef extern from "times.h" nogil:
    enum mp_activity:
        MP_WAITING
        MP_WORKING
        MP_TRANSFER
    struct mp_times:
        pass
    mp_activity mp_times_activity(mp_times *times)
    uint64_t mp_times_turn(mp_times *times, mp_activity to, uint64_t now_ns)
    uint64_t mp_times_read(mp_times *times, uint64_t *spent, uint64_t *tasks)

# Where a forked child of a worker writes: its times are nobody's.
cdef mp_times nowhere
# ns from which a task is worth being told of as a long one.
cdef uint64_t LONG = 1_000_000


cdef class Ledger:
    """The ledger of one worker, who writes it, but for revoke(), condemn() and end(), which are the parent's.

    In the worker, `on_long` is called after a task that has run for longer than `longest` ns, which it may change:
    on_long(ns, kind, payload). It must not raise.
    """

    cdef readonly Block block
    cdef readonly Block times_block
    cdef mp_ledger *shared
    cdef mp_times *times
    cdef public uint64_t longest
    cdef public object on_long

    def __init__(self, Block block=None, Block times_block=None):
        self.block = new_data() if block is None else block
        self.times_block = new_data() if times_block is None else times_block
        self.shared = <mp_ledger *> self.block.b.bytes
        self.times = <mp_times *> self.times_block.b.bytes
        self.longest = LONG

    def __reduce__(self):
        return Ledger, (self.block, self.times_block)

    # ---- the worker's side

    def arrive(self):
        """The next thing this process does is to run the initializer."""
        self.shared.ready = 1
        os.register_at_fork(after_in_child=self.disown)

    def disown(self):
        """This process has been forked by the worker: its times are not the worker's."""
        self.times = &nowhere
        self.on_long = None

    def ready(self):
        """The initializer has returned."""
        cdef uint64_t now = now_ns()
        self.shared.ready = now
        mp_times_turn(self.times, MP_WAITING, now)

    def wait(self):
        """The next thing this process does is to wait for a task. False: the pool is being terminated, do not."""
        mp_times_turn(self.times, MP_WAITING, now_ns())
        return not mp_ledger_ending(self.shared)

    def start(self, uint64_t number):
        """The next thing this process does is to run the task. False: do not run it, the parent has taken it back."""
        cdef uint64_t now = now_ns()
        if mp_ledger_ending(self.shared) or not mp_ledger_start(self.shared, number, now):
            return False
        if mp_times_activity(self.times) != MP_TRANSFER:
            mp_times_turn(self.times, MP_TRANSFER, now)
        return True

    @property
    def ending(self):
        """Whether the pool is being terminated: no task is to be begun, or waited for."""
        return mp_ledger_ending(self.shared)

    def run(self, int kind, function, payload):
        """Run the task that was started: return what the function returns, of a chunk the list of that, or raise what
        it raises."""
        cdef uint64_t spent
        mp_times_turn(self.times, MP_WORKING, now_ns())
        try:
            if kind == ITEM:
                return function(payload)
            if kind == APPLY:
                return function(*payload)
            if kind == CALL:
                return function(*payload[0], **payload[1])
            return self.run_chunk(kind, function, payload)
        finally:
            spent = mp_times_turn(self.times, MP_TRANSFER, now_ns())
            if spent > self.longest and self.on_long is not None:
                self.on_long(spent, kind, payload)

    cdef list run_chunk(self, int kind, function, payload):
        """What the function returns for each item, which is noted before it is run."""
        cdef list results = []
        cdef uint64_t index = 0
        assert kind == CHUNK or kind == STAR_CHUNK
        for item in payload:
            self.shared.item = index
            index += 1
            results.append(function(item) if kind == CHUNK else function(*item))
            PyErr_CheckSignals()  # the interpreter does so between the lines of a program
        return results

    def finish(self, uint64_t number):
        """The task has run to its end; does not return as long as it is condemned."""
        cdef timespec pause
        if not mp_ledger_finish(self.shared, number, now_ns()):
            return
        pause.tv_sec = 0
        pause.tv_nsec = 1000000
        with nogil:  # only until the parent has killed this process, or has seen `finished`
            while self.shared.condemned == number:
                nanosleep(&pause, NULL)

    # ---- the parent's side

    def revoke(self, uint64_t first, uint64_t last, uint64_t oldest=0):
        """Take back the tasks from `first` to `last`, the last one of all, as far as they were not begun. `oldest` is
        the first one that the worker has; 0: it may be any.

        Returns the number from which on they are taken back: greater than `first` if the worker has begun more, smaller
        if it has not come to what was taken back before; but greater than `oldest` if `first` is.
        """
        return mp_ledger_revoke(self.shared, oldest, first, last)

    def condemn(self, uint64_t number):
        """Try to end a task early. True: its result will not be sent, kill the worker. False: it has finished."""
        return mp_ledger_condemn(self.shared, number)

    def end(self):
        """The pool is being terminated."""
        mp_ledger_end(self.shared)

    @property
    def has_arrived(self):
        """Whether the initializer was about to run."""
        return self.shared.ready != 0

    @property
    def is_ready(self):
        """Whether the initializer has returned."""
        return self.shared.ready > 1

    @property
    def started(self):
        """Number of the task that was started last, or of a later one that was taken back; 0 before the first."""
        return mp_ledger_claimed(self.shared)

    @property
    def finished(self):
        """Number of the task that was finished last; 0 before the first."""
        return self.shared.finished

    @property
    def current_item(self):
        """Which item of the chunk was started last, from 0."""
        return self.shared.item

    @property
    def running_for(self):
        """Seconds since the task `started` was, if that is one that the worker has; None if it has finished that."""
        cdef uint64_t started = mp_ledger_claimed(self.shared)
        cdef uint64_t since = self.shared.since
        if self.shared.finished >= started:
            return None
        return (<uint64_t> now_ns() - since) / 1e9

    @property
    def busy(self):
        """Seconds spent in tasks that have ended."""
        return self.shared.busy / 1e9

    @property
    def ready_at(self):
        """When the initializer had returned, time.monotonic(); None before."""
        cdef uint64_t ready = self.shared.ready
        return ready / 1e9 if ready > 1 else None

    def times_spent(self, ended_at=None):
        """Seconds that the worker has waited, worked, and spent on transfer; and tasks that it has run to their end.

        Until now. Of one that has ended, which has done so at `ended_at` (time.monotonic()), until the end of its last
        task, or until it did if it had none then.
        """
        cdef uint64_t[4] spent
        cdef uint64_t tasks, word = mp_times_read(self.times, spent, &tasks)
        cdef uint64_t until = <uint64_t> now_ns() if ended_at is None else <uint64_t> (ended_at * 1e9)
        cdef int activity = word & 3
        if (activity == MP_WAITING or (activity and ended_at is None)) and until > word >> 2:
            spent[activity] += until - (word >> 2)
        return spent[<int> MP_WAITING] / 1e9, spent[<int> MP_WORKING] / 1e9, spent[<int> MP_TRANSFER] / 1e9, tasks

    @property
    def ready_for(self):
        """Seconds since the initializer returned; None before."""
        cdef uint64_t ready = self.shared.ready
        return (<uint64_t> now_ns() - ready) / 1e9 if ready > 1 else None


# Seconds that a worker of a terminated pool may still be there after it has seen that. The parent ends it long before,
# by a signal; but if the parent has changed its user id it may not send any.
cdef double LAST_GRACE = 1.5


def exit_with_parent(int semid, int slot, uint32_t generation, Ledger ledger):
    """End this process as soon as the family's member in `slot` has ended; returns only if it cannot tell. End it also
    when the pool is being terminated, and nothing else has ended it.

    The kernel sets a member's semaphore back to 0 when it dies, however it dies. This thread sleeps until then and
    needs neither the GIL nor a descriptor, so it works while the main thread is busy in C, after fork, spawn and
    forkserver, and whatever pipes other children have inherited.

    The slot of a dead parent may have a new owner before this thread sleeps (another worker, for one), so it looks at
    the slot's generation too, before it sleeps and every second.
    """
    cdef sembuf gone
    cdef timespec second
    cdef mp_family *f = NULL
    cdef mp_ledger *own = ledger.shared
    cdef uint64_t word, ending = 0
    cdef int alive
    for family in families_of_this_process():
        if (<Family> family).f.semid == semid:
            f = (<Family> family).f
    if f == NULL or mp_alive(f, slot, &alive, &gone.sem_num) != MP_OK:
        return
    gone.sem_op = 0
    gone.sem_flg = 0
    second.tv_sec = 1
    second.tv_nsec = 0
    with nogil:
        while True:
            word = f.seg.slots[slot].word
            if mp_slot_generation(word) != generation or mp_slot_state_of(word) != MP_SLOT_ALIVE:
                _exit(1)
            if mp_ledger_ending(own):
                ending = ending or <uint64_t> now_ns()
                if <uint64_t> now_ns() - ending > LAST_GRACE * 1e9:
                    _exit(1)
            if semtimedop(alive, &gone, 1, &second) == 0:
                _exit(1)
            if errno != EINTR and errno != EAGAIN:
                break

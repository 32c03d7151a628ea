# distutils: language = c
"""What a pool knows about a worker without being told: a ledger in shared memory, and the watch over the parent's life.

A worker numbers its tasks as the parent did (1, 2, 3 ..., some may be missing). It claims one before it runs it, which
sets `started`, and writes `finished` before it sends the result. The parent reads:

    number <= finished             the task has run to its end
    finished < number == started   it is running, or was when the worker died
    number > started               it was never begun: it may be given to another worker

Both only grow.

The parent can take back tasks that the worker has, in a message or in its hands already, and has not begun: all from
some number on. The word CLAIMED holds `started` and where the tasks begin that were taken back, so both sides change it
by compare-and-swap and one of them sees the other. REVOKED_TO is where those tasks end. The parent writes it first:

    the worker comes to a number at which a range begins, or after that, and not after REVOKED_TO: it passes over it;
    any other number: it claims it, unless the word has changed since, for then it looks again.

There is one range at a time. It ends when the worker claims a number behind it; as long as it has not, what is taken
back next makes it longer, so that it takes back everything up to there. If the worker saw the new REVOKED_TO before the
parent changed CLAIMED, it has passed over numbers in between, which the parent takes back nevertheless: CLAIMED has not
changed, or the parent looks again. If the worker saw the old one, its compare-and-swap has to fail: hence the turn,
which makes the word a different one also where a longer range begins at the same number. A worker that dies at any of
this leaves a word that is true. (When the parent dies, so does the worker.)

A task that the parent wants to end early is condemned: the parent writes the number and then reads `finished`, the
worker writes `finished` and then reads the number. As both are sequentially consistent, at least one of them sees the
other. So either the task counts as finished and its result will be sent, or the worker stops before it sends and can be
killed: a result is never sent for a task that was condemned, and no other task is hit by the kill.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

from mpipc.family import new_data
from mpipc.family._core cimport (
    MP_SLOT_ALIVE,
    Block,
    Family,
    mp_family,
    mp_slot_generation,
    mp_slot_state_of,
)

from mpipc.family._core import families_of_this_process

cdef extern from "family.h" nogil:
    enum:
        MP_SEM_ALIVE

cdef extern from "<sys/sem.h>" nogil:
    struct sembuf:
        unsigned short sem_num
        short sem_op
        short sem_flg
    int semtimedop(int semid, sembuf *sops, size_t nsops, timespec *timeout)

cdef extern from "<unistd.h>" nogil:
    void _exit(int status)

cdef extern from * nogil:
    """
    static inline uint64_t load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
    static inline void store(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }
    static inline int swap(uint64_t *word, uint64_t old, uint64_t new_value) {
        return __atomic_compare_exchange_n(word, &old, new_value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    """
    uint64_t load(const uint64_t *word)
    void store(uint64_t *word, uint64_t value)
    bint swap(uint64_t *word, uint64_t old, uint64_t new)

# The words of the 64 bytes of payload.
cdef enum:
    CLAIMED      # number of the task that runs, or ran last : 36 | distance to the range taken back : 20 | turn : 8
    FINISHED     # number of the last task that has run to its end
    CONDEMNED    # number of the task that the parent wants to end; 0 if none
    ITEM         # which item of a chunk is running, from 0
    SINCE        # when the task was started, CLOCK_MONOTONIC in ns
    BUSY         # ns spent in tasks that have ended
    READY        # when the initializer had returned, CLOCK_MONOTONIC in ns; 1 when it was about to run; 0 before
    REVOKED_TO   # the last number that was taken back

# The distance is 0 if there is no range. The turn counts the calls of revoke(); a worker that is held up between its
# look and its compare-and-swap has long lost all its tasks before 256 of them.
cdef enum:
    TURN = 0xff
    DISTANCE_MOST = 0xfffff

cdef inline uint64_t claimed_of(uint64_t word) noexcept nogil:
    return word >> 28

cdef inline uint64_t distance_of(uint64_t word) noexcept nogil:
    return word >> 8 & DISTANCE_MOST

cdef inline uint64_t word_of(uint64_t claimed, uint64_t distance, uint64_t turn) noexcept nogil:
    return claimed << 28 | distance << 8 | turn & TURN


cdef uint64_t now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <uint64_t> time.tv_sec * 1000000000 + <uint64_t> time.tv_nsec


cdef class Ledger:
    """The ledger of one worker. Written by the worker, except for `condemned`, which is the parent's."""

    cdef readonly Block block
    cdef uint64_t *words

    def __init__(self, Block block=None):
        self.block = new_data() if block is None else block
        self.words = <uint64_t *> self.block.b.bytes

    def __reduce__(self):
        return Ledger, (self.block,)

    # ---- the worker's side

    def arrive(self):
        """The next thing this process does is to run the initializer."""
        store(&self.words[READY], 1)

    def ready(self):
        """The initializer has returned."""
        store(&self.words[READY], now())

    def start(self, uint64_t number):
        """The next thing this process does is to run the task. False: the parent has taken it back, do not run it."""
        cdef uint64_t word, claimed, distance
        self.words[ITEM] = 0
        self.words[SINCE] = now()
        while True:
            word = load(&self.words[CLAIMED])
            claimed, distance = claimed_of(word), distance_of(word)
            if distance and number >= claimed + distance:
                if number <= load(&self.words[REVOKED_TO]):
                    return False
                distance = 0
            elif distance:
                distance -= number - claimed
            if swap(&self.words[CLAIMED], word, word_of(number, distance, word)):
                return True

    def item(self, uint64_t index):
        """The next thing this process does is to run this item of the chunk that it has started."""
        store(&self.words[ITEM], index)

    def finish(self, uint64_t number):
        """The task has run to its end; does not return as long as it is condemned."""
        cdef timespec pause
        self.words[BUSY] += now() - self.words[SINCE]
        store(&self.words[FINISHED], number)
        if load(&self.words[CONDEMNED]) != number:
            return
        pause.tv_sec = 0
        pause.tv_nsec = 1000000
        with nogil:  # only until the parent has killed this process, or has seen `finished`
            while load(&self.words[CONDEMNED]) == number:
                nanosleep(&pause, NULL)

    # ---- the parent's side

    def revoke(self, uint64_t first, uint64_t last):
        """Take back the tasks from `first` to `last`, the last one of all, as far as they were not begun.

        Returns the number from which on they are taken back: greater than `first` if the worker has begun more, smaller
        if it has not come to what was taken back before.
        """
        cdef uint64_t word, claimed, distance, start
        store(&self.words[REVOKED_TO], last)
        while True:
            word = load(&self.words[CLAIMED])
            claimed, distance = claimed_of(word), distance_of(word)
            start = max(first, claimed + 1)
            if distance:
                start = min(start, claimed + distance)
            if start > last:
                return start
            if start - claimed > DISTANCE_MOST:
                return last + 1  # it keeps them
            if swap(&self.words[CLAIMED], word, word_of(claimed, start - claimed, word + 1)):
                return start

    def condemn(self, uint64_t number):
        """Try to end a task early. True: its result will not be sent, kill the worker. False: it has finished."""
        store(&self.words[CONDEMNED], number)
        if load(&self.words[FINISHED]) < number:
            return True
        store(&self.words[CONDEMNED], 0)
        return False

    @property
    def has_arrived(self):
        """Whether the initializer was about to run."""
        return load(&self.words[READY]) != 0

    @property
    def is_ready(self):
        """Whether the initializer has returned."""
        return load(&self.words[READY]) > 1

    @property
    def started(self):
        """Number of the task that was started last; 0 before the first."""
        return claimed_of(load(&self.words[CLAIMED]))

    @property
    def finished(self):
        """Number of the task that was finished last; 0 before the first."""
        return load(&self.words[FINISHED])

    @property
    def current_item(self):
        """Which item of the chunk was started last, from 0."""
        return load(&self.words[ITEM])

    @property
    def running_for(self):
        """Seconds since the task that runs was started; None if none is running."""
        cdef uint64_t started = claimed_of(load(&self.words[CLAIMED]))
        cdef uint64_t since = load(&self.words[SINCE])
        if load(&self.words[FINISHED]) >= started:
            return None
        return (now() - since) / 1e9

    @property
    def busy(self):
        """Seconds spent in tasks that have ended."""
        return load(&self.words[BUSY]) / 1e9

    @property
    def ready_for(self):
        """Seconds since the initializer returned; None before."""
        cdef uint64_t ready = load(&self.words[READY])
        return (now() - ready) / 1e9 if ready > 1 else None


def exit_with_parent(int semid, int slot, uint32_t generation):
    """End this process as soon as the family's member in `slot` has ended; returns only if it cannot tell.

    The kernel sets a member's semaphore back to 0 when it dies, however it dies. This thread sleeps until then and
    needs neither the GIL nor a descriptor, so it works while the main thread is busy in C, after fork, spawn and
    forkserver, and whatever pipes other children have inherited.

    The slot of a dead parent may have a new owner before this thread sleeps (another worker, for one), so it looks at
    the slot's generation too, before it sleeps and every second.
    """
    cdef sembuf gone
    cdef timespec second
    cdef mp_family *f = NULL
    cdef uint64_t word
    for family in families_of_this_process():
        if (<Family> family).f.semid == semid:
            f = (<Family> family).f
    if f == NULL:
        return
    gone.sem_num = <unsigned short> (MP_SEM_ALIVE + slot)
    gone.sem_op = 0
    gone.sem_flg = 0
    second.tv_sec = 1
    second.tv_nsec = 0
    with nogil:
        while True:
            word = f.seg.slots[slot].word
            if mp_slot_generation(word) != generation or mp_slot_state_of(word) != MP_SLOT_ALIVE:
                _exit(1)
            if semtimedop(semid, &gone, 1, &second) == 0:
                _exit(1)
            if errno != EINTR and errno != EAGAIN:
                break

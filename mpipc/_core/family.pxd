# What the Cython modules above the family see of it: the C layer (src/), and the handle on a control block.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport pid_t


cdef extern from "core.h" nogil:
    enum:
        MP_SLOTS
        MP_BLOCKS
        MP_LASTING_MOST
        MP_SET_LEAST
        MP_LOCK_OWNER
        MP_LOCK_CONTENDED
        MP_LOCK_DIED
        MP_LOCK_INSIDE
        MP_OK
        MP_TICK
        MP_INTERRUPTED
        MP_TIMED_OUT
        MP_BUSY
        MP_EMPTY
        MP_FULL
        MP_NOT_HELD
        MP_NONE_LEFT
        MP_SHUT_DOWN
        MP_CORRUPT
        MP_OPEN
        MP_KIND_LOCK
        MP_KIND_RLOCK
        MP_KIND_SEMAPHORE
        MP_KIND_EVENT
        MP_KIND_CONDITION
        MP_KIND_BARRIER
        MP_KIND_QUEUE
        MP_KIND_SEGMENT
        MP_KIND_PIECE
        MP_KIND_DATA
        MP_KIND_RWLOCK
        MP_KIND_SPACE
        MP_KIND_MEMORY
        MP_HOLDER_IDS
        MP_KIND_BROADCAST
        MP_KIND_SUBSCRIPTION
        MP_SLOT_FREE
        MP_SLOT_ALIVE
        MP_BLOCK_MAKING
        MP_BLOCK_READY
        MP_BLOCK_LEAVING
        MP_CELL_WAITING
        MP_CELL_NOTIFIED
        MP_CELL_BROKEN
        GETVAL
        GETPID
        GETNCNT
        GETZCNT

    cdef struct mp_slot:
        uint64_t word
        uint64_t start_time
        uint32_t leaving

    cdef struct mp_lock:
        uint64_t word
        uint32_t depth
        uint32_t parked

    cdef struct mp_semaphore:
        uint64_t word
        uint32_t waiters
        uint32_t maximum

    cdef struct mp_condition:
        mp_lock guard
        uint64_t tickets
        uint64_t generation
        uint64_t broken_generations
        uint32_t broken
        uint32_t parties

    cdef struct mp_more_heap "heap":
        uint64_t arena
        uint64_t offset
        uint64_t size

    cdef struct mp_more_lock "lock":
        uint32_t thread

    cdef union mp_more:
        mp_more_lock lock
        mp_more_heap heap

    cdef struct mp_block:
        mp_lock lock
        mp_semaphore semaphore
        mp_condition condition
        uint8_t[64] bytes
        uint64_t word
        uint32_t kind
        uint32_t pinned
        int32_t id
        int32_t key
        uint64_t size
        mp_more more

    cdef struct mp_cell:
        uint64_t word
        uint64_t ticket
        uint64_t generation
        uint32_t index

    cdef struct mp_header:
        uint32_t state
        uint64_t nonce
        int32_t creator
        int32_t semid
        uint32_t block_high
        uint32_t slot_high
        uint32_t cell_high
        uint64_t deaths_seen
        char[256] program
        uint32_t uid
        uint32_t set_size

    cdef struct mp_segment:
        mp_header header
        int32_t[1] alive_sets
        int32_t[1] bell_sets
        int32_t[1] banks
        mp_slot[1] slots
        mp_cell[1] cells

    cdef struct mp_bank:
        pass

    cdef struct mp_family:
        mp_segment *seg
        mp_header *h
        int shmid
        int semid
        uint64_t nonce
        pid_t pid
        int slot
        uint64_t me
        int fork_slot
        int start_slot
        int32_t squatted_key
        uint32_t set_size
        uint32_t *local_refs
        char *reaper_path
        mp_family *next

    ctypedef int mp_tick_function(mp_family *f)
    int mp_family_create(mp_family *f, const char *program, mp_tick_function *tick)
    enum mp_attach:
        MP_ATTACH_OWN
        MP_ATTACH_TOLD
    int mp_family_attach(mp_family *f, int shmid, uint64_t nonce, mp_attach whose, mp_tick_function *tick)
    void mp_family_detach(mp_family *f)
    int mp_family_join(mp_family *f)
    int mp_fork_prepare(mp_family *f)
    void mp_fork_parent(mp_family *f)
    int mp_fork_child(mp_family *f)
    int mp_start_reserve(mp_family *f)
    void mp_start_cancel(mp_family *f)
    int64_t mp_transit_reserve(mp_family *f)
    int mp_transit_slot(int64_t token)
    void mp_transit_keep(mp_family *f, int64_t token)
    int mp_transit_claim(mp_family *f, int64_t token)
    void mp_transit_sent(mp_family *f, int64_t token, pid_t pid)
    void mp_transit_arrived(mp_family *f, int64_t token)
    void mp_family_forget_exec(mp_family *f)
    int mp_tie(mp_family *f, int parent, uint32_t generation)
    void mp_family_leave(mp_family *f)
    int mp_alive(mp_family *f, int slot, int *semid, unsigned short *num)
    bint mp_slot_lives(mp_family *f, int slot)
    int mp_slot_state_of(uint64_t word)
    pid_t mp_slot_pid(uint64_t word)
    uint32_t mp_slot_generation(uint64_t word)

    int64_t mp_block_new(mp_family *f, uint32_t kind)
    int mp_block_ready(mp_family *f, uint32_t index)
    bint mp_family_is_removed(mp_family *f)
    void mp_block_abandon(mp_family *f, uint32_t index)
    void *mp_block_shmat(mp_family *f, uint32_t index, uint64_t *size)
    int mp_block_msgget(mp_family *f, uint32_t index, int mode)
    int mp_block_shmget(mp_family *f, uint32_t index, uint64_t size, int flags)
    int mp_block_hold(mp_family *f, uint32_t index, int slot)
    uint32_t mp_block_holders(mp_family *f, uint32_t index, uint16_t *slots, uint32_t most)
    int mp_block_adopt(mp_family *f, uint32_t index, uint32_t serial)
    void mp_block_drop(mp_family *f, uint32_t index)
    uint32_t mp_slot_high(mp_family *f)
    uint32_t mp_block_high(mp_family *f)
    uint32_t mp_cell_high(mp_family *f)
    mp_block *mp_block_at(mp_family *f, uint32_t index)
    int mp_block_state_of(uint64_t word)
    bint mp_block_is_live(uint64_t word)
    uint32_t mp_block_serial(uint64_t word)
    bint mp_block_try_free(mp_family *f, uint32_t index, int by_slot)
    int mp_bell(mp_family *f, uint32_t bell, int *semid, unsigned short *num)
    int mp_bell_ring(mp_family *f, uint32_t bell, int times)
    int mp_event_init(mp_family *f, uint32_t index)
    int mp_event_set(mp_family *f, uint32_t index)
    int mp_event_clear(mp_family *f, uint32_t index)
    int mp_event_is_set(mp_family *f, uint32_t index)
    int mp_bell_set(mp_family *f, uint32_t bell, int value)
    int mp_bell_get(mp_family *f, uint32_t bell, int command)
    int mp_bell_wait(mp_family *f, uint32_t bell, int op, int64_t deadline_ns)
    int mp_bell_await(mp_family *f, uint32_t bell, int op, int64_t deadline_ns)

    bint mp_lock_try(mp_family *f, mp_block *b, uint64_t contended)
    void mp_lock_set_thread(mp_block *b, uint32_t thread)
    uint32_t mp_this_thread()
    bint mp_lock_mine(mp_family *f, mp_block *b)
    int mp_lock_wait(mp_family *f, uint32_t index, int64_t deadline_ns)
    int mp_lock_release(mp_family *f, uint32_t index)
    bint mp_lock_release_now(mp_family *f, mp_block *b)

    enum mp_returns:
        MP_RETURNS_GUESSED
        MP_RETURNS_ALWAYS
        MP_RETURNS_NEVER
    void mp_sem_init(mp_block *b, uint32_t value, uint32_t maximum, mp_returns returns)
    uint32_t mp_sem_value(mp_block *b)
    uint32_t mp_sem_debt(mp_block *b)
    mp_returns mp_sem_returns(mp_block *b)
    uint32_t mp_sem_units(mp_family *f, uint32_t index)
    bint mp_sem_try(mp_family *f, uint32_t index, int *error)
    int mp_sem_enroll(mp_family *f, uint32_t index)
    void mp_sem_withdraw(mp_family *f, uint32_t index)
    int mp_sem_release(mp_family *f, uint32_t index)

    int64_t mp_cell_enter(mp_family *f, uint32_t index, uint64_t generation, uint32_t place)
    void mp_cell_leave(mp_family *f, uint32_t cell)
    bint mp_cell_cancel(mp_family *f, uint32_t cell)
    int mp_cell_wait(mp_family *f, uint32_t cell, int64_t deadline_ns)
    int mp_cells_notify(mp_family *f, uint32_t index, int64_t count)
    int mp_cells_waiting(mp_family *f, uint32_t index)
    enum:
        MP_BARRIER_WAITING, MP_BARRIER_PASSED, MP_BARRIER_BROKEN
    uint32_t mp_barrier_waiting(mp_family *f, uint32_t index, uint32_t *place)
    int64_t mp_barrier_enter(mp_family *f, uint32_t index, uint32_t place, uint64_t *generation)
    void mp_barrier_end(mp_family *f, uint32_t index, bint broken, bint stays_broken)
    int mp_barrier_outcome(mp_family *f, uint32_t index, uint32_t cell, uint64_t generation)
    uint32_t mp_cell_state(uint64_t word)
    int mp_cell_slot(uint64_t word)
    uint32_t mp_cell_block(uint64_t word)

    ctypedef enum mp_rw_role "enum mp_rw_role":
        MP_RW_READ
        MP_RW_WRITE
    cdef struct mp_rw_readers "mp_rw_count":
        uint32_t readers
        uint32_t called
        uint32_t waiting
    void mp_rw_init(mp_block *b)
    mp_rw_readers mp_rw_count(mp_family *f, uint32_t index)
    int64_t mp_rw_cell(mp_family *f, uint32_t index, int64_t cell, mp_rw_role role)
    int mp_rw_read_try(mp_family *f, uint32_t index)
    int mp_rw_read_within(mp_family *f, uint32_t index)
    int mp_rw_read_enroll(mp_family *f, uint32_t index, uint32_t *tenure)
    bint mp_rw_read_look(mp_family *f, uint32_t index, uint32_t tenure)
    void mp_rw_read_cancel(mp_family *f, uint32_t index, uint32_t tenure)
    void mp_rw_read_release(mp_family *f, uint32_t index)
    bint mp_rw_write_try(mp_family *f, uint32_t index)
    void mp_rw_write_begin(mp_family *f, uint32_t index)
    bint mp_rw_write_look(mp_family *f, uint32_t index)
    void mp_rw_write_cancel(mp_family *f, uint32_t index)
    int mp_rw_write_release(mp_family *f, uint32_t index)

    int mp_recover(mp_family *f)
    int mp_sweep()
    uint32_t mp_lasting_sets(mp_family *f, int *ids, uint32_t most)
    uint32_t mp_lasting_segments(mp_family *f, int *ids, uint32_t most)
    int mp_tick(mp_family *f)
    bint mp_tick_is_due(mp_family *f)
    int mp_launch_reaper(mp_family *f)
    bint mp_reaper_present(mp_family *f)
    ctypedef enum mp_undo_verdict "enum mp_undo":
        MP_UNDO_UNKNOWN
        MP_UNDO_WORKS
        MP_UNDO_IGNORED
    mp_undo_verdict mp_undo(mp_family *f)
    int64_t mp_now_ns()

    cdef struct mp_waiting:
        int slot
        pid_t tid
        uint32_t where
        int64_t since_ns
    uint32_t mp_wait_high(mp_family *f)
    void mp_wait_over()
    bint mp_wait_read(mp_family *f, uint32_t index, mp_waiting *waiting)
    int64_t mp_wait_object(mp_family *f, const mp_waiting *waiting, const char **purpose)
    cdef struct mp_kind_row:
        bint has_lock
    const mp_kind_row *mp_kind_of(const mp_block *b)


cdef class Family:
    cdef mp_family *f
    cdef bint registered
    cdef object __weakref__
    cdef int ensure(self) except -1
    cdef list holders_of(self, uint32_t index)


cdef class Block:
    """One handle of this process on a control block; the block lives as long as any process has a handle."""

    cdef readonly Family family
    cdef mp_family *f
    cdef mp_block *b
    cdef readonly uint32_t index
    cdef readonly uint32_t serial
    cdef object __weakref__
    cdef int ensure(self) except -1


cdef inline void look_after(mp_family *f) noexcept:
    """What is wanted is not to be had, and nobody waits for it: see mp_tick_is_due()."""
    if mp_tick_is_due(f):
        with nogil:
            mp_tick(f)


cdef Block new_block(uint32_t kind, Family family=*)
cdef Block block_made(Family family, uint32_t index)
cdef Block adopted(Family family, uint32_t index, uint32_t serial, str what)
cdef object fail_growing(int error, str what)
cdef Block seal(Block block)
cdef int make_queue(Block block, int mode) except -1
cdef int make_segment(Block block, uint64_t size, int flags) except -1
cdef object fail(int error, str what)
cdef object fail_call(int error, str call, dict arguments)
cdef object fail_bell(int error)

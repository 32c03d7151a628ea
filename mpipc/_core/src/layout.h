/* What lies in shared memory: which processes share mpipc objects, which of them live, and who holds what.
 *
 * Everything shared lies in a System V shared memory segment, laid out by the structures below, in banks of it that are
 * made when they are needed, and in pooled semaphore sets. Nothing here knows Python: the same code runs in the Cython modules, in any process that recovers
 * for a dead one, and in the reaper (reaper.c).
 *
 * The rules that keep it sound when a process is killed at any instruction:
 *
 *   R1. Every change of shared state takes effect by ONE atomic store or compare-and-swap. What comes before it is
 *       invisible, what comes after it can be redone by anybody who reads the state (recovery.c).
 *   R2. Whatever a process has half done is found from its slot number, which stands in the state word of the thing:
 *       a block being made or taken down, a lock owned, a record, a wait cell, a holder.
 *   R3. A slot number is used again only when nothing in the segment mentions it any more.
 *   R4. A kernel object (queue, segment, set) is created under a key that was written down before. If its creator dies
 *       before it has written down the id, the key finds the object.
 *   R5. A ring of a bell (semaphore used as a doorbell) may be spurious, and may be lost with the process that was to
 *       ring it; recovery rings again for whoever is left waiting, so every waiter checks again after it wakes.
 */
#ifndef MPIPC_LAYOUT_H
#define MPIPC_LAYOUT_H

#include "base.h"

#include <sys/sem.h>
#include <sys/shm.h>

#define MP_MAGIC 0x796c696d61667069ull /* "ipfamily" */
#define MP_VERSION 7u

#define MP_SLOTS 8192u        /* processes of a family, and children on their way into it */
#define MP_BLOCKS (1u << 18)  /* control blocks: locks, queues, pieces of the heap ... */
#define MP_CHUNKS (1u << 18)  /* lists of holders, for blocks that have more than MP_HOLDERS of them */
#ifndef MP_BANK
#define MP_BANK (1u << 12) /* blocks, and chunks, of a bank: see banks.c */
#endif
#define MP_BANKS (MP_BLOCKS / MP_BANK)
#define MP_RECORDS (1u << 16) /* (process, semaphore or RWLock) pairs in use */
#define MP_CELLS (1u << 14)   /* threads waiting in a Condition, Barrier, RWLock or Broadcast */
#define MP_WAITS (1u << 14)   /* threads asleep, of which it can be seen where; a power of two, as is the next one */
#define MP_WAITS_LEAST 64u
#define MP_CARRIERS (1u << 14) /* messages that hold blocks */
#define MP_RECENT 256u
#define MP_ARENA_SEGMENTS 1024u /* of shared memory, of one queue */

/* Semaphores stand in pooled sets of one size, the first of each set carries the family's mark. The size is what SEMMSL allows at
 * the founding, but no more than MP_SET_MOST: whoever uses one semaphore of a set with SEM_UNDO pays kernel memory for all of
 * them, and an operation on several locks them all. SEMMSL has been 250 for decades, and still is where nobody has raised it. */
#define MP_SET_LEAST 32u
#define MP_SET_MOST 250u
#define MP_BELLS (MP_BLOCKS + MP_CELLS)
#define MP_BELL_SETS (MP_BELLS / (MP_SET_LEAST - 1) + 1)
#define MP_ALIVE_SETS (MP_SLOTS / (MP_SET_LEAST - 1) + 1)

/* All keys begin with this byte ('m'), so that leftovers are recognised in ipcs and by the sweep. */
#define MP_KEY_PREFIX 0x6d000000u
#define MP_KEY_MASK 0xff000000u

/* The family's own semaphore set. */
enum { MP_SEM_MARK, MP_SEM_DEATHS, MP_SEM_REAPER, MP_SEM_RECOVERY, MP_SEM_TRIAL, MP_SEM_COUNT };

/* The numbers that sets and banks have within a family, from which their keys follow. */
#define MP_SET_OWN 0u
#define MP_SET_BELLS (1u << 16)
#define MP_SET_ALIVE (1u << 17)
#define MP_KEYS_BANKS (1u << 18)

/* ---- process table ------------------------------------------------------------------------------------------- */

enum mp_slot_state {
    MP_SLOT_FREE,
    MP_SLOT_JOINING, /* being claimed by the process `pid`; not yet known to the kernel as alive */
    MP_SLOT_FORKING, /* reserved by a parent that is about to fork */
    MP_SLOT_FORKED, /* the fork is done; its child (if there is one) has not claimed the slot yet */
    MP_SLOT_TRANSIT, /* holds what was pickled for a spawned child until the child has unpickled it */
    MP_SLOT_ALIVE, /* claimed: alive[slot] says whether the process lives */
    MP_SLOT_DEAD /* being cleared by recovery */
};

/* word = state:8 | generation:24 | pid:32, always changed as a whole. */
struct mp_slot {
    _Atomic uint64_t word;
    _Atomic uint64_t start_time; /* of the process, in clock ticks since boot; with the pid it names it for good */
    _Atomic uint32_t parent; /* slot + 1 of the process that reserved this slot, 0 if none */
    _Atomic uint32_t leaving; /* the process announced a normal exit: its semaphore units stay as they are */
    _Atomic uint32_t suspect; /* since when (ms, 0: not) scans have found no process behind a reservation */
    _Atomic uint32_t kept; /* TRANSIT: MP_KEEP_; see mp_transit_keep() */
    _Atomic uint32_t pid_ns; /* in which the pid in the word means something; 0: not noted yet */
    _Atomic uint64_t access; /* answer:8 | user id:32 << 32: see access.c */
    _Atomic uint64_t tie; /* slot + 1:16 | generation:24 << 16 of the member that this one ends with, 0: none. See ties.c */
    uint8_t pad[8];
};

enum mp_access { MP_ACCESS_NONE, MP_ACCESS_WANTED, MP_ACCESS_GIVEN, MP_ACCESS_REFUSED };

enum { MP_KEEP_NOTHING, MP_KEEP_WANTED, MP_KEEP_DONE };

/* ---- control blocks ------------------------------------------------------------------------------------------ */

enum mp_block_state {
    MP_BLOCK_FREE,
    MP_BLOCK_MAKING, /* by the slot in the state word; a kernel object may exist under `key` */
    MP_BLOCK_READY,
    MP_BLOCK_LEAVING, /* READY, and the slot in the state word has found no holder and looks a second time; see blocks.c */
    MP_BLOCK_DYING /* by the slot in the state word; its kernel object may be gone already */
};

#define MP_HOLDER_WORDS 7
#define MP_HOLDERS (MP_HOLDER_WORDS * 4u) /* holders that stand in the block itself; the others stand in chunks */

enum mp_kind {
    MP_KIND_NONE,
    MP_KIND_LOCK,
    MP_KIND_RLOCK,
    MP_KIND_SEMAPHORE,
    MP_KIND_EVENT,
    MP_KIND_CONDITION,
    MP_KIND_BARRIER,
    MP_KIND_QUEUE, /* owns a message queue */
    MP_KIND_SEGMENT, /* owns a shared memory segment */
    MP_KIND_PIECE, /* a piece of a segment, handed out by the heap */
    MP_KIND_DATA, /* 64 bytes of the owner class's own */
    MP_KIND_RWLOCK,
    MP_KIND_SPACE, /* owns segments, cut into pieces: the memory of the next kind. See memory.c */
    MP_KIND_MEMORY, /* a piece of the space, held by processes and by messages */
    MP_KIND_BROADCAST, /* owns a shared memory segment */
    MP_KIND_SUBSCRIPTION /* to a broadcast */
};

/* The lock word, at the start of the payload of every kind that has a lock: owner slot + 1 : 16 | flags */
#define MP_LOCK_OWNER 0xffffull
#define MP_LOCK_RECOVERY 0xffffull /* as the owner: recovery, which is no slot; at most one lock in a family */
#define MP_LOCK_CONTENDED (1ull << 16) /* somebody may be parked at the bell: ring it on release */
#define MP_LOCK_DIED (1ull << 17) /* the previous owner died holding it; cleared by the next release */
#define MP_LOCK_LOOK (1ull << 18) /* of a queue: its owner has to look before the release, see queue.c */
#define MP_LOCK_INSIDE (1ull << 19) /* of an RWLock: its owner waits for no reader any more, see rwlock.c */

struct mp_lock {
    _Atomic uint64_t word;
    _Atomic uint32_t depth; /* of an RLock; written by the owner only, and of no meaning while there is none */
    _Atomic uint32_t parked; /* somebody has parked at the bell since the block was made: recovery has to look */
};

/* What becomes of the units of a killed holder: see semaphore.c. */
enum mp_returns { MP_RETURNS_GUESSED, MP_RETURNS_ALWAYS, MP_RETURNS_NEVER };

/* word = value:31 | signal:1 | record + 1 : 17 | sequence:15; debt = units:32 | record + 1 : 17 | sequence:15. The last two name
 * the operation that wrote the word. */
struct mp_semaphore {
    _Atomic uint64_t word;
    _Atomic uint64_t debt; /* units that recovery has returned and nobody has released since */
    _Atomic uint32_t waiters; /* registered waiters; never too few, see mp_sem_enroll() */
    uint32_t maximum;
    uint32_t always; /* MP_RETURNS_ALWAYS */
};

struct mp_condition {
    struct mp_lock guard; /* barrier: its own lock. condition: unused, the user's lock guards it */
    _Atomic uint64_t tickets;
    _Atomic uint64_t generation; /* barrier: how many times it has ended a cycle */
    _Atomic uint64_t broken_generations; /* barrier: bit i set: generation - 1 - i ended broken */
    _Atomic uint32_t broken; /* barrier: broken until reset */
    uint32_t parties;
};

/* The readers stand in records, one for each process; see rwlock.c. */
struct mp_rwlock {
    struct mp_lock writer;
    _Atomic uint64_t tickets; /* of the cells that wait for it, where a condition has them */
    _Atomic uint32_t tenure; /* of the writer's lock: changes when somebody begins to have it */
    _Atomic uint32_t record_low; /* all records of its readers are from here ... */
    _Atomic uint32_t record_high; /* ... to below here */
};
_Static_assert(offsetof(struct mp_rwlock, tickets) == offsetof(struct mp_condition, tickets), "cells.c finds them");

/* Who waits at `bell`. word = count:16 | epoch:16 << 16; see rooms.c */
struct mp_room {
    _Atomic uint32_t word;
    _Atomic uint32_t bell; /* the block whose bell it is, + 1 */
};

/* 24 bytes beside the payload, by what the block is. */
union mp_more {
    struct {
        uint64_t unused[2];
        _Atomic uint32_t thread; /* mp_this_thread() of the owner. Written after the word is taken, set to 0 before it is given
                                  * back, so in the owning process it is never an earlier owner's */
    } lock;
    struct {
        struct mp_room joiners; /* of a counted queue */
        uint64_t flags; /* MP_QUEUE_; fixed when it is made */
        _Atomic uint64_t posted; /* chunk name:24 | sequence of its piece:40 << 24; 0: nothing is there. See spill.c */
    } queue;
    struct {
        uint64_t maxsize; /* messages, and bytes, that it keeps at most; fixed when it is made */
        uint64_t maxbytes;
        uint64_t flags; /* MP_BROADCAST_ */
    } broadcast;
    struct {
        uint64_t unused[2];
        uint64_t owner; /* mp_owner_word() of the block that it belongs to */
    } owned;
    struct {
        uint64_t token; /* the segment's, too */
        uint64_t creator; /* pid */
        uint64_t unused;
    } named;
    struct {
        uint64_t arena; /* block | serial << 32 of the segment that it is a piece of */
        uint64_t offset;
        uint64_t size;
    } heap;
    struct {
        uint64_t piece; /* mp_piece_name() */
        uint64_t size;
        uint64_t unused;
    } memory;
};
_Static_assert(sizeof(union mp_more) == 24, "it fits the block's second line");

struct mp_block {
    union {
        struct mp_lock lock;
        struct mp_semaphore semaphore;
        struct mp_condition condition;
        struct mp_rwlock rwlock;
        uint8_t bytes[64];
    };
    _Atomic uint64_t word; /* state:8 | slot + 1:16 << 8 | serial:32 << 32; the serial grows when the block is freed */
    uint32_t kind;
    _Atomic uint32_t pinned; /* lives until the family ends even if nobody holds it (a named segment) */
    _Atomic int32_t id; /* of the kernel object, -1 while there is none */
    int32_t key;
    int64_t made_at; /* time(2) just before the kernel object was made */
    uint64_t size;
    union mp_more more;
    _Atomic uint64_t holders[MP_HOLDER_WORDS]; /* four times holder + 1 (slot, or mp_carrier_holder()), 0: vacant; each once */
    _Atomic uint32_t chunks; /* chunk + 1 of the first one, 0: none */
    _Atomic uint32_t watcher; /* of a queue: slot + 1 of who last began to watch for a message and does not tell of one yet */
};

/* ---- carriers: messages that hold blocks -------------------------------------------------------------------------------- */

enum mp_carrier_state {
    MP_CARRIER_FREE,
    MP_CARRIER_MAKING, /* by the slot in the word; blocks may name it already */
    MP_CARRIER_SENT, /* it lives as long as the message does, whose piece it names */
    MP_CARRIER_ENDING /* by the slot in the word, or by a recovery (none): blocks may name it still */
};

/* word = state:8 | slot + 1:16 << 8 | life:40 << 24; see carriers.c. */
struct mp_carrier {
    _Atomic uint64_t word;
    _Atomic uint64_t queue; /* mp_owner_word() of the queue that the message is in */
    _Atomic uint64_t piece; /* mp_piece_name() of what the message lies in */
    uint64_t unused;
};

/* Who can hold a block: the process of a slot, or the message of a carrier. */
#define MP_HOLDER_IDS (MP_SLOTS + MP_CARRIERS)
static inline int mp_carrier_holder(uint32_t carrier) { return (int)(MP_SLOTS + carrier); }

/* ---- chunks: more holders of a block ---------------------------------------------------------------------------------- */

#define MP_CHUNK_WORDS 6
#define MP_CHUNK_SLOTS (MP_CHUNK_WORDS * 64u)
#define MP_CHUNK_RANGES ((MP_HOLDER_IDS + MP_CHUNK_SLOTS - 1) / MP_CHUNK_SLOTS) /* chunks that a block can have */

enum mp_chunk_state {
    MP_CHUNK_FREE,
    MP_CHUNK_CLAIMED, /* by the slot in the word, which is about to append it to the block's chain */
    MP_CHUNK_LINKED
};

/* word = state:8 | slot + 1:16 << 8 | block:32 << 32 */
struct mp_chunk {
    _Atomic uint64_t word;
    _Atomic uint32_t next; /* chunk + 1, 0: the last one */
    uint32_t range; /* bit i of held is holder range * MP_CHUNK_SLOTS + i */
    _Atomic uint64_t held[MP_CHUNK_WORDS];
};

/* ---- records: what a process has of a semaphore, or of an RWLock ----------------------------------------------- */

/* Of a semaphore, word = units:32 | operation:8 << 32 | sequence:15 << 40; the protocol stands in semaphore.c. Of an RWLock,
 * word = reading:16 | waiting:16 << 16 | tenure:32 << 32, and `done` is left as it was; see rwlock.c. */
struct mp_record {
    _Atomic uint64_t word;
    _Atomic uint64_t owner; /* block + 1 : 32 | slot + 1 : 16 << 32; 0 while free */
    _Atomic uint32_t done; /* changes:16 << 16 | the last sequence known to have been written to one of its words:15 */
    _Atomic uint32_t waiting;
    _Atomic uint32_t returned; /* recovery: by how many units the return of this record raises, or has raised, the value */
    uint8_t pad[4];
};

/* ---- cells: threads that wait in a Condition, Barrier, RWLock or Broadcast -------------------------------------- */

enum mp_cell_state {
    MP_CELL_FREE,
    MP_CELL_CLAIMED,
    MP_CELL_WAITING,
    MP_CELL_NOTIFIED, /* one of n: owed to another waiter if this one dies; or a barrier that has opened */
    MP_CELL_BROKEN, /* the barrier broke */
    MP_CELL_RELEASED /* notified together with everybody else: nobody is owed it */
};

/* word = state:8 | slot:16 << 8 | block:32 << 32 */
struct mp_cell {
    _Atomic uint64_t word;
    _Atomic uint64_t ticket; /* order of arrival */
    _Atomic uint64_t generation; /* of the barrier */
    _Atomic uint32_t index; /* what Barrier.wait() returns */
    uint8_t pad[36];
};

/* ---- wait records: threads that sleep --------------------------------------------------------------------------- */

enum mp_wait_kind {
    MP_WAIT_NONE,
    MP_WAIT_WRITING, /* the record is being written */
    MP_WAIT_RING, /* for a ring of the bell `where` */
    MP_WAIT_ZERO, /* for the bell `where` to be 0: of an event */
    MP_WAIT_MESSAGE /* in msgrcv(2), for a message in the queue of the block `where` */
};

/* word = kind:8 | slot + 1:16 << 8 | tid:32 << 32; 0: free. See waits.c */
struct mp_wait {
    _Atomic uint64_t word;
    _Atomic int64_t since_ns; /* CLOCK_MONOTONIC */
    _Atomic uint32_t where;
    uint8_t pad[12];
};

/* ---- the segment ----------------------------------------------------------------------------------------------- */

enum mp_family_state { MP_OPEN = 1, MP_CLOSING = 2 };

struct mp_header {
    _Atomic uint64_t magic; /* written last: whoever sees it sees a complete header */
    uint32_t version;
    _Atomic uint32_t state;
    uint64_t nonce;
    uint32_t uid; /* effective, of the founder: the cuid of everything that the family makes, but for its guest's */
    int32_t creator;
    uint32_t set_size; /* semaphores of each pooled set */
    _Atomic int32_t semid; /* the family's own set + 1, 0 while there is none */
    uint32_t pid_ns; /* the founder's pid namespace */
    uint32_t users_change; /* may its members become another user? */
    char program[256];

    /* Up to where the tables have been used: blocks at or above block_high never were. Read by everybody, seldom written. */
    _Alignas(64) _Atomic uint32_t block_high;
    _Atomic uint32_t record_high;
    _Atomic uint32_t cell_high;
    _Atomic uint32_t slot_high;
    _Atomic uint32_t chunk_high;
    _Atomic uint32_t wait_high;
    _Atomic uint32_t bank_high;
    _Atomic uint32_t carrier_high;
    _Atomic uint32_t undo; /* MP_UNDO_: does SEM_UNDO work here? See liveness.c */
    _Atomic uint32_t guest; /* user id + 1 that has the founder's rights on everything, 0: there is none. See access.c */
    _Atomic uint32_t access_wanted; /* somebody waits for them */
    _Atomic uint32_t mending; /* block + 1 of the queue whose lock recovery has, or is about to take; 0: none. See queue.c */
    _Atomic uint64_t space; /* block + 1 | serial << 32 of the memory that is held by processes and messages; 0: none so far */

    /* Written by whoever takes something: in a line that nobody else has to read. */
    _Alignas(64) _Atomic uint32_t block_hint;
    _Atomic uint32_t record_hint;
    _Atomic uint32_t chunk_hint;
    _Atomic uint32_t carrier_hint;

    _Alignas(64) _Atomic uint32_t missing_since; /* when (ms, 0: not) fewer were attached than are alive; see recovery.c */
    _Atomic int64_t reaper_launched_ns;
    _Atomic uint64_t deaths_seen; /* slots recovered so far: statistics */
    _Atomic uint64_t reaper; /* the reaper, by pid and start time; 0: there was none so far. See liveness.c */
    _Atomic uint32_t reaper_ns; /* its pid namespace */
    _Atomic uint64_t recoverer; /* who has the recovery lock, 0: nobody */
};

struct mp_bank {
    union {
        _Atomic uint64_t mark; /* the family's nonce; not used in the first one */
        uint8_t line[64];
    };
    struct mp_block blocks[MP_BANK];
    struct mp_chunk chunks[MP_BANK];
};

struct mp_segment {
    union {
        struct mp_header header;
        uint8_t page[4096];
    };
    _Atomic int32_t alive_sets[MP_ALIVE_SETS + -MP_ALIVE_SETS % 16]; /* id + 1, 0 while there is none */
    _Atomic int32_t bell_sets[MP_BELL_SETS + -MP_BELL_SETS % 16];
    _Atomic int32_t banks[MP_BANKS]; /* the same; of the first one, 0 */
    struct mp_slot slots[MP_SLOTS];
    struct mp_cell cells[MP_CELLS];
    struct mp_wait waits[MP_WAITS];
    struct mp_record records[MP_RECORDS];
    struct mp_carrier carriers[MP_CARRIERS];
    struct mp_bank first;
};

_Static_assert(sizeof(struct mp_header) <= 4096, "the header fits its page");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "what processes share is changed by the processor itself, not under a lock");
_Static_assert(MP_HOLDER_IDS < 0xffff, "slot + 1, and a holder's number + 1, fit 16 bits");
_Static_assert(sizeof(struct mp_slot) == 64 && sizeof(struct mp_cell) == 64 && sizeof(struct mp_chunk) == 64, "a line each");
_Static_assert(sizeof(struct mp_record) == 32 && sizeof(struct mp_wait) == 32, "two to a cache line");
_Static_assert(sizeof(struct mp_carrier) == 32, "the same");
_Static_assert(offsetof(struct mp_block, word) == 64, "the payload has a cache line of its own");
_Static_assert(offsetof(struct mp_block, holders) == 128 && sizeof(struct mp_block) == 192, "three cache lines");
_Static_assert(offsetof(struct mp_segment, slots) % 64 == 0 && offsetof(struct mp_segment, first.blocks) % 64 == 0, "aligned");
_Static_assert(MP_CHUNKS == MP_BLOCKS && MP_BLOCKS % MP_BANK == 0, "a bank has as many of both");

/* ---- the words of the tables ------------------------------------------------------------------------------------------ */

static inline uint64_t mp_slot_word(enum mp_slot_state state, uint32_t generation, pid_t pid) {
    return (uint64_t)state | (uint64_t)(generation & 0xffffff) << 8 | (uint64_t)(uint32_t)pid << 32;
}
static inline enum mp_slot_state mp_slot_state_of(uint64_t word) { return word & 0xff; }
static inline uint32_t mp_slot_generation(uint64_t word) { return word >> 8 & 0xffffff; }
static inline pid_t mp_slot_pid(uint64_t word) { return (pid_t)(word >> 32); }

static inline uint64_t mp_tie_word(int slot, uint32_t generation) {
    return (uint64_t)(slot + 1) | (uint64_t)(generation & 0xffffff) << 16;
}
static inline int mp_tie_slot(uint64_t tie) { return (int)(tie & 0xffff) - 1; }
static inline uint32_t mp_tie_generation(uint64_t tie) { return tie >> 16 & 0xffffff; }

static inline uint64_t mp_block_word(enum mp_block_state state, int slot, uint32_t serial) {
    return (uint64_t)state | (uint64_t)(slot + 1) << 8 | (uint64_t)serial << 32;
}
static inline enum mp_block_state mp_block_state_of(uint64_t word) { return word & 0xff; }
static inline int mp_block_slot_of(uint64_t word) { return (int)(word >> 8 & 0xffff) - 1; }
static inline uint32_t mp_block_serial(uint64_t word) { return word >> 32; }
/* Is it there for its holders? */
static inline bool mp_block_is_live(uint64_t word) {
    return mp_block_state_of(word) == MP_BLOCK_READY || mp_block_state_of(word) == MP_BLOCK_LEAVING;
}

static inline uint64_t mp_wait_word(enum mp_wait_kind kind, int slot, pid_t tid) {
    return (uint64_t)kind | (uint64_t)(slot + 1) << 8 | (uint64_t)(uint32_t)tid << 32;
}
static inline enum mp_wait_kind mp_wait_kind_of(uint64_t word) { return word & 0xff; }
static inline int mp_wait_slot(uint64_t word) { return (int)(word >> 8 & 0xffff) - 1; }
static inline pid_t mp_wait_tid(uint64_t word) { return (pid_t)(word >> 32); }

static inline uint64_t mp_carrier_word(enum mp_carrier_state state, int slot, uint64_t life) {
    return (uint64_t)state | (uint64_t)(slot + 1) << 8 | life << 24;
}
static inline enum mp_carrier_state mp_carrier_state_of(uint64_t word) { return word & 0xff; }
static inline int mp_carrier_slot_of(uint64_t word) { return (int)(word >> 8 & 0xffff) - 1; }
static inline uint64_t mp_carrier_life(uint64_t word) { return word >> 24; }

/* One life of a piece, in a word: segment:10 | number:13 << 10 | sequence:40 << 23. */
static inline uint64_t mp_piece_name(uint32_t segment, uint32_t number, uint64_t sequence) {
    return segment | (uint64_t)number << 10 | sequence << 23;
}
static inline uint32_t mp_name_segment(uint64_t name) { return name & 0x3ff; }
static inline uint32_t mp_name_number(uint64_t name) { return name >> 10 & 0x1fff; }
static inline uint64_t mp_name_sequence(uint64_t name) { return name >> 23; }

/* A set of slots, as recovery has of the dead ones. */
static inline bool mp_slots_have(const uint64_t *slots, int slot) {
    return slot >= 0 && slot < (int)MP_SLOTS && (slots[slot / 64] >> slot % 64 & 1);
}

static inline int mp_record_slot(uint64_t owner) { return (int)(owner >> 32 & 0xffff) - 1; }

/* The id of a set that has been published; -1 if none has. */
static inline int mp_published(_Atomic int32_t *set) {
    int32_t plus_1 = atomic_load_explicit(set, memory_order_acquire);
    return plus_1 > 0 ? plus_1 - 1 : -1;
}

static inline uint32_t mp_cell_bell(uint32_t cell) { return MP_BLOCKS + cell; }

#endif

/* A family, as one process knows it. */
#ifndef MPIPC_FAMILY_H
#define MPIPC_FAMILY_H

#include "layout.h"

struct mp_family;
struct mp_queue_view;

/* What a member does once a tick: see tick.h, which is above everything that waits. */
typedef int mp_tick_function(struct mp_family *f);

struct mp_family {
    struct mp_segment *seg;
    struct mp_header *h;
    int shmid;
    int semid;
    uint64_t nonce;
    uint32_t set_size; /* the header's, checked */
    pid_t pid;
    int slot;      /* -1 while this process has not joined */
    uint64_t me;   /* slot + 1, 0 while this process has not joined */
    int fork_slot; /* reserved for the child of the fork that is under way, -1 if none */
    int start_slot;        /* the same, reserved by Process.start() before that; -1 if none */
    uint32_t start_thread; /* mp_this_thread() of who reserved it */
    int32_t squatted_key;  /* the last key that was found taken by another user */
    pid_t reaper_child;    /* a reaper that is a direct child of this process, 0 if none */
    uint32_t *local_refs;   /* handles of this process, by block */
    uint32_t *local_record; /* record + 1 of this process, by block */
    struct mp_queue_view *_Atomic space; /* see mp_space_view() */
    _Atomic uintptr_t *stretches; /* of the queue that is being recovered; MP_ARENA_SEGMENTS */
    char *reaper_path;
    struct mp_family *next;
    uint32_t pid_ns; /* this process's pid namespace */
    uint64_t tie; /* of this process: what it has written into its slot, where others can write, too. See ties.c */
    bool reaper_failed; /* this process could not start one, when it last tried */
    bool removed; /* see mp_family_is_removed() */
    bool is_reaper;
    bool listens; /* the reaper: it has a thread that rings for who has no right to */
    bool counted_as_reaper; /* of the reaper: in MP_SEM_REAPER */
    _Atomic int recovery_held; /* how this process holds the recovery lock, or wants it; see liveness.c */
    struct mp_bank *_Atomic banks[MP_BANKS]; /* as far as they are mapped */
    struct mp_block nothing; /* see mp_block_at() */
    int refused_error; /* when this process, as that user, was last told that it has no access; MP_OK: it was not. See access.c */
    uint32_t refused_uid;
    int64_t refused_ns;
    bool again; /* the last recovery has left something to be looked at soon */
    bool outsider; /* attached without being a member or the reaper: the sweep */
    mp_tick_function *tick; /* NULL: of the reaper, and of the sweep, which wait for nobody */
    _Atomic int64_t looked; /* when this process last looked after the family, CLOCK_MONOTONIC_COARSE ns */
    _Atomic uint32_t recent[MP_RECENT]; /* blocks freed by this process, + 1: where a free one is looked for first */
    _Atomic uint32_t recent_top;
};

/* A waiter looks after the family once in a while: is the reaper there, has the owner died? */
#ifndef MP_TICK_NS
#define MP_TICK_NS 1000000000ll
#endif

/* Has this process looked after the family in the last tick? Who only tries, or never waits for so long, is perhaps the only
 * one who is left, and what he tries for is with a dead process. */
static inline bool mp_tick_is_due(struct mp_family *f) {
    return f->slot >= 0 && f->tick != NULL &&
           mp_coarse_ns() - atomic_load_explicit(&f->looked, memory_order_relaxed) >= MP_TICK_NS;
}
static inline void mp_look_after_now(struct mp_family *f) {
    if (f->tick != NULL)
        f->tick(f);
}
static inline void mp_look_after(struct mp_family *f) {
    if (mp_tick_is_due(f))
        f->tick(f);
}

/* How far the tables have been used. What stands in shared memory, a process may have written that has run wild: it is never
 * believed beyond the end of a table. */
static inline uint32_t mp_slot_high(struct mp_family *f) { return mp_at_most(atomic_load(&f->h->slot_high), MP_SLOTS); }
static inline uint32_t mp_block_high(struct mp_family *f) { return mp_at_most(atomic_load(&f->h->block_high), MP_BLOCKS); }
static inline uint32_t mp_chunk_high(struct mp_family *f) { return mp_at_most(atomic_load(&f->h->chunk_high), MP_CHUNKS); }
static inline uint32_t mp_record_high(struct mp_family *f) { return mp_at_most(atomic_load(&f->h->record_high), MP_RECORDS); }
static inline uint32_t mp_cell_high(struct mp_family *f) { return mp_at_most(atomic_load(&f->h->cell_high), MP_CELLS); }

static inline uint32_t mp_wait_high(struct mp_family *f) {
    uint32_t high = mp_at_most(atomic_load(&f->h->wait_high), MP_WAITS);
    return high > MP_WAITS_LEAST ? high : MP_WAITS_LEAST;
}

struct mp_block *mp_block_unmapped(struct mp_family *f, uint32_t index); /* banks.c */
struct mp_chunk *mp_chunk_unmapped(struct mp_family *f, uint32_t chunk);

/* `index` is below MP_BLOCKS. Of a bank that cannot be mapped here: a block that nobody has and nobody can take. */
static inline struct mp_block *mp_block_at(struct mp_family *f, uint32_t index) {
    struct mp_bank *e = atomic_load_explicit(&f->banks[index / MP_BANK], memory_order_acquire);
    return __builtin_expect(e != NULL, 1) ? &e->blocks[index % MP_BANK] : mp_block_unmapped(f, index);
}

/* `chunk` is below MP_CHUNKS. NULL: of a bank that cannot be mapped here, or does not exist. */
static inline struct mp_chunk *mp_chunk_at(struct mp_family *f, uint32_t chunk) {
    struct mp_bank *e = atomic_load_explicit(&f->banks[chunk / MP_BANK], memory_order_acquire);
    return __builtin_expect(e != NULL, 1) ? &e->chunks[chunk % MP_BANK] : mp_chunk_unmapped(f, chunk);
}

#endif

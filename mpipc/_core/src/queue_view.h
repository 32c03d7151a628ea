/* A queue as it lies in shared memory, its messages, and what one handle of a process knows of it. */
#ifndef MPIPC_QUEUE_VIEW_H
#define MPIPC_QUEUE_VIEW_H

#include "family.h"

/* The payload of a queue's block. */
struct mp_queue {
    struct mp_lock lock; /* guards spill and token, and everything where a size is compared */
    struct mp_room getters;
    struct mp_room putters;    /* of a bounded queue */
    _Atomic uint32_t spilled;  /* messages in the spill; derived, see mp_spill_repair() */
    _Atomic uint32_t token;    /* generation:16 << 16 | MP_TOKEN_ flags */
    _Atomic uint32_t credit;   /* this many more messages fit for certain */
    _Atomic uint32_t zeros;    /* how often the number of unfinished tasks has come to 0 */
    _Atomic uint64_t arena;    /* block + 1 | serial << 32 of the directory; 0: there is none */
    _Atomic int64_t
        pending;   /* unfinished tasks that are not in the queue: taken, and not done yet; of jobs: how many were put */
};
_Static_assert(sizeof(struct mp_queue) == 64, "the payload of a block");

enum {
    MP_TOKEN_OUT = 1,     /* a token of this generation is in the kernel queue, or in the hand of a receiver */
    MP_TOKEN_SUSPECT = 2, /* ... or died with it: somebody has to look */
    MP_TOKEN_REPAIR = 4,  /* the spill was being changed by a process that died */
    MP_TOKEN_ARENA = 8,   /* the queue owns segments, or its maker died making one */
    MP_TOKEN_DRY = 16,    /* the kernel queue has only tokens, but for what comes from senders who clear this */
    MP_TOKEN_GONE = 32,   /* the kernel queue was removed */
    MP_TOKEN_MENDING = 64, /* the lock's owner is about to make the tokens exact again */
    MP_TOKEN_SHUT = 128,  /* the queue was shut down: nothing is put any more. Like DROP never cleared */
    MP_TOKEN_DROP = 256,  /* ... at once: what is in it counts no more, and is to be given back */
    MP_TOKEN_BACK = 512,  /* of jobs: some that were taken may have come back */
    MP_TOKEN_SEEKING = 1024 /* ... for which the lock's owner is looking */
};

/* On top of the stack `posted`, in the place of a chunk: nothing is posted any more. */
#define MP_POSTED_SHUT UINT64_MAX

/* Flags of a queue. */
enum {
    MP_QUEUE_PRIORITY = 1, /* levels are honoured; 0 comes first */
    MP_QUEUE_COUNTED = 2,  /* taken messages are counted until mp_queue_task_done() */
    MP_QUEUE_VIEWS = 4,    /* receivers have what was copied for a message as it is, read-only; it is for them to know */
    MP_QUEUE_WORK = 8      /* its messages are jobs, see jobs.c */
};
#define MP_QUEUE_LEVELS 32768u

/* Types of messages. A token has no body: a queue that is full takes it nevertheless (msgsnd(2) counts bytes, and tokens are
 * too few to reach the limit on the number of messages). */
#define MP_TYPE_TOKEN 1l       /* + generation */
#define MP_TYPE_LEVEL 0x20000l /* + level */

/* Of the last, the message holds only where it is. The others are in it; they differ for whoever wrote them. */
enum { MP_BODY_INLINE, MP_BODY_PLAIN, MP_BODY_PIECE };

/* What is larger goes through shared memory: with 4 KiB a message the default queue of 16 KiB would hold only four. */
#define MP_QUEUE_INLINE 2048u

struct mp_message {
    long type;
    unsigned char kind; /* the body begins here */
    unsigned char data[MP_QUEUE_INLINE + 1]; /* one more than we send: see receive() in receive.c */
};
#define MP_BODY_SIZE (1 + MP_QUEUE_INLINE)

/* A message among others in memory. */
struct mp_body {
    uint32_t length;
    unsigned char body[]; /* kind and data as in struct mp_message */
};
static inline uint32_t mp_body_size(uint32_t length) { return (uint32_t)(sizeof(struct mp_body) + length + 7) & ~7u; }

/* Where a piece is, and which of its lives is meant. */
struct mp_piece {
    uint32_t segment;
    uint32_t number;
    uint64_t sequence;
    uint64_t length; /* of the message */
    uint64_t carrier; /* + 1, 0: none; it holds what the message refers to. See carriers.c */
};

/* A job's, at the end of its piece. */
struct mp_job {
    uint64_t number;  /* those with lower ones were put before */
    uint64_t length;  /* as in its descriptor, which is gone when it was taken */
    uint64_t carrier; /* the same */
    _Atomic uint32_t attempts;
    uint32_t kind; /* MP_BODY_ */
};

struct mp_item {
    struct mp_message message;
    int64_t level; /* of the spill's lane that it came from, -1: from the kernel queue */
    long token; /* the type of the token in our hand, 0: none */
    struct mp_piece piece;
    unsigned char *data; /* of the message: in `message`, or in the piece */
    uint64_t size;
    uint32_t job_kind; /* of a job, which is in a piece: MP_BODY_ of what is there */
    uint32_t attempts; /* ... and how often it was taken, with this time */
};

/* ---- the arena ----------------------------------------------------------------------------------------------------- */

/* head = position of the first message: chunk:32 << 32 | offset:32; 0 while the lane is empty. The first chunk leads to the
 * others. tail is the last of them, as far as is known. */
struct mp_lane {
    _Atomic uint64_t head;
    _Atomic uint64_t tail;
};

/* The directory: the first segment of an arena. */
struct mp_arena {
    uint64_t stamp;            /* of the last walk along the lanes and what was posted; needs the queue's lock */
    _Atomic uint32_t segments; /* how many entries are published, as far as is known; they never change again */
    uint32_t pad;
    _Atomic uint64_t segment[MP_ARENA_SEGMENTS]; /* see space.c */
    _Atomic uint32_t low[MP_ARENA_SEGMENTS]; /* no piece of the segment before this one is free, as far as is known */
    _Atomic uint64_t used[MP_QUEUE_LEVELS / 64]; /* a lane whose bit is clear is empty */
    struct mp_lane lanes[];
};

/* What one handle of a process knows of a queue. */
struct mp_queue_view {
    struct mp_family *f;
    struct mp_block *b;
    struct mp_queue *q;
    uint32_t index;
    int id;
    long selector; /* msgrcv(2) */
    uint32_t flags;
    uint32_t barred;           /* flags of the token with which a sender does not use the kernel queue */
    _Atomic uint32_t streak;   /* messages taken since the last one that was slept for */
    _Atomic uint32_t patience; /* length of the streak that makes us try shared memory */
    _Atomic uint32_t longest;  /* body that the kernel takes */
    _Atomic int64_t asked;     /* the tick of CLOCK_MONOTONIC_COARSE, in ns, in which the kernel queue was there */
    _Atomic(struct mp_arena *) arena;
    _Atomic uintptr_t *segments; /* where they are attached, and what is in them; see space.h */
};

static inline struct mp_queue *mp_queue_of(struct mp_block *b) { return (struct mp_queue *)b->bytes; }
static inline struct mp_room *mp_joiners(struct mp_block *b) { return &b->more.queue.joiners; }
static inline _Atomic uint64_t *mp_posted(struct mp_block *b) { return &b->more.queue.posted; }
static inline bool mp_is_posted(uint64_t top) { return top + 1 > 1; } /* neither 0 nor MP_POSTED_SHUT */
static inline bool mp_queue_is_shut(struct mp_queue_view *v) { return atomic_load(&v->q->token) & MP_TOKEN_SHUT; }
static inline uint64_t mp_queue_levels(struct mp_queue_view *v) { return v->flags & MP_QUEUE_PRIORITY ? MP_QUEUE_LEVELS : 1; }

#endif

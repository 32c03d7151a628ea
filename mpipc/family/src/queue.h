/* Queues: messages in a System V message queue, and in shared memory where that has no room for them.
 *
 * A queue is a family block of kind QUEUE; it owns one message queue, the bells its waiters park at, and, once it needs
 * them, shared memory segments (its arena). Whatever it owns is pinned, carries the queue's name in extra[2], and goes with
 * the queue (mp_queue_disown). The parts:
 *
 *   queue.c    sending and receiving: which way a message goes, and in which order
 *   spill.c    messages that the kernel queue has no room for: FIFOs in the arena, one for each priority level
 *   arena.c    pieces of shared memory: large messages, and the chunks of the spill
 *   waiting.c  the rooms in which putters, getters and joiners wait */
#ifndef MPIPC_QUEUE_H
#define MPIPC_QUEUE_H

#include "family.h"

#include <semaphore.h>

/* A room: who waits at `bell`. word = count:16 | epoch:16 << 16; see waiting.c */
struct mp_room {
    _Atomic uint32_t word;
    _Atomic uint32_t bell; /* the block whose bell it is, + 1 */
};

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
    _Atomic int64_t pending;   /* unfinished tasks that are not in the queue: taken, and not done yet */
};
_Static_assert(sizeof(struct mp_queue) == 64, "the payload of a block");

enum {
    MP_TOKEN_OUT = 1,     /* a token of this generation is in the kernel queue, or in the hand of a receiver */
    MP_TOKEN_SUSPECT = 2, /* ... or died with it: somebody has to look */
    MP_TOKEN_REPAIR = 4,  /* the spill was being changed by a process that died */
    MP_TOKEN_ARENA = 8,   /* the queue owns segments, or its maker died making one */
    MP_TOKEN_DRY = 16,    /* the kernel queue has only tokens, but for what comes from senders who clear this */
    MP_TOKEN_GONE = 32    /* the kernel queue was removed */
};

/* extra[1] of a queue's block; fixed when it is made */
enum {
    MP_QUEUE_PRIORITY = 1, /* levels are honoured; 0 comes first */
    MP_QUEUE_COUNTED = 2   /* taken messages are counted until mp_queue_task_done() */
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
    unsigned char data[MP_QUEUE_INLINE + 1]; /* one more than we send: see receive() in queue.c */
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
};

struct mp_item {
    struct mp_message message;
    int64_t level; /* of the spill's lane that it came from, -1: from the kernel queue */
    long token; /* the type of the token in our hand, 0: none */
    struct mp_piece piece;
    unsigned char *data; /* of the message: in `message`, or in the piece */
    uint64_t size;
};

/* ---- the arena ----------------------------------------------------------------------------------------------------- */

#define MP_ARENA_SEGMENTS 1024u

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
    _Atomic uint64_t segment[MP_ARENA_SEGMENTS]; /* see arena.c */
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
    _Atomic uint32_t streak;   /* messages taken since the last one that was slept for */
    _Atomic uint32_t patience; /* length of the streak that makes us try shared memory */
    _Atomic uint32_t longest;  /* body that the kernel takes */
    _Atomic int64_t asked;     /* the tick of CLOCK_MONOTONIC_COARSE, in ns, in which the kernel queue was there */
    _Atomic(struct mp_arena *) arena;
    _Atomic uintptr_t *segments; /* where they are attached, and what is in them; see arena.c */
};

/* queue.c */
int mp_queue_make(struct mp_family *f, uint32_t index, uint64_t maxsize, uint32_t flags);
int mp_queue_open(struct mp_queue_view *v, struct mp_family *f, uint32_t index);
void mp_queue_close(struct mp_queue_view *v);
int mp_queue_try_send(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level);
int mp_queue_send(struct mp_queue_view *v, struct mp_message *m, uint32_t length, uint32_t level, int64_t deadline_ns);
uint64_t mp_queue_send_many(struct mp_queue_view *v, const unsigned char *bodies, uint64_t count, uint32_t level,
                            int64_t deadline_ns, int *outcome);
int mp_queue_try_take(struct mp_queue_view *v, struct mp_item *item);
int mp_queue_take(struct mp_queue_view *v, struct mp_item *item, int64_t deadline_ns);
void mp_queue_return_token(struct mp_queue_view *v, struct mp_item *item);
int mp_queue_take_many(struct mp_queue_view *v, struct mp_item *items, uint32_t most, uint32_t *count, int64_t deadline_ns);
int mp_queue_await(struct mp_queue_view *v, struct mp_item *item);
int mp_queue_lock(struct mp_queue_view *v, int64_t deadline_ns);
int64_t mp_queue_soon(void);
void mp_queue_unlock(struct mp_queue_view *v);
int64_t mp_queue_size(struct mp_queue_view *v);
int64_t mp_queue_room(struct mp_queue_view *v);
int mp_queue_task_done(struct mp_queue_view *v, int64_t deadline_ns);
int64_t mp_queue_unfinished(struct mp_queue_view *v, int64_t deadline_ns);
void mp_queue_disown(struct mp_family *f, uint32_t index);
void mp_queue_recover(struct mp_family *f, uint32_t index, const uint64_t *dead);
void mp_queue_trim(struct mp_family *f, uint32_t index, int64_t idle_ns);
void mp_queue_heal(struct mp_family *f, uint32_t index);
uint64_t mp_queue_name(struct mp_family *f, uint32_t index);

/* spill.c; all but the first two need the queue's lock */
int mp_spill_post(struct mp_queue_view *v, const unsigned char *bodies, uint64_t size, uint32_t count, uint32_t level);
uint64_t mp_spill_posted(struct mp_queue_view *v);
int mp_spill_collect(struct mp_queue_view *v);
int mp_spill_append(struct mp_queue_view *v, const struct mp_message *m, uint32_t length, uint32_t level);
int64_t mp_spill_first_level(struct mp_queue_view *v);
int mp_spill_pop(struct mp_queue_view *v, uint32_t level, struct mp_item *item);
int mp_spill_repair(struct mp_queue_view *v);

/* arena.c */
struct mp_piece_place {
    _Atomic uint64_t *word;
    unsigned char *data;
    uint64_t size; /* there is room for so much */
};
typedef void mp_piece_visitor(struct mp_queue_view *v, uint32_t segment, uint32_t number, const struct mp_piece_place *place,
                              void *context);

struct mp_arena *mp_arena_open(struct mp_queue_view *v);
int mp_arena_make(struct mp_queue_view *v);
void mp_arena_close(struct mp_queue_view *v);
int mp_arena_each(struct mp_queue_view *v, mp_piece_visitor *visit, void *context);
int mp_piece_claim(struct mp_queue_view *v, uint64_t size, struct mp_piece *piece, unsigned char **data);
int mp_piece_claim_chunk(struct mp_queue_view *v, uint64_t size, bool post, struct mp_piece *piece,
                         struct mp_piece_place *place);
int mp_piece_find(struct mp_queue_view *v, uint32_t segment, uint32_t number, struct mp_piece_place *place);
bool mp_piece_sent(struct mp_queue_view *v, const struct mp_piece *piece);
void mp_piece_adopt(struct mp_queue_view *v, const struct mp_piece *piece);
bool mp_piece_is_there(struct mp_queue_view *v, const struct mp_piece *piece);
unsigned char *mp_piece_receive(struct mp_queue_view *v, const struct mp_piece *piece);
void mp_piece_free_at(struct mp_queue_view *v, uint32_t segment, uint32_t number, _Atomic uint64_t *word, uint64_t sequence);
void mp_piece_free(struct mp_queue_view *v, const struct mp_piece *piece);
bool mp_arena_recover(struct mp_queue_view *v, const uint64_t *dead);
int64_t mp_arena_trim(struct mp_queue_view *v, int64_t idle_ns);
void mp_arena_usage(struct mp_queue_view *v, uint64_t *bytes, uint64_t *in_use, uint64_t *segments);
static inline uint64_t mp_arena_levels(struct mp_queue_view *v) { return v->flags & MP_QUEUE_PRIORITY ? MP_QUEUE_LEVELS : 1; }

enum mp_piece_state {
    MP_PIECE_FREE,
    MP_PIECE_FILLING,
    MP_PIECE_QUEUED,
    MP_PIECE_RECEIVED,
    MP_PIECE_SPILL,
    MP_PIECE_POSTED,
    MP_PIECE_ORPHAN /* FILLING by a process that died; with a slot: of the lock's owner, who finds out whether it was sent */
};
/* May its descriptor be in the queue? */
static inline bool mp_piece_is_message(enum mp_piece_state state) {
    return state == MP_PIECE_FILLING || state == MP_PIECE_QUEUED || state == MP_PIECE_ORPHAN;
}
#define MP_PIECE_SEQUENCE 0xffffffffffull
static inline uint64_t mp_piece_word_of(enum mp_piece_state state, int slot, uint64_t sequence) {
    return (uint64_t)state | (uint64_t)(slot + 1) << 8 | sequence << 24;
}
static inline enum mp_piece_state mp_piece_state_of(uint64_t word) { return word & 0xff; }
static inline int mp_piece_slot_of(uint64_t word) { return (int)(word >> 8 & 0xffff) - 1; }
static inline uint64_t mp_piece_sequence_of(uint64_t word) { return word >> 24; }

/* waiting.c */
/* A thread that makes `fd` readable when the queue is not empty. */
struct mp_watch {
    int fd;
    pthread_mutex_t lock; /* of the fd's state, which is always known together with the queue's */
    _Atomic int watching; /* 1: the fd is not readable, and the thread looks after it */
    _Atomic int stopped;
    sem_t wanted;
};

int mp_room_make(struct mp_family *f, uint32_t queue, struct mp_room *room);
uint32_t mp_room_enter(struct mp_room *room);
void mp_room_leave(struct mp_room *room, uint32_t epoch);
uint32_t mp_room_stay(struct mp_room *room, uint32_t epoch);
void mp_room_ring(struct mp_family *f, struct mp_room *room, bool all);
_Atomic uint32_t *mp_sleeper_enter(struct mp_family *f, uint32_t queue);
void mp_sleeper_leave(_Atomic uint32_t *place);
uint32_t mp_sleepers(struct mp_family *f, uint32_t queue);
void mp_watch_run(struct mp_queue_view *v, struct mp_watch *w);
void mp_watch_look_again(struct mp_queue_view *v, struct mp_watch *w);
int mp_watch_start(struct mp_queue_view *v, struct mp_watch *w, int fd);
void mp_queue_await_hearing(struct mp_queue_view *v, int64_t deadline_ns);
void mp_watch_stop(struct mp_queue_view *v, struct mp_watch *w);
int mp_room_wait(struct mp_family *f, struct mp_room *room, int64_t deadline_ns);
void mp_room_heal(struct mp_family *f, struct mp_room *room);

static inline struct mp_queue *mp_queue_of(struct mp_block *b) { return (struct mp_queue *)b->bytes; }
static inline struct mp_room *mp_joiners(struct mp_block *b) { return (struct mp_room *)&b->extra[0]; }
/* What was posted last: chunk name:24 | sequence of its piece:40 << 24; 0: nothing is there. See spill.c */
static inline _Atomic uint64_t *mp_posted(struct mp_block *b) { return (_Atomic uint64_t *)&b->extra[2]; }
static inline uint32_t mp_room_count(struct mp_room *room) { return atomic_load(&room->word) & 0xffff; }

#endif

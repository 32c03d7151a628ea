/* Broadcasts: a log that each of its subscriptions reads from its own place. */
#ifndef MPIPC_BROADCAST_H
#define MPIPC_BROADCAST_H

#include "family.h"

#define MP_SUBSCRIPTIONS 1024u /* to one broadcast */

/* Flags of a broadcast. */
enum { MP_BROADCAST_DROP = 1 }; /* who is slow loses the oldest messages; without it, who puts waits for him */

/* The payload of a broadcast's block. end = number of the next message:62 << 2 | MP_END_ flags */
struct mp_broadcast {
    struct mp_lock lock; /* of who puts */
    _Atomic uint64_t tickets; /* of the cells that wait for it, where a condition has them */
    _Atomic uint64_t end; /* what is before it has been put */
    _Atomic uint64_t first; /* number of the oldest message that is kept: what is before it may be written over */
    _Atomic uint32_t high; /* the places of subscriptions are used up to here */
    _Atomic uint32_t getters; /* somebody may be asleep until a message comes; 1 is written by him, and 0 by who rings */
    _Atomic uint32_t putters; /* the same, until there is room */
};
_Static_assert(sizeof(struct mp_broadcast) <= 64, "the payload of a block");
_Static_assert(offsetof(struct mp_broadcast, tickets) == offsetof(struct mp_condition, tickets), "cells.c finds them");

enum {
    MP_END_SHUT = 1, /* nothing is put any more. Like the other one never cleared */
    MP_END_DROP = 2, /* ... nor got */
    MP_END_SHIFT = 2
};

/* The payload of a subscription's block. */
struct mp_subscription {
    _Atomic uint64_t next; /* number of the message that it gets next */
    _Atomic uint64_t lost; /* messages that it was too slow for */
    uint64_t broadcast; /* block + 1 | serial << 32; fixed when it is made */
};

/* What a cell waits for. No other kind of object has these places. */
enum { MP_PLACE_GET = 0x80000001u, MP_PLACE_PUT = 0x80000002u };

/* Where a message lies in the log, of all that was ever written to that. */
struct mp_entry {
    _Atomic uint64_t start;
    _Atomic uint64_t length; /* bytes << 1 | kind:1 */
};

/* The segment: the places of subscriptions (block + 1 | serial << 32, 0: vacant), an entry for each message that may be kept and
 * one more, and the messages' bytes. */
struct mp_broadcast_view {
    struct mp_family *f;
    struct mp_block *b;
    struct mp_broadcast *c;
    uint32_t index;
    bool drops;
    uint64_t maxsize, maxbytes;
    _Atomic uint64_t *subscriptions;
    struct mp_entry *entries;
    unsigned char *bytes;
    void *segment;
};

/* A message on its way in or out. */
struct mp_letter {
    uint64_t number;
    uint64_t start;
    uint64_t length;
    uint32_t kind; /* 0 or 1: as whoever has put it says */
    unsigned char *data;
};

uint64_t mp_broadcast_round(uint64_t maxbytes);
uint64_t mp_broadcast_size(uint64_t maxsize, uint64_t maxbytes);
void mp_broadcast_init(struct mp_block *b, uint64_t maxsize, uint64_t maxbytes, uint32_t flags);
int mp_broadcast_open(struct mp_broadcast_view *v, struct mp_family *f, uint32_t index);
void mp_broadcast_close(struct mp_broadcast_view *v);

int mp_broadcast_begin(struct mp_broadcast_view *v, struct mp_letter *letter, int64_t deadline_ns);
int mp_broadcast_publish(struct mp_broadcast_view *v, struct mp_letter *letter);
void mp_broadcast_cancel(struct mp_broadcast_view *v);
void mp_broadcast_shutdown(struct mp_broadcast_view *v, bool immediate);
uint64_t mp_broadcast_kept(struct mp_broadcast_view *v, uint64_t *bytes);

int mp_subscribe(struct mp_broadcast_view *v, uint32_t index);
int64_t mp_subscription_at(struct mp_broadcast_view *v, uint32_t place);
int mp_subscription_next(struct mp_broadcast_view *v, struct mp_subscription *s, struct mp_letter *letter);
bool mp_subscription_take(struct mp_broadcast_view *v, struct mp_subscription *s, const struct mp_letter *letter);
uint64_t mp_subscription_behind(struct mp_broadcast_view *v, struct mp_subscription *s);
uint64_t mp_subscription_lost(struct mp_broadcast_view *v, struct mp_subscription *s);
void mp_subscription_take_down(struct mp_family *f, uint32_t index);

int64_t mp_broadcast_cell(struct mp_broadcast_view *v, int64_t cell, uint32_t place);
uint32_t mp_broadcast_waiting(struct mp_broadcast_view *v, uint32_t place);

static inline struct mp_broadcast *mp_broadcast_of(struct mp_block *b) { return (struct mp_broadcast *)b->bytes; }
static inline struct mp_subscription *mp_subscription_of(struct mp_block *b) { return (struct mp_subscription *)b->bytes; }
static inline bool mp_broadcast_is_shut(struct mp_broadcast_view *v) { return atomic_load(&v->c->end) & MP_END_SHUT; }

#endif

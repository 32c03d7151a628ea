/* The spill: messages for which the kernel queue had no room, in the order they were put. One lane for each level.
 *
 * A lane is a chain of chunks (pieces of the arena in state SPILL), each with messages one after the other. The queue's lock
 * is held for every change, and a process may die holding it, so the truth is in words that change by one store each:
 *
 *   chunk->filled   bytes and messages written; a message is in the spill once it is counted here
 *   chunk->next     the chunk that follows; a chunk is in the lane once this, or the lane's head, leads to it
 *   lane->head      where the first message is; a message is out of the spill once head is behind it
 *
 * From these mp_spill_repair() derives what else there is: lane->tail, the bits of arena->used, queue->spilled, and which
 * pieces in state SPILL are in no lane (their linker or their freer died). */
#include "queue.h"

#include <stdlib.h>
#include <string.h>

struct chunk {
    _Atomic uint64_t next;   /* name of a chunk, 0: none */
    _Atomic uint64_t filled; /* bytes from the start of the chunk:32 | messages that were written:32 << 32 */
    uint64_t sequence;       /* of the piece */
    uint64_t size;
};

#define CHUNK_SMALLEST (16u << 10)
#define CHUNK_LARGEST (1u << 20)
#define START ((uint32_t)sizeof(struct chunk))

/* A chunk's name: segment:16 | number:13, + 1. */
static uint32_t chunk_name(uint32_t segment, uint32_t number) { return (segment << 13 | number) + 1; }
static uint32_t name_segment(uint64_t name) { return (uint32_t)(name - 1) >> 13; }
static uint32_t name_number(uint64_t name) { return (uint32_t)(name - 1) & 0x1fff; }

static uint64_t position(uint64_t name, uint32_t offset) { return name << 32 | offset; }

static struct chunk *chunk_at(struct mp_queue_view *v, uint64_t name) {
    return (struct chunk *)mp_piece_data(v, name_segment(name), name_number(name));
}
static uint32_t filled_bytes(struct chunk *c) { return (uint32_t)atomic_load(&c->filled); }

static void free_chunk(struct mp_queue_view *v, uint64_t name, uint64_t sequence) {
    struct mp_piece piece = {name_segment(name), name_number(name), sequence, 0};
    mp_piece_free(v, &piece);
}

/* ---- putting ---------------------------------------------------------------------------------------------------------- */

static int new_chunk(struct mp_queue_view *v, struct mp_lane *lane, struct chunk *last, struct chunk **made) {
    uint64_t size = last == NULL ? CHUNK_SMALLEST : last->size * 2;
    struct mp_piece piece;
    unsigned char *data;
    int error = mp_piece_claim(v, size < CHUNK_LARGEST ? size : CHUNK_LARGEST, true, &piece, &data);
    if (error != MP_OK)
        return error;
    struct chunk *c = (struct chunk *)data;
    if (c == NULL)
        return errno;
    atomic_store(&c->next, 0);
    atomic_store(&c->filled, START);
    c->sequence = piece.sequence;
    c->size = mp_piece_size(v, piece.segment);
    mp_piece_spill(v, &piece);
    uint32_t name = chunk_name(piece.segment, piece.number);
    if (last == NULL)
        atomic_store(&lane->head, position(name, START));
    else
        atomic_store(&last->next, name);
    atomic_store(&lane->tail, name);
    *made = c;
    return MP_OK;
}

/* 0, or an errno: then nothing was appended. */
int mp_spill_append(struct mp_queue_view *v, const struct mp_message *m, uint32_t length, uint32_t level) {
    int error = mp_arena_make(v);
    if (error != MP_OK)
        return error;
    struct mp_arena *a = atomic_load(&v->arena);
    struct mp_lane *lane = &a->lanes[level];
    struct chunk *c = NULL;
    if (atomic_load(&lane->head) != 0 && (c = chunk_at(v, atomic_load(&lane->tail))) == NULL)
        return errno;
    if (c == NULL || filled_bytes(c) + mp_body_size(length + 1) > c->size) {
        atomic_fetch_or(&a->used[level / 64], 1ull << level % 64); /* first: a lane with its bit clear is empty */
        error = new_chunk(v, lane, c, &c);
        if (error != MP_OK)
            return error;
    }
    uint64_t filled = atomic_load(&c->filled);
    struct mp_body *r = (struct mp_body *)((unsigned char *)c + (uint32_t)filled);
    r->length = length + 1;
    memcpy(r->body, &m->kind, length + 1);
    atomic_store(&c->filled, filled + mp_body_size(length + 1) + (1ull << 32));
    atomic_fetch_add(&v->q->spilled, 1);
    return MP_OK;
}

/* ---- taking ----------------------------------------------------------------------------------------------------------- */

/* The lowest level that may have messages, -1 if none has. errno is 0, or says why the arena could not be looked at. */
int64_t mp_spill_first_level(struct mp_queue_view *v) {
    struct mp_arena *a = mp_arena_open(v);
    if (a != NULL)
        errno = 0;
    for (uint64_t i = 0; a != NULL && i < (a->levels + 63) / 64; i++)
        if (atomic_load(&a->used[i]) != 0)
            return (int64_t)(i * 64) + __builtin_ctzll(atomic_load(&a->used[i]));
    return -1;
}

/* Frees the chunks at the head that have been read, so that a lane without messages has no chunk. */
static int advance(struct mp_queue_view *v, struct mp_arena *a, uint32_t level) {
    struct mp_lane *lane = &a->lanes[level];
    uint64_t head;
    while ((head = atomic_load(&lane->head)) != 0) {
        struct chunk *c = chunk_at(v, head >> 32);
        if (c == NULL)
            return errno;
        if ((uint32_t)head < filled_bytes(c))
            return MP_OK;
        uint64_t next = atomic_load(&c->next);
        atomic_store(&lane->head, next == 0 ? 0 : position(next, START));
        free_chunk(v, head >> 32, c->sequence);
    }
    atomic_fetch_and(&a->used[level / 64], ~(1ull << level % 64));
    return MP_OK;
}

/* Makes the record the item. A large message passes to this process before it leaves the spill: should we die in between,
 * recovery frees the piece, and the next one finds a record whose piece is gone. ENOMSG: we have found such a one. */
static int open_record(struct mp_queue_view *v, const struct mp_body *r, struct mp_item *item) {
    memcpy(&item->message.kind, r->body, r->length);
    item->data = item->message.data;
    item->size = r->length - 1;
    if (item->message.kind != MP_BODY_PIECE)
        return MP_OK;
    memcpy(&item->piece, item->message.data, sizeof item->piece);
    item->size = item->piece.length;
    item->data = mp_piece_receive(v, &item->piece);
    return item->data != NULL ? MP_OK : errno == 0 ? ENOMSG : errno;
}

/* The first message of a level. 0; ENOMSG: there is none, or there was one that was never sent and is gone now; or an errno:
 * then nothing was taken. */
int mp_spill_pop(struct mp_queue_view *v, uint32_t level, struct mp_item *item) {
    struct mp_arena *a = mp_arena_open(v);
    if (a == NULL)
        return errno == 0 ? ENOMSG : errno;
    struct mp_lane *lane = &a->lanes[level];
    int error = advance(v, a, level);
    if (error != MP_OK)
        return error;
    uint64_t head = atomic_load(&lane->head);
    if (head == 0)
        return ENOMSG;
    struct chunk *c = chunk_at(v, head >> 32);
    struct mp_body *r = (struct mp_body *)((unsigned char *)c + (uint32_t)head);
    error = open_record(v, r, item);
    if (error != MP_OK && error != ENOMSG)
        return error;
    atomic_store(&lane->head, position(head >> 32, (uint32_t)head + mp_body_size(r->length)));
    atomic_fetch_sub(&v->q->spilled, 1);
    advance(v, a, level); /* if it fails, the next one has to */
    return error;
}

/* ---- after a death ----------------------------------------------------------------------------------------------------- */

struct names {
    uint64_t *name;
    size_t count, room;
};

static int remember(struct names *names, uint64_t name) {
    if (names->count == names->room) {
        size_t room = names->room == 0 ? 64 : names->room * 2;
        uint64_t *grown = realloc(names->name, room * sizeof *grown);
        if (grown == NULL)
            return ENOMEM;
        names->name = grown;
        names->room = room;
    }
    names->name[names->count++] = name;
    return MP_OK;
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int repair_lane(struct mp_queue_view *v, struct mp_arena *a, uint32_t level, uint64_t *count, struct names *names) {
    struct mp_lane *lane = &a->lanes[level];
    int error = advance(v, a, level);
    uint64_t head = atomic_load(&lane->head);
    uint32_t offset = (uint32_t)head;
    for (uint64_t name = head >> 32; name != 0 && error == MP_OK;) {
        struct chunk *c = chunk_at(v, name);
        if (c == NULL)
            return errno;
        for (; offset < filled_bytes(c); *count += 1)
            offset += mp_body_size(((struct mp_body *)((unsigned char *)c + offset))->length);
        error = remember(names, name);
        atomic_store(&lane->tail, name);
        name = atomic_load(&c->next);
        offset = START;
    }
    return error;
}

static int free_lost_chunks(struct mp_queue_view *v, struct mp_arena *a, struct names *names) {
    qsort(names->name, names->count, sizeof *names->name, by_value);
    for (uint32_t i = 0, count = atomic_load(&a->segments); i < count; i++)
        for (uint32_t n = 0; n < a->segment[i].pieces; n++) {
            _Atomic uint64_t *place = mp_piece_word(v, i, n);
            if (place == NULL)
                return errno;
            uint64_t name = chunk_name(i, n), word = atomic_load(place);
            if (mp_piece_state_of(word) == MP_PIECE_SPILL &&
                (names->count == 0 || bsearch(&name, names->name, names->count, sizeof name, by_value) == NULL))
                free_chunk(v, name, mp_piece_sequence_of(word));
        }
    return MP_OK;
}

/* Can be done again from the start, should its process die, too. */
int mp_spill_repair(struct mp_queue_view *v) {
    struct mp_arena *a = mp_arena_open(v);
    if (a == NULL)
        return errno;
    struct names names = {0};
    uint64_t count = 0;
    int error = MP_OK;
    for (uint32_t level = 0; level < a->levels && error == MP_OK; level++)
        if (atomic_load(&a->used[level / 64]) >> level % 64 & 1)
            error = repair_lane(v, a, level, &count, &names);
    if (error == MP_OK)
        error = free_lost_chunks(v, a, &names);
    if (error == MP_OK)
        atomic_store(&v->q->spilled, (uint32_t)count);
    free(names.name);
    return error;
}

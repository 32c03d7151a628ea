/* Chunks: pieces in which the messages of the spill stand one after the other. Nothing of what stands in them is believed. */
#ifndef MPIPC_CHUNKS_H
#define MPIPC_CHUNKS_H

#include "pieces.h"

struct chunk {
    _Atomic uint64_t next;   /* name of a chunk, 0: none */
    _Atomic uint64_t filled; /* bytes from the start of the chunk:32 | messages that were written:32 << 32 */
    _Atomic uint64_t stamp;  /* of the last walk that came by */
    uint64_t below;          /* on the stack: what comes next */
    uint32_t level;          /* on the stack: its lane */
    uint32_t messages;       /* on the stack: in it, and in what is below */
};

/* A chunk that was found to be one. */
struct found {
    struct chunk *c;
    _Atomic uint64_t *word;
    uint64_t name;
    uint64_t size;
};

#define CHUNK_SMALLEST (16u << 10)
#define CHUNK_LARGEST (1u << 20)
#define START ((uint32_t)sizeof(struct chunk))
#define MOST_CHUNKS (MP_ARENA_SEGMENTS << 13)

/* A chunk's name: segment:10 | number:13, + 1. */
static inline uint32_t chunk_name(uint32_t segment, uint32_t number) { return (segment << 13 | number) + 1; }
static inline uint32_t name_segment(uint64_t name) { return (uint32_t)(name - 1) >> 13; }
static inline uint32_t name_number(uint64_t name) { return (uint32_t)(name - 1) & 0x1fff; }

static inline uint64_t position(uint64_t name, uint32_t offset) { return name << 32 | offset; }

/* On the stack. */
static inline uint64_t posted_word(uint64_t name, uint64_t sequence) { return name | sequence << 24; }
static inline uint64_t posted_name(uint64_t word) { return word & 0xffffff; }
static inline uint64_t posted_sequence(uint64_t word) { return word >> 24; }

static inline uint32_t filled_bytes(struct chunk *c) { return (uint32_t)atomic_load(&c->filled); }
static inline uint32_t filled_messages(struct chunk *c) { return (uint32_t)(atomic_load(&c->filled) >> 32); }

static inline int piece_named(struct mp_queue_view *v, uint64_t name, struct found *found) {
    struct mp_piece_place place;
    int error = name == 0 || name > MOST_CHUNKS ? MP_CORRUPT : mp_piece_find(v, name_segment(name), name_number(name), &place);
    if (error == MP_OK)
        *found = (struct found){(struct chunk *)place.data, place.word, name, place.size};
    return error;
}

/* 0, or an error: MP_CORRUPT: there is no chunk of that name. */
static inline int chunk_named(struct mp_queue_view *v, uint64_t name, struct found *found) {
    int error = piece_named(v, name, found);
    if (error != MP_OK)
        return error;
    uint32_t filled = filled_bytes(found->c);
    return mp_piece_state_of(atomic_load(found->word)) == MP_PIECE_SPILL && filled >= START && filled <= found->size
               ? MP_OK
               : MP_CORRUPT;
}

/* The size of the record at `offset`, 0 if there can be none. `length` is read once: what was checked is what is used. */
static inline uint32_t record_at(const struct found *found, uint32_t offset, uint32_t end, uint32_t *length) {
    if (offset < START || offset % 8 != 0 || offset + sizeof(struct mp_body) > end)
        return 0;
    struct mp_body *r = (struct mp_body *)((unsigned char *)found->c + offset);
    *length = *(volatile uint32_t *)&r->length;
    if (*length < 1 || *length > MP_BODY_SIZE || mp_body_size(*length) > end - offset)
        return 0;
    return mp_body_size(*length);
}

#endif

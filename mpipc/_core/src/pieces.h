/* Pieces of shared memory. */
#ifndef MPIPC_PIECES_H
#define MPIPC_PIECES_H

#include "queue_view.h"

enum mp_piece_state {
    MP_PIECE_FREE,
    MP_PIECE_FILLING,
    MP_PIECE_QUEUED,
    MP_PIECE_RECEIVED,
    MP_PIECE_SPILL,
    MP_PIECE_POSTED,
    MP_PIECE_ORPHAN, /* FILLING by a process that died; with a slot: of the lock's owner, who finds out whether it was sent */
    MP_PIECE_HELD, /* the memory of a block: see memory.c. Never of a queue */
    MP_PIECE_TAKEN, /* a job in somebody's hands; see jobs.c */
    MP_PIECE_RETURNED /* a job that was, and is to be taken again */
};
/* May its descriptor be in the queue? */
static inline bool mp_piece_is_message(enum mp_piece_state state) {
    return state == MP_PIECE_FILLING || state == MP_PIECE_QUEUED || state == MP_PIECE_ORPHAN;
}
/* Is there a message in it that was received, or taken? */
static inline bool mp_piece_was_message(enum mp_piece_state state) {
    return state == MP_PIECE_RECEIVED || state == MP_PIECE_TAKEN || state == MP_PIECE_RETURNED;
}
#define MP_PIECE_SEQUENCE 0xffffffffffull
static inline uint64_t mp_piece_word_of(enum mp_piece_state state, int slot, uint64_t sequence) {
    return (uint64_t)state | (uint64_t)(slot + 1) << 8 | sequence << 24;
}
static inline enum mp_piece_state mp_piece_state_of(uint64_t word) { return word & 0xff; }
static inline int mp_piece_slot_of(uint64_t word) { return (int)(word >> 8 & 0xffff) - 1; }
static inline uint64_t mp_piece_sequence_of(uint64_t word) { return word >> 24; }

struct mp_piece_place {
    _Atomic uint64_t *word;
    unsigned char *data;
    uint64_t size; /* there is room for so much */
};
typedef void mp_piece_visitor(struct mp_queue_view *v, uint32_t segment, uint32_t number, const struct mp_piece_place *place,
                              void *context);

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
void mp_piece_lower(struct mp_arena *a, uint32_t segment, uint32_t number);

#endif

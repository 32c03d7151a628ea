/* Memory that processes and messages hold: a piece of the family's space, and a block that says who holds it.
 *
 * The *space* is an arena as a queue has one (space.c), of a block of its own, found by the header's word `space` and there until
 * the family ends. Its pieces are claimed and freed as those of queues are (pieces.c), so memory that was given back is used again,
 * warm, by whichever process needs some next, and the pages of what was not used for a while go back to the system. A process that
 * has met a segment of the space keeps it attached: an address in there stays right as long as the process lives.
 *
 *   FREE -> FILLING by a process -> HELD, as the memory of a block -> FREE, when that is taken down
 *
 * A piece that is HELD has no slot: the block has holders instead, which drop out as they die. Where a process can die:
 *   FILLING: recovery frees the piece (mp_space_recover). If the block names it already, which is being made, that is taken down,
 *     too, and finds another sequence, or frees the piece first; both know the life that they mean.
 *   HELD, and the block is MAKING: recovery takes the block down, and the piece with it.
 *   HELD, and the block is DYING: the same.
 *
 * The space itself: READY and pinned, its maker in `made_by`, then published by one compare-and-swap. A maker who dies in between
 * leaves one that nobody knows: recovery unpins it. */
#include "memory.h"

#include "blocks.h"
#include "pieces.h"
#include "space.h"
#include "trim.h"

#include <string.h>
#include <sys/mman.h>

/* The payload of a space's block is that of a queue, of which an arena has but a few words. */
static _Atomic uint32_t *made_by(struct mp_queue *q) { return &q->zeros; } /* slot + 1 */

static uint64_t space_name(struct mp_family *f, uint32_t index) {
    return ((uint64_t)index + 1) | (uint64_t)mp_block_serial(atomic_load(&mp_block_at(f, index)->word)) << 32;
}

/* The block that the header names; -1: there is none. */
static int64_t published(struct mp_family *f, uint64_t name) {
    uint32_t index = (uint32_t)name - 1;
    if (name == 0 || index >= MP_BLOCKS)
        return -1;
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    return mp_block_is_live(word) && mp_block_serial(word) == name >> 32 && b->kind == MP_KIND_SPACE ? (int64_t)index : -1;
}

static void take_down_space(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    if (atomic_compare_exchange_strong(&b->word, &word, mp_block_word(MP_BLOCK_DYING, f->slot, mp_block_serial(word))))
        mp_block_abandon(f, index);
}

/* The space's block, or -1 with errno. */
static int64_t make_space(struct mp_family *f) {
    uint64_t before = atomic_load(&f->h->space);
    int64_t index = published(f, before);
    if (index >= 0)
        return index;
    index = mp_block_new(f, MP_KIND_SPACE);
    if (index < 0)
        return MP_FAILED;
    atomic_store(made_by(mp_queue_of(mp_block_at(f, (uint32_t)index))), (uint32_t)f->slot + 1);
    mp_block_give(f, (uint32_t)index, (uint32_t)index);
    if (atomic_compare_exchange_strong(&f->h->space, &before, space_name(f, (uint32_t)index)))
        return index;
    take_down_space(f, (uint32_t)index); /* another was faster */
    return published(f, before);
}

/* A table beside the view, without malloc(3): the reaper may have been cloned from a program in which somebody had its lock. */
struct local {
    struct mp_queue_view view;
    _Atomic uintptr_t segments[MP_ARENA_SEGMENTS];
};

/* What this process knows of the space: one view, for all its threads, for good. NULL with errno; 0: there is none, and none was to
 * be made. */
struct mp_queue_view *mp_space_view(struct mp_family *f, bool make) {
    struct mp_queue_view *v = atomic_load_explicit(&f->space, memory_order_acquire), *none = NULL;
    if (v != NULL)
        return v;
    errno = 0;
    int64_t index = make ? make_space(f) : published(f, atomic_load(&f->h->space));
    if (index < 0)
        return NULL;
    struct local *local = mmap(NULL, sizeof *local, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (local == MAP_FAILED) {
        errno = MP_NO_MEMORY;
        return NULL;
    }
    struct mp_block *b = mp_block_at(f, (uint32_t)index);
    v = &local->view;
    *v = (struct mp_queue_view){.f = f, .b = b, .q = mp_queue_of(b), .index = (uint32_t)index, .id = -1};
    v->segments = local->segments;
    if (atomic_compare_exchange_strong(&f->space, &none, v))
        return v;
    munmap(local, sizeof *local);
    return none;
}

/* When the process detaches from the family. */
void mp_space_forget(struct mp_family *f) {
    struct mp_queue_view *v = atomic_exchange(&f->space, NULL);
    if (v == NULL)
        return;
    mp_arena_close(v);
    munmap(v, sizeof(struct local));
}

/* ---- life ------------------------------------------------------------------------------------------------------------------ */

#define SMALL (16ull << 10)

/* A piece for `size` bytes, which is this process's to fill. 0, or an error. Needs no GIL. It may be worth a moment's wait if the
 * memory has been used before. */
int mp_memory_claim(struct mp_family *f, uint64_t size, struct mp_memory *memory) {
    struct mp_queue_view *v = mp_space_view(f, true);
    struct mp_piece_place place;
    if (v == NULL)
        return mp_error(errno);
    int error = size < SMALL ? mp_piece_claim_chunk(v, size, true, &memory->piece, &place)
                             : mp_piece_claim(v, size, &memory->piece, &place.data);
    if (error == MP_OK)
        error = mp_piece_find(v, memory->piece.segment, memory->piece.number, &place);
    if (error != MP_OK)
        return error;
    memory->data = place.data;
    memory->size = place.size;
    memory->fresh = atomic_load(&((struct mp_piece_words *)place.word)->freed_ns) == 0;
    return MP_OK;
}

void mp_memory_unclaim(struct mp_family *f, const struct mp_memory *memory) {
    mp_piece_free(mp_space_view(f, false), &memory->piece);
}

/* What was claimed becomes the memory of a block, which this process holds. Its index, or -1 with errno: then the piece is free. */
int64_t mp_memory_new(struct mp_family *f, const struct mp_memory *memory) {
    const struct mp_piece *piece = &memory->piece;
    struct mp_queue_view *v = mp_space_view(f, true);
    struct mp_piece_place place;
    int64_t index = mp_block_new(f, MP_KIND_MEMORY);
    if (index < 0) {
        int error = errno;
        mp_memory_unclaim(f, memory);
        errno = error;
        return MP_FAILED;
    }
    struct mp_block *b = mp_block_at(f, (uint32_t)index);
    b->more.memory.size = piece->length;
    b->more.memory.piece = mp_piece_name(piece->segment, piece->number, piece->sequence);
    uint64_t filling = mp_piece_word_of(MP_PIECE_FILLING, f->slot, piece->sequence);
    if (mp_piece_find(v, piece->segment, piece->number, &place) != MP_OK ||
        !atomic_compare_exchange_strong(place.word, &filling, mp_piece_word_of(MP_PIECE_HELD, -1, piece->sequence))) {
        mp_block_abandon(f, (uint32_t)index);
        errno = MP_CORRUPT;
        return MP_FAILED;
    }
    mp_block_ready(f, (uint32_t)index);
    return index;
}

/* Where the memory of a block is. 0, or an error: MP_CORRUPT: there can be none. The block is held by this process. */
int mp_memory_find(struct mp_family *f, uint32_t index, struct mp_memory *memory) {
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue_view *v = mp_space_view(f, false);
    struct mp_piece_place place;
    if (b->kind != MP_KIND_MEMORY || v == NULL)
        return v == NULL && errno != 0 ? mp_error(errno) : MP_CORRUPT;
    uint64_t name = b->more.memory.piece, size = b->more.memory.size;
    memory->piece = (struct mp_piece){mp_name_segment(name), mp_name_number(name), mp_name_sequence(name), size, 0};
    int error = mp_piece_find(v, memory->piece.segment, memory->piece.number, &place);
    if (error != MP_OK)
        return error;
    if (size > place.size || atomic_load(place.word) != mp_piece_word_of(MP_PIECE_HELD, -1, memory->piece.sequence))
        return MP_CORRUPT;
    memory->data = place.data;
    memory->size = place.size;
    memory->fresh = false;
    return MP_OK;
}

/* Where the piece begins that an address is in; NULL: in none that this process has attached. */
unsigned char *mp_memory_start(struct mp_family *f, const void *address) {
    struct mp_queue_view *v = mp_space_view(f, false);
    if (v == NULL)
        return NULL;
    for (uint32_t i = 0, count = mp_segments_of(mp_arena_open(v)); i < count; i++) {
        uintptr_t word = atomic_load_explicit(&v->segments[i], memory_order_acquire);
        if (word == 0)
            continue;
        struct mp_stretch s = mp_stretch_of(word);
        uintptr_t first = (uintptr_t)mp_data_of(s, 0), at = (uintptr_t)address;
        if (at >= first && at - first < s.pieces * s.size)
            return mp_data_of(s, (uint32_t)((at - first) / s.size));
    }
    return NULL;
}

/* Before a block goes. Can be done again from the start. */
void mp_memory_take_down(struct mp_family *f, uint32_t index) {
    struct mp_queue_view *v = mp_space_view(f, false);
    struct mp_piece_place place;
    uint64_t name = mp_block_at(f, index)->more.memory.piece;
    uint32_t segment = mp_name_segment(name), number = mp_name_number(name);
    if (name == 0 || v == NULL || mp_piece_find(v, segment, number, &place) != MP_OK)
        return;
    uint64_t word = atomic_load(place.word);
    enum mp_piece_state state = mp_piece_state_of(word);
    if (mp_piece_sequence_of(word) == mp_name_sequence(name) && (state == MP_PIECE_HELD || state == MP_PIECE_FILLING))
        mp_piece_free_at(v, segment, number, place.word, mp_name_sequence(name));
}

/* Bytes of pieces that have pages, of those in use, and the number of segments. */
void mp_memory_usage(struct mp_family *f, uint64_t *bytes, uint64_t *in_use, uint64_t *segments) {
    struct mp_queue_view *v = mp_space_view(f, false);
    *bytes = *in_use = *segments = 0;
    if (v != NULL)
        mp_arena_usage(v, bytes, in_use, segments);
}

/* ---- the space: deaths, idle memory, its end ----------------------------------------------------------------------------- */

static void free_unfinished(struct mp_queue_view *v, uint32_t segment, uint32_t number, const struct mp_piece_place *place,
                            void *context) {
    const uint64_t *dead = context;
    uint64_t word = atomic_load(place->word);
    int slot = mp_piece_slot_of(word);
    if (mp_piece_state_of(word) != MP_PIECE_FILLING || (slot >= 0 && !mp_slots_have(dead, slot)))
        return; /* without a slot: by a reaper that died trimming it */
    mp_piece_free_at(v, segment, number, place->word, mp_piece_sequence_of(word));
}

/* Recovery, before the slots are free for others. */
void mp_space_recover(struct mp_family *f, uint32_t index, const uint64_t *dead) {
    struct mp_block *b = mp_block_at(f, index);
    if (published(f, atomic_load(&f->h->space)) != (int64_t)index) {
        if (mp_slots_have(dead, (int)atomic_load(made_by(mp_queue_of(b))) - 1))
            atomic_store(&b->pinned, 0); /* and nobody holds it */
        return;
    }
    struct mp_queue_view *v = mp_space_view(f, false);
    if (v != NULL && atomic_load(&v->q->arena) != 0)
        mp_arena_each(v, free_unfinished, (void *)dead);
}

/* The reaper, under the recovery lock. */
void mp_space_trim(struct mp_family *f, uint32_t index, int64_t idle_ns) {
    struct mp_queue_view *v = mp_space_view(f, false);
    if (v != NULL && v->index == index && atomic_load(&v->q->arena) != 0)
        mp_arena_trim(v, idle_ns);
}

/* Can be done again from the start. */
void mp_space_take_down(struct mp_family *f, uint32_t index) {
    uint64_t owner = mp_owner_word(f, index);
    if (!(atomic_load(&mp_queue_of(mp_block_at(f, index))->token) & MP_TOKEN_ARENA))
        return;
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (i != index)
            mp_block_take_down_owned(f, i, owner);
}

/* Carriers: messages that hold blocks, so that what a message refers to is there when it arrives, whoever dies meanwhile.
 *
 * A reference is a holder's number in a block (holders.c), never a count: of a process, or of a carrier, which stands for one message
 * that lies in a piece of a queue. Its life follows the message's, which pieces.c keeps exact under any death.
 *
 *   1. The sender, which holds the blocks, takes a carrier: FREE -> MAKING by its slot.     Dead: recovery ends the carrier.
 *   2. The blocks are held for the carrier, one after the other.                            Dead: the same.
 *   3. The carrier is told the queue and the piece, in which the message is written, and is SENT. The message's descriptor names it.
 *      Dead: the piece is an orphan, which becomes a message or free; so does the carrier.
 *   4. The descriptor goes into the spill: the message is sent. The sender may drop the blocks.
 *   5. A receiver has the descriptor, and the piece says RECEIVED by its slot.              Dead: recovery frees the piece, and the
 *      carrier, whose message is over, ends.
 *   6. It holds each of the blocks itself.                                                  Dead: the same, and recovery drops both.
 *   7. SENT -> ENDING by its slot; the blocks are held for the carrier no more; FREE; then the piece is freed.
 *      Dead: recovery goes on where it was.
 *
 * So at each step a block is held by its sender, by the message, or by its receiver. A carrier that is SENT is *over* when its piece is
 * in another life, or is nobody's message any more, or the queue is gone. Who makes it so without ending the carrier (recovery; a
 * repair; who takes a queue down) has the reaper look: mp_carriers_recover(). Only that turns what is over to ENDING, and nobody else
 * does at the same time: a message in somebody's hands is not over.
 *
 * A carrier's number is used again only when no block names it (rule R3). */
#include "carriers.h"

#include "banks.h"
#include "blocks.h"
#include "holders.h"
#include "pieces.h"
#include "space.h"

#include <string.h>

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint32_t carrier_high(struct mp_family *f) { return mp_at_most(atomic_load(&f->h->carrier_high), MP_CARRIERS); }

bool mp_carriers_in_use(struct mp_family *f) {
    uint32_t high = carrier_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (mp_carrier_state_of(atomic_load_explicit(&f->seg->carriers[i].word, memory_order_relaxed)) != MP_CARRIER_FREE)
            return true;
    return false;
}

/* A carrier in MAKING, of this process. -1 with errno. */
int64_t mp_carrier_new(struct mp_family *f) {
    uint32_t start = atomic_load_explicit(&f->h->carrier_hint, memory_order_relaxed) % MP_CARRIERS;
    for (uint32_t n = 0; n < MP_CARRIERS; n++) {
        uint32_t i = (start + n) % MP_CARRIERS;
        struct mp_carrier *c = &f->seg->carriers[i];
        uint64_t word = atomic_load_explicit(&c->word, memory_order_relaxed);
        if (mp_carrier_state_of(word) != MP_CARRIER_FREE)
            continue;
        uint32_t high = atomic_load(&f->h->carrier_high);
        while (high <= i && !atomic_compare_exchange_weak(&f->h->carrier_high, &high, i + 1))
            ; /* first, so that recovery looks at it from the moment it is taken */
        if (!atomic_compare_exchange_strong(&c->word, &word,
                                            mp_carrier_word(MP_CARRIER_MAKING, f->slot, mp_carrier_life(word) + 1)))
            continue;
        atomic_store_explicit(&f->h->carrier_hint, i + 1, memory_order_relaxed);
        return i;
    }
    errno = MP_TABLE_FULL;
    return MP_FAILED;
}

/* By its maker, which holds the block. 0, or an error. */
int mp_carrier_hold(struct mp_family *f, uint32_t carrier, uint32_t index) {
    return mp_block_hold(f, index, mp_carrier_holder(carrier)) == MP_OK ? MP_OK : errno;
}

/* From now on it lives as long as the message in the piece, whose descriptor names it. */
void mp_carrier_send(struct mp_queue_view *v, uint32_t carrier, struct mp_piece *piece) {
    struct mp_carrier *c = &v->f->seg->carriers[carrier];
    piece->carrier = carrier + 1;
    atomic_store(&c->queue, mp_owner_word(v->f, v->index));
    atomic_store(&c->piece, mp_piece_name(piece->segment, piece->number, piece->sequence));
    atomic_store(&c->word, mp_carrier_word(MP_CARRIER_SENT, -1, mp_carrier_life(atomic_load(&c->word))));
}

static void release(struct mp_family *f, uint32_t carrier) {
    struct mp_carrier *c = &f->seg->carriers[carrier];
    atomic_store(&c->queue, 0);
    atomic_store(&c->piece, 0);
    atomic_store(&c->word, mp_carrier_word(MP_CARRIER_FREE, -1, mp_carrier_life(atomic_load(&c->word))));
    if (carrier < atomic_load_explicit(&f->h->carrier_hint, memory_order_relaxed))
        atomic_store_explicit(&f->h->carrier_hint, carrier, memory_order_relaxed);
}

/* By its maker, when the message was not sent, or by who has received it. A process has one thread at a time in here (its callers hold
 * the GIL). */
void mp_carrier_end(struct mp_family *f, uint32_t carrier, const struct mp_references *references, uint32_t count) {
    struct mp_carrier *c = &f->seg->carriers[carrier];
    uint64_t word = atomic_load(&c->word), life = mp_carrier_life(word);
    enum mp_carrier_state state = mp_carrier_state_of(word);
    if ((state != MP_CARRIER_SENT && word != mp_carrier_word(MP_CARRIER_MAKING, f->slot, life)) ||
        !atomic_compare_exchange_strong(&c->word, &word, mp_carrier_word(MP_CARRIER_ENDING, f->slot, life)))
        return;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = mp_reference_block(references->blocks[i]);
        if (mp_block_unhold(f, index, mp_carrier_holder(carrier)))
            mp_block_try_free(f, index, f->slot);
    }
    release(f, carrier);
}

/* ---- messages -------------------------------------------------------------------------------------------------------------- */

/* The references at the head of a message, NULL: there can be none. What stands there may change: the count is read once. */
struct mp_references *mp_message_references(const unsigned char *data, uint64_t size, uint32_t *count) {
    struct mp_references *r = (struct mp_references *)data;
    if (size < sizeof *r)
        return NULL;
    *count = *(volatile uint32_t *)&r->count;
    return *count <= MP_REFERENCES_MOST && *count <= (size - sizeof *r) / sizeof *r->blocks ? r : NULL;
}

/* By who has received it, and is done with it; or could not send it. With the GIL. */
void mp_message_end(struct mp_queue_view *v, const struct mp_piece *piece) {
    struct mp_piece_place place;
    uint64_t name = mp_piece_name(piece->segment, piece->number, piece->sequence);
    uint32_t carrier = piece->carrier - 1, count;
    if (piece->carrier != 0 && carrier < MP_CARRIERS && atomic_load(&v->f->seg->carriers[carrier].piece) == name &&
        atomic_load(&v->f->seg->carriers[carrier].queue) == mp_owner_word(v->f, v->index)) {
        const struct mp_references *r = NULL;
        if (mp_piece_find(v, piece->segment, piece->number, &place) == MP_OK)
            r = mp_message_references(place.data, least(piece->length, place.size), &count);
        if (r != NULL)
            mp_carrier_end(v->f, carrier, r, count);
    }
    mp_piece_free(v, piece);
}

/* ---- recovery -------------------------------------------------------------------------------------------------------------- */

struct judged {
    uint64_t looked[MP_CARRIERS / 64];
    uint64_t over[MP_HOLDER_IDS / 64]; /* as mp_block_drop_holders() wants them */
    uint32_t count;
};

static void end_by_recovery(struct mp_family *f, uint32_t carrier, uint64_t word, struct judged *j) {
    struct mp_carrier *c = &f->seg->carriers[carrier];
    if (!atomic_compare_exchange_strong(&c->word, &word, mp_carrier_word(MP_CARRIER_ENDING, -1, mp_carrier_life(word))))
        return;
    uint32_t id = (uint32_t)mp_carrier_holder(carrier);
    j->over[id / 64] |= 1ull << id % 64;
    j->count++;
}

/* Is the message that a carrier names still one, or in somebody's hands? If it cannot be told, it is. */
static bool is_message(struct mp_queue_view *v, uint64_t name) {
    struct mp_piece_place place;
    int error = mp_piece_find(v, mp_name_segment(name), mp_name_number(name), &place);
    if (error != MP_OK)
        return error != MP_CORRUPT;
    uint64_t word = atomic_load(place.word);
    enum mp_piece_state state = mp_piece_state_of(word);
    return mp_piece_sequence_of(word) == mp_name_sequence(name) && (mp_piece_is_message(state) || mp_piece_was_message(state));
}

static struct mp_queue_view view_of(struct mp_family *f, uint32_t index) { /* as in mp_queue_recover() */
    struct mp_block *b = mp_block_at(f, index);
    struct mp_queue_view v = {.f = f, .b = b, .q = mp_queue_of(b), .index = index, .segments = f->stretches};
    v.flags = (uint32_t)b->more.queue.flags;
    return v;
}

/* The block of a queue with a message that a dead sender may have sent, or not, and that holds something; -1: there is none from the
 * carrier `from` on. */
int64_t mp_carriers_orphan(struct mp_family *f, uint32_t *from) {
    for (uint32_t high = carrier_high(f); *from < high; ++*from) {
        struct mp_carrier *c = &f->seg->carriers[*from];
        uint64_t queue = atomic_load(&c->queue), name = atomic_load(&c->piece);
        uint32_t index = (uint32_t)queue & (MP_BLOCKS - 1);
        struct mp_block *b = mp_block_at(f, index);
        struct mp_piece_place place;
        if (mp_carrier_state_of(atomic_load(&c->word)) != MP_CARRIER_SENT || mp_owner_word(f, index) != queue ||
            b->kind != MP_KIND_QUEUE || !mp_block_is_live(atomic_load(&b->word)))
            continue;
        struct mp_queue_view v = view_of(f, index);
        uint64_t orphan = mp_piece_word_of(MP_PIECE_ORPHAN, -1, mp_name_sequence(name));
        bool found = mp_piece_find(&v, mp_name_segment(name), mp_name_number(name), &place) == MP_OK &&
                     atomic_load(place.word) == orphan;
        mp_arena_close(&v);
        if (found) {
            ++*from;
            return index;
        }
    }
    return -1;
}

/* All carriers of a queue, from `first` on. */
static void judge_queue(struct mp_family *f, uint32_t first, uint32_t high, struct judged *j) {
    uint64_t queue = atomic_load(&f->seg->carriers[first].queue);
    uint32_t index = (uint32_t)queue & (MP_BLOCKS - 1);
    struct mp_block *b = mp_block_at(f, index);
    bool is_there = mp_owner_word(f, index) == queue && b->kind == MP_KIND_QUEUE && mp_block_is_live(atomic_load(&b->word)) &&
                    atomic_load(&mp_queue_of(b)->arena) != 0;
    struct mp_queue_view v = view_of(f, index);
    for (uint32_t i = first; i < high; i++) {
        struct mp_carrier *c = &f->seg->carriers[i];
        uint64_t word = atomic_load(&c->word);
        if (mp_carrier_state_of(word) != MP_CARRIER_SENT || atomic_load(&c->queue) != queue)
            continue;
        j->looked[i / 64] |= 1ull << i % 64;
        if (!is_there || !is_message(&v, atomic_load(&c->piece)))
            end_by_recovery(f, i, word, j);
    }
    if (is_there)
        mp_arena_close(&v);
}

/* By who has the recovery lock, when what the dead had in their hands is free, and before their slots are. Returns how many carriers
 * were ended. Can be done again from the start: who dies in it leaves them ENDING. */
int mp_carriers_recover(struct mp_family *f, const uint64_t *dead) {
    uint32_t high = carrier_high(f);
    if (high == 0 || mp_banks_known(f) != MP_OK)
        return 0;
    struct judged j;
    memset(&j, 0, sizeof j);
    for (uint32_t i = 0; i < high; i++) {
        uint64_t word = atomic_load(&f->seg->carriers[i].word);
        enum mp_carrier_state state = mp_carrier_state_of(word);
        int slot = mp_carrier_slot_of(word);
        if (state == MP_CARRIER_SENT && !(j.looked[i / 64] >> i % 64 & 1))
            judge_queue(f, i, high, &j);
        else if ((state == MP_CARRIER_MAKING || state == MP_CARRIER_ENDING) &&
                 (mp_slots_have(dead, slot) || (slot < 0 && state == MP_CARRIER_ENDING)))
            end_by_recovery(f, i, word, &j);
    }
    if (j.count == 0)
        return 0;
    uint32_t blocks = mp_block_high(f);
    for (uint32_t i = 0; i < blocks; i++) {
        struct mp_block *b = mp_block_at(f, i);
        if (b->kind != MP_KIND_MEMORY || !mp_block_is_live(atomic_load(&b->word)))
            continue;
        mp_block_drop_holders(f, i, j.over);
        mp_block_try_free(f, i, -1);
    }
    for (uint32_t i = 0; i < high; i++)
        if (j.over[(MP_SLOTS + i) / 64] >> (MP_SLOTS + i) % 64 & 1)
            release(f, i);
    return (int)j.count;
}

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
 * pieces in state SPILL are in no lane (their linker or their freer died).
 *
 * What was posted: the lock's owner may not run for a long time (stopped, in a debugger, throttled), and put() may neither fail nor
 * wait for that. So a sender that has waited for a moment fills a chunk of its own, in state POSTED, and puts it on a stack, by a
 * compare-and-swap on its top, which needs no lock: from then on the message is in the queue. Each word on the stack is a
 * chunk's name with the sequence of its piece, so it is never twice the same. Whoever has the lock comes by before anything else
 * and puts the chunks into their lanes, oldest first (collect()); how he comes to know of them stands in queue.c.
 *
 *   POSTED by a slot         a living sender is about to put it on the stack, or has
 *   POSTED by nobody         recovery has found it so after a death, and could not tell which (only he who has the lock can)
 *   SPILL, and on the stack  is being put into a lane, or is in one: then whoever did it died before he had emptied the stack
 *
 * Two things tell what leads to a chunk: a walk along the lanes, and one down the stack. Both leave the walk's number, the stamp, in
 * the chunk. So a walk down the stack ends where it comes to what is in a lane, nothing is put into one twice, and a chain of
 * chunks that somebody has made a ring of ends, too.
 *
 * Of what stands in shared memory nothing is believed: where a chunk cannot be one, the lane ends before it; where a message cannot
 * be one, its chunk does. What comes then is lost (MP_CORRUPT, to be told once), and a repair is asked for, which counts anew. */
#include "spill.h"

#include "carriers.h"
#include "chunks.h"
#include "pieces.h"
#include "slots.h"
#include "space.h"

#include <string.h>

/* What only the lock's owner reads needs no fence; that it comes to be in this order is what counts. */
#define STORE(place, value) atomic_store_explicit(&(place), value, memory_order_release)

static void free_chunk(struct mp_queue_view *v, const struct found *found) {
    uint64_t sequence = mp_piece_sequence_of(atomic_load(found->word));
    mp_piece_free_at(v, name_segment(found->name), name_number(found->name), found->word, sequence);
}

static int damaged(struct mp_queue_view *v) {
    atomic_fetch_or(&v->q->token, MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR);
    return MP_CORRUPT;
}

/* ---- lanes ------------------------------------------------------------------------------------------------------------- */

/* The last chunk of a lane. MP_EMPTY: it has none. The tail is only where it was last known to be; where it is not, it is looked
 * for, and what does not lead to it is cut off. */
static int last_chunk(struct mp_queue_view *v, struct mp_lane *lane, struct found *last) {
    uint64_t head = atomic_load(&lane->head), name = head >> 32;
    if (head == 0)
        return MP_EMPTY;
    int error = chunk_named(v, atomic_load(&lane->tail), last);
    if (error == MP_OK && atomic_load(&last->c->next) == 0)
        return MP_OK;
    bool any = false;
    for (uint32_t i = 0; i < MOST_CHUNKS; i++) {
        struct found chunk;
        error = chunk_named(v, name, &chunk);
        if (error == MP_CORRUPT)
            break;
        if (error != MP_OK)
            return error;
        *last = chunk;
        any = true;
        if ((name = atomic_load(&chunk.c->next)) == 0)
            break;
    }
    if (name != 0)
        damaged(v);
    if (!any) {
        atomic_store(&lane->head, 0);
        return MP_EMPTY;
    }
    atomic_store(&last->c->next, 0);
    atomic_store(&lane->tail, last->name);
    return MP_OK;
}

/* Puts a chain of chunks behind `before`, the last one (NULL: there is none): they are in the lane by one store. */
static void link_chunks(struct mp_arena *a, uint32_t level, const struct found *before, uint64_t first, uint64_t last) {
    struct mp_lane *lane = &a->lanes[level];
    atomic_fetch_or(&a->used[level / 64], 1ull << level % 64); /* first: a lane with its bit clear is empty */
    if (before == NULL)
        STORE(lane->head, position(first, START));
    else
        STORE(before->c->next, first);
    STORE(lane->tail, last);
}

/* The header of a chunk that nobody else knows of yet. */
static void begin_chunk(struct chunk *c, uint64_t filled) {
    atomic_store_explicit(&c->next, 0, memory_order_relaxed);
    atomic_store_explicit(&c->filled, filled, memory_order_relaxed);
    atomic_store_explicit(&c->stamp, 0, memory_order_relaxed);
}

/* ---- posting ----------------------------------------------------------------------------------------------------------- */

/* Messages that are on the stack from `top` on. Only a guess unless `top` is on top when the caller looks again. */
static uint32_t messages_from(struct mp_queue_view *v, uint64_t top) {
    struct found found;
    if (top == 0 || piece_named(v, posted_name(top), &found) != MP_OK)
        return 0;
    return *(volatile uint32_t *)&found.c->messages;
}

/* How many messages were posted and not collected yet. */
uint64_t mp_spill_posted(struct mp_queue_view *v) {
    for (int attempt = 0; attempt < 100; attempt++) {
        uint64_t top = atomic_load(mp_posted(v->b));
        uint32_t messages = messages_from(v, top);
        if (atomic_load(mp_posted(v->b)) == top)
            return messages != 0 || !mp_is_posted(top) ? messages : 1;
    }
    return 1;
}

/* Puts messages of one level where the lock's next owner finds them. `bodies`: one struct mp_body after the other, `size` bytes
 * with what mp_body_size() adds. MP_SHUT_DOWN: nobody looks there any more, and nothing was posted. */
int mp_spill_post(struct mp_queue_view *v, const unsigned char *bodies, uint64_t size, uint32_t count, uint32_t level) {
    struct mp_piece piece;
    struct mp_piece_place place;
    int error = mp_piece_claim_chunk(v, START + size, true, &piece, &place);
    if (error != MP_OK)
        return error;
    uint32_t name = chunk_name(piece.segment, piece.number);
    struct chunk *c = (struct chunk *)place.data;
    begin_chunk(c, (START + size) | (uint64_t)count << 32);
    c->level = level;
    memcpy(place.data + START, bodies, size);
    atomic_store(place.word, mp_piece_word_of(MP_PIECE_POSTED, v->f->slot, piece.sequence));
    uint64_t top = atomic_load(mp_posted(v->b));
    do { /* if it is still on top then, it was all the time, and its chunk was that message's */
        if (top == MP_POSTED_SHUT) {
            mp_piece_free(v, &piece);
            return MP_SHUT_DOWN;
        }
        c->below = top;
        c->messages = count + messages_from(v, top);
    } while (!atomic_compare_exchange_strong(mp_posted(v->b), &top, posted_word(name, piece.sequence)));
    return MP_OK;
}

/* 0, or an error: MP_CORRUPT: there is no such chunk on the stack. */
static int chunk_posted(struct mp_queue_view *v, uint64_t word, struct found *found) {
    int error = piece_named(v, posted_name(word), found);
    if (error != MP_OK)
        return error;
    uint64_t piece = atomic_load(found->word);
    uint32_t filled = filled_bytes(found->c);
    enum mp_piece_state state = mp_piece_state_of(piece);
    return (state == MP_PIECE_POSTED || state == MP_PIECE_SPILL) && mp_piece_sequence_of(piece) == posted_sequence(word) &&
                   filled >= START && filled <= found->size && found->c->level < mp_queue_levels(v)
               ? MP_OK
               : MP_CORRUPT;
}

/* Walks down the stack to what is in a lane, and leaves in each chunk the way up: they become a chain, oldest first. */
static int walk_down(struct mp_queue_view *v, uint64_t top, uint64_t stamp, uint64_t *oldest, uint64_t *count) {
    *oldest = *count = 0;
    for (uint64_t word = top; word != 0;) {
        struct found found;
        int error = chunk_posted(v, word, &found);
        if (error != MP_OK)
            return error;
        if (atomic_load(&found.c->stamp) == stamp)
            return MP_OK;
        atomic_store(&found.c->stamp, stamp);
        atomic_store(&found.c->next, *oldest);
        atomic_store(found.word, mp_piece_word_of(MP_PIECE_SPILL, -1, posted_sequence(word)));
        *oldest = found.name;
        *count += filled_messages(found.c);
        word = found.c->below;
    }
    return MP_OK;
}

static int append_chunks(struct mp_queue_view *v, struct mp_arena *a, uint32_t level, uint64_t first, uint64_t last) {
    struct found before;
    int error = last_chunk(v, &a->lanes[level], &before);
    if (error == MP_OK || error == MP_EMPTY)
        link_chunks(a, level, error == MP_OK ? &before : NULL, first, last);
    return error == MP_EMPTY ? MP_OK : error;
}

/* Puts the chain into its lanes: all at once if there is only one lane, else one chunk after the other. */
static int put_into_lanes(struct mp_queue_view *v, struct mp_arena *a, uint64_t oldest, uint64_t newest) {
    if (mp_queue_levels(v) == 1)
        return append_chunks(v, a, 0, oldest, newest);
    while (oldest != 0) {
        struct found found;
        int error = chunk_named(v, oldest, &found);
        if (error != MP_OK)
            return error;
        uint64_t up = atomic_load(&found.c->next);
        uint32_t level = *(volatile uint32_t *)&found.c->level;
        atomic_store(&found.c->next, 0);
        error = level < mp_queue_levels(v) ? append_chunks(v, a, level, oldest, oldest) : MP_CORRUPT;
        if (error != MP_OK)
            return error;
        oldest = up;
    }
    return MP_OK;
}

/* Whatever happens, this can be done again: the chunks that are in lanes by then are known by their stamp after a walk along
 * those. The stack is empty only when all are in lanes and counted: until then senders know that there is something before them. */
static int collect(struct mp_queue_view *v, struct mp_arena *a, uint64_t stamp) {
    uint64_t top = atomic_load(mp_posted(v->b));
    int result = MP_OK;
    while (mp_is_posted(top)) {
        uint64_t oldest, count;
        int error = walk_down(v, top, stamp, &oldest, &count);
        if (error == MP_CORRUPT) /* what is below is lost */
            result = damaged(v);
        else if (error != MP_OK)
            return error;
        if (oldest != 0)
            error = put_into_lanes(v, a, oldest, posted_name(top));
        if (error == MP_CORRUPT)
            result = damaged(v);
        else if (error != MP_OK)
            return damaged(v), error;
        atomic_fetch_add(&v->q->spilled, (uint32_t)count);
        if (atomic_compare_exchange_strong(mp_posted(v->b), &top, 0))
            break;
    }
    return result;
}

/* Puts what was posted into the lanes. */
int mp_spill_collect(struct mp_queue_view *v) {
    struct mp_arena *a = mp_arena_open(v);
    if (a == NULL && errno != 0 && errno != MP_CORRUPT)
        return errno;
    if (a == NULL) {
        atomic_store(mp_posted(v->b), 0);
        return MP_CORRUPT;
    }
    return collect(v, a, ++a->stamp);
}

/* ---- putting ---------------------------------------------------------------------------------------------------------- */

/* A chunk behind `before`, the last one of the lane (NULL: there is none). */
static int new_chunk(struct mp_queue_view *v, struct mp_arena *a, uint32_t level, const struct found *before,
                     struct found *made) {
    uint64_t size = before == NULL ? CHUNK_SMALLEST : before->size * 2;
    struct mp_piece piece;
    struct mp_piece_place place;
    int error = mp_piece_claim_chunk(v, size < CHUNK_LARGEST ? size : CHUNK_LARGEST, false, &piece, &place);
    if (error != MP_OK)
        return error;
    struct found chunk = {(struct chunk *)place.data, place.word, chunk_name(piece.segment, piece.number), place.size};
    begin_chunk(chunk.c, START);
    STORE(*chunk.word, mp_piece_word_of(MP_PIECE_SPILL, -1, piece.sequence));
    link_chunks(a, level, before, chunk.name, chunk.name);
    *made = chunk;
    return MP_OK;
}

/* 0, or an error: then nothing was appended. */
int mp_spill_append(struct mp_queue_view *v, const struct mp_message *m, uint32_t length, uint32_t level) {
    int error = mp_arena_make(v);
    if (error != MP_OK)
        return error;
    struct mp_arena *a = atomic_load(&v->arena);
    struct found last;
    error = last_chunk(v, &a->lanes[level], &last);
    if (error == MP_OK && filled_bytes(last.c) + mp_body_size(length + 1) > last.size)
        error = new_chunk(v, a, level, &last, &last);
    else if (error == MP_EMPTY)
        error = new_chunk(v, a, level, NULL, &last);
    if (error != MP_OK)
        return error;
    uint64_t filled = atomic_load(&last.c->filled);
    uint32_t offset = (uint32_t)filled;
    if (offset > last.size - mp_body_size(length + 1))
        return damaged(v);
    struct mp_body *r = (struct mp_body *)((unsigned char *)last.c + offset);
    r->length = length + 1;
    memcpy(r->body, &m->kind, length + 1);
    STORE(last.c->filled, filled + mp_body_size(length + 1) + (1ull << 32));
    atomic_fetch_add(&v->q->spilled, 1);
    return MP_OK;
}

/* ---- taking ----------------------------------------------------------------------------------------------------------- */

/* The lowest level that may have messages, -1 if none has. errno is 0, or says why the arena could not be looked at. */
int64_t mp_spill_first_level(struct mp_queue_view *v) {
    struct mp_arena *a = mp_arena_open(v);
    uint64_t levels = mp_queue_levels(v);
    if (a != NULL)
        errno = 0;
    for (uint64_t i = 0; a != NULL && i < (levels + 63) / 64; i++) {
        uint64_t used = atomic_load(&a->used[i]);
        if (used != 0 && i * 64 + (uint64_t)__builtin_ctzll(used) < levels)
            return (int64_t)(i * 64) + __builtin_ctzll(used);
    }
    return -1;
}

static int cut(struct mp_queue_view *v, struct mp_arena *a, uint32_t level) {
    atomic_store(&a->lanes[level].head, 0);
    atomic_fetch_and(&a->used[level / 64], ~(1ull << level % 64));
    return damaged(v);
}

/* The first chunk of a lane that has not been read. Those before it are freed, so that a lane without messages has no chunk;
 * MP_EMPTY: there is none. */
static int first_chunk(struct mp_queue_view *v, struct mp_arena *a, uint32_t level, struct found *first) {
    struct mp_lane *lane = &a->lanes[level];
    uint64_t head;
    while ((head = atomic_load(&lane->head)) != 0) {
        int error = chunk_named(v, head >> 32, first);
        if (error == MP_CORRUPT)
            return cut(v, a, level);
        if (error != MP_OK)
            return error;
        if ((uint32_t)head < filled_bytes(first->c))
            return MP_OK;
        uint64_t next = atomic_load(&first->c->next);
        STORE(lane->head, next == 0 ? 0 : position(next, START));
        free_chunk(v, first);
    }
    atomic_fetch_and(&a->used[level / 64], ~(1ull << level % 64));
    return MP_EMPTY;
}

/* Makes the record the item. A large message passes to this process before it leaves the spill: should we die in between,
 * recovery frees the piece, and the next one finds a record whose piece is gone. MP_EMPTY: we have found such a one. */
static int open_record(struct mp_queue_view *v, const struct mp_body *r, uint32_t length, struct mp_item *item) {
    memcpy(&item->message.kind, r->body, length);
    item->data = item->message.data;
    item->size = length - 1;
    if (item->message.kind == MP_BODY_INLINE || item->message.kind == MP_BODY_PLAIN)
        return MP_OK;
    if (item->message.kind != MP_BODY_PIECE || length != 1 + sizeof item->piece)
        return MP_CORRUPT;
    memcpy(&item->piece, item->message.data, sizeof item->piece);
    item->size = item->piece.length;
    item->data = mp_piece_receive(v, &item->piece);
    return item->data != NULL ? MP_OK : errno == 0 ? MP_EMPTY : errno;
}

/* The first message of a level. MP_OK; MP_EMPTY: there is none, or there was one that was never sent and is gone now; MP_CORRUPT:
 * there was something that is none, and is gone now; or an error: then nothing was taken. */
int mp_spill_pop(struct mp_queue_view *v, uint32_t level, struct mp_item *item) {
    struct mp_arena *a = mp_arena_open(v);
    if (a == NULL)
        return errno == 0 ? MP_EMPTY : errno;
    struct mp_lane *lane = &a->lanes[level];
    struct found first;
    int error = first_chunk(v, a, level, &first);
    if (error != MP_OK)
        return error;
    uint64_t head = atomic_load(&lane->head);
    uint32_t filled = filled_bytes(first.c), offset = (uint32_t)head, length, size = 0;
    if (filled <= first.size)
        size = record_at(&first, offset, filled, &length);
    if (size == 0) { /* nobody knows where the next one begins */
        atomic_store(&lane->head, position(head >> 32, UINT32_MAX));
        error = damaged(v);
    } else {
        error = open_record(v, (struct mp_body *)((unsigned char *)first.c + offset), length, item);
        if (error != MP_OK && error != MP_EMPTY && error != MP_CORRUPT)
            return error;
        STORE(lane->head, position(head >> 32, offset + size));
        atomic_fetch_sub(&v->q->spilled, 1);
    }
    if (size == 0 || offset + size >= filled)
        first_chunk(v, a, level, &first); /* if it fails, the next one has to */
    return error;
}

/* ---- after a death, or after damage -------------------------------------------------------------------------------------- */

/* Is the record the descriptor of a large message? */
static bool describes(const struct found *found, uint32_t offset, uint32_t length, struct mp_piece *piece) {
    const unsigned char *body = ((struct mp_body *)((unsigned char *)found->c + offset))->body;
    if (length != 1 + sizeof *piece || body[0] != MP_BODY_PIECE)
        return false;
    memcpy(piece, body + 1, sizeof *piece);
    return true;
}

/* Whoever has received a large message and died before the head was behind it has left a record that stands for nothing: as long
 * as it counts, others wait for a message that is not there. As first_chunk(). */
static int first_that_is_there(struct mp_queue_view *v, struct mp_arena *a, uint32_t level, struct found *first) {
    struct mp_lane *lane = &a->lanes[level];
    struct mp_piece piece;
    uint32_t length, size;
    int result;
    while ((result = first_chunk(v, a, level, first)) == MP_OK) {
        uint64_t head = atomic_load(&lane->head);
        uint32_t offset = (uint32_t)head, end = filled_bytes(first->c);
        size = end <= first->size ? record_at(first, offset, end, &length) : 0;
        if (size == 0 || !describes(first, offset, length, &piece) || mp_piece_is_there(v, &piece))
            break;
        STORE(lane->head, position(head >> 32, offset + size));
    }
    return result;
}

/* Counts the messages of a lane, and leaves the stamp in its chunks. */
static int repair_lane(struct mp_queue_view *v, struct mp_arena *a, uint32_t level, uint64_t stamp, uint64_t *count) {
    struct mp_lane *lane = &a->lanes[level];
    struct found before, found;
    int result = first_that_is_there(v, a, level, &found);
    if (result == MP_EMPTY)
        return MP_OK;
    if (result != MP_OK)
        return result;
    uint64_t head = atomic_load(&lane->head);
    uint32_t offset = (uint32_t)head;
    before.c = NULL;
    for (uint64_t name = head >> 32; name != 0; name = atomic_load(&found.c->next)) {
        int error = chunk_named(v, name, &found);
        if (error != MP_OK && error != MP_CORRUPT)
            return error;
        if (error == MP_CORRUPT || atomic_load(&found.c->stamp) == stamp) { /* not a chunk, or one that was here before */
            if (before.c == NULL)
                return cut(v, a, level);
            atomic_store(&before.c->next, 0);
            return damaged(v);
        }
        atomic_store(&found.c->stamp, stamp);
        uint32_t end = filled_bytes(found.c), messages = 0, length, size;
        end = end <= found.size ? end : START;
        for (; offset < end && (size = record_at(&found, offset, end, &length)) != 0; messages++)
            offset += size;
        if (offset < end) {
            atomic_store(&found.c->filled, offset | (uint64_t)messages << 32);
            result = MP_CORRUPT;
        }
        *count += messages;
        atomic_store(&lane->tail, name);
        before = found;
        offset = START;
    }
    return result;
}

struct walk {
    uint64_t unposted; /* the stamp of chunks that nobody is about to post any more, set before the stack is looked at */
    uint64_t stamp;
    bool orphans; /* there are pieces of which a descriptor may be in a lane */
};

static bool nobodys(uint64_t word) { return mp_piece_state_of(word) == MP_PIECE_POSTED && mp_piece_slot_of(word) < 0; }

static uint64_t orphan_of(struct mp_queue_view *v, uint64_t word) {
    return mp_piece_word_of(MP_PIECE_ORPHAN, v->f->slot, mp_piece_sequence_of(word));
}

/* Marks what is in doubt now, before anything is looked at: what recovery adds meanwhile is for the next repair. */
static void mark_doubtful(struct mp_queue_view *v, uint32_t segment, uint32_t number, const struct mp_piece_place *place,
                          void *context) {
    struct walk *walk = context;
    uint64_t word = atomic_load(place->word);
    if (nobodys(word))
        atomic_store(&((struct chunk *)place->data)->stamp, walk->unposted);
    if (mp_piece_state_of(word) == MP_PIECE_ORPHAN)
        walk->orphans |= atomic_compare_exchange_strong(place->word, &word, orphan_of(v, word));
}

/* The large messages that dead senders have put into this lane are messages. */
static int adopt_described(struct mp_queue_view *v, struct mp_arena *a, uint32_t level) {
    uint64_t head = atomic_load(&a->lanes[level].head), name = head >> 32;
    uint32_t offset = (uint32_t)head;
    for (uint32_t i = 0; name != 0 && i < MOST_CHUNKS; i++) {
        struct found found;
        int error = chunk_named(v, name, &found);
        if (error != MP_OK)
            return error == MP_CORRUPT ? MP_OK : error;
        uint32_t end = filled_bytes(found.c), length, size;
        end = end <= found.size ? end : START;
        for (; offset < end && (size = record_at(&found, offset, end, &length)) != 0; offset += size) {
            struct mp_piece piece;
            if (describes(&found, offset, length, &piece))
                mp_piece_adopt(v, &piece);
        }
        name = atomic_load(&found.c->next);
        offset = START;
    }
    return MP_OK;
}

static void free_lost(struct mp_queue_view *v, uint32_t segment, uint32_t number, const struct mp_piece_place *place,
                      void *context) {
    const struct walk *walk = context;
    struct found found = {(struct chunk *)place->data, place->word, chunk_name(segment, number), place->size};
    uint64_t word = atomic_load(place->word);
    if ((mp_piece_state_of(word) == MP_PIECE_SPILL && atomic_load(&found.c->stamp) != walk->stamp) ||
        (nobodys(word) && atomic_load(&found.c->stamp) == walk->unposted) || word == orphan_of(v, word))
        free_chunk(v, &found);
}

static bool may_have_messages(struct mp_arena *a, uint32_t level) {
    return atomic_load(&a->used[level / 64]) >> level % 64 & 1;
}

/* Can be done again from the start, should its process die, too. MP_CORRUPT: it was done, and something was lost.
 *
 *   1. what is in doubt is marked: chunks that a dead process was about to post, pieces that it was filling;
 *   2. the lanes are walked along: their messages are counted, and what cannot be one is cut off;
 *   3. what was posted is put into the lanes;
 *   4. the pieces in doubt whose descriptors are in a lane are messages;
 *   5. the others, and chunks to which nothing leads, are free. */
int mp_spill_repair(struct mp_queue_view *v) {
    struct mp_arena *a = mp_arena_open(v);
    if (a == NULL)
        return errno;
    struct walk walk = {a->stamp + 1, a->stamp + 2, false};
    a->stamp += 2;
    uint64_t count = 0;
    int result = MP_OK, error = mp_arena_each(v, mark_doubtful, &walk);
    for (uint32_t level = 0; level < mp_queue_levels(v) && error == MP_OK; level++)
        if (may_have_messages(a, level)) {
            error = repair_lane(v, a, level, walk.stamp, &count);
            if (error == MP_CORRUPT)
                result = error, error = MP_OK;
        }
    if (error != MP_OK)
        return error;
    atomic_store(&v->q->spilled, (uint32_t)count);
    error = collect(v, a, walk.stamp);
    if (error == MP_CORRUPT)
        result = error, error = MP_OK;
    for (uint32_t level = 0; level < mp_queue_levels(v) && error == MP_OK && walk.orphans; level++)
        if (may_have_messages(a, level))
            error = adopt_described(v, a, level);
    if (error == MP_OK)
        error = mp_arena_each(v, free_lost, &walk);
    if (walk.orphans && mp_carriers_in_use(v->f))
        mp_family_wake_reaper(v->f); /* what those held that were never sent, it drops */
    return error != MP_OK ? error : result;
}

/* Pieces of a queue's arena: large messages, and the chunks of the spill.
 *
 * A piece is claimed by one compare-and-swap on its word, {state, slot, sequence}, and freed by one store; no lock is needed.
 * The first free piece is taken, of large ones the first that has memory: a queue in a steady state uses the same, warm pieces
 * again and again.
 *
 *   FREE -> FILLING by a sender -> QUEUED, when its descriptor is in the queue -> RECEIVED by a receiver -> FREE
 *   FREE -> FILLING -> ORPHAN, when its sender has died -> QUEUED if its descriptor is in the queue, else FREE (spill.c)
 *   FREE -> FILLING -> SPILL, a chunk of the spill (spill.c) -> FREE
 *   FREE -> FILLING -> POSTED by a sender without the lock -> SPILL, by whoever has it (spill.c) -> FREE
 *
 * The descriptor carries the sequence of the life it means. Where a process can die:
 *   FILLING: recovery cannot tell whether the descriptor is in the spill already, where it counts as a message. It makes the
 *     piece an ORPHAN, of nobody, and has the lock's next owner find out, who can (mp_spill_repair).
 *   between FILLING and QUEUED somebody may receive it: that compare-and-swap wins, against the sender's and against
 *     recovery's.
 *   QUEUED: the queue owns the piece; the sender may go.
 *   RECEIVED: recovery frees it; the message was in the receiver's hands. Descriptors do not go through the kernel queue
 *     because they would leave it before they say RECEIVED, and the piece of a receiver killed in between would be lost.
 *   TAKEN, instead of RECEIVED, by a receiver of a job: recovery gives it back. See jobs.c.
 *   POSTED: recovery cannot tell whether it was posted, that is, whether anything leads to it. It takes the slot out of the word
 *     and has the lock's next owner find out, who can (mp_spill_repair).
 *
 * Nothing that stands in shared memory is believed: see space.h. */
#include "pieces.h"

#include "space.h"

#define SMALLEST (16ull << 10) /* of those for large messages and for the chunks of the spill */
#define SMALLEST_POST 256ull
#define LARGE (64ull << 10)

/* Where a piece is in this process: 0, or an error. */
int mp_piece_find(struct mp_queue_view *v, uint32_t segment, uint32_t number, struct mp_piece_place *place) {
    struct mp_stretch s = mp_piece_at(v, segment, number);
    if (s.base == NULL)
        return errno;
    *place = (struct mp_piece_place){&mp_words_of(s)[number].word, mp_data_of(s, number), s.size};
    return MP_OK;
}

/* What a look at all pieces of a size finds beside a free one. */
struct census {
    uint32_t segments;  /* how many were published when it began */
    uint32_t busy;      /* pieces that are not free */
    int64_t last_freed; /* when a piece was last given back */
    int error;          /* why a segment could not be looked at */
};

/* Of many small pieces that nobody has received yet, not all are looked at for every claim, but only those from `low` on.
 * Whoever frees a piece lowers it, after that; whoever finds no free piece before another raises it to that, and then looks
 * again whether one was freed meanwhile. So one of the two sees the other. If a process dies in between, some free pieces are
 * not found from there: hence the second look, from the first piece, before a segment is added. */
void mp_piece_lower(struct mp_arena *a, uint32_t segment, uint32_t number) {
    uint32_t low = atomic_load(&a->low[segment]);
    while (number < low && !atomic_compare_exchange_weak(&a->low[segment], &low, number))
        ;
}

static void raise_low(struct mp_arena *a, uint32_t segment, struct mp_stretch s, uint32_t low, uint32_t number) {
    uint32_t first = low;
    if (number <= low || !atomic_compare_exchange_strong(&a->low[segment], &low, number))
        return;
    for (uint32_t n = first; n < number; n++)
        if (mp_piece_state_of(atomic_load(&mp_words_of(s)[n].word)) == MP_PIECE_FREE) {
            mp_piece_lower(a, segment, n);
            return;
        }
}

/* A free piece; without `fresh`, one that has memory. The census is complete if there is none and `from_low` is false. */
static bool claim_from(struct mp_queue_view *v, uint32_t code, bool fresh, bool from_low, struct mp_piece *piece,
                       struct census *census) {
    struct mp_arena *a = mp_arena_open(v);
    *census = (struct census){.segments = mp_segments_of(a), .error = a == NULL ? errno : MP_OK};
    for (uint32_t i = 0; i < census->segments; i++) {
        if (mp_entry_code(atomic_load_explicit(&a->segment[i], memory_order_relaxed)) != code)
            continue;
        struct mp_stretch s = mp_segment_at(v, i);
        if (s.base == NULL || s.size != mp_size_of_code(code)) {
            if (s.base == NULL && errno != MP_CORRUPT) /* that one is lost, another can be added */
                census->error = errno;
            continue;
        }
        struct mp_piece_words *words = mp_words_of(s);
        uint32_t low = from_low ? atomic_load(&a->low[i]) : 0, n;
        for (n = low; n < s.pieces; n++) {
            uint64_t word = atomic_load_explicit(&words[n].word, memory_order_relaxed);
            int64_t freed = atomic_load_explicit(&words[n].freed_ns, memory_order_relaxed);
            if (freed > census->last_freed)
                census->last_freed = freed;
            if (mp_piece_state_of(word) != MP_PIECE_FREE) {
                census->busy++;
                continue;
            }
            if (!fresh && freed == 0)
                continue;
            uint64_t sequence = (mp_piece_sequence_of(word) + 1) & MP_PIECE_SEQUENCE;
            if (!atomic_compare_exchange_strong(&words[n].word, &word,
                                                mp_piece_word_of(MP_PIECE_FILLING, v->f->slot, sequence)))
                continue;
            *piece = (struct mp_piece){i, n, sequence, 0, 0};
            if (from_low)
                raise_low(a, i, s, low, n + 1);
            else
                mp_piece_lower(a, i, n + 1);
            return true;
        }
        if (from_low)
            raise_low(a, i, s, low, n);
    }
    return false;
}

static bool claim_free(struct mp_queue_view *v, uint32_t code, bool fresh, struct mp_piece *piece, struct census *census) {
    if (mp_size_of_code(code) < LARGE && claim_from(v, code, fresh, true, piece, census))
        return true;
    return claim_from(v, code, fresh, false, piece, census);
}

/* Touching fresh memory takes far longer than copying into memory that has been used, so a sender that is ahead of a receiver
 * at work waits a moment for what that gives back: about as long as the fresh memory would take. */
#define AHEAD 4u
#define FRESH_NS_PER_KIB 2000
#define LONGEST_MOMENT_NS 20000000
#define AT_WORK_NS 20000000
static bool claim_warm(struct mp_queue_view *v, uint32_t code, struct mp_piece *piece) {
    struct census census;
    if (mp_size_of_code(code) < LARGE)
        return false;
    if (claim_free(v, code, false, piece, &census))
        return true;
    int64_t now = mp_now_ns(), moment = (int64_t)(mp_size_of_code(code) >> 10) * FRESH_NS_PER_KIB;
    int64_t end = now + (moment < LONGEST_MOMENT_NS ? moment : LONGEST_MOMENT_NS);
    while (census.busy >= AHEAD && census.last_freed + AT_WORK_NS > now && now < end) {
        nanosleep(&(struct timespec){0, 50000}, NULL);
        if (claim_free(v, code, false, piece, &census))
            return true;
        now = mp_now_ns();
    }
    return false;
}

static int claim(struct mp_queue_view *v, uint64_t size, uint64_t smallest, bool warm, struct mp_piece *piece,
                 struct mp_piece_place *place) {
    uint32_t code = mp_code_of(size, smallest);
    struct census census;
    if (code == 0)
        return MP_NO_MEMORY;
    if (!warm || !claim_warm(v, code, piece))
        while (!claim_free(v, code, true, piece, &census)) {
            int error = census.error != MP_OK ? census.error : mp_segment_add(v, code, census.segments);
            if (error != MP_OK)
                return error;
        }
    struct mp_stretch s = mp_segment_at(v, piece->segment);
    piece->length = size;
    *place = (struct mp_piece_place){&mp_words_of(s)[piece->number].word, mp_data_of(s, piece->number), s.size};
    return MP_OK;
}

/* A piece of at least `size` bytes in state FILLING, and where it is. 0, or an error. It is worth a moment's wait if its memory has
 * been used before. */
int mp_piece_claim(struct mp_queue_view *v, uint64_t size, struct mp_piece *piece, unsigned char **data) {
    struct mp_piece_place place;
    bool job = v->flags & MP_QUEUE_WORK; /* small ones lie in pieces, too, and have something behind them */
    int error = claim(v, job ? size + sizeof(struct mp_job) : size, job && size < SMALLEST ? SMALLEST_POST : SMALLEST, true,
                      piece, &place);
    if (error != MP_OK)
        return error;
    piece->length = size;
    *data = place.data;
    return MP_OK;
}

/* The same for a chunk of the spill, without waiting. Those that are posted are many, and most are small. */
int mp_piece_claim_chunk(struct mp_queue_view *v, uint64_t size, bool post, struct mp_piece *piece,
                         struct mp_piece_place *place) {
    return claim(v, size, post ? SMALLEST_POST : SMALLEST, false, piece, place);
}

/* The descriptor is in the queue. false: somebody has received it already. */
bool mp_piece_sent(struct mp_queue_view *v, const struct mp_piece *piece) {
    struct mp_piece_place place;
    uint64_t filling = mp_piece_word_of(MP_PIECE_FILLING, v->f->slot, piece->sequence);
    return mp_piece_find(v, piece->segment, piece->number, &place) == MP_OK &&
           atomic_compare_exchange_strong(place.word, &filling, mp_piece_word_of(MP_PIECE_QUEUED, -1, piece->sequence));
}

/* NULL with errno 0: the message was never sent, its sender died before that. MP_CORRUPT: there can be no such piece. */
unsigned char *mp_piece_receive(struct mp_queue_view *v, const struct mp_piece *piece) {
    struct mp_stretch s = mp_piece_at(v, piece->segment, piece->number);
    if (s.base == NULL)
        return NULL;
    if (piece->length > s.size || piece->sequence > MP_PIECE_SEQUENCE) {
        errno = MP_CORRUPT;
        return NULL;
    }
    _Atomic uint64_t *place = &mp_words_of(s)[piece->number].word;
    enum mp_piece_state state = v->flags & MP_QUEUE_WORK ? MP_PIECE_TAKEN : MP_PIECE_RECEIVED;
    uint64_t mine = mp_piece_word_of(state, v->f->slot, piece->sequence);
    uint64_t word = atomic_load(place);
    while (mp_piece_is_message(mp_piece_state_of(word)) && mp_piece_sequence_of(word) == piece->sequence)
        if (atomic_compare_exchange_weak(place, &word, mine))
            return mp_data_of(s, piece->number);
    errno = 0;
    return NULL;
}

/* The lock's owner, in repair: a descriptor of this piece is in a lane. */
void mp_piece_adopt(struct mp_queue_view *v, const struct mp_piece *piece) {
    struct mp_piece_place place;
    if (mp_piece_find(v, piece->segment, piece->number, &place) != MP_OK)
        return;
    uint64_t word = atomic_load(place.word);
    if (mp_piece_state_of(word) == MP_PIECE_ORPHAN && mp_piece_sequence_of(word) == piece->sequence)
        atomic_compare_exchange_strong(place.word, &word, mp_piece_word_of(MP_PIECE_QUEUED, -1, piece->sequence));
}

/* Can what a descriptor names still be received? */
bool mp_piece_is_there(struct mp_queue_view *v, const struct mp_piece *piece) {
    struct mp_piece_place place;
    if (mp_piece_find(v, piece->segment, piece->number, &place) != MP_OK)
        return true; /* whoever comes to it finds out why */
    uint64_t word = atomic_load(place.word);
    return mp_piece_is_message(mp_piece_state_of(word)) && mp_piece_sequence_of(word) == piece->sequence;
}

/* Of one that was found: `word` is its word. */
void mp_piece_free_at(struct mp_queue_view *v, uint32_t segment, uint32_t number, _Atomic uint64_t *word, uint64_t sequence) {
    struct mp_piece_words *words = (struct mp_piece_words *)word;
    atomic_store_explicit(&words->freed_ns, mp_now_ns(), memory_order_relaxed);
    atomic_store(&words->word, mp_piece_word_of(MP_PIECE_FREE, -1, sequence));
    mp_piece_lower(atomic_load(&v->arena), segment, number);
}

void mp_piece_free(struct mp_queue_view *v, const struct mp_piece *piece) {
    struct mp_stretch s = mp_piece_at(v, piece->segment, piece->number);
    if (s.base != NULL)
        mp_piece_free_at(v, piece->segment, piece->number, &mp_words_of(s)[piece->number].word, piece->sequence);
}

/* ---- after a death -------------------------------------------------------------------------------------- */

/* What becomes of a piece whose slot is dead, or was dead when an earlier recovery, which did not end, took it out of the word. */
static enum mp_piece_state after_death(enum mp_piece_state state) {
    switch (state) {
    case MP_PIECE_FILLING:
    case MP_PIECE_ORPHAN: /* it was being repaired */
        return MP_PIECE_ORPHAN;
    case MP_PIECE_POSTED:
        return MP_PIECE_POSTED;
    case MP_PIECE_TAKEN:
    case MP_PIECE_RETURNED:
        return MP_PIECE_RETURNED;
    default:
        return MP_PIECE_FREE;
    }
}

/* Frees what dead processes had received, and gives back the jobs that they had taken. true: there are pieces of which it is not known whether anything leads to them; they
 * have no slot now, and mp_spill_repair() is wanted. */
bool mp_arena_recover(struct mp_queue_view *v, const uint64_t *dead) {
    struct mp_arena *a = mp_arena_open(v);
    bool doubtful = false;
    for (uint32_t i = 0, count = mp_segments_of(a); i < count; i++) {
        struct mp_stretch s = mp_segment_at(v, i);
        struct mp_piece_words *words = mp_words_of(s);
        for (uint32_t n = 0; s.base != NULL && n < s.pieces; n++) {
            uint64_t word = atomic_load(&words[n].word), sequence = mp_piece_sequence_of(word);
            enum mp_piece_state state = mp_piece_state_of(word);
            bool nobodys = mp_piece_slot_of(word) < 0;
            bool trimmed = nobodys && state == MP_PIECE_FILLING; /* by a reaper that died in it */
            if (nobodys && (state == MP_PIECE_POSTED || state == MP_PIECE_ORPHAN))
                doubtful = true; /* by a recovery that died before it could say so, perhaps */
            if (nobodys && state == MP_PIECE_RETURNED)
                atomic_fetch_or(&v->q->token, MP_TOKEN_BACK); /* the same, or by who has given it back */
            if (!trimmed && !mp_slots_have(dead, mp_piece_slot_of(word)))
                continue;
            enum mp_piece_state next = trimmed ? MP_PIECE_FREE : after_death(state);
            if (next == MP_PIECE_FREE)
                atomic_store(&words[n].freed_ns, mp_now_ns());
            bool changed = atomic_compare_exchange_strong(&words[n].word, &word, mp_piece_word_of(next, -1, sequence));
            if (next == MP_PIECE_FREE)
                mp_piece_lower(a, i, n);
            else if (next == MP_PIECE_RETURNED)
                atomic_fetch_or(&v->q->token, MP_TOKEN_BACK);
            else
                doubtful |= changed;
        }
    }
    return doubtful;
}

/* Calls `visit` for each piece. MP_OK, or the error that kept it from looking at some. */
int mp_arena_each(struct mp_queue_view *v, mp_piece_visitor *visit, void *context) {
    int error = MP_OK;
    for (uint32_t i = 0, count = mp_segments_of(mp_arena_open(v)); i < count; i++) {
        struct mp_stretch s = mp_segment_at(v, i);
        if (s.base == NULL && errno != MP_CORRUPT) /* nothing is in that one */
            error = errno;
        for (uint32_t n = 0; s.base != NULL && n < s.pieces; n++)
            visit(v, i, n, &(struct mp_piece_place){&mp_words_of(s)[n].word, mp_data_of(s, n), s.size}, context);
    }
    return error;
}

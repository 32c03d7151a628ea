/* Jobs: what a queue with MP_QUEUE_WORK has for messages. A job is a piece of the arena, whatever its size, and stays in that piece
 * until it is acknowledged; so nothing is put a second time, and nothing is lost with who has it.
 *
 *   QUEUED -> TAKEN by a slot, when its descriptor is received (mp_piece_receive)
 *   TAKEN -> RECEIVED by the same slot: acknowledged. From here on it is a message like others; then FREE
 *   TAKEN -> RETURNED by nobody: given back, or its taker has died (recovery)
 *   RETURNED -> TAKEN by a slot, by who has the queue's lock. No descriptor leads there: the pieces are looked through
 *   RETURNED -> RECEIVED -> FREE, by who has the lock, when the queue's jobs are to be dropped
 *
 * Each is one compare-and-swap, and the only moment that counts. Where a process can die:
 *   TAKEN, and the record still at the lane's head: the next owner of the lock passes over it (first_that_is_there in spill.c), and
 *     recovery makes the job RETURNED;
 *   RETURNED, and the token's word does not say so: recovery, which looks at all pieces, says it (mp_arena_recover);
 *   with the lock, looking for what was returned: SEEKING is in the token's word, and the next owner looks, too.
 *
 * What a job has to keep beside its message is at the end of its piece, where nothing else is known of it: behind the largest
 * message that fits. */
#include "jobs.h"

#include "space.h"

static struct mp_job *job_in(unsigned char *data, uint64_t size) { return (struct mp_job *)(data + size) - 1; }

/* By who fills the piece, before it is sent. `kind`: MP_BODY_ of the message in it. Jobs are numbered in the order in which they are
 * put, as far as there is one. */
void mp_job_begin(struct mp_queue_view *v, const struct mp_piece *piece, uint32_t kind) {
    struct mp_stretch s = mp_piece_at(v, piece->segment, piece->number);
    if (s.base == NULL)
        return;
    struct mp_job *job = job_in(mp_data_of(s, piece->number), s.size);
    job->number = (uint64_t)atomic_fetch_add(&v->q->pending, 1);
    job->length = piece->length;
    job->carrier = piece->carrier;
    job->kind = kind;
    atomic_store_explicit(&job->attempts, 0, memory_order_relaxed);
}

/* Of a job that is TAKEN by us now: counts that. MP_OK; MP_CORRUPT: it is none, and its piece is free. */
int mp_job_open(struct mp_queue_view *v, struct mp_item *item) {
    struct mp_piece_place place;
    if (item->message.kind != MP_BODY_PIECE)
        return MP_CORRUPT;
    if (mp_piece_find(v, item->piece.segment, item->piece.number, &place) != MP_OK ||
        item->piece.length > place.size - sizeof(struct mp_job)) {
        mp_piece_free(v, &item->piece);
        return MP_CORRUPT;
    }
    struct mp_job *job = job_in(place.data, place.size);
    item->job_kind = job->kind;
    item->attempts = atomic_fetch_add(&job->attempts, 1) + 1;
    return MP_OK;
}

struct search {
    uint32_t least; /* attempts */
    uint32_t returned, candidates;
    uint64_t first; /* the lowest number */
    struct mp_piece piece;
    struct mp_piece_place place;
};

static void look_for_first(struct mp_queue_view *v, uint32_t segment, uint32_t number, const struct mp_piece_place *place,
                           void *context) {
    struct search *search = context;
    uint64_t word = atomic_load(place->word);
    if (mp_piece_state_of(word) != MP_PIECE_RETURNED)
        return;
    search->returned++;
    struct mp_job *job = job_in(place->data, place->size);
    if (atomic_load_explicit(&job->attempts, memory_order_relaxed) < search->least ||
        (search->candidates != 0 && job->number >= search->first))
        return;
    search->candidates++;
    search->first = job->number;
    search->piece = (struct mp_piece){segment, number, mp_piece_sequence_of(word), job->length, job->carrier};
    search->place = *place;
}

/* With the lock: the one that was put first of those that were given back, if it was taken `least` times. MP_EMPTY: there is none.
 * SEEKING stands for BACK meanwhile: who gives one back while we look sets BACK after us. */
int mp_job_take_returned(struct mp_queue_view *v, uint32_t least, struct mp_item *item) {
    struct search search = {.least = least};
    if (!(atomic_load(&v->q->token) & (MP_TOKEN_BACK | MP_TOKEN_SEEKING)))
        return MP_EMPTY;
    atomic_fetch_or(&v->q->token, MP_TOKEN_SEEKING);
    atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_BACK);
    int error = mp_arena_each(v, look_for_first, &search);
    bool taken = false;
    if (search.candidates != 0) {
        uint64_t word = mp_piece_word_of(MP_PIECE_RETURNED, -1, search.piece.sequence);
        taken = atomic_compare_exchange_strong(search.place.word, &word,
                                               mp_piece_word_of(MP_PIECE_TAKEN, v->f->slot, search.piece.sequence));
    }
    if (error != MP_OK || search.returned > taken)
        atomic_fetch_or(&v->q->token, MP_TOKEN_BACK);
    atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_SEEKING);
    if (!taken)
        return error != MP_OK ? error : MP_EMPTY;
    item->message.kind = MP_BODY_PIECE;
    item->piece = search.piece;
    item->data = search.place.data;
    item->size = search.piece.length;
    item->level = 0;
    return MP_OK;
}

/* false: this process does not have it. */
static bool turn(struct mp_queue_view *v, const struct mp_piece *piece, uint64_t next) {
    struct mp_piece_place place;
    uint64_t mine = mp_piece_word_of(MP_PIECE_TAKEN, v->f->slot, piece->sequence);
    return mp_piece_find(v, piece->segment, piece->number, &place) == MP_OK &&
           atomic_compare_exchange_strong(place.word, &mine, next);
}

/* It is done. What was TAKEN is a received message from now on, which the caller ends. */
bool mp_job_accept(struct mp_queue_view *v, const struct mp_piece *piece) {
    return turn(v, piece, mp_piece_word_of(MP_PIECE_RECEIVED, v->f->slot, piece->sequence));
}

/* It is anybody's again. Without the lock: who has it in his hands does not wait for that. */
bool mp_job_return(struct mp_queue_view *v, const struct mp_piece *piece) {
    if (!turn(v, piece, mp_piece_word_of(MP_PIECE_RETURNED, -1, piece->sequence)))
        return false;
    atomic_fetch_or(&v->q->token, MP_TOKEN_BACK);
    return true;
}

struct census {
    bool taken, returned;
    int64_t count;
};

static void count_job(struct mp_queue_view *v, uint32_t segment, uint32_t number, const struct mp_piece_place *place,
                      void *context) {
    struct census *census = context;
    enum mp_piece_state state = mp_piece_state_of(atomic_load(place->word));
    census->count += (census->taken && state == MP_PIECE_TAKEN) || (census->returned && state == MP_PIECE_RETURNED);
}

/* How many are in somebody's hands, or were given back, or both. */
int64_t mp_job_count(struct mp_queue_view *v, bool taken, bool returned) {
    struct census census = {taken, returned, 0};
    mp_arena_each(v, count_job, &census);
    return census.count;
}

static void drop(struct mp_queue_view *v, uint32_t segment, uint32_t number, const struct mp_piece_place *place,
                 void *context) {
    bool *carried = context;
    uint64_t word = atomic_load(place->word), sequence = mp_piece_sequence_of(word);
    if (mp_piece_state_of(word) != MP_PIECE_RETURNED ||
        !atomic_compare_exchange_strong(place->word, &word, mp_piece_word_of(MP_PIECE_RECEIVED, v->f->slot, sequence)))
        return;
    *carried |= job_in(place->data, place->size)->carrier != 0;
    mp_piece_free_at(v, segment, number, place->word, sequence);
}

/* With the lock of a queue whose jobs are to be dropped: true: some of them held something. */
bool mp_job_drop_returned(struct mp_queue_view *v) {
    bool carried = false;
    if (!(atomic_load(&v->q->token) & (MP_TOKEN_BACK | MP_TOKEN_SEEKING)))
        return false;
    atomic_fetch_or(&v->q->token, MP_TOKEN_SEEKING);
    atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_BACK);
    mp_arena_each(v, drop, &carried);
    atomic_fetch_and(&v->q->token, ~(uint32_t)MP_TOKEN_SEEKING);
    return carried;
}

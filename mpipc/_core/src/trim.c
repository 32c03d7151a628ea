/* Giving memory back: the pages of pieces that nobody has used for a while. A segment goes with its queue.
 *
 * Whoever trims has the pieces, in FILLING, for the moment; the reaper, which is no member, without a slot. See pieces.c for its
 * death. */
#include "trim.h"

#include "pieces.h"
#include "space.h"

#include <sys/mman.h>

static bool is_idle(struct mp_piece_words *words, uint32_t n, int64_t before) {
    int64_t freed = atomic_load(&words[n].freed_ns);
    return mp_piece_state_of(atomic_load(&words[n].word)) == MP_PIECE_FREE && freed <= before;
}

/* Gives the pages of `count` pieces from `first` on back, if all of them are free and one has memory: as many as share a page. */
static uint64_t trim(struct mp_queue_view *v, uint32_t segment, struct mp_stretch s, uint32_t first, uint32_t count,
                     int64_t before) {
    struct mp_piece_words *words = mp_words_of(s);
    bool has_memory = false;
    uint32_t n;
    for (n = first; n < first + count; n++) {
        if (!is_idle(words, n, before))
            return 0;
        has_memory |= atomic_load(&words[n].freed_ns) != 0;
    }
    if (!has_memory)
        return 0;
    for (n = first; n < first + count; n++) {
        uint64_t word = atomic_load(&words[n].word), sequence = (mp_piece_sequence_of(word) + 1) & MP_PIECE_SEQUENCE;
        if (!is_idle(words, n, before) ||
            !atomic_compare_exchange_strong(&words[n].word, &word, mp_piece_word_of(MP_PIECE_FILLING, v->f->slot, sequence)))
            break;
    }
    uint32_t claimed = n - first;
    bool returned = claimed == count && madvise(mp_data_of(s, first), count * s.size, MADV_REMOVE) == 0;
    for (n = first; n < first + claimed; n++) {
        if (returned)
            atomic_store(&words[n].freed_ns, 0);
        atomic_store(&words[n].word, mp_piece_word_of(MP_PIECE_FREE, -1, mp_piece_sequence_of(atomic_load(&words[n].word))));
    }
    mp_piece_lower(atomic_load(&v->arena), segment, first);
    return returned ? count * s.size : 0;
}

/* Gives the pages of pieces back that have been free for `idle_ns`. Returns the number of bytes. */
int64_t mp_arena_trim(struct mp_queue_view *v, int64_t idle_ns) {
    struct mp_arena *a = mp_arena_open(v);
    int64_t before = mp_now_ns() - idle_ns, returned = 0;
    for (uint32_t i = 0, count = mp_segments_of(a); i < count; i++) {
        struct mp_stretch s = mp_segment_at(v, i);
        uint32_t together = s.base != NULL && s.size < MP_PAGE ? (uint32_t)(MP_PAGE / s.size) : 1;
        for (uint32_t n = 0; s.base != NULL && n + together <= s.pieces; n += together)
            returned += (int64_t)trim(v, i, s, n, together, before);
    }
    return returned;
}

/* Bytes of pieces that have pages, of those in use, and the number of segments. */
void mp_arena_usage(struct mp_queue_view *v, uint64_t *bytes, uint64_t *in_use, uint64_t *segments) {
    struct mp_arena *a = mp_arena_open(v);
    uint32_t count = mp_segments_of(a);
    *bytes = *in_use = 0;
    *segments = a == NULL ? 0 : count + 1;
    for (uint32_t i = 0; i < count; i++) {
        struct mp_stretch s = mp_segment_at(v, i);
        for (uint32_t n = 0; s.base != NULL && n < s.pieces; n++) {
            bool used = mp_piece_state_of(atomic_load(&mp_words_of(s)[n].word)) != MP_PIECE_FREE;
            *in_use += used ? s.size : 0;
            *bytes += used || atomic_load(&mp_words_of(s)[n].freed_ns) != 0 ? s.size : 0;
        }
    }
}

/* The arena of a queue: segments of shared memory, each cut into pieces of one size.
 *
 * A piece is claimed by one compare-and-swap on its word, {state, slot, sequence}, and freed by one store; no lock is needed.
 * The first free piece is taken, of large ones the first that has memory: a queue in a steady state uses the same, warm pieces
 * again and again.
 *
 *   FREE -> FILLING by a sender -> QUEUED, when its descriptor is in the queue -> RECEIVED by a receiver -> FREE
 *   FREE -> FILLING -> SPILL, a chunk of the spill (spill.c) -> FREE
 *
 * The descriptor carries the sequence of the life it means. Where a process can die:
 *   FILLING: recovery frees the piece. The descriptor may be in the spill already, but put had not returned; who comes to
 *     it finds another sequence or state, and drops it: the message was not sent.
 *   between FILLING and QUEUED somebody may receive it: that compare-and-swap wins, against the sender's and against
 *     recovery's.
 *   QUEUED: the queue owns the piece; the sender may go.
 *   RECEIVED: recovery frees it; the message was in the receiver's hands. Descriptors do not go through the kernel queue
 *     because they would leave it before they say RECEIVED, and the piece of a receiver killed in between would be lost.
 * A segment is made by the holder of the queue's lock, which goes on where another died: either it is in the directory, or
 * it is one that the queue owns and nobody knows, to be removed with the queue. */
#include "queue.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define SMALLEST (16ull << 10)
#define PAGE 4096ull
#define LARGE (64ull << 10)

struct piece_words {
    _Atomic uint64_t word;
    _Atomic int64_t freed_ns; /* when it was last freed; 0: it has no pages */
};

static void *attach(struct mp_family *f, uint32_t index, uint32_t serial) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t ready = mp_block_word(MP_BLOCK_READY, -1, serial);
    if (index >= MP_BLOCKS || atomic_load(&b->word) != ready) {
        errno = EIDRM;
        return NULL;
    }
    void *base = shmat(atomic_load(&b->id), NULL, 0);
    if (base == (void *)-1)
        return NULL;
    if (atomic_load(&b->word) != ready) {
        shmdt(base);
        errno = EIDRM;
        return NULL;
    }
    return base;
}

/* A segment that belongs to the queue and to no process. Needs the queue's lock. Returns its block, or -1 with errno: EXFULL
 * if it is the family's table that is full, ENOSPC is for a limit of the system. */
static int64_t own_segment(struct mp_queue_view *v, uint64_t size) {
    struct mp_family *f = v->f;
    atomic_fetch_or(&v->q->token, MP_TOKEN_ARENA);
    int64_t index = mp_block_new(f, MP_KIND_SEGMENT);
    if (index < 0) {
        if (errno == ENOSPC)
            errno = EXFULL;
        return MP_FAILED;
    }
    struct mp_block *b = mp_block_at(f, (uint32_t)index);
    if (mp_block_shmget(f, (uint32_t)index, size, 0600) < 0) {
        int error = errno;
        mp_block_abandon(f, (uint32_t)index);
        errno = error;
        return MP_FAILED;
    }
    b->extra[2] = mp_queue_name(f, v->index);
    atomic_store(&b->pinned, 1);
    mp_block_unhold(f, (uint32_t)index, f->slot);
    atomic_store(&b->word, mp_block_word(MP_BLOCK_READY, -1, mp_block_serial(atomic_load(&b->word))));
    return index;
}

static void disown_segment(struct mp_queue_view *v, uint32_t index) {
    struct mp_block *b = mp_block_at(v->f, index);
    uint64_t word = atomic_load(&b->word);
    if (atomic_compare_exchange_strong(&b->word, &word, mp_block_word(MP_BLOCK_DYING, v->f->slot, mp_block_serial(word))))
        mp_block_abandon(v->f, index);
}

/* ---- the directory ------------------------------------------------------------------------------------------------- */

/* NULL with errno 0 if there is no arena yet. */
struct mp_arena *mp_arena_open(struct mp_queue_view *v) {
    struct mp_arena *a = atomic_load_explicit(&v->arena, memory_order_acquire);
    if (a != NULL)
        return a;
    uint64_t name = atomic_load(&v->q->arena);
    errno = 0;
    if (name == 0)
        return NULL;
    a = attach(v->f, (uint32_t)name - 1, (uint32_t)(name >> 32));
    if (a == NULL)
        return NULL;
    struct mp_arena *other = NULL;
    if (!atomic_compare_exchange_strong(&v->arena, &other, a)) { /* another thread was faster */
        shmdt(a);
        return other;
    }
    return a;
}

/* Needs the queue's lock. */
int mp_arena_make(struct mp_queue_view *v) {
    if (atomic_load(&v->q->arena) != 0)
        return mp_arena_open(v) != NULL ? MP_OK : errno;
    uint64_t levels = v->flags & MP_QUEUE_PRIORITY ? MP_QUEUE_LEVELS : 1;
    int64_t index = own_segment(v, sizeof(struct mp_arena) + levels * sizeof(struct mp_lane));
    if (index < 0)
        return errno;
    uint32_t serial = mp_block_serial(atomic_load(&mp_block_at(v->f, (uint32_t)index)->word));
    struct mp_arena *a = attach(v->f, (uint32_t)index, serial);
    if (a == NULL) {
        int error = errno;
        disown_segment(v, (uint32_t)index);
        return error;
    }
    a->levels = levels;
    atomic_store(&v->q->arena, ((uint64_t)index + 1) | (uint64_t)serial << 32);
    atomic_store(&v->arena, a);
    return MP_OK;
}

void mp_arena_close(struct mp_queue_view *v) {
    for (uint32_t i = 0; v->segments != NULL && i < MP_ARENA_SEGMENTS; i++)
        if (atomic_load(&v->segments[i]) != NULL)
            shmdt(atomic_load(&v->segments[i]));
    free(v->segments);
    v->segments = NULL;
    struct mp_arena *a = atomic_exchange(&v->arena, NULL);
    if (a != NULL)
        shmdt(a);
}

/* ---- segments ------------------------------------------------------------------------------------------------------ */

/* Where a published segment is in this process; NULL with errno. */
unsigned char *mp_arena_segment(struct mp_queue_view *v, uint32_t segment) {
    struct mp_arena *a = mp_arena_open(v);
    if (a == NULL || segment >= atomic_load(&a->segments)) {
        errno = a == NULL && errno != 0 ? errno : EIDRM;
        return NULL;
    }
    unsigned char *base = atomic_load_explicit(&v->segments[segment], memory_order_acquire);
    if (base != NULL)
        return base;
    base = attach(v->f, a->segment[segment].block, a->segment[segment].serial);
    if (base == NULL)
        return NULL;
    unsigned char *other = NULL;
    if (!atomic_compare_exchange_strong(&v->segments[segment], &other, base)) {
        shmdt(base);
        return other;
    }
    return base;
}

static struct piece_words *words_of(struct mp_queue_view *v, uint32_t segment) {
    return (struct piece_words *)mp_arena_segment(v, segment);
}

_Atomic uint64_t *mp_piece_word(struct mp_queue_view *v, uint32_t segment, uint32_t number) {
    struct piece_words *words = words_of(v, segment);
    return words == NULL || number >= atomic_load(&v->arena)->segment[segment].pieces ? NULL : &words[number].word;
}

unsigned char *mp_piece_data(struct mp_queue_view *v, uint32_t segment, uint32_t number) {
    unsigned char *base = mp_arena_segment(v, segment);
    if (base == NULL)
        return NULL;
    struct mp_arena_segment *s = &atomic_load(&v->arena)->segment[segment];
    if (number >= s->pieces) {
        errno = EIDRM;
        return NULL;
    }
    return base + s->offset + (uint64_t)number * s->piece_size;
}

uint64_t mp_piece_size(struct mp_queue_view *v, uint32_t segment) {
    return atomic_load(&v->arena)->segment[segment].piece_size;
}

/* Sizes are powers of two, above 1 MiB with three steps between: few enough that pieces find their likes again. 0: there is
 * no such size. */
static uint64_t size_class(uint64_t size) {
    uint64_t class = SMALLEST;
    while (class < size && class < 1ull << 46)
        class <<= 1;
    if (class < size)
        return 0;
    for (uint64_t quarter = class / 8; class > 1ull << 20 && class - quarter >= size && class > quarter * 5;)
        class -= quarter;
    return class;
}

static uint32_t pieces_for(struct mp_arena *a, uint64_t class) {
    uint32_t made = 0, count = atomic_load(&a->segments);
    for (uint32_t i = 0; i < count; i++)
        made += a->segment[i].piece_size == class;
    uint64_t bytes = (256ull << 10) << (made < 8 ? made : 8);
    uint64_t pieces = bytes / class;
    return pieces < 1 ? 1 : pieces > 4096 ? 4096 : (uint32_t)pieces;
}

/* Needs the queue's lock. */
static int add_segment(struct mp_queue_view *v, uint64_t class) {
    int error = mp_arena_make(v);
    if (error != MP_OK)
        return error;
    struct mp_arena *a = atomic_load(&v->arena);
    uint32_t number = atomic_load(&a->segments);
    if (number == MP_ARENA_SEGMENTS)
        return EXFULL;
    uint32_t pieces = pieces_for(a, class);
    uint64_t offset = (pieces * sizeof(struct piece_words) + PAGE - 1) / PAGE * PAGE;
    int64_t index = own_segment(v, offset + pieces * class);
    if (index < 0)
        return errno;
    uint32_t serial = mp_block_serial(atomic_load(&mp_block_at(v->f, (uint32_t)index)->word));
    a->segment[number] = (struct mp_arena_segment){(uint32_t)index, serial, class, pieces, (uint32_t)offset};
    atomic_store(&a->segments, number + 1);
    if (mp_arena_segment(v, number) != NULL)
        return MP_OK;
    error = errno; /* no room in our address space: others may have it */
    return error;
}

/* ---- pieces -------------------------------------------------------------------------------------------------------- */

/* What a look at all pieces of a class finds beside a free one. */
struct census {
    uint32_t busy;      /* pieces that are not free */
    int64_t last_freed; /* when a piece was last given back */
};

/* Of many small pieces that nobody has received yet, not all are looked at for every claim, but only those from `low` on.
 * Whoever frees a piece lowers it, after that; whoever finds no free piece before another raises it to that, and then looks
 * again whether one was freed meanwhile. So one of the two sees the other. If a process dies in between, some free pieces are
 * not found from there: hence the second look, from the first piece, before a segment is added. */
static void lower(struct mp_arena *a, uint32_t segment, uint32_t number) {
    uint32_t low = atomic_load(&a->low[segment]);
    while (number < low && !atomic_compare_exchange_weak(&a->low[segment], &low, number))
        ;
}

static void raise_low(struct mp_arena *a, uint32_t segment, struct piece_words *words, uint32_t low, uint32_t number) {
    uint32_t first = low;
    if (number <= low || !atomic_compare_exchange_strong(&a->low[segment], &low, number))
        return;
    for (uint32_t n = first; n < number; n++)
        if (mp_piece_state_of(atomic_load(&words[n].word)) == MP_PIECE_FREE) {
            lower(a, segment, n);
            return;
        }
}

/* A free piece; without `fresh`, one that has memory. The census is complete if there is none and `from_low` is false. */
static bool claim_from(struct mp_queue_view *v, uint64_t class, bool fresh, bool from_low, struct mp_piece *piece,
                       struct census *census) {
    struct mp_arena *a = mp_arena_open(v);
    uint32_t count = a == NULL ? 0 : atomic_load(&a->segments);
    *census = (struct census){0};
    for (uint32_t i = 0; i < count; i++) {
        if (a->segment[i].piece_size != class)
            continue;
        struct piece_words *words = words_of(v, i);
        uint32_t low = from_low ? atomic_load(&a->low[i]) : 0, n;
        for (n = low; words != NULL && n < a->segment[i].pieces; n++) {
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
            uint64_t sequence = (mp_piece_sequence_of(word) + 1) & 0xffffffffffull;
            if (!atomic_compare_exchange_strong(&words[n].word, &word,
                                                mp_piece_word_of(MP_PIECE_FILLING, v->f->slot, sequence)))
                continue;
            *piece = (struct mp_piece){i, n, sequence, 0};
            if (from_low)
                raise_low(a, i, words, low, n + 1);
            else
                lower(a, i, n + 1);
            return true;
        }
        if (from_low && words != NULL)
            raise_low(a, i, words, low, n);
    }
    return false;
}

static bool claim_free(struct mp_queue_view *v, uint64_t class, bool fresh, struct mp_piece *piece, struct census *census) {
    if (class < LARGE && claim_from(v, class, fresh, true, piece, census))
        return true;
    return claim_from(v, class, fresh, false, piece, census);
}

/* Touching fresh memory takes far longer than copying into memory that has been used, so a sender that is ahead of a receiver
 * at work waits a moment for what that gives back: about as long as the fresh memory would take. */
#define AHEAD 4u
#define FRESH_NS_PER_KIB 2000
#define LONGEST_MOMENT_NS 20000000
#define AT_WORK_NS 20000000
static bool claim_warm(struct mp_queue_view *v, uint64_t class, struct mp_piece *piece) {
    struct census census;
    if (class < LARGE)
        return false;
    if (claim_free(v, class, false, piece, &census))
        return true;
    int64_t now = mp_now_ns(), moment = (int64_t)(class >> 10) * FRESH_NS_PER_KIB;
    int64_t end = now + (moment < LONGEST_MOMENT_NS ? moment : LONGEST_MOMENT_NS);
    while (census.busy >= AHEAD && census.last_freed + AT_WORK_NS > now && now < end) {
        nanosleep(&(struct timespec){0, 50000}, NULL);
        if (claim_free(v, class, false, piece, &census))
            return true;
        now = mp_now_ns();
    }
    return false;
}

/* A piece of at least `size` bytes in state FILLING, and where it is. 0, or an errno: ENOMEM, ENOSPC ... */
int mp_piece_claim(struct mp_queue_view *v, uint64_t size, bool locked, struct mp_piece *piece, unsigned char **data) {
    uint64_t class = size_class(size);
    if (class == 0)
        return ENOMEM;
    struct census census;
    bool found = locked ? claim_free(v, class, true, piece, &census)
                        : claim_warm(v, class, piece) || claim_free(v, class, true, piece, &census);
    if (!found) {
        if (!locked && (errno = mp_queue_lock(v)) != MP_OK)
            return errno;
        found = claim_free(v, class, true, piece, &census);
        int error = found ? MP_OK : add_segment(v, class);
        if (error == MP_OK && !found)
            found = claim_free(v, class, true, piece, &census);
        if (!locked)
            mp_queue_unlock(v);
        if (error != MP_OK)
            return error;
        if (!found) /* others took all of a new segment: they are quicker than we are, try again */
            return mp_piece_claim(v, size, locked, piece, data);
    }
    piece->length = size;
    *data = mp_piece_data(v, piece->segment, piece->number);
    return MP_OK;
}

/* The descriptor is in the queue. false: somebody has received it already. */
bool mp_piece_sent(struct mp_queue_view *v, const struct mp_piece *piece) {
    _Atomic uint64_t *word = mp_piece_word(v, piece->segment, piece->number);
    uint64_t filling = mp_piece_word_of(MP_PIECE_FILLING, v->f->slot, piece->sequence);
    return atomic_compare_exchange_strong(word, &filling, mp_piece_word_of(MP_PIECE_QUEUED, -1, piece->sequence));
}

void mp_piece_spill(struct mp_queue_view *v, const struct mp_piece *piece) {
    atomic_store(mp_piece_word(v, piece->segment, piece->number), mp_piece_word_of(MP_PIECE_SPILL, -1, piece->sequence));
}

/* NULL with errno 0: the message was never sent, its sender died before that. */
unsigned char *mp_piece_receive(struct mp_queue_view *v, const struct mp_piece *piece) {
    _Atomic uint64_t *place = mp_piece_word(v, piece->segment, piece->number);
    if (place == NULL)
        return NULL;
    uint64_t mine = mp_piece_word_of(MP_PIECE_RECEIVED, v->f->slot, piece->sequence);
    uint64_t word = atomic_load(place);
    while ((mp_piece_state_of(word) == MP_PIECE_FILLING || mp_piece_state_of(word) == MP_PIECE_QUEUED) &&
           mp_piece_sequence_of(word) == piece->sequence)
        if (atomic_compare_exchange_weak(place, &word, mine))
            return mp_piece_data(v, piece->segment, piece->number);
    errno = 0;
    return NULL;
}

void mp_piece_free(struct mp_queue_view *v, const struct mp_piece *piece) {
    struct piece_words *words = words_of(v, piece->segment);
    atomic_store(&words[piece->number].freed_ns, mp_now_ns());
    atomic_store(&words[piece->number].word, mp_piece_word_of(MP_PIECE_FREE, -1, piece->sequence));
    lower(atomic_load(&v->arena), piece->segment, piece->number);
}

/* Frees what dead processes were filling or had received. */
void mp_arena_recover(struct mp_queue_view *v, const uint64_t *dead) {
    struct mp_arena *a = mp_arena_open(v);
    uint32_t count = a == NULL ? 0 : atomic_load(&a->segments);
    for (uint32_t i = 0; i < count; i++) {
        struct piece_words *words = words_of(v, i);
        for (uint32_t n = 0; words != NULL && n < a->segment[i].pieces; n++) {
            uint64_t word = atomic_load(&words[n].word);
            int slot = mp_piece_slot_of(word);
            bool trimmed = slot < 0 && mp_piece_state_of(word) == MP_PIECE_FILLING; /* by a reaper that died in it */
            if (!trimmed && (slot < 0 || !(dead[slot / 64] >> slot % 64 & 1)))
                continue;
            atomic_store(&words[n].freed_ns, mp_now_ns());
            atomic_compare_exchange_strong(&words[n].word, &word,
                                           mp_piece_word_of(MP_PIECE_FREE, -1, mp_piece_sequence_of(word)));
            lower(a, i, n);
        }
    }
}

/* Gives the pages of pieces back that have been free for `idle_ns`. Returns the number of bytes. */
int64_t mp_arena_trim(struct mp_queue_view *v, int64_t idle_ns) {
    struct mp_arena *a = mp_arena_open(v);
    uint32_t count = a == NULL ? 0 : atomic_load(&a->segments);
    int64_t before = mp_now_ns() - idle_ns, returned = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct piece_words *words = words_of(v, i);
        for (uint32_t n = 0; words != NULL && n < a->segment[i].pieces; n++) {
            uint64_t word = atomic_load(&words[n].word);
            int64_t freed = atomic_load(&words[n].freed_ns);
            if (mp_piece_state_of(word) != MP_PIECE_FREE || freed == 0 || freed > before)
                continue;
            uint64_t sequence = (mp_piece_sequence_of(word) + 1) & 0xffffffffffull;
            if (!atomic_compare_exchange_strong(&words[n].word, &word,
                                                mp_piece_word_of(MP_PIECE_FILLING, v->f->slot, sequence)))
                continue;
            if (madvise(mp_piece_data(v, i, n), a->segment[i].piece_size, MADV_REMOVE) == 0) {
                atomic_store(&words[n].freed_ns, 0);
                returned += (int64_t)a->segment[i].piece_size;
            }
            atomic_store(&words[n].word, mp_piece_word_of(MP_PIECE_FREE, -1, sequence));
            lower(a, i, n);
        }
    }
    return returned;
}

/* Bytes of pieces that have pages, of those in use, and the number of segments. */
void mp_arena_usage(struct mp_queue_view *v, uint64_t *bytes, uint64_t *in_use, uint64_t *segments) {
    struct mp_arena *a = mp_arena_open(v);
    uint32_t count = a == NULL ? 0 : atomic_load(&a->segments);
    *bytes = *in_use = 0;
    *segments = a == NULL ? 0 : count + 1;
    for (uint32_t i = 0; i < count; i++) {
        struct piece_words *words = words_of(v, i);
        for (uint32_t n = 0; words != NULL && n < a->segment[i].pieces; n++) {
            bool used = mp_piece_state_of(atomic_load(&words[n].word)) != MP_PIECE_FREE;
            *in_use += used ? a->segment[i].piece_size : 0;
            *bytes += used || atomic_load(&words[n].freed_ns) != 0 ? a->segment[i].piece_size : 0;
        }
    }
}

/* The segments of a queue, its arena, and how they are cut into pieces. */
#ifndef MPIPC_SPACE_H
#define MPIPC_SPACE_H

#include "queue_view.h"

#define MP_PAGE 4096ull

struct mp_piece_words {
    _Atomic uint64_t word;
    _Atomic int64_t freed_ns; /* when it was last freed; 0: it has no pages */
};

/* Sizes are powers of two, above 1 MiB with three steps between: few enough that pieces find their likes again. In the directory
 * a size is a code, log2:6 << 2 | eighths less:2. */
static inline uint64_t mp_size_of_code(uint32_t code) {
    uint32_t log = code >> 2, less = code & 3;
    if (log < 8 || log > 46 || (less != 0 && log <= 20))
        return 0;
    return (1ull << log) - less * (1ull << log >> 3);
}

/* With each segment of a size, up to the eighth, the next one is twice as large: `shift`. */
#define MP_LARGEST_SHIFT 8u
static inline uint32_t mp_pieces_of(uint32_t code, uint32_t shift) {
    uint64_t bytes = 256ull << 10 << shift;
    uint32_t log = code >> 2, most = log < 14 ? 8192 : 4096;
    uint64_t pieces = (code & 3) == 0 ? bytes >> log : bytes / mp_size_of_code(code);
    return pieces < 1 ? 1 : pieces > most ? most : (uint32_t)pieces;
}

/* Before the first piece are the words of all. */
static inline uint64_t mp_offset_of(uint32_t pieces) {
    return (pieces * sizeof(struct mp_piece_words) + MP_PAGE - 1) / MP_PAGE * MP_PAGE;
}
static inline uint32_t mp_entry_code(uint64_t e) { return e >> 19 & 0xff; }

/* A segment as this process has it: the address at which it is attached, which ends with 12 bits 0, and in those code << 4 | shift.
 * So what was checked when it was attached is in one word with the address, and nobody else can change it. */
struct mp_stretch {
    unsigned char *base; /* NULL: it could not be attached */
    uint64_t size;       /* of a piece */
    uint32_t pieces;
};
static inline uintptr_t mp_stretch_word(void *base, uint32_t code, uint32_t shift) {
    return (uintptr_t)base | code << 4 | shift;
}
static inline struct mp_stretch mp_stretch_of(uintptr_t word) {
    uint32_t code = word >> 4 & 0xff;
    return (struct mp_stretch){(unsigned char *)(word & ~(uintptr_t)0xfff), mp_size_of_code(code),
                               mp_pieces_of(code, word & 0xf)};
}
static inline struct mp_piece_words *mp_words_of(struct mp_stretch s) { return (struct mp_piece_words *)s.base; }
static inline unsigned char *mp_data_of(struct mp_stretch s, uint32_t number) {
    return s.base + mp_offset_of(s.pieces) + number * s.size;
}

struct mp_arena *mp_arena_open(struct mp_queue_view *v);
int mp_arena_make(struct mp_queue_view *v);
void mp_arena_close(struct mp_queue_view *v);
uint32_t mp_code_of(uint64_t size, uint64_t smallest);
int mp_segment_add(struct mp_queue_view *v, uint32_t code, uint32_t number);
struct mp_stretch mp_segment_attach(struct mp_queue_view *v, uint32_t segment);

static inline uint32_t mp_segments_of(struct mp_arena *a) {
    uint32_t count = a == NULL ? 0 : atomic_load(&a->segments);
    return count < MP_ARENA_SEGMENTS ? count : MP_ARENA_SEGMENTS;
}

static inline struct mp_stretch mp_segment_at(struct mp_queue_view *v, uint32_t segment) {
    uintptr_t word = segment < MP_ARENA_SEGMENTS ? atomic_load_explicit(&v->segments[segment], memory_order_acquire) : 0;
    return word != 0 ? mp_stretch_of(word) : mp_segment_attach(v, segment);
}

/* The segment, if there is a piece of that number in it; else base NULL with errno. */
static inline struct mp_stretch mp_piece_at(struct mp_queue_view *v, uint32_t segment, uint32_t number) {
    struct mp_stretch s = mp_segment_at(v, segment);
    if (s.base != NULL && number >= s.pieces) {
        errno = MP_CORRUPT;
        s.base = NULL;
    }
    return s;
}

#endif

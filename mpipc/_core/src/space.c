/* The arena of a queue: a directory, and segments of shared memory, each cut into pieces of one size (pieces.c).
 *
 * Segments and the directory are made without the lock, too, so that a large message can be sent, and a message posted, while
 * the lock's owner does not run. One is made under a block of the family, and then published by one compare-and-swap from 0; who
 * comes too late takes his down again. Who dies before that leaves one that the queue owns and nobody knows, to be removed with
 * the queue.
 *
 * Nothing that stands in shared memory is believed: a segment is as large as the kernel says, its pieces are as many as fit, and
 * where they are is kept with the address at which it is attached. */
#include "space.h"

#include "access.h"
#include "blocks.h"
#include "objects.h"

#include <string.h>

/* 0: there is no such size. */
uint32_t mp_code_of(uint64_t size, uint64_t smallest) {
    uint64_t least = size > smallest ? size : smallest;
    uint32_t log = 64 - (uint32_t)__builtin_clzll(least - 1), less = 0;
    if (least > 1ull << 46)
        return 0;
    while (log > 20 && less < 3 && mp_size_of_code(log << 2 | (less + 1)) >= size)
        less++;
    return log << 2 | less;
}

/* An entry of the directory: block + 1 : 19 | code:8 << 19 | shift:4 << 27 | serial:32 << 32; 0: there is none. */
static uint64_t entry(uint32_t index, uint32_t serial, uint32_t code, uint32_t shift) {
    return (uint64_t)(index + 1) | (uint64_t)code << 19 | (uint64_t)shift << 27 | (uint64_t)serial << 32;
}
static uint32_t entry_block(uint64_t e) { return (uint32_t)(e & 0x7ffff) - 1; }
static uint32_t entry_shift(uint64_t e) { return e >> 27 & 0xf; }
static uint32_t entry_serial(uint64_t e) { return e >> 32; }

/* ---- segments -------------------------------------------------------------------------------------------------------- */

/* NULL with errno. `size`: what it has to have at least. */
static void *attach(struct mp_family *f, uint32_t index, uint32_t serial, uint64_t size) {
    errno = MP_CORRUPT;
    if (index >= MP_BLOCKS)
        return NULL;
    struct mp_block *b = mp_block_at(f, index);
    uint64_t ready = mp_block_word(MP_BLOCK_READY, -1, serial);
    struct shmid_ds ds;
    int id = atomic_load(&b->id);
    if (atomic_load(&b->word) != ready || b->kind != MP_KIND_SEGMENT)
        return NULL;
    if (MP_ALLOWED(f, shmctl(id, IPC_STAT, &ds)) < 0) {
        errno = mp_error(errno);
        return NULL;
    }
    if (ds.shm_segsz < size || ds.shm_perm.__key != b->key || !mp_access_is_users(f, ds.shm_perm.cuid))
        return NULL;
    void *base = MP_ALLOWED(f, shmat(id, NULL, 0));
    if (base == (void *)-1) {
        errno = errno == EMFILE ? MP_NO_MEMORY : mp_error(errno);
        return NULL;
    }
    return base;
}

/* A segment that belongs to the queue and to no process. Returns its block, or -1 with errno. */
static int64_t own_segment(struct mp_queue_view *v, uint64_t size) {
    struct mp_family *f = v->f;
    atomic_fetch_or(&v->q->token, MP_TOKEN_ARENA);
    int64_t index = mp_block_new(f, MP_KIND_SEGMENT);
    if (index < 0) {
        errno = mp_error(errno);
        return MP_FAILED;
    }
    if (mp_block_shmget(f, (uint32_t)index, size, 0600) < 0) {
        int error = errno == EINVAL ? MP_TOO_LARGE : mp_error(errno); /* no id was given that could be wrong */
        mp_block_abandon(f, (uint32_t)index);
        errno = error;
        return MP_FAILED;
    }
    mp_block_give(f, (uint32_t)index, v->index);
    return index;
}

static void disown_segment(struct mp_queue_view *v, uint32_t index) {
    struct mp_block *b = mp_block_at(v->f, index);
    uint64_t word = atomic_load(&b->word);
    if (atomic_compare_exchange_strong(&b->word, &word, mp_block_word(MP_BLOCK_DYING, v->f->slot, mp_block_serial(word))))
        mp_block_abandon(v->f, index);
}

/* ---- the directory ------------------------------------------------------------------------------------------------- */

static uint64_t directory_size(struct mp_queue_view *v) {
    return sizeof(struct mp_arena) + mp_queue_levels(v) * sizeof(struct mp_lane);
}

/* NULL with errno 0 if there is no arena yet. */
struct mp_arena *mp_arena_open(struct mp_queue_view *v) {
    struct mp_arena *a = atomic_load_explicit(&v->arena, memory_order_acquire);
    if (a != NULL)
        return a;
    uint64_t name = atomic_load(&v->q->arena);
    errno = 0;
    if (name == 0)
        return NULL;
    a = attach(v->f, (uint32_t)name - 1, (uint32_t)(name >> 32), directory_size(v));
    if (a == NULL)
        return NULL;
    struct mp_arena *other = NULL;
    if (!atomic_compare_exchange_strong(&v->arena, &other, a)) { /* another thread was faster */
        shmdt(a);
        return other;
    }
    return a;
}

int mp_arena_make(struct mp_queue_view *v) {
    if (atomic_load(&v->q->arena) == 0) {
        int64_t index = own_segment(v, directory_size(v));
        if (index < 0)
            return errno;
        uint64_t none = 0, serial = mp_block_serial(atomic_load(&mp_block_at(v->f, (uint32_t)index)->word));
        if (!atomic_compare_exchange_strong(&v->q->arena, &none, ((uint64_t)index + 1) | serial << 32))
            disown_segment(v, (uint32_t)index); /* another was faster */
    }
    return mp_arena_open(v) != NULL ? MP_OK : errno;
}

void mp_arena_close(struct mp_queue_view *v) {
    for (uint32_t i = 0; v->segments != NULL && i < MP_ARENA_SEGMENTS; i++) {
        uintptr_t word = atomic_exchange(&v->segments[i], 0);
        if (word != 0)
            shmdt(mp_stretch_of(word).base);
    }
    struct mp_arena *a = atomic_exchange(&v->arena, NULL);
    if (a != NULL)
        shmdt(a);
}

/* Where a published segment is in this process; base NULL with errno. */
struct mp_stretch mp_segment_attach(struct mp_queue_view *v, uint32_t segment) {
    struct mp_arena *a = mp_arena_open(v);
    if (a == NULL || segment >= MP_ARENA_SEGMENTS) {
        errno = a == NULL && errno != 0 ? errno : MP_CORRUPT;
        return (struct mp_stretch){0};
    }
    uint64_t e = atomic_load(&a->segment[segment]);
    uint32_t code = mp_entry_code(e), shift = entry_shift(e);
    if (e == 0 || mp_size_of_code(code) == 0 || shift > MP_LARGEST_SHIFT) {
        errno = MP_CORRUPT;
        return (struct mp_stretch){0};
    }
    uint32_t pieces = mp_pieces_of(code, shift);
    void *base = attach(v->f, entry_block(e), entry_serial(e), mp_offset_of(pieces) + pieces * mp_size_of_code(code));
    if (base == NULL)
        return (struct mp_stretch){0};
    uintptr_t other = 0, word = mp_stretch_word(base, code, shift);
    if (!atomic_compare_exchange_strong(&v->segments[segment], &other, word)) {
        shmdt(base);
        word = other;
    }
    return mp_stretch_of(word);
}

/* One more segment for a size; MP_OK also if somebody else has added one, of whatever size: then there is something new to be
 * looked at. */
int mp_segment_add(struct mp_queue_view *v, uint32_t code, uint32_t number) {
    int error = mp_arena_make(v);
    if (error != MP_OK)
        return error;
    struct mp_arena *a = atomic_load(&v->arena);
    if (number >= MP_ARENA_SEGMENTS)
        return MP_TABLE_FULL;
    uint64_t e = atomic_load(&a->segment[number]);
    if (e == 0) {
        uint32_t shift = 0;
        for (uint32_t i = 0; i < number; i++)
            shift += mp_entry_code(atomic_load(&a->segment[i])) == code;
        shift = shift < MP_LARGEST_SHIFT ? shift : MP_LARGEST_SHIFT;
        uint32_t pieces = mp_pieces_of(code, shift);
        int64_t index = own_segment(v, mp_offset_of(pieces) + pieces * mp_size_of_code(code));
        if (index < 0)
            return errno;
        uint32_t serial = mp_block_serial(atomic_load(&mp_block_at(v->f, (uint32_t)index)->word));
        uint64_t mine = entry((uint32_t)index, serial, code, shift);
        if (!atomic_compare_exchange_strong(&a->segment[number], &e, mine))
            disown_segment(v, (uint32_t)index);
        else
            e = mine;
    }
    uint32_t count = atomic_load(&a->segments); /* who published it may have died, or stands still, before this */
    while (count <= number && !atomic_compare_exchange_weak(&a->segments, &count, number + 1))
        ;
    /* Where there is no room for it in our address space, another process may have it. */
    return mp_entry_code(e) != code || mp_segment_at(v, number).base != NULL ? MP_OK : errno;
}

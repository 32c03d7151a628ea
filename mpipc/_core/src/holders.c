/* Who holds a block: the slots of processes, and messages (carriers.c), whose numbers come after those of the slots. What is said of
 * a slot here is true of both.
 *
 * The first MP_HOLDERS stand in the block, the others in chunks, each of which has a bit for every slot of a range. A slot is
 * added by one process at a time: the one that has it, or that has reserved it. A block's chain of chunks only grows, until the
 * block is taken down.
 *
 *   1. CLAIMED, with the slot of who claims and the block;     dying here: recovery frees the chunk if it is not in the chain
 *   2. appended to the chain, by compare-and-swap at its end;  dying here: recovery finds it there
 *   3. LINKED.
 *
 * They are freed from the end of the chain on, so what is left of it is whole, and a chunk that is free or another block's is
 * its end. */
#include "holders.h"

#include "banks.h"

static bool is_in(const uint64_t *slots, uint32_t slot) { return slots[slot / 64] >> slot % 64 & 1; }

static uint64_t chunk_word(enum mp_chunk_state state, int slot, uint32_t index) {
    return (uint64_t)state | (uint64_t)(slot + 1) << 8 | (uint64_t)index << 32;
}
static enum mp_chunk_state chunk_state(uint64_t word) { return word & 0xff; }

static struct mp_chunk *chunk_at(struct mp_family *f, uint32_t next) {
    return next == 0 || next > MP_CHUNKS ? NULL : mp_chunk_at(f, next - 1);
}

/* Calls for each chunk of a block: for (link = ...; (c = next_chunk(f, &link, &n)) != NULL;). A chain cannot be longer than
 * there are ranges, whatever is in memory. It may go on where this process cannot see: is_cut(). */
static struct mp_chunk *next_chunk(struct mp_family *f, _Atomic uint32_t **link, uint32_t *n) {
    struct mp_chunk *c = (*n)++ < MP_CHUNK_RANGES ? chunk_at(f, atomic_load(*link)) : NULL;
    if (c != NULL)
        *link = &c->next;
    return c;
}

static bool is_cut(struct mp_family *f, uint32_t next) {
    return next != 0 && next <= MP_CHUNKS && mp_bank_is_hidden(f, (next - 1) / MP_BANK);
}

static int64_t claim_chunk(struct mp_family *f, uint32_t index, uint32_t range) {
    uint32_t start = atomic_load_explicit(&f->h->chunk_hint, memory_order_relaxed);
    int refused = MP_TABLE_FULL, error;
    for (uint32_t k = 0; k < MP_CHUNKS; k++) {
        uint32_t i = (start + k) % MP_CHUNKS;
        if ((k == 0 || i % MP_BANK == 0) && (error = mp_bank_need(f, i / MP_BANK)) != MP_OK) {
            refused = error;
            k += MP_BANK - 1 - i % MP_BANK;
            continue;
        }
        struct mp_chunk *c = mp_chunk_at(f, i);
        uint64_t unused = 0;
        if (atomic_load_explicit(&c->word, memory_order_relaxed) != 0)
            continue;
        uint32_t high = atomic_load(&f->h->chunk_high);
        while (high <= i && !atomic_compare_exchange_weak(&f->h->chunk_high, &high, i + 1))
            ;
        if (!atomic_compare_exchange_strong(&c->word, &unused, chunk_word(MP_CHUNK_CLAIMED, f->slot, index)))
            continue;
        atomic_store_explicit(&f->h->chunk_hint, i + 1, memory_order_relaxed);
        atomic_store(&c->next, 0);
        c->range = range;
        for (uint32_t w = 0; w < MP_CHUNK_WORDS; w++)
            atomic_store(&c->held[w], 0);
        return i;
    }
    errno = refused;
    return MP_FAILED;
}

static struct mp_chunk *find_chunk(struct mp_family *f, uint32_t index, uint32_t range) {
    _Atomic uint32_t *link = &mp_block_at(f, index)->chunks;
    struct mp_chunk *c;
    for (uint32_t n = 0; (c = next_chunk(f, &link, &n)) != NULL;)
        if (c->range == range)
            return c;
    return NULL;
}

/* The chunk for these slots, made if there is none; NULL with errno. The walk that finds none and the compare-and-swap at its
 * end are one: who was faster has made the end another one. */
static struct mp_chunk *make_chunk(struct mp_family *f, uint32_t index, uint32_t range) {
    struct mp_chunk *found = find_chunk(f, index, range);
    int64_t mine = found != NULL ? -1 : claim_chunk(f, index, range);
    if (mine < 0)
        return found;
    struct mp_chunk *made = mp_chunk_at(f, (uint32_t)mine), *c;
    for (;;) {
        _Atomic uint32_t *end = &mp_block_at(f, index)->chunks;
        uint32_t n = 0, none = 0;
        while ((c = next_chunk(f, &end, &n)) != NULL)
            if (c->range == range) { /* others have made it meanwhile */
                atomic_store(&made->word, 0);
                return c;
            }
        if (atomic_compare_exchange_strong(end, &none, (uint32_t)mine + 1)) {
            atomic_store(&made->word, chunk_word(MP_CHUNK_LINKED, -1, index));
            return made;
        }
        if (n > MP_CHUNK_RANGES || none > MP_CHUNKS || chunk_at(f, none) == NULL) { /* it goes on where we cannot */
            errno = is_cut(f, none) ? MP_NO_MEMORY : MP_CORRUPT;
            atomic_store(&made->word, 0);
            return NULL;
        }
    }
}

/* When the block is taken down. Can be done again from where another process died in it. */
void mp_chunks_free(struct mp_family *f, uint32_t index) {
    _Atomic uint32_t *links[MP_CHUNK_RANGES + 1] = {&mp_block_at(f, index)->chunks}, *link = links[0];
    struct mp_chunk *c;
    uint32_t count = 0;
    for (uint32_t n = 0; (c = next_chunk(f, &link, &n)) != NULL; links[++count] = link) {
        uint64_t word = atomic_load(&c->word);
        if (chunk_state(word) == MP_CHUNK_FREE || word >> 32 != index)
            break;
    }
    atomic_store(links[count], 0);
    while (count-- > 0) {
        uint32_t next = atomic_load(links[count]);
        if ((c = chunk_at(f, next)) != NULL)
            atomic_store(&c->word, 0);
        atomic_store(links[count], 0);
        if (next - 1 < atomic_load_explicit(&f->h->chunk_hint, memory_order_relaxed))
            atomic_store_explicit(&f->h->chunk_hint, next - 1, memory_order_relaxed);
    }
}

/* Recovery, before the holders that are dead are dropped, so that the block cannot go meanwhile. */
void mp_chunk_recover(struct mp_family *f, uint32_t chunk, const uint64_t *dead) {
    struct mp_chunk *mine = mp_chunk_at(f, chunk), *c;
    if (mine == NULL)
        return;
    uint64_t word = atomic_load(&mine->word);
    int slot = (int)(word >> 8 & 0xffff) - 1;
    uint32_t index = word >> 32;
    if (chunk_state(word) != MP_CHUNK_CLAIMED || slot < 0 || slot >= (int)MP_SLOTS || !is_in(dead, (uint32_t)slot))
        return;
    bool linked = false;
    if (index < MP_BLOCKS) {
        _Atomic uint32_t *link = &mp_block_at(f, index)->chunks;
        for (uint32_t n = 0; (c = next_chunk(f, &link, &n)) != NULL;)
            linked = linked || c == mine;
    }
    atomic_store(&mine->word, linked ? chunk_word(MP_CHUNK_LINKED, -1, index) : 0);
}

/* In the block itself: four of 16 bits a word. Where `value` stands in one, as a shift; -1: nowhere. */
static int lane_of(uint64_t word, uint64_t value) {
    const uint64_t ones = 0x0001000100010001ull;
    uint64_t x = word ^ value * ones; /* 0 in the lane that is wanted */
    uint64_t zero = (x - ones) & ~x & ones << 15; /* the lowest bit is exact: nothing is borrowed below it */
    return zero == 0 ? -1 : __builtin_ctzll(zero) - 15;
}

bool mp_block_holds(struct mp_family *f, uint32_t index, int slot) {
    struct mp_block *b = mp_block_at(f, index);
    for (uint32_t i = 0; i < MP_HOLDER_WORDS; i++)
        if (lane_of(atomic_load(&b->holders[i]), (uint64_t)slot + 1) >= 0)
            return true;
    struct mp_chunk *c = find_chunk(f, index, (uint32_t)slot / MP_CHUNK_SLOTS);
    uint32_t bit = (uint32_t)slot % MP_CHUNK_SLOTS;
    return c != NULL && atomic_load(&c->held[bit / 64]) >> bit % 64 & 1;
}

static int add_holder(struct mp_family *f, uint32_t index, int slot) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t holder = (uint64_t)slot + 1;
    uint32_t vacant = MP_HOLDER_WORDS;
    for (uint32_t i = 0; i < MP_HOLDER_WORDS; i++) {
        uint64_t word = atomic_load_explicit(&b->holders[i], memory_order_relaxed);
        if (lane_of(word, holder) >= 0)
            return MP_OK;
        if (vacant == MP_HOLDER_WORDS && lane_of(word, 0) >= 0)
            vacant = i;
    }
    if (atomic_load(&b->chunks) != 0 && mp_block_holds(f, index, slot))
        return MP_OK;
    for (; vacant < MP_HOLDER_WORDS; vacant++) {
        uint64_t word = atomic_load(&b->holders[vacant]);
        for (int lane; (lane = lane_of(word, 0)) >= 0;)
            if (atomic_compare_exchange_weak(&b->holders[vacant], &word, word | holder << lane))
                return MP_OK;
    }
    struct mp_chunk *c = make_chunk(f, index, (uint32_t)slot / MP_CHUNK_SLOTS);
    uint32_t bit = (uint32_t)slot % MP_CHUNK_SLOTS;
    if (c == NULL)
        return MP_FAILED;
    atomic_fetch_or(&c->held[bit / 64], 1ull << bit % 64);
    return MP_OK;
}

/* Also done twice. -1 with errno: there is no chunk for it, MP_TABLE_FULL or what mp_bank_need() says; MP_CORRUPT. */
int mp_block_hold(struct mp_family *f, uint32_t index, int slot) {
    struct mp_block *b = mp_block_at(f, index);
    if (add_holder(f, index, slot) != MP_OK)
        return MP_FAILED;
    uint64_t word = atomic_load(&b->word);
    while (mp_block_state_of(word) == MP_BLOCK_LEAVING) /* blocks.c: whoever found nobody is told otherwise */
        if (atomic_compare_exchange_weak(&b->word, &word, mp_block_word(MP_BLOCK_READY, -1, mp_block_serial(word))))
            break;
    return MP_OK;
}

bool mp_block_unhold(struct mp_family *f, uint32_t index, int slot) {
    struct mp_block *b = mp_block_at(f, index);
    for (uint32_t i = 0; i < MP_HOLDER_WORDS; i++) {
        int lane = lane_of(atomic_load(&b->holders[i]), (uint64_t)slot + 1);
        if (lane >= 0) {
            atomic_fetch_and(&b->holders[i], ~(0xffffull << lane));
            return true;
        }
    }
    struct mp_chunk *c = find_chunk(f, index, (uint32_t)slot / MP_CHUNK_SLOTS);
    uint32_t bit = (uint32_t)slot % MP_CHUNK_SLOTS;
    return c != NULL && (atomic_fetch_and(&c->held[bit / 64], ~(1ull << bit % 64)) >> bit % 64 & 1);
}

bool mp_block_unheld(struct mp_family *f, struct mp_block *b) {
    for (uint32_t i = 0; i < MP_HOLDER_WORDS; i++)
        if (atomic_load(&b->holders[i]) != 0)
            return false;
    _Atomic uint32_t *link = &b->chunks;
    struct mp_chunk *c;
    for (uint32_t n = 0; (c = next_chunk(f, &link, &n)) != NULL;)
        for (uint32_t w = 0; w < MP_CHUNK_WORDS; w++)
            if (atomic_load(&c->held[w]) != 0)
                return false;
    return !is_cut(f, atomic_load(link));
}

/* Up to `most` of the slots that hold the block. Returns how many. */
uint32_t mp_block_holders(struct mp_family *f, uint32_t index, uint16_t *slots, uint32_t most) {
    struct mp_block *b = mp_block_at(f, index);
    _Atomic uint32_t *link = &b->chunks;
    struct mp_chunk *c;
    uint32_t count = 0;
    for (uint32_t i = 0; i < MP_HOLDERS && count < most; i++) {
        uint16_t holder = (uint16_t)(atomic_load(&b->holders[i / 4]) >> i % 4 * 16);
        if (holder != 0 && holder <= MP_HOLDER_IDS)
            slots[count++] = (uint16_t)(holder - 1);
    }
    for (uint32_t n = 0; (c = next_chunk(f, &link, &n)) != NULL;)
        for (uint32_t bit = 0; bit < MP_CHUNK_SLOTS && count < most; bit++) {
            uint32_t slot = c->range * MP_CHUNK_SLOTS + bit;
            if (atomic_load(&c->held[bit / 64]) >> bit % 64 & 1 && slot < MP_HOLDER_IDS)
                slots[count++] = (uint16_t)slot;
        }
    return count;
}

/* Recovery: none of these slots holds it any more. */
void mp_block_drop_holders(struct mp_family *f, uint32_t index, const uint64_t *slots) {
    struct mp_block *b = mp_block_at(f, index);
    for (uint32_t i = 0; i < MP_HOLDER_WORDS; i++)
        for (uint64_t word = atomic_load(&b->holders[i]), lane = 0; word >> lane != 0; lane += 16) {
            uint32_t holder = word >> lane & 0xffff;
            if (holder != 0 && (holder > MP_HOLDER_IDS || is_in(slots, holder - 1)))
                atomic_fetch_and(&b->holders[i], ~(0xffffull << lane));
            if (lane == 48)
                break;
        }
    _Atomic uint32_t *link = &b->chunks;
    struct mp_chunk *c;
    for (uint32_t n = 0; (c = next_chunk(f, &link, &n)) != NULL;)
        for (uint32_t w = 0; w < MP_CHUNK_WORDS; w++)
            for (uint64_t held = atomic_load(&c->held[w]); held != 0; held &= held - 1) {
                uint32_t bit = (uint32_t)__builtin_ctzll(held), slot = c->range * MP_CHUNK_SLOTS + w * 64 + bit;
                if (slot >= MP_HOLDER_IDS || is_in(slots, slot))
                    atomic_fetch_and(&c->held[w], ~(1ull << bit));
            }
}

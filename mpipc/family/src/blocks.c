/* Control blocks: making, holding, dropping, taking down; and the bells that belong to them.
 *
 * Invariants:
 *   a READY block has at least one holder or is pinned, except in the moment before its last holder, or recovery for it,
 *     takes it down;
 *   a holder is added only by a process that holds the block itself at that time, or for which its transit slot does, until it
 *     has looked at the block's word afterwards; so a block without holders never gets one again;
 *   the word of a block carries its serial, so a compare-and-swap on it cannot act on the block's next life.
 *
 * Taking down. Holders stand in several words, and nobody can look at all of them at one instant: while one looks, a holder may
 * add a child behind his back and go. Hence two steps:
 *
 *   1. who finds no holder turns READY to LEAVING, and looks at all of them again;
 *   2. he turns LEAVING to DYING if he finds none, else back to READY, and then begins anew: who has dropped the block meanwhile
 *      has left it to him;
 *   whoever adds a holder looks at the word after that, and turns LEAVING back to READY.
 *
 * If the second look misses a holder then it was added after step 1, and whoever did that has seen LEAVING and step 2 fails, or
 * it was added before, and dropped during the look: by then a holder that it had added was there from before step 1, or was
 * added after it, and so on. Where one can die: in LEAVING, recovery goes on with step 2 in his place; in DYING, with the taking
 * down. */
#include "family.h"
#include "named.h"
#include "queue.h"

#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <unistd.h>

static bool is_in(const uint64_t *slots, uint32_t slot) { return slots[slot / 64] >> slot % 64 & 1; }

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

/* ---- holders -----------------------------------------------------------------------------------------------------
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

static uint64_t chunk_word(enum mp_chunk_state state, int slot, uint32_t index) {
    return (uint64_t)state | (uint64_t)(slot + 1) << 8 | (uint64_t)index << 32;
}
static enum mp_chunk_state chunk_state(uint64_t word) { return word & 0xff; }

static struct mp_chunk *chunk_at(struct mp_family *f, uint32_t next) {
    return next == 0 || next > MP_CHUNKS ? NULL : &f->seg->chunks[next - 1];
}

/* Calls for each chunk of a block: for (link = ...; (c = next_chunk(f, &link, &n)) != NULL;). A chain cannot be longer than
 * there are ranges, whatever is in memory. */
static struct mp_chunk *next_chunk(struct mp_family *f, _Atomic uint32_t **link, uint32_t *n) {
    struct mp_chunk *c = (*n)++ < MP_CHUNK_RANGES ? chunk_at(f, atomic_load(*link)) : NULL;
    if (c != NULL)
        *link = &c->next;
    return c;
}

static int64_t claim_chunk(struct mp_family *f, uint32_t index, uint32_t range) {
    uint32_t start = atomic_load_explicit(&f->h->chunk_hint, memory_order_relaxed);
    for (uint32_t k = 0; k < MP_CHUNKS; k++) {
        uint32_t i = (start + k) % MP_CHUNKS;
        struct mp_chunk *c = &f->seg->chunks[i];
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
    errno = MP_LIMIT;
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
    struct mp_chunk *made = &f->seg->chunks[mine], *c;
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
        if (n > MP_CHUNK_RANGES || none > MP_CHUNKS) { /* what is in memory is no chain */
            atomic_store(&made->word, 0);
            errno = MP_CORRUPT;
            return NULL;
        }
    }
}

static void free_chunks(struct mp_family *f, uint32_t index) {
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
        uint32_t i = atomic_load(links[count]) - 1;
        atomic_store(&f->seg->chunks[i].word, 0);
        atomic_store(links[count], 0);
        if (i < atomic_load_explicit(&f->h->chunk_hint, memory_order_relaxed))
            atomic_store_explicit(&f->h->chunk_hint, i, memory_order_relaxed);
    }
}

/* Recovery, before the holders that are dead are dropped, so that the block cannot go meanwhile. */
void mp_chunk_recover(struct mp_family *f, uint32_t chunk, const uint64_t *dead) {
    struct mp_chunk *mine = &f->seg->chunks[chunk], *c;
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

/* Also done twice. -1 with errno MP_LIMIT: there is no chunk left. */
int mp_block_hold(struct mp_family *f, uint32_t index, int slot) {
    struct mp_block *b = mp_block_at(f, index);
    if (add_holder(f, index, slot) != MP_OK)
        return MP_FAILED;
    uint64_t word = atomic_load(&b->word);
    while (mp_block_state_of(word) == MP_BLOCK_LEAVING) /* see above: whoever found nobody is told otherwise */
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
    return true;
}

/* Up to `most` of the slots that hold the block. Returns how many. */
uint32_t mp_block_holders(struct mp_family *f, uint32_t index, uint16_t *slots, uint32_t most) {
    struct mp_block *b = mp_block_at(f, index);
    _Atomic uint32_t *link = &b->chunks;
    struct mp_chunk *c;
    uint32_t count = 0;
    for (uint32_t i = 0; i < MP_HOLDERS && count < most; i++) {
        uint16_t holder = (uint16_t)(atomic_load(&b->holders[i / 4]) >> i % 4 * 16);
        if (holder != 0 && holder <= MP_SLOTS)
            slots[count++] = (uint16_t)(holder - 1);
    }
    for (uint32_t n = 0; (c = next_chunk(f, &link, &n)) != NULL;)
        for (uint32_t bit = 0; bit < MP_CHUNK_SLOTS && count < most; bit++) {
            uint32_t slot = c->range * MP_CHUNK_SLOTS + bit;
            if (atomic_load(&c->held[bit / 64]) >> bit % 64 & 1 && slot < MP_SLOTS)
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
            if (holder != 0 && (holder > MP_SLOTS || is_in(slots, holder - 1)))
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
                if (slot >= MP_SLOTS || is_in(slots, slot))
                    atomic_fetch_and(&c->held[w], ~(1ull << bit));
            }
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static bool take(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load_explicit(&b->word, memory_order_relaxed);
    if (mp_block_state_of(word) != MP_BLOCK_FREE)
        return false;
    uint32_t high = atomic_load(&f->h->block_high);
    while (high <= index && !atomic_compare_exchange_weak(&f->h->block_high, &high, index + 1))
        ; /* first, so that recovery looks at the block from the moment it is taken */
    return atomic_compare_exchange_strong(&b->word, &word, mp_block_word(MP_BLOCK_MAKING, f->slot, mp_block_serial(word)));
}

/* With 100,000 blocks in use, a program that drops one and makes one would search the whole table each time, but for
 * `recent`, a stack whose entries are hints: threads without the GIL may lose or find one twice, and take() decides. */
static void remember(struct mp_family *f, uint32_t index) {
    uint32_t top = atomic_fetch_add_explicit(&f->recent_top, 1, memory_order_relaxed);
    atomic_store_explicit(&f->recent[top % MP_RECENT], index + 1, memory_order_relaxed);
}

static int64_t take_recent(struct mp_family *f) {
    for (;;) {
        uint32_t top = atomic_load_explicit(&f->recent_top, memory_order_relaxed);
        uint32_t entry = atomic_exchange_explicit(&f->recent[(top - 1) % MP_RECENT], 0, memory_order_relaxed);
        if (entry == 0)
            return -1;
        atomic_store_explicit(&f->recent_top, top - 1, memory_order_relaxed);
        if (take(f, entry - 1))
            return entry - 1;
    }
}

static int64_t take_any(struct mp_family *f) {
    int64_t recent = take_recent(f);
    if (recent >= 0)
        return recent;
    uint32_t start = atomic_load_explicit(&f->h->block_hint, memory_order_relaxed) % MP_BLOCKS;
    for (uint32_t n = 0; n < MP_BLOCKS; n++) {
        uint32_t index = (start + n) % MP_BLOCKS;
        if (take(f, index)) {
            atomic_store_explicit(&f->h->block_hint, index + 1, memory_order_relaxed);
            return index;
        }
    }
    errno = MP_LIMIT;
    return MP_FAILED;
}

/* Returns the index of a block in MAKING with this process as its holder, or -1 with errno. */
int64_t mp_block_new(struct mp_family *f, uint32_t kind) {
    if (mp_family_join(f) != MP_OK)
        return MP_FAILED;
    int64_t index = take_any(f);
    if (index < 0)
        return MP_FAILED;
    struct mp_block *b = mp_block_at(f, index);
    memset(b->bytes, 0, sizeof b->bytes);
    memset(b->extra, 0, sizeof b->extra);
    b->kind = kind;
    b->key = 0;
    b->size = 0;
    atomic_store(&b->pinned, 0);
    atomic_store(&b->id, -1);
    atomic_store(&b->holders[0], f->me); /* nobody else knows the block */
    return index;
}

int mp_block_ready(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    f->local_refs[index] = 1;
    atomic_store(&b->word, mp_block_word(MP_BLOCK_READY, -1, mp_block_serial(atomic_load(&b->word))));
    return MP_OK;
}

static void clear(struct mp_family *f, uint32_t index) {
    struct mp_block *b = mp_block_at(f, index);
    free_chunks(f, index);
    for (uint32_t i = 0; i < MP_HOLDER_WORDS; i++)
        atomic_store_explicit(&b->holders[i], 0, memory_order_relaxed);
    atomic_store(&b->pinned, 0);
    atomic_store(&b->word, mp_block_word(MP_BLOCK_FREE, -1, mp_block_serial(atomic_load(&b->word)) + 1));
    if (index < atomic_load_explicit(&f->h->block_hint, memory_order_relaxed))
        atomic_store_explicit(&f->h->block_hint, index, memory_order_relaxed);
    remember(f, index);
}

/* Takes down a block in MAKING or DYING: by the process in its word, or by recovery after it. */
void mp_block_abandon(struct mp_family *f, uint32_t index) {
    f->local_refs[index] = 0;
    if (mp_block_at(f, index)->kind == MP_KIND_QUEUE)
        mp_queue_disown(f, index);
    mp_block_remove_kernel_object(mp_block_at(f, index));
    clear(f, index);
}

/* Step 2, of a block that is LEAVING by `by_slot`. Returns whether it is to be decided again. */
static bool decide(struct mp_family *f, uint32_t index, int by_slot, bool *taken_down) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    uint32_t serial = mp_block_serial(word);
    uint64_t leaving = mp_block_word(MP_BLOCK_LEAVING, by_slot, serial);
    if (word != leaving)
        return false; /* somebody holds it again */
    if (!mp_block_unheld(f, b)) {
        atomic_compare_exchange_strong(&b->word, &leaving, mp_block_word(MP_BLOCK_READY, -1, serial));
        return true;
    }
    if (!atomic_compare_exchange_strong(&b->word, &leaving, mp_block_word(MP_BLOCK_DYING, by_slot, serial)))
        return false;
    mp_block_abandon(f, index);
    *taken_down = true;
    return false;
}

/* A process has one thread at a time in here (its callers hold the GIL), and there is one recovery (slot -1) at a time: so the
 * word says exactly whose turn it is. */
bool mp_block_try_free(struct mp_family *f, uint32_t index, int by_slot) {
    struct mp_block *b = mp_block_at(f, index);
    bool taken_down = false, again = true;
    while (again) {
        uint64_t word = atomic_load(&b->word);
        if (mp_block_state_of(word) != MP_BLOCK_READY || atomic_load(&b->pinned) != 0 || !mp_block_unheld(f, b))
            return false;
        uint64_t leaving = mp_block_word(MP_BLOCK_LEAVING, by_slot, mp_block_serial(word));
        again = !atomic_compare_exchange_strong(&b->word, &word, leaving) || decide(f, index, by_slot, &taken_down);
    }
    return taken_down;
}

/* Recovery: goes on where a dead process, or a recovery that did not end, was taking the block down. */
void mp_block_settle(struct mp_family *f, uint32_t index, int by_slot) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    bool taken_down = false;
    if (mp_block_state_of(word) != MP_BLOCK_LEAVING)
        return;
    uint64_t leaving = mp_block_word(MP_BLOCK_LEAVING, by_slot, mp_block_serial(word));
    if (atomic_compare_exchange_strong(&b->word, &word, leaving) && decide(f, index, by_slot, &taken_down))
        mp_block_try_free(f, index, by_slot);
}

/* One more handle in this process. ESTALE: the block is gone (its last holder died before this process could hold it). Of a
 * process that has just arrived everything is held by its transit slot until it has taken over all of it. */
int mp_block_adopt(struct mp_family *f, uint32_t index, uint32_t serial) {
    struct mp_block *b = mp_block_at(f, index);
    if (index >= MP_BLOCKS)
        return ESTALE;
    if (mp_family_join(f) != MP_OK)
        return errno;
    if (f->local_refs[index] == 0) {
        uint64_t word = atomic_load(&b->word);
        if (!mp_block_is_live(word) || mp_block_serial(word) != serial)
            return ESTALE;
        if (mp_block_hold(f, index, f->slot) != MP_OK)
            return errno;
        word = atomic_load(&b->word);
        if (!mp_block_is_live(word) || mp_block_serial(word) != serial) {
            mp_block_unhold(f, index, f->slot);
            mp_block_try_free(f, index, f->slot);
            return ESTALE;
        }
    }
    f->local_refs[index]++;
    return MP_OK;
}

void mp_block_drop(struct mp_family *f, uint32_t index) {
    if (f->local_refs[index] == 0 || --f->local_refs[index] != 0 || f->slot < 0)
        return;
    if (f->local_record[index] != 0)
        mp_sem_forget(f, index);
    mp_block_unhold(f, index, f->slot);
    mp_block_try_free(f, index, f->slot);
}

/* ---- kernel objects ---------------------------------------------------------------------------------------------- */

static key_t new_key(void) {
    uint32_t value = 0;
    if (getrandom(&value, sizeof value, 0) != sizeof value)
        value = (uint32_t)mp_now_ns() * 2654435761u;
    return (key_t)(MP_KEY_PREFIX | (value & ~MP_KEY_MASK));
}

/* The key is written down before the object is made (rule R4). */
int mp_block_msgget(struct mp_family *f, uint32_t index, int mode) {
    struct mp_block *b = mp_block_at(f, index);
    for (int attempt = 0; attempt < 1000; attempt++) {
        b->key = new_key();
        b->made_at = time(NULL);
        int id = msgget(b->key, IPC_CREAT | IPC_EXCL | mode);
        if (id >= 0) {
            atomic_store(&b->id, id);
            return id;
        }
        if (errno != EEXIST)
            break;
    }
    b->key = 0;
    return MP_FAILED;
}

int mp_block_shmget(struct mp_family *f, uint32_t index, uint64_t size, int flags) {
    struct mp_block *b = mp_block_at(f, index);
    b->size = size;
    for (int attempt = 0; attempt < 1000; attempt++) {
        b->key = new_key();
        b->made_at = time(NULL);
        int id = shmget(b->key, size, IPC_CREAT | IPC_EXCL | flags);
        if (id >= 0) {
            atomic_store(&b->id, id);
            return id;
        }
        if (errno != EEXIST)
            break;
    }
    b->key = 0;
    return MP_FAILED;
}

static void remove_queue(struct mp_block *b, int id) {
    struct msqid_ds ds;
    bool found_by_key = id < 0;
    if (found_by_key)
        id = msgget(b->key, 0);
    if (id < 0 || msgctl(id, IPC_STAT, &ds) < 0 || ds.msg_perm.__key != b->key || ds.msg_perm.cuid != geteuid())
        return;
    if (found_by_key && (ds.msg_ctime < b->made_at || ds.msg_lspid != 0))
        return; /* somebody else's, in whose way our msgget was when its process died */
    msgctl(id, IPC_RMID, NULL);
}

static void remove_segment(struct mp_block *b, int id) {
    struct shmid_ds ds;
    bool found_by_key = id < 0;
    if (found_by_key)
        id = shmget(b->key, 0, 0);
    if (id < 0 || shmctl(id, IPC_STAT, &ds) < 0 || ds.shm_perm.__key != b->key || ds.shm_perm.cuid != geteuid())
        return;
    if (found_by_key && (ds.shm_ctime < b->made_at || ds.shm_nattch != 0 || ds.shm_segsz != b->size))
        return;
    shmctl(id, IPC_RMID, NULL);
}

/* The key of the object is compared before it is removed: an id may have been given out again since. */
void mp_block_remove_kernel_object(struct mp_block *b) {
    if (b->key == 0)
        return;
    if (b->kind == MP_KIND_QUEUE)
        remove_queue(b, atomic_load(&b->id));
    else if (b->kind == MP_KIND_SEGMENT && ((uint32_t)b->key & MP_KEY_MASK) == MP_NAMED_PREFIX)
        mp_named_remove(b);
    else if (b->kind == MP_KIND_SEGMENT)
        remove_segment(b, atomic_load(&b->id));
}

/* ---- bells -------------------------------------------------------------------------------------------------------- */

/* The number of a bell comes from shared memory, where anything may stand. */
static bool is_bell(uint32_t bell) {
    if (bell < MP_BELLS)
        return true;
    errno = MP_CORRUPT;
    return false;
}

/* Where a bell is. -1 with errno: MP_CORRUPT, there is no such bell; or what mp_own_set() says. */
int mp_bell(struct mp_family *f, uint32_t bell, int *semid, unsigned short *num) {
    uint32_t each = f->set_size - 1, set = bell / each;
    if (!is_bell(bell))
        return MP_FAILED;
    int id = mp_published(&f->seg->bell_sets[set]);
    if (id < 0)
        id = mp_own_set(f, &f->seg->bell_sets[set], MP_SET_BELLS + set, (int)f->set_size);
    *semid = id;
    *num = (unsigned short)(1 + bell % each);
    return id < 0 ? MP_FAILED : MP_OK;
}

/* ERANGE (32767 rings not answered yet) is as good as a ring. */
int mp_bell_ring(struct mp_family *f, uint32_t bell, int times) {
    struct sembuf ring = {0, (short)(times > 32767 ? 32767 : times), IPC_NOWAIT};
    int semid;
    if (mp_bell(f, bell, &semid, &ring.sem_num) != MP_OK)
        return MP_FAILED;
    return semop(semid, &ring, 1) < 0 && errno != ERANGE ? MP_FAILED : MP_OK;
}

/* SETVAL and the readings below are for rare occasions: semctl(2) locks the whole set, for which the kernel visits each of
 * its semaphores, 20 us on a set that is otherwise used by single-operation semops (see event.c). */
int mp_bell_set(struct mp_family *f, uint32_t bell, int value) {
    union semun arg = {.val = value};
    unsigned short num;
    int semid;
    if (mp_bell(f, bell, &semid, &num) != MP_OK)
        return MP_FAILED;
    return semctl(semid, num, SETVAL, arg);
}

/* command: GETVAL, GETPID, GETNCNT or GETZCNT. A bell whose set was never made has never been touched. */
int mp_bell_get(struct mp_family *f, uint32_t bell, int command) {
    uint32_t each = f->set_size - 1;
    if (!is_bell(bell))
        return MP_FAILED;
    int id = mp_published(&f->seg->bell_sets[bell / each]);
    return id < 0 ? 0 : semctl(id, (int)(1 + bell % each), command);
}

/* One semop with op -1 (a ring) or 0 (wait for zero), for at most a tick. Returns 0 when it is done, ETIMEDOUT when the
 * deadline (CLOCK_MONOTONIC ns, < 0: none) has passed, EAGAIN when only the tick has, EINTR after a signal handler ran. */
int mp_bell_wait(struct mp_family *f, uint32_t bell, int op, int64_t deadline_ns) {
    struct sembuf wait = {0, (short)op, 0};
    int64_t left = MP_TICK_NS;
    bool last = false;
    int semid;
    if (mp_bell(f, bell, &semid, &wait.sem_num) != MP_OK)
        return errno;
    if (deadline_ns >= 0) {
        int64_t until = deadline_ns - mp_now_ns();
        if (until <= left) {
            left = until > 0 ? until : 0;
            wait.sem_flg = until > 0 ? 0 : IPC_NOWAIT; /* a sleep of 0 ns takes as long as the timer's slack */
            last = true;
        }
    }
    struct timespec timeout = {left / 1000000000, left % 1000000000};
    if (semtimedop(semid, &wait, 1, &timeout) == 0)
        return MP_OK;
    return errno == EAGAIN && last ? ETIMEDOUT : errno;
}

/* As mp_bell_wait(), with an outcome for a result. A tick is spent on looking after the family. */
int mp_bell_await(struct mp_family *f, uint32_t bell, int op, int64_t deadline_ns) {
    int error = mp_bell_wait(f, bell, op, deadline_ns);
    switch (error) {
    case EAGAIN:
        mp_tick(f);
        return MP_TICK;
    case EINTR:
        return MP_INTERRUPTED;
    case ETIMEDOUT:
        return MP_TIMED_OUT;
    default:
        return mp_error(error);
    }
}

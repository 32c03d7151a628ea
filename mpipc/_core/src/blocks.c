/* Control blocks: making, holding, dropping, taking down.
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
#include "blocks.h"

#include "access.h"
#include "banks.h"
#include "holders.h"
#include "kinds.h"
#include "slots.h"

#include <string.h>

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
    int refused = MP_TABLE_FULL, error;
    for (uint32_t n = 0; n < MP_BLOCKS; n++) {
        uint32_t index = (start + n) % MP_BLOCKS;
        if ((n == 0 || index % MP_BANK == 0) && (error = mp_bank_need(f, index / MP_BANK)) != MP_OK) {
            refused = error;
            n += MP_BANK - 1 - index % MP_BANK;
        } else if (take(f, index)) {
            atomic_store_explicit(&f->h->block_hint, index + 1, memory_order_relaxed);
            return index;
        }
    }
    errno = refused;
    return MP_FAILED;
}

/* Returns the index of a block in MAKING with this process as its holder, or -1 with errno: MP_TABLE_FULL, or what joining or
 * mp_bank_need() says. */
int64_t mp_block_new(struct mp_family *f, uint32_t kind) {
    if (mp_family_join(f) != MP_OK)
        return MP_FAILED;
    int64_t index = take_any(f);
    if (index < 0)
        return MP_FAILED;
    struct mp_block *b = mp_block_at(f, index);
    memset(b->bytes, 0, sizeof b->bytes);
    memset(&b->more, 0, sizeof b->more);
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
    mp_chunks_free(f, index);
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
    struct mp_block *b = mp_block_at(f, index);
    const struct mp_kind_row *kind = mp_kind_of(b);
    if (kind->take_down != NULL)
        kind->take_down(f, index);
    mp_kind_remove(f, b);
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
        if (mp_kind_of(b)->take_down != NULL && mp_banks_known(f) != MP_OK)
            return false; /* what it owns might be overlooked: recovery takes it down, when the next process dies */
        if (mp_kind_of(b)->remove != NULL && by_slot >= 0 && mp_access_need(f) != MP_OK)
            return false; /* we may not remove what it owns: the same */
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
    if (index >= MP_BLOCKS)
        return ESTALE;
    if (mp_family_join(f) != MP_OK)
        return errno;
    if (mp_bank_is_hidden(f, index / MP_BANK))
        return MP_NO_MEMORY;
    struct mp_block *b = mp_block_at(f, index);
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
    const struct mp_kind_row *kind = mp_kind_of(mp_block_at(f, index));
    if (kind->let_go != NULL)
        kind->let_go(f, index);
    mp_block_unhold(f, index, f->slot);
    mp_block_try_free(f, index, f->slot);
}

/* ---- blocks that belong to another block, and to no process ------------------------------------------------------ */

#define TAG 0x1a5e0000ull /* tells the word from what others keep in its place */

uint64_t mp_owner_word(struct mp_family *f, uint32_t owner) {
    return (uint64_t)mp_block_serial(atomic_load(&mp_block_at(f, owner)->word)) << 32 | TAG << 3 | owner;
}

/* The block that it belongs to; -1: to none that is there. */
int64_t mp_block_owner(struct mp_family *f, uint32_t index) {
    uint64_t word = mp_block_at(f, index)->more.owned.owner;
    uint32_t owner = (uint32_t)word & (MP_BLOCKS - 1);
    return mp_owner_word(f, owner) == word ? (int64_t)owner : -1;
}

/* Of a block in MAKING: from now on it is READY, and goes with its owner, which has to look for what it owns when it is taken down.
 * Who dies before the last store leaves it in MAKING. */
void mp_block_give(struct mp_family *f, uint32_t index, uint32_t owner) {
    struct mp_block *b = mp_block_at(f, index);
    b->more.owned.owner = mp_owner_word(f, owner);
    atomic_store(&b->pinned, 1);
    mp_block_unhold(f, index, f->slot);
    atomic_store(&b->word, mp_block_word(MP_BLOCK_READY, -1, mp_block_serial(atomic_load(&b->word))));
}

/* By the owner of that name, if it is one: what it owns is taken down before itself. Can be done again from the start. */
void mp_block_take_down_owned(struct mp_family *f, uint32_t index, uint64_t owner) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    if (mp_block_state_of(word) != MP_BLOCK_READY || b->more.owned.owner != owner || !atomic_load(&b->pinned) ||
        (b->kind != MP_KIND_DATA && b->kind != MP_KIND_SEGMENT))
        return;
    if (atomic_compare_exchange_strong(&b->word, &word, mp_block_word(MP_BLOCK_DYING, f->slot, mp_block_serial(word))))
        mp_block_abandon(f, index);
}

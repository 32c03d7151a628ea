/* The tables of blocks and chunks grow by banks, so that a family takes the address space that it uses. The first bank stands
 * in the family's segment, each other one in a segment of its own, which a process maps when it comes to know a block in it.
 *
 * A bank is made as a pooled set is (sets.c): by whoever wants a block or a chunk in it, without a lock.
 *
 *   1. bank_high says that there may be one;                   dying here: it is looked for by its keys, at the end
 *   2. shmget(2) makes it, or finds it where others are as far;  dying here: it is found again under its key
 *   3. its mark is set, by compare-and-swap from 0;              the same
 *   4. its id is published, by compare-and-swap from 0.          From here on there may be blocks in it.
 *
 * It goes when the family ends. A segment under one of its keys is believed only if our user has created it (cuid), nobody else
 * has any right on it, the kernel says that it is as large as a bank, and it carries the family's mark.
 *
 * Where a process cannot map one (there is no room in its address space), mp_block_at() gives it a block that nobody has and that
 * nobody can take, and a chain of chunks ends there. Whoever would do harm by overlooking something asks before: a block in a
 * hidden bank cannot be taken, adopted or held here, one with a hidden chunk is not without holders, and recovery, taking down
 * what another block owns, and the end of the family are left to the others. */
#include "banks.h"

#include "access.h"
#include "sets.h"

#include <string.h>
#include <sys/ipc.h>

#define ATTEMPTS 16u

static bool is_ours(struct mp_family *f, const struct shmid_ds *ds) {
    return mp_access_is_ours(f, &ds->shm_perm) && ds->shm_segsz == sizeof(struct mp_bank);
}

/* NULL with errno: MP_CORRUPT if it is none of ours. */
static struct mp_bank *attach(struct mp_family *f, int id) {
    struct shmid_ds ds;
    if (MP_ALLOWED(f, shmctl(id, IPC_STAT, &ds)) < 0) {
        errno = errno == EACCES ? MP_CORRUPT : mp_error(errno);
        return NULL;
    }
    if (!is_ours(f, &ds)) {
        errno = MP_CORRUPT;
        return NULL;
    }
    struct mp_bank *e = shmat(id, NULL, 0);
    if (e != (void *)-1)
        return e;
    errno = errno == EMFILE ? MP_NO_MEMORY : mp_error(errno); /* too many mappings, of this process */
    return NULL;
}

static void unmap(struct mp_bank *e) {
    int error = errno;
    shmdt(e);
    errno = error;
}

static struct mp_bank *keep(struct mp_family *f, uint32_t bank, struct mp_bank *e) {
    struct mp_bank *other = NULL;
    if (atomic_compare_exchange_strong(&f->banks[bank], &other, e))
        return e;
    unmap(e); /* another thread was faster */
    return other;
}

/* One that is published. NULL with errno: MP_CORRUPT if none is. */
static struct mp_bank *map(struct mp_family *f, uint32_t bank) {
    struct mp_bank *known = atomic_load_explicit(&f->banks[bank], memory_order_acquire);
    if (known != NULL)
        return known;
    int id = mp_published(&f->seg->banks[bank]);
    errno = MP_CORRUPT;
    struct mp_bank *e = id < 0 ? NULL : attach(f, id);
    if (e == NULL)
        return NULL;
    if (atomic_load(&e->mark) != f->nonce) {
        errno = MP_CORRUPT;
        unmap(e);
        return NULL;
    }
    return keep(f, bank, e);
}

/* ---- making one ---------------------------------------------------------------------------------------------------- */

static key_t key_of(struct mp_family *f, uint32_t bank, uint32_t attempt) {
    return mp_family_key(f, MP_KEYS_BANKS + bank, attempt);
}

/* Steps 2 and 3, at one key. MP_SQUATTED: it is taken, by others. */
static int make_at(struct mp_family *f, key_t key, struct mp_bank **made, int *id) {
    *id = shmget(key, sizeof(struct mp_bank), IPC_CREAT | SHM_NORESERVE | 0600);
    if (*id < 0) {
        int error = errno;
        if (error == EACCES || (error == EINVAL && (shmget(key, 0, 0) >= 0 || errno != ENOENT)))
            return MP_SQUATTED; /* smaller than ours, or one that we may not use */
        return error == EINVAL ? MP_TOO_LARGE : mp_error(error);
    }
    struct mp_bank *e = attach(f, *id);
    if (e == NULL)
        return errno == MP_CORRUPT || errno == MP_DENIED || errno == MP_REMOVED ? MP_SQUATTED : errno;
    uint64_t none = 0;
    if (!atomic_compare_exchange_strong(&e->mark, &none, f->nonce) && none != f->nonce) {
        unmap(e);
        return MP_SQUATTED; /* another family's */
    }
    *made = e;
    return MP_OK;
}

static int make(struct mp_family *f, uint32_t bank) {
    int refused = mp_access_need(f);
    if (refused != MP_OK)
        return refused;
    uint32_t high = atomic_load(&f->h->bank_high);
    while (high <= bank && !atomic_compare_exchange_weak(&f->h->bank_high, &high, bank + 1))
        ;
    for (uint32_t attempt = 0; attempt < ATTEMPTS; attempt++) {
        struct mp_bank *e = NULL;
        int id, error = make_at(f, key_of(f, bank, attempt), &e, &id);
        if (error == MP_SQUATTED) {
            f->squatted_key = key_of(f, bank, attempt);
            continue;
        }
        if (error != MP_OK)
            return error;
        int32_t none = 0;
        mp_access_share_segment(f, id);
        bool published = atomic_compare_exchange_strong(&f->seg->banks[bank], &none, id + 1) || none == id + 1;
        mp_access_share_segment(f, id); /* there may be a guest since */
        if (!published) {
            unmap(e); /* published already, as another one: the key of that is free again, or our other user's */
            if (atomic_load(&f->h->guest) != 0)
                shmctl(id, IPC_RMID, NULL);
            return map(f, bank) != NULL ? MP_OK : errno;
        }
        keep(f, bank, e);
        return MP_OK;
    }
    return MP_SQUATTED;
}

/* ---- what others ask --------------------------------------------------------------------------------------------------- */

/* MP_OK: it is there, and mapped. */
int mp_bank_need(struct mp_family *f, uint32_t bank) {
    if (atomic_load_explicit(&f->banks[bank], memory_order_acquire) != NULL)
        return MP_OK;
    if (mp_published(&f->seg->banks[bank]) < 0)
        return make(f, bank);
    return map(f, bank) != NULL ? MP_OK : errno;
}

/* Is there something that this process cannot see? What only claims to be a bank of ours is nothing. */
bool mp_bank_is_hidden(struct mp_family *f, uint32_t bank) { return map(f, bank) == NULL && errno == MP_NO_MEMORY; }

/* MP_OK: this process sees all blocks and chunks that there were at this moment. */
int mp_banks_known(struct mp_family *f) {
    uint32_t high = mp_at_most(atomic_load(&f->h->bank_high), MP_BANKS);
    for (uint32_t i = 0; i < high; i++)
        if (mp_bank_is_hidden(f, i))
            return MP_NO_MEMORY;
    return MP_OK;
}

struct mp_block *mp_block_unmapped(struct mp_family *f, uint32_t index) {
    struct mp_bank *e = map(f, index / MP_BANK);
    if (e != NULL)
        return &e->blocks[index % MP_BANK];
    memset(&f->nothing, 0, sizeof f->nothing); /* by somebody who has ignored what it is, and nobody else believes it */
    atomic_store(&f->nothing.word, mp_block_word(MP_BLOCK_MAKING, -1, 0));
    return &f->nothing;
}

struct mp_chunk *mp_chunk_unmapped(struct mp_family *f, uint32_t chunk) {
    struct mp_bank *e = map(f, chunk / MP_BANK);
    return e == NULL ? NULL : &e->chunks[chunk % MP_BANK];
}

void mp_banks_unmap(struct mp_family *f) {
    for (uint32_t i = 1; i < MP_BANKS; i++) {
        struct mp_bank *e = atomic_exchange(&f->banks[i], NULL);
        if (e != NULL)
            shmdt(e);
    }
}

/* ---- the end ----------------------------------------------------------------------------------------------------------- */

/* One without a mark was made by a process of ours that died before it had marked it. */
static void remove_if_ours(struct mp_family *f, int id) {
    struct mp_bank *e = id < 0 ? NULL : attach(f, id);
    if (e == NULL)
        return;
    struct shmid_ds ds;
    uint64_t mark = atomic_load(&e->mark);
    if (mark == f->nonce || (mark == 0 && shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1))
        shmctl(id, IPC_RMID, NULL);
    unmap(e);
}

void mp_banks_share(struct mp_family *f) {
    for (uint32_t i = 1, high = mp_at_most(atomic_load(&f->h->bank_high), MP_BANKS); i < high; i++) {
        struct mp_bank *e = map(f, i);
        if (e != NULL)
            mp_access_share_segment(f, mp_published(&f->seg->banks[i]));
    }
}

void mp_remove_banks(struct mp_family *f) {
    uint32_t high = mp_at_most(atomic_load(&f->h->bank_high), MP_BANKS);
    for (uint32_t i = 1; i < high; i++) {
        int id = mp_published(&f->seg->banks[i]);
        if (id >= 0)
            remove_if_ours(f, id);
        if (id < 0 || atomic_load(&f->h->guest) != 0)
            for (uint32_t attempt = 0; attempt < ATTEMPTS; attempt++)
                remove_if_ours(f, shmget(key_of(f, i, attempt), 0, 0));
    }
}

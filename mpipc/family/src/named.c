/* Named segments.
 *
 * A name is a string and a key has 32 bits, so a name has a sequence of MP_NAMED_PROBES keys, and the segment's header
 * says whose it is. shmget(IPC_EXCL) makes a key exclusive, but not a name: while one process finds the first key taken by
 * another name and goes on to the second, the first may become free and be taken by a rival. There is no lock that a
 * killed process could not hold and a stranger could not hog, so names are settled by publishing first and looking after:
 *
 *   1. take a free key, write the header, and turn NEW to CANDIDATE;
 *   2. look at all other keys of the name. A LIVE segment of this name: we are too late. A candidate at an earlier key:
 *      withdraw and start again. A candidate at a later key: wait until it has withdrawn or become LIVE;
 *   3. turn CANDIDATE to LIVE.
 *
 * Of two candidates each has published before it looks, so at least one sees the other; if both do, the earlier key wins.
 * A NEW segment needs no waiting for: its creator is yet to publish, and will see us. Every change of state is a
 * compare-and-swap, and anyone may turn a CANDIDATE to GONE: its creator then notices in step 3 and starts again. That is
 * why it is harmless to take a creator for dead that is only slow.
 *
 * Where a creator can die:
 *   before the header is complete: the key stands in its block (rule R4), recovery finds the segment by it. Until then
 *     others use the next key;
 *   as a CANDIDATE: recovery removes it by its id, or a rival for the name does: nobody but the rival has it attached;
 *   after step 3: the segment lives until it is unlinked or, if it is tracked, until the family ends: its block is pinned
 *     from before step 3.
 *
 * An unlink removes the segment, which may be done twice, and then turns LIVE to GONE, which only one process can do: that
 * one has unlinked it. A search looks at all keys of a name, so a key that becomes free hides nothing behind it. */
#include "named.h"

#include <string.h>
#include <sys/ipc.h>
#include <sys/random.h>
#include <unistd.h>

#define PATIENCE 1000 /* looks at a candidate, up to a millisecond apart, before it is taken for dead */

enum seen { ABSENT, FOREIGN, DENIED, CANDIDATE, LIVE, FAILED };

int32_t mp_named_key(uint32_t hash, uint32_t position) {
    return (int32_t)(MP_NAMED_PREFIX | ((hash + position * 0x9e3779u) & ~MP_KEY_MASK));
}

static bool state_change(struct mp_named *h, uint32_t from, uint32_t to) {
    return atomic_compare_exchange_strong(&h->state, &from, to);
}

static bool is_named(const struct mp_named *h) { return h->magic == MP_NAMED_MAGIC && h->version == MP_NAMED_VERSION; }

/* What stands under one of the keys of a name. A candidate and a live segment stay attached. */
static enum seen look(const struct mp_name *name, uint32_t position, int flags, struct mp_named_ref *ref) {
    ref->position = position;
    ref->attaching = false;
    ref->shmid = shmget(mp_named_key(name->hash, position), 0, 0);
    if (ref->shmid < 0)
        return errno == ENOENT ? ABSENT : DENIED;
    ref->attaching = true;
    ref->header = shmat(ref->shmid, NULL, flags);
    if (ref->header == (void *)-1)
        return errno == EINVAL || errno == EIDRM ? ABSENT : errno == EACCES ? DENIED : FAILED;
    struct mp_named *h = ref->header;
    enum seen seen = FOREIGN;
    uint32_t state = atomic_load(&h->state);
    if (state != MP_NAMED_NEW && is_named(h)) {
        if (state == MP_NAMED_GONE)
            seen = shmctl(ref->shmid, IPC_RMID, NULL) == 0 ? ABSENT : FOREIGN;
        else if (h->length == name->length && memcmp(h->name, name->bytes, name->length) == 0)
            seen = state == MP_NAMED_LIVE ? LIVE : CANDIDATE;
    }
    struct shmid_ds ds;
    if (seen == LIVE) {
        if (shmctl(ref->shmid, IPC_STAT, &ds) < 0 || (ds.shm_perm.mode & SHM_DEST) != 0)
            seen = ABSENT; /* it was removed in this moment */
        else if (ds.shm_segsz < MP_NAMED_DATA || ds.shm_segsz - MP_NAMED_DATA < h->size)
            seen = FOREIGN; /* not what it says it is */
    }
    if (seen != LIVE && seen != CANDIDATE)
        shmdt(h);
    return seen;
}

/* A segment that we may not read is taken for one of the same name at the first key, where it would stand but for a
 * collision, and for a collision at the others. */
static bool forbidden(enum seen seen, uint32_t position) { return seen == DENIED && position == 0; }

/* Waits until there is no candidate of this name at this key, and removes one whose creator is dead, or seems to be. */
static void outwait(const struct mp_name *name, uint32_t position) {
    for (unsigned n = 1;; n++) {
        struct mp_named_ref other;
        enum seen seen = look(name, position, 0, &other);
        if (seen == LIVE)
            shmdt(other.header);
        if (seen != CANDIDATE)
            return;
        struct shmid_ds ds;
        bool alone = shmctl(other.shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch <= 1;
        if ((alone || n == PATIENCE) && state_change(other.header, MP_NAMED_CANDIDATE, MP_NAMED_GONE))
            shmctl(other.shmid, IPC_RMID, NULL);
        shmdt(other.header);
        if (!alone)
            usleep(n < 10 ? 100 : 1000);
    }
}

/* Returns 0 with the live segment of this name attached, or errno. */
int mp_named_attach(const struct mp_name *name, bool readonly, struct mp_named_ref *ref) {
    int error = ENOENT;
    for (uint32_t p = 0; p < MP_NAMED_PROBES; p++) {
        enum seen seen = look(name, p, readonly ? SHM_RDONLY : 0, ref);
        if (seen == LIVE)
            return MP_OK;
        if (seen == FAILED)
            return errno;
        if (seen == CANDIDATE)
            shmdt(ref->header);
        if (forbidden(seen, p))
            error = EACCES;
    }
    return error;
}

/* Looks at all keys but `except`. Returns EEXIST if the name is taken, EAGAIN if a candidate before `except` has precedence;
 * later candidates (all of them, if no key is excepted) are waited for. */
static int survey(const struct mp_name *name, uint32_t except, uint32_t *vacant) {
    struct mp_named_ref other;
    *vacant = MP_NAMED_PROBES;
    for (uint32_t p = 0; p < MP_NAMED_PROBES;) {
        enum seen seen = p == except ? FOREIGN : look(name, p, 0, &other);
        if (seen == FAILED)
            return errno;
        if (seen >= CANDIDATE)
            shmdt(other.header);
        if (seen == LIVE || forbidden(seen, p))
            return EEXIST;
        if (seen == CANDIDATE) {
            if (p < except && except < MP_NAMED_PROBES)
                return EAGAIN;
            outwait(name, p);
            continue;
        }
        if (seen == ABSENT && *vacant == MP_NAMED_PROBES)
            *vacant = p;
        p++;
    }
    return MP_OK;
}

static void forget(struct mp_block *b) {
    b->key = 0; /* first: from now on there is nothing to be found */
    atomic_store(&b->id, -1);
}

void mp_named_discard(struct mp_named_ref *ref) {
    atomic_store(&ref->header->state, MP_NAMED_GONE);
    shmctl(ref->shmid, IPC_RMID, NULL);
    shmdt(ref->header);
}

static uint64_t new_token(void) {
    uint64_t token = 0;
    if (getrandom(&token, sizeof token, 0) != sizeof token)
        token = (uint64_t)mp_now_ns() << 20 ^ (uint64_t)getpid();
    return token | 1;
}

/* Steps 1 and 2 at a key that seemed free. */
static int compete(struct mp_family *f, uint32_t index, const struct mp_name *name, uint32_t position, uint64_t size,
                   int flags, bool tracked, struct mp_named_ref *ref) {
    struct mp_block *b = mp_block_at(f, index);
    atomic_store(&b->id, -1);
    b->size = size + MP_NAMED_DATA;
    b->made_at = time(NULL);
    b->extra[0] = new_token();
    b->extra[1] = (uint64_t)getpid();
    b->key = mp_named_key(name->hash, position);
    ref->position = position;
    ref->attaching = false;
    ref->shmid = shmget(b->key, b->size, IPC_CREAT | IPC_EXCL | flags);
    if (ref->shmid < 0) {
        int error = errno;
        forget(b);
        return error == EEXIST ? EAGAIN : error;
    }
    atomic_store(&b->id, ref->shmid);
    ref->attaching = true;
    ref->header = shmat(ref->shmid, NULL, 0);
    if (ref->header == (void *)-1) {
        int error = errno;
        shmctl(ref->shmid, IPC_RMID, NULL);
        forget(b);
        return error == EINVAL || error == EIDRM ? EAGAIN : error;
    }
    struct mp_named *h = ref->header;
    h->magic = MP_NAMED_MAGIC;
    h->version = MP_NAMED_VERSION;
    h->size = size;
    h->token = b->extra[0];
    h->family = tracked ? f->nonce : 0;
    h->block = index;
    h->serial = mp_block_serial(atomic_load(&b->word));
    h->length = name->length;
    memcpy(h->name, name->bytes, name->length);
    uint32_t vacant;
    int error = state_change(h, MP_NAMED_NEW, MP_NAMED_CANDIDATE) ? survey(name, position, &vacant) : EAGAIN;
    if (error != MP_OK) {
        mp_named_discard(ref);
        forget(b);
    }
    return error;
}

/* Steps 1 and 2, in the name of a block in MAKING. Returns 0 with the segment attached, and then mp_named_publish() is to
 * come; or errno: EEXIST, EXFULL if all keys of the name are taken by others, or what shmget and shmat say. */
int mp_named_create(struct mp_family *f, uint32_t index, const struct mp_name *name, uint64_t size, int flags, bool tracked,
                    struct mp_named_ref *ref) {
    for (unsigned attempt = 0;; attempt++) {
        uint32_t vacant;
        int error = survey(name, MP_NAMED_PROBES, &vacant);
        if (error != MP_OK)
            return error;
        if (vacant == MP_NAMED_PROBES)
            return EXFULL;
        error = compete(f, index, name, vacant, size, flags, tracked, ref);
        if (error != EAGAIN)
            return error;
        /* Rivals that start again at the same time would meet again: the pauses differ by process and attempt. */
        usleep(((unsigned)getpid() * 31 + attempt * 17) % 64 * 4 + (attempt < 50 ? 1 : 200));
    }
}

/* Step 3. false: a rival took us for dead. */
bool mp_named_publish(struct mp_named_ref *ref) {
    return state_change(ref->header, MP_NAMED_CANDIDATE, MP_NAMED_LIVE);
}

/* Removes the segment of this name if it has this id: not one that was created after it was unlinked. Says which block it
 * is tracked by. Returns 0 or errno. */
int mp_named_unlink(const struct mp_name *name, int shmid, uint64_t *family, uint32_t *block, uint32_t *serial) {
    struct mp_named_ref ref;
    int error = mp_named_attach(name, false, &ref);
    if (error != MP_OK)
        return error;
    *family = ref.header->family;
    *block = ref.header->block;
    *serial = ref.header->serial;
    if (ref.shmid != shmid)
        error = ENOENT;
    else if (shmctl(ref.shmid, IPC_RMID, NULL) < 0)
        error = errno == EINVAL || errno == EIDRM ? ENOENT : errno;
    else if (!state_change(ref.header, MP_NAMED_LIVE, MP_NAMED_GONE))
        error = ENOENT; /* another did it at the same time */
    shmdt(ref.header);
    return error;
}

/* ---- the blocks that track them ------------------------------------------------------------------------------------ */

/* Frees the pinned block of a segment that was unlinked. */
void mp_named_release(struct mp_family *f, uint32_t index, uint32_t serial, int by_slot) {
    uint64_t word = mp_block_word(MP_BLOCK_READY, -1, serial);
    if (index < MP_BLOCKS &&
        atomic_compare_exchange_strong(&mp_block_at(f, index)->word, &word, mp_block_word(MP_BLOCK_DYING, by_slot, serial)))
        mp_block_abandon(f, index);
}

/* The same for a pinned block whose segment was unlinked by somebody outside the family, or by ipcrm. */
void mp_named_reclaim(struct mp_family *f, uint32_t index, int by_slot) {
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    struct shmid_ds ds;
    if (mp_block_state_of(word) != MP_BLOCK_READY || b->kind != MP_KIND_SEGMENT || atomic_load(&b->pinned) == 0)
        return;
    int key = b->key;
    int id = atomic_load(&b->id);
    if (shmctl(id, IPC_STAT, &ds) == 0 ? ds.shm_perm.__key != key : errno == EINVAL || errno == EIDRM)
        mp_named_release(f, index, mp_block_serial(word), by_slot);
}

/* Removes the segment of a block: one that was being created by a process that died, unless it is LIVE already (it is not
 * tracked, then, or the block would be READY); or, at the end of the family, any. Never one that is not the block's. */
void mp_named_remove(struct mp_block *b) {
    int id = atomic_load(&b->id);
    bool found_by_key = id < 0;
    struct shmid_ds ds;
    if (found_by_key)
        id = shmget(b->key, 0, 0);
    if (id < 0 || shmctl(id, IPC_STAT, &ds) < 0 || ds.shm_perm.__key != b->key)
        return;
    struct mp_named *h = shmat(id, NULL, 0);
    if (h == (void *)-1)
        return;
    uint32_t state = atomic_load(&h->state);
    bool ours;
    if (state == MP_NAMED_NEW) /* by key it might be a rival's that was there first */
        ours = !found_by_key ||
               ((uint64_t)ds.shm_cpid == b->extra[1] && ds.shm_segsz == b->size && ds.shm_ctime >= b->made_at);
    else
        ours = is_named(h) && h->token == b->extra[0] &&
               (state != MP_NAMED_LIVE || mp_block_state_of(atomic_load(&b->word)) != MP_BLOCK_MAKING);
    ours = ours && (state == MP_NAMED_GONE || state_change(h, state, MP_NAMED_GONE));
    if (ours)
        shmctl(id, IPC_RMID, NULL);
    shmdt(h);
}

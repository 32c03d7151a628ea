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
 *   as a CANDIDATE: recovery removes it by its id, or a rival for the name does: nobody but the rival has it attached. If its
 *     block is READY by then, its creator is a holder of it, which for a segment that is LIVE nobody is for more than a moment;
 *   after step 3: the segment lives until it is unlinked or, if it is tracked, until the family ends: its block is pinned
 *     from before step 3.
 *
 * An unlink removes the segment, which may be done twice, and then turns LIVE to GONE, which only one process can do: that
 * one has unlinked it. A search looks at all keys of a name, so a key that becomes free hides nothing behind it.
 *
 * Other users. Anybody can make a segment under any key, with any contents that change at any time. All this is settled among
 * the segments of one user, whom the kernel names as their creator (cuid, which nobody can change: uid, gid and mode the
 * creator can). Of a segment that somebody else has made:
 *
 *   its size is the kernel's, and what its header says is copied once and then looked at;
 *   if it is LIVE and of this name, the name is taken, and an attach finds it where the kernel permits that, as shm_open(3)
 *     does, unless there is one of our own;
 *   as a CANDIDATE it is given way to, or waited for, a number of times in all (FOREIGN_PATIENCE); after that, and in any other
 *     state, it only occupies its key;
 *   it is never removed or changed, but by an unlink() that asked for it;
 *   the block that its header names is taken down only if that block says the same: token, key and id.
 *
 * Every wait is bounded and interruptible. What others can do is to occupy a name, as with shm_open(3), or all its keys. */
#include "named.h"

#include "access.h"
#include "blocks.h"
#include "holders.h"

#include <string.h>
#include <sys/ipc.h>
#include <sys/random.h>
#include <unistd.h>

#define PATIENCE 1000        /* looks at a candidate, up to a millisecond apart, before it is taken for dead */
#define FOREIGN_PATIENCE 100 /* such looks at other users' candidates, before they are passed over */
#define ATTEMPTS 10000       /* of a creation, before somebody is said to be in its way */

enum seen { ABSENT, FOREIGN, DENIED, CANDIDATE, LIVE, FAILED };

int32_t mp_named_key(uint32_t hash, uint32_t position) {
    return (int32_t)(MP_NAMED_PREFIX | ((hash + position * 0x9e3779u) & ~MP_KEY_MASK));
}

static bool state_change(struct mp_named *h, uint32_t from, uint32_t to) {
    return atomic_compare_exchange_strong(&h->state, &from, to);
}

static bool is_named(const struct mp_named *h) { return h->magic == MP_NAMED_MAGIC && h->version == MP_NAMED_VERSION; }

static bool made_by_us(const struct shmid_ds *ds) { return ds->shm_perm.cuid == geteuid(); }

/* What the copy of a segment's header says. */
static enum seen judge(const struct mp_name *name, const struct mp_named *h, uint32_t state, struct mp_named_ref *ref) {
    if (state == MP_NAMED_NEW || !is_named(h))
        return FOREIGN;
    if (state == MP_NAMED_GONE)
        return ref->own && shmctl(ref->shmid, IPC_RMID, NULL) == 0 ? ABSENT : FOREIGN;
    if (h->length != name->length || h->length > MP_NAMED_LENGTH || memcmp(h->name, name->bytes, name->length) != 0 ||
        h->size > ref->size)
        return FOREIGN;
    ref->token = h->token;
    ref->family = h->family;
    ref->block = h->block;
    ref->serial = h->serial;
    return state == MP_NAMED_LIVE ? LIVE : state == MP_NAMED_CANDIDATE ? CANDIDATE : FOREIGN;
}

/* What stands under one of the keys of a name. A candidate and a live segment stay attached. An id that was given out again
 * between the calls is found out by the key: while a segment is attached, its id is its own. */
static enum seen look(const struct mp_name *name, uint32_t position, int flags, struct mp_named_ref *ref) {
    struct shmid_ds ds;
    memset(ref, 0, sizeof *ref);
    ref->position = position;
    ref->key = mp_named_key(name->hash, position);
    ref->shmid = shmget(ref->key, 0, 0);
    if (ref->shmid < 0)
        return errno == ENOENT ? ABSENT : DENIED;
    ref->attaching = true;
    struct mp_named *h = shmat(ref->shmid, NULL, flags);
    if (h == (void *)-1) {
        int error = errno;
        if (error == EINVAL || error == EIDRM)
            return ABSENT;
        if (error == EACCES || (shmctl(ref->shmid, IPC_STAT, &ds) == 0 && !made_by_us(&ds)))
            return DENIED; /* whatever keeps us from attaching another user's: too large a one, for example */
        errno = error;
        return FAILED;
    }
    enum seen seen = FOREIGN;
    if (shmctl(ref->shmid, IPC_STAT, &ds) < 0) {
        seen = errno == EACCES ? DENIED : ABSENT;
    } else if (ds.shm_perm.__key != ref->key || (ds.shm_perm.mode & SHM_DEST) != 0) {
        seen = ABSENT; /* it was removed in this moment */
    } else if (ds.shm_segsz >= MP_NAMED_DATA) {
        ref->own = made_by_us(&ds);
        ref->size = ds.shm_segsz - MP_NAMED_DATA;
        uint32_t state = atomic_load(&h->state); /* before the rest, which was written before it */
        struct mp_named copy;
        memcpy(&copy, (const void *)h, sizeof copy);
        seen = judge(name, &copy, state, ref);
    }
    if (seen == LIVE || seen == CANDIDATE)
        ref->header = h;
    else
        shmdt(h);
    return seen;
}

/* A segment that we may not read is taken for one of the same name at the first key, where it would stand but for a
 * collision, and for a collision at the others. */
static bool forbidden(enum seen seen, uint32_t position) { return seen == DENIED && position == 0; }

/* Sleeps for a moment. A signal may come outside of the sleep, too: so it is not the sleep's error that is looked at. */
static bool interrupted(struct mp_named_patience *patience, unsigned microseconds) {
    usleep(microseconds);
    return patience->interrupted != NULL && patience->interrupted(patience->context) != 0;
}

/* Waits until there is no candidate of this name at this key, and removes one of ours whose creator is dead, or seems to be.
 * EINTR: a signal handler wants to be done with this; ETIMEDOUT: it is still there, and not worth waiting for. */
static int outwait(const struct mp_name *name, uint32_t position, struct mp_named_patience *patience) {
    for (;;) {
        struct mp_named_ref other;
        enum seen seen = look(name, position, 0, &other);
        if (seen == LIVE)
            shmdt(other.header);
        if (seen != CANDIDATE)
            return MP_OK;
        if (other.shmid != patience->shmid) {
            patience->shmid = other.shmid;
            patience->looks = 0;
        }
        unsigned looks = ++patience->looks;
        struct shmid_ds ds;
        bool alone = shmctl(other.shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch <= 1;
        bool hopeless = other.own ? looks > 2 * PATIENCE : alone || ++patience->foreign > FOREIGN_PATIENCE;
        if (other.own && (alone || looks >= PATIENCE) && state_change(other.header, MP_NAMED_CANDIDATE, MP_NAMED_GONE))
            shmctl(other.shmid, IPC_RMID, NULL);
        shmdt(other.header);
        if (hopeless)
            return ETIMEDOUT;
        if (!alone && interrupted(patience, looks < 10 ? 100 : 1000))
            return EINTR;
    }
}

/* Returns 0 with the live segment of this name attached, or errno. One of our own is found before others'. */
int mp_named_attach(const struct mp_name *name, bool readonly, struct mp_named_ref *ref) {
    struct mp_named_ref others = {0};
    int error = ENOENT;
    for (uint32_t p = 0; p < MP_NAMED_PROBES; p++) {
        enum seen seen = look(name, p, readonly ? SHM_RDONLY : 0, ref);
        if (seen == FAILED)
            error = errno;
        if (seen == FAILED || (seen == LIVE && ref->own)) {
            if (others.header != NULL)
                shmdt(others.header);
            return seen == LIVE ? MP_OK : error;
        }
        if (seen == LIVE && others.header == NULL)
            others = *ref;
        else if (seen == LIVE || seen == CANDIDATE)
            shmdt(ref->header);
        if (forbidden(seen, p))
            error = EACCES;
    }
    if (others.header == NULL)
        return error;
    *ref = others;
    return MP_OK;
}

/* Looks at all keys but `except`. Returns EEXIST if the name is taken, EAGAIN if a candidate before `except` has precedence;
 * later candidates (all of them, if no key is excepted) are waited for: EINTR if a signal handler wants no more of it. */
static int survey(const struct mp_name *name, uint32_t except, struct mp_named_patience *patience, uint32_t *vacant) {
    struct mp_named_ref other;
    *vacant = MP_NAMED_PROBES;
    for (uint32_t p = 0; p < MP_NAMED_PROBES;) {
        enum seen seen = p == except ? FOREIGN : look(name, p, 0, &other);
        if (seen == FAILED)
            return errno;
        if (seen == LIVE || seen == CANDIDATE)
            shmdt(other.header);
        if (seen == LIVE || forbidden(seen, p))
            return EEXIST;
        /* Counted here too: somebody may turn it into something else for every second look. */
        if (seen == CANDIDATE && ++patience->sightings <= 4 * PATIENCE &&
            (other.own || ++patience->foreign <= FOREIGN_PATIENCE)) {
            if (p < except && except < MP_NAMED_PROBES)
                return EAGAIN;
            int error = outwait(name, p, patience);
            if (error == EINTR)
                return EINTR;
            if (error == MP_OK)
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
static int compete(struct mp_family *f, uint32_t index, const struct mp_name *name, uint32_t position, uint64_t size, int flags,
                   bool tracked, struct mp_named_patience *patience, struct mp_named_ref *ref) {
    struct mp_block *b = mp_block_at(f, index);
    memset(ref, 0, sizeof *ref);
    atomic_store(&b->id, -1);
    b->size = size + MP_NAMED_DATA;
    b->made_at = time(NULL);
    b->more.named.token = new_token();
    b->more.named.creator = (uint64_t)getpid();
    atomic_signal_fence(memory_order_seq_cst); /* the key is written last: what it finds is judged by the others */
    b->key = ref->key = mp_named_key(name->hash, position);
    ref->position = position;
    ref->size = size;
    ref->own = true;
    ref->shmid = shmget(b->key, b->size, IPC_CREAT | IPC_EXCL | flags);
    if (ref->shmid < 0) {
        int error = errno;
        forget(b);
        return error == EEXIST ? EAGAIN : error;
    }
    atomic_store(&b->id, ref->shmid);
    mp_access_share_segment(f, ref->shmid);
    ref->attaching = true;
    struct mp_named *h = shmat(ref->shmid, NULL, 0);
    if (h == (void *)-1) {
        int error = errno;
        shmctl(ref->shmid, IPC_RMID, NULL);
        forget(b);
        return error == EINVAL || error == EIDRM ? EAGAIN : error;
    }
    ref->header = h;
    h->magic = MP_NAMED_MAGIC;
    h->version = MP_NAMED_VERSION;
    h->size = size;
    h->token = b->more.named.token;
    h->family = tracked ? f->nonce : 0;
    h->block = index;
    h->serial = mp_block_serial(atomic_load(&b->word));
    h->length = name->length;
    memcpy(h->name, name->bytes, name->length);
    uint32_t vacant;
    int error = state_change(h, MP_NAMED_NEW, MP_NAMED_CANDIDATE) ? survey(name, position, patience, &vacant) : EAGAIN;
    if (error != MP_OK) {
        mp_named_discard(ref);
        forget(b);
    }
    return error;
}

/* Steps 1 and 2, in the name of a block in MAKING. Returns 0 with the segment attached, and then mp_named_publish() is to
 * come; or errno: EEXIST, EXFULL if all keys of the name are taken by others, EBUSY if others are in the way all the time, EINTR
 * if patience->interrupted() says so; or what shmget and shmat say. */
int mp_named_create(struct mp_family *f, uint32_t index, const struct mp_name *name, uint64_t size, int flags, bool tracked,
                    struct mp_named_patience *patience, struct mp_named_ref *ref) {
    memset(ref, 0, sizeof *ref);
    for (;;) {
        uint32_t vacant;
        int error = survey(name, MP_NAMED_PROBES, patience, &vacant);
        if (error != MP_OK)
            return error;
        if (vacant == MP_NAMED_PROBES)
            return EXFULL;
        error = compete(f, index, name, vacant, size, flags, tracked, patience, ref);
        if (error != EAGAIN)
            return error;
        unsigned attempt = patience->attempts++;
        if (attempt >= ATTEMPTS)
            return EBUSY;
        /* Rivals that start again at the same time would meet again: the pauses differ by process and attempt. */
        if (interrupted(patience, ((unsigned)getpid() * 31 + attempt * 17) % 64 * 4 + (attempt < 50 ? 1 : 200)))
            return EINTR;
    }
}

/* Step 3, and what becomes of the block; what is not tracked has none afterwards. false: a rival took us for dead, and
 * nothing is left. The caller holds the GIL. */
bool mp_named_publish(struct mp_family *f, uint32_t index, bool tracked, struct mp_named_ref *ref) {
    struct mp_block *b = mp_block_at(f, index);
    uint32_t serial = mp_block_serial(atomic_load(&b->word));
    if (tracked) {
        atomic_store(&b->pinned, 1);
        mp_block_ready(f, index);
    }
    bool published = state_change(ref->header, MP_NAMED_CANDIDATE, MP_NAMED_LIVE);
    if (!published)
        mp_named_discard(ref);
    if (tracked) {
        mp_block_drop(f, index); /* after step 3: see mp_named_recover() */
        if (!published)
            mp_named_release(f, index, serial, f->slot);
    } else {
        b->key = 0;
        mp_block_abandon(f, index);
    }
    return published;
}

/* Removes the segment of this name if it has this id: not one that was created after it was unlinked. Returns 0 or errno.
 * If it is 0, mp_named_unlinked() is to be told. */
int mp_named_unlink(const struct mp_name *name, int shmid, struct mp_named_ref *ref) {
    int error = mp_named_attach(name, false, ref);
    if (error != MP_OK)
        return error;
    if (ref->shmid != shmid)
        error = ENOENT;
    else if (shmctl(ref->shmid, IPC_RMID, NULL) < 0)
        error = errno == EINVAL || errno == EIDRM ? ENOENT : errno;
    else if (!state_change(ref->header, MP_NAMED_LIVE, MP_NAMED_GONE))
        error = ENOENT; /* another did it at the same time */
    shmdt(ref->header);
    ref->header = NULL;
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

/* Whether the block that a segment's header names tracks it. The header was anybody's to write, so the block has to say the
 * same. */
bool mp_named_is_tracked(struct mp_family *f, const struct mp_named_ref *ref) {
    if (ref->family == 0 || ref->family != f->nonce || ref->block >= MP_BLOCKS)
        return false;
    struct mp_block *b = mp_block_at(f, ref->block);
    uint64_t word = atomic_load(&b->word);
    return mp_block_state_of(word) == MP_BLOCK_READY && mp_block_serial(word) == ref->serial && b->kind == MP_KIND_SEGMENT &&
           atomic_load(&b->pinned) != 0 && b->more.named.token == ref->token && b->key == ref->key &&
           atomic_load(&b->id) == ref->shmid;
}

/* Frees the block by which a family has tracked a segment that was unlinked. false: there is none. */
bool mp_named_unlinked(struct mp_family *f, const struct mp_named_ref *ref) {
    if (!mp_named_is_tracked(f, ref))
        return false;
    mp_named_release(f, ref->block, ref->serial, f->slot);
    return true;
}

/* The family that tracks a live segment lets go of it, and it stays until it is unlinked. Who dies in the middle of this has left
 * a pinned block without a key, which finds nothing to remove at the family's end. */
void mp_named_untrack(struct mp_family *f, struct mp_named_ref *ref) {
    mp_block_at(f, ref->block)->key = 0; /* first */
    ref->header->family = 0;
    mp_named_release(f, ref->block, ref->serial, f->slot);
}

/* Has a family track a live segment that none does, by a block in MAKING. As long as it is that, the segment is not removed for
 * it; from when it is READY, it is. Returns 0 or errno. The caller holds the GIL. */
int mp_named_track(struct mp_family *f, uint32_t index, struct mp_named_ref *ref) {
    struct mp_block *b = mp_block_at(f, index);
    struct shmid_ds ds;
    if (shmctl(ref->shmid, IPC_STAT, &ds) < 0)
        return errno;
    b->size = ds.shm_segsz;
    b->made_at = ds.shm_ctime;
    b->more.named.token = ref->token;
    b->more.named.creator = (uint64_t)ds.shm_cpid;
    atomic_store(&b->id, ref->shmid);
    b->key = ref->key;
    ref->header->block = index;
    ref->header->serial = mp_block_serial(atomic_load(&b->word));
    ref->header->family = f->nonce;
    atomic_store(&b->pinned, 1);
    mp_block_ready(f, index);
    mp_block_drop(f, index);
    return MP_OK;
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

static bool held_by(struct mp_family *f, uint32_t index, const uint64_t *dead) {
    uint16_t slots[MP_HOLDERS];
    uint32_t count = mp_block_holders(f, index, slots, MP_HOLDERS);
    for (uint32_t i = 0; i < count; i++)
        if (mp_slots_have(dead, slots[i]))
            return true;
    return false;
}

/* Recovery, before the dead are no holders any more: removes the segment of a pinned block whose creator died just before step 3.
 * mp_named_reclaim() does the rest. */
void mp_named_recover(struct mp_family *f, uint32_t index, const uint64_t *dead) {
    struct mp_block *b = mp_block_at(f, index);
    struct shmid_ds ds;
    int id = atomic_load(&b->id);
    if (atomic_load(&b->pinned) == 0 || ((uint32_t)b->key & MP_KEY_MASK) != MP_NAMED_PREFIX || !held_by(f, index, dead))
        return;
    struct mp_named *h = shmat(id, NULL, 0);
    if (h == (void *)-1)
        return;
    if (shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_perm.__key == b->key && made_by_us(&ds) && ds.shm_segsz >= MP_NAMED_DATA &&
        is_named(h) && h->token == b->more.named.token && state_change(h, MP_NAMED_CANDIDATE, MP_NAMED_GONE))
        shmctl(id, IPC_RMID, NULL);
    shmdt(h);
}

/* Removes the segment of a block: one that was being created by a process that died, unless it is LIVE already (it is not
 * tracked, then, or the block would be READY); or, at the end of the family, any. Never one that is not the block's. */
void mp_named_remove(struct mp_family *f, struct mp_block *b) {
    int id = atomic_load(&b->id);
    bool found_by_key = id < 0;
    struct shmid_ds ds;
    if (found_by_key)
        id = shmget(b->key, 0, 0);
    if (id < 0)
        return;
    struct mp_named *h = MP_ALLOWED(f, shmat(id, NULL, 0));
    if (h == (void *)-1)
        return;
    if (shmctl(id, IPC_STAT, &ds) < 0 || ds.shm_perm.__key != b->key || ds.shm_segsz < MP_NAMED_DATA ||
        (found_by_key && !made_by_us(&ds))) {
        shmdt(h);
        return;
    }
    uint32_t state = atomic_load(&h->state);
    bool made = (uint64_t)ds.shm_cpid == b->more.named.creator && ds.shm_segsz == b->size && ds.shm_ctime >= b->made_at;
    bool ours;
    if (state == MP_NAMED_NEW) /* by key it might be a rival's that was there first */
        ours = !found_by_key || made;
    else if (!found_by_key && made_by_us(&ds) && ds.shm_perm.mode & 022 && made) /* others may write there, and have, perhaps */
        ours = mp_block_state_of(atomic_load(&b->word)) != MP_BLOCK_MAKING;
    else
        ours = is_named(h) && h->token == b->more.named.token &&
               (state != MP_NAMED_LIVE || mp_block_state_of(atomic_load(&b->word)) != MP_BLOCK_MAKING);
    ours = ours && (state == MP_NAMED_GONE || state_change(h, state, MP_NAMED_GONE));
    if (ours)
        shmctl(id, IPC_RMID, NULL);
    shmdt(h);
}

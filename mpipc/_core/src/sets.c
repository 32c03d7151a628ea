/* Semaphore sets: the family's own, and the pooled ones of which bells and alive[] are made. */
#include "sets.h"

#include "access.h"

#include <sys/ipc.h>
#include <unistd.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
    struct seminfo *__buf;
};

uint64_t mp_mix(uint64_t x) { /* splitmix64's finalizer: spreads the nonce over the key space */
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

uint32_t mp_mark(struct mp_family *f) { return 1 + mp_mix(f->nonce) % 32767; }

/* ---- semaphore sets of the family -------------------------------------------------------------------------------
 *
 * A set's key follows from the nonce, its number in the family and the attempt, so a set whose creator died before it
 * published the id is found again; its semaphore 0 carries the family's mark, so that another family's set under the same key
 * is never taken for ours. Two processes that create the same set at the same time get the same one from semget(2).
 *
 * Another user may have made a set under our key. What he cannot do is make it in our name: a set is ours only if it was
 * created by our user (cuid, which IPC_SET does not change) or the family's guest, and nobody else has any right on it. Others are
 * stepped over. So may be one that the other of our two users has made a moment ago, and not given to both yet: who comes second
 * with an id to publish takes his set down again. */

/* The keys of what the family makes under keys that follow from its nonce: sets, and banks. */
key_t mp_family_key(struct mp_family *f, uint32_t which, uint32_t attempt) {
    return (key_t)(MP_KEY_PREFIX | (mp_mix(f->nonce ^ mp_mix(((uint64_t)which << 8) + attempt)) & ~MP_KEY_MASK));
}

#define SET_ATTEMPTS 16u

static bool is_our_users(struct mp_family *f, int id, int nsems, struct semid_ds *ds) {
    union semun arg = {.buf = ds};
    return semctl(id, 0, IPC_STAT, arg) == 0 && mp_access_is_ours(f, &ds->sem_perm) && ds->sem_nsems == (unsigned long)nsems;
}

/* The id of a set, which is made if it is not there. -1 with errno: what semget(2) says; MP_SQUATTED if others have all its
 * keys, of which f->squatted_key is one. */
int mp_own_set(struct mp_family *f, _Atomic int32_t *published, uint32_t which, int nsems) {
    int known = atomic_load(published);
    if (known > 0)
        return known - 1;
    union semun arg;
    struct semid_ds ds;
    int error = mp_access_need(f);
    if (error != MP_OK) {
        errno = error;
        return MP_FAILED;
    }
    for (uint32_t attempt = 0; attempt < SET_ATTEMPTS; attempt++) {
        key_t key = mp_family_key(f, which, attempt);
        int id = semget(key, nsems, IPC_CREAT | 0600);
        if (id < 0) {
            error = errno;
            bool taken = error == EACCES || (error == EINVAL && (semget(key, 0, 0) >= 0 || errno != ENOENT));
            errno = error;
            if (!taken)
                return MP_FAILED;
            f->squatted_key = key; /* a smaller set than ours, or one that we may not use */
            continue;
        }
        if (!is_our_users(f, id, nsems, &ds)) {
            f->squatted_key = key;
            continue;
        }
        int mark = semctl(id, MP_SEM_MARK, GETVAL);
        if (mark == 0) {
            arg.val = (int)mp_mark(f);
            if (semctl(id, MP_SEM_MARK, SETVAL, arg) < 0) {
                known = atomic_load(published); /* it may have been taken down for another one */
                return known > 0 ? known - 1 : MP_FAILED;
            }
        } else if (mark != (int)mp_mark(f)) {
            continue;
        }
        mp_access_share_set(f, id);
        int32_t none = 0;
        if (atomic_compare_exchange_strong(published, &none, id + 1))
            mp_access_share_set(f, id); /* there may be a guest since */
        else if (none > 0 && none != id + 1)
            semctl(id, 0, IPC_RMID);
        return none > 0 ? none - 1 : id;
    }
    errno = MP_SQUATTED;
    return MP_FAILED;
}

/* A set without a mark was made by a process of ours that died before it had marked it. */
static void remove_set_if_ours(struct mp_family *f, int id, int nsems) {
    struct semid_ds ds;
    if (id < 0 || !is_our_users(f, id, nsems, &ds))
        return;
    int mark = semctl(id, MP_SEM_MARK, GETVAL);
    if (mark == (int)mp_mark(f) || (mark == 0 && ds.sem_otime == 0))
        semctl(id, 0, IPC_RMID);
}

static void remove_own_set(struct mp_family *f, int32_t published, uint32_t which, int nsems) {
    if (published > 0)
        remove_set_if_ours(f, published - 1, nsems);
    if (published > 0 && atomic_load(&f->h->guest) == 0)
        return;
    for (uint32_t attempt = 0; attempt < SET_ATTEMPTS; attempt++)
        remove_set_if_ours(f, semget(mp_family_key(f, which, attempt), 0, 0), nsems);
}

/* The sets that have the semaphores from `first` to `end`, as far as they exist. One may exist and not be published. */
static void remove_pooled(struct mp_family *f, _Atomic int32_t *sets, uint32_t which, uint32_t first, uint32_t end) {
    uint32_t each = f->set_size - 1;
    for (uint32_t k = first / each; first < end && k <= (end - 1) / each; k++)
        remove_own_set(f, atomic_load(&sets[k]), which + k, (int)f->set_size);
}

void mp_remove_sets(struct mp_family *f) {
    remove_pooled(f, f->seg->bell_sets, MP_SET_BELLS, 0, mp_block_high(f));
    remove_pooled(f, f->seg->bell_sets, MP_SET_BELLS, MP_BLOCKS, MP_BLOCKS + mp_cell_high(f));
    remove_pooled(f, f->seg->alive_sets, MP_SET_ALIVE, 0, mp_slot_high(f));
    for (uint32_t k = 0; k < MP_BELL_SETS; k++) /* a number of a bell that was spoilt may have made one far out */
        if (atomic_load(&f->seg->bell_sets[k]) > 0)
            remove_own_set(f, atomic_load(&f->seg->bell_sets[k]), MP_SET_BELLS + k, (int)f->set_size);
    remove_own_set(f, atomic_load(&f->h->semid), MP_SET_OWN, MP_SEM_COUNT);
}

/* How many semaphores a set may have here, as far as we care. 0: too few. */
uint32_t mp_choose_set_size(void) {
    struct seminfo info;
    union semun arg = {.__buf = &info};
    if (semctl(0, 0, IPC_INFO, arg) < 0 || info.semmsl >= (int)MP_SET_MOST)
        return MP_SET_MOST;
    return info.semmsl < (int)MP_SET_LEAST ? 0 : (uint32_t)info.semmsl;
}

/* ---- who is alive -------------------------------------------------------------------------------------------------
 *
 * A process joins by two operations: on `deaths` first, on the `alive` of its slot second. Undo entries of different sets are
 * run in the reverse order of their first use, so alive is 0 by the time that deaths rings. A process that dies between the two
 * rings for a slot that is JOINING still; recovery sees by its pid that nobody will join any more. */

/* Where alive[slot] is. The set is made if it is not there. -1 with errno. */
int mp_alive(struct mp_family *f, int slot, int *semid, unsigned short *num) {
    uint32_t each = f->set_size - 1, set = (uint32_t)slot / each;
    *num = (unsigned short)(1 + (uint32_t)slot % each);
    *semid = mp_own_set(f, &f->seg->alive_sets[set], MP_SET_ALIVE + set, (int)f->set_size);
    return *semid < 0 ? MP_FAILED : MP_OK;
}

/* alive[] of the first so many slots, with one system call a set. What cannot be read is taken for alive; a set that was never
 * made has no living. */
void mp_alive_read(struct mp_family *f, uint32_t slots, unsigned short *values) {
    unsigned short all[MP_SET_MOST];
    union semun arg = {.array = all};
    uint32_t each = f->set_size - 1;
    for (uint32_t first = 0; first < slots; first += each) {
        int id = mp_published(&f->seg->alive_sets[first / each]);
        int got = id < 0 ? -1 : semctl(id, 0, GETALL, arg);
        for (uint32_t i = 0; i < each && first + i < slots; i++)
            values[first + i] = id < 0 ? 0 : got < 0 ? 1 : all[1 + i];
    }
}

/* Does the kernel say that the process of this slot has joined and lives? Also if it cannot be asked. */
bool mp_slot_is_alive(struct mp_family *f, int slot) {
    struct sembuf is_zero = {0, 0, IPC_NOWAIT}; /* semctl(2) visits the whole set; see event.c */
    int semid;
    return mp_alive(f, slot, &semid, &is_zero.sem_num) != MP_OK || semop(semid, &is_zero, 1) != 0;
}

/* The process of this slot lives on as another program (execve(2) keeps undo entries), and is no member any more. SETVAL drops
 * its entry for alive[slot], which would otherwise hit the slot's next owner; what is left is a ring too many at its end. */
void mp_slot_cancel_undo(struct mp_family *f, int slot) {
    union semun arg = {.val = 0};
    unsigned short num;
    int semid;
    if (mp_alive(f, slot, &semid, &num) == MP_OK)
        semctl(semid, num, SETVAL, arg);
}

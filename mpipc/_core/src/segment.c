/* The family's segment: founding a family, attaching to one. */
#include "segment.h"

#include "access.h"
#include "banks.h"
#include "processes.h"
#include "sets.h"

#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

static uint64_t random_u64(void) {
    uint64_t value;
    if (getrandom(&value, sizeof value, 0) != sizeof value)
        value = mp_mix((uint64_t)mp_now_ns() ^ (uint64_t)getpid() << 32);
    return value;
}

#define LOCAL_SIZE (MP_BLOCKS * sizeof(uint32_t))
#define STRETCHES_SIZE (MP_ARENA_SEGMENTS * sizeof(uintptr_t))

static void *local_table(size_t size) {
    void *table = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return table == MAP_FAILED ? NULL : table;
}

static int local_tables(struct mp_family *f) {
    f->local_refs = local_table(LOCAL_SIZE);
    f->local_record = local_table(LOCAL_SIZE);
    f->stretches = local_table(STRETCHES_SIZE);
    return f->local_refs == NULL || f->local_record == NULL || f->stretches == NULL ? MP_FAILED : MP_OK;
}

static void drop_table(void *table, size_t size) {
    if (table != NULL)
        munmap(table, size);
}

static void unattached(struct mp_family *f, mp_tick_function *tick) {
    memset(f, 0, sizeof *f);
    f->tick = tick;
    f->shmid = f->semid = f->slot = f->fork_slot = f->start_slot = -1;
    f->pid = getpid();
    f->pid_ns = mp_pid_namespace();
}

static int local_setup(struct mp_family *f) {
    f->h = &f->seg->header;
    atomic_store(&f->banks[0], &f->seg->first);
    f->set_size = f->h->set_size;
    f->semid = mp_own_set(f, &f->h->semid, MP_SET_OWN, MP_SEM_COUNT);
    if (f->semid < 0 || local_tables(f) != MP_OK) {
        int error = errno;
        mp_family_detach(f);
        errno = error;
        return MP_FAILED;
    }
    return MP_OK;
}

/* A creator killed before the magic is written leaves a segment without one, attached by nobody: the sweep knows it by its
 * key and size (sweep.c). */
int mp_family_create(struct mp_family *f, const char *program, mp_tick_function *tick) {
    uint32_t set_size = mp_choose_set_size();
    unattached(f, tick);
    if (set_size == 0) {
        errno = MP_SETS_SMALL;
        return MP_FAILED;
    }
    for (int attempt = 0; f->shmid < 0; attempt++) {
        f->nonce = random_u64() | 1;
        /* Everybody sees the key, and nobody should see the nonce. */
        key_t key = (key_t)(MP_KEY_PREFIX | (mp_mix(~f->nonce) & ~MP_KEY_MASK));
        f->shmid = shmget(key, sizeof(struct mp_segment), IPC_CREAT | IPC_EXCL | SHM_NORESERVE | 0600);
        if (f->shmid < 0 && (errno != EEXIST || attempt == 100))
            return MP_FAILED;
    }
    f->seg = shmat(f->shmid, NULL, 0);
    if (f->seg == (void *)-1) {
        int error = errno;
        shmctl(f->shmid, IPC_RMID, NULL);
        errno = error;
        return MP_FAILED;
    }
    struct mp_header *h = &f->seg->header;
    h->version = MP_VERSION;
    h->nonce = f->nonce;
    h->uid = geteuid();
    h->creator = getpid();
    h->set_size = set_size;
    h->pid_ns = f->pid_ns;
    h->users_change = mp_process_may_change_user();
    atomic_store(&h->wait_high, MP_WAITS_LEAST);
    snprintf(h->program, sizeof h->program, "%s", program);
    atomic_store(&h->state, MP_OPEN);
    atomic_store(&h->magic, MP_MAGIC);
    if (local_setup(f) == MP_OK)
        return MP_OK;
    int error = errno;
    shmctl(f->shmid, IPC_RMID, NULL); /* nobody can have joined: the set is missing */
    errno = error;
    return MP_FAILED;
}

/* nonce 0: whichever family has this segment (the sweep, the reaper's first look). */
int mp_family_attach(struct mp_family *f, int shmid, uint64_t nonce, enum mp_attach whose, mp_tick_function *tick) {
    uint32_t user = geteuid();
    unattached(f, tick);
    struct shmid_ds ds;
    if (shmctl(shmid, IPC_STAT, &ds) < 0)
        return MP_FAILED;
    if (ds.shm_segsz != sizeof(struct mp_segment)) {
        errno = MP_GONE;
        return MP_FAILED;
    }
    /* Root can attach to anybody's, and must not trust it. Who made it (cuid) cannot be forged. */
    if ((ds.shm_perm.cuid != user && (whose == MP_ATTACH_OWN || ds.shm_perm.uid != user)) || (ds.shm_perm.mode & 077) != 0) {
        errno = MP_DENIED;
        return MP_FAILED;
    }
    f->shmid = shmid;
    f->seg = shmat(shmid, NULL, 0);
    if (f->seg == (void *)-1)
        return MP_FAILED;
    struct mp_header *h = f->h = &f->seg->header;
    if (atomic_load(&h->magic) != MP_MAGIC || h->version != MP_VERSION || (nonce != 0 && h->nonce != nonce) ||
        h->uid != ds.shm_perm.cuid || !mp_access_is_users(f, ds.shm_perm.uid) || !mp_access_is_users(f, user) ||
        h->set_size < MP_SET_LEAST || h->set_size > MP_SET_MOST) {
        shmdt(f->seg);
        errno = MP_GONE;
        return MP_FAILED;
    }
    f->nonce = h->nonce;
    return local_setup(f);
}

void mp_family_detach(struct mp_family *f) {
    mp_banks_unmap(f);
    if (f->seg != NULL && f->seg != (void *)-1)
        shmdt(f->seg);
    drop_table(f->local_refs, LOCAL_SIZE);
    drop_table(f->local_record, LOCAL_SIZE);
    drop_table(f->stretches, STRETCHES_SIZE);
    f->seg = NULL;
    f->local_refs = f->local_record = NULL;
    f->stretches = NULL;
}

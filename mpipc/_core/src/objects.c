/* Kernel objects that blocks own: made under a key that was written down before (rule R4), and removed. */
#include "objects.h"

#include "access.h"

#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <unistd.h>

static key_t new_key(void) {
    uint32_t value = 0;
    if (getrandom(&value, sizeof value, 0) != sizeof value)
        value = (uint32_t)mp_now_ns() * 2654435761u;
    return (key_t)(MP_KEY_PREFIX | (value & ~MP_KEY_MASK));
}

/* The key is written down before the object is made (rule R4), and before that the time, by which the object is known. */
static void have_time_and_key(struct mp_block *b) {
    b->made_at = time(NULL);
    atomic_signal_fence(memory_order_seq_cst);
    b->key = new_key();
    atomic_signal_fence(memory_order_seq_cst);
}

static int make_queue(key_t key, uint64_t size, int flags) {
    (void)size;
    return msgget(key, flags);
}

static int make_segment(key_t key, uint64_t size, int flags) { return shmget(key, size, flags); }

/* Tries keys until there is one that nobody has. The object's id, or MP_FAILED with errno. */
static int made_under_new_key(struct mp_block *b, int (*make)(key_t key, uint64_t size, int flags), uint64_t size, int flags) {
    for (int attempt = 0; attempt < 1000; attempt++) {
        have_time_and_key(b);
        int id = make(b->key, size, IPC_CREAT | IPC_EXCL | flags);
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

int mp_block_msgget(struct mp_family *f, uint32_t index, int mode) {
    int error = mp_access_need(f);
    errno = error;
    int id = error == MP_OK ? made_under_new_key(mp_block_at(f, index), make_queue, 0, mode) : MP_FAILED;
    if (id >= 0)
        mp_access_share_queue(f, id);
    return id;
}

int mp_block_shmget(struct mp_family *f, uint32_t index, uint64_t size, int flags) {
    struct mp_block *b = mp_block_at(f, index);
    b->size = size;
    int error = mp_access_need(f);
    errno = error;
    int id = error == MP_OK ? made_under_new_key(b, make_segment, size, flags) : MP_FAILED;
    if (id >= 0)
        mp_access_share_segment(f, id);
    return id;
}

/* Attaches the segment of a block. What the block says of it another process may have written over; the kernel knows. NULL with
 * errno: MP_GONE if it is not there any more; or what shmat(2) says. */
void *mp_block_shmat(struct mp_family *f, uint32_t index, uint64_t *size) {
    struct shmid_ds ds;
    int id = atomic_load(&mp_block_at(f, index)->id);
    void *start = MP_ALLOWED(f, shmat(id, NULL, 0));
    if (start == (void *)-1) {
        errno = errno == EINVAL || errno == EIDRM ? MP_GONE : errno;
        return NULL;
    }
    if (shmctl(id, IPC_STAT, &ds) < 0 || !mp_access_is_users(f, ds.shm_perm.cuid)) {
        shmdt(start);
        errno = MP_GONE;
        return NULL;
    }
    *size = ds.shm_segsz;
    return start;
}

void mp_remove_queue(struct mp_family *f, struct mp_block *b) {
    int id = atomic_load(&b->id);
    struct msqid_ds ds;
    bool found_by_key = id < 0;
    if (found_by_key)
        id = msgget(b->key, 0);
    if (id < 0 || MP_ALLOWED(f, msgctl(id, IPC_STAT, &ds)) < 0 || ds.msg_perm.__key != b->key ||
        !mp_access_is_users(f, ds.msg_perm.cuid))
        return;
    if (found_by_key && (ds.msg_ctime < b->made_at || ds.msg_lspid != 0))
        return; /* somebody else's, in whose way our msgget was when its process died */
    msgctl(id, IPC_RMID, NULL);
}

void mp_remove_segment(struct mp_family *f, struct mp_block *b) {
    int id = atomic_load(&b->id);
    struct shmid_ds ds;
    bool found_by_key = id < 0;
    if (found_by_key)
        id = shmget(b->key, 0, 0);
    if (id < 0 || MP_ALLOWED(f, shmctl(id, IPC_STAT, &ds)) < 0 || ds.shm_perm.__key != b->key ||
        !mp_access_is_users(f, ds.shm_perm.cuid))
        return;
    if (found_by_key && (ds.shm_ctime < b->made_at || ds.shm_nattch != 0 || ds.shm_segsz != b->size))
        return;
    shmctl(id, IPC_RMID, NULL);
}

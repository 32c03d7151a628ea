/* What is done with blocks of each kind: the one place where what lies below (blocks, recovery) meets what lies above. NULL: nothing.
 * A new primitive is a row here. */
#ifndef MPIPC_KINDS_H
#define MPIPC_KINDS_H

#include "waits.h"

struct mp_kind_row {
    bool has_lock; /* its payload begins with a struct mp_lock */
    void (*let_go)(struct mp_family *f, uint32_t index); /* this process has no handle any more */
    void (*take_down)(struct mp_family *f, uint32_t index); /* before its kernel object goes */
    void (*remove)(struct mp_family *f, struct mp_block *b); /* the kernel object that it owns */
    void (*recover)(struct mp_family *f, uint32_t index, const uint64_t *dead); /* what these slots had in their hands */
    void (*give_back)(struct mp_family *f, uint32_t record); /* what a dead process had of it, and then the record */
    void (*reclaim)(struct mp_family *f, uint32_t index, int by_slot); /* pinned, but is it still wanted? */
    void (*heal)(struct mp_family *f, uint32_t index); /* rings that may have been lost */
    void (*trim)(struct mp_family *f, uint32_t index, int64_t idle_ns); /* memory that was not used for so long */
    const char *(*purpose)(struct mp_block *b, const struct mp_waiting *waiting); /* what of it is waited for; NULL: itself */
};

/* Any number may stand in shared memory. */
const struct mp_kind_row *mp_kind_of(const struct mp_block *b);

int64_t mp_wait_object(struct mp_family *f, const struct mp_waiting *waiting, const char **purpose);

/* The key of the object is compared before it is removed: an id may have been given out again since. */
static inline void mp_kind_remove(struct mp_family *f, struct mp_block *b) {
    const struct mp_kind_row *kind = mp_kind_of(b);
    if (b->key != 0 && kind->remove != NULL)
        kind->remove(f, b);
}

#endif

/* The table of kinds. */
#include "kinds.h"

#include "blocks.h"
#include "broadcast.h"
#include "cells.h"
#include "lock.h"
#include "memory.h"
#include "named.h"
#include "objects.h"
#include "queue.h"
#include "rwlock.h"
#include "semaphore.h"

static void remove_segment(struct mp_family *f, struct mp_block *b) {
    if (((uint32_t)b->key & MP_KEY_MASK) == MP_NAMED_PREFIX)
        mp_named_remove(f, b);
    else
        mp_remove_segment(f, b);
}

static const struct mp_kind_row nothing;

static const struct mp_kind_row rows[] = {
    [MP_KIND_LOCK] = {.has_lock = true},
    [MP_KIND_RLOCK] = {.has_lock = true},
    [MP_KIND_BARRIER] = {.has_lock = true},
    [MP_KIND_SEMAPHORE] = {.let_go = mp_sem_forget, .give_back = mp_sem_return_units, .heal = mp_sem_heal},
    [MP_KIND_QUEUE] = {.has_lock = true,
                       .take_down = mp_queue_take_down,
                       .remove = mp_remove_queue,
                       .recover = mp_queue_recover,
                       .heal = mp_queue_heal,
                       .trim = mp_queue_trim,
                       .purpose = mp_queue_purpose},
    [MP_KIND_SEGMENT] = {.remove = remove_segment, .recover = mp_named_recover, .reclaim = mp_named_reclaim},
    [MP_KIND_BROADCAST] = {.has_lock = true, .remove = mp_remove_segment},
    [MP_KIND_SUBSCRIPTION] = {.take_down = mp_subscription_take_down},
    [MP_KIND_RWLOCK] = {.let_go = mp_rw_forget, .recover = mp_rw_recover, .give_back = mp_rw_give_back, .heal = mp_lock_heal},
    [MP_KIND_SPACE] = {.take_down = mp_space_take_down, .recover = mp_space_recover, .trim = mp_space_trim},
    [MP_KIND_MEMORY] = {.take_down = mp_memory_take_down},
};

const struct mp_kind_row *mp_kind_of(const struct mp_block *b) {
    uint32_t kind = b->kind;
    return kind < sizeof rows / sizeof *rows ? &rows[kind] : &nothing;
}

/* The block of the object that is waited for, and what of it, in a word or two; -1: it cannot be told any more. A bell is a block's
 * own, or that of a cell, or of a room, whose block belongs to the object's. */
int64_t mp_wait_object(struct mp_family *f, const struct mp_waiting *waiting, const char **purpose) {
    uint32_t index = waiting->where;
    if (waiting->kind != MP_WAIT_MESSAGE && index >= MP_BLOCKS) {
        if (index >= MP_BELLS)
            return -1;
        index = mp_cell_block(atomic_load(&f->seg->cells[index - MP_BLOCKS].word));
    }
    if (index >= MP_BLOCKS)
        return -1;
    if (mp_block_at(f, index)->kind == MP_KIND_DATA) {
        int64_t owner = mp_block_owner(f, index);
        index = owner < 0 ? index : (uint32_t)owner;
    }
    struct mp_block *b = mp_block_at(f, index);
    const struct mp_kind_row *kind = mp_kind_of(b);
    *purpose = kind->purpose == NULL ? "" : kind->purpose(b, waiting);
    return index;
}

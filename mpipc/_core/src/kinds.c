/* The table of kinds. */
#include "kinds.h"

#include "named.h"
#include "objects.h"
#include "queue.h"
#include "semaphore.h"

static void remove_segment(struct mp_block *b) {
    if (((uint32_t)b->key & MP_KEY_MASK) == MP_NAMED_PREFIX)
        mp_named_remove(b);
    else
        mp_remove_segment(b);
}

static const struct mp_kind_row nothing;

static const struct mp_kind_row rows[] = {
    [MP_KIND_LOCK] = {.has_lock = true},
    [MP_KIND_RLOCK] = {.has_lock = true},
    [MP_KIND_BARRIER] = {.has_lock = true},
    [MP_KIND_SEMAPHORE] = {.let_go = mp_sem_forget, .heal = mp_sem_heal},
    [MP_KIND_QUEUE] = {.has_lock = true,
                       .take_down = mp_queue_take_down,
                       .remove = mp_remove_queue,
                       .recover = mp_queue_recover,
                       .heal = mp_queue_heal,
                       .trim = mp_queue_trim},
    [MP_KIND_SEGMENT] = {.remove = remove_segment, .recover = mp_named_recover, .reclaim = mp_named_reclaim},
};

const struct mp_kind_row *mp_kind_of(const struct mp_block *b) {
    uint32_t kind = b->kind;
    return kind < sizeof rows / sizeof *rows ? &rows[kind] : &nothing;
}

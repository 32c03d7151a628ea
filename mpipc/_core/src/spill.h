/* Messages in shared memory, in order. All but the first two need the queue's lock. */
#ifndef MPIPC_SPILL_H
#define MPIPC_SPILL_H

#include "queue_view.h"

int mp_spill_post(struct mp_queue_view *v, const unsigned char *bodies, uint64_t size, uint32_t count, uint32_t level);
uint64_t mp_spill_posted(struct mp_queue_view *v);
int mp_spill_collect(struct mp_queue_view *v);
int mp_spill_append(struct mp_queue_view *v, const struct mp_message *m, uint32_t length, uint32_t level);
int64_t mp_spill_first_level(struct mp_queue_view *v);
int mp_spill_pop(struct mp_queue_view *v, uint32_t level, struct mp_item *item);
int mp_spill_repair(struct mp_queue_view *v);

#endif

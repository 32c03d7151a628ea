/* Giving memory back, and how much there is. */
#ifndef MPIPC_TRIM_H
#define MPIPC_TRIM_H

#include "queue_view.h"

int64_t mp_arena_trim(struct mp_queue_view *v, int64_t idle_ns);
void mp_arena_usage(struct mp_queue_view *v, uint64_t *bytes, uint64_t *in_use, uint64_t *segments);

#endif

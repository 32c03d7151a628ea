/* A queue of jobs, which are taken until somebody acknowledges them. */
#ifndef MPIPC_WORK_H
#define MPIPC_WORK_H

#include "jobs.h"
#include "queue.h"

int mp_work_try_take(struct mp_queue_view *v, struct mp_item *item);
int mp_work_take(struct mp_queue_view *v, struct mp_item *item, uint32_t least, int64_t deadline_ns);
bool mp_work_linger(struct mp_queue_view *v);
bool mp_work_acknowledge(struct mp_queue_view *v, const struct mp_piece *piece);
bool mp_work_give_back(struct mp_queue_view *v, const struct mp_piece *piece);
int64_t mp_work_unfinished(struct mp_queue_view *v, int64_t deadline_ns);

#endif

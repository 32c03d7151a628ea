/* Jobs: the messages of a queue whose taken ones come back until they are acknowledged. */
#ifndef MPIPC_JOBS_H
#define MPIPC_JOBS_H

#include "pieces.h"

void mp_job_begin(struct mp_queue_view *v, const struct mp_piece *piece, uint32_t kind);
int mp_job_open(struct mp_queue_view *v, struct mp_item *item);
int mp_job_take_returned(struct mp_queue_view *v, uint32_t least, struct mp_item *item);
bool mp_job_accept(struct mp_queue_view *v, const struct mp_piece *piece);
bool mp_job_return(struct mp_queue_view *v, const struct mp_piece *piece);
int64_t mp_job_count(struct mp_queue_view *v, bool taken, bool returned);
bool mp_job_drop_returned(struct mp_queue_view *v);

#endif

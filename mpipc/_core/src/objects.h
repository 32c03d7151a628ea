/* Kernel objects that blocks own. */
#ifndef MPIPC_OBJECTS_H
#define MPIPC_OBJECTS_H

#include "family.h"

int mp_block_msgget(struct mp_family *f, uint32_t index, int mode);
int mp_block_shmget(struct mp_family *f, uint32_t index, uint64_t size, int flags);
void *mp_block_shmat(struct mp_family *f, uint32_t index, uint64_t *size);
void mp_remove_queue(struct mp_family *f, struct mp_block *b);
void mp_remove_segment(struct mp_family *f, struct mp_block *b);

#endif

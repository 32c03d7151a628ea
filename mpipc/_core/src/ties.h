/* Members that end with the process that started them. */
#ifndef MPIPC_TIES_H
#define MPIPC_TIES_H

#include "family.h"

int mp_tie(struct mp_family *f, int parent, uint32_t generation);
bool mp_tie_holds(struct mp_family *f);
void mp_tied_end(struct mp_family *f, const uint64_t *dead);

#endif

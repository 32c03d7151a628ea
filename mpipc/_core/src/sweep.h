/* The end of families. */
#ifndef MPIPC_SWEEP_H
#define MPIPC_SWEEP_H

#include "family.h"

void mp_family_leave(struct mp_family *f);
bool mp_family_destroy(struct mp_family *f);
int mp_sweep(void);
#define MP_LASTING_MOST 16384u /* more sets, and more segments, than a family can have */
uint32_t mp_lasting_sets(struct mp_family *f, int *ids, uint32_t most);
uint32_t mp_lasting_segments(struct mp_family *f, int *ids, uint32_t most);

#endif

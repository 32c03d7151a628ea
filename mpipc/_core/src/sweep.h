/* The end of families. */
#ifndef MPIPC_SWEEP_H
#define MPIPC_SWEEP_H

#include "family.h"

void mp_family_leave(struct mp_family *f);
bool mp_family_destroy(struct mp_family *f);
int mp_sweep(void);

#endif

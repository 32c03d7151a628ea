/* The end of families. */
#ifndef MPIPC_SWEEP_H
#define MPIPC_SWEEP_H

#include "family.h"

bool mp_family_destroy(struct mp_family *f);
int mp_sweep(void);

#endif

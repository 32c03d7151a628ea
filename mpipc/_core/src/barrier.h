/* The barrier. */
#ifndef MPIPC_BARRIER_H
#define MPIPC_BARRIER_H

#include "family.h"

enum mp_barrier_outcome { MP_BARRIER_WAITING, MP_BARRIER_PASSED, MP_BARRIER_BROKEN };

uint32_t mp_barrier_waiting(struct mp_family *f, uint32_t index, uint32_t *place);
int64_t mp_barrier_enter(struct mp_family *f, uint32_t index, uint32_t place, uint64_t *generation);
void mp_barrier_end(struct mp_family *f, uint32_t index, bool broken, bool stays_broken);
enum mp_barrier_outcome mp_barrier_outcome(struct mp_family *f, uint32_t index, uint32_t cell, uint64_t generation);

#endif

/* Bells, at which waiters sleep. */
#ifndef MPIPC_BELLS_H
#define MPIPC_BELLS_H

#include "family.h"

int mp_bell(struct mp_family *f, uint32_t bell, int *semid, unsigned short *num);
int mp_bell_ring(struct mp_family *f, uint32_t bell, int times);
int mp_bell_set(struct mp_family *f, uint32_t bell, int value);
int mp_bell_get(struct mp_family *f, uint32_t bell, int command);
int mp_bell_wait(struct mp_family *f, uint32_t bell, int op, int64_t deadline_ns);
int mp_bell_await(struct mp_family *f, uint32_t bell, int op, int64_t deadline_ns);

#endif

/* Founding a family, attaching to one. */
#ifndef MPIPC_SEGMENT_H
#define MPIPC_SEGMENT_H

#include "family.h"

int mp_family_create(struct mp_family *f, const char *program, mp_tick_function *tick);
int mp_family_attach(struct mp_family *f, int shmid, uint64_t nonce, mp_tick_function *tick);
void mp_family_detach(struct mp_family *f);

#endif

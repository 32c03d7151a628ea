#ifndef MPIPC_GUESTS_H
#define MPIPC_GUESTS_H

#include "family.h"

void mp_guests_admit(struct mp_family *f);
bool mp_guests_become(struct mp_family *f);
void mp_guests_unbecome(struct mp_family *f);
void mp_guests_remove(struct mp_family *f, struct mp_block *b);

#endif

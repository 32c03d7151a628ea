/* What a member does once a tick; what lies below reaches it by the pointer in struct mp_family. */
#ifndef MPIPC_TICK_H
#define MPIPC_TICK_H

#include "family.h"

int mp_tick(struct mp_family *f);

#endif

/* Starting the reaper. */
#ifndef MPIPC_LAUNCH_H
#define MPIPC_LAUNCH_H

#include "family.h"

int mp_launch_reaper(struct mp_family *f);

#endif

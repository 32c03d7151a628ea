/* What is done for processes that are no longer there. */
#ifndef MPIPC_RECOVERY_H
#define MPIPC_RECOVERY_H

#include "family.h"

int mp_recover(struct mp_family *f);
void mp_trim(struct mp_family *f, int64_t idle_ns);
bool mp_family_pending(struct mp_family *f);
bool mp_slots_in_use(struct mp_family *f, int but);
bool mp_family_populated(struct mp_family *f);

#endif

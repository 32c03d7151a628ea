/* Who is alive: the verdict on SEM_UNDO, the reaper's presence, the recovery lock. */
#ifndef MPIPC_LIVENESS_H
#define MPIPC_LIVENESS_H

#include "family.h"

enum mp_undo { MP_UNDO_UNKNOWN, MP_UNDO_WORKS, MP_UNDO_IGNORED };
enum mp_undo mp_undo(struct mp_family *f);
void mp_undo_try(struct mp_family *f);
void mp_undo_for_the_dead(struct mp_family *f);
bool mp_reaper_present(struct mp_family *f);
bool mp_reaper_become(struct mp_family *f);
bool mp_reaper_stay(struct mp_family *f);
int mp_reaper_wait(struct mp_family *f, int64_t timeout_ns);
bool mp_recovery_lock(struct mp_family *f);
void mp_recovery_unlock(struct mp_family *f);

#endif

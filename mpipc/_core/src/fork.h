/* Fork, exec, and what is pickled for a child that is started anew. */
#ifndef MPIPC_FORK_H
#define MPIPC_FORK_H

#include "family.h"

int mp_start_reserve(struct mp_family *f);
void mp_start_cancel(struct mp_family *f);
int mp_fork_prepare(struct mp_family *f);
void mp_fork_parent(struct mp_family *f);
int mp_fork_child(struct mp_family *f);
int64_t mp_transit_reserve(struct mp_family *f);
int mp_transit_slot(int64_t token);
void mp_transit_keep(struct mp_family *f, int64_t token);
int mp_transit_claim(struct mp_family *f, int64_t token);
void mp_transit_sent(struct mp_family *f, int64_t token, pid_t pid);
void mp_transit_arrived(struct mp_family *f, int64_t token);
void mp_family_forget_exec(struct mp_family *f);

#endif

/* Wait records: who sleeps where, and since when. */
#ifndef MPIPC_WAITS_H
#define MPIPC_WAITS_H

#include "family.h"

/* One of them as it was at one moment. */
struct mp_waiting {
    enum mp_wait_kind kind;
    int slot;
    pid_t tid;
    uint32_t where;
    int64_t since_ns; /* CLOCK_MONOTONIC */
};

struct mp_wait *mp_wait_enter(struct mp_family *f, enum mp_wait_kind kind, uint32_t where);
void mp_wait_leave(struct mp_wait *wait, bool more);
void mp_wait_over(void);
bool mp_wait_read(struct mp_family *f, uint32_t index, struct mp_waiting *waiting);
uint32_t mp_waits_count(struct mp_family *f, enum mp_wait_kind kind, uint32_t where);
void mp_wait_recover(struct mp_family *f, uint32_t index, const uint64_t *dead);

#endif

/* Sleeping at a word of shared memory: for who has no right on any semaphore, or waits for the reaper and nobody else. */
#ifndef MPIPC_FUTEX_H
#define MPIPC_FUTEX_H

#include "base.h"

void mp_futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t timeout_ns);
void mp_futex_wake(_Atomic uint32_t *word);

#endif

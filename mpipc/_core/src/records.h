/* Records: what a process has of a semaphore or an RWLock. */
#ifndef MPIPC_RECORDS_H
#define MPIPC_RECORDS_H

#include "family.h"

#define MP_RECORD_SEQUENCE 0x7fffu

int64_t mp_record_claim(struct mp_family *f, uint32_t index);
void mp_record_free(struct mp_family *f, uint32_t i, uint32_t sequence);

/* The number of this process's record for the block; -1 with errno. */
static inline int64_t mp_record_own(struct mp_family *f, uint32_t index) {
    uint32_t own = f->local_record[index];
    return own != 0 ? (int64_t)own - 1 : mp_record_claim(f, index);
}

#endif

/* Pooled semaphore sets, and who is alive by them. */
#ifndef MPIPC_SETS_H
#define MPIPC_SETS_H

#include "family.h"

uint64_t mp_mix(uint64_t x);
uint32_t mp_mark(struct mp_family *f);
key_t mp_family_key(struct mp_family *f, uint32_t which, uint32_t attempt);
int mp_own_set(struct mp_family *f, _Atomic int32_t *published, uint32_t which, int nsems);
void mp_remove_sets(struct mp_family *f);
uint32_t mp_choose_set_size(void);
int mp_alive(struct mp_family *f, int slot, int *semid, unsigned short *num);
void mp_alive_read(struct mp_family *f, uint32_t slots, unsigned short *values);
bool mp_slot_is_alive(struct mp_family *f, int slot);
void mp_slot_cancel_undo(struct mp_family *f, int slot);

#endif

/* The counting semaphore. */
#ifndef MPIPC_SEMAPHORE_H
#define MPIPC_SEMAPHORE_H

#include "family.h"

bool mp_sem_try(struct mp_family *f, uint32_t index, int *error);
int mp_sem_enroll(struct mp_family *f, uint32_t index);
void mp_sem_withdraw(struct mp_family *f, uint32_t index);
int mp_sem_release(struct mp_family *f, uint32_t index);
void mp_sem_init(struct mp_block *b, uint32_t value, uint32_t maximum, enum mp_returns returns);
uint32_t mp_sem_value(struct mp_block *b);
uint32_t mp_sem_debt(struct mp_block *b);
enum mp_returns mp_sem_returns(struct mp_block *b);
uint32_t mp_sem_units(struct mp_family *f, uint32_t index);
void mp_sem_return_units(struct mp_family *f, uint32_t record);
void mp_sem_forget(struct mp_family *f, uint32_t index);
void mp_sem_heal(struct mp_family *f, uint32_t index);

#endif

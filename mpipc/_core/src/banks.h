/* The tables of blocks and chunks, which grow by banks. */
#ifndef MPIPC_BANKS_H
#define MPIPC_BANKS_H

#include "family.h"

int mp_bank_need(struct mp_family *f, uint32_t bank);
int mp_banks_known(struct mp_family *f);
bool mp_bank_is_hidden(struct mp_family *f, uint32_t bank);
void mp_banks_unmap(struct mp_family *f);
void mp_remove_banks(struct mp_family *f);
void mp_banks_share(struct mp_family *f);

#endif

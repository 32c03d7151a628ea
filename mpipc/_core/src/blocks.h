/* Control blocks: their lives, and the kernel objects that they own. */
#ifndef MPIPC_BLOCKS_H
#define MPIPC_BLOCKS_H

#include "family.h"

int64_t mp_block_new(struct mp_family *f, uint32_t kind);
int mp_block_ready(struct mp_family *f, uint32_t index);
void mp_block_abandon(struct mp_family *f, uint32_t index);
int mp_block_adopt(struct mp_family *f, uint32_t index, uint32_t serial);
void mp_block_drop(struct mp_family *f, uint32_t index);
void mp_block_settle(struct mp_family *f, uint32_t index, int by_slot);
uint64_t mp_owner_word(struct mp_family *f, uint32_t owner);
int64_t mp_block_owner(struct mp_family *f, uint32_t index);
void mp_block_give(struct mp_family *f, uint32_t index, uint32_t owner);
void mp_block_take_down_owned(struct mp_family *f, uint32_t index, uint64_t owner);
bool mp_block_try_free(struct mp_family *f, uint32_t index, int by_slot);

#endif

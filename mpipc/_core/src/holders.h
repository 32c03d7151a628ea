/* Who holds a block. */
#ifndef MPIPC_HOLDERS_H
#define MPIPC_HOLDERS_H

#include "family.h"

int mp_block_hold(struct mp_family *f, uint32_t index, int slot);
bool mp_block_unhold(struct mp_family *f, uint32_t index, int slot);
bool mp_block_holds(struct mp_family *f, uint32_t index, int slot);
bool mp_block_unheld(struct mp_family *f, struct mp_block *b);
uint32_t mp_block_holders(struct mp_family *f, uint32_t index, uint16_t *slots, uint32_t most);
void mp_block_drop_holders(struct mp_family *f, uint32_t index, const uint64_t *slots);
void mp_chunk_recover(struct mp_family *f, uint32_t chunk, const uint64_t *dead);
void mp_chunks_free(struct mp_family *f, uint32_t index);

#endif

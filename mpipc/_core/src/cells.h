/* Wait cells: what Condition, Barrier, RWLock and Broadcast wait in. */
#ifndef MPIPC_CELLS_H
#define MPIPC_CELLS_H

#include "family.h"

int64_t mp_cell_enter(struct mp_family *f, uint32_t index, uint64_t generation, uint32_t place);
int64_t mp_cell_again(struct mp_family *f, uint32_t index, int64_t cell, uint32_t place);
void mp_cell_leave(struct mp_family *f, uint32_t cell);
bool mp_cell_cancel(struct mp_family *f, uint32_t cell);
int mp_cell_wait(struct mp_family *f, uint32_t cell, int64_t deadline_ns);
void mp_cells_release(struct mp_family *f, uint32_t index, uint32_t place);
int mp_cells_notify(struct mp_family *f, uint32_t index, int64_t count);
int mp_cells_waiting(struct mp_family *f, uint32_t index);
bool mp_cell_end(struct mp_family *f, uint32_t cell, uint32_t index, enum mp_cell_state state);
uint32_t mp_cell_state(uint64_t word);
int mp_cell_slot(uint64_t word);
uint32_t mp_cell_block(uint64_t word);
void mp_cell_recover(struct mp_family *f, uint32_t cell, int dead_slot);
void mp_cell_heal(struct mp_family *f, uint32_t cell);

#endif

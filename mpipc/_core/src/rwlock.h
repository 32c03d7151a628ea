/* The lock of readers and writers. */
#ifndef MPIPC_RWLOCK_H
#define MPIPC_RWLOCK_H

#include "family.h"

/* What a cell waits for. */
enum mp_rw_role { MP_RW_READ, MP_RW_WRITE };

struct mp_rw_count {
    uint32_t readers; /* those whose turn has come are counted, though they may be asleep */
    uint32_t called;  /* so many of them have not been seen to be awake */
    uint32_t waiting;
};

void mp_rw_init(struct mp_block *b);
struct mp_rw_count mp_rw_count(struct mp_family *f, uint32_t index);
int64_t mp_rw_cell(struct mp_family *f, uint32_t index, int64_t cell, enum mp_rw_role role);

int mp_rw_read_try(struct mp_family *f, uint32_t index);
int mp_rw_read_within(struct mp_family *f, uint32_t index);
int mp_rw_read_enroll(struct mp_family *f, uint32_t index, uint32_t *tenure);
bool mp_rw_read_look(struct mp_family *f, uint32_t index, uint32_t tenure);
void mp_rw_read_cancel(struct mp_family *f, uint32_t index, uint32_t tenure);
void mp_rw_read_release(struct mp_family *f, uint32_t index);

bool mp_rw_write_try(struct mp_family *f, uint32_t index);
void mp_rw_write_begin(struct mp_family *f, uint32_t index);
bool mp_rw_write_look(struct mp_family *f, uint32_t index);
void mp_rw_write_cancel(struct mp_family *f, uint32_t index);
int mp_rw_write_release(struct mp_family *f, uint32_t index);

void mp_rw_forget(struct mp_family *f, uint32_t index);
void mp_rw_give_back(struct mp_family *f, uint32_t record);
void mp_rw_recover(struct mp_family *f, uint32_t index, const uint64_t *dead);

#endif

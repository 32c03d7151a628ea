/* Memory that processes and messages hold. */
#ifndef MPIPC_MEMORY_H
#define MPIPC_MEMORY_H

#include "queue_view.h"

/* Where it is in this process. */
struct mp_memory {
    struct mp_piece piece;
    unsigned char *data;
    uint64_t size; /* there is room for so much */
    bool fresh;    /* it has no pages so far: all of it is zero */
};

struct mp_queue_view *mp_space_view(struct mp_family *f, bool make);
int mp_memory_claim(struct mp_family *f, uint64_t size, struct mp_memory *memory);
int64_t mp_memory_new(struct mp_family *f, const struct mp_memory *memory);
void mp_memory_unclaim(struct mp_family *f, const struct mp_memory *memory);
int mp_memory_find(struct mp_family *f, uint32_t index, struct mp_memory *memory);
unsigned char *mp_memory_start(struct mp_family *f, const void *address);
void mp_memory_usage(struct mp_family *f, uint64_t *bytes, uint64_t *in_use, uint64_t *segments);
void mp_space_forget(struct mp_family *f);

void mp_memory_take_down(struct mp_family *f, uint32_t index);
void mp_space_take_down(struct mp_family *f, uint32_t index);
void mp_space_recover(struct mp_family *f, uint32_t index, const uint64_t *dead);
void mp_space_trim(struct mp_family *f, uint32_t index, int64_t idle_ns);

#endif

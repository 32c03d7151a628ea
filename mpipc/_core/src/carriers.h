/* Messages that hold blocks. */
#ifndef MPIPC_CARRIERS_H
#define MPIPC_CARRIERS_H

#include "queue_view.h"

/* What a message that carries memory begins with, in its piece. */
struct mp_references {
    uint32_t count;
    uint32_t spans; /* for who unpickles */
    uint64_t blocks[]; /* block:18 | MP_REFERENCE_ flags | serial:32 << 32, each block once */
};
#define MP_REFERENCE_COPY (1ull << 31) /* its memory is the copy of something: the receiver may be given another copy */
#define MP_REFERENCES_MOST 65536u
static inline uint32_t mp_reference_block(uint64_t reference) { return reference & (MP_BLOCKS - 1); }
static inline uint32_t mp_reference_serial(uint64_t reference) { return reference >> 32; }

int64_t mp_carrier_new(struct mp_family *f);
int mp_carrier_hold(struct mp_family *f, uint32_t carrier, uint32_t index);
void mp_carrier_send(struct mp_queue_view *v, uint32_t carrier, struct mp_piece *piece);
void mp_carrier_end(struct mp_family *f, uint32_t carrier, const struct mp_references *references, uint32_t count);
struct mp_references *mp_message_references(const unsigned char *data, uint64_t size, uint32_t *count);
void mp_message_end(struct mp_queue_view *v, const struct mp_piece *piece);
int64_t mp_carriers_orphan(struct mp_family *f, uint32_t *from);
int mp_carriers_recover(struct mp_family *f, const uint64_t *dead);
bool mp_carriers_in_use(struct mp_family *f);

#endif

/* Rooms, in which putters, getters and joiners wait. */
#ifndef MPIPC_ROOMS_H
#define MPIPC_ROOMS_H

#include "family.h"

int mp_room_make(struct mp_family *f, uint32_t queue, struct mp_room *room);
uint32_t mp_room_enter(struct mp_room *room);
void mp_room_leave(struct mp_room *room, uint32_t epoch);
uint32_t mp_room_stay(struct mp_room *room, uint32_t epoch);
void mp_room_ring(struct mp_family *f, struct mp_room *room, bool all);
int mp_room_wait(struct mp_family *f, struct mp_room *room, int64_t deadline_ns);
void mp_room_heal(struct mp_family *f, struct mp_room *room);

static inline uint32_t mp_room_count(struct mp_room *room) { return atomic_load(&room->word) & 0xffff; }

#endif

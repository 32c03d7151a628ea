/* Rooms, in which putters, getters and joiners wait, and who sleeps in msgrcv(2). */
#ifndef MPIPC_ROOMS_H
#define MPIPC_ROOMS_H

#include "family.h"

int mp_room_make(struct mp_family *f, uint32_t queue, struct mp_room *room);
uint32_t mp_room_enter(struct mp_room *room);
void mp_room_leave(struct mp_room *room, uint32_t epoch);
uint32_t mp_room_stay(struct mp_room *room, uint32_t epoch);
void mp_room_ring(struct mp_family *f, struct mp_room *room, bool all);
_Atomic uint32_t *mp_sleeper_enter(struct mp_family *f, uint32_t queue);
void mp_sleeper_leave(_Atomic uint32_t *place);
uint32_t mp_sleepers(struct mp_family *f, uint32_t queue);
int mp_room_wait(struct mp_family *f, struct mp_room *room, int64_t deadline_ns);
void mp_room_heal(struct mp_family *f, struct mp_room *room);

static inline uint32_t mp_room_count(struct mp_room *room) { return atomic_load(&room->word) & 0xffff; }

#endif

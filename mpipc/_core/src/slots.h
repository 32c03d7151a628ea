/* Slots: joining, reserving one for a child, who lives. */
#ifndef MPIPC_SLOTS_H
#define MPIPC_SLOTS_H

#include "family.h"

void mp_forget_what_threads_did(struct mp_family *f);
int mp_family_join(struct mp_family *f);
bool mp_family_is_removed(struct mp_family *f);
int mp_family_wake_reaper(struct mp_family *f);
int mp_slot_reserve(struct mp_family *f, enum mp_slot_state state);
void mp_leaving(struct mp_family *f);
bool mp_slot_lives(struct mp_family *f, int slot);
void mp_slot_count_out(struct mp_family *f);
int mp_slot_claim(struct mp_family *f, uint64_t *expected, int slot);
void mp_slot_unreserve(struct mp_family *f, int slot);
void mp_slot_void(struct mp_family *f, int slot);
int mp_hold_all_local(struct mp_family *f, int slot);

#endif

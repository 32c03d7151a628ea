/* The event. */
#ifndef MPIPC_EVENT_H
#define MPIPC_EVENT_H

#include "family.h"

int mp_event_init(struct mp_family *f, uint32_t index);
int mp_event_set(struct mp_family *f, uint32_t index);
int mp_event_clear(struct mp_family *f, uint32_t index);
int mp_event_is_set(struct mp_family *f, uint32_t index);

#endif

/* Founding a family, attaching to one. */
#ifndef MPIPC_SEGMENT_H
#define MPIPC_SEGMENT_H

#include "family.h"

int mp_family_create(struct mp_family *f, const char *program, mp_tick_function *tick);
/* Whose families may be attached: those that our user has founded; or those whose founder has let him in, too, which is for who has
 * been told of it by a member: anybody can give somebody a segment. */
enum mp_attach { MP_ATTACH_OWN, MP_ATTACH_TOLD };

int mp_family_attach(struct mp_family *f, int shmid, uint64_t nonce, enum mp_attach whose, mp_tick_function *tick);
void mp_family_detach(struct mp_family *f);

#endif

/* The reaper's life. */
#ifndef MPIPC_REAPER_H
#define MPIPC_REAPER_H

#include "base.h"

#define MP_NONCE_VARIABLE "MPIPC_NONCE"

struct mp_family;
typedef bool
mp_listen_function(struct mp_family *f); /* starts a thread that rings for who cannot; whether that has gone well */
int mp_reaper_main(int shmid, uint64_t nonce, mp_listen_function *listen);

#endif

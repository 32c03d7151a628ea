/* The reaper's life. */
#ifndef MPIPC_REAPER_H
#define MPIPC_REAPER_H

#include "base.h"

#define MP_NONCE_VARIABLE "MPIPC_NONCE"
int mp_reaper_main(int shmid, uint64_t nonce);

#endif

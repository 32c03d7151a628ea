/* The number of a thread. */
#ifndef MPIPC_THREADS_H
#define MPIPC_THREADS_H

#include "base.h"

extern __thread uint32_t mp_thread __attribute__((visibility("hidden"))); /* 0: not asked for yet */

uint32_t mp_ask_thread(void);

/* As gettid(2): no other thread of any process has it, and who looks from outside finds it in /proc. */
static inline uint32_t mp_this_thread(void) { return mp_thread != 0 ? mp_thread : mp_ask_thread(); }

#endif

/* What every file of the core needs: the outcomes, and clocks. */
#ifndef MPIPC_BASE_H
#define MPIPC_BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "outcome.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

static inline int64_t mp_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* As good as a tick of the kernel (1 to 10 ms), at a quarter of the price. */
static inline int64_t mp_coarse_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* In a loop that looks at a word until another processor changes it. */
static inline void mp_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Of what stands in shared memory nothing is believed beyond the end of a table. */
static inline uint32_t mp_at_most(uint32_t value, uint32_t most) { return value < most ? value : most; }

#endif

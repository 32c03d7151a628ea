/* futex(2). The word lies in a segment, so the kernel knows it by that, in whatever process it is, and whoever has the segment
 * attached may wake who sleeps there: no right is asked for. */
#include "futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef SYS_futex
#define FUTEX SYS_futex
typedef struct timespec time_of_futex;
#else /* 32 bits, and a kernel whose times have 64 only */
#define FUTEX SYS_futex_time64
typedef struct {
    int64_t tv_sec, tv_nsec;
} time_of_futex;
#endif

/* Until somebody wakes it, if the word has that value; at most so long (< 0: without a limit). Or for less: who has waited looks. */
void mp_futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t timeout_ns) {
    time_of_futex timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    syscall(FUTEX, word, FUTEX_WAIT, value, timeout_ns < 0 ? NULL : &timeout, NULL, 0);
}

/* All who sleep there, after a change of the word. */
void mp_futex_wake(_Atomic uint32_t *word) { syscall(FUTEX, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0); }

/* The number of a thread is asked for once: it takes a system call. A forked child's only thread has another number than the one
 * that forked, and must not go on with that: another of the child's may come to have it. */
#include "threads.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

__thread uint32_t mp_thread;

static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static bool forgets; /* in a forked child */

static void forget(void) { mp_thread = 0; }
static void prepare(void) { forgets = pthread_atfork(NULL, NULL, forget) == 0; }

uint32_t mp_ask_thread(void) {
    uint32_t thread = (uint32_t)syscall(SYS_gettid);
    pthread_once(&prepared, prepare);
    if (forgets)
        mp_thread = thread;
    return thread;
}

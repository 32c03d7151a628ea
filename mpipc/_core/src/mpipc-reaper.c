/* mpipc-reaper SHMID: cleans up after the processes of one family, and ends with it. See reaper.c. The family's nonce
 * stands in the environment, where no other user can read it.
 *
 * As a program of its own it can have a second thread, which a reaper that is a clone of somebody else's cannot. It sleeps where
 * a member can wake it that has no right on any semaphore (access.c), and rings for the first. */
#include "reaper.h"

#include "family.h"
#include "futex.h"
#include "slots.h"

#include <pthread.h>
#include <stdlib.h>

#define STACK_SIZE 65536
#define PAUSE_NS 1000000 /* until the first thread has looked */

static void *listen_for_guests(void *family) {
    struct mp_family *f = family;
    for (;;) {
        mp_futex_wait(&f->h->access_wanted, 0, -1);
        if (atomic_load(&f->h->access_wanted) != 0) {
            mp_family_wake_reaper(f);
            nanosleep(&(struct timespec){0, PAUSE_NS}, NULL);
        }
    }
    return NULL;
}

/* False: it cannot be; the first thread looks by itself then. */
static bool start_to_listen(struct mp_family *f) {
    pthread_attr_t attributes;
    pthread_t thread;
    if (pthread_attr_init(&attributes) != 0)
        return false;
    bool started = pthread_attr_setstacksize(&attributes, STACK_SIZE) == 0 &&
                   pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0 &&
                   pthread_create(&thread, &attributes, listen_for_guests, f) == 0;
    pthread_attr_destroy(&attributes);
    return started;
}

int main(int argc, char **argv) {
    const char *nonce = getenv(MP_NONCE_VARIABLE);
    if (argc != 2 || nonce == NULL)
        return 2;
    return mp_reaper_main(atoi(argv[1]), strtoull(nonce, NULL, 16), start_to_listen);
}

/* A file descriptor that tells whether a queue is empty. */
#ifndef MPIPC_WATCH_H
#define MPIPC_WATCH_H

#include "queue_view.h"

#include <semaphore.h>

/* A thread that makes `fd` readable when the queue is not empty. */
struct mp_watch {
    int fd;
    pthread_mutex_t lock; /* of the fd's state, which is always known together with the queue's */
    _Atomic int watching; /* 1: the fd is not readable, and the thread looks after it */
    _Atomic int stopped;
    sem_t wanted;
};

void mp_watch_run(struct mp_queue_view *v, struct mp_watch *w);
void mp_watch_look_again(struct mp_queue_view *v, struct mp_watch *w);
int mp_watch_start(struct mp_queue_view *v, struct mp_watch *w, int fd);
void mp_queue_await_hearing(struct mp_queue_view *v, int64_t deadline_ns);
void mp_watch_stop(struct mp_queue_view *v, struct mp_watch *w);

#endif

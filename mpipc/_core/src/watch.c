/* Watching: a file descriptor that tells whether the queue is empty.
 *
 * A queue that was shut down is as good as one that has a message: nobody need wait for it.
 *
 * The watcher is a waiter among the getters, but it takes nothing: having heard a ring it rings on, for one who does. While
 * its descriptor is readable it is in no room. Whoever of its own process takes the last message, or finds none, clears the
 * descriptor and sends the watcher back (mp_watch_look_again). */
#include "watch.h"

#include "queue.h"
#include "rooms.h"
#include "slots.h"

#include <pthread.h>
#include <sys/eventfd.h>

int mp_watch_start(struct mp_queue_view *v, struct mp_watch *w, int fd) {
    atomic_store(&v->b->watcher, (uint32_t)v->f->me);
    w->fd = fd;
    pthread_mutex_init(&w->lock, NULL);
    atomic_store(&w->watching, 1);
    atomic_store(&w->stopped, 0);
    return sem_init(&w->wanted, 0, 0) == 0 ? MP_OK : mp_error(errno);
}

/* Is there something to be received, be it that nothing ever will be? < 0: that cannot be told. */
static int64_t ready(struct mp_queue_view *v) { return mp_queue_is_shut(v) ? 1 : mp_queue_size(v); }

/* MP_OK, or the error that keeps it from waiting. */
static int watch_until_not_empty(struct mp_queue_view *v, struct mp_watch *w) {
    uint32_t epoch = mp_room_enter(&v->q->getters);
    int outcome = MP_OK;
    while (outcome == MP_OK && !atomic_load(&w->stopped) && ready(v) == 0) {
        outcome = mp_room_wait(v->f, &v->q->getters, -1);
        if (outcome == MP_TICK || outcome == MP_INTERRUPTED)
            outcome = MP_OK;
        epoch = mp_room_stay(&v->q->getters, epoch);
    }
    mp_room_leave(&v->q->getters, epoch);
    mp_room_ring(v->f, &v->q->getters, false);
    return outcome;
}

/* The thread. Returns when it was stopped, or when the queue or its bell is gone: then the descriptor stays readable. */
void mp_watch_run(struct mp_queue_view *v, struct mp_watch *w) {
    while (!atomic_load(&w->stopped)) {
        bool over = watch_until_not_empty(v, w) != MP_OK;
        pthread_mutex_lock(&w->lock);
        int64_t size = ready(v);
        over |= size < 0;
        if (size != 0 || over) { /* else it was taken meanwhile */
            eventfd_write(w->fd, 1);
            atomic_store(&w->watching, 0);
            uint32_t me = (uint32_t)v->f->me; /* now that it tells: see mp_queue_await_hearing() */
            atomic_compare_exchange_strong(&v->b->watcher, &me, 0);
        }
        pthread_mutex_unlock(&w->lock);
        if (over)
            return;
        while (!atomic_load(&w->stopped) && atomic_load(&w->watching) != 1)
            sem_wait(&w->wanted);
    }
}

/* After a message was taken, or none was found. When this returns, an empty queue's descriptor is not readable: a lone
 * consumer that waits for the descriptor and then receives without a timeout must not be called for nothing. */
void mp_watch_look_again(struct mp_queue_view *v, struct mp_watch *w) {
    eventfd_t value;
    pthread_mutex_lock(&w->lock);
    if (atomic_load(&w->watching) == 0 && ready(v) == 0) {
        atomic_store(&v->b->watcher, (uint32_t)v->f->me);
        eventfd_read(w->fd, &value);
        atomic_store(&w->watching, 1);
        sem_post(&w->wanted);
    }
    pthread_mutex_unlock(&w->lock);
}

/* Before this process ends, which others learn of by other ways than the queue: until who watches for a message knows that there
 * is one, if there is. (The count of a room will not do: it begins anew with each death.) Who is told of the end by one
 * descriptor and of the message by another is to see them in this order: concurrent.futures takes a worker for killed whose last
 * word it has not heard. A moment; who is stopped is not waited for long. */
#define HEARING_PAUSE_NS 200000

void mp_queue_await_hearing(struct mp_queue_view *v, int64_t deadline_ns) {
    uint32_t watcher;
    while ((watcher = atomic_load(&v->b->watcher)) != 0 && watcher != v->f->me && mp_queue_size(v) > 0 &&
           mp_slot_lives(v->f, (int)watcher - 1) && mp_now_ns() < deadline_ns)
        nanosleep(&(struct timespec){0, HEARING_PAUSE_NS}, NULL);
}

void mp_watch_stop(struct mp_queue_view *v, struct mp_watch *w) {
    atomic_store(&w->stopped, 1);
    sem_post(&w->wanted);
    mp_room_ring(v->f, &v->q->getters, true);
}

/* Rooms: where those wait who cannot wait in msgrcv(2) or msgsnd(2), because they have a deadline or wait for a number.
 *
 * A waiter enters, looks whether what it waits for is there, waits, and looks again after every wake. Whoever makes it be
 * there rings, if the room is not empty. So either the waiter's look sees it, or the ringer sees the waiter.
 *
 * The count may be too high, never too low:
 *   a waiter that is killed leaves its 1 behind, and the ring it may have heard is lost. Recovery starts a new epoch with a
 *     count of 0 and rings for as many as were counted in the old one: the living among them enter the new one.
 *   such a waiter that waits again before it has noticed is not counted for a while: hence it looks again at every tick.
 *
 * Rings do not pile up: nobody rings who finds as many unheard rings as there are waiters, for each of those will look after
 * it has heard its ring. */
#include "queue.h"

#include <sys/eventfd.h>

#define COUNT(word) ((word) & 0xffffu)
#define EPOCH(word) ((word) >> 16)

/* Makes the bell, while the queue is being made. */
int mp_room_make(struct mp_family *f, uint32_t queue, struct mp_room *room) {
    int64_t index = mp_block_new(f, MP_KIND_DATA);
    if (index < 0)
        return mp_error(errno);
    struct mp_block *b = mp_block_at(f, (uint32_t)index);
    atomic_store(&room->bell, (uint32_t)index + 1); /* first: what is READY and pinned must be found by somebody */
    b->extra[2] = mp_queue_name(f, queue);
    atomic_store(&b->pinned, 1);
    mp_block_unhold(f, (uint32_t)index, f->slot);
    mp_bell_set(f, (uint32_t)index, 0); /* the rings for another object's waiters */
    atomic_store(&b->word, mp_block_word(MP_BLOCK_READY, -1, mp_block_serial(atomic_load(&b->word))));
    return MP_OK;
}

/* Returns the epoch, which the other functions want. */
uint32_t mp_room_enter(struct mp_room *room) {
    uint32_t word = atomic_load(&room->word);
    while (!atomic_compare_exchange_weak(&room->word, &word, COUNT(word) < 0xffff ? word + 1 : word))
        ;
    return EPOCH(word);
}

void mp_room_leave(struct mp_room *room, uint32_t epoch) {
    uint32_t word = atomic_load(&room->word);
    while (EPOCH(word) == epoch && COUNT(word) != 0 && !atomic_compare_exchange_weak(&room->word, &word, word - 1))
        ;
}

/* After a wake: enters the new epoch if there is one. */
uint32_t mp_room_stay(struct mp_room *room, uint32_t epoch) {
    return EPOCH(atomic_load(&room->word)) == epoch ? epoch : mp_room_enter(room);
}

/* 0: it has none, or it cannot be. A room has the bell of a block, never that of a cell. */
static uint32_t bell_of(struct mp_room *room) {
    uint32_t bell = atomic_load(&room->bell);
    return bell <= MP_BLOCKS ? bell : 0;
}

void mp_room_ring(struct mp_family *f, struct mp_room *room, bool all) {
    uint32_t waiters = mp_room_count(room), bell = bell_of(room);
    if (waiters == 0 || bell == 0)
        return;
    int unheard = mp_bell_get(f, bell - 1, GETVAL);
    if (unheard < 0 || (uint32_t)unheard >= waiters)
        return;
    mp_bell_ring(f, bell - 1, all ? (int)(waiters - (uint32_t)unheard) : 1);
}

/* As mp_bell_await(). Nobody may wait in a room that has no bell: nobody would be heard there. */
int mp_room_wait(struct mp_family *f, struct mp_room *room, int64_t deadline_ns) {
    uint32_t bell = bell_of(room);
    return bell == 0 ? MP_CORRUPT : mp_bell_await(f, bell - 1, -1, deadline_ns);
}

void mp_room_heal(struct mp_family *f, struct mp_room *room) {
    uint32_t word = atomic_load(&room->word), bell = bell_of(room);
    if (bell == 0)
        return;
    while (COUNT(word) != 0)
        if (atomic_compare_exchange_weak(&room->word, &word, (EPOCH(word) + 1) << 16)) {
            int unheard = mp_bell_get(f, bell - 1, GETVAL);
            if (unheard >= 0 && (uint32_t)unheard < COUNT(word))
                mp_bell_ring(f, bell - 1, (int)(COUNT(word) - (uint32_t)unheard));
            return;
        }
}

/* ---- sleepers: those in msgrcv(2), whom nobody rings, and whom the kernel does not count -----------------------------------
 *
 * They are counted for those who look, in the slot of their process: with it the count of a killed one goes. A process that
 * sleeps at more queues at a time than its slot has places is counted for the first ones only. */

#define SLEEPER_ONE (1u << 18)
_Static_assert(MP_BLOCKS == SLEEPER_ONE, "a block's index and the number of threads fit a word");

static bool has_place(uint32_t word, uint32_t queue) {
    return word < SLEEPER_ONE || (word % SLEEPER_ONE == queue && word <= UINT32_MAX - SLEEPER_ONE);
}

_Atomic uint32_t *mp_sleeper_enter(struct mp_family *f, uint32_t queue) {
    if (f->slot < 0)
        return NULL; /* a child that was forked in the middle of its parent's call, and has not joined */
    struct mp_slot *s = &f->seg->slots[f->slot];
    for (uint32_t i = 0; i < MP_SLEEPERS; i++) {
        uint32_t word = atomic_load(&s->sleepers[i]);
        while (has_place(word, queue))
            if (atomic_compare_exchange_weak(&s->sleepers[i], &word, (word < SLEEPER_ONE ? queue : word) + SLEEPER_ONE))
                return &s->sleepers[i];
    }
    return NULL;
}

void mp_sleeper_leave(_Atomic uint32_t *place) {
    if (place != NULL)
        atomic_fetch_sub(place, SLEEPER_ONE);
}

uint32_t mp_sleepers(struct mp_family *f, uint32_t queue) {
    uint32_t n = 0, high = mp_slot_high(f);
    for (uint32_t i = 0; i < high; i++) {
        struct mp_slot *s = &f->seg->slots[i];
        if (mp_slot_state_of(atomic_load(&s->word)) != MP_SLOT_ALIVE)
            continue;
        for (uint32_t j = 0; j < MP_SLEEPERS; j++) {
            uint32_t word = atomic_load(&s->sleepers[j]);
            if (word % SLEEPER_ONE == queue)
                n += word / SLEEPER_ONE;
        }
    }
    return n;
}

/* ---- watching: a file descriptor that tells whether the queue is empty ----------------------------------------------------
 *
 * The watcher is a waiter among the getters, but it takes nothing: having heard a ring it rings on, for one who does. While
 * its descriptor is readable it is in no room. Whoever of its own process takes the last message, or finds none, clears the
 * descriptor and sends the watcher back (mp_watch_look_again). */

int mp_watch_start(struct mp_queue_view *v, struct mp_watch *w, int fd) {
    atomic_store(&v->b->watcher, (uint32_t)v->f->me);
    w->fd = fd;
    pthread_mutex_init(&w->lock, NULL);
    atomic_store(&w->watching, 1);
    atomic_store(&w->stopped, 0);
    return sem_init(&w->wanted, 0, 0) == 0 ? MP_OK : mp_error(errno);
}

/* MP_OK, or the error that keeps it from waiting. */
static int watch_until_not_empty(struct mp_queue_view *v, struct mp_watch *w) {
    uint32_t epoch = mp_room_enter(&v->q->getters);
    int outcome = MP_OK;
    while (outcome == MP_OK && !atomic_load(&w->stopped) && mp_queue_size(v) == 0) {
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
        int64_t size = mp_queue_size(v);
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
    if (atomic_load(&w->watching) == 0 && mp_queue_size(v) == 0) {
        atomic_store(&v->b->watcher, (uint32_t)v->f->me);
        eventfd_read(w->fd, &value);
        atomic_store(&w->watching, 1);
        sem_post(&w->wanted);
    }
    pthread_mutex_unlock(&w->lock);
}

/* Before this process ends, which others learn of by other ways than the queue: until who watches for a message knows that there
 * is one, if there is. (The count of a room will not do: it begins anew with each death.) Who is told of the end by one descriptor and of the message by another is to see them in this order:
 * concurrent.futures takes a worker for killed whose last word it has not heard. A moment; who is stopped is not waited for long. */
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

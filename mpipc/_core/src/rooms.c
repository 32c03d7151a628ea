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
#include "rooms.h"

#include "bells.h"
#include "blocks.h"
#include "holders.h"

#define COUNT(word) ((word) & 0xffffu)
#define EPOCH(word) ((word) >> 16)

/* Makes the bell, while the queue is being made. */
int mp_room_make(struct mp_family *f, uint32_t queue, struct mp_room *room) {
    int64_t index = mp_block_new(f, MP_KIND_DATA);
    if (index < 0)
        return mp_error(errno);
    atomic_store(&room->bell, (uint32_t)index + 1); /* first: what is READY and pinned must be found by somebody */
    mp_bell_set(f, (uint32_t)index, 0); /* the rings for another object's waiters */
    mp_block_give(f, (uint32_t)index, queue);
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

/* Broadcasts: one log of messages, and for each subscription the number of the message that it gets next.
 *
 * Messages are numbered. A putter has the lock, writes its message behind the last one, and publishes it by one compare-and-swap of
 * `end`: so it is there for all subscriptions or for none, and all see the same order. Whoever gets takes no lock: it copies the
 * message with the number `next`, makes sure that nobody has written over it meanwhile, and has it if its compare-and-swap of `next`
 * succeeds. Of several that share a subscription, one has it.
 *
 *   put  P1. takes the lock
 *        P2. looks at all living subscriptions for the smallest `next`. If the message does not fit behind what is from there on:
 *            without DROP it says so (MP_FULL, the lock is released); with DROP it gives up the oldest ones, as many as it has to
 *        P3. first = the oldest that is kept
 *        P4. writes the bytes, and the entry
 *        P5. end + 1, if the broadcast was not shut down meanwhile
 *        P6. releases the lock, and rings for who waits for a message
 *   get  G1. reads `next`; nothing is there if that is the end
 *        G2. next < first: it was too slow. `next` becomes `first`, and `lost` counts the difference
 *        G3. reads entry and bytes, and then `first`: it is beyond `next`: again from G1
 *        G4. next + 1, by compare-and-swap; failed: somebody who shares the subscription has got the message: again from G1
 *        G5. without DROP: next was `first`: rings for who waits for room
 *
 * Invariants:
 *   I1. the messages first <= n < end lie whole in the log; nobody writes to them before `first` is beyond them;
 *   I2. without DROP, first <= next of each living subscription: `first` is raised only to what P2 has found;
 *   I3. only who has the lock changes `first`, `end` (but for its flags), entries and bytes; `next` only grows;
 *   I4. a subscription is one of the broadcast's from the moment that it stands in a place. Its `next` is set once more after that: so
 *       whoever puts a message from then on has seen it at P2, or the message has a number that it gets and that is kept;
 *   I5. who waits for a message or for room enters a cell, writes `getters` or `putters`, and looks then. Who changes what it waits
 *       for does that first, and reads them then, so one of them sees the other; P3 and G4 are the same with `first` and `next`.
 *
 * Where a process can die:
 *   putting, before P5: there is no message; recovery frees the lock. There is nothing to repair: bytes and entry beyond the end
 *     count for nothing. `first` may be higher than it had to be: with DROP, messages were lost for nothing;
 *   between P5 and the rings: recovery rings in all cells in which somebody sleeps (mp_cell_heal);
 *   getting, before G4: nothing has happened; between the two stores of G2: `lost` is too low; after G4: the message is gone with it;
 *   as the last holder of a subscription: recovery takes that down, so P2 does not find it any more, and rings for who waits for room.
 *
 * Whoever stands still while it gets holds up nobody but as its subscription does; while it puts, others who put. */
#include "broadcast.h"

#include "access.h"
#include "banks.h"
#include "blocks.h"
#include "cells.h"
#include "lock.h"
#include "objects.h"

#include <string.h>
#include <sys/shm.h>

#define LONGEST (1ull << 46)

static uint64_t number_of(uint64_t end) { return end >> MP_END_SHIFT; }

/* ---- what it consists of ---------------------------------------------------------------------------------------------------- */

/* What of it a message takes is a multiple of 8. */
static uint64_t rounded(uint64_t bytes) { return (bytes + 7) & ~7ull; }
uint64_t mp_broadcast_round(uint64_t maxbytes) { return maxbytes <= LONGEST ? rounded(maxbytes) : LONGEST; }

/* Of the segment. There may be nonsense in shared memory: UINT64_MAX, for more than a segment can have. */
uint64_t mp_broadcast_size(uint64_t maxsize, uint64_t maxbytes) {
    if (maxsize < 1 || maxsize > LONGEST / sizeof(struct mp_entry) || maxbytes < 8 || maxbytes > LONGEST)
        return UINT64_MAX;
    return MP_SUBSCRIPTIONS * sizeof(uint64_t) + (maxsize + 1) * sizeof(struct mp_entry) + maxbytes;
}

/* Of a block in MAKING, which is zero, and so is its segment. maxbytes is rounded. */
void mp_broadcast_init(struct mp_block *b, uint64_t maxsize, uint64_t maxbytes, uint32_t flags) {
    b->more.broadcast.maxsize = maxsize;
    b->more.broadcast.maxbytes = maxbytes;
    b->more.broadcast.flags = flags;
}

/* MP_OK; or what mp_block_shmat() says; MP_CORRUPT: the segment is smaller than it should be. */
int mp_broadcast_open(struct mp_broadcast_view *v, struct mp_family *f, uint32_t index) {
    uint64_t size;
    memset(v, 0, sizeof *v);
    v->f = f;
    v->index = index;
    v->b = mp_block_at(f, index);
    v->c = mp_broadcast_of(v->b);
    v->maxsize = v->b->more.broadcast.maxsize;
    v->maxbytes = v->b->more.broadcast.maxbytes;
    v->drops = v->b->more.broadcast.flags & MP_BROADCAST_DROP;
    v->segment = mp_block_shmat(f, index, &size);
    if (v->segment == NULL)
        return errno;
    if (mp_broadcast_size(v->maxsize, v->maxbytes) > size) {
        mp_broadcast_close(v);
        return MP_CORRUPT;
    }
    v->subscriptions = v->segment;
    v->entries = (struct mp_entry *)(v->subscriptions + MP_SUBSCRIPTIONS);
    v->bytes = (unsigned char *)(v->entries + v->maxsize + 1);
    return MP_OK;
}

void mp_broadcast_close(struct mp_broadcast_view *v) {
    if (v->segment != NULL)
        shmdt(v->segment);
    v->segment = NULL;
}

/* One more than are kept: so that of the last message stays as it is while the next one's is written. */
static struct mp_entry *entry_of(struct mp_broadcast_view *v, uint64_t number) {
    return &v->entries[number % (v->maxsize + 1)];
}

/* ---- who waits ------------------------------------------------------------------------------------------------------------------ */

/* Where a thread waits, before it looks. -1 with errno. */
int64_t mp_broadcast_cell(struct mp_broadcast_view *v, int64_t cell, uint32_t place) {
    cell = mp_cell_again(v->f, v->index, cell, place);
    atomic_store(place == MP_PLACE_GET ? &v->c->getters : &v->c->putters, 1);
    return cell;
}

/* How many threads do. */
uint32_t mp_broadcast_waiting(struct mp_broadcast_view *v, uint32_t place) {
    uint32_t high = mp_cell_high(v->f), waiting = 0;
    for (uint32_t i = 0; i < high; i++) {
        struct mp_cell *cell = &v->f->seg->cells[i];
        uint64_t word = atomic_load(&cell->word);
        waiting +=
            mp_cell_state(word) == MP_CELL_WAITING && mp_cell_block(word) == v->index && atomic_load(&cell->index) == place;
    }
    return waiting;
}

static void wake(struct mp_family *f, uint32_t index, uint32_t place) {
    struct mp_broadcast *c = mp_broadcast_of(mp_block_at(f, index));
    _Atomic uint32_t *asleep = place == MP_PLACE_GET ? &c->getters : &c->putters;
    if (atomic_load(asleep) != 0 && atomic_exchange(asleep, 0) != 0)
        mp_cells_release(f, index, place);
}

/* ---- subscriptions ------------------------------------------------------------------------------------------------------------- */

static uint64_t name_of(struct mp_family *f, uint32_t index) {
    return (uint64_t)(index + 1) | (uint64_t)mp_block_serial(atomic_load(&mp_block_at(f, index)->word)) << 32;
}

/* The block that a name is of, if it is still there and of this kind; -1 if not. */
static int64_t named(struct mp_family *f, uint64_t name, uint32_t kind) {
    uint32_t index = (uint32_t)name - 1;
    if (index >= MP_BLOCKS)
        return -1;
    struct mp_block *b = mp_block_at(f, index);
    uint64_t word = atomic_load(&b->word);
    return mp_block_is_live(word) && mp_block_serial(word) == name >> 32 && b->kind == kind ? (int64_t)index : -1;
}

/* The block of the subscription in a place, of which `high` are used; -1: there is none. What stands there for one that
 * is over goes. */
int64_t mp_subscription_at(struct mp_broadcast_view *v, uint32_t place) {
    uint64_t name = atomic_load(&v->subscriptions[place]);
    if (name == 0)
        return -1;
    int64_t index = named(v->f, name, MP_KIND_SUBSCRIPTION);
    if (index < 0 && !mp_bank_is_hidden(v->f, ((uint32_t)name - 1) % MP_BLOCKS / MP_BANK))
        atomic_compare_exchange_strong(&v->subscriptions[place], &name, 0);
    return index;
}

/* Of a block that is READY and nobody else's; from now on it gets what is put. MP_TABLE_FULL: there is no place for it; MP_NO_MEMORY:
 * this process cannot see all of the others (banks.c). */
int mp_subscribe(struct mp_broadcast_view *v, uint32_t index) {
    if (mp_banks_known(v->f) != MP_OK)
        return MP_NO_MEMORY;
    struct mp_subscription *s = mp_subscription_of(mp_block_at(v->f, index));
    uint64_t name = name_of(v->f, index);
    s->broadcast = name_of(v->f, v->index);
    atomic_store(&s->next, number_of(atomic_load(&v->c->end)));
    for (uint32_t i = 0; i < MP_SUBSCRIPTIONS; i++) {
        uint64_t vacant = 0;
        if (mp_subscription_at(v, i) >= 0)
            continue;
        uint32_t high = atomic_load(&v->c->high);
        while (high <= i && !atomic_compare_exchange_weak(&v->c->high, &high, i + 1))
            ;
        if (!atomic_compare_exchange_strong(&v->subscriptions[i], &vacant, name))
            continue;
        atomic_store(&s->next, number_of(atomic_load(&v->c->end))); /* I4 */
        wake(v->f, v->index, MP_PLACE_PUT); /* who has looked meanwhile has seen the other one */
        return MP_OK;
    }
    return MP_TABLE_FULL;
}

/* Of all subscriptions the smallest `next`; `number`, the end, if there is none, and then `any` is false. */
static uint64_t oldest_wanted(struct mp_broadcast_view *v, uint64_t number, bool *any) {
    uint32_t high = mp_at_most(atomic_load(&v->c->high), MP_SUBSCRIPTIONS);
    uint64_t oldest = number, first = atomic_load(&v->c->first);
    *any = false;
    for (uint32_t i = 0; i < high; i++) {
        int64_t index = mp_subscription_at(v, i);
        if (index < 0)
            continue;
        uint64_t next = atomic_load(&mp_subscription_of(mp_block_at(v->f, (uint32_t)index))->next);
        if (mp_subscription_at(v, i) != index)
            continue; /* it has ended, and what was read may be another block's */
        *any = true;
        if (next < oldest)
            oldest = next > first ? next : first;
    }
    return oldest;
}

/* Its last holder has gone, or is dead. */
void mp_subscription_take_down(struct mp_family *f, uint32_t index) {
    int64_t broadcast = named(f, mp_subscription_of(mp_block_at(f, index))->broadcast, MP_KIND_BROADCAST);
    if (broadcast >= 0)
        wake(f, (uint32_t)broadcast, MP_PLACE_PUT);
}

/* ---- putting ------------------------------------------------------------------------------------------------------------------- */

/* As mp_lock_wait(). MP_BUSY: the deadline is 0, and somebody has it. */
static int lock(struct mp_broadcast_view *v, int64_t deadline_ns) {
    for (int spins = 0; !mp_lock_try(v->f, v->b, 0); spins++) {
        if (spins >= 64)
            return deadline_ns == 0 ? MP_BUSY : mp_lock_wait(v->f, v->index, deadline_ns);
        mp_pause();
    }
    return MP_OK;
}

/* Finds a place for it if the messages from `kept` on stay; with DROP it raises `kept` until there is one. A message lies in one
 * piece: what would reach over the end of the bytes begins at their start. */
static bool fits(struct mp_broadcast_view *v, struct mp_letter *letter, uint64_t *kept) {
    uint64_t number = letter->number, start = 0, size = rounded(letter->length);
    if (number > 0) {
        struct mp_entry *last = entry_of(v, number - 1);
        start = atomic_load(&last->start) + rounded(atomic_load(&last->length) >> 1);
    }
    uint64_t offset = start % v->maxbytes;
    if (offset + size > v->maxbytes) {
        start += v->maxbytes - offset;
        offset = 0;
    }
    if (v->drops && number - *kept >= v->maxsize)
        *kept = number - v->maxsize + 1;
    while (*kept != number &&
           (number - *kept >= v->maxsize || start + size - atomic_load(&entry_of(v, *kept)->start) > v->maxbytes)) {
        if (!v->drops)
            return false;
        ++*kept;
    }
    letter->start = start;
    letter->data = v->bytes + offset;
    return true;
}

/* P2 and P3. MP_OK, MP_FULL; MP_NONE_LEFT: there is no subscription. */
static int find_room(struct mp_broadcast_view *v, struct mp_letter *letter) {
    for (;;) {
        bool any, fitting;
        uint64_t oldest = oldest_wanted(v, letter->number, &any), kept = oldest;
        fitting = any && fits(v, letter, &kept);
        atomic_store(&v->c->first, kept);
        atomic_thread_fence(memory_order_release); /* for G3: it comes before what is written next */
        if (fitting || !any)
            return any ? MP_OK : MP_NONE_LEFT;
        if (oldest_wanted(v, letter->number, &any) == oldest) /* I5 */
            return MP_FULL;
    }
}

/* P1 to P3, for a message of letter->length bytes, which is at least 1. MP_OK: the caller has the lock, is to write the message to
 * letter->data, and to publish or cancel it. MP_TOO_LARGE; MP_SHUT_DOWN; MP_FULL; MP_NONE_LEFT: there is no subscription, and
 * nothing else to do; MP_BUSY: somebody has the lock, and the deadline is 0; or what mp_lock_wait()
 * and mp_access_still() say. */
int mp_broadcast_begin(struct mp_broadcast_view *v, struct mp_letter *letter, int64_t deadline_ns) {
    if (letter->length > v->maxbytes)
        return MP_TOO_LARGE;
    int outcome = mp_access_still(v->f); /* to ring, later */
    if (outcome == MP_OK)
        outcome = lock(v, deadline_ns);
    if (outcome != MP_OK)
        return outcome;
    uint64_t end = atomic_load(&v->c->end);
    letter->number = number_of(end);
    outcome = end & MP_END_SHUT ? MP_SHUT_DOWN : mp_banks_known(v->f) != MP_OK ? MP_NO_MEMORY : find_room(v, letter);
    if (outcome != MP_OK)
        mp_broadcast_cancel(v);
    return outcome;
}

void mp_broadcast_cancel(struct mp_broadcast_view *v) { mp_lock_release(v->f, v->index); }

/* P4 to P6. MP_OK; MP_SHUT_DOWN: it was, meanwhile, and nothing was put. */
int mp_broadcast_publish(struct mp_broadcast_view *v, struct mp_letter *letter) {
    struct mp_entry *e = entry_of(v, letter->number);
    atomic_store(&e->start, letter->start);
    atomic_store(&e->length, letter->length << 1 | letter->kind);
    uint64_t end = letter->number << MP_END_SHIFT;
    bool published = atomic_compare_exchange_strong(&v->c->end, &end, (letter->number + 1) << MP_END_SHIFT);
    mp_broadcast_cancel(v);
    if (!published)
        return MP_SHUT_DOWN;
    wake(v->f, v->index, MP_PLACE_GET);
    return MP_OK;
}

/* Nothing is put any more; with `immediate`, nothing is got either. */
void mp_broadcast_shutdown(struct mp_broadcast_view *v, bool immediate) {
    atomic_fetch_or(&v->c->end, immediate ? MP_END_SHUT | MP_END_DROP : MP_END_SHUT);
    wake(v->f, v->index, MP_PLACE_GET);
    wake(v->f, v->index, MP_PLACE_PUT);
}

/* How many messages are kept for somebody, and the bytes from the first to the last of them. */
uint64_t mp_broadcast_kept(struct mp_broadcast_view *v, uint64_t *bytes) {
    uint64_t end = atomic_load(&v->c->end), number = number_of(end);
    bool any;
    uint64_t oldest = end & MP_END_DROP ? number : oldest_wanted(v, number, &any);
    *bytes = 0;
    if (oldest == number)
        return 0;
    struct mp_entry *last = entry_of(v, number - 1);
    *bytes = atomic_load(&last->start) + rounded(atomic_load(&last->length) >> 1) - atomic_load(&entry_of(v, oldest)->start);
    return number - oldest;
}

/* ---- getting ------------------------------------------------------------------------------------------------------------------- */

/* G1 to G3, but for the bytes, which the caller copies. MP_OK; MP_EMPTY; MP_SHUT_DOWN: nothing will come; MP_CORRUPT: there is one
 * that cannot be, to be taken and not to be looked at. */
int mp_subscription_next(struct mp_broadcast_view *v, struct mp_subscription *s, struct mp_letter *letter) {
    for (;;) {
        uint64_t number = atomic_load(&s->next), end = atomic_load(&v->c->end), first = atomic_load(&v->c->first);
        if (end & MP_END_DROP)
            return MP_SHUT_DOWN;
        if (number >= number_of(end))
            return end & MP_END_SHUT ? MP_SHUT_DOWN : MP_EMPTY;
        if (number < first) {
            if (atomic_compare_exchange_strong(&s->next, &number, first))
                atomic_fetch_add(&s->lost, first - number);
            continue;
        }
        struct mp_entry *e = entry_of(v, number);
        uint64_t start = atomic_load(&e->start), length = atomic_load(&e->length), offset = start % v->maxbytes;
        if (atomic_load(&v->c->first) > number)
            continue;
        *letter = (struct mp_letter){number, start, length >> 1, length & 1, v->bytes + offset};
        return letter->length < 1 || letter->length > v->maxbytes - offset ? MP_CORRUPT : MP_OK;
    }
}

/* The rest of G3, when the bytes have been copied, to G5. false: it is not ours, look for the next one. */
bool mp_subscription_take(struct mp_broadcast_view *v, struct mp_subscription *s, const struct mp_letter *letter) {
    uint64_t number = letter->number;
    atomic_thread_fence(memory_order_acquire); /* the copy comes before what is read next */
    if (atomic_load(&v->c->first) > number || !atomic_compare_exchange_strong(&s->next, &number, number + 1))
        return false;
    if (!v->drops && atomic_load(&v->c->first) == number)
        wake(v->f, v->index, MP_PLACE_PUT);
    return true;
}

/* How many messages are there for it. */
uint64_t mp_subscription_behind(struct mp_broadcast_view *v, struct mp_subscription *s) {
    uint64_t next = atomic_load(&s->next), first = atomic_load(&v->c->first), end = atomic_load(&v->c->end);
    uint64_t from = next > first ? next : first;
    return end & MP_END_DROP || from > number_of(end) ? 0 : number_of(end) - from;
}

/* Those are counted, too, that it has not noticed yet. */
uint64_t mp_subscription_lost(struct mp_broadcast_view *v, struct mp_subscription *s) {
    for (;;) {
        uint64_t lost = atomic_load(&s->lost), next = atomic_load(&s->next), first = atomic_load(&v->c->first);
        if (atomic_load(&s->next) == next && atomic_load(&s->lost) == lost)
            return next < first ? lost + first - next : lost;
    }
}

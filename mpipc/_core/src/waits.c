/* Wait records: one for each thread that sleeps, written on the way to sleep, for those who look. Nothing depends on them: a
 * waiter that finds no place for its record sleeps without one.
 *
 * A record is its thread's from the compare-and-swap of its word from 0 until the same thread stores 0 again. In between the word
 * says first only whose it is (MP_WAIT_WRITING), and of which kind when the rest is written. So who reads the word, the rest, and
 * both a second time, and finds no difference, has read one wait: the next one of the same thread at the same place began later.
 *
 * Where a thread can die: anywhere. Recovery sets the words of dead slots to 0 before it frees the slots (rule R3). No other
 * thread writes a word that is not 0.
 *
 * A wait goes on when a sleep of it ends with a tick or a signal handler, so the next sleep of the same thread at the same place has
 * the same beginning, unless somebody says that the wait is over.
 *
 * The table is used from its beginning, and up to `wait_high`, which is doubled when a thread finds no place. */
#include "waits.h"

#include "threads.h"

#define PROBES 8

static __thread struct {
    enum mp_wait_kind kind; /* MP_WAIT_NONE: of none */
    uint32_t where;
    int64_t since_ns;
} goes_on; /* the wait of this thread, between two sleeps */

static struct mp_wait *at(struct mp_family *f, uint32_t index) { return &f->seg->waits[index]; }

static struct mp_wait *claim(struct mp_family *f, uint64_t word, uint32_t start, uint32_t high) {
    for (uint32_t i = 0; i < PROBES; i++) {
        struct mp_wait *w = at(f, (start + i) % high);
        uint64_t none = 0;
        if (atomic_load_explicit(&w->word, memory_order_relaxed) == 0 && atomic_compare_exchange_strong(&w->word, &none, word))
            return w;
    }
    return NULL;
}

/* NULL: there is no place, or this process has not joined (a child that was forked in the middle of its parent's call). */
struct mp_wait *mp_wait_enter(struct mp_family *f, enum mp_wait_kind kind, uint32_t where) {
    uint32_t tid = mp_this_thread();
    uint64_t word = mp_wait_word(MP_WAIT_WRITING, f->slot, tid);
    struct mp_wait *w = NULL;
    if (f->slot < 0)
        return NULL;
    for (uint32_t high = mp_wait_high(f); (w = claim(f, word, tid, high)) == NULL && high < MP_WAITS; high *= 2)
        atomic_compare_exchange_strong(&f->h->wait_high, &(uint32_t){high}, high * 2);
    if (w == NULL)
        return NULL;
    if (goes_on.kind != kind || goes_on.where != where) {
        goes_on.where = where;
        goes_on.since_ns = mp_now_ns();
    }
    goes_on.kind = MP_WAIT_NONE;
    atomic_store_explicit(&w->since_ns, goes_on.since_ns, memory_order_relaxed);
    atomic_store_explicit(&w->where, where, memory_order_relaxed);
    atomic_store_explicit(&w->word, mp_wait_word(kind, f->slot, tid), memory_order_release);
    return w;
}

/* `more`: unless mp_wait_over() is called, the next sleep there belongs to the same wait. */
void mp_wait_leave(struct mp_wait *w, bool more) {
    if (w == NULL)
        return;
    if (more)
        goes_on.kind = mp_wait_kind_of(atomic_load_explicit(&w->word, memory_order_relaxed));
    atomic_store_explicit(&w->word, 0, memory_order_release);
}

void mp_wait_over(void) { goes_on.kind = MP_WAIT_NONE; }

/* false: nobody waits there, or it changes just now. */
bool mp_wait_read(struct mp_family *f, uint32_t index, struct mp_waiting *waiting) {
    struct mp_wait *w = at(f, index);
    uint64_t word = atomic_load_explicit(&w->word, memory_order_acquire);
    int64_t since = atomic_load_explicit(&w->since_ns, memory_order_relaxed);
    *waiting = (struct mp_waiting){mp_wait_kind_of(word), mp_wait_slot(word), mp_wait_tid(word),
                                   atomic_load_explicit(&w->where, memory_order_relaxed), since};
    atomic_thread_fence(memory_order_acquire);
    return (waiting->kind == MP_WAIT_RING || waiting->kind == MP_WAIT_ZERO || waiting->kind == MP_WAIT_MESSAGE) &&
           waiting->slot >= 0 && waiting->slot < (int)MP_SLOTS && /* anybody of the family may have written it */
           atomic_load_explicit(&w->since_ns, memory_order_relaxed) == since &&
           atomic_load_explicit(&w->word, memory_order_relaxed) == word;
}

uint32_t mp_waits_count(struct mp_family *f, enum mp_wait_kind kind, uint32_t where) {
    uint32_t n = 0, high = mp_wait_high(f);
    struct mp_waiting waiting;
    for (uint32_t i = 0; i < high; i++)
        n += mp_wait_read(f, i, &waiting) && waiting.kind == kind && waiting.where == where;
    return n;
}

void mp_wait_recover(struct mp_family *f, uint32_t index, const uint64_t *dead) {
    if (mp_slots_have(dead, mp_wait_slot(atomic_load(&at(f, index)->word))))
        atomic_store(&at(f, index)->word, 0);
}

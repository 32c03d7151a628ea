/* The counting semaphore: a value changed by compare-and-swap, and for each process a record of the units it holds.
 *
 * Value and record are two words, and a process may die between them. So each change is made detectable:
 *
 *   1. record.word = {units, operation, sequence}                announces it;
 *   2. semaphore.word = {value', record, sequence}               does it, and says who did it;
 *   3. record.word = {units', no operation, sequence}            counts it, and ends the announcement.
 *
 * Before anybody overwrites semaphore.word it writes the sequence found there into `done` of the record found there, so the
 * evidence of step 2 is never lost. Death before 1 and after 3 leaves nothing to do; before 2, semaphore.word does not show
 * the announced sequence and `done` is behind it: the operation did not happen; after 2 one of the two shows it: it did.
 *
 * Invariants:
 *   value + the units in all records <= the maximum, where each unit is released by the process that acquired it;
 *   a sequence number is used up only by an operation that happened, and the next one goes over its evidence: so `done` is at
 *     most one behind what happened, and 16 bits that wrap around are enough to compare;
 *   a semaphore's word names a record only while the record belongs to that semaphore;
 *   one process changes its record from one thread at a time (the callers hold the GIL).
 *
 * A semaphore is also used as a signal: a process that only releases has no units, so its death changes nothing; one that
 * ended normally keeps what it took. */
#include "family.h"

enum { OP_NONE, OP_ACQUIRE, OP_RELEASE, OP_RELEASE_HELD, OP_RETURN };

static uint64_t record_word(uint32_t units, uint32_t op, uint32_t seq) {
    return (uint64_t)units | (uint64_t)op << 32 | (uint64_t)(seq & 0xffff) << 40;
}
static uint32_t record_units(uint64_t w) { return (uint32_t)w; }
static uint32_t record_op(uint64_t w) { return w >> 32 & 0xff; }
static uint32_t record_seq(uint64_t w) { return w >> 40 & 0xffff; }

static uint64_t sem_word(uint32_t value, uint32_t record_plus_1, uint32_t seq) {
    return (uint64_t)value | (uint64_t)record_plus_1 << 31 | (uint64_t)(seq & 0xffff) << 48;
}
static uint32_t sem_value(uint64_t w) { return w & 0x7fffffff; }
static uint32_t sem_record(uint64_t w) { return w >> 31 & 0x1ffff; }
static uint32_t sem_seq(uint64_t w) { return w >> 48; }

uint32_t mp_sem_value(struct mp_block *b) { return sem_value(atomic_load(&b->semaphore.word)); }

void mp_sem_init(struct mp_block *b, uint32_t value, uint32_t maximum) {
    b->semaphore.maximum = maximum;
    atomic_store(&b->semaphore.word, sem_word(value, 0, 0));
}

/* Steps 1 and 3. They are read by recovery only, after the process's death; all they need is to stay before and behind step 2. */
static void write_record(struct mp_record *r, uint32_t units, uint32_t op, uint32_t seq) {
    atomic_store_explicit(&r->word, record_word(units, op, seq), memory_order_release);
}

static bool behind(uint32_t done, uint32_t seq) { return (int16_t)(uint16_t)(seq - done) > 0; }

/* Saves the evidence that stands in the word before it is overwritten. What is found in the word of a moment ago may be old:
 * its reader may have been off the processor for as long as it takes the others to use up all 16 bits. So `done` is read, then
 * the word again, then `done` changed from what was read: if the word has changed there is nothing to save (the caller's
 * compare-and-swap is going to fail), and if `done` has changed we look again. The upper half of `done` counts its changes. */
static void acknowledge(struct mp_family *f, struct mp_semaphore *s, uint64_t word) {
    if (sem_record(word) == 0)
        return;
    struct mp_record *r = &f->seg->records[sem_record(word) - 1];
    uint32_t done = atomic_load(&r->done), next;
    do {
        if (!behind(done, sem_seq(word)) || atomic_load(&s->word) != word)
            return;
        next = ((done >> 16) + 1) << 16 | sem_seq(word);
    } while (!atomic_compare_exchange_weak(&r->done, &done, next));
}

/* ---- records ------------------------------------------------------------------------------------------------------- */

static int64_t own_record(struct mp_family *f, uint32_t index) {
    if (f->local_record[index] != 0)
        return f->local_record[index] - 1;
    if (mp_family_join(f) != MP_OK)
        return MP_FAILED;
    uint64_t owner = ((uint64_t)index + 1) | ((uint64_t)f->slot + 1) << 32;
    uint32_t start = atomic_load_explicit(&f->h->record_hint, memory_order_relaxed);
    for (uint32_t n = 0; n < MP_RECORDS; n++) {
        uint32_t i = (start + n) % MP_RECORDS;
        struct mp_record *r = &f->seg->records[i];
        uint64_t nobody = 0;
        if (atomic_load(&r->owner) != 0)
            continue;
        uint32_t high = atomic_load(&f->h->record_high);
        while (high <= i && !atomic_compare_exchange_weak(&f->h->record_high, &high, i + 1))
            ;
        if (!atomic_compare_exchange_strong(&r->owner, &nobody, owner))
            continue;
        atomic_store_explicit(&f->h->record_hint, i + 1, memory_order_relaxed);
        f->local_record[index] = i + 1;
        return i;
    }
    errno = ENOSPC;
    return MP_FAILED;
}

/* The record's sequence goes on with its next owner, so nothing may be left behind that looks like the new owner's. */
static void free_record(struct mp_family *f, uint32_t i, struct mp_semaphore *s) {
    struct mp_record *r = &f->seg->records[i];
    uint32_t seq = record_seq(atomic_load(&r->word));
    uint64_t word = s == NULL ? 0 : atomic_load(&s->word);
    while (sem_record(word) == i + 1 && !atomic_compare_exchange_weak(&s->word, &word, sem_word(sem_value(word), 0, 0)))
        ;
    atomic_store(&r->done, ((atomic_load(&r->done) >> 16) + 1) << 16 | seq);
    atomic_store(&r->word, record_word(0, OP_NONE, seq));
    atomic_store(&r->waiting, 0);
    atomic_store(&r->owner, 0);
    if (i < atomic_load_explicit(&f->h->record_hint, memory_order_relaxed))
        atomic_store_explicit(&f->h->record_hint, i, memory_order_relaxed);
}

void mp_sem_forget(struct mp_family *f, uint32_t index) {
    free_record(f, f->local_record[index] - 1, &mp_block_at(f, index)->semaphore);
    f->local_record[index] = 0;
}

uint32_t mp_sem_units(struct mp_family *f, uint32_t index) {
    uint32_t record = f->local_record[index];
    return record == 0 ? 0 : record_units(atomic_load(&f->seg->records[record - 1].word));
}

/* ---- operations ----------------------------------------------------------------------------------------------------- */

bool mp_sem_try(struct mp_family *f, uint32_t index, int *error) {
    struct mp_semaphore *s = &mp_block_at(f, index)->semaphore;
    *error = 0;
    if (sem_value(atomic_load(&s->word)) == 0)
        return false;
    int64_t mine = own_record(f, index);
    if (mine < 0) {
        *error = errno;
        return false;
    }
    struct mp_record *r = &f->seg->records[mine];
    uint64_t before = atomic_load_explicit(&r->word, memory_order_relaxed);
    uint32_t units = record_units(before), seq = record_seq(before) + 1;
    write_record(r, units, OP_ACQUIRE, seq);
    uint64_t word = atomic_load(&s->word);
    while (sem_value(word) != 0) {
        acknowledge(f, s, word);
        if (atomic_compare_exchange_weak(&s->word, &word, sem_word(sem_value(word) - 1, (uint32_t)mine + 1, seq))) {
            write_record(r, units + 1, OP_NONE, seq);
            return true;
        }
    }
    atomic_store(&r->word, before); /* it did not happen: the next one has the same number */
    return false;
}

static void ring_waiters(struct mp_family *f, uint32_t index, uint32_t units) {
    struct mp_semaphore *s = &mp_block_at(f, index)->semaphore;
    uint32_t waiters = atomic_load(&s->waiters);
    if (waiters != 0)
        mp_bell_ring(f, index, (int)(waiters < units ? waiters : units));
}

/* EOVERFLOW: the value would pass the maximum. */
int mp_sem_release(struct mp_family *f, uint32_t index) {
    struct mp_semaphore *s = &mp_block_at(f, index)->semaphore;
    uint32_t limit = s->maximum;
    if (sem_value(atomic_load(&s->word)) >= limit)
        return EOVERFLOW;
    int64_t mine = own_record(f, index);
    if (mine < 0)
        return errno;
    struct mp_record *r = &f->seg->records[mine];
    uint64_t before = atomic_load_explicit(&r->word, memory_order_relaxed);
    uint32_t units = record_units(before), seq = record_seq(before) + 1;
    write_record(r, units, units ? OP_RELEASE_HELD : OP_RELEASE, seq);
    uint64_t word = atomic_load(&s->word);
    do {
        if (sem_value(word) >= limit) {
            atomic_store(&r->word, before);
            return EOVERFLOW;
        }
        acknowledge(f, s, word);
    } while (!atomic_compare_exchange_weak(&s->word, &word, sem_word(sem_value(word) + 1, (uint32_t)mine + 1, seq)));
    write_record(r, units ? units - 1 : 0, OP_NONE, seq);
    ring_waiters(f, index, 1);
    return MP_OK;
}

/* A waiter registers before its last try and withdraws after it has got a unit or given up, so a release that finds no
 * waiters leaves a value which the waiter's try finds. The order of the two counters makes a death between them leave
 * `waiters` one too high (a needless ring per release), never too low. */
int mp_sem_enroll(struct mp_family *f, uint32_t index) {
    int64_t mine = own_record(f, index);
    if (mine < 0)
        return errno;
    atomic_fetch_add(&mp_block_at(f, index)->semaphore.waiters, 1);
    atomic_fetch_add(&f->seg->records[mine].waiting, 1);
    return MP_OK;
}

void mp_sem_withdraw(struct mp_family *f, uint32_t index) {
    uint32_t mine = f->local_record[index];
    if (mine == 0 || atomic_load(&f->seg->records[mine - 1].waiting) == 0)
        return; /* a child forked by a signal handler while its parent waited: it was the parent who enrolled */
    atomic_fetch_sub(&f->seg->records[mine - 1].waiting, 1);
    atomic_fetch_sub(&mp_block_at(f, index)->semaphore.waiters, 1);
}

/* ---- recovery -------------------------------------------------------------------------------------------------------- */

/* Settles what the dead process had announced, gives back its units, and frees the record. The return is announced in the
 * dead record itself, in the way of the other operations, so recovery may die in it and be done again. */
void mp_sem_return_units(struct mp_family *f, uint32_t i) {
    struct mp_record *r = &f->seg->records[i];
    uint64_t owner = atomic_load(&r->owner);
    uint32_t index = (uint32_t)owner - 1;
    int slot = (int)(owner >> 32) - 1;
    struct mp_block *b = mp_block_at(f, index);
    if (b->kind != MP_KIND_SEMAPHORE || mp_block_state_of(atomic_load(&b->word)) != MP_BLOCK_READY) {
        free_record(f, i, NULL);
        return;
    }
    struct mp_semaphore *s = &b->semaphore;
    uint64_t mine = atomic_load(&r->word), word = atomic_load(&s->word);
    uint32_t units = record_units(mine), seq = record_seq(mine), op = record_op(mine);
    bool happened = (sem_record(word) == i + 1 && sem_seq(word) == seq) || !behind(atomic_load(&r->done), seq);
    if (op != OP_NONE && happened)
        units = op == OP_ACQUIRE ? units + 1 : op == OP_RELEASE_HELD ? units - 1 : op == OP_RETURN ? 0 : units;
    uint32_t returned = 0;
    if (units != 0 && !atomic_load(&f->seg->slots[slot].leaving)) {
        seq++;
        atomic_store(&r->word, record_word(units, OP_RETURN, seq));
        word = atomic_load(&s->word);
        uint32_t value;
        do {
            acknowledge(f, s, word);
            value = sem_value(word) + units;
            value = value > s->maximum ? s->maximum : value;
            returned = value - sem_value(word);
        } while (!atomic_compare_exchange_weak(&s->word, &word, sem_word(value, i + 1, seq)));
    }
    atomic_store(&r->word, record_word(0, OP_NONE, seq));
    for (uint32_t waiting = atomic_exchange(&r->waiting, 0); waiting != 0; waiting--)
        atomic_fetch_sub(&s->waiters, 1);
    free_record(f, i, s);
    if (returned != 0)
        ring_waiters(f, index, returned);
}

/* Recovery: units are there and somebody sleeps: a waiter died between its ring and its try. */
void mp_sem_heal(struct mp_family *f, uint32_t index) {
    struct mp_semaphore *s = &mp_block_at(f, index)->semaphore;
    if (atomic_load(&s->waiters) == 0)
        return;
    uint32_t value = sem_value(atomic_load(&s->word));
    int sleepers = value == 0 ? 0 : mp_bell_get(f, index, GETNCNT);
    if (sleepers > 0)
        mp_bell_ring(f, index, (uint32_t)sleepers < value ? sleepers : (int)value);
}

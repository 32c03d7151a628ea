/* The counting semaphore: a value changed by compare-and-swap, and for each process a record of the units it holds.
 *
 * What it means. A unit is acquired from the value onto the record of the process, whichever of its threads it was. A child starts
 * with an empty record, after fork(2), too. A release is
 *
 *   the process's own, if it has units: one leaves its record, the value grows by one;
 *   foreign, if it has none: it pays one unit of the debt, if there is any, and the value stays; else the value grows by one.
 *
 * When a process is killed, the units on its record come back: the value grows by as many (to the maximum at most: what does not
 * fit is dropped), and the debt by what the value has grown. For who was going to release these units may still be there, and does
 * not know that it was done for him. When a process ends normally (`leaving`) nothing changes: what it took stays taken.
 *
 * But nobody can tell the units of a killed holder from the places that a killed producer has filled. So a semaphore is one of
 *
 *   guessed (returns=None): units come back until the first foreign release, paying ones included. That makes it a
 *   signal (from the start with returns=False): nothing comes back any more. What debt there is is still paid first.
 *   always (returns=True): units always come back, and foreign releases change nothing about that. One that pays no debt adds a
 *     unit: it takes nothing from the record of whoever acquired it, whose units still come back when he is killed.
 *
 * A release at the maximum pays a debt, if there is any, also if it is the process's own: it is not to blame. (Only with `always`
 * can that be.) If there is none it is one too many, and fails; a release that fails changes nothing, and makes no signal.
 * The debt is exact up to 2^32 - 1, and stops there.
 *
 * Invariants:
 *   guessed: value + the units in all records <= the value at the start; and, as for any semaphore, <= the maximum;
 *   a signal's debt never grows. When it is 0, nothing depends on records any more: a signal without debt is changed by a single
 *     compare-and-swap, and nothing is recorded.
 *
 * How it is done. Value, debt and record are three words, and a process may die between them. So each change is made detectable:
 *
 *   1. record.word = {units, operation, sequence}                announces it;
 *   2. semaphore.word = {value', record, sequence}               does it, and says who did it;
 *      or semaphore.debt = {debt', record, sequence}
 *   3. record.word = {units', no operation, sequence}            counts it, and ends the announcement.
 *
 * Before anybody overwrites the evidence of another in one of the two words in 2 he writes the sequence found there into `done` of
 * the record found there, so the evidence of step 2 is never lost. (His own is of an operation that he has counted: he sets `done`
 * himself when he announces the next one.) Death before 1 and after 3 leaves nothing to do; before 2, neither word shows the
 * announced sequence and `done` is behind it: the operation did not happen; after 2 one of the three shows it: it did.
 *
 * What is more than one step:
 *   A return raises the value under one sequence number and the debt under the next. Between the two the debt is known from the
 *     evidence in semaphore.word: whoever is to change that word counts the debt first (count_debt()). So who has read
 *     semaphore.word, saved its evidence, read the debt, and then changes semaphore.word, has seen all of the debt that there was at
 *     that moment; a foreign release finds out whether there is a debt, whether it is the first, and what to do about it, in one
 *     atomic step.
 *   A foreign release that pays and makes a signal pays first. A return that comes between is as one that came before both: the
 *     same value, debt and signal come out. If it dies between, recovery makes the signal.
 *   The evidence in semaphore.debt is taken out by the one who put it there, when it is no longer needed: nobody may overwrite it
 *     for so long that the sequence comes round.
 *
 * Invariants:
 *   a sequence number is used up only by an operation that happened, and when the next one is announced `done` is set to it: so
 *     `done` is at most one behind what happened (two in a return), and 15 bits that wrap around are enough to compare;
 *   a semaphore's words name a record only while the record belongs to that semaphore;
 *   one process changes its record from one thread at a time (the callers hold the GIL). */
#include "semaphore.h"

#include "bells.h"
#include "records.h"
#include "slots.h"

enum { OP_NONE, OP_ACQUIRE, OP_RELEASE, OP_RELEASE_HELD, OP_RETURN };

#define SEQUENCE MP_RECORD_SEQUENCE
#define SIGNAL (1u << 31) /* in the lower half of semaphore.word, above the value */

static uint64_t record_word(uint32_t units, uint32_t op, uint32_t seq) {
    return (uint64_t)units | (uint64_t)op << 32 | (uint64_t)(seq & SEQUENCE) << 40;
}
static uint32_t record_units(uint64_t w) { return (uint32_t)w; }
static uint32_t record_op(uint64_t w) { return w >> 32 & 0xff; }
static uint32_t record_seq(uint64_t w) { return w >> 40 & SEQUENCE; }

/* The semaphore's two words: the value and SIGNAL, or the debt, below; the evidence above. */
static uint64_t stamped(uint32_t low, uint32_t record_plus_1, uint32_t seq) {
    return (uint64_t)low | (uint64_t)record_plus_1 << 32 | (uint64_t)(seq & SEQUENCE) << 49;
}
static uint32_t low(uint64_t w) { return (uint32_t)w; }
static uint32_t sem_value(uint64_t w) { return w & 0x7fffffff; }
static uint32_t sem_record(uint64_t w) { return w >> 32 & 0x1ffff; }
static uint32_t sem_seq(uint64_t w) { return w >> 49; }
static bool shows(uint64_t w, uint32_t record, uint32_t seq) { return w >> 32 == stamped(0, record + 1, seq) >> 32; }

/* The record that a word names; the word may be anything. */
static uint32_t index_of(uint64_t w) { return (sem_record(w) - 1) % MP_RECORDS; }
static struct mp_record *record_of(struct mp_family *f, uint64_t w) { return &f->seg->records[index_of(w)]; }

uint32_t mp_sem_value(struct mp_block *b) { return sem_value(atomic_load(&b->semaphore.word)); }
uint32_t mp_sem_debt(struct mp_block *b) { return low(atomic_load(&b->semaphore.debt)); }

enum mp_returns mp_sem_returns(struct mp_block *b) {
    if (b->semaphore.always)
        return MP_RETURNS_ALWAYS;
    return low(atomic_load(&b->semaphore.word)) & SIGNAL ? MP_RETURNS_NEVER : MP_RETURNS_GUESSED;
}

void mp_sem_init(struct mp_block *b, uint32_t value, uint32_t maximum, enum mp_returns returns) {
    b->semaphore.maximum = maximum;
    b->semaphore.always = returns == MP_RETURNS_ALWAYS;
    atomic_store(&b->semaphore.debt, 0);
    atomic_store(&b->semaphore.word, stamped(value | (returns == MP_RETURNS_NEVER ? SIGNAL : 0), 0, 0));
}

/* Steps 1 and 3. They are read by recovery only, after the process's death; all they need is to stay before and behind step 2. */
static void write_record(struct mp_record *r, uint32_t units, uint32_t op, uint32_t seq) {
    atomic_store_explicit(&r->word, record_word(units, op, seq), memory_order_release);
}

/* Step 1, by the process itself. What another one saves at this moment is the same number: there is no later evidence yet. */
static void announce(struct mp_record *r, uint32_t units, uint32_t op, uint32_t seq) {
    uint32_t done = atomic_load_explicit(&r->done, memory_order_relaxed);
    atomic_store_explicit(&r->done, ((done >> 16) + 1) << 16 | ((seq - 1) & SEQUENCE), memory_order_relaxed);
    write_record(r, units, op, seq);
}

static bool behind(uint32_t done, uint32_t seq) {
    uint32_t distance = (seq - done) & SEQUENCE;
    return distance != 0 && distance <= SEQUENCE / 2;
}

/* Saves the evidence that stands in one of the semaphore's words before it is overwritten. What is found in the word of a
 * moment ago may be old: its reader may have been off the processor for as long as it takes the others to use up all 15 bits. So
 * `done` is read, then the word again, then `done` changed from what was read: if the word has changed there is nothing to save
 * (the caller's compare-and-swap is going to fail), and if `done` has changed we look again. The upper half of `done` counts its
 * changes. */
static void save(struct mp_family *f, _Atomic uint64_t *where, uint64_t word) {
    struct mp_record *r = record_of(f, word);
    uint32_t done = atomic_load(&r->done), next;
    do {
        if (!behind(done, sem_seq(word)) || atomic_load(where) != word)
            return;
        next = ((done >> 16) + 1) << 16 | sem_seq(word);
    } while (!atomic_compare_exchange_weak(&r->done, &done, next));
}

/* `word` shows that `returned` units of a dead process have come back: they are a debt, if nobody has counted them yet. Read in an
 * order like that of save(): a debt that has been counted is seen as such, or semaphore.debt is no longer what was read first. */
static void count_debt(struct mp_family *f, struct mp_semaphore *s, uint64_t word) {
    uint32_t i = index_of(word), seq = sem_seq(word) + 1;
    struct mp_record *r = &f->seg->records[i];
    uint32_t returned = atomic_load(&r->returned), grown;
    uint64_t debt = atomic_load(&s->debt);
    do {
        if (shows(debt, i, seq) || !behind(atomic_load(&r->done), seq) || atomic_load(&s->word) != word)
            return;
        if (sem_record(debt) != 0)
            save(f, &s->debt, debt);
        grown = low(debt) + returned < returned ? UINT32_MAX : low(debt) + returned;
    } while (!atomic_compare_exchange_weak(&s->debt, &debt, stamped(grown, i + 1, seq)));
}

/* What has to be done before semaphore.word is overwritten; `mine` is the record of who does it, MP_RECORDS if he has none. */
static inline void acknowledge(struct mp_family *f, struct mp_semaphore *s, uint64_t word, uint32_t mine) {
    if (sem_record(word) == 0 || sem_record(word) == mine + 1)
        return;
    uint64_t record = atomic_load(&record_of(f, word)->word);
    if (record_op(record) == OP_RETURN && record_seq(record) == sem_seq(word))
        count_debt(f, s, word);
    save(f, &s->word, word);
}

/* A signal without debt, for good. All returns there ever were have been counted. */
static bool needs_no_record(struct mp_family *f, struct mp_semaphore *s, uint64_t word) {
    if (!(low(word) & SIGNAL))
        return false;
    acknowledge(f, s, word, MP_RECORDS);
    return low(atomic_load(&s->debt)) == 0;
}

static void make_signal(struct mp_family *f, struct mp_semaphore *s) {
    uint64_t word = atomic_load(&s->word);
    do {
        if (s->always || (low(word) & SIGNAL))
            return;
        acknowledge(f, s, word, MP_RECORDS);
    } while (!atomic_compare_exchange_weak(&s->word, &word, word | SIGNAL));
}

static void take_out(_Atomic uint64_t *where, uint32_t record) {
    uint64_t word = atomic_load(where);
    while (sem_record(word) == record + 1 && !atomic_compare_exchange_weak(where, &word, stamped(low(word), 0, 0)))
        ;
}

/* ---- records ------------------------------------------------------------------------------------------------------- */

/* The record's sequence goes on with its next owner, so nothing may be left behind that looks like the new owner's. */
static void free_record(struct mp_family *f, uint32_t i, struct mp_semaphore *s) {
    if (s != NULL) {
        take_out(&s->word, i);
        take_out(&s->debt, i);
    }
    mp_record_free(f, i, record_seq(atomic_load(&f->seg->records[i].word)));
}

void mp_sem_forget(struct mp_family *f, uint32_t index) {
    if (f->local_record[index] == 0)
        return;
    free_record(f, f->local_record[index] - 1, &mp_block_at(f, index)->semaphore);
    f->local_record[index] = 0;
}

uint32_t mp_sem_units(struct mp_family *f, uint32_t index) {
    uint32_t record = f->local_record[index];
    return record == 0 ? 0 : record_units(atomic_load(&f->seg->records[record - 1].word));
}

/* ---- operations ----------------------------------------------------------------------------------------------------- */

/* In the unlikely case that needs_no_record(). */
static bool try_signal(struct mp_family *f, struct mp_semaphore *s, uint64_t word) {
    while (sem_value(word) != 0) {
        acknowledge(f, s, word, MP_RECORDS);
        if (atomic_compare_exchange_weak(&s->word, &word, stamped(low(word) - 1, 0, 0)))
            return true;
    }
    return false;
}

bool mp_sem_try(struct mp_family *f, uint32_t index, int *error) {
    struct mp_semaphore *s = &mp_block_at(f, index)->semaphore;
    uint64_t word = atomic_load(&s->word);
    *error = 0;
    if (sem_value(word) == 0)
        return false;
    if (needs_no_record(f, s, word))
        return try_signal(f, s, word);
    int64_t mine = mp_record_own(f, index);
    if (mine < 0) {
        *error = errno;
        return false;
    }
    struct mp_record *r = &f->seg->records[mine];
    uint64_t before = atomic_load_explicit(&r->word, memory_order_relaxed);
    uint32_t units = record_units(before), seq = record_seq(before) + 1;
    announce(r, units, OP_ACQUIRE, seq);
    word = atomic_load(&s->word);
    while (sem_value(word) != 0) {
        acknowledge(f, s, word, (uint32_t)mine);
        if (atomic_compare_exchange_weak(&s->word, &word, stamped(low(word) - 1, (uint32_t)mine + 1, seq))) {
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

static int release_signal(struct mp_family *f, uint32_t index, uint64_t word) {
    struct mp_semaphore *s = &mp_block_at(f, index)->semaphore;
    do {
        if (sem_value(word) >= s->maximum)
            return EOVERFLOW;
        acknowledge(f, s, word, MP_RECORDS);
    } while (!atomic_compare_exchange_weak(&s->word, &word, stamped(low(word) + 1, 0, 0)));
    ring_waiters(f, index, 1);
    return MP_OK;
}

enum effect { CHANGED, RAISED, PAID, TOO_MANY };

/* Step 2 of a release. CHANGED: somebody was faster, look again. */
static enum effect raise_or_pay(struct mp_family *f, struct mp_semaphore *s, uint32_t mine, uint32_t units, uint32_t seq) {
    uint64_t word = atomic_load(&s->word);
    acknowledge(f, s, word, mine);
    uint64_t debt = atomic_load(&s->debt);
    bool full = sem_value(word) >= s->maximum;
    if (low(debt) != 0 && (units == 0 || full)) {
        if (sem_record(debt) != 0)
            save(f, &s->debt, debt);
        return atomic_compare_exchange_strong(&s->debt, &debt, stamped(low(debt) - 1, mine + 1, seq)) ? PAID : CHANGED;
    }
    if (full)
        return atomic_load(&s->word) == word ? TOO_MANY : CHANGED;
    uint32_t raised = (low(word) + 1) | (units == 0 && !s->always ? SIGNAL : 0);
    return atomic_compare_exchange_strong(&s->word, &word, stamped(raised, mine + 1, seq)) ? RAISED : CHANGED;
}

/* EOVERFLOW: the value would pass the maximum. */
int mp_sem_release(struct mp_family *f, uint32_t index) {
    struct mp_semaphore *s = &mp_block_at(f, index)->semaphore;
    uint64_t word = atomic_load(&s->word);
    if (needs_no_record(f, s, word))
        return release_signal(f, index, word);
    int64_t mine = mp_record_own(f, index);
    if (mine < 0)
        return errno;
    struct mp_record *r = &f->seg->records[mine];
    uint64_t before = atomic_load_explicit(&r->word, memory_order_relaxed);
    uint32_t units = record_units(before), seq = record_seq(before) + 1;
    announce(r, units, units ? OP_RELEASE_HELD : OP_RELEASE, seq);
    enum effect effect;
    do
        effect = raise_or_pay(f, s, (uint32_t)mine, units, seq);
    while (effect == CHANGED);
    if (effect == TOO_MANY) {
        atomic_store(&r->word, before);
        return EOVERFLOW;
    }
    if (effect == PAID && units == 0)
        make_signal(f, s);
    write_record(r, units ? units - 1 : 0, OP_NONE, seq);
    if (effect == RAISED)
        ring_waiters(f, index, 1);
    else
        take_out(&s->debt, (uint32_t)mine);
    return MP_OK;
}

/* A waiter registers before its last try and withdraws after it has got a unit or given up, so a release that finds no
 * waiters leaves a value which the waiter's try finds. The order of the two counters makes a death between them leave
 * `waiters` one too high (a needless ring per release), never too low. */
int mp_sem_enroll(struct mp_family *f, uint32_t index) {
    int64_t mine = mp_record_own(f, index);
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

/* Gives units of a dead process back, with the record's next two sequence numbers. Returns the last that was used. The return is
 * announced in the dead record itself, in the way of the other operations, so recovery may die in it and be done again. */
static uint32_t return_units(struct mp_family *f, uint32_t i, struct mp_semaphore *s, uint32_t units, uint32_t seq) {
    struct mp_record *r = &f->seg->records[i];
    announce(r, units, OP_RETURN, seq + 1);
    uint64_t word = atomic_load(&s->word), next;
    do {
        uint32_t room = s->maximum - sem_value(word), returned = units < room ? units : room;
        if (low(word) & SIGNAL || returned == 0)
            return seq;
        acknowledge(f, s, word, i);
        atomic_store(&r->returned, returned);
        next = stamped(low(word) + returned, i + 1, seq + 1);
    } while (!atomic_compare_exchange_weak(&s->word, &word, next));
    count_debt(f, s, next);
    return seq + 2;
}

/* Settles what the dead process had announced, gives back its units, and frees the record. */
void mp_sem_return_units(struct mp_family *f, uint32_t i) {
    struct mp_record *r = &f->seg->records[i];
    uint64_t owner = atomic_load(&r->owner);
    uint32_t index = (uint32_t)owner - 1;
    int slot = mp_record_slot(owner);
    struct mp_block *b = index < MP_BLOCKS ? mp_block_at(f, index) : NULL;
    if (b == NULL || b->kind != MP_KIND_SEMAPHORE || !mp_block_is_live(atomic_load(&b->word))) {
        free_record(f, i, NULL);
        return;
    }
    struct mp_semaphore *s = &b->semaphore;
    uint64_t mine = atomic_load(&r->word), word = atomic_load(&s->word);
    uint32_t units = record_units(mine), seq = record_seq(mine), op = record_op(mine);
    bool happened = shows(word, i, seq) || shows(atomic_load(&s->debt), i, seq) || !behind(atomic_load(&r->done), seq);
    uint32_t returned = 0;
    if (op != OP_NONE && !happened) {
        seq--;
    } else if (op == OP_RETURN) { /* by a recovery that has died */
        if (shows(word, i, seq))
            count_debt(f, s, word); /* else who has overwritten it has done so */
        seq++;
        units = 0;
        returned = atomic_load(&r->returned);
    } else if (op == OP_RELEASE) {
        make_signal(f, s); /* it has paid, perhaps, and died before it came to this */
    } else if (op != OP_NONE) {
        units += op == OP_ACQUIRE ? 1 : -1;
    }
    if (units != 0 && !atomic_load(&f->seg->slots[slot].leaving)) {
        uint32_t last = return_units(f, i, s, units, seq);
        returned = last != seq ? atomic_load(&r->returned) : 0;
        seq = last;
    }
    atomic_store(&r->word, record_word(0, OP_NONE, seq));
    atomic_fetch_sub(&s->waiters, atomic_exchange(&r->waiting, 0));
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

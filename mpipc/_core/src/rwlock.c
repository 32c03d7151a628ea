/* The lock of readers and writers: a lock for the writers (lock.c), whose owner waits until the readers have left, and a record for
 * each process that reads (records.c). There is no count of readers: who reads stands in the records alone, so a dead reader is
 * gone with its record, and nothing else has to be put right.
 *
 * What it means. A reader is in at once unless a writer has the lock, also while that one still waits for readers. A reader that
 * finds a writer waits for the end of this writer's tenure, and no longer: the next writer lets all in who waited before its own
 * tenure began, and waits for them. So readers and writers take turns (the lock is phase-fair): neither of them can be kept out by
 * however many of the others. Writers among themselves are as the waiters of a Lock.
 *
 * How it is done. A record's word is {threads reading, threads waiting, tenure}, and those who wait count as readers from the
 * moment that lock.tenure is another one. That is the whole handing over: one store by the next writer, whoever lives or sleeps.
 *
 *   reader  R1. record: reading + 1
 *           R2. who has the writers' lock? Nobody: it is in. Else it takes R1 back, and
 *           R3. record: waiting + 1, with the tenure; again, until the tenure is still the same afterwards
 *           R4. takes a cell; looks: another tenure, or nobody has the lock: it is in; else sleeps
 *           R5. leaves: record: reading - 1; if a writer waits and no reader is left, rings for it
 *   writer  W1. takes the writers' lock
 *           W2. tenure + 1: who waits is a reader from now on, who comes waits
 *           W3. takes a cell; looks at all records: no reader: the lock's word gets INSIDE, it is in; else it rings for those who
 *               wait and are called, and sleeps
 *           W4. leaves: the lock's word to 0; rings for the readers that wait
 *
 * Invariants:
 *   between a reader's R1 and R2 stands what stands between a writer's W1 and W3, the other way round: each first writes, then reads
 *     what the other one writes (all of it seq_cst). So one of them sees the other;
 *   the tenure is changed only by who has the writers' lock and is not inside. So who reads in R3 the same tenure before and after
 *     its store has been written down in this tenure, and every look of a later one (W3) counts it as a reader. That is why R4
 *     need not be done as R1 and R2 are: if nobody has the lock, then who has it next begins a later tenure;
 *   a process's record is changed by one of its threads at a time (the callers hold the GIL), and by nobody else while it lives;
 *   the word has INSIDE while, and only while, its owner may change what the lock protects.
 *
 * Where a process can die:
 *   a reader, anywhere: recovery frees its record, and rings for who sleeps in a cell (as for all cells; mp_cell_heal);
 *   a writer before INSIDE: it has changed nothing: recovery frees the lock, and it is not called DIED on its account;
 *   a writer from there on: it frees it, and it is DIED;
 *   in W4 after the store: recovery rings.
 * Whoever stands still in R5 or W4 before it rings is waited for for a tick: then who sleeps looks by himself.
 *
 * A tenure's number comes round after 2^32 of them. A waiting reader for whom it does (all of them must have been given up, for a
 * called reader is waited for) waits once more, that is all. */
#include "rwlock.h"

#include "bells.h"
#include "cells.h"
#include "lock.h"
#include "records.h"
#include "threads.h"

#define READING 1ull
#define WAITING (1ull << 16)
#define MOST 0xffffull

static uint32_t reading(uint64_t w) { return w & MOST; }
static uint32_t waiting(uint64_t w) { return w >> 16 & MOST; }
static uint32_t tenure_of(uint64_t w) { return w >> 32; }

/* The same in another tenure: then those who waited in the earlier one are readers. */
static uint64_t as_of(uint64_t word, uint32_t tenure) {
    if (tenure_of(word) == tenure)
        return word;
    return ((uint64_t)reading(word) + waiting(word)) | (uint64_t)tenure << 32;
}

static struct mp_rwlock *at(struct mp_family *f, uint32_t index) { return &mp_block_at(f, index)->rwlock; }
static uint64_t lock_word(struct mp_family *f, uint32_t index) { return atomic_load(&at(f, index)->writer.word); }

void mp_rw_init(struct mp_block *b) {
    atomic_store(&b->rwlock.record_low, MP_RECORDS);
    atomic_store(&b->rwlock.record_high, 0);
}

/* ---- who reads, and who waits --------------------------------------------------------------------------------------- */

/* All records of this lock are between the two. NULL with errno: the table is full. */
static struct mp_record *own_record(struct mp_family *f, uint32_t index) {
    struct mp_rwlock *l = at(f, index);
    bool first = f->local_record[index] == 0;
    int64_t i = mp_record_own(f, index);
    if (i < 0)
        return NULL;
    if (first) {
        uint32_t low = atomic_load(&l->record_low), high = atomic_load(&l->record_high);
        while (low > i && !atomic_compare_exchange_weak(&l->record_low, &low, (uint32_t)i))
            ;
        while (high <= i && !atomic_compare_exchange_weak(&l->record_high, &high, (uint32_t)i + 1))
            ;
    }
    return &f->seg->records[i];
}

struct mp_rw_count mp_rw_count(struct mp_family *f, uint32_t index) {
    struct mp_rwlock *l = at(f, index);
    struct mp_rw_count count = {0, 0, 0};
    uint32_t tenure = atomic_load(&l->tenure), high = mp_at_most(atomic_load(&l->record_high), MP_RECORDS);
    for (uint32_t i = atomic_load(&l->record_low); i < high; i++) {
        struct mp_record *r = &f->seg->records[i];
        if ((uint32_t)atomic_load(&r->owner) != index + 1)
            continue;
        uint64_t word = atomic_load(&r->word);
        uint32_t called = tenure_of(word) == tenure ? 0 : waiting(word);
        count.readers += reading(word) + called;
        count.called += called;
        count.waiting += waiting(word) - called;
    }
    return count;
}

/* Where a thread waits. -1 with errno. */
int64_t mp_rw_cell(struct mp_family *f, uint32_t index, int64_t cell, enum mp_rw_role role) {
    return mp_cell_again(f, index, cell, role);
}

static void wake(struct mp_family *f, uint32_t index, enum mp_rw_role role) { mp_cells_release(f, index, role); }

/* A reader has left, or one that might have been taken for one. The last of them rings. */
static void wake_writer(struct mp_family *f, uint32_t index) {
    uint64_t word = lock_word(f, index);
    if ((word & MP_LOCK_OWNER) && !(word & MP_LOCK_INSIDE) && mp_rw_count(f, index).readers == 0)
        wake(f, index, MP_RW_WRITE);
}

/* Nobody has the lock any more. */
static void wake_readers(struct mp_family *f, uint32_t index) {
    struct mp_rw_count count = mp_rw_count(f, index);
    if (count.waiting + count.called != 0)
        wake(f, index, MP_RW_READ);
}

/* ---- readers ----------------------------------------------------------------------------------------------------------- */

/* This process's record, before one more thread of it reads or waits. NULL with errno. */
static struct mp_record *with_room(struct mp_family *f, uint32_t index, uint64_t *word) {
    struct mp_record *r = own_record(f, index);
    if (r == NULL)
        return NULL;
    *word = as_of(atomic_load_explicit(&r->word, memory_order_relaxed), atomic_load(&at(f, index)->tenure));
    if (reading(*word) + waiting(*word) < MOST)
        return r;
    errno = MP_TABLE_FULL;
    return NULL;
}

/* R1 and R2. MP_BUSY: there is a writer. Or an error. */
int mp_rw_read_try(struct mp_family *f, uint32_t index) {
    uint64_t word;
    if (lock_word(f, index) & MP_LOCK_OWNER)
        return MP_BUSY;
    struct mp_record *r = with_room(f, index, &word);
    if (r == NULL)
        return errno;
    atomic_store(&r->word, word + READING);
    if (!(lock_word(f, index) & MP_LOCK_OWNER))
        return MP_OK;
    atomic_store(&r->word, word);
    wake_writer(f, index);
    return MP_BUSY;
}

/* By the writer itself, inside. */
int mp_rw_read_within(struct mp_family *f, uint32_t index) {
    uint64_t word;
    struct mp_record *r = with_room(f, index, &word);
    if (r == NULL)
        return errno;
    atomic_store(&r->word, word + READING);
    return MP_OK;
}

/* R3. */
int mp_rw_read_enroll(struct mp_family *f, uint32_t index, uint32_t *tenure) {
    struct mp_rwlock *l = at(f, index);
    uint64_t word;
    struct mp_record *r = with_room(f, index, &word);
    bool again = false;
    if (r == NULL)
        return errno;
    for (uint32_t now = tenure_of(word);; again = true) {
        *tenure = now;
        word = as_of(word, now);
        atomic_store(&r->word, word + WAITING);
        now = atomic_load(&l->tenure);
        if (now == *tenure)
            break;
    }
    if (again)
        wake_writer(f, index);
    return MP_OK;
}

/* R4: true: it is in. */
bool mp_rw_read_look(struct mp_family *f, uint32_t index, uint32_t tenure) {
    struct mp_record *r = own_record(f, index); /* it has one */
    uint64_t word = atomic_load_explicit(&r->word, memory_order_relaxed);
    uint32_t now = atomic_load(&at(f, index)->tenure);
    if (now == tenure && (lock_word(f, index) & MP_LOCK_OWNER))
        return false;
    atomic_store(&r->word, now == tenure ? word - WAITING + READING : as_of(word, now));
    return true;
}

/* Who has enrolled gives up. */
void mp_rw_read_cancel(struct mp_family *f, uint32_t index, uint32_t tenure) {
    struct mp_record *r = own_record(f, index);
    uint32_t now = atomic_load(&at(f, index)->tenure);
    uint64_t word = as_of(atomic_load_explicit(&r->word, memory_order_relaxed), now);
    atomic_store(&r->word, word - (now == tenure ? WAITING : READING));
    wake_writer(f, index);
}

/* R5. */
void mp_rw_read_release(struct mp_family *f, uint32_t index) {
    struct mp_record *r = own_record(f, index);
    uint64_t word = as_of(atomic_load_explicit(&r->word, memory_order_relaxed), atomic_load(&at(f, index)->tenure));
    atomic_store(&r->word, word - READING);
    wake_writer(f, index);
}

/* ---- writers ------------------------------------------------------------------------------------------------------------ */

/* W2. The caller has taken the lock. */
void mp_rw_write_begin(struct mp_family *f, uint32_t index) {
    mp_lock_set_thread(mp_block_at(f, index), mp_this_thread());
    /* mp_lock_try() is weaker than seq_cst. Who reads the word back comes after it in the one order, and after R2 of all who have
     * not seen it. */
    (void)lock_word(f, index);
    atomic_fetch_add(&at(f, index)->tenure, 1);
}

/* W3: true: it is in. */
bool mp_rw_write_look(struct mp_family *f, uint32_t index) {
    struct mp_rwlock *l = at(f, index);
    struct mp_rw_count count = mp_rw_count(f, index);
    if (count.called != 0)
        wake(f, index, MP_RW_READ);
    if (count.readers != 0)
        return false;
    l->writer.depth = 1;
    atomic_fetch_or(&l->writer.word, MP_LOCK_INSIDE);
    return true;
}

/* Of one who is not inside: whether its predecessor has died is still to be told. */
static void withdraw(struct mp_family *f, uint32_t index, uint64_t owner) {
    struct mp_rwlock *l = at(f, index);
    uint64_t word = atomic_load(&l->writer.word);
    do {
        if ((word & MP_LOCK_OWNER) != owner)
            return;
    } while (!atomic_compare_exchange_weak(&l->writer.word, &word, word & MP_LOCK_DIED));
    if (word & MP_LOCK_CONTENDED)
        mp_bell_ring(f, index, 1);
}

/* Who has begun gives up. */
void mp_rw_write_cancel(struct mp_family *f, uint32_t index) {
    mp_lock_set_thread(mp_block_at(f, index), 0);
    withdraw(f, index, f->me);
    wake_readers(f, index);
}

/* W1 to W3 without waiting. Nobody is disturbed if it is seen to be in vain. */
bool mp_rw_write_try(struct mp_family *f, uint32_t index) {
    if (mp_rw_count(f, index).readers != 0 || !mp_lock_try(f, mp_block_at(f, index), 0))
        return false;
    mp_rw_write_begin(f, index);
    if (mp_rw_write_look(f, index))
        return true;
    mp_rw_write_cancel(f, index);
    return false;
}

/* W4. As mp_lock_release(). */
int mp_rw_write_release(struct mp_family *f, uint32_t index) {
    mp_lock_set_thread(mp_block_at(f, index), 0);
    int outcome = mp_lock_release(f, index);
    wake_readers(f, index);
    return outcome;
}

/* ---- ends ---------------------------------------------------------------------------------------------------------------- */

/* `done` is that of the semaphore whose record it was before. */
void mp_rw_give_back(struct mp_family *f, uint32_t record) {
    mp_record_free(f, record, atomic_load(&f->seg->records[record].done));
}

static void take_from(struct mp_family *f, uint32_t index, int slot) {
    if (lock_word(f, index) & MP_LOCK_INSIDE)
        mp_lock_recover(f, index, slot);
    else
        withdraw(f, index, (uint64_t)slot + 1);
}

/* This process has no handle any more: nobody can release what its threads have not. It is as if they had died. */
void mp_rw_forget(struct mp_family *f, uint32_t index) {
    uint32_t record = f->local_record[index];
    if (record != 0) {
        mp_rw_give_back(f, record - 1);
        f->local_record[index] = 0;
        wake_writer(f, index);
    }
    if ((lock_word(f, index) & MP_LOCK_OWNER) == f->me) {
        take_from(f, index, f->slot);
        wake_readers(f, index);
    }
}

/* Recovery. Of the dead readers the records are gone by now, and all cells are rung later. */
void mp_rw_recover(struct mp_family *f, uint32_t index, const uint64_t *dead) {
    int owner = (int)(lock_word(f, index) & MP_LOCK_OWNER) - 1;
    if (mp_slots_have(dead, owner))
        take_from(f, index, owner);
}

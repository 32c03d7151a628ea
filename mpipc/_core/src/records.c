/* The table of records. One is taken by a compare-and-swap of its owner, {block, slot}, from 0, and given back by a store of 0 after
 * everything else: until then recovery finds it by its slot.
 *
 * Where a process can die: having taken a record it has nothing of the block yet; giving it back, it has nothing any more. Recovery
 * hands it to its kind (`give_back` in kinds.c), which gives it back. */
#include "records.h"

#include "slots.h"

int64_t mp_record_claim(struct mp_family *f, uint32_t index) {
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
    errno = MP_TABLE_FULL;
    return MP_FAILED;
}

/* `sequence`: of its last operation on a semaphore. */
void mp_record_free(struct mp_family *f, uint32_t i, uint32_t sequence) {
    struct mp_record *r = &f->seg->records[i];
    atomic_store(&r->done, ((atomic_load(&r->done) >> 16) + 1) << 16 | (sequence & MP_RECORD_SEQUENCE));
    atomic_store(&r->word, (uint64_t)(sequence & MP_RECORD_SEQUENCE) << 40);
    atomic_store(&r->waiting, 0);
    atomic_store(&r->owner, 0);
    if (i < atomic_load_explicit(&f->h->record_hint, memory_order_relaxed))
        atomic_store_explicit(&f->h->record_hint, i, memory_order_relaxed);
}

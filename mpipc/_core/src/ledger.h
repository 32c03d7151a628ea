/* The ledger of a pool's worker: what the parent knows about it without being told, in the 64 bytes of a DATA block.
 *
 * A worker numbers its tasks as the parent did (1, 2, 3 ..., some may be missing). It claims one before it runs it, and writes
 * `finished` before it sends the result. The parent reads:
 *
 *   number <= finished             the task has run to its end
 *   finished < number == claimed   it is running, or was when the worker died
 *   number > claimed               it was never begun: it may be given to another worker
 *
 * Both only grow. That is about the tasks that the worker has; `claimed` can also be the number of one that was taken back.
 *
 * The parent can take back tasks that the worker has, in a message or in its hands already, and has not begun: all from some
 * number on. The word `claimed` holds the number and where the tasks begin that were taken back, so both sides change it by
 * compare-and-swap and one of them sees the other. `revoked_to` is where those tasks end. The parent writes it first:
 *
 *   the worker comes to a number at which a range begins, or after that, and not after revoked_to: it passes over it;
 *   any other number: it claims it, unless the word has changed since, for then it looks again.
 *
 * There is one range at a time. It ends when the worker claims a number behind it; as long as it has not, what is taken back
 * next makes it longer, so that it takes back everything up to there. If the worker saw the new revoked_to before the parent
 * changed `claimed`, it has passed over numbers in between, which the parent takes back nevertheless: `claimed` has not
 * changed, or the parent looks again. If the worker saw the old one, its compare-and-swap has to fail: hence the turn, which
 * makes the word a different one also where a longer range begins at the same number.
 *
 * But if all that the worker still has was given to it after the range, it would lose that altogether, although it may just
 * have been about to begin it; and so would whoever gets it next, and so on. Then the parent settles the range first: it sets
 * `claimed` to where the range ends, which the worker would pass over anyway. Either that comes first or the worker's claim of
 * a number behind the range; after both there is no range. What is taken back next begins behind the oldest task that the
 * worker has, if the parent wants no more. The parent writes revoked_to after it has settled, so a worker that finds a number
 * not to be after revoked_to looks at the word again: it may have found the end of another range than it saw the start of.
 *
 * Where the worker can die: before its compare-and-swap the task was not begun, after it it was; there is nothing in between.
 * `item` and `since` are written before that, and are about the task that was claimed before until then: of a task that
 * ended nobody asks for them, and there is no other one. When the parent dies, so does the worker. That every instruction of
 * mp_ledger_start() may be the one at which the parent takes tasks back is tried in tests/native/kill_every_step.c.
 *
 * A task that the parent wants to end early is condemned: the parent writes the number and then reads `finished`, the worker
 * writes `finished` and then reads the number. As both are sequentially consistent, at least one of them sees the other. So
 * either the task counts as finished and its result will be sent, or the worker stops before it sends and can be killed: a
 * result is never sent for a task that was condemned, and no other task is hit by the kill. */
#ifndef MPIPC_LEDGER_H
#define MPIPC_LEDGER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct mp_ledger {
    _Atomic uint64_t claimed;    /* number of the last task : 36 | distance to the range taken back : 20 | turn : 8 */
    _Atomic uint64_t finished;   /* number of the last task that has run to its end */
    _Atomic uint64_t condemned;  /* number of the task that the parent wants to end; 0 if none; MP_LEDGER_ENDING */
    _Atomic uint64_t item;       /* which item of a chunk is running, from 0 */
    _Atomic uint64_t since;      /* when the task was started, CLOCK_MONOTONIC in ns */
    _Atomic uint64_t busy;       /* ns spent in tasks that have ended */
    _Atomic uint64_t ready;      /* when the initializer had returned, CLOCK_MONOTONIC in ns; 1: about to run; 0: before */
    _Atomic uint64_t revoked_to; /* the last number that was taken back */
};
_Static_assert(sizeof(struct mp_ledger) == 64, "the payload of a block");

/* The distance is 0 if there is no range. The turn counts the calls of mp_ledger_revoke(); a worker that is held up between its
 * look and its compare-and-swap has long lost all its tasks before 256 of them. */
#define MP_LEDGER_DISTANCE_MOST 0xfffffull

#define MP_LEDGER_ENDING UINT64_MAX /* the number of no task */

static inline uint64_t mp_ledger_word(uint64_t claimed, uint64_t distance, uint64_t turn) {
    return claimed << 28 | distance << 8 | (turn & 0xff);
}
static inline uint64_t mp_ledger_distance(uint64_t word) { return word >> 8 & MP_LEDGER_DISTANCE_MOST; }
static inline uint64_t mp_ledger_claimed(struct mp_ledger *l) { return atomic_load(&l->claimed) >> 28; }

/* The worker: the next thing it does is to run the task. false: the parent has taken it back, it must not be run. */
static inline bool mp_ledger_start(struct mp_ledger *l, uint64_t number, uint64_t now_ns) {
    atomic_store_explicit(&l->item, 0, memory_order_relaxed);
    atomic_store_explicit(&l->since, now_ns, memory_order_relaxed);
    uint64_t word = atomic_load(&l->claimed);
    for (;;) {
        uint64_t claimed = word >> 28, distance = mp_ledger_distance(word);
        if (number <= claimed)
            return false; /* of a range that was settled */
        if (distance != 0 && number >= claimed + distance) {
            if (number <= atomic_load(&l->revoked_to)) {
                uint64_t looked_at = word;
                word = atomic_load(&l->claimed);
                if (word == looked_at)
                    return false;
                continue; /* where the next range ends, perhaps, and this one has been settled */
            }
            distance = 0;
        } else if (distance != 0) {
            distance -= number - claimed;
        }
        if (atomic_compare_exchange_strong(&l->claimed, &word, mp_ledger_word(number, distance, word)))
            return true;
    }
}

/* The worker: the task has run to its end. true: it is condemned, and must not go on as long as it is. */
static inline bool mp_ledger_finish(struct mp_ledger *l, uint64_t number, uint64_t now_ns) {
    uint64_t spent = now_ns - atomic_load_explicit(&l->since, memory_order_relaxed);
    atomic_store_explicit(&l->busy, atomic_load_explicit(&l->busy, memory_order_relaxed) + spent, memory_order_relaxed);
    atomic_store(&l->finished, number);
    return atomic_load(&l->condemned) == number;
}

/* The parent: takes back the tasks from `first` to `last`, the last one of all, as far as they were not begun. `oldest` is the
 * first one that the worker has, and has not answered. Returns the number from which on they are taken back: greater than `first`
 * if the worker has begun more, smaller if it has not come to what was taken back before; but greater than `oldest` if `first`
 * is. */
static inline uint64_t mp_ledger_revoke(struct mp_ledger *l, uint64_t oldest, uint64_t first, uint64_t last) {
    uint64_t word = atomic_load(&l->claimed), settled = atomic_load(&l->revoked_to);
    while (oldest > settled && mp_ledger_distance(word) != 0)
        if (atomic_compare_exchange_strong(&l->claimed, &word, mp_ledger_word(settled, 0, word)))
            break;
    atomic_store(&l->revoked_to, last);
    word = atomic_load(&l->claimed);
    for (;;) {
        uint64_t claimed = word >> 28, distance = mp_ledger_distance(word), start = first;
        if (start <= claimed)
            start = claimed + 1;
        if (distance != 0 && start > claimed + distance)
            start = claimed + distance;
        if (start > last)
            return start;
        if (start - claimed > MP_LEDGER_DISTANCE_MOST)
            return last + 1; /* it keeps them */
        if (atomic_compare_exchange_strong(&l->claimed, &word, mp_ledger_word(claimed, start - claimed, word + 1)))
            return start;
    }
}

/* The parent: the pool is being terminated. The worker looks before it begins a task and before it waits for one, and leaves;
 * what it sends until then, nobody wants. For good. */
static inline void mp_ledger_end(struct mp_ledger *l) { atomic_store(&l->condemned, MP_LEDGER_ENDING); }
static inline bool mp_ledger_ending(struct mp_ledger *l) { return atomic_load(&l->condemned) == MP_LEDGER_ENDING; }

/* The parent: tries to end a task early. true: its result will not be sent, kill the worker. false: it has finished. */
static inline bool mp_ledger_condemn(struct mp_ledger *l, uint64_t number) {
    atomic_store(&l->condemned, number);
    if (atomic_load(&l->finished) < number)
        return true;
    atomic_store(&l->condemned, 0);
    return false;
}

#endif

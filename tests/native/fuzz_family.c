/* The family's shared memory, after a process has run wild in it: whatever stands there, nobody crashes and nobody loops for ever.
 *
 * For each seed a child founds a family, makes one of everything in it, overwrites random words of what is in use with random values,
 * and then does what any process would: look after the family, recover, use each object, drop it, fork. What comes out does not
 * matter; that it comes out does.
 *
 *   fuzz_family FIRST_SEED COUNT
 *
 * Prints the seed of the first child that ended by a signal, and exits with 1; with 77 if it may not make namespaces. */
#include "core.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_S 20
#define OBJECTS 11

static struct mp_family family, *f = &family;
static uint64_t state;

static uint64_t draw(void) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
}

/* Values that hurt: small ones, the ends of tables, all ones, and anything. */
static uint64_t wild(void) {
    static const uint64_t ends[] = {MP_SLOTS, MP_BLOCKS,  MP_CHUNKS,  MP_RECORDS, MP_CELLS,
                                    0xffff,   1ull << 31, 1ull << 32, ~0ull};
    switch (draw() % 5) {
    case 0:
        return draw() % 16;
    case 1:
        return ends[draw() % (sizeof ends / sizeof *ends)] - draw() % 2;
    case 2:
        return 1ull << draw() % 64;
    case 3:
        return ~0ull << draw() % 64;
    default:
        return draw();
    }
}

static uint32_t blocks[OBJECTS];
static const uint32_t kinds[OBJECTS] = {MP_KIND_LOCK,      MP_KIND_RLOCK,     MP_KIND_SEMAPHORE,   MP_KIND_EVENT,
                                        MP_KIND_CONDITION, MP_KIND_BARRIER,   MP_KIND_QUEUE,       MP_KIND_SEGMENT,
                                        MP_KIND_RWLOCK,    MP_KIND_BROADCAST, MP_KIND_SUBSCRIPTION};
static struct mp_queue_view queue;
static struct mp_broadcast_view channel;

static void make_everything(void) {
    if (mp_family_create(f, "fuzz_family", mp_tick) != MP_OK || mp_family_join(f) != MP_OK)
        exit(3);
    for (int i = 0; i < OBJECTS; i++) {
        int64_t index = mp_block_new(f, kinds[i]);
        if (index < 0)
            exit(3);
        blocks[i] = (uint32_t)index;
        struct mp_block *b = mp_block_at(f, blocks[i]);
        if (kinds[i] == MP_KIND_SEMAPHORE)
            mp_sem_init(b, 3, 5, MP_RETURNS_GUESSED);
        if (kinds[i] == MP_KIND_RWLOCK)
            mp_rw_init(b);
        if (kinds[i] == MP_KIND_QUEUE &&
            (mp_block_msgget(f, blocks[i], 0600) < 0 || mp_queue_make(f, blocks[i], 0, 0) != MP_OK))
            exit(3);
        if (kinds[i] == MP_KIND_SEGMENT && mp_block_shmget(f, blocks[i], 8192, 0600) < 0)
            exit(3);
        if (kinds[i] == MP_KIND_BROADCAST) {
            if (mp_block_shmget(f, blocks[i], mp_broadcast_size(3, 128), 0600) < 0)
                exit(3);
            mp_broadcast_init(b, 3, 128, draw() % 2 ? MP_BROADCAST_DROP : 0);
        }
        mp_block_ready(f, blocks[i]);
        for (uint32_t n = 0; n < 3 * MP_HOLDERS; n++) /* a holder that recovery finds dead; and chunks */
            mp_block_hold(f, blocks[i], (int)(n * 40));
    }
    int error;
    mp_sem_try(f, blocks[2], &error);
    mp_cell_enter(f, blocks[4], 0, 0);
    mp_rw_read_try(f, blocks[8]);
    mp_queue_open(&queue, f, blocks[6]);
    if (mp_broadcast_open(&channel, f, blocks[9]) != MP_OK || mp_subscribe(&channel, blocks[10]) != MP_OK)
        exit(3);
    mp_slot_reserve(f, MP_SLOT_FORKING);
}

static void run_wild(void) {
    const struct {
        void *start;
        size_t size;
    } regions[] = {
        {f->h, sizeof *f->h},
        {f->seg->alive_sets, 64},
        {f->seg->bell_sets, 64},
        {f->seg->banks, 64},
        {f->seg->slots, 8 * sizeof f->seg->slots[0]},
        {f->seg->cells, 4 * sizeof f->seg->cells[0]},
        {f->seg->records, 4 * sizeof f->seg->records[0]},
        {f->seg->first.blocks, 16 * sizeof f->seg->first.blocks[0]},
        {f->seg->first.chunks, 32 * sizeof f->seg->first.chunks[0]},
        {channel.subscriptions, 32},
        {channel.entries, 4 * sizeof channel.entries[0]},
    };
    for (uint64_t n = 1 + draw() % 40; n > 0; n--) {
        size_t r = draw() % (sizeof regions / sizeof *regions);
        uint64_t *word = (uint64_t *)regions[r].start + draw() % (regions[r].size / 8);
        *word = draw() % 3 == 0 ? *word ^ 1ull << draw() % 64 : wild();
    }
}

static void send_and_take(void) {
    struct mp_message m = {.kind = MP_BODY_INLINE};
    struct mp_item item;
    int outcome = mp_queue_try_send(&queue, &m, 8, 0);
    if (outcome == MP_BUSY)
        mp_queue_send(&queue, &m, 8, 0, mp_now_ns() + 1000000);
    outcome = mp_queue_try_take(&queue, &item);
    if (outcome == MP_BUSY)
        mp_queue_take(&queue, &item, mp_now_ns() + 1000000);
    mp_queue_size(&queue);
    mp_waits_count(f, MP_WAIT_MESSAGE, blocks[6]);
}

static void read_and_write(void) {
    uint32_t tenure;
    if (mp_rw_read_try(f, blocks[8]) == MP_OK)
        mp_rw_read_release(f, blocks[8]);
    if (mp_rw_read_enroll(f, blocks[8], &tenure) == MP_OK) {
        int64_t cell = mp_rw_cell(f, blocks[8], -1, MP_RW_READ);
        if (cell >= 0 && !mp_rw_read_look(f, blocks[8], tenure))
            mp_cell_wait(f, (uint32_t)cell, mp_now_ns() + 1000000);
        mp_rw_read_cancel(f, blocks[8], tenure);
        if (cell >= 0)
            mp_cell_leave(f, (uint32_t)cell);
    }
    if (mp_rw_write_try(f, blocks[8]))
        mp_rw_write_release(f, blocks[8]);
}

static void put_and_get(void) {
    struct mp_subscription *s = mp_subscription_of(mp_block_at(f, blocks[10]));
    struct mp_broadcast_view again;
    uint64_t bytes;
    for (int i = 0; i < 8; i++) {
        struct mp_letter letter = {.length = 1 + draw() % 40};
        if (mp_broadcast_begin(&channel, &letter, mp_now_ns() + 1000000) == MP_OK) {
            memset(letter.data, i, letter.length);
            mp_broadcast_publish(&channel, &letter);
        }
        int outcome = mp_subscription_next(&channel, s, &letter);
        if (outcome == MP_OK) {
            unsigned char copy[128];
            memcpy(copy, letter.data, letter.length);
        }
        if (outcome == MP_OK || outcome == MP_CORRUPT)
            mp_subscription_take(&channel, s, &letter);
    }
    mp_broadcast_kept(&channel, &bytes);
    mp_subscription_behind(&channel, s);
    mp_subscription_lost(&channel, s);
    int64_t cell = mp_broadcast_cell(&channel, -1, MP_PLACE_GET);
    mp_broadcast_waiting(&channel, MP_PLACE_GET);
    mp_broadcast_shutdown(&channel, false);
    if (cell >= 0)
        mp_cell_leave(f, (uint32_t)cell);
    if (mp_broadcast_open(&again, f, blocks[9]) == MP_OK)
        mp_broadcast_close(&again);
}

static void use_everything(void) {
    uint16_t slots[MP_SLOTS];
    int error;
    mp_tick(f);
    mp_recover(f);
    for (int i = 0; i < OBJECTS; i++)
        mp_block_holders(f, blocks[i], slots, MP_SLOTS);
    for (int i = 0; i < 2; i++)
        if (mp_lock_wait(f, blocks[i], mp_now_ns() + 1000000) == MP_OK)
            mp_lock_release(f, blocks[i]);
    mp_sem_try(f, blocks[2], &error);
    mp_sem_release(f, blocks[2]);
    mp_event_set(f, blocks[3]);
    mp_event_clear(f, blocks[3]);
    int64_t cell = mp_cell_enter(f, blocks[4], 0, 0);
    mp_cells_waiting(f, blocks[4]);
    mp_cells_notify(f, blocks[4], 1);
    mp_cells_notify(f, blocks[4], -1);
    if (cell >= 0 && !mp_cell_cancel(f, (uint32_t)cell))
        mp_cell_leave(f, (uint32_t)cell);
    read_and_write();
    send_and_take();
    put_and_get();
    int64_t fresh = mp_block_new(f, MP_KIND_LOCK);
    if (fresh >= 0) {
        mp_block_ready(f, (uint32_t)fresh);
        mp_block_drop(f, (uint32_t)fresh);
    }
    mp_fork_prepare(f);
    mp_fork_parent(f);
    int64_t token = mp_transit_reserve(f);
    if (token >= 0)
        mp_transit_arrived(f, token);
    mp_family_pending(f);
    mp_family_populated(f);
    mp_trim(f, 0);
    mp_recover(f);
    for (int i = 0; i < OBJECTS; i++)
        mp_block_drop(f, blocks[i]);
    mp_recover(f);
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    uint64_t first = strtoull(argv[1], NULL, 10), count = strtoull(argv[2], NULL, 10);
    for (uint64_t seed = first; seed < first + count; seed++) {
        pid_t pid = fork();
        if (pid == 0) {
            /* What a wild process has left nobody can sweep: it goes with the namespace. */
            if (unshare(CLONE_NEWIPC) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWIPC) < 0)
                _exit(77);
            alarm(PATIENCE_S);
            state = (seed + 1) * 0x9e3779b97f4a7c15ull;
            make_everything();
            run_wild();
            use_everything();
            _exit(0);
        }
        int status;
        if (pid < 0 || waitpid(pid, &status, 0) != pid)
            return 3;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
            return 77;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            fprintf(stderr, "seed %llu: %s %d\n", (unsigned long long)seed, WIFSIGNALED(status) ? "signal" : "status",
                    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
            return 1;
        }
    }
    printf("%llu families from seed %llu on: nobody crashed or looped\n", (unsigned long long)count, (unsigned long long)first);
    return 0;
}

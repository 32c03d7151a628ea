/* The reaper's life. */
#include "reaper.h"

#include "futex.h"
#include "guests.h"
#include "holders.h"
#include "liveness.h"
#include "recovery.h"
#include "segment.h"
#include "sweep.h"

#include <signal.h>
#include <unistd.h>

/* ---- what is in transit ------------------------------------------------------------------------------------------------
 *
 * A segment may be marked for removal, and be there only as long as somebody has it attached. See mp_transit_keep(). The table is
 * the reaper's own; what finds no place in it is not kept. */

#define KEPT_MOST 4096

static struct kept {
    void *address;
    uint32_t slot, generation;
} kept[KEPT_MOST];
static uint32_t kept_count;

static bool in_transit(struct mp_family *f, uint32_t slot, uint32_t generation) {
    uint64_t word = atomic_load(&f->seg->slots[slot].word);
    return mp_slot_state_of(word) == MP_SLOT_TRANSIT && mp_slot_generation(word) == generation;
}

static void let_go(struct mp_family *f) {
    for (uint32_t i = 0; i < kept_count;)
        if (in_transit(f, kept[i].slot, kept[i].generation)) {
            i++;
        } else {
            shmdt(kept[i].address);
            kept[i] = kept[--kept_count];
        }
}

static void keep(struct mp_family *f, uint32_t slot, uint32_t generation) {
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high && kept_count < KEPT_MOST; i++) {
        struct mp_block *b = mp_block_at(f, i);
        if (b->kind != MP_KIND_SEGMENT || !mp_block_is_live(atomic_load(&b->word)) || !mp_block_holds(f, i, (int)slot))
            continue;
        void *address = shmat(atomic_load(&b->id), NULL, SHM_RDONLY);
        if (address != (void *)-1)
            kept[kept_count++] = (struct kept){address, slot, generation};
    }
}

static void keep_what_is_in_transit(struct mp_family *f) {
    uint32_t high = mp_slot_high(f);
    let_go(f);
    for (uint32_t i = 0; i < high; i++) {
        struct mp_slot *s = &f->seg->slots[i];
        uint64_t word = atomic_load(&s->word);
        uint32_t wanted = MP_KEEP_WANTED;
        if (mp_slot_state_of(word) != MP_SLOT_TRANSIT || atomic_load(&s->kept) != MP_KEEP_WANTED)
            continue;
        keep(f, i, mp_slot_generation(word));
        if (atomic_compare_exchange_strong(&s->kept, &wanted, MP_KEEP_DONE))
            mp_futex_wake(&s->kept);
    }
}

/* Somebody has removed the family's own set: nobody can join any more, nor is a death announced. What is left goes with the last
 * who is attached. */
static int outlive(struct mp_family *f) {
    struct shmid_ds ds;
    while (shmctl(f->shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch > 1)
        nanosleep(&(struct timespec){MP_TICK_NS / 1000000000, MP_TICK_NS % 1000000000}, NULL);
    mp_family_destroy(f);
    return 1;
}

/* How often the reaper looks again, after a ring that it has found no reason for. */
#define SECOND_LOOKS 3

/* The reaper's life. Returns its exit code. `listen`: NULL where there can be no second thread. */
int mp_reaper_main(int shmid, uint64_t nonce, mp_listen_function *listen) {
    /* Signals that a terminal or a service manager sends to everybody: the reaper goes when the last process has gone. */
    static const int ignored[] = {SIGINT,  SIGHUP,  SIGQUIT, SIGTERM, SIGPIPE, SIGTSTP,
                                  SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGALRM};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        signal(ignored[i], SIG_IGN);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();

    struct mp_family f;
    if (mp_family_attach(&f, shmid, nonce, MP_ATTACH_TOLD, NULL) != MP_OK)
        return 1;
    if (!mp_reaper_become(&f))
        return 0; /* there is one */
    f.listens = f.h->users_change && listen != NULL && listen(&f);
    int64_t trimmed_ns = mp_now_ns();
    int looks = 0;
    for (;;) {
        keep_what_is_in_transit(&f); /* first: somebody waits for it */
        mp_guests_admit(&f);
        mp_undo_try(&f);
        if (!mp_reaper_stay(&f))
            return 0;
        int recovered = mp_recover(&f);
        if (recovered > 0)
            looks = 0;
        if (mp_now_ns() - trimmed_ns > 10 * MP_TICK_NS) { /* between two timeouts below, or deaths, that is */
            mp_trim(&f, 5 * MP_TICK_NS);
            trimmed_ns = mp_now_ns();
        }
        bool pending = mp_family_pending(&f) || recovered < 0 || f.again;
        if (!pending && !mp_family_populated(&f)) {
            atomic_store(&f.h->state, MP_CLOSING);
            if (!mp_family_populated(&f) && mp_family_destroy(&f))
                return 0;
            atomic_store(&f.h->state, MP_OPEN);
        }
        /* Deaths are announced by the kernel. What it does not announce (a child on its way in, an attachment that is no
         * member's) is looked at again soon. */
        bool members = false;
        for (uint32_t i = 0, high = mp_slot_high(&f); i < high && !members; i++)
            members = mp_slot_state_of(atomic_load(&f.seg->slots[i].word)) == MP_SLOT_ALIVE;
        bool soon = pending || !members || looks > 0;
        int rung = mp_reaper_wait(&f, soon ? 50000000 : 30000000000ll);
        if (rung < 0 && errno != EAGAIN && errno != EINTR)
            return outlive(&f);
        /* Whoever rings may be dying, on a kernel that undoes its operations in another order than is promised. */
        looks = rung == 0 ? SECOND_LOOKS : looks > 0 ? looks - 1 : 0;
        int more = semctl(f.semid, MP_SEM_DEATHS, GETVAL);
        if (more > 0) { /* not SETVAL: that would drop the undo entries of the living */
            struct sembuf drain = {MP_SEM_DEATHS, (short)-more, IPC_NOWAIT};
            semop(f.semid, &drain, 1);
        }
    }
}

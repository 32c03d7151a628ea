/* What a member does once a tick: whoever waits, and whoever only polls. */
#include "tick.h"

#include "access.h"
#include "guests.h"
#include "launch.h"
#include "liveness.h"
#include "recovery.h"
#include "sets.h"
#include "ties.h"

#include <signal.h>
#include <unistd.h>

/* What a waiter does once a second: the reaper may be gone, or slow. */
int mp_tick(struct mp_family *f) {
    atomic_store_explicit(&f->looked, mp_coarse_ns(), memory_order_relaxed);
    mp_guests_admit(f);
    bool reaper = mp_reaper_present(f);
    if (!reaper && MP_ALLOWED(f, semctl(f->semid, MP_SEM_REAPER, GETVAL)) < 0)
        return MP_FAILED;
    struct shmid_ds ds;
    unsigned short alive[MP_SLOTS];
    uint32_t high = mp_slot_high(f);
    unsigned long living = reaper ? 1 : 0;
    bool dead = !reaper && mp_undo(f) == MP_UNDO_IGNORED; /* nobody has looked */
    mp_alive_read(f, high, alive);
    for (uint32_t i = 0; i < high; i++)
        if (mp_slot_state_of(atomic_load(&f->seg->slots[i].word)) == MP_SLOT_ALIVE) {
            living += alive[i] != 0;
            dead = dead || alive[i] == 0;
        }
    if (dead || (shmctl(f->shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch < living)) /* the latter: one has left by execve(2) */
        mp_recover(f);
    int launched = reaper ? MP_OK : mp_launch_reaper(f);
    if (!mp_tie_holds(f)) /* nobody could end this process, or it was the one who recovered */
        kill(getpid(), SIGKILL);
    return launched;
}

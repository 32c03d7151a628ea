/* Who is alive, where the kernel's word for it (SEM_UNDO) is not to be had, or a pid means another process.
 *
 * Some kernels accept SEM_UNDO and ignore it: gVisor, and sandboxes that rewrite system calls. There no death is announced, and
 * whatever a dead process was counted in stays as it is. So a family's first reaper tries it out: a child of its own adds to
 * MP_SEM_TRIAL with SEM_UNDO, and ends. The verdict stands in header.undo. Four things rest on undo, and each has its answer where
 * it is ignored:
 *
 *   alive[slot], and the ring that announces a death: the reaper watches the members, by a pidfd each, and recovery sets alive[] of
 *     those that are gone to 0 before it looks at it (mp_undo_for_the_dead()), as the kernel would have;
 *   the reaper's presence (MP_SEM_REAPER): header.reaper names it;
 *   the recovery lock (MP_SEM_RECOVERY): header.recoverer names who has it, and that of a dead one is taken over;
 *   `deaths` of a process that dies while it joins: its slot is JOINING, and recovery asks for its pid as everywhere.
 *
 * Names are a pid and, in the other half of the word, the lower half of the time at which the process started: a pid alone may have
 * been given to another process since. As long as there is no verdict both ways hold: who takes the recovery lock takes the word
 * and the semaphore, and the reaper is there if its semaphore says so and nobody knows better by its name.
 *
 * A pid means a process in the pid namespace of who wrote it down only. Containers may share IPC and not pids (the pods of
 * Kubernetes do), so the namespace stands beside each slot (mp_slot.pid_ns), and nobody asks for a pid of another. Where SEM_UNDO works the
 * kernel's word is enough for members in any namespace. Where it does not, a family has one namespace.
 *
 * Invariants:
 *   alive[slot] is set to 0 with the recovery lock held, while the slot's word is of the process that was seen to be gone: only
 *     recovery frees slots, so no other process has it by then;
 *   a pid is never taken for gone because it cannot be seen: of a foreign one, or without /proc, that would be everybody. */
#include "liveness.h"

#include "access.h"
#include "processes.h"
#include "sets.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

union semun {
    int val;
};

static uint64_t name_of(pid_t pid, uint64_t started) { return (uint64_t)(uint32_t)pid << 32 | (uint32_t)started; }
static uint64_t my_name(void) { return name_of(getpid(), mp_process_start_time(getpid())); }

/* Is the process gone, or its pid another's? */
static bool is_gone(pid_t pid, uint32_t started) {
    return mp_process_gone(pid) || (started != 0 && (uint32_t)mp_process_start_time(pid) != started);
}

static bool name_is_gone(uint64_t name) { return is_gone((pid_t)(name >> 32), (uint32_t)name); }

/* ---- the verdict -------------------------------------------------------------------------------------------------------- */

enum mp_undo mp_undo(struct mp_family *f) { return (enum mp_undo)atomic_load_explicit(&f->h->undo, memory_order_relaxed); }

/* By the reaper. A child that only makes system calls, since the reaper may be a clone of a program with threads. */
void mp_undo_try(struct mp_family *f) {
    union semun arg = {.val = 0};
    int status;
    if (mp_undo(f) != MP_UNDO_UNKNOWN || semctl(f->semid, MP_SEM_TRIAL, SETVAL, arg) < 0)
        return;
    pid_t pid = (pid_t)syscall(SYS_clone, (unsigned long)SIGCHLD, NULL, NULL, NULL, 0ul);
    if (pid == 0) {
        prctl(PR_SET_NAME, "mpipc-trial"); /* who looks for the reaper is not to find two */
        struct sembuf add = {MP_SEM_TRIAL, 1, SEM_UNDO};
        _exit(semop(f->semid, &add, 1) == 0 ? 0 : 1);
    }
    if (pid < 0)
        return; /* another time */
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return;
    int left = semctl(f->semid, MP_SEM_TRIAL, GETVAL);
    if (left >= 0)
        atomic_store(&f->h->undo, left == 0 ? MP_UNDO_WORKS : MP_UNDO_IGNORED);
}

/* ---- the reaper's presence ------------------------------------------------------------------------------------------------ */

bool mp_reaper_present(struct mp_family *f) {
    uint64_t name = atomic_load(&f->h->reaper);
    enum mp_undo undo = mp_undo(f);
    if (undo != MP_UNDO_IGNORED && MP_ALLOWED(f, semctl(f->semid, MP_SEM_REAPER, GETVAL)) <= 0)
        return false;
    if (undo == MP_UNDO_WORKS)
        return true;
    if (name == 0) /* it has not come so far, or never will */
        return mp_now_ns() - atomic_load(&f->h->reaper_launched_ns) < MP_TICK_NS;
    return atomic_load(&f->h->reaper_ns) != f->pid_ns || !name_is_gone(name);
}

static bool take_presence(struct mp_family *f) {
    struct sembuf become[] = {{MP_SEM_REAPER, 0, IPC_NOWAIT}, {MP_SEM_REAPER, 1, SEM_UNDO | IPC_NOWAIT}};
    return semop(f->semid, become, 2) == 0;
}

/* Makes this process the reaper. False: there is one. */
bool mp_reaper_become(struct mp_family *f) {
    bool counted = take_presence(f);
    uint64_t name = atomic_load(&f->h->reaper);
    bool told = name != 0 && atomic_load(&f->h->reaper_ns) == f->pid_ns; /* by its name whether it is there */
    if (mp_undo(f) != MP_UNDO_WORKS && (name == 0 || told) ? told && !name_is_gone(name) : !counted)
        return false;
    f->counted_as_reaper = counted;
    f->is_reaper = true;
    atomic_store(&f->h->reaper_ns, f->pid_ns);
    return atomic_compare_exchange_strong(&f->h->reaper, &name, my_name());
}

/* Still? Of two that came at the same time before there was a verdict, or of which one was stopped and taken for dead, one may have
 * the semaphore, and the other the name. The one with the name stays, and gets the semaphore when the other has gone. */
bool mp_reaper_stay(struct mp_family *f) {
    if (!f->counted_as_reaper)
        f->counted_as_reaper = take_presence(f);
    return f->counted_as_reaper || atomic_load(&f->h->reaper) == my_name();
}

/* ---- the recovery lock ---------------------------------------------------------------------------------------------------- */

enum { BY_WORD = 1, BY_SEMAPHORE = 2, WANTED = 4 };

/* A name in the lock is of a process that has the segment attached. Who is alone with it need not ask for it. */
static bool take_word(struct mp_family *f) {
    uint64_t name = atomic_load(&f->h->recoverer), mine = my_name();
    struct shmid_ds ds;
    bool ours =
        name == mine; /* no thread's of this process (mp_recovery_lock), so that of the program that it was before execve(2) */
    if (name != 0 && !ours && !name_is_gone(name) && !(shmctl(f->shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1))
        return false;
    return atomic_compare_exchange_strong(&f->h->recoverer, &name, mine);
}

/* Without a verdict, by the owner of the word: is the semaphore held by one who died with it, and nobody has undone that? Then it
 * is free now. A foreign process's pid is 0 here. */
static bool was_never_undone(struct mp_family *f) {
    union semun arg = {.val = 0};
    int pid = semctl(f->semid, MP_SEM_RECOVERY, GETPID);
    return pid > 0 && mp_process_gone(pid) && semctl(f->semid, MP_SEM_RECOVERY, SETVAL, arg) == 0;
}

/* How it is held, 0: not at all. */
static int take_recovery_lock(struct mp_family *f) {
    struct sembuf take[] = {{MP_SEM_RECOVERY, 0, IPC_NOWAIT}, {MP_SEM_RECOVERY, 1, SEM_UNDO | IPC_NOWAIT}};
    enum mp_undo undo = mp_undo(f);
    int held = 0;
    if (undo != MP_UNDO_WORKS) {
        if (!take_word(f))
            return 0;
        held = BY_WORD;
    }
    if (undo != MP_UNDO_IGNORED) {
        bool taken = semop(f->semid, take, 2) == 0;
        if (!taken && undo == MP_UNDO_UNKNOWN && errno == EAGAIN && was_never_undone(f))
            taken = semop(f->semid, take, 2) == 0;
        if (!taken) {
            if (held & BY_WORD)
                atomic_store(&f->h->recoverer, 0);
            return 0;
        }
        held |= BY_SEMAPHORE;
    }
    return held;
}

/* Of this process one thread at a time asks for it: a name says nothing of threads, and who is alone with the segment does not
 * ask. */
bool mp_recovery_lock(struct mp_family *f) {
    int nobody = 0;
    if (!atomic_compare_exchange_strong(&f->recovery_held, &nobody, WANTED))
        return false;
    int held = take_recovery_lock(f);
    atomic_store(&f->recovery_held, held);
    return held != 0;
}

void mp_recovery_unlock(struct mp_family *f) {
    struct sembuf give = {MP_SEM_RECOVERY, -1, SEM_UNDO | IPC_NOWAIT};
    int held = atomic_load(&f->recovery_held);
    if (held & BY_SEMAPHORE)
        semop(f->semid, &give, 1);
    if (held & BY_WORD)
        atomic_store(&f->h->recoverer, 0);
    atomic_store(&f->recovery_held, 0);
}

/* ---- watching the members --------------------------------------------------------------------------------------------------- */

/* The reaper's own: for each slot, a pidfd of the process of this generation, or UNWATCHED. In the order of `watched`, so that
 * one poll(2) looks at all. */
#define UNWATCHED (-1)
#define LOOK_NS 50000000ll /* how often those without a pidfd are looked at */

static struct pollfd watched[MP_SLOTS];
static uint32_t watched_generation[MP_SLOTS];
static uint32_t watched_high;
static int64_t looked_ns;
static rlim_t descriptors; /* how many may be pidfds: some stay free, to look into /proc */

static void raise_descriptors(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    if (limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        getrlimit(RLIMIT_NOFILE, &limit);
    }
    descriptors = limit.rlim_cur > 16 ? limit.rlim_cur - 16 : 0;
}

static bool is_watchable(struct mp_family *f, uint32_t slot, uint64_t word) {
    return mp_slot_state_of(word) == MP_SLOT_ALIVE && !mp_slot_is_foreign(f, (int)slot);
}

/* A pidfd knows best, also without /proc. */
static bool slot_is_gone(struct mp_family *f, uint32_t slot, uint64_t word) {
    if (slot < watched_high && watched[slot].fd >= 0 && watched_generation[slot] == mp_slot_generation(word)) {
        struct pollfd one = watched[slot];
        return poll(&one, 1, 0) > 0;
    }
    return is_gone(mp_slot_pid(word), (uint32_t)atomic_load(&f->seg->slots[slot].start_time));
}

/* True if the process is gone already. The pid is compared with the start time after it has been opened: from then on the
 * descriptor is of one process, whoever gets its pid. */
static bool watch(struct mp_family *f, uint32_t slot, uint64_t word) {
    if (watched[slot].fd >= 0)
        close(watched[slot].fd);
    int fd = UNWATCHED;
#ifdef SYS_pidfd_open
    fd = (int)syscall(SYS_pidfd_open, mp_slot_pid(word), 0u);
#endif
    watched[slot] = (struct pollfd){UNWATCHED, POLLIN, 0};
    watched_generation[slot] = mp_slot_generation(word);
    bool gone = slot_is_gone(f, slot, word);
    if (fd >= 0 && (rlim_t)fd >= descriptors) {
        close(fd);
        fd = UNWATCHED;
    }
    watched[slot].fd = fd < 0 ? UNWATCHED : fd;
    return gone;
}

/* Has a member died that recovery does not know of? */
static bool somebody_is_gone(struct mp_family *f) {
    uint32_t high = mp_slot_high(f);
    bool gone = false, look = mp_now_ns() - looked_ns >= LOOK_NS;
    if (watched_high == 0)
        raise_descriptors();
    for (; watched_high < high; watched_high++) {
        watched[watched_high].fd = UNWATCHED;
        watched_generation[watched_high] = UINT32_MAX;
    }
    for (uint32_t i = 0; i < high; i++) {
        uint64_t word = atomic_load(&f->seg->slots[i].word);
        if (!is_watchable(f, i, word)) {
            if (watched[i].fd >= 0)
                close(watched[i].fd);
            watched[i].fd = UNWATCHED;
            watched_generation[i] = UINT32_MAX;
        } else if (watched_generation[i] != mp_slot_generation(word)) {
            gone = watch(f, i, word) || gone;
        } else if (watched[i].fd < 0 && look) {
            gone = slot_is_gone(f, i, word) || gone;
        }
    }
    if (look)
        looked_ns = mp_now_ns();
    if (poll(watched, high, 0) > 0) /* a negative descriptor is passed over */
        for (uint32_t i = 0; i < high && !gone; i++)
            gone = watched[i].fd >= 0 && watched[i].revents != 0;
    return gone;
}

/* Waits for a ring, at most so long: as semtimedop(2). Where nothing rings for the dead, they are looked for meanwhile. */
#define WATCH_NS 20000000ll

int mp_reaper_wait(struct mp_family *f, int64_t timeout_ns) {
    struct sembuf wait = {MP_SEM_DEATHS, -1, 0};
    int64_t end = mp_now_ns() + timeout_ns;
    for (;;) {
        int64_t left = end - mp_now_ns();
        bool watching = mp_undo(f) == MP_UNDO_IGNORED;
        if (watching && somebody_is_gone(f))
            return 0;
        if (atomic_load(&f->h->access_wanted) != 0)
            return 0;
        if (watching && left > WATCH_NS)
            left = WATCH_NS;
        if (f->h->users_change && !f->listens && left > MP_TICK_NS)
            left = MP_TICK_NS; /* who has changed his user id cannot ring, and nobody does it for him */
        left = left > 0 ? left : 0;
        struct timespec timeout = {left / 1000000000, left % 1000000000};
        if (semtimedop(f->semid, &wait, 1, &timeout) == 0)
            return 0;
        if (errno != EAGAIN || mp_now_ns() >= end)
            return -1;
    }
}

/* By recovery, with its lock held: does what the kernel would have done for the members that are gone. Without a verdict, too: what
 * it has done is no harm, and a family may have died before there was one. */
void mp_undo_for_the_dead(struct mp_family *f) {
    union semun arg = {.val = 0};
    unsigned short num;
    struct shmid_ds ds;
    int semid;
    if (mp_undo(f) == MP_UNDO_WORKS)
        return;
    bool alone = f->outsider && shmctl(f->shmid, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1;
    for (uint32_t i = 0, high = mp_slot_high(f); i < high; i++) {
        uint64_t word = atomic_load(&f->seg->slots[i].word);
        enum mp_slot_state state = mp_slot_state_of(word);
        if (state != MP_SLOT_ALIVE && state != MP_SLOT_JOINING)
            continue;
        if (alone || (!mp_slot_is_foreign(f, (int)i) && slot_is_gone(f, i, word)))
            if (mp_alive(f, (int)i, &semid, &num) == MP_OK)
                semctl(semid, num, SETVAL, arg);
    }
}

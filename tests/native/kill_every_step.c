/* Kills a process after every single machine instruction of an operation, and looks at what recovery makes of it.
 *
 * For each scenario below: a child is run under ptrace(2) to the start of the operation, then stepped k instructions, then
 * killed with SIGKILL; the parent runs mp_recover() and checks the invariants. This is done for every k from 0 to the end
 * of the operation. A long operation (a recovery, say) is first walked through once to find the steps that changed the
 * shared memory or what the kernel knows; between two of them a kill can make no difference, so only those are tried.
 *
 * Linked with the C core itself (../../mpipc/_core/src), compiled with MP_TICK_NS so large that nothing is put right by a
 * waiter's periodic look: what is not repaired by recovery shows as a hang. To be run in an IPC namespace of its own.
 *
 *   kill_every_step            runs all scenarios, prints one line each
 *   kill_every_step NAME ...   runs these
 *   kill_every_step --list     names them
 *
 * Linked with ignore_undo.c and compiled with UNDO_IGNORED, it is on a kernel that ignores SEM_UNDO.
 *
 * Compiled with COVERED and -finstrument-functions, it kills nobody, but runs the operation of one scenario and prints the address
 * of each function that was called in it.
 *
 * With --stop as its first argument it runs the scenarios of stop_scenarios.h instead: there the child is not killed but left
 * standing, for ticks, while others go on; then it goes on, too. To be compiled with a short MP_TICK_NS for that.
 */
#include "core.h"
#include "ledger.h"
#include "queue_inside.h"
#include "times.h"

#include <poll.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PATIENCE_NS
#define PATIENCE_NS 20000000000ll /* how long a hang may take to be called one */
#endif
#define EVERY_STEP 1000           /* operations up to this length are killed at every step */

struct scenario {
    const char *name;
    void (*setup)(void);         /* parent, before the fork */
    void (*prepare)(void);       /* child, at full speed */
    void (*operation)(void);     /* child, step by step */
    void (*meanwhile)(void);     /* parent, when the child has blocked */
    void (*before_kill)(void);   /* parent, while the child stands at its last instruction */
    void (*verify)(bool finished); /* parent, after the recovery; of one that is stopped, when it has come to its end */
    bool founds;                   /* the child makes a family itself: no recovery, the verification sweeps */
    bool root;                     /* only root can do it */
    void (*started)(void);         /* parent, when the child stands before its first instruction */
};

static struct mp_family family, *f = &family;
static const struct scenario *now;
static long step_now;
static pid_t child_pid;
static struct shared {
    volatile int finished;
    volatile int ran[16]; /* ledger: tasks that the child has begun */
} *shared;
static bool stopping; /* the child is not killed where it stands, but goes on */
static bool seen; /* the effect was seen at an earlier step: it must be there at all later ones */

/* ---- which functions were called in an operation ----------------------------------------------------------------------- */

#ifdef COVERED
#define NOT_INSTRUMENTED __attribute__((no_instrument_function))
static bool recording; /* in the child, during the operation */
static struct covered {
    volatile uint32_t count;
    void *functions[4096];
} *covered;
NOT_INSTRUMENTED void __cyg_profile_func_enter(void *function, void *site);
NOT_INSTRUMENTED void __cyg_profile_func_exit(void *function, void *site);
void __cyg_profile_func_enter(void *function, void *site) {
    if (!recording)
        return;
    for (uint32_t i = 0; i < covered->count; i++)
        if (covered->functions[i] == function)
            return;
    if (covered->count < 4096)
        covered->functions[covered->count++] = function;
}
void __cyg_profile_func_exit(void *function, void *site) {}
#endif

static void step(bool *blocked);
static bool has_blocked(pid_t pid);

static void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s, %s after step %ld: ", now ? now->name : "-", stopping ? "stopped" : "killed", step_now);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    exit(1);
}
#define check(condition) ((condition) ? (void)0 : fail("%s:%d: not true: %s", __FILE__, __LINE__, #condition))
#define check_equal(a, b)                                                                                                      \
    do {                                                                                                                       \
        long long a_ = (long long)(a), b_ = (long long)(b);                                                                    \
        if (a_ != b_)                                                                                                          \
            fail("%s:%d: %s is %lld, not %lld (%s)", __FILE__, __LINE__, #a, a_, b_, #b);                                      \
    } while (0)

/* In the place of the C library's: the n-th step of one run has to be that of the next one. What the vDSO does are now some
 * instructions more, now some less; and what is asked once in a tick of the coarse clock (mp_queue_removed_lately()) would be
 * asked in one run and not in another, so each look at that clock is in a tick of its own. */
int clock_gettime(clockid_t clock, struct timespec *time) {
    static int64_t ticks;
    if (clock != CLOCK_MONOTONIC_COARSE)
        return (int)syscall(SYS_clock_gettime, clock, time);
    int64_t ns = ++ticks * 4000000;
    *time = (struct timespec){ns / 1000000000, ns % 1000000000};
    return 0;
}

static void appears_once(bool effect) {
    check(effect || !seen);
    seen = effect;
}

/* ---- the machine's kernel objects, in this namespace ------------------------------------------------------------------ */

static int count_lines(const char *kind) {
    char path[64], line[512];
    int lines = -1; /* the heading */
    snprintf(path, sizeof path, "/proc/sysvipc/%s", kind);
    FILE *file = fopen(path, "re");
    check(file != NULL);
    while (fgets(line, sizeof line, file) != NULL)
        lines++;
    fclose(file);
    return lines;
}
static int queues(void) { return count_lines("msg"); }
static int segments(void) { return count_lines("shm"); }
static int sets(void) { return count_lines("sem"); }

/* ---- bystanders: processes that are parked somewhere when the child dies ------------------------------------------------ */

#define MAX_BYSTANDERS 4
static pid_t bystanders[MAX_BYSTANDERS];
static int bystander_count;

static pid_t bystander(int (*life)(void)) {
    check_equal(mp_fork_prepare(f), MP_OK);
    pid_t pid = fork();
    check(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        mp_fork_child(f);
        _exit(life());
    }
    mp_fork_parent(f);
    bystanders[bystander_count++] = pid;
    return pid;
}

static void wait_for(int (*value)(void), int wanted, const char *what) {
    int64_t deadline = mp_now_ns() + PATIENCE_NS;
    while (value() != wanted) {
        if (mp_now_ns() > deadline)
            fail("%s never became %d (is %d)", what, wanted, value());
        sched_yield();
    }
}
#define wait_until_equal(function, wanted) wait_for(function, wanted, #function)

/* The bystander has to come to its end: nobody it waits for exists any more. */
static void bystander_ends(pid_t pid) {
    int64_t deadline = mp_now_ns() + PATIENCE_NS;
    int status = 0;
    pid_t got;
    while ((got = waitpid(pid, &status, WNOHANG)) == 0) {
        if (mp_now_ns() > deadline)
            fail("bystander %d hangs", (int)pid);
        sched_yield();
    }
    check(got == pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail("bystander ended with status %#x", status);
    for (int i = 0; i < bystander_count; i++)
        if (bystanders[i] == pid)
            bystanders[i] = bystanders[--bystander_count];
}

/* ---- blocks the scenarios work on ---------------------------------------------------------------------------------------- */

static uint32_t block;

static uint32_t make(uint32_t kind) {
    int64_t index = mp_block_new(f, kind);
    check(index >= 0);
    return (uint32_t)index;
}
static struct mp_block *at(void) { return mp_block_at(f, block); }
static int sleepers(void) { return mp_bell_get(f, block, GETNCNT); }
static int value(void) { return (int)mp_sem_value(at()); }
static uint64_t lock_word(void) { return atomic_load(&at()->lock.word); }

static void have_semaphore_that(enum mp_returns returns, uint32_t value, uint32_t maximum) {
    block = make(MP_KIND_SEMAPHORE);
    mp_sem_init(at(), value, maximum, returns);
    mp_block_ready(f, block);
}
static void have_semaphore(uint32_t value, uint32_t maximum) { have_semaphore_that(MP_RETURNS_GUESSED, value, maximum); }
static void setup_semaphore_0(void) { have_semaphore(0, 5); }
static void setup_semaphore_3(void) { have_semaphore(3, 5); }
static void others_use_it(void);
static void setup_used_3(void) {
    setup_semaphore_3();
    others_use_it();
}
static void setup_bounded_3(void) { have_semaphore(3, 3); }
static void have(uint32_t kind) {
    block = make(kind);
    mp_block_ready(f, block);
}
static void setup_lock(void) { have(MP_KIND_LOCK); }
static void setup_condition(void) { have(MP_KIND_CONDITION); }

static bool sem_try(void) {
    int error;
    bool taken = mp_sem_try(f, block, &error);
    return taken && error == 0;
}
static int semaphore_wait(void) { /* the loop of _sync/primitives.pyx */
    int error;
    if (mp_sem_try(f, block, &error))
        return 0;
    if (mp_sem_enroll(f, block) != MP_OK)
        return 3;
    for (;;) {
        if (mp_sem_try(f, block, &error)) {
            mp_sem_withdraw(f, block);
            return 0;
        }
        if (mp_bell_wait(f, block, -1, -1) != MP_OK)
            return 4;
    }
}
static int semaphore_wait_and_release(void) {
    int result = semaphore_wait();
    return result != 0 ? result : mp_sem_release(f, block);
}
static int lock_wait_and_release(void) {
    if (mp_lock_wait(f, block, -1) != MP_OK)
        return 3;
    return mp_lock_release(f, block);
}
static int cell_wait(void) { /* the loop of Waiters.wait() */
    int64_t cell = mp_cell_enter(f, block, 0, 0);
    if (cell < 0)
        return 3;
    while (mp_cell_state(atomic_load(&f->seg->cells[cell].word)) == MP_CELL_WAITING)
        if (mp_cell_wait(f, (uint32_t)cell, -1) != MP_OK)
            return 4;
    mp_cell_leave(f, (uint32_t)cell);
    return 0;
}
static int waiting_cells(void) { return mp_cells_waiting(f, block); }

/* Nobody is enrolled at the semaphore, nobody holds units but those this process knows of, and all can be had. */
static void semaphore_is_whole(int wanted) {
    check_equal(value(), wanted);
    check_equal(sleepers(), 0);
    for (int i = 0; i < wanted; i++)
        check(sem_try());
    check(!sem_try());
    for (int i = 0; i < wanted; i++)
        check_equal(mp_sem_release(f, block), MP_OK);
    check_equal(value(), wanted);
}

/* ---- semaphores ------------------------------------------------------------------------------------------------------------ */

static void op_acquire(void) { sem_try(); }
static void op_release(void) { mp_sem_release(f, block); }
static void op_cycle(void) {
    sem_try();
    mp_sem_release(f, block);
}
static void hold_1(void) { check(sem_try()); }
static void hold_2(void) {
    check(sem_try());
    check(sem_try());
}
static void released_before(void) { mp_sem_release(f, block); } /* a record with a history, and no units */

static void check_3(bool finished) { semaphore_is_whole(3); }
static void check_0(bool finished) { semaphore_is_whole(0); }
static void check_signal(bool finished) {
    int got = value();
    check(got == 0 || got == 1);
    if (finished)
        check_equal(got, 1);
    appears_once(got == 1);
    semaphore_is_whole(got);
}
static void check_signal_twice(bool finished) {
    int got = value();
    check(got == 1 || got == 2);
    if (finished)
        check_equal(got, 2);
    appears_once(got == 2);
    semaphore_is_whole(got);
}

/* Others write over the evidence in the semaphore's word while the child stands still. */
static void others_use_it(void) {
    if (sem_try())
        check_equal(mp_sem_release(f, block), MP_OK);
}
static void others_signal_and_take(void) {
    check_equal(mp_sem_release(f, block), MP_OK);
    check(sem_try());
}
/* ... and so often that every counter of 15 or 16 bits has gone round. */
static void others_use_it_70000_times(void) {
    for (int i = 0; i < 70000; i++)
        others_use_it();
}

/* The child has read the word, and goes on after the others have used up every number: what it then writes as evidence
 * about this process must not be ahead of the truth. */
static void others_use_it_40000_times_and_child_goes_on(void) {
    bool blocked = false;
    for (int i = 0; i < 20000; i++)
        others_use_it();
    while (!shared->finished)
        step(&blocked);
    struct mp_record *mine = &f->seg->records[f->local_record[block] - 1];
    uint16_t sequence = (uint16_t)(atomic_load(&mine->word) >> 40), done = (uint16_t)atomic_load(&mine->done);
    check((uint16_t)(sequence - done) % 0x8000 <= 1); /* of 15 bits */
}

static void leave_normally(void) { mp_leaving(f); }
static void hold_1_and_leave(void) {
    hold_1();
    mp_leaving(f);
}
static void check_kept(bool finished) { /* what a process that ended normally took stays taken */
    int got = value();
    check(got == 3 || got == 2);
    if (finished)
        check_equal(got, 2);
    appears_once(got == 2);
    semaphore_is_whole(got);
}
/* Whoever has said that it leaves has not been killed, whatever kills it then. */
static void check_left_or_returned(bool finished) {
    int got = value();
    check(got == 2 || (got == 3 && !finished));
    appears_once(got == 2);
    semaphore_is_whole(got);
}
static void check_given_back_once(bool finished) {
    int got = value();
    check(got == 2 || got == 3);
    if (finished)
        check_equal(got, 3);
    appears_once(got == 3);
    semaphore_is_whole(got);
}

/* A waiter sleeps while the unit it waits for is released, or held by the child. */
static void setup_sleeper(void) {
    setup_semaphore_0();
    bystander(semaphore_wait);
    wait_until_equal(sleepers, 1);
}
static void check_sleeper_signalled(bool finished) {
    if (value() == 0 && bystander_count != 0 && mp_bell_get(f, block, GETNCNT) == 1 && !finished) {
        /* perhaps it did not happen; then a release from here has to wake the sleeper */
        int64_t until = mp_now_ns() + 2000000;
        while (mp_now_ns() < until && sleepers() == 1)
            sched_yield();
        if (sleepers() == 1 && value() == 0) {
            check(!seen);
            check_equal(mp_sem_release(f, block), MP_OK);
            bystander_ends(bystanders[0]);
            return;
        }
    }
    seen = true;
    bystander_ends(bystanders[0]);
}

static void setup_two_sleepers_for_one(void) {
    have_semaphore_that(MP_RETURNS_ALWAYS, 0, 5); /* the release here has to make no signal */
    bystander(semaphore_wait_and_release);
    wait_until_equal(sleepers, 1);
}
static void op_sem_wait(void) { semaphore_wait(); }
static int both_sleep(void) { return sleepers() == 2; }
static void release_for_both(void) {
    wait_until_equal(both_sleep, 1);
    check_equal(mp_sem_release(f, block), MP_OK);
}
static void check_other_sleeper(bool finished) {
    /* One unit was, or is now, released; the child is dead, so the other one gets it. */
    if (value() == 0 && sleepers() == 1 && !seen) {
        int64_t until = mp_now_ns() + 2000000;
        while (mp_now_ns() < until && sleepers() == 1)
            sched_yield();
        if (sleepers() == 1 && value() == 0)
            check_equal(mp_sem_release(f, block), MP_OK);
    }
    bystander_ends(bystanders[0]);
    semaphore_is_whole(1);
}

/* ---- locks ------------------------------------------------------------------------------------------------------------------ */

static void op_lock(void) { mp_lock_try(f, at(), 0); }
static void op_unlock_now(void) { /* as LockBase.release() does it */
    mp_lock_set_thread(at(), 0);
    mp_lock_release_now(f, at());
}
static void op_unlock(void) { mp_lock_release(f, block); }
static void hold_lock(void) { check(mp_lock_try(f, at(), 0)); }
static void check_lock_free(bool finished) {
    bool died = (lock_word() & MP_LOCK_DIED) != 0;
    check_equal(lock_word() & MP_LOCK_OWNER, 0);
    if (finished && now->operation == op_lock)
        check(died);
    if (now->operation == op_lock)
        appears_once(died);
    else
        check(died ? !seen : (seen = true));
    check(mp_lock_try(f, at(), 0));
    check_equal((lock_word() & MP_LOCK_DIED) != 0, died);
    check_equal(mp_lock_release(f, block), MP_OK);
    check_equal(lock_word(), 0);
}
static void wait_for_lock(void) {
    bystander(lock_wait_and_release);
    wait_until_equal(sleepers, 1);
}
static void check_lock_passed_on(bool finished) {
    bystander_ends(bystanders[0]);
    check_equal(lock_word() & (MP_LOCK_OWNER | MP_LOCK_DIED), 0);
}
static void setup_lock_held_with_waiter(void) {
    setup_lock();
    hold_lock();
    bystander(lock_wait_and_release);
    wait_until_equal(sleepers, 1);
}
static void op_lock_wait(void) { mp_lock_wait(f, block, -1); }
static void release_lock_for_both(void) {
    wait_until_equal(both_sleep, 1);
    check_equal(mp_lock_release(f, block), MP_OK);
}
static void check_other_waiter(bool finished) {
    if ((lock_word() & MP_LOCK_OWNER) == f->me)
        check_equal(mp_lock_release(f, block), MP_OK);
    bystander_ends(bystanders[0]);
    check_equal(lock_word() & MP_LOCK_OWNER, 0);
}

/* ---- blocks and the kernel objects they own ---------------------------------------------------------------------------------- */

static int queues_before, segments_before, sets_before;

static void count_objects(void) {
    queues_before = queues();
    segments_before = segments();
    sets_before = sets();
}
static void no_new_objects(void) {
    check_equal(queues(), queues_before);
    check_equal(segments(), segments_before);
}
static void every_block_is_free(void) {
    for (uint32_t i = 0; i < atomic_load(&f->h->block_high); i++)
        check_equal(mp_block_state_of(atomic_load(&mp_block_at(f, i)->word)), MP_BLOCK_FREE);
}
static void op_new_lock(void) { mp_block_ready(f, (uint32_t)mp_block_new(f, MP_KIND_LOCK)); }
static void op_new_queue(void) {
    uint32_t index = (uint32_t)mp_block_new(f, MP_KIND_QUEUE);
    mp_block_msgget(f, index, 0600);
    mp_block_ready(f, index);
}
static void op_new_segment(void) {
    uint32_t index = (uint32_t)mp_block_new(f, MP_KIND_SEGMENT);
    mp_block_shmget(f, index, 8192, 0600);
    mp_block_ready(f, index);
}
static void check_nothing_made(bool finished) {
    no_new_objects();
    every_block_is_free();
}
static void make_queue(void) {
    block = make(MP_KIND_QUEUE);
    check(mp_block_msgget(f, block, 0600) >= 0);
    mp_block_ready(f, block);
    struct {
        long type;
        char text[4];
    } message = {1, "abc"};
    check(msgsnd(at()->id, &message, 4, 0) == 0);
}
static void make_segment(void) {
    block = make(MP_KIND_SEGMENT);
    check(mp_block_shmget(f, block, 8192, 0600) >= 0);
    mp_block_ready(f, block);
}
static void op_drop(void) { mp_block_drop(f, block); }
static void setup_shared_queue(void) {
    make_queue();
    queues_before = queues();
}
static void check_still_shared(bool finished) {
    check_equal(mp_block_state_of(atomic_load(&at()->word)), MP_BLOCK_READY);
    check(mp_block_holds(f, block, f->slot));
    uint16_t slots[2];
    check_equal(mp_block_holders(f, block, slots, 2), 1);
    check_equal(queues(), queues_before);
    mp_block_drop(f, block);
    check_equal(queues(), queues_before - 1);
}
static void op_adopt(void) {
    f->local_refs[block] = 0; /* as a spawned child, which has inherited no handle */
    mp_block_adopt(f, block, mp_block_serial(atomic_load(&at()->word)));
}

/* ---- wait cells ---------------------------------------------------------------------------------------------------------------- */

static void op_cell_enter_and_cancel(void) {
    int64_t cell = mp_cell_enter(f, block, 0, 0);
    mp_cell_cancel(f, (uint32_t)cell);
}
static void check_no_cells(bool finished) {
    check_equal(waiting_cells(), 0);
    check_equal(mp_cells_notify(f, block, 5), 0);
    for (uint32_t i = 0; i < atomic_load(&f->h->cell_high); i++)
        check_equal(atomic_load(&f->seg->cells[i].word), 0);
}
static int cells_asleep(void) {
    int asleep = 0;
    for (uint32_t i = 0; i < atomic_load(&f->h->cell_high); i++)
        asleep += mp_bell_get(f, mp_cell_bell(i), GETNCNT);
    return asleep;
}
static void setup_two_waiters(void) {
    setup_condition();
    bystander(cell_wait);
    wait_until_equal(cells_asleep, 1);
    bystander(cell_wait);
    wait_until_equal(cells_asleep, 2);
}
static void op_notify_1(void) { mp_cells_notify(f, block, 1); }
static void op_notify_all(void) { mp_cells_notify(f, block, -1); }
static void check_notified_1(bool finished) {
    int left = waiting_cells();
    check(left == 1 || left == 2);
    if (finished)
        check_equal(left, 1);
    appears_once(left == 1);
    pid_t first = bystanders[0], second = bystanders[1];
    if (left == 1)
        bystander_ends(first);
    check_equal(mp_cells_notify(f, block, -1), left);
    if (left == 2)
        bystander_ends(first);
    bystander_ends(second);
    check_no_cells(finished);
}
static void check_notified_all(bool finished) {
    int left = waiting_cells();
    if (finished)
        check_equal(left, 0);
    check_equal(mp_cells_notify(f, block, -1), left);
    bystander_ends(bystanders[1]);
    bystander_ends(bystanders[0]);
    check_no_cells(finished);
}
/* The child waits first and is notified; the bystander waits after it. Whatever became of the child's notification, the
 * bystander has it when the child is dead; a child that has taken it and left keeps it. */
static void op_cell_wait(void) { cell_wait(); }
static int child_cell_asleep(void) { return cells_asleep() >= 1; }
static void notify_child_first(void) {
    wait_until_equal(child_cell_asleep, 1);
    bystander(cell_wait);
    wait_until_equal(cells_asleep, 2);
    check_equal(mp_cells_notify(f, block, 1), 1);
}
static void notify_child_with_all(void) {
    wait_until_equal(child_cell_asleep, 1);
    check_equal(mp_cells_notify(f, block, -1), 1);
    bystander(cell_wait); /* it came after notify_all(): nothing is owed to it */
    wait_until_equal(cells_asleep, 1);
}
static void check_passed_on(bool finished) {
    static long gone_at;
    if (bystander_count == 0) /* killed before it waited */
        return check_no_cells(finished);
    /* Either the child's cell was gone (it had taken the notification), and the other waits; or it was passed on. Who goes to
     * sleep asks for the time, and that takes a few instructions more or less: the same step is not the same place each time. */
    if (waiting_cells() == 1) {
        gone_at = seen ? gone_at : step_now;
        seen = true;
        check_equal(mp_cells_notify(f, block, 1), 1);
    } else {
        check(!seen || step_now < gone_at + 50);
        check(!finished);
    }
    bystander_ends(bystanders[0]);
    check_no_cells(finished);
}
static void check_not_passed_on(bool finished) {
    if (bystander_count == 0)
        return check_no_cells(finished);
    check_equal(waiting_cells(), 1);
    check_equal(mp_cells_notify(f, block, 1), 1);
    bystander_ends(bystanders[0]);
    check_no_cells(finished);
}

/* ---- the process table ------------------------------------------------------------------------------------------------------------- */

static void forget_membership(void) { /* as a process that finds the family by itself */
    struct sembuf alive = {0, -1, SEM_UNDO}, deaths = {MP_SEM_DEATHS, 1, SEM_UNDO};
    int semid;
    check_equal(mp_alive(f, f->slot, &semid, &alive.sem_num), MP_OK);
    check(semop(semid, &alive, 1) == 0 && semop(f->semid, &deaths, 1) == 0);
    mp_block_unhold(f, block, f->slot);
    atomic_store(&f->seg->slots[f->slot].word, 0);
    f->slot = -1;
    f->me = 0;
}
static void op_join(void) { mp_family_join(f); }
static void op_fork_prepare(void) {
    mp_fork_prepare(f);
    mp_fork_parent(f);
}
static void op_transit(void) {
    int64_t token = mp_transit_reserve(f);
    mp_block_hold(f, block, mp_transit_slot(token));
    mp_transit_sent(f, token, getpid());
}
/* ---- recovery ------------------------------------------------------------------------------------------------------------------------ */

static uint32_t lock_block, semaphore_block, queue_block, condition_block;

static int die_holding_everything(void) {
    block = semaphore_block;
    hold_2();
    mp_sem_enroll(f, block);
    block = lock_block;
    hold_lock();
    mp_cell_enter(f, condition_block, 0, 0);
    block = make(MP_KIND_QUEUE);
    mp_block_msgget(f, block, 0600);
    make_queue();
    make_segment();
    kill(getpid(), SIGKILL);
    return 0;
}
static void setup_victim(void) {
    setup_lock();
    lock_block = block;
    setup_condition();
    condition_block = block;
    setup_semaphore_3();
    semaphore_block = block;
    setup_shared_queue();
    queue_block = block;
    count_objects();
    pid_t pid = bystander(die_holding_everything);
    int status;
    check(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    bystander_count--;
    check_equal(queues(), queues_before + 2);
}
static void op_recover(void) { mp_recover(f); }
static void check_recovered(bool finished) {
    no_new_objects();
    block = lock_block;
    check_equal(lock_word(), MP_LOCK_DIED);
    block = condition_block;
    check_no_cells(finished);
    block = semaphore_block;
    check_equal(atomic_load(&at()->semaphore.waiters) <= 1, 1);
    semaphore_is_whole(3);
    block = queue_block;
    check_still_shared(finished);
}

/* ---- families -------------------------------------------------------------------------------------------------------------------------- */

static void op_found(void) {
    static struct mp_family own;
    if (mp_family_create(&own, "kill_every_step", mp_tick) == MP_OK && mp_family_join(&own) == MP_OK) {
        uint32_t index = (uint32_t)mp_block_new(&own, MP_KIND_QUEUE);
        mp_block_msgget(&own, index, 0600);
        mp_block_ready(&own, index);
        mp_bell_set(&own, index, 1);
    }
}
static void check_swept(bool finished) {
    mp_sweep();
    no_new_objects();
    check_equal(sets(), sets_before);
}
static struct mp_family other;
static void found_other(void) {
    check_equal(mp_family_create(&other, "kill_every_step", mp_tick), MP_OK);
    check_equal(mp_family_join(&other), MP_OK);
    uint32_t index = (uint32_t)mp_block_new(&other, MP_KIND_QUEUE);
    check(mp_block_msgget(&other, index, 0600) >= 0);
    mp_block_ready(&other, index);
    check(mp_bell_set(&other, index, 1) >= 0);
}
static void op_sweep(void) { mp_sweep(); }
static int found_and_die(void) {
    found_other();
    check_equal(mp_fork_prepare(&other), MP_OK); /* dies while it forks: a reservation is left */
    kill(getpid(), SIGKILL);
    return 0;
}
static void setup_dead_family(void) {
    count_objects();
    pid_t pid = bystander(found_and_die);
    int status;
    check(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    bystander_count--;
    mp_recover(f);
    check_equal(segments(), segments_before + 1);
}

/* ---- queues ----------------------------------------------------------------------------------------------------------------------- */

static struct mp_queue_view queue;
static uint32_t last_taken;

static int send_message(struct mp_message *m, uint32_t length) {
    int outcome = mp_queue_try_send(&queue, m, length, 0);
    return outcome == MP_BUSY ? mp_queue_send(&queue, m, length, 0, -1) : outcome;
}
static int take_item(struct mp_item *item) {
    int outcome = mp_queue_try_take(&queue, item);
    return outcome == MP_BUSY ? mp_queue_take(&queue, item, -1) : outcome;
}

static void send_number(uint32_t number) {
    struct mp_message m = {.kind = MP_BODY_INLINE};
    memcpy(m.data, &number, sizeof number);
    check_equal(send_message(&m, sizeof number), MP_OK);
}
/* 0: there is none */
static uint32_t take_number(void) {
    struct mp_item item;
    uint32_t number;
    int error = take_item(&item);
    if (error == MP_EMPTY)
        return 0;
    check_equal(error, MP_OK);
    check_equal(item.size, sizeof number);
    memcpy(&number, item.data, sizeof number);
    return number;
}
static bool token_is_out(void) { return atomic_load(&queue.q->token) & MP_TOKEN_OUT; }

static void setup_empty_queue(void) {
    last_taken = 99;
    block = make(MP_KIND_QUEUE);
    check(mp_block_msgget(f, block, 0600) >= 0);
    check_equal(mp_queue_make(f, block, 0, 0), MP_OK);
    mp_block_ready(f, block);
    check_equal(mp_queue_open(&queue, f, block), MP_OK);
}
static void until_token_is_out(void) {
    while (!token_is_out()) {
        send_number(9);
        check_equal(take_number(), 9);
    }
}
static void setup_queue_with_token(void) {
    setup_empty_queue();
    until_token_is_out();
    send_number(9); /* makes the arena */
    check_equal(take_number(), 9);
}
static void send_3(void) {
    for (uint32_t number = 1; number <= 3; number++)
        send_number(number);
}
static void setup_3_in_kernel(void) {
    setup_empty_queue();
    send_3();
}
static void setup_3_in_spill(void) {
    setup_queue_with_token();
    send_3();
    check_equal(atomic_load(&queue.q->spilled), 3);
}
static void setup_1_in_kernel_2_in_spill(void) {
    setup_queue_with_token();
    check_equal(mp_queue_lock(&queue, -1), MP_OK);
    struct {
        long type;
        char kind;
        uint32_t number;
    } __attribute__((packed)) m = {MP_TYPE_LEVEL, MP_BODY_INLINE, 1};
    check(msgsnd(queue.id, &m, 5, 0) == 0); /* from one who saw no token */
    atomic_fetch_and(&queue.q->token, ~(uint32_t)MP_TOKEN_DRY);
    mp_queue_unlock(&queue);
    send_number(2);
    send_number(3);
}
static void setup_end_of_streak(void) {
    setup_3_in_kernel();
    atomic_store(&queue.streak, 1000);
}

static void op_send_2(void) {
    send_number(100);
    send_number(101);
}
static void op_take(void) { take_number(); }

/* What of 100 and 101 was sent before is sent no more than once, and in order. */
static void take_in_order(void) {
    for (uint32_t number; (number = take_number()) != 0;)
        if (number != 9)
            check_equal(number, ++last_taken);
}
static void no_queue(void) {
    check_equal(mp_queue_size(&queue), 0);
    mp_queue_close(&queue);
    mp_block_drop(f, block);
}
static void check_sent_in_order(bool finished) {
    take_in_order();
    check(last_taken == 101 || !finished);
    no_queue();
}
static void run_child_to_its_end(void) {
    check(ptrace(PTRACE_CONT, child_pid, NULL, NULL) == 0);
    int64_t deadline = mp_now_ns() + PATIENCE_NS;
    while (!shared->finished) {
        check(mp_now_ns() < deadline);
        sched_yield();
    }
}
/* What it has sent is received before recovery can put anything right. */
static void child_goes_on(void) {
    run_child_to_its_end();
    take_in_order();
    check_equal(last_taken, 101);
}
/* The child may have seen that no token is out; now there is one, messages go through the spill, and it is known that the kernel
 * queue has none. */
static void token_comes_and_child_goes_on(void) {
    if ((atomic_load(&at()->lock.word) & MP_LOCK_OWNER) == 0) { /* else we would wait for the child */
        take_in_order();
        atomic_store(&queue.streak, 1000);
        until_token_is_out();
        send_number(9);
        take_in_order();
    }
    child_goes_on();
}
/* The child may have seen that a token is out; a receiver that goes to sleep has taken it. */
static void token_goes_and_child_goes_on(void) {
    if ((atomic_load(&at()->lock.word) & MP_LOCK_OWNER) == 0) {
        take_in_order();
        struct mp_item item;
        ssize_t n = msgrcv(queue.id, &item.message, MP_BODY_SIZE, -(MP_TYPE_LEVEL - 1), IPC_NOWAIT);
        item.token = n >= 0 ? item.message.type : 0;
        int error = mp_queue_take(&queue, &item, -1);
        check(error == MP_EMPTY || error == MP_OK);
        if (error == MP_OK) {
            uint32_t number;
            memcpy(&number, item.data, sizeof number);
            check_equal(number, ++last_taken);
        }
    }
    child_goes_on();
}

static int receive_one(void) { /* the loop of MessageQueue.get() */
    struct mp_item item;
    int error;
    do
        error = mp_queue_await(&queue, &item);
    while (error == MP_EMPTY || error == MP_INTERRUPTED);
    return error;
}
static int bystander_sleeps(void) { return has_blocked(bystanders[0]); }
static void setup_sleeping_receiver(void) {
    setup_empty_queue();
    bystander(receive_one);
    wait_until_equal(bystander_sleeps, 1);
}
static void check_receiver_woken(bool finished) {
    if (!finished)
        send_number(100); /* perhaps the child has sent nothing */
    bystander_ends(bystanders[0]);
    while (take_number() != 0)
        ;
    no_queue();
}
static void check_taken(bool finished) {
    uint32_t number = take_number();
    check(number == 2 || (number == 1 && !finished && !seen));
    seen = number == 2;
    for (uint32_t next = number + 1; next <= 3; next++)
        check_equal(take_number(), next);
    check_equal(take_number(), 0);
    no_queue();
}
static void op_sleep_for_message(void) { receive_one(); }
static void send_to_child(void) { send_number(7); }
static void check_queue_goes_on(bool finished) {
    uint32_t left = take_number();
    check(left == 0 || left == 7);
    bystander(receive_one);
    send_number(8);
    bystander_ends(bystanders[0]);
    no_queue();
}

/* ---- the list --------------------------------------------------------------------------------------------------------------------------- */

#include "arena_scenarios.h"
#include "large_scenarios.h"
#include "ledger_scenarios.h"
#include "named_scenarios.h"
#include "post_scenarios.h"
#include "semaphore_scenarios.h"

static void setup_nothing(void) { count_objects(); }

#include "bulk_scenarios.h"
#include "shutdown_scenarios.h"
#include "family_scenarios.h"
#include "memory_scenarios.h"
#include "work_scenarios.h"
#include "bank_scenarios.h"
#include "guest_scenarios.h"
#include "sync_scenarios.h"
#include "rwlock_scenarios.h"
#include "broadcast_scenarios.h"
#include "wait_scenarios.h"
#include "tie_scenarios.h"

static const struct scenario scenarios[] = {
    {"semaphore-acquire", setup_semaphore_3, NULL, op_acquire, NULL, NULL, check_3},
    {"semaphore-acquire-again", setup_semaphore_3, hold_1, op_acquire, NULL, NULL, check_3},
    {"semaphore-acquire-third", setup_semaphore_3, hold_2, op_acquire, NULL, NULL, check_3},
    {"semaphore-acquire-none-left", setup_semaphore_0, NULL, op_acquire, NULL, NULL, check_0},
    {"semaphore-release-held", setup_semaphore_3, hold_1, op_release, NULL, NULL, check_3},
    {"semaphore-release-held-2", setup_semaphore_3, hold_2, op_release, NULL, NULL, check_3},
    {"semaphore-cycle", setup_semaphore_3, NULL, op_cycle, NULL, NULL, check_3},
    {"semaphore-bounded-cycle", setup_bounded_3, hold_1, op_cycle, NULL, NULL, check_3},
    {"semaphore-signal", setup_semaphore_0, NULL, op_release, NULL, NULL, check_signal},
    {"semaphore-signal-twice", setup_semaphore_0, released_before, op_release, NULL, NULL, check_signal_twice},
    {"semaphore-acquire-overwritten", setup_semaphore_3, NULL, op_acquire, NULL, others_use_it, check_3},
    {"semaphore-release-overwritten", setup_semaphore_3, hold_1, op_release, NULL, others_use_it, check_3},
    {"semaphore-cycle-overwritten", setup_semaphore_3, hold_1, op_cycle, NULL, others_use_it, check_3},
    {"semaphore-signal-overwritten", setup_semaphore_0, NULL, op_release, NULL, others_signal_and_take, check_signal},
    {"semaphore-acquire-wrapped", setup_semaphore_3, NULL, op_acquire, NULL, others_use_it_70000_times, check_3},
    {"semaphore-cycle-stalled", setup_used_3, NULL, op_cycle, NULL, others_use_it_40000_times_and_child_goes_on, check_3},
    {"semaphore-acquire-leaving", setup_semaphore_3, leave_normally, op_acquire, NULL, NULL, check_kept},
    {"semaphore-release-leaving", setup_semaphore_3, hold_1_and_leave, op_release, NULL, NULL, check_given_back_once},
    {"semaphore-signal-to-sleeper", setup_sleeper, NULL, op_release, NULL, NULL, check_sleeper_signalled},
    {"semaphore-sleep-beside-another", setup_two_sleepers_for_one, NULL, op_sem_wait, release_for_both, NULL,
     check_other_sleeper},
    {"semaphore-first-signal", setup_semaphore_0, NULL, op_release, NULL, NULL, check_first_signal},
    {"semaphore-never-acquire", setup_never_3, NULL, op_acquire, NULL, NULL, check_never_taken},
    {"semaphore-never-release", setup_never_3, NULL, op_release, NULL, NULL, check_never_added},
    {"semaphore-never-release-overwritten", setup_never_3, NULL, op_release, NULL, others_use_it, check_never_added},
    {"semaphore-always-acquire", setup_always_3, hold_1, op_acquire, NULL, release_here, check_always_came_back},
    {"semaphore-always-release", setup_always_3, NULL, op_release, NULL, NULL, check_added_always},
    {"semaphore-always-release-held", setup_always_3, hold_2, op_release, NULL, NULL, check_always_released},
    {"semaphore-pay", setup_guessed_debt_of_3, NULL, op_release, NULL, NULL, check_paid},
    {"semaphore-pay-last", setup_guessed_debt_of_2, pay_1, op_release, NULL, NULL, check_last_paid},
    {"semaphore-pay-beside-another", setup_guessed_debt_of_3, NULL, op_release, NULL, pay_1, check_paid_by_two},
    {"semaphore-pay-wrapped", setup_guessed_debt_of_3, NULL, op_release, NULL, pay_1_and_use_it_70000_times, check_paid_by_two},
    {"semaphore-pay-at-the-maximum", setup_bounded_debt_of_3, NULL, op_release_and_tell, NULL, NULL, check_paid_at_the_maximum},
    {"semaphore-pay-always", setup_always_debt_of_3, NULL, op_release, NULL, NULL, check_paid_always},
    {"semaphore-pay-long-ago", setup_always_debt_of_3, pay_and_come_round, op_acquire, NULL, NULL, check_come_round},
    {"semaphore-pay-own-at-the-maximum", setup_always_bounded_3, hold_1, op_release_and_tell, NULL, NULL,
     check_own_paid_at_the_maximum, .started = another_dies_after_a_release},
    {"semaphore-pay-while-taken-and-paid", setup_bounded_debt_of_1, NULL, op_release_and_tell, NULL,
     taken_then_paid_and_child_goes_on, check_not_too_many},
    {"semaphore-too-many", setup_bounded_3, NULL, op_release_and_tell, NULL, NULL, check_too_many},
    {"semaphore-return", setup_dead_holder, NULL, op_mp_recover, NULL, NULL, check_returned_2},
    {"semaphore-return-of-two", setup_dead_holders, NULL, op_mp_recover, NULL, NULL, check_returned_3},
    {"semaphore-return-overwritten", setup_dead_holder, NULL, op_mp_recover, NULL, others_use_it, check_returned_2},
    {"semaphore-return-with-debt", setup_dead_holder_and_debt, NULL, op_mp_recover, NULL, NULL, check_returned_2_more},
    {"semaphore-return-to-the-maximum", setup_dead_holder_with_room_for_1, NULL, op_mp_recover, NULL, NULL,
     check_returned_1_of_2},
    {"semaphore-return-to-sleeper", setup_sleeper_for_dead_holder, NULL, op_mp_recover, NULL, NULL, check_sleeper_got_it},
    {"semaphore-return-of-none", setup_dead_holder_of_a_signal, NULL, op_mp_recover, NULL, NULL, check_returned_none},
    {"semaphore-return-while-signalled", setup_dead_holder, NULL, op_mp_recover, NULL, release_here, check_death_or_signal},
    {"semaphore-return-while-added", setup_dead_holder_always, NULL, op_mp_recover, NULL, release_here, check_death_or_added},
    {"semaphore-return-while-paid", setup_dead_holder_and_debt, NULL, op_mp_recover, NULL, release_here, check_death_or_paid},
    {"semaphore-return-goes-on-when-used", setup_dead_holder, NULL, op_settle, NULL, use_it_and_child_goes_on,
     check_returned_2},
    {"semaphore-return-goes-on-when-signalled", setup_dead_holder, NULL, op_settle, NULL, release_and_child_goes_on,
     check_death_or_signal},
    {"semaphore-return-goes-on-when-added", setup_dead_holder_always, NULL, op_settle, NULL, release_and_child_goes_on,
     check_death_or_added},
    {"semaphore-return-goes-on-when-paid", setup_dead_holder_and_debt, NULL, op_settle, NULL, release_and_child_goes_on,
     check_death_or_paid},
    {"semaphore-signal-while-returned", setup_dead_holder, NULL, op_release, NULL, recovered_and_child_goes_on,
     check_death_or_signal},
    {"semaphore-add-while-returned", setup_dead_holder_always, NULL, op_release, NULL, recovered_and_child_goes_on,
     check_death_or_added},
    {"semaphore-pay-while-returned", setup_dead_holder_and_debt, NULL, op_release, NULL, recovered_and_child_goes_on,
     check_death_or_paid},
    {"semaphore-new", setup_nothing, NULL, setup_semaphore_3, NULL, NULL, check_nothing_made},
    {"semaphore-leave", setup_semaphore_3, hold_1, leave_normally, NULL, NULL, check_left_or_returned},
    {"lock-acquire", setup_lock, NULL, op_lock, NULL, NULL, check_lock_free},
    {"lock-release", setup_lock, hold_lock, op_unlock, NULL, NULL, check_lock_free},
    {"lock-release-now", setup_lock, hold_lock, op_unlock_now, NULL, NULL, check_lock_free},
    {"lock-release-with-waiter", setup_lock, hold_lock, op_unlock, NULL, NULL, check_lock_passed_on, .started = wait_for_lock},
    {"lock-wait-beside-another", setup_lock_held_with_waiter, NULL, op_lock_wait, release_lock_for_both, NULL,
     check_other_waiter},
    {"event-set", setup_waiter_for_event, NULL, op_event_set, NULL, NULL, check_event_set},
    {"event-clear", setup_event_set, NULL, op_event_clear, NULL, NULL, check_event_cleared},
    {"event-new", setup_rung_bell, NULL, op_event_new, NULL, NULL, check_nothing_made},
    {"barrier-enter", setup_barrier, NULL, op_barrier_enter, NULL, NULL, check_not_counted},
    {"barrier-open", setup_barrier_with_2, NULL, op_barrier_open, NULL, NULL, check_opened},
    {"barrier-break", setup_barrier_with_2, NULL, op_barrier_break, NULL, NULL, check_broken},
    {"barrier-reset", setup_barrier_with_2, NULL, op_barrier_reset, NULL, NULL, check_reset},
    {"block-new", setup_nothing, NULL, op_new_lock, NULL, NULL, check_nothing_made},
    {"block-new-queue", setup_nothing, NULL, op_new_queue, NULL, NULL, check_nothing_made},
    {"block-new-segment", setup_nothing, NULL, op_new_segment, NULL, NULL, check_nothing_made},
    {"block-drop-queue", setup_nothing, make_queue, op_drop, NULL, NULL, check_nothing_made},
    {"block-drop-segment", setup_nothing, make_segment, op_drop, NULL, NULL, check_nothing_made},
    {"block-drop-shared-queue", setup_shared_queue, NULL, op_drop, NULL, NULL, check_still_shared},
    {"block-adopt", setup_shared_queue, NULL, op_adopt, NULL, NULL, check_still_shared},
    {"cell-enter-and-cancel", setup_condition, NULL, op_cell_enter_and_cancel, NULL, NULL, check_no_cells},
    {"cell-wait-notified", setup_condition, NULL, op_cell_wait, notify_child_first, NULL, check_passed_on},
    {"cell-wait-notified-with-all", setup_condition, NULL, op_cell_wait, notify_child_with_all, NULL, check_not_passed_on},
    {"notify-1-of-2", setup_two_waiters, NULL, op_notify_1, NULL, NULL, check_notified_1},
    {"notify-all", setup_two_waiters, NULL, op_notify_all, NULL, NULL, check_notified_all},
    {"queue-send", setup_empty_queue, NULL, op_send_2, NULL, NULL, check_sent_in_order},
    {"queue-send-by-spill", setup_queue_with_token, NULL, op_send_2, NULL, NULL, check_sent_in_order},
    {"queue-send-while-a-token-comes", setup_empty_queue, NULL, op_send_2, NULL, token_comes_and_child_goes_on,
     check_sent_in_order},
    {"queue-send-while-a-token-goes", setup_queue_with_token, NULL, op_send_2, NULL, token_goes_and_child_goes_on,
     check_sent_in_order},
    {"queue-send-to-sleeper", setup_sleeping_receiver, NULL, op_send_2, NULL, NULL, check_receiver_woken},
    {"queue-take", setup_3_in_kernel, NULL, op_take, NULL, NULL, check_taken},
    {"queue-take-from-spill", setup_3_in_spill, NULL, op_take, NULL, NULL, check_taken},
    {"queue-take-from-both", setup_1_in_kernel_2_in_spill, NULL, op_take, NULL, NULL, check_taken},
    {"queue-take-last-of-streak", setup_end_of_streak, NULL, op_take, NULL, NULL, check_taken},
    {"queue-send-many", setup_queue_with_arena, NULL, op_send_many, NULL, NULL, check_sent_many},
    {"queue-send-many-to-waiter", setup_waiter_at_queue, NULL, op_send_many, NULL, NULL, check_waiter_has_one},
    {"queue-wait-in-room", setup_queue_with_arena, NULL, op_wait_in_room, send_to_child, NULL, check_queue_goes_on},
    {"queue-take-many", setup_5_in_spill, NULL, op_take_many, NULL, NULL, check_took_many},
    {"queue-send-bounded", setup_bounded_with_1_of_2, NULL, op_send_bounded, NULL, NULL, check_bounded},
    {"queue-task-done", setup_2_tasks, NULL, op_task_done, NULL, NULL, check_task_done},
    {"queue-trim", setup_idle_piece, NULL, op_trim, NULL, NULL, check_trimmed},
    {"queue-new-with-rooms", setup_nothing, NULL, op_new_counted_queue, NULL, NULL, check_nothing_made},
    {"queue-drop-with-arena", setup_nothing, have_queue_with_everything, op_drop, NULL, NULL, check_nothing_made},
    {"large-send", setup_1_and_2_large, NULL, op_send_large_and_small, NULL, NULL, check_sent_large},
    {"large-take", setup_3_large, NULL, op_take_large, NULL, NULL, check_took_large},
    {"large-repair", setup_orphan, NULL, op_repair, NULL, NULL, check_orphan_sent},
    {"large-recover", setup_dead_sender, NULL, op_mp_recover, NULL, NULL, check_orphan_sent},
    {"work-put", setup_no_jobs, NULL, op_put_jobs, NULL, NULL, check_jobs_put},
    {"work-take", setup_jobs, NULL, op_take_job, NULL, NULL, check_all_jobs},
    {"work-take-returned", setup_returned, NULL, op_take_returned, NULL, NULL, check_returned},
    {"work-take-exhausted", setup_returned, NULL, op_take_what_was_taken_often, NULL, NULL, check_returned},
    {"work-acknowledge", setup_jobs, take_first, acknowledge, NULL, NULL, check_acknowledged},
    {"work-acknowledge-before-joiner", setup_one_job, take_first, acknowledge, NULL, NULL, check_joiner_goes_on, false, false,
     joiner_waits},
    {"work-acknowledge-last-of-shut", setup_one_job_and_shut, take_first, acknowledge, NULL, NULL, check_all_are_told, false,
     false, two_takers_wait_for_the_end},
    {"work-give-back", setup_jobs, take_first, give_back, NULL, NULL, check_given_back},
    {"work-give-back-to-waiter", setup_one_job, take_first, give_back, NULL, NULL, check_taker_has_it, false, false,
     taker_waits},
    {"work-give-back-of-shut", setup_one_job_and_shut, take_first, give_back, NULL, NULL, check_all_are_told, false, false,
     two_takers_wait_for_the_end},
    {"work-give-back-dropped", setup_one_job, drop_all, give_back, NULL, NULL, check_given_back_is_dropped, false, false,
     joiner_waits},
    {"work-shutdown", setup_out_and_waiting, NULL, op_shutdown, NULL, NULL, check_end_comes_with_the_last},
    {"work-shutdown-drop", setup_jobs_everywhere, NULL, op_shutdown_at_once, NULL, NULL, check_jobs_dropped},
    {"work-recover", setup_dead_taker, NULL, op_mp_recover, NULL, NULL, check_returned},
    {"work-try-with-memories", setup_job_with_memories, NULL, op_try_job_with_memories, NULL, NULL, check_job_with_memories},
    {"work-do-with-memories", setup_job_with_memories, NULL, op_do_job_with_memories, NULL, NULL, check_job_with_memories},
    {"memory-new", setup_space, NULL, op_memory_new, NULL, NULL, check_memory_free},
    {"memory-new-first", setup_nothing, NULL, op_memory_new, NULL, NULL, check_memory_free},
    {"memory-new-first-beside-another", setup_nothing, NULL, op_memory_new, NULL, make_memory_and_child_goes_on,
     check_memory_free},
    {"memory-send", setup_queue_and_space, have_two, op_send_memories, NULL, NULL, check_memories_sent},
    {"memory-take", setup_message_with_two, NULL, op_take_memories, NULL, NULL, check_memories_taken},
    {"memory-take-while-others-recover", setup_message_with_two, NULL, op_take_memories, NULL, recover_and_child_goes_on,
     check_memories_taken},
    {"memory-not-sent", setup_queue_and_space, have_two, op_not_send_memories, NULL, NULL, check_memories_not_sent},
    {"memory-recover-sender", setup_dead_sender_of_memories, NULL, op_mp_recover, NULL, NULL, check_only_the_sent_one},
    {"memory-mend", setup_dead_sender_of_memories, NULL, op_mp_recover, NULL, NULL, check_mended},
    {"memory-mend-later", setup_dead_sender_and_owner_of_lock, NULL, op_mp_recover, NULL, NULL, check_mended_later},
    {"memory-recover-receiver", setup_dead_receiver_of_memories, NULL, op_mp_recover, NULL, NULL, check_memories_not_sent},
    {"memory-shutdown-drop", setup_message_with_two, NULL, op_shutdown_at_once, NULL, NULL, check_memories_dropped},
    {"memory-drop-queue", setup_space, have_queue_with_memories, op_drop, NULL, NULL, check_no_queue_and_no_memory},
    {"named-unlink", setup_named, NULL, op_unlink_named, NULL, NULL, check_unlinked},
    {"named-untrack", setup_named, NULL, op_untrack_named, NULL, NULL, check_untracked},
    {"named-track", setup_untracked_name, NULL, op_track_named, NULL, NULL, check_tracked},
    {"named-recover", setup_dead_creator, NULL, op_mp_recover, NULL, NULL, check_nothing_named},
    {"named-create", setup_no_name, NULL, op_create_named, NULL, NULL, check_named},
    {"queue-sleep", setup_queue_with_token, NULL, op_sleep_for_message, send_to_child, NULL, check_queue_goes_on},
    {"piece-claim-and-free", setup_3_pieces_taken, NULL, op_claim_and_free, NULL, NULL, check_claimed_and_freed},
    {"piece-claim-while-one-is-freed", setup_3_pieces_taken, NULL, op_claim, NULL, free_one_and_child_goes_on, check_mark},
    {"piece-claim-first", setup_empty_queue, NULL, op_claim_and_free, NULL, NULL, check_none_taken},
    {"piece-claim-first-beside-another", setup_empty_queue, NULL, op_claim, NULL, claim_and_child_goes_on, check_two_taken},
    {"spill-post", setup_posted_before, NULL, op_post_2, NULL, NULL, check_sent_in_order_and_whole},
    {"spill-post-priority", setup_priority_posted_before, NULL, op_post_2, NULL, NULL, check_sent_in_order_and_whole},
    {"spill-post-while-others-collect", setup_posted_before, NULL, op_post_2, NULL, collect_and_child_goes_on,
     check_sent_in_order_and_whole},
    {"queue-post", setup_locked_by_parent, NULL, op_send_2, NULL, unlock_and_take_in_order, check_sent_in_order_and_whole},
    {"queue-post-priority", setup_locked_priority, NULL, op_send_2, NULL, unlock_and_take_in_order,
     check_sent_in_order_and_whole},
    {"queue-post-while-others-do", setup_locked_by_parent, NULL, op_send_2, NULL, post_unlock_and_child_goes_on,
     check_sent_in_order_and_whole},
    {"queue-collect", setup_3_posted, NULL, op_take, NULL, NULL, check_taken_and_whole},
    {"queue-collect-priority", setup_3_posted_priority, NULL, op_take, NULL, NULL, check_taken_and_whole},
    {"queue-unlock-and-look", setup_sleeper_at_full_queue, lock_queue, op_unlock_queue, NULL, NULL, check_sleeper_has_it,
     .started = post_1_and_leave_word},
    {"queue-give-token-back", setup_token_in_hand, NULL, op_give_token_back, NULL, NULL, check_receiver_finds_3},
    {"shutdown-sleepers", setup_two_sleepers, NULL, op_shutdown, NULL, NULL, check_woken},
    {"shutdown-sleepers-at-priorities", setup_sleepers_at_priorities, NULL, op_shutdown, NULL, NULL, check_woken},
    {"shutdown-getters", setup_two_getters, NULL, op_shutdown, NULL, NULL, check_woken},
    {"shutdown-putters", setup_two_putters, NULL, op_shutdown, NULL, NULL, check_woken},
    {"shutdown-joiners", setup_two_joiners, NULL, op_shutdown_at_once, NULL, NULL, check_joined},
    {"shutdown-with-messages", setup_messages_everywhere, NULL, op_shutdown, NULL, NULL, check_all_are_there},
    {"shutdown-drop", setup_messages_everywhere, NULL, op_shutdown_at_once, NULL, NULL, check_all_are_dropped},
    {"shutdown-last-look", setup_shut, NULL, op_take_last, NULL, NULL, check_ended},
    {"shutdown-last-look-without-token", setup_shut_without_token, NULL, op_take_last, NULL, NULL, check_ended},
    {"shutdown-last-look-while-one-is-sent", setup_shut, NULL, op_take_last, NULL, send_late_and_child_goes_on,
     check_last_taken},
    {"shutdown-last-look-while-one-is-posted", setup_shut, NULL, op_take_last, NULL, post_late_and_child_goes_on,
     check_last_taken},
    {"shutdown-while-one-sends", setup_sender, NULL, op_send_2_if_open, NULL, shut_down_and_child_goes_on,
     check_accepted_were_taken},
    {"shutdown-while-one-sends-by-spill", setup_sender_by_spill, NULL, op_send_2_if_open, NULL, shut_down_and_child_goes_on,
     check_accepted_were_taken},
    {"shutdown-while-one-posts", setup_sender_who_posts, NULL, op_send_2_if_open, NULL, shut_down_and_child_goes_on,
     check_accepted_were_taken},
    {"shutdown-and-a-sender-is-killed", setup_sender, NULL, op_send_2_if_open, NULL, shut_down_and_take, check_accepted_taken},
    {"shutdown-and-a-poster-is-killed", setup_sender_who_posts, NULL, op_send_2_if_open, NULL, shut_down_and_take,
     check_accepted_taken},
    {"ledger-start", setup_ledger, NULL, op_run_tasks, NULL, NULL, check_claimed},
    {"ledger-start-while-taken-back", setup_ledger, NULL, op_run_tasks, NULL, take_back_and_child_goes_on, check_each_has_one},
    {"ledger-start-while-more-is-taken-back", setup_ledger_5_and_6_taken_back, NULL, op_run_tasks, NULL,
     take_back_and_child_goes_on, check_each_but_5_and_6_has_one},
    {"ledger-start-while-the-same-is-taken-back", setup_ledger_5_and_6_taken_back, NULL, op_run_tasks, NULL,
     take_back_the_same_and_child_goes_on, check_each_but_5_and_6_has_one},
    {"ledger-start-behind-what-is-settled", setup_ledger_up_to_3_taken_back, NULL, op_run_tasks, NULL,
     take_back_behind_4_and_child_goes_on, check_each_behind_3_has_one},
    {"ledger-start-behind-what-is-settled-twice", setup_ledger_up_to_3_taken_back, NULL, op_run_tasks, NULL,
     take_back_twice_behind_4_and_child_goes_on, check_each_behind_3_has_one},
    {"ledger-finish-while-condemned", setup_ledger, NULL, op_finish_and_send, NULL, condemn_and_child_goes_on,
     check_sent_or_condemned},
    {"times-turn", setup_ledger, NULL, op_turn, NULL, NULL, check_times},
    {"times-turn-while-read", setup_ledger, NULL, op_turn, NULL, look_at_times_and_child_goes_on, check_all_times},
    {"holder-in-a-first-chunk", setup_full_block, NULL, op_pass_on, NULL, NULL, check_full_block},
    {"holder-in-a-third-chunk", setup_block_with_chunks, NULL, op_pass_on, NULL, NULL, check_block_with_chunks},
    {"holder-in-a-chunk-beside-another", setup_full_block, NULL, op_pass_on, NULL, another_is_added_and_child_goes_on,
     check_another_was_added},
    {"holder-in-a-chunk-beside-its-neighbour", setup_full_block, NULL, op_pass_on, NULL,
     its_neighbour_is_added_and_child_goes_on, check_another_was_added},
    {"bank-new", setup_first_bank, NULL, op_new_lock, NULL, NULL, check_second_bank},
    {"bank-new-beside-another", setup_first_bank, NULL, op_new_lock, NULL, parent_makes_one_and_child_goes_on,
     check_one_for_both},
    {"bank-adopt", setup_queue_in_second_bank, unmap_all, op_adopt, NULL, NULL, check_still_shared_there},
    {"bank-for-a-chunk", setup_full_block_and_chunks, NULL, op_pass_on, NULL, NULL, check_full_block_there},
    {"bank-of-a-family-that-ends", setup_nothing, found_other, op_grow, NULL, NULL, check_swept, .founds = true},
    {"leave-without-reaper", setup_nothing, found_and_grow_without_reaper, op_leave, NULL, NULL, check_nothing_is_left,
     .founds = true},
    {"bank-sweep", setup_dead_family_with_two_banks, NULL, op_sweep, NULL, NULL, check_swept},
    {"access-ask", setup_admitter, change_user, op_ask, NULL, NULL, check_another_is_let_in, .root = true},
    {"access-give", setup_queue_and_asker, NULL, op_admit, NULL, NULL, check_let_in, .root = true},
    {"guest-makes-queue", setup_guest, change_user, op_new_queue, NULL, NULL, check_nothing_made_for_two, .root = true},
    {"guest-makes-set", setup_guest, change_user, op_make_set, NULL, NULL, check_one_set_for_both, .root = true},
    {"made-for-the-guest", setup_guest, NULL, op_new_queue, NULL, NULL, check_nothing_made_for_two, .root = true},
    {"block-drop-with-chunks", setup_nothing, hold_alone_with_chunks, op_drop, NULL, NULL, check_nothing_and_no_chunk},
    {"block-drop-while-it-is-passed-on", setup_parent_second, NULL, op_drop_block, NULL, pass_it_on_and_child_goes_on,
     check_passed_to_another},
    {"block-drop-killed-while-it-is-passed-on", setup_parent_second, NULL, op_drop_block, NULL, pass_it_on,
     check_passed_to_another},
    {"block-drop-second-look-while-it-is-passed-on", setup_parent_second, find_nobody, op_look_again, NULL,
     pass_it_on_and_child_goes_on, check_passed_to_another},
    {"rw-read", make_rwlock, NULL, op_rw_read, NULL, NULL, check_rw_free},
    {"rw-read-again", make_rwlock, rw_have_read, op_rw_read, NULL, NULL, check_rw_free},
    {"rw-read-beside-a-thread", make_rwlock, rw_read_now, op_rw_read, NULL, NULL, check_rw_free},
    {"rw-read-release", make_rwlock, rw_read_now, op_rw_read_release, NULL, NULL, check_rw_free},
    {"rw-read-release-one-of-two", make_rwlock, rw_read_twice, op_rw_read_release, NULL, NULL, check_rw_free},
    {"rw-read-release-to-writer", make_rwlock, rw_read_now, op_rw_read_release, NULL, rw_others_end, check_rw_free,
     .started = rw_writer_waits_for_child},
    {"rw-read-and-cancel", setup_rw_written, NULL, op_rw_read_and_cancel, NULL, NULL, check_rw_free_after_parent},
    {"rw-read-wait", setup_rw_written, NULL, op_rw_read_wait, rw_release_for_child, NULL, check_rw_free_after_parent},
    {"rw-read-wait-called", setup_rw_written, NULL, op_rw_read_wait, rw_release_for_child, NULL, check_rw_free_after_parent,
     .started = rw_next_writer_is_there},
    {"rw-read-while-a-writer-comes", make_rwlock, NULL, op_rw_read, NULL, rw_writer_comes_and_child_goes_on, check_rw_free},
    {"rw-read-while-a-writer-waits", make_rwlock, NULL, op_rw_read, NULL, rw_writer_waits_and_child_goes_on, check_rw_free},
    {"rw-enroll-while-writers-change", setup_rw_written, NULL, op_rw_enroll_and_look, NULL, rw_writers_change_and_child_goes_on,
     check_rw_free},
    {"rw-enroll-while-the-next-waits", setup_rw_written, NULL, op_rw_enroll_and_look, NULL,
     rw_next_writer_waits_and_child_goes_on, check_rw_free},
    {"rw-look", setup_rw_written, rw_enroll, op_rw_look, NULL, NULL, check_rw_free, .started = rw_written},
    {"rw-look-while-a-writer-comes", setup_rw_written, rw_enroll, op_rw_look, NULL, rw_writer_comes_in_vain_and_child_goes_on,
     check_rw_free, .started = rw_written},
    {"rw-cancel-called", setup_rw_written, rw_enroll, op_rw_cancel, NULL, rw_parent_is_rung_for,
     check_rw_free_after_parent_waited, .started = rw_call_child},
    {"rw-write", make_rwlock, NULL, op_rw_write, NULL, NULL, check_rw_died_inside},
    {"rw-write-release", make_rwlock, rw_write_now, op_rw_write_release, NULL, NULL, check_rw_died_until_released},
    {"rw-write-release-to-both", make_rwlock, rw_write_now, op_rw_write_release, NULL, rw_others_end, check_rw_passed_on,
     .started = rw_reader_and_writer_wait},
    {"rw-write-wait", setup_rw_read, NULL, op_rw_write_wait_and_hold, rw_parent_leaves, NULL,
     check_rw_died_inside_after_parent},
    {"rw-write-begin-and-cancel", setup_rw_read, NULL, op_rw_begin, NULL, NULL, check_rw_free_after_parent_read},
    {"rw-write-begin-and-cancel-after-a-death", setup_rw_died_and_read, NULL, op_rw_begin, NULL, NULL, check_rw_still_died},
    {"rw-write-cancel-to-both", setup_rw_read, rw_begin, op_rw_write_cancel, NULL, rw_reader_ends,
     check_rw_passed_on_beside_parent, .started = rw_reader_and_writer_wait},
    {"rw-write-cancel-to-reader", setup_rw_read, rw_begin, op_rw_write_cancel, NULL, rw_others_end,
     check_rw_free_after_parent_read, .started = rw_reader_waits},
    {"rw-write-while-a-reader-comes", make_rwlock, NULL, op_rw_write, NULL, rw_reader_comes_and_child_goes_on,
     check_rw_passed_on},
    {"rw-write-calls-a-sleeper", setup_rw_reader_asleep, NULL, op_rw_begin_and_look, NULL, rw_others_end, check_rw_free},
    {"rw-downgrade", make_rwlock, rw_write_now, op_rw_downgrade, NULL, NULL, check_rw_died_until_released},
    {"rw-drop-reading", make_rwlock, rw_read_now, op_drop, NULL, rw_others_end, check_rw_free,
     .started = rw_writer_waits_for_child},
    {"rw-drop-writing", make_rwlock, rw_write_now, op_drop, NULL, rw_others_end, check_rw_passed_on,
     .started = rw_reader_and_writer_wait},
    {"rw-recover-reader", setup_rw_dead_reader, NULL, op_mp_recover, NULL, NULL, check_rw_free},
    {"rw-recover-writer", setup_rw_dead_writer, NULL, op_mp_recover, NULL, NULL, check_rw_passed_on},
    {"rw-recover-beginner", setup_rw_dead_beginner, NULL, op_mp_recover, NULL, NULL, check_rw_passed_on_beside_parent},
    {"rw-new", setup_nothing, NULL, op_rw_new, NULL, NULL, check_nothing_made},
    {"broadcast-put", setup_broadcast, NULL, op_put, NULL, NULL, check_put},
    {"broadcast-put-around-the-end", setup_broadcast_at_its_end, NULL, op_put, NULL, NULL, check_put},
    {"broadcast-put-and-drop", setup_broadcast_that_drops, NULL, op_put, NULL, NULL, check_dropped},
    {"broadcast-put-to-getters", setup_broadcast_and_getters, NULL, op_put, NULL, bystanders_if_finished, check_put_to_getters},
    {"broadcast-put-waiting", setup_full_broadcast, NULL, op_put_waiting, make_room_for_child, NULL, check_put_after_wait},
    {"broadcast-put-while-it-is-shut-down", setup_broadcast, NULL, op_put, NULL, shut_down_and_put_goes_on,
     check_channel_ended},
    {"broadcast-get", setup_broadcast_with_3, NULL, op_get, NULL, NULL, check_got},
    {"broadcast-get-overtaken", setup_overtaken, NULL, op_get, NULL, NULL, check_got_overtaken},
    {"broadcast-get-while-it-is-overtaken", setup_overtaken, NULL, op_get, NULL, overtake_and_child_goes_on,
     check_after_overtaking},
    {"broadcast-get-beside-another", setup_broadcast_with_3, NULL, op_get, NULL, get_too_and_child_goes_on, check_got_two},
    {"broadcast-get-waiting", setup_broadcast, NULL, op_get_waiting, put_for_child, NULL, check_got_after_wait},
    {"broadcast-get-before-a-putter", setup_broadcast, child_subscribes, op_get_childs, NULL, bystanders_if_finished,
     check_putter_went_on, .started = putter_waits_for_child},
    {"broadcast-close-before-a-putter", setup_broadcast, child_subscribes, op_close, NULL, bystanders_if_finished,
     check_putter_went_on, .started = putter_waits_for_child},
    {"broadcast-subscribe", setup_full_and_no_child, NULL, op_subscribe, NULL, NULL, check_subscribed},
    {"broadcast-subscribe-while-others-put", setup_full_and_no_child, NULL, op_subscribe, NULL, put_and_subscriber_goes_on,
     check_subscribed_beside},
    {"broadcast-shutdown", setup_waiters_at_broadcast, NULL, op_end_channel, NULL, bystanders_if_finished, check_channel_shut},
    {"broadcast-shutdown-at-once", setup_waiters_at_broadcast, NULL, op_end_channel_at_once, NULL, bystanders_if_finished,
     check_channel_shut_at_once},
    {"broadcast-new", setup_nothing, NULL, op_new_broadcast, NULL, NULL, check_nothing_made},
    {"broadcast-drop", setup_nothing, child_has_broadcast, op_drop_broadcast, NULL, NULL, check_nothing_made},
    {"broadcast-recover-subscriber", setup_dead_subscriber, NULL, op_mp_recover, NULL, bystanders_if_finished,
     check_putter_went_on},
    {"broadcast-recover-putter", setup_dead_putter, NULL, op_mp_recover, NULL, bystanders_if_finished, check_putter_went_on},
    {"start-and-cancel", setup_shared_queue, NULL, op_start_and_cancel, NULL, NULL, check_still_shared},
    {"start", setup_shared_queue, NULL, op_start, NULL, NULL, check_still_shared},
    {"arrive", setup_journey, NULL, op_arrive, NULL, NULL, check_still_shared, .started = it_was_sent},
    {"join", setup_shared_queue, forget_membership, op_join, NULL, NULL, check_still_shared},
    {"fork-prepare", setup_shared_queue, NULL, op_fork_prepare, NULL, NULL, check_still_shared},
    {"transit", setup_shared_queue, NULL, op_transit, NULL, NULL, check_still_shared},
    {"recover", setup_victim, NULL, op_recover, NULL, NULL, check_recovered},
    {"found", setup_nothing, NULL, op_found, NULL, NULL, check_swept, .founds = true},
    {"sweep", setup_dead_family, NULL, op_sweep, NULL, NULL, check_swept},
    {"wait-record", setup_nothing, NULL, op_note_wait, NULL, NULL, check_no_wait},
    {"wait-record-makes-room", setup_full_waits, NULL, op_note_wait, NULL, NULL, check_more_waits},
    {"wait-record-recover", setup_dead_waiter, NULL, op_mp_recover, NULL, NULL, check_no_wait},
    {"tie", setup_parent_of_tie, NULL, op_tie, NULL, NULL, check_untied},
    {"tie-while-parent-dies", setup_parent_of_tie, NULL, op_tie, NULL, parent_dies_and_child_goes_on, check_no_tie_is_left},
    {"tie-recover", setup_dead_parent_of_two, NULL, op_mp_recover, NULL, NULL, check_both_ended},
    {"tie-forged", setup_forged_tie, NULL, op_mp_recover, NULL, NULL, check_stranger_lives},
};

/* ---- the machine ---------------------------------------------------------------------------------------------------------------------- */

static uint64_t arena_digest(uint64_t h);

static uint64_t digest(void) {
    uint64_t h = broadcast_digest(arena_digest(0));
    const struct {
        void *start;
        size_t size;
    } regions[] = {
        {f->h, sizeof *f->h},
        {f->seg->slots, 16 * sizeof f->seg->slots[0]},
        {f->seg->cells, 16 * sizeof f->seg->cells[0]},
        {f->seg->records, 16 * sizeof f->seg->records[0]},
        {f->seg->carriers, 16 * sizeof f->seg->carriers[0]},
        {f->seg->first.blocks, 16 * sizeof f->seg->first.blocks[0]},
        {f->seg->first.chunks, 16 * sizeof f->seg->first.chunks[0]},
        {f->seg->banks, sizeof f->seg->banks},
    };
    for (size_t r = 0; r < sizeof regions / sizeof *regions; r++)
        for (size_t i = 0; i < regions[r].size / 8; i++)
            h = (h ^ ((const uint64_t *)regions[r].start)[i]) * 0x9e3779b97f4a7c15ull, h ^= h >> 29;
    return h;
}

/* The directory of an arena but for its many lanes, the words of the pieces, and the beginning of each of the first ones, which is
 * where a chunk has its own words. */
static uint64_t pieces_digest(struct mp_queue_view *v, uint64_t h) {
    struct mp_arena *a = mp_arena_open(v);
    const uint64_t *words[] = {(const uint64_t *)a, a != NULL ? (const uint64_t *)a->low : NULL,
                               a != NULL ? (const uint64_t *)a->used : NULL, a != NULL ? (const uint64_t *)a->lanes : NULL};
    for (size_t i = 0; a != NULL && i < sizeof words / sizeof *words; i++)
        for (int n = 0; n < 16 && (i < 3 || n < 2); n++)
            h = (h ^ words[i][n]) * 0x9e3779b97f4a7c15ull, h ^= h >> 29;
    struct mp_piece_place place;
    for (uint32_t segment = 0; a != NULL && segment < 4; segment++)
        for (uint32_t piece = 0; piece < 8 && mp_piece_find(v, segment, piece, &place) == MP_OK; piece++)
            for (int n = 0; n < 8; n++)
                h = (h ^ (n < 2 ? ((const uint64_t *)place.word)[n] : ((const uint64_t *)place.data)[n - 2])) *
                    0x9e3779b97f4a7c15ull,
                h ^= h >> 29;
    return h;
}

/* Of the queue that the scenario works on, and of the memory that is held. */
static uint64_t arena_digest(uint64_t h) {
    struct mp_queue_view *space = mp_space_view(f, false);
    if (queue.segments != NULL && queue.b == at())
        h = pieces_digest(&queue, h);
    return space != NULL ? pieces_digest(space, h) : h;
}

/* What the kernel knows: which objects exist, how many are attached, the values of all semaphores. */
static uint64_t kernel_digest(void) {
    uint64_t h = 0;
    char line[512];
    FILE *list = fopen("/proc/sysvipc/shm", "re");
    int id, mode, attached;
    check(list != NULL);
    while (fgets(line, sizeof line, list) != NULL)
        if (sscanf(line, "%*d %d %o %*u %*d %*d %d", &id, &mode, &attached) == 3)
            h = (h ^ ((uint64_t)id << 32 | (uint64_t)mode << 16 | (uint64_t)attached)) * 0x9e3779b97f4a7c15ull;
    fclose(list);
    list = fopen("/proc/sysvipc/msg", "re");
    check(list != NULL);
    struct msqid_ds ds;
    while (fgets(line, sizeof line, list) != NULL)
        if (sscanf(line, "%*d %d %*o %*u %d", &id, &attached) == 2 && msgctl(id, IPC_STAT, &ds) == 0)
            h = (h ^ ((uint64_t)id << 32 | (uint64_t)attached) ^ (uint64_t)ds.msg_qbytes << 16) * 0x9e3779b97f4a7c15ull;
    fclose(list);
    list = fopen("/proc/sysvipc/sem", "re");
    check(list != NULL);
    while (fgets(line, sizeof line, list) != NULL) {
        static unsigned short values[4096];
        int count;
        if (sscanf(line, "%*d %d %*o %d", &id, &count) != 2 || count > 4096 || semctl(id, 0, GETALL, values) < 0)
            continue;
        h = (h ^ (uint64_t)id) * 0x9e3779b97f4a7c15ull;
        for (int i = 0; i < count; i++)
            h = (h ^ values[i]) * 0x9e3779b97f4a7c15ull;
    }
    fclose(list);
    return h;
}

static bool at_system_call(void) {
#if defined __x86_64__
    struct user_regs_struct regs;
    if (ptrace(PTRACE_GETREGS, child_pid, NULL, &regs) < 0)
        return true;
    return (ptrace(PTRACE_PEEKTEXT, child_pid, (void *)regs.rip, NULL) & 0xffff) == 0x050f;
#else
    return true;
#endif
}

static bool has_blocked(pid_t pid) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL || fgets(text, sizeof text, file) == NULL)
        text[0] = 0;
    if (file != NULL)
        fclose(file);
    char *end = strrchr(text, ')');
    return end != NULL && end[2] == 'S';
}

/* One instruction. */
static void step(bool *blocked) {
    int status;
    check(ptrace(PTRACE_SINGLESTEP, child_pid, NULL, NULL) == 0);
    int64_t deadline = mp_now_ns() + PATIENCE_NS;
    pid_t got;
    if (now->meanwhile == NULL || *blocked) {
        got = waitpid(child_pid, &status, 0);
    } else {
        int spins = 0;
        while ((got = waitpid(child_pid, &status, WNOHANG)) == 0) {
            if (++spins > 50 && !*blocked && has_blocked(child_pid)) {
                *blocked = true;
                now->meanwhile();
            }
            if (mp_now_ns() > deadline)
                fail("the child neither goes on nor sleeps");
            sched_yield();
        }
    }
    check(got == child_pid);
    if (!WIFSTOPPED(status))
        fail("the child ended by itself, status %#x", status);
    if (WSTOPSIG(status) != SIGTRAP)
        fail("the child was stopped by signal %d", WSTOPSIG(status));
}

static void start_child(void) {
    shared->finished = 0;
    if (!now->founds)
        check_equal(mp_fork_prepare(f), MP_OK);
    child_pid = fork();
    check(child_pid >= 0);
    if (child_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (!now->founds)
            mp_fork_child(f);
        if (now->prepare != NULL)
            now->prepare();
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            fail("ptrace: %s", strerror(errno));
        raise(SIGSTOP);
#ifdef COVERED
        recording = true;
        now->operation();
        recording = false;
#else
        now->operation();
#endif
        shared->finished = 1;
        for (;;)
            pause();
    }
    if (!now->founds)
        mp_fork_parent(f);
    int status;
    check(waitpid(child_pid, &status, 0) == child_pid);
    if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGSTOP)
        fail("preparing failed, status %#x", status);
}

enum { CHANGED = 1, LOCKED = 2 };

/* The lock of the block that the scenario works on, if it has one. */
static bool child_has_lock(void) {
    uint64_t owner = lock_word() & MP_LOCK_OWNER;
    return mp_kind_of(at())->has_lock && owner != 0 && owner != f->me;
}

/* Runs the scenario from its set-up to its check; returns how many steps were made. `changes`, if given, gets a mark for
 * every step after which the shared memory or the kernel may look different, and for one after which the child has the lock. */
/* The space lasts as long as the family does: the next run is to begin without. */
static void end_space(void) {
    mp_space_forget(f);
    atomic_store(&f->h->space, 0);
    for (uint32_t i = 0; i < atomic_load(&f->h->block_high); i++)
        if (mp_block_at(f, i)->kind == MP_KIND_SPACE)
            atomic_store(&mp_block_at(f, i)->pinned, 0);
}

static long run(long steps, uint8_t *changes, long room) {
    bool blocked = false;
    step_now = steps;
    bystander_count = 0;
    now->setup();
    start_child();
    if (now->started != NULL)
        now->started();
    uint64_t before = changes ? digest() : 0, kernel_before = changes ? kernel_digest() : 0;
    long k = 0;
    while (k < steps && !shared->finished) {
        bool call = changes ? at_system_call() : false;
        step(&blocked);
        k++;
        if (changes != NULL && k < room) {
            uint64_t after = digest(), kernel_after = call ? kernel_digest() : kernel_before;
            changes[k] = (after != before || kernel_after != kernel_before) | child_has_lock() << 1;
            before = after;
            kernel_before = kernel_after;
        }
    }
    bool finished = shared->finished;
    if (now->before_kill != NULL)
        now->before_kill();
    if (stopping) {
        run_child_to_its_end();
        now->verify(true);
    }
    kill(child_pid, SIGKILL);
    int status;
    check(waitpid(child_pid, &status, 0) == child_pid);
    if (!now->founds) {
        check(mp_recover(f) >= 0);
        for (int attempt = 0; mp_family_pending(f); attempt++) { /* a reservation is given some time */
            check(attempt < 10000);
            usleep(1000);
            check(mp_recover(f) >= 0);
        }
    }
    if (!stopping)
        now->verify(finished);
    check_equal(bystander_count, 0);
    end_space();
    for (uint32_t i = 0; i < atomic_load(&f->h->block_high); i++) {
        uint64_t word = atomic_load(&mp_block_at(f, i)->word);
        check(mp_block_state_of(word) == MP_BLOCK_FREE || mp_block_state_of(word) == MP_BLOCK_READY);
        if (mp_block_state_of(word) == MP_BLOCK_READY) {
            f->local_refs[i] = 1;
            mp_block_drop(f, i);
        }
    }
    mp_recover(f); /* of bystanders */
    every_block_is_free();
    for (uint32_t i = 0; i < atomic_load(&f->h->record_high); i++)
        check_equal(atomic_load(&f->seg->records[i].owner), 0);
    for (uint32_t i = 0; i < atomic_load(&f->h->slot_high); i++)
        check((int)i == f->slot || atomic_load(&f->seg->slots[i].word) << 56 == 0);
    return finished ? k : -1;
}

enum { ROOM = 1 << 22 }; /* so long is an operation at most */

static void run_scenario(const struct scenario *s) {
    uint8_t *changes = calloc(ROOM, 1);
    now = s;
    seen = false;
    if (s->root && geteuid() != 0) {
        printf("%-34s only root can do it\n", s->name);
        return;
    }
    long length = run(ROOM - 1, changes, ROOM);
    if (length < 0)
        fail("not finished after %d steps", ROOM - 1);
    seen = false;
    long kills = 1;
    /* One who goes on has in its hands what it has read: for it each step is different. */
    bool goes_on = s->before_kill != NULL && s->before_kill != others_use_it_70000_times;
    bool every = length <= (goes_on ? 2 * EVERY_STEP : s->before_kill == NULL ? EVERY_STEP : 0);
    for (long k = 0; k < length; k++)
        if (every || k == 0 || changes[k] & CHANGED) {
            run(k, NULL, 0);
            kills++;
        }
    printf("%-34s %6ld instructions, killed at %s %ld\n", s->name, length, every ? "each:" : "those that matter:", kills);
    fflush(stdout);
    free(changes);
}

#include "stop_scenarios.h"

#ifdef COVERED
/* Leaves what the scenario has made to the end of the IPC namespace. */
static int print_covered(const struct scenario *s) {
    bool met = false;
    now = s;
    if (s->root && geteuid() != 0)
        return 0;
    covered = mmap(NULL, sizeof *covered, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(covered != MAP_FAILED);
    now->setup();
    start_child();
    if (now->started != NULL)
        now->started();
    check(ptrace(PTRACE_CONT, child_pid, NULL, NULL) == 0);
    int64_t deadline = mp_now_ns() + PATIENCE_NS;
    while (!shared->finished) {
        if (now->meanwhile != NULL && !met && has_blocked(child_pid)) {
            met = true;
            now->meanwhile();
        }
        check(mp_now_ns() < deadline);
        sched_yield();
    }
    kill(child_pid, SIGKILL);
    for (uint32_t i = 0; i < covered->count; i++)
        printf("%p\n", covered->functions[i]);
    mp_family_destroy(f);
    return 0;
}
#endif

int main(int argc, char **argv) {
    const struct scenario *list = scenarios;
    size_t count = sizeof scenarios / sizeof *scenarios;
    stopping = argc > 1 && !strcmp(argv[1], "--stop");
    if (stopping) {
        list = stop_scenarios;
        count = sizeof stop_scenarios / sizeof *stop_scenarios;
        argc--;
        argv++;
    }
    if (argc == 2 && !strcmp(argv[1], "--list")) {
        for (size_t i = 0; i < count; i++)
            puts(list[i].name);
        return 0;
    }
    if (unshare(CLONE_NEWIPC) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWIPC) < 0)
        fprintf(stderr, "no IPC namespace of its own: others may disturb the counts\n");
    int existing = queues() + segments() + sets();
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(shared != MAP_FAILED);
    check_equal(mp_family_create(f, "kill_every_step", mp_tick), MP_OK);
#ifdef UNDO_IGNORED /* no reaper is there to find out */
    atomic_store(&f->h->undo, MP_UNDO_IGNORED);
#else
    atomic_store(&f->h->undo, MP_UNDO_WORKS);
#endif
    check_equal(mp_family_join(f), MP_OK);
    mp_bell_set(f, 0, 0);                /* makes the sets, so that counting objects is simple */
    mp_bell_set(f, mp_cell_bell(0), 0);
    atomic_store(&f->h->cell_high, 1);
    atomic_store(&f->h->block_high, 1);
    int ran = 0;
    for (size_t i = 0; i < count; i++) {
#ifdef COVERED
        if (argc == 2 && !strcmp(argv[1], list[i].name))
            return print_covered(&list[i]);
        continue;
#endif
        bool wanted = argc == 1;
        for (int a = 1; a < argc; a++)
            wanted |= !strcmp(argv[a], list[i].name);
        if (wanted) {
            if (stopping)
                run_stop_scenario(&list[i]);
            else
                run_scenario(&list[i]);
            ran++;
        }
    }
    now = NULL;
    mp_family_destroy(f);
    mp_family_detach(f);
    check_equal(queues() + segments() + sets(), existing);
    return ran > 0 ? 0 : 2;
}

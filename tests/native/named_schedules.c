/* Runs processes that create and unlink the same name in random order of their system calls, and kills some.
 *
 * The processes are under ptrace(2), and the scheduler below lets one at a time go on to its next system call, or the end of
 * it. All that the protocol of named.c does in between is a load or a compare-and-swap or two, so this reaches the orders
 * that matter, which chance would hardly ever. Meanwhile other names' segments under the same keys come and go. After every
 * single step there must be at most one live segment of the name; at the end, as many creations must have succeeded as
 * unlinks, or one more if the name is there.
 *
 *   named_schedules FIRST COUNT    the schedules with the seeds from FIRST on
 */
#include "core.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define ACTORS 3
#define ROUNDS 2
#define FILLERS 3
#define ENOUGH 400000 /* steps after which a schedule is called a livelock */

static struct mp_family family, *f = &family;
static unsigned long seed;
static struct mp_name prize = {"prize", 5, 0};

static struct report {
    volatile int wins, unlinks;
} *reports;

static void fail(const char *what, long detail) {
    fprintf(stderr, "schedule %lu: %s (%ld)\n", seed, what, detail);
    exit(1);
}
#define check(condition, detail) ((condition) ? (void)0 : fail(#condition, detail))

/* Pauses would only make this slow: the scheduler decides who waits. */
int usleep(useconds_t microseconds) {
    (void)microseconds;
    getppid();
    return 0;
}

static uint64_t state;
static unsigned pick(unsigned below) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 33) % below;
}

/* As _memory/named.pyx does it. */
static int create(const struct mp_name *name, bool tracked, int *shmid) {
    struct mp_named_patience patience = {0};
    for (;;) {
        struct mp_named_ref ref;
        int64_t index = mp_block_new(f, MP_KIND_SEGMENT);
        check(index >= 0, errno);
        int error = mp_named_create(f, index, name, 10, 0600, tracked, &patience, &ref);
        if (error != MP_OK) {
            mp_block_abandon(f, index);
            return error;
        }
        *shmid = ref.shmid;
        if (mp_named_publish(f, index, tracked, &ref)) {
            shmdt(ref.header);
            return MP_OK;
        }
    }
}

static int unlink_name(const struct mp_name *name, int shmid) {
    struct mp_named_ref ref;
    int error = mp_named_unlink(name, shmid, &ref);
    if (error == MP_OK && ref.family != 0)
        check(mp_named_unlinked(f, &ref), ref.block);
    return error;
}

static void act(struct report *report, unsigned plan) {
    for (int round = 0; round < ROUNDS; round++, plan >>= 3) {
        int shmid = -1;
        int error = create(&prize, plan & 1, &shmid);
        if (error == MP_OK) {
            report->wins++;
        } else {
            check(error == EEXIST, error);
            struct mp_named_ref ref;
            if ((plan & 4) == 0 || mp_named_attach(&prize, false, &ref) != MP_OK)
                continue;
            shmid = ref.shmid;
            check(memcmp(ref.header->name, "prize", 5) == 0, 0);
            shmdt(ref.header);
        }
        if (plan & 2) {
            error = unlink_name(&prize, shmid);
            check(error == MP_OK || error == ENOENT, error);
            report->unlinks += error == MP_OK;
        }
    }
}

/* ---- what there is ------------------------------------------------------------------------------------------------------ */

static int live(int *shmid) {
    int found = 0;
    for (uint32_t p = 0; p < MP_NAMED_PROBES; p++) {
        int id = shmget(mp_named_key(prize.hash, p), 0, 0);
        struct mp_named *h = id < 0 ? (void *)-1 : shmat(id, NULL, SHM_RDONLY);
        if (h == (void *)-1)
            continue;
        if (h->state == MP_NAMED_LIVE && h->length == 5 && memcmp(h->name, "prize", 5) == 0) {
            *shmid = id;
            found++;
        }
        shmdt(h);
    }
    return found;
}

static int segments(void) {
    int found = 0;
    for (uint32_t p = 0; p < MP_NAMED_PROBES; p++)
        found += shmget(mp_named_key(prize.hash, p), 0, 0) >= 0;
    return found;
}

/* ---- the scheduler ------------------------------------------------------------------------------------------------------- */

struct filler {
    char text[8];
    struct mp_name name;
    int shmid;
};

static void run(void) {
    state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < 8; i++)
        pick(2);
    struct filler fillers[FILLERS];
    for (int i = 0; i < FILLERS; i++) {
        snprintf(fillers[i].text, sizeof fillers[i].text, "fill%d", i);
        fillers[i].name = (struct mp_name){fillers[i].text, 5, prize.hash};
        check(create(&fillers[i].name, false, &fillers[i].shmid) == MP_OK, i);
    }
    memset(reports, 0, ACTORS * sizeof *reports);
    pid_t actors[ACTORS];
    bool killed = false;
    bool kills = pick(3) == 0;
    for (int i = 0; i < ACTORS; i++) {
        unsigned plan = pick(1 << 3 * ROUNDS);
        check(mp_fork_prepare(f) == MP_OK, errno);
        actors[i] = fork();
        if (actors[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            mp_fork_child(f);
            if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
                perror("ptrace");
                _exit(2);
            }
            raise(SIGSTOP);
            act(&reports[i], plan);
            _exit(0);
        }
        mp_fork_parent(f);
        int status;
        check(waitpid(actors[i], &status, 0) == actors[i] && WIFSTOPPED(status), errno);
    }
    int left = ACTORS, shmid = -1;
    for (long step = 0; left > 0; step++) {
        check(step < ENOUGH, step);
        if (pick(60) == 0) { /* other names come and go */
            struct filler *filler = &fillers[pick(FILLERS)];
            if (filler->shmid < 0)
                check(create(&filler->name, false, &filler->shmid) == MP_OK, 0);
            else if (unlink_name(&filler->name, filler->shmid) == MP_OK)
                filler->shmid = -1;
        }
        int i = (int)pick(ACTORS);
        /* Most orders are like others; those in which one goes on while another stands still for long are not. */
        int strides = pick(4) == 0 ? (int)pick(60) : 1;
        for (; strides > 0 && actors[i] > 0; strides--) {
            int status;
            if (kills && !killed && pick(400) == 0) {
                kill(actors[i], SIGKILL);
                killed = true;
            } else {
                ptrace(PTRACE_SYSCALL, actors[i], NULL, NULL);
            }
            check(waitpid(actors[i], &status, 0) == actors[i], errno);
            if (!WIFSTOPPED(status)) {
                check(WIFSIGNALED(status) || WEXITSTATUS(status) == 0, status);
                actors[i] = 0;
                left--;
            }
            check(live(&shmid) <= 1, live(&shmid));
        }
    }
    int wins = 0, unlinks = 0;
    for (int i = 0; i < ACTORS; i++) {
        wins += reports[i].wins;
        unlinks += reports[i].unlinks;
    }
    if (!killed) {
        check(wins >= 1, wins);
        check(wins - unlinks == live(&shmid), unlinks);
    }
    while (mp_recover(f) != 0 || mp_family_pending(f))
        ;
    if (live(&shmid) == 1)
        check(unlink_name(&prize, shmid) == MP_OK, shmid);
    for (int i = 0; i < FILLERS; i++)
        if (fillers[i].shmid >= 0)
            check(unlink_name(&fillers[i].name, fillers[i].shmid) == MP_OK, i);
    check(segments() == 0, segments());
    for (uint32_t i = 0; i < f->h->block_high; i++)
        check(mp_block_state_of(mp_block_at(f, i)->word) == MP_BLOCK_FREE, i);
}

int main(int argc, char **argv) {
    unsigned long first = argc > 1 ? strtoul(argv[1], NULL, 0) : 0;
    unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 0) : 100;
    prize.hash = (uint32_t)getpid() * 2654435761u >> 8; /* the namespace may be shared with other runs */
    reports = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (mp_family_create(f, "named_schedules", mp_tick) != MP_OK || mp_family_join(f) != MP_OK) {
        perror("mp_family_create");
        return 2;
    }
    for (seed = first; seed < first + count; seed++)
        run();
    mp_family_destroy(f);
    printf("%lu schedules\n", count);
    return 0;
}

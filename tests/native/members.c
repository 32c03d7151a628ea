/* A family with many members, and members that die in an order which the kernel does not promise to keep.
 *
 *   members fill REAPER      forks members until the family refuses one; each only joins. Then all are killed, and the reaper has to
 *                            clear every slot.
 *   members count REAPER N   the same with N of them; prints what a member costs.
 *   members reversed REAPER N   N members, one after the other, that have joined in the wrong order: of such a one `deaths` rings
 *                            before its alive[] is 0. Each is killed, and the reaper has to clear its slot soon nevertheless.
 *
 * REAPER is the path of mpipc-reaper. Prints one line of figures for each step; the exit status says whether all went well. To be
 * run in an IPC namespace of its own. */
#include "core.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_NS 60000000000ll

static struct mp_family family, *f = &family;

static void fail(const char *what) {
    fprintf(stderr, "%s (errno %d: %s)\n", what, errno, strerror(errno));
    exit(1);
}

static uint32_t slots_in_state(enum mp_slot_state state) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < MP_SLOTS; i++)
        n += mp_slot_state_of(atomic_load(&f->seg->slots[i].word)) == state;
    return n;
}

static double wait_for_slots(uint32_t wanted, const char *what) {
    int64_t began = mp_now_ns();
    while (MP_SLOTS - slots_in_state(MP_SLOT_FREE) != wanted) {
        if (mp_now_ns() - began > PATIENCE_NS)
            fail(what);
        usleep(500);
    }
    return (double)(mp_now_ns() - began) / 1e9;
}

/* kB of kernel memory in slabs: undo entries, among others. */
static long slabs(void) {
    char line[256];
    long kb = -1;
    FILE *file = fopen("/proc/meminfo", "re");
    if (file == NULL)
        return -1;
    while (kb < 0 && fgets(line, sizeof line, file) != NULL)
        sscanf(line, "Slab: %ld", &kb);
    fclose(file);
    return kb;
}

/* Forks a child that has joined when this returns. 0: the family has refused it; -1: fork failed. */
static pid_t member(bool in_order) {
    int ready[2];
    char answer = 0;
    if (in_order && mp_start_reserve(f) != MP_OK)
        return 0;
    if (pipe(ready) < 0)
        fail("pipe");
    if (in_order && mp_fork_prepare(f) != MP_OK)
        fail("mp_fork_prepare");
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (in_order) {
            answer = mp_fork_child(f) == MP_OK && f->slot >= 0;
        } else { /* as mp_family_join(), but for the order of the two operations */
            int slot = mp_slot_reserve(f, MP_SLOT_JOINING), semid;
            struct sembuf live = {0, 1, SEM_UNDO}, count[] = {{MP_SEM_DEATHS, 1, 0}, {MP_SEM_DEATHS, -1, SEM_UNDO}};
            struct mp_slot *s = &f->seg->slots[slot];
            answer = slot >= 0 && mp_alive(f, slot, &semid, &live.sem_num) == MP_OK && semop(semid, &live, 1) == 0 &&
                     semop(f->semid, count, 2) == 0;
            uint32_t generation = mp_slot_generation(atomic_load(&s->word));
            atomic_store(&s->word, mp_slot_word(MP_SLOT_ALIVE, generation, getpid()));
        }
        if (write(ready[1], &answer, 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    if (in_order)
        mp_fork_parent(f);
    close(ready[1]);
    if (pid > 0 && (read(ready[0], &answer, 1) != 1 || !answer))
        fail("a child did not join");
    close(ready[0]);
    return pid;
}

static void fill(uint32_t wanted) {
    pid_t *pids = calloc(MP_SLOTS + 1, sizeof *pids);
    uint32_t count = 0;
    long before = slabs();
    int64_t began = mp_now_ns();
    pid_t pid = 0;
    while (count < wanted && (pid = member(true)) > 0)
        pids[count++] = pid;
    int error = errno;
    double seconds = (double)(mp_now_ns() - began) / 1e9;
    if (pid < 0)
        fail("fork");
    printf("%u members and their parent, %.0f us each to fork and join, %ld bytes of kernel memory each\n", count,
           seconds * 1e6 / count, (slabs() - before) * 1024 / (long)count);
    if (slots_in_state(MP_SLOT_ALIVE) != count + 1)
        fail("not all are alive");
    if (pid == 0) {
        printf("one more: %s\n", strerror(error));
        if (error != EUSERS || count + 1 != MP_SLOTS)
            fail("refused too early, or for another reason");
    }
    for (uint32_t i = 0; i < count; i++)
        kill(pids[i], SIGKILL);
    for (uint32_t i = 0; i < count; i++)
        waitpid(pids[i], NULL, 0);
    printf("all killed and cleared after %.2f s\n", wait_for_slots(1, "the dead are not cleared"));
    free(pids);
}

static void reversed(int rounds) {
    double longest = 0;
    for (int i = 0; i < rounds; i++) {
        pid_t pid = member(false);
        if (pid <= 0)
            fail("fork");
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        double took = wait_for_slots(1, "a death was missed");
        longest = took > longest ? took : longest;
    }
    printf("%d deaths in the wrong order, the last one cleared after %.3f s\n", rounds, longest);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 3)
        return 2;
    if (mp_family_create(f, "members", mp_tick) != MP_OK || mp_family_join(f) != MP_OK)
        fail("founding");
    f->reaper_path = argv[2];
    if (mp_launch_reaper(f) != MP_OK)
        fail("launching the reaper");
    for (int64_t began = mp_now_ns(); !mp_reaper_present(f);)
        if (mp_now_ns() - began > PATIENCE_NS)
            fail("no reaper");
    if (!strcmp(argv[1], "fill"))
        fill(MP_SLOTS);
    else if (!strcmp(argv[1], "count") && argc > 3)
        fill((uint32_t)atoi(argv[3]));
    else if (!strcmp(argv[1], "reversed") && argc > 3)
        reversed(atoi(argv[3]));
    else
        return 2;
    return 0;
}

/* Starting the reaper so that the program does not notice: it is nobody's child, holds no descriptor, belongs to no terminal.
 *
 * The parent clones a middle process which clones and execs the reaper and ends; the reaper is left to init. The middle
 * process is cloned with no exit signal, so wait() and waitpid(-1) in another thread do not see it (clone(2): "clone"
 * children are waited for with __WCLONE only), and no SIGCHLD is sent. Both steps share the memory of the parent, which
 * stands still meanwhile (CLONE_VM | CLONE_VFORK): no page tables are copied, however large the program is.
 *
 * Where this process is init itself, or a subreaper (prctl(2)), an orphan would become its child and be seen by wait(). There
 * the reaper stays a direct child without an exit signal, which wait() does not see either, and does not exec, because exec
 * sets the exit signal to SIGCHLD. It keeps the pages of the program that it was cloned from. */
#include "family.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK_SIZE 65536

struct launch {
    const char *path;
    char *argv[3];
    char *env[2];
    char *stack;
};

static void close_all(void) {
#ifdef SYS_close_range
    if (syscall(SYS_close_range, 0u, ~0u, 0u) == 0)
        return;
#endif
    long limit = sysconf(_SC_OPEN_MAX);
    for (int fd = 0; fd < (limit > 0 ? limit : 65536); fd++)
        close(fd);
}

static void detach_from_program(void) {
    close_all();
    if (open("/dev/null", O_RDWR) == 0) {
        dup2(0, 1);
        dup2(0, 2);
    }
    if (chdir("/") != 0)
        return; /* then it stays where it is: no reason to do without a reaper */
}

/* On a stack of their own, which an address sanitizer does not know. */
__attribute__((no_sanitize("address"))) static int exec_reaper(void *arg) {
    struct launch *l = arg;
    detach_from_program();
    execve(l->path, l->argv, l->env);
    _exit(127);
}

__attribute__((no_sanitize("address"))) static int middle(void *arg) {
    struct launch *l = arg;
    pid_t pid = clone(exec_reaper, l->stack + STACK_SIZE, CLONE_VM | CLONE_VFORK, l);
    _exit(pid < 0 ? 1 : 0);
}

/* Segments that the program had attached would live on with us. Read without stdio: the lock of malloc(3) may have been held by
 * another thread at the moment of the clone. */
static void detach_inherited_segments(void) {
    static char text[1 << 16];
    void *found[1024];
    size_t count = 0, kept = 0;
    ssize_t got;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    while ((got = read(fd, text + kept, sizeof text - 1 - kept)) > 0) {
        text[kept + (size_t)got] = 0;
        char *line = text, *end;
        while ((end = strchr(line, '\n')) != NULL) {
            *end = 0;
            if (strstr(line, "/SYSV") != NULL && count < sizeof found / sizeof *found)
                found[count++] = (void *)strtoul(line, NULL, 16);
            line = end + 1;
        }
        kept = strlen(line); /* the beginning of the next line */
        memmove(text, line, kept);
    }
    close(fd);
    for (size_t i = 0; i < count; i++)
        shmdt(found[i]);
}

static int launch_as_child(struct mp_family *f) {
    pid_t pid = (pid_t)syscall(SYS_clone, 0ul, NULL, NULL, NULL, 0ul);
    if (pid == 0) {
        int shmid = f->shmid;
        uint64_t nonce = f->nonce;
        detach_from_program();
        detach_inherited_segments();
        prctl(PR_SET_NAME, "mpipc-reaper");
        _exit(mp_reaper_main(shmid, nonce));
    }
    f->reaper_child = pid > 0 ? pid : 0;
    return pid < 0 ? MP_FAILED : MP_OK;
}

int mp_launch_reaper(struct mp_family *f) {
    int64_t now = mp_now_ns(), last = atomic_load(&f->h->reaper_launched_ns);
    if (f->reaper_path == NULL || (last != 0 && now - last < MP_TICK_NS && now >= last))
        return MP_OK; /* it is on its way */
    if (!atomic_compare_exchange_strong(&f->h->reaper_launched_ns, &last, now))
        return MP_OK;
    if (f->reaper_child != 0 && waitpid(f->reaper_child, NULL, __WCLONE | WNOHANG) > 0)
        f->reaper_child = 0; /* an earlier one that was a direct child of ours */
    int is_subreaper = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &is_subreaper);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* no handler of the program may run in the clones */
    int result = MP_FAILED;
    if (getpid() == 1 || is_subreaper || access(f->reaper_path, X_OK) != 0) { /* the last: a noexec mount, say */
        result = launch_as_child(f);
    } else {
        char id[16], nonce[sizeof MP_NONCE_VARIABLE + 24];
        snprintf(id, sizeof id, "%d", f->shmid);
        /* Everybody can read a command line; an environment only its own user. */
        snprintf(nonce, sizeof nonce, MP_NONCE_VARIABLE "=%llx", (unsigned long long)f->nonce);
        char *stacks = malloc(2 * STACK_SIZE);
        struct launch l = {f->reaper_path, {"mpipc-reaper", id, NULL}, {nonce, NULL}, stacks + STACK_SIZE};
        pid_t pid = stacks == NULL ? -1 : clone(middle, stacks + STACK_SIZE, CLONE_VM | CLONE_VFORK, &l);
        if (pid > 0) {
            int status = -1;
            while (waitpid(pid, &status, __WCLONE) < 0 && errno == EINTR)
                ;
            result = WIFEXITED(status) && WEXITSTATUS(status) == 0 ? MP_OK : MP_FAILED;
        }
        free(stacks);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return result;
}

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
        atomic_compare_exchange_strong(&s->kept, &wanted, MP_KEEP_DONE);
    }
}

/* How often the reaper looks again, after a ring that it has found no reason for. */
#define SECOND_LOOKS 3

/* The reaper's life. Returns its exit code. */
int mp_reaper_main(int shmid, uint64_t nonce) {
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
    if (mp_family_attach(&f, shmid, nonce) != MP_OK)
        return 1;
    if (!mp_reaper_become(&f))
        return 0; /* there is one */
    int64_t trimmed_ns = mp_now_ns();
    int looks = 0;
    for (;;) {
        keep_what_is_in_transit(&f); /* first: somebody waits for it */
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
        bool pending = mp_family_pending(&f) || recovered < 0;
        if (!pending && !mp_family_populated(&f)) {
            atomic_store(&f.h->state, MP_CLOSING);
            if (!mp_family_populated(&f)) {
                mp_family_destroy(&f);
                return 0;
            }
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
            return 1; /* removed with ipcrm */
        /* Whoever rings may be dying, on a kernel that undoes its operations in another order than is promised. */
        looks = rung == 0 ? SECOND_LOOKS : looks > 0 ? looks - 1 : 0;
        int more = semctl(f.semid, MP_SEM_DEATHS, GETVAL);
        if (more > 0) { /* not SETVAL: that would drop the undo entries of the living */
            struct sembuf drain = {MP_SEM_DEATHS, (short)-more, IPC_NOWAIT};
            semop(f.semid, &drain, 1);
        }
    }
}

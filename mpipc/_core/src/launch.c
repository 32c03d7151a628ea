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
#include "launch.h"

#include "banks.h"
#include "reaper.h"

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

/* Where /proc is not there (chroot(2)): of the families of the program, as far as this one knows them. Segments of memory that it
 * had live on with us then, until it has ended. */
static void detach_families(struct mp_family *f) {
    for (; f != NULL; f = f->next) {
        mp_banks_unmap(f);
        shmdt(f->seg);
    }
}

/* Segments that the program had attached would live on with us. Read without stdio: the lock of malloc(3) may have been held by
 * another thread at the moment of the clone. */
static void detach_inherited_segments(struct mp_family *f) {
    static char text[1 << 16];
    void *found[1024];
    size_t count = 0, kept = 0;
    ssize_t got;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        detach_families(f);
        return;
    }
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
        detach_inherited_segments(f);
        prctl(PR_SET_NAME, "mpipc-reaper");
        _exit(mp_reaper_main(shmid, nonce, NULL));
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
    f->reaper_failed = result != MP_OK;
    return result;
}

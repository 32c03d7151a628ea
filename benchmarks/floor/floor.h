/* What the programs of this folder share: a clock, processes that begin together, and leaving nothing behind. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* ---- kernel objects that nobody else would remove ---------------------------------------------------------------- */

enum { MOST_OBJECTS = 16 };
static int queue_ids[MOST_OBJECTS], semaphore_ids[MOST_OBJECTS];
static volatile sig_atomic_t queue_count, semaphore_count;
static pid_t main_pid;

static void remove_objects(void) {
    if (getpid() != main_pid)
        return;
    for (int i = 0; i < queue_count; i++)
        msgctl(queue_ids[i], IPC_RMID, NULL);
    for (int i = 0; i < semaphore_count; i++)
        semctl(semaphore_ids[i], 0, IPC_RMID);
    queue_count = semaphore_count = 0;
}

static void terminated(int signum) {
    remove_objects();
    _exit(128 + signum);
}

static UNUSED _Noreturn void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    kill(0, SIGTERM); /* the others of this program: they would wait for us */
    remove_objects();
    _exit(1);
}

/* Ends the program as the last line of main() would, for what the arguments ask and there is not. */
static UNUSED _Noreturn void usage(const char *text) {
    fprintf(stderr, "usage: %s\n", text);
    exit(2);
}

static void set_up(void) {
    main_pid = getpid();
    setpgid(0, 0); /* for die() */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct sigaction action = {.sa_handler = terminated};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    atexit(remove_objects);
}

static UNUSED int new_queue(void) {
    int id = msgget(IPC_PRIVATE, 0600);
    if (id < 0)
        die("msgget");
    queue_ids[queue_count++] = id;
    return id;
}

static UNUSED int new_semaphores(int count) {
    int id = semget(IPC_PRIVATE, count, 0600);
    if (id < 0)
        die("semget");
    semaphore_ids[semaphore_count++] = id;
    return id;
}

static UNUSED void *shared_memory(size_t size) {
    void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED)
        die("mmap");
    return address;
}

static UNUSED void up(int semid, int number, short flags) {
    struct sembuf op = {(unsigned short)number, 1, flags};
    if (semop(semid, &op, 1) != 0)
        die("semop");
}

static UNUSED void down(int semid, int number, short flags) {
    struct sembuf op = {(unsigned short)number, -1, flags};
    while (semop(semid, &op, 1) != 0)
        if (errno != EINTR)
            die("semop");
}

/* ---- several processes ------------------------------------------------------------------------------------------- */

enum { MOST_PROCESSES = 64 };

struct times {
    pthread_barrier_t start;
    int64_t begin[MOST_PROCESSES], end[MOST_PROCESSES];
};

/* What each process does before the clock runs, if anything. */
static void (*before_start)(void) UNUSED;

/* Runs part(0, ...) to part(n - 1, ...) in a process each and returns the nanoseconds from the first one's beginning to the last
 * one's end; they begin when all have been started. */
static UNUSED int64_t run_processes(int n, void (*part)(int number, long count), const long *counts) {
    if (n > MOST_PROCESSES)
        usage("at most 64 processes");
    struct times *times = shared_memory(sizeof *times);
    pthread_barrierattr_t attributes;
    pthread_barrierattr_init(&attributes);
    pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&times->start, &attributes, (unsigned)n);
    for (int i = 0; i < n; i++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0) {
            signal(SIGTERM, SIG_DFL);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (before_start != NULL)
                before_start();
            pthread_barrier_wait(&times->start);
            times->begin[i] = now_ns();
            part(i, counts[i]);
            times->end[i] = now_ns();
            _exit(0);
        }
    }
    for (int i = 0; i < n; i++) {
        int status;
        if (wait(&status) < 0 || status != 0)
            die("a process failed");
    }
    int64_t begin = INT64_MAX, end = 0;
    for (int i = 0; i < n; i++) {
        begin = times->begin[i] < begin ? times->begin[i] : begin;
        end = times->end[i] > end ? times->end[i] : end;
    }
    return end - begin;
}

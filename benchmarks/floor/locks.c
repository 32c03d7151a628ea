/* locks KIND PROCESSES COUNT: COUNT times lock and unlock, divided among the processes, with nothing else in between.
 * KIND: posix (a sem_t, which multiprocessing's locks are), robust (a pthread mutex that survives its owner), semop (System V with
 * SEM_UNDO); posix-increment (one to a 64-bit integer meanwhile). Prints nanoseconds. */
#include "floor.h"

static struct {
    sem_t semaphore;
    pthread_mutex_t mutex;
    volatile int64_t value;
} *shared;
static int semid;
static const char *kind;

static void part(int number UNUSED, long count) {
    if (strcmp(kind, "posix") == 0) {
        for (long i = 0; i < count; i++) {
            while (sem_wait(&shared->semaphore) != 0)
                ;
            sem_post(&shared->semaphore);
        }
    } else if (strcmp(kind, "posix-increment") == 0) {
        for (long i = 0; i < count; i++) {
            while (sem_wait(&shared->semaphore) != 0)
                ;
            shared->value += 1;
            sem_post(&shared->semaphore);
        }
    } else if (strcmp(kind, "robust") == 0) {
        for (long i = 0; i < count; i++) {
            pthread_mutex_lock(&shared->mutex);
            pthread_mutex_unlock(&shared->mutex);
        }
    } else if (strcmp(kind, "semop") == 0) {
        for (long i = 0; i < count; i++) {
            down(semid, 0, SEM_UNDO);
            up(semid, 0, SEM_UNDO);
        }
    } else {
        usage("locks posix|posix-increment|robust|semop PROCESSES COUNT");
    }
}

int main(int argc, char **argv) {
    if (argc != 4)
        usage("locks KIND PROCESSES COUNT");
    set_up();
    kind = argv[1];
    int processes = atoi(argv[2]);
    shared = shared_memory(sizeof *shared);
    sem_init(&shared->semaphore, 1, 1);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared->mutex, &attributes);
    semid = new_semaphores(1);
    up(semid, 0, 0);
    long counts[MOST_PROCESSES];
    for (int i = 0; i < processes && i < MOST_PROCESSES; i++)
        counts[i] = atol(argv[3]) / processes;
    int64_t elapsed = run_processes(processes, part, counts);
    if (strcmp(kind, "posix-increment") == 0 && shared->value != counts[0] * processes)
        usage("the lock does not lock");
    printf("%lld\n", (long long)elapsed);
}

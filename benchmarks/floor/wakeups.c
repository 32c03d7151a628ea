/* wakeups KIND PROCESSES COUNT: COUNT times the processes wake one another. Prints nanoseconds.
 * KIND: semaphore, semop, condition (two processes, there and back); barrier (all of them pass one). */
#include "floor.h"

static struct {
    sem_t ping, pong;
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    pthread_barrier_t barrier;
    int turn;
} *shared;
static int semid;
static const char *kind;

static void part(int number, long count) {
    if (strcmp(kind, "semaphore") == 0) {
        sem_t *mine = number ? &shared->ping : &shared->pong, *other = number ? &shared->pong : &shared->ping;
        for (long i = 0; i < count; i++) {
            if (number == 0)
                sem_post(other);
            while (sem_wait(mine) != 0)
                ;
            if (number == 1)
                sem_post(other);
        }
    } else if (strcmp(kind, "semop") == 0) {
        for (long i = 0; i < count; i++) {
            if (number == 0)
                up(semid, 0, 0);
            down(semid, number ? 0 : 1, 0);
            if (number == 1)
                up(semid, 1, 0);
        }
    } else if (strcmp(kind, "condition") == 0) {
        for (long i = 0; i < count; i++) {
            pthread_mutex_lock(&shared->mutex);
            while (shared->turn != number)
                pthread_cond_wait(&shared->condition, &shared->mutex);
            shared->turn = 1 - number;
            pthread_cond_signal(&shared->condition);
            pthread_mutex_unlock(&shared->mutex);
        }
    } else if (strcmp(kind, "barrier") == 0) {
        for (long i = 0; i < count; i++)
            pthread_barrier_wait(&shared->barrier);
    } else {
        usage("wakeups semaphore|semop|condition|barrier PROCESSES COUNT");
    }
}

int main(int argc, char **argv) {
    if (argc != 4)
        usage("wakeups KIND PROCESSES COUNT");
    set_up();
    kind = argv[1];
    int processes = atoi(argv[2]);
    shared = shared_memory(sizeof *shared);
    sem_init(&shared->ping, 1, 0);
    sem_init(&shared->pong, 1, 0);
    semid = new_semaphores(2);
    pthread_mutexattr_t mutex_attributes;
    pthread_mutexattr_init(&mutex_attributes);
    pthread_mutexattr_setpshared(&mutex_attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->mutex, &mutex_attributes);
    pthread_condattr_t condition_attributes;
    pthread_condattr_init(&condition_attributes);
    pthread_condattr_setpshared(&condition_attributes, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->condition, &condition_attributes);
    pthread_barrierattr_t barrier_attributes;
    pthread_barrierattr_init(&barrier_attributes);
    pthread_barrierattr_setpshared(&barrier_attributes, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&shared->barrier, &barrier_attributes, (unsigned)processes);
    long counts[MOST_PROCESSES];
    for (int i = 0; i < processes && i < MOST_PROCESSES; i++)
        counts[i] = atol(argv[3]);
    printf("%lld\n", (long long)run_processes(processes, part, counts));
}

/* queues both SIZE COUNT: msgsnd and msgrcv of SIZE bytes, in one process.
 * queues posix-both SIZE COUNT: the same with mq_send and mq_receive.
 * queues semop - COUNT: semop -1 and +1 with SEM_UNDO; queues sem - COUNT: sem_wait and sem_post.
 * queues attach SIZE COUNT: shmat, one byte written to the first page, shmdt.
 * queues stream SIZE PRODUCERS CONSUMERS COUNT: COUNT messages through one System V queue.
 * Prints nanoseconds. */
#include "floor.h"

struct message {
    long type;
    char text[8192];
};

static int queue, producers;
static size_t size;

static void stream_part(int number, long count) {
    struct message message = {.type = 1};
    if (number < producers) {
        for (long i = 0; i < count; i++)
            if (msgsnd(queue, &message, size, 0) != 0)
                die("msgsnd");
    } else {
        for (long i = 0; i < count; i++)
            if (msgrcv(queue, &message, sizeof message.text, 0, 0) != (ssize_t)size)
                die("msgrcv");
    }
}

static int64_t stream(int consumers, long count) {
    long counts[MOST_PROCESSES];
    if (producers + consumers > MOST_PROCESSES)
        usage("at most 64 processes");
    queue = new_queue();
    for (int i = 0; i < producers + consumers; i++)
        counts[i] = count / (i < producers ? producers : consumers);
    return run_processes(producers + consumers, stream_part, counts);
}

static int64_t both(long count) {
    struct message message = {.type = 1};
    queue = new_queue();
    int64_t begin = now_ns();
    for (long i = 0; i < count; i++)
        if (msgsnd(queue, &message, size, 0) != 0 || msgrcv(queue, &message, sizeof message.text, 0, 0) < 0)
            die("msgsnd, msgrcv");
    return now_ns() - begin;
}

static int64_t posix_both(long count) {
    char name[64], text[8192] = {0};
    struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = sizeof text};
    snprintf(name, sizeof name, "/mpipc-bench-%d", (int)getpid());
    mqd_t mq = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    if (mq < 0)
        die("mq_open");
    mq_unlink(name);
    int64_t begin = now_ns();
    for (long i = 0; i < count; i++)
        if (mq_send(mq, text, size, 0) != 0 || mq_receive(mq, text, sizeof text, NULL) < 0)
            die("mq_send, mq_receive");
    return now_ns() - begin;
}

static int64_t semaphore_calls(int posix, long count) {
    int semid = new_semaphores(1);
    sem_t *semaphore = shared_memory(sizeof *semaphore);
    up(semid, 0, 0);
    sem_init(semaphore, 1, 1);
    int64_t begin = now_ns();
    for (long i = 0; i < count; i++) {
        if (posix) {
            sem_wait(semaphore);
            sem_post(semaphore);
        } else {
            down(semid, 0, SEM_UNDO);
            up(semid, 0, SEM_UNDO);
        }
    }
    return now_ns() - begin;
}

static int64_t attach(long count) {
    int id = shmget(IPC_PRIVATE, size, 0600);
    void *held = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
    if (held == (void *)-1)
        die("shmget, shmat");
    shmctl(id, IPC_RMID, NULL); /* Linux: it can still be attached, and goes with the last who has it */
    int64_t begin = now_ns();
    for (long i = 0; i < count; i++) {
        volatile char *address = shmat(id, NULL, 0);
        if (address == (void *)-1)
            die("shmat");
        address[0] = (char)i;
        shmdt((const void *)address);
    }
    return now_ns() - begin;
}

int main(int argc, char **argv) {
    int64_t elapsed = 0;
    if (argc < 4)
        usage("queues both|posix-both|semop|sem|attach|stream SIZE [PRODUCERS CONSUMERS] COUNT");
    set_up();
    const char *what = argv[1];
    long count = atol(argv[argc - 1]);
    size = (size_t)atol(argv[2]);
    if (size > 8192 && strcmp(what, "attach") != 0)
        usage("SIZE is at most 8192");
    if (strcmp(what, "stream") == 0 && argc == 6) {
        producers = atoi(argv[3]);
        elapsed = stream(atoi(argv[4]), count);
    } else if (strcmp(what, "both") == 0) {
        elapsed = both(count);
    } else if (strcmp(what, "posix-both") == 0) {
        elapsed = posix_both(count);
    } else if (strcmp(what, "semop") == 0 || strcmp(what, "sem") == 0) {
        elapsed = semaphore_calls(strcmp(what, "sem") == 0, count);
    } else if (strcmp(what, "attach") == 0) {
        elapsed = attach(count);
    } else {
        usage("queues both|posix-both|semop|sem|attach|stream SIZE [PRODUCERS CONSUMERS] COUNT");
    }
    printf("%lld\n", (long long)elapsed);
}

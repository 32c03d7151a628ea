/* mechanisms MECHANISM latency|throughput SIZE COUNT: messages of SIZE bytes from one process to another.
 *
 * latency: COUNT messages go there and as many come back, one at a time. throughput: COUNT messages go one way, as fast as they can.
 * Prints nanoseconds for all.
 *
 * Each mechanism is used as it comes, at its default limits: queues take messages of at most 8 KiB, so a longer one is sent in
 * pieces of that size; pipes, FIFOs and sockets have their default buffers. Shared memory of the three kinds is a ring of slots,
 * one message each, with a copy in and a copy out (as all others have), and two POSIX semaphores in it for who may write and who
 * may read; sysv-shm-semop has System V semaphores instead. The receiver checks that the messages come in order. */
#include "floor.h"

#include <sys/un.h>

enum { PIECE = 8192, SLOTS = 8 };

struct ring {
    sem_t free, used;
    char slots[];
};

struct piece {
    long type;
    char text[PIECE];
};

struct channel {
    int read_fd, write_fd; /* or the queue's id, or the semaphore set's */
    struct ring *ring;
    long sent, received;
    void (*send)(struct channel *c, const char *data);
    void (*receive)(struct channel *c, char *data);
};

static size_t size;
static struct channel there, back;

static size_t piece_size(size_t done) { return size - done < PIECE ? size - done : PIECE; }

static void sysv_send(struct channel *c, const char *data) {
    static struct piece piece = {.type = 1};
    for (size_t done = 0; done < size; done += PIECE) {
        memcpy(piece.text, data + done, piece_size(done));
        if (msgsnd(c->read_fd, &piece, piece_size(done), 0) != 0)
            die("msgsnd");
    }
}

static void sysv_receive(struct channel *c, char *data) {
    static struct piece piece;
    for (size_t done = 0; done < size; done += PIECE) {
        ssize_t got = msgrcv(c->read_fd, &piece, PIECE, 0, 0);
        if (got != (ssize_t)piece_size(done))
            die("msgrcv");
        memcpy(data + done, piece.text, (size_t)got);
    }
}

static void posix_send(struct channel *c, const char *data) {
    for (size_t done = 0; done < size; done += PIECE)
        if (mq_send(c->write_fd, data + done, piece_size(done), 0) != 0)
            die("mq_send");
}

static void posix_receive(struct channel *c, char *data) {
    static char piece[PIECE];
    for (size_t done = 0; done < size; done += PIECE) {
        ssize_t got = mq_receive(c->read_fd, piece, PIECE, NULL);
        if (got != (ssize_t)piece_size(done))
            die("mq_receive");
        memcpy(data + done, piece, (size_t)got);
    }
}

static void stream_send(struct channel *c, const char *data) {
    for (size_t done = 0; done < size;) {
        ssize_t n = write(c->write_fd, data + done, size - done);
        if (n < 0)
            die("write");
        done += (size_t)n;
    }
}

static void stream_receive(struct channel *c, char *data) {
    for (size_t done = 0; done < size;) {
        ssize_t n = read(c->read_fd, data + done, size - done);
        if (n <= 0)
            die("read");
        done += (size_t)n;
    }
}

static void ring_send(struct channel *c, const char *data) {
    while (sem_wait(&c->ring->free) != 0)
        ;
    memcpy(c->ring->slots + (size_t)(c->sent++ % SLOTS) * size, data, size);
    sem_post(&c->ring->used);
}

static void ring_receive(struct channel *c, char *data) {
    while (sem_wait(&c->ring->used) != 0)
        ;
    memcpy(data, c->ring->slots + (size_t)(c->received++ % SLOTS) * size, size);
    sem_post(&c->ring->free);
}

static void semop_ring_send(struct channel *c, const char *data) {
    down(c->read_fd, 0, 0);
    memcpy(c->ring->slots + (size_t)(c->sent++ % SLOTS) * size, data, size);
    up(c->read_fd, 1, 0);
}

static void semop_ring_receive(struct channel *c, char *data) {
    down(c->read_fd, 1, 0);
    memcpy(data, c->ring->slots + (size_t)(c->received++ % SLOTS) * size, size);
    up(c->read_fd, 0, 0);
}

static struct ring *sysv_segment(size_t bytes) {
    int id = shmget(IPC_PRIVATE, bytes, 0600);
    void *address = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
    if (address == (void *)-1)
        die("shmget, shmat");
    shmctl(id, IPC_RMID, NULL);
    return address;
}

static struct ring *mapped(int fd, size_t bytes) {
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
        die("a file to map");
    void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED)
        die("mmap");
    close(fd);
    return address;
}

static struct ring *posix_segment(size_t bytes) {
    char name[64];
    snprintf(name, sizeof name, "/mpipc-bench-%d-%d", (int)getpid(), there.ring != NULL);
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    shm_unlink(name);
    return mapped(fd, bytes);
}

/* In the folder that TMPDIR names, or in the current one: /tmp may well be in memory, and a file is to be a file. */
static char *temporary_name(void) {
    static char name[4096];
    const char *folder = getenv("TMPDIR");
    snprintf(name, sizeof name, "%s/mpipc-bench-%d-XXXXXX", folder ? folder : ".", (int)getpid());
    return name;
}

static struct ring *file_segment(size_t bytes) {
    char *name = temporary_name();
    int fd = mkstemp(name);
    unlink(name);
    return mapped(fd, bytes);
}

static void open_fifo(struct channel *c) {
    char *name = temporary_name();
    int placeholder = mkstemp(name);
    if (placeholder < 0 || close(placeholder) != 0 || unlink(name) != 0 || mkfifo(name, 0600) != 0)
        die("mkfifo");
    c->read_fd = open(name, O_RDONLY | O_NONBLOCK);
    c->write_fd = open(name, O_WRONLY);
    unlink(name);
    if (c->read_fd < 0 || c->write_fd < 0 || fcntl(c->read_fd, F_SETFL, 0) != 0)
        die("FIFO");
}

static void open_posix_queue(struct channel *c) {
    char name[64];
    struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = PIECE};
    snprintf(name, sizeof name, "/mpipc-bench-%d", (int)getpid());
    c->read_fd = c->write_fd = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    if (c->read_fd < 0)
        die("mq_open");
    mq_unlink(name);
}

static void open_pair(struct channel *c, const char *mechanism) {
    int pair[2];
    if (strcmp(mechanism, "pipe") == 0 ? pipe(pair) : socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        die(mechanism);
    c->read_fd = pair[0];
    c->write_fd = pair[1];
}

static void open_ring(struct channel *c, const char *mechanism) {
    size_t bytes = sizeof(struct ring) + SLOTS * size;
    c->ring = strncmp(mechanism, "sysv", 4) == 0    ? sysv_segment(bytes)
              : strcmp(mechanism, "posix-shm") == 0 ? posix_segment(bytes)
                                                    : file_segment(bytes);
    sem_init(&c->ring->free, 1, SLOTS);
    sem_init(&c->ring->used, 1, 0);
    c->send = ring_send;
    c->receive = ring_receive;
    if (strcmp(mechanism, "sysv-shm-semop") == 0) {
        unsigned short values[2] = {SLOTS, 0};
        c->read_fd = new_semaphores(2);
        semctl(c->read_fd, 0, SETALL, values);
        c->send = semop_ring_send;
        c->receive = semop_ring_receive;
    }
}

static void open_channel(struct channel *c, const char *mechanism) {
    c->send = stream_send;
    c->receive = stream_receive;
    if (strcmp(mechanism, "sysv-queue") == 0) {
        c->read_fd = new_queue();
        c->send = sysv_send;
        c->receive = sysv_receive;
    } else if (strcmp(mechanism, "posix-queue") == 0) {
        open_posix_queue(c);
        c->send = posix_send;
        c->receive = posix_receive;
    } else if (strcmp(mechanism, "fifo") == 0) {
        open_fifo(c);
    } else if (strcmp(mechanism, "pipe") == 0 || strcmp(mechanism, "unix-socket") == 0) {
        open_pair(c, mechanism);
    } else if (strncmp(mechanism, "sysv-shm", 8) == 0 || strcmp(mechanism, "posix-shm") == 0 ||
               strcmp(mechanism, "file") == 0) {
        open_ring(c, mechanism);
    } else {
        usage("MECHANISM: sysv-queue posix-queue pipe fifo unix-socket sysv-shm sysv-shm-semop posix-shm file");
    }
}

static char *message;

/* Memory that has been touched, as everybody's has in the long run: the first touch of a page costs far more than a copy. */
static void touch_memory(void) {
    message = malloc(size);
    if (message == NULL)
        die("malloc");
    memset(message, 1, size);
    if (there.ring != NULL) {
        memset(there.ring->slots, 0, SLOTS * size);
        memset(back.ring->slots, 0, SLOTS * size);
    }
}

static void check(const char *data, long number) {
    int32_t got;
    memcpy(&got, data, sizeof got);
    if (got != (int32_t)number) {
        errno = EPROTO;
        die("a message out of order");
    }
}

static void stamp(char *data, long number) {
    int32_t value = (int32_t)number;
    memcpy(data, &value, sizeof value);
}

static void latency_part(int number, long count) {
    char *data = message;
    for (long i = 0; i < count; i++) {
        if (number == 0) {
            stamp(data, i);
            there.send(&there, data);
            back.receive(&back, data);
        } else {
            there.receive(&there, data);
            back.send(&back, data);
        }
        check(data, i);
    }
}

static void throughput_part(int number, long count) {
    char *data = message;
    for (long i = 0; i < count; i++) {
        if (number == 0) {
            stamp(data, i);
            there.send(&there, data);
        } else {
            there.receive(&there, data);
            check(data, i);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 5)
        usage("mechanisms MECHANISM latency|throughput SIZE COUNT");
    set_up();
    size = (size_t)atol(argv[3]);
    if (size < sizeof(int32_t))
        usage("SIZE is at least 4");
    before_start = touch_memory;
    open_channel(&there, argv[1]);
    open_channel(&back, argv[1]);
    long counts[2] = {atol(argv[4]), atol(argv[4])};
    int latency = strcmp(argv[2], "latency") == 0;
    printf("%lld\n", (long long)run_processes(2, latency ? latency_part : throughput_part, counts));
}

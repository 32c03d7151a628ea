/* The family's segment and its process table: creating, attaching, joining, forking. */
#include "family.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t random_u64(void) {
    uint64_t value;
    if (getrandom(&value, sizeof value, 0) != sizeof value)
        value = mp_mix((uint64_t)mp_now_ns() ^ (uint64_t)getpid() << 32);
    return value;
}

/* Has a process the segment attached? 1, 0, or -1: that cannot be seen (it is gone, or not ours to look at). A program that
 * was executed in the place of a member has not. Runs in any thread of any program, so without malloc(3) and with little stack. */
int mp_process_attached(pid_t pid, int shmid) {
    char path[32], text[4096];
    size_t kept = 0;
    ssize_t got;
    int answer = -1;
    snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    while (answer != 1 && (got = read(fd, text + kept, sizeof text - 1 - kept)) > 0) {
        text[kept + (size_t)got] = 0;
        answer = 0;
        char *line = text, *end;
        while ((end = strchr(line, '\n')) != NULL) {
            long inode = -1; /* of System V segments, their id */
            *end = 0;
            if (strstr(line, " /SYSV") != NULL && sscanf(line, "%*s %*s %*s %*s %ld", &inode) == 1 && inode == shmid)
                answer = 1;
            line = end + 1;
        }
        kept = strlen(line); /* the beginning of the next line */
        if (kept == sizeof text - 1)
            kept = 0; /* of a line as long as this nothing is wanted */
        memmove(text, line, kept);
    }
    close(fd);
    return answer;
}

/* ---- segment ----------------------------------------------------------------------------------------------------- */

static int local_tables(struct mp_family *f) {
    size_t size = MP_BLOCKS * sizeof(uint32_t);
    f->local_refs = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    f->local_record = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return f->local_refs == MAP_FAILED || f->local_record == MAP_FAILED ? MP_FAILED : MP_OK;
}

static void unattached(struct mp_family *f) {
    memset(f, 0, sizeof *f);
    f->shmid = f->semid = f->slot = f->fork_slot = f->start_slot = -1;
    f->pid = getpid();
    f->pid_ns = mp_pid_namespace();
}

static int local_setup(struct mp_family *f) {
    f->h = &f->seg->header;
    f->set_size = f->h->set_size;
    f->semid = mp_own_set(f, &f->h->semid, MP_SET_OWN, MP_SEM_COUNT);
    if (f->semid < 0 || local_tables(f) != MP_OK) {
        int error = errno;
        mp_family_detach(f);
        errno = error;
        return MP_FAILED;
    }
    return MP_OK;
}

/* A creator killed before the magic is written leaves a segment without one, attached by nobody: the sweep knows it by its
 * key and size (recovery.c). */
int mp_family_create(struct mp_family *f, const char *program) {
    uint32_t set_size = mp_choose_set_size();
    unattached(f);
    if (set_size == 0) {
        errno = MP_SETS_SMALL;
        return MP_FAILED;
    }
    for (int attempt = 0; f->shmid < 0; attempt++) {
        f->nonce = random_u64() | 1;
        /* Everybody sees the key, and nobody should see the nonce. */
        key_t key = (key_t)(MP_KEY_PREFIX | (mp_mix(~f->nonce) & ~MP_KEY_MASK));
        f->shmid = shmget(key, sizeof(struct mp_segment), IPC_CREAT | IPC_EXCL | SHM_NORESERVE | 0600);
        if (f->shmid < 0 && (errno != EEXIST || attempt == 100))
            return MP_FAILED;
    }
    f->seg = shmat(f->shmid, NULL, 0);
    if (f->seg == (void *)-1) {
        int error = errno;
        shmctl(f->shmid, IPC_RMID, NULL);
        errno = error;
        return MP_FAILED;
    }
    struct mp_header *h = &f->seg->header;
    h->version = MP_VERSION;
    h->nonce = f->nonce;
    h->uid = geteuid();
    h->creator = getpid();
    h->set_size = set_size;
    h->pid_ns = f->pid_ns;
    snprintf(h->program, sizeof h->program, "%s", program);
    atomic_store(&h->state, MP_OPEN);
    atomic_store(&h->magic, MP_MAGIC);
    if (local_setup(f) == MP_OK)
        return MP_OK;
    int error = errno;
    shmctl(f->shmid, IPC_RMID, NULL); /* nobody can have joined: the set is missing */
    errno = error;
    return MP_FAILED;
}

/* nonce 0: whichever family has this segment (the sweep, the reaper's first look). */
int mp_family_attach(struct mp_family *f, int shmid, uint64_t nonce) {
    unattached(f);
    struct shmid_ds ds;
    if (shmctl(shmid, IPC_STAT, &ds) < 0)
        return MP_FAILED;
    if (ds.shm_segsz != sizeof(struct mp_segment)) {
        errno = MP_GONE;
        return MP_FAILED;
    }
    /* Root can attach to anybody's, and must not trust it. Who made it (cuid) cannot be forged. */
    if (ds.shm_perm.cuid != geteuid() || ds.shm_perm.uid != geteuid() || (ds.shm_perm.mode & 077) != 0) {
        errno = MP_DENIED;
        return MP_FAILED;
    }
    f->shmid = shmid;
    f->seg = shmat(shmid, NULL, 0);
    if (f->seg == (void *)-1)
        return MP_FAILED;
    struct mp_header *h = &f->seg->header;
    if (atomic_load(&h->magic) != MP_MAGIC || h->version != MP_VERSION || (nonce != 0 && h->nonce != nonce) ||
        h->uid != ds.shm_perm.cuid || h->set_size < MP_SET_LEAST || h->set_size > MP_SET_MOST) {
        shmdt(f->seg);
        errno = MP_GONE;
        return MP_FAILED;
    }
    f->nonce = h->nonce;
    return local_setup(f);
}

void mp_family_detach(struct mp_family *f) {
    if (f->seg != NULL && f->seg != (void *)-1)
        shmdt(f->seg);
    if (f->local_refs != NULL && f->local_refs != MAP_FAILED)
        munmap(f->local_refs, MP_BLOCKS * sizeof(uint32_t));
    if (f->local_record != NULL && f->local_record != MAP_FAILED)
        munmap(f->local_record, MP_BLOCKS * sizeof(uint32_t));
    f->seg = NULL;
    f->local_refs = f->local_record = NULL;
}

/* ---- slots --------------------------------------------------------------------------------------------------------
 *
 * Where a process can die while it takes a slot:
 *   before the compare-and-swap to JOINING: nothing has happened;
 *   in JOINING: the pid in the word is dead, recovery frees the slot;
 *   after the first semop: the same, and `deaths` rings;
 *   after the second: the kernel has set alive[slot] back to 0 and rung `deaths`; recovery sees a JOINING slot of a dead pid,
 *     or an ALIVE slot with alive == 0. */

static int count_in(struct mp_family *f) {
    struct sembuf count[] = {{MP_SEM_DEATHS, 1, 0}, {MP_SEM_DEATHS, -1, SEM_UNDO}};
    struct sembuf forget = {MP_SEM_DEATHS, -1, IPC_NOWAIT};
    int done;
    while ((done = semop(f->semid, count, 2)) < 0 && errno == ERANGE)
        semop(f->semid, &forget, 1); /* SEMVMX deaths and nobody has looked: there is no reaper */
    return done < 0 ? errno : MP_OK;
}

/* As if this process had never joined; whoever has a reason to look is rung for. */
static void count_out(struct mp_family *f) {
    struct sembuf back = {MP_SEM_DEATHS, 1, SEM_UNDO | IPC_NOWAIT};
    semop(f->semid, &back, 1);
}

static void slot_unreserve(struct mp_family *f, int slot) {
    uint64_t word = atomic_load(&f->seg->slots[slot].word);
    atomic_store(&f->seg->pid_ns[slot], 0);
    atomic_store(&f->seg->slots[slot].word, mp_slot_word(MP_SLOT_FREE, mp_slot_generation(word), 0));
}

/* A slot that may be mentioned already: recovery clears it like a dead process's. */
static void slot_void(struct mp_family *f, int slot) {
    struct mp_slot *s = &f->seg->slots[slot];
    atomic_store(&s->word, mp_slot_word(MP_SLOT_DEAD, mp_slot_generation(atomic_load(&s->word)), 0));
    mp_family_wake_reaper(f);
}

static int slot_claim(struct mp_family *f, uint64_t *expected, int slot) {
    struct mp_slot *s = &f->seg->slots[slot];
    uint64_t joining = mp_slot_word(MP_SLOT_JOINING, mp_slot_generation(*expected), f->pid);
    if (mp_undo(f) == MP_UNDO_IGNORED && f->pid_ns != f->h->pid_ns)
        return MP_FOREIGN;
    if (!atomic_compare_exchange_strong(&s->word, expected, joining))
        return ESTALE;
    atomic_store(&f->seg->pid_ns[slot], f->pid_ns);
    atomic_store(&s->start_time, mp_process_start_time(f->pid));
    atomic_store(&s->leaving, 0);
    for (uint32_t i = 0; i < MP_SLEEPERS; i++)
        atomic_store(&s->sleepers[i], 0);
    struct sembuf live = {0, 1, SEM_UNDO};
    int semid, error = mp_alive(f, slot, &semid, &live.sem_num) == MP_OK ? count_in(f) : errno;
    if (error == MP_OK && semop(semid, &live, 1) < 0) {
        error = errno;
        count_out(f);
    }
    if (error != MP_OK) { /* of a reservation, blocks name it as their holder already (rule R3) */
        if (mp_slot_state_of(*expected) == MP_SLOT_JOINING)
            slot_unreserve(f, slot);
        else
            slot_void(f, slot);
        return error == ESTALE ? EIDRM : error;
    }
    uint64_t claimed = joining;
    if (!atomic_compare_exchange_strong(&s->word, &claimed, mp_slot_word(MP_SLOT_ALIVE, mp_slot_generation(joining), f->pid))) {
        /* Recovery took us for dead (another pid namespace, say): step back, as if we had never been here. */
        live.sem_op = -1;
        semop(semid, &live, 1);
        count_out(f);
        return ESTALE;
    }
    f->slot = slot;
    f->me = (uint64_t)slot + 1;
    return MP_OK;
}

static void raise_high(_Atomic uint32_t *high, uint32_t value) {
    uint32_t seen = atomic_load(high);
    while (seen < value && !atomic_compare_exchange_weak(high, &seen, value))
        ;
}

static int take_free_slot(struct mp_family *f, enum mp_slot_state state) {
    for (uint32_t i = 0; i < MP_SLOTS; i++) {
        struct mp_slot *s = &f->seg->slots[i];
        uint64_t word = atomic_load(&s->word);
        if (mp_slot_state_of(word) != MP_SLOT_FREE)
            continue;
        raise_high(&f->h->slot_high, i + 1);
        if (!atomic_compare_exchange_strong(&s->word, &word, mp_slot_word(state, mp_slot_generation(word) + 1, f->pid)))
            continue;
        atomic_store(&f->seg->pid_ns[i], f->pid_ns);
        atomic_store(&s->parent, (uint32_t)f->me);
        atomic_store(&s->start_time, 0);
        atomic_store(&s->suspect, 0);
        atomic_store(&s->kept, MP_KEEP_NOTHING);
        return (int)i;
    }
    return MP_FAILED;
}

/* Takes a free slot in the name of this process, for a child. The pid in the word is the reserver's until the child is
 * known, so a reservation whose reserver died is recognised. A table that is full of the dead has lost its reaper. */
int mp_slot_reserve(struct mp_family *f, enum mp_slot_state state) {
    int slot = take_free_slot(f, state), semid;
    unsigned short num;
    if (slot < 0) {
        mp_tick(f);
        slot = take_free_slot(f, state);
    }
    if (slot < 0) {
        errno = MP_SLOTS_FULL;
    } else if (mp_alive(f, slot, &semid, &num) != MP_OK) { /* now, and not in the child, where nobody can be told */
        int error = errno;
        slot_unreserve(f, slot);
        errno = error;
        slot = -1;
    }
    return slot;
}

static int hold_all_local(struct mp_family *f, int slot) {
    uint32_t high = mp_block_high(f);
    for (uint32_t i = 0; i < high; i++)
        if (f->local_refs[i] != 0 && mp_block_hold(f, i, slot) != MP_OK)
            return MP_FAILED;
    return MP_OK;
}

/* Joins as a process nobody prepared a slot for. What this process inherited handles of (a fork that ran no hooks) it
 * holds from now on. */
int mp_family_join(struct mp_family *f) {
    if (f->slot >= 0)
        return MP_OK;
    if (f->pid != getpid()) { /* forked behind our back: the parent's units are the parent's, and so is what its threads do */
        f->pid = getpid();
        atomic_store(&f->recovery_held, 0);
        f->pid_ns = mp_pid_namespace();
        madvise(f->local_record, MP_BLOCKS * sizeof(uint32_t), MADV_DONTNEED);
    }
    for (;;) {
        int slot = mp_slot_reserve(f, MP_SLOT_JOINING);
        if (slot < 0)
            return MP_FAILED;
        atomic_store(&f->seg->slots[slot].parent, 0);
        if (atomic_load(&f->h->state) != MP_OPEN) { /* pairs with the closing reaper: see mp_family_destroy() */
            slot_unreserve(f, slot);
            errno = MP_GONE;
            return MP_FAILED;
        }
        uint64_t word = atomic_load(&f->seg->slots[slot].word);
        int error = slot_claim(f, &word, slot);
        if (error == ESTALE)
            continue;
        if (error == MP_FOREIGN)
            slot_unreserve(f, slot);
        if (error != MP_OK) {
            errno = error;
            return MP_FAILED;
        }
        if (hold_all_local(f, slot) == MP_OK)
            return MP_OK;
        error = errno;
        f->slot = -1;
        f->me = 0;
        mp_slot_cancel_undo(f, slot);
        count_out(f);
        slot_void(f, slot);
        errno = error;
        return MP_FAILED;
    }
}

/* A process that execs keeps its pid and its SEM_UNDO entries, and loses everything it held. The new image cancels the undo
 * entries of the old one, which makes the old slot look dead, as it is. */
void mp_family_forget_exec(struct mp_family *f) {
    uint64_t started = mp_process_start_time(getpid());
    uint32_t high = mp_slot_high(f);
    for (uint32_t i = 0; i < high; i++) {
        struct mp_slot *s = &f->seg->slots[i];
        uint64_t word = atomic_load(&s->word);
        if ((int)i == f->slot || mp_slot_state_of(word) != MP_SLOT_ALIVE || mp_slot_pid(word) != getpid() ||
            mp_slot_is_foreign(f, (int)i) || atomic_load(&s->start_time) != started || started == 0)
            continue;
        struct sembuf cancel = {0, -1, SEM_UNDO | IPC_NOWAIT};
        int semid;
        if (mp_alive(f, (int)i, &semid, &cancel.sem_num) == MP_OK && semop(semid, &cancel, 1) == 0)
            count_out(f);
    }
}

/* Fork. The child must hold what the parent holds from its first instruction on, so the parent reserves a slot that holds
 * it before the fork, and the child claims the slot.
 *   The parent dies before the fork: the slot is FORKING, its reserver is dead, and nobody but the known processes is
 *     attached to the segment: recovery frees it.
 *   The fork fails, or the child dies before it claims: FORKED, and again nobody unknown is attached.
 *   The parent dies after the fork: the unknown attachment is the child; recovery waits for it. */
int mp_fork_prepare(struct mp_family *f) {
    f->fork_slot = -1;
    if (f->slot < 0)
        return MP_OK;
    int slot = f->start_slot;
    if (slot >= 0 && f->start_thread == mp_this_thread())
        f->start_slot = -1;
    else
        slot = mp_slot_reserve(f, MP_SLOT_FORKING);
    if (slot < 0)
        return MP_FAILED;
    if (hold_all_local(f, slot) != MP_OK) {
        int error = errno;
        slot_void(f, slot);
        errno = error;
        return MP_FAILED;
    }
    f->fork_slot = slot;
    return MP_OK;
}

/* Process.start() reserves the child's slot before it forks, because in the fork itself there is nobody to be told that there
 * is none. If two threads start at the same time, the second one may find it out in its child. What the child is to hold is
 * noted in the fork. -1 with errno: see mp_slot_reserve(). */
int mp_start_reserve(struct mp_family *f) {
    if (f->slot < 0 || f->start_slot >= 0)
        return MP_OK;
    int slot = mp_slot_reserve(f, MP_SLOT_FORKING);
    if (slot < 0)
        return MP_FAILED;
    f->start_thread = mp_this_thread();
    f->start_slot = slot;
    return MP_OK;
}

/* After the fork, or when it failed: gives back what was not used. */
void mp_start_cancel(struct mp_family *f) {
    if (f->start_slot < 0 || f->start_thread != mp_this_thread())
        return;
    slot_unreserve(f, f->start_slot); /* nothing mentions it */
    f->start_slot = -1;
}

void mp_fork_parent(struct mp_family *f) {
    if (f->fork_slot < 0)
        return;
    struct mp_slot *s = &f->seg->slots[f->fork_slot];
    uint64_t word = atomic_load(&s->word);
    if (mp_slot_state_of(word) == MP_SLOT_FORKING && mp_slot_pid(word) == f->pid &&
        atomic_compare_exchange_strong(&s->word, &word, mp_slot_word(MP_SLOT_FORKED, mp_slot_generation(word), f->pid)))
        mp_family_wake_reaper(f); /* it watches reservations until they are claimed */
    f->fork_slot = -1;
    if (!mp_reaper_present(f))
        mp_launch_reaper(f); /* somebody has killed it, and here is one more process to look after */
}

int mp_fork_child(struct mp_family *f) {
    pid_t parent = f->pid;
    int slot = f->fork_slot;
    f->pid = getpid();
    f->pid_ns = mp_pid_namespace();
    f->slot = f->fork_slot = f->start_slot = -1;
    f->me = 0;
    f->reaper_child = 0;
    atomic_store(&f->recovery_held, 0); /* by another thread of the parent's, perhaps */
    madvise(f->local_record, MP_BLOCKS * sizeof(uint32_t), MADV_DONTNEED); /* the parent's units are the parent's */
    if (slot >= 0) {
        uint64_t word = atomic_load(&f->seg->slots[slot].word);
        for (int attempt = 0; attempt < 3; attempt++) { /* FORKING may turn to FORKED under us, once */
            enum mp_slot_state state = mp_slot_state_of(word);
            if ((state != MP_SLOT_FORKING && state != MP_SLOT_FORKED) || mp_slot_pid(word) != parent)
                break;
            int error = slot_claim(f, &word, slot);
            if (error == MP_OK)
                return MP_OK;
            if (error != ESTALE)
                break;
        }
    }
    /* Without a slot of its own it joins when it first uses the family; if it had one that recovery has taken, at once, because
     * what it inherited is held by nobody in its name. */
    return slot >= 0 ? mp_family_join(f) : MP_OK;
}

/* Transit: what is pickled for a spawned child is held by a slot of its own until the child has unpickled all of it. The slot
 * is named by a token that carries its generation: the child may have arrived, and the slot be somebody else's, before the
 * parent has noted which process the child is. */
int64_t mp_transit_reserve(struct mp_family *f) {
    int slot = mp_slot_reserve(f, MP_SLOT_TRANSIT);
    if (slot < 0)
        return MP_FAILED;
    return (int64_t)mp_slot_generation(atomic_load(&f->seg->slots[slot].word)) * MP_SLOTS + slot;
}

int mp_transit_slot(int64_t token) { return (int)(token % MP_SLOTS); }

static bool is_transit(uint64_t word, int64_t token) {
    return mp_slot_state_of(word) == MP_SLOT_TRANSIT && mp_slot_generation(word) == (uint32_t)(token / MP_SLOTS);
}

/* What is in transit may include segments that are removed with their last attachment, and if the sender dies before the child
 * has come, that was it. So the reaper attaches them as long as the slot is in transit; the sender waits for it, but not long: a
 * reaper that is missing or busy is no reason not to start a child. */
#define KEEP_LOOKS 200
#define KEEP_PAUSE_NS 50000

void mp_transit_keep(struct mp_family *f, int64_t token) {
    struct mp_slot *s = &f->seg->slots[mp_transit_slot(token)];
    atomic_store(&s->kept, MP_KEEP_WANTED);
    mp_family_wake_reaper(f);
    for (int i = 0; i < KEEP_LOOKS && is_transit(atomic_load(&s->word), token) && atomic_load(&s->kept) == MP_KEEP_WANTED; i++)
        nanosleep(&(struct timespec){0, KEEP_PAUSE_NS}, NULL);
}

/* The child, before it takes over the first object: from now on the slot is its own, whatever becomes of the sender. ESTALE: the
 * sender had died before, and the slot has been cleared. */
int mp_transit_claim(struct mp_family *f, int64_t token) {
    if (token < 0 || mp_transit_slot(token) >= (int)MP_SLOTS)
        return ESTALE;
    int slot = mp_transit_slot(token);
    struct mp_slot *s = &f->seg->slots[slot];
    uint64_t word = atomic_load(&s->word);
    if (is_transit(word, token) && atomic_load(&f->seg->pid_ns[slot]) != f->pid_ns)
        atomic_store(&f->seg->pid_ns[slot], 0); /* nobody may take our pid for one of the sender's namespace */
    while (is_transit(word, token))
        if (atomic_compare_exchange_weak(&s->word, &word, mp_slot_word(MP_SLOT_TRANSIT, mp_slot_generation(word), getpid()))) {
            atomic_store(&f->seg->pid_ns[slot], f->pid_ns);
            return MP_OK;
        }
    return ESTALE;
}

void mp_transit_sent(struct mp_family *f, int64_t token, pid_t pid) {
    struct mp_slot *s = &f->seg->slots[mp_transit_slot(token)];
    uint64_t word = atomic_load(&s->word);
    if (!is_transit(word, token))
        return; /* the child has arrived already */
    if (pid > 0)
        atomic_compare_exchange_strong(&s->word, &word, mp_slot_word(MP_SLOT_TRANSIT, mp_slot_generation(word), pid));
    else
        mp_transit_arrived(f, token);
    mp_family_wake_reaper(f);
}

/* The child holds everything itself now (or there is none): recovery clears the slot like a dead process's. */
void mp_transit_arrived(struct mp_family *f, int64_t token) {
    struct mp_slot *s = &f->seg->slots[mp_transit_slot(token)];
    uint64_t word = atomic_load(&s->word);
    while (is_transit(word, token))
        if (atomic_compare_exchange_weak(&s->word, &word, mp_slot_word(MP_SLOT_DEAD, mp_slot_generation(word), 0)))
            break;
    mp_family_wake_reaper(f);
}

void mp_leaving(struct mp_family *f) {
    if (f->slot >= 0)
        atomic_store(&f->seg->slots[f->slot].leaving, 1);
}

bool mp_slot_lives(struct mp_family *f, int slot) {
    if (slot < 0 || slot >= (int)MP_SLOTS)
        return false;
    uint64_t word = atomic_load(&f->seg->slots[slot].word);
    if (mp_slot_state_of(word) != MP_SLOT_ALIVE)
        return mp_slot_state_of(word) == MP_SLOT_JOINING;
    return mp_slot_is_alive(f, slot);
}

int mp_family_wake_reaper(struct mp_family *f) {
    struct sembuf ring = {MP_SEM_DEATHS, 1, IPC_NOWAIT};
    return semop(f->semid, &ring, 1) < 0 && errno != ERANGE ? MP_FAILED : MP_OK;
}

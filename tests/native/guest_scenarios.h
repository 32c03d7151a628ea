/* Scenarios of kill_every_step.c: a member that has changed its user id. For root only; the parent gives up the capabilities with
 * which the kernel's checks would not apply to it, as root of a container has. */

#define GUEST 65534u
#define DONE shared->ran[15]

static void give_up_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    check(syscall(SYS_capget, &header, data) == 0);
    uint32_t over_ipc = 1u << CAP_IPC_OWNER | 1u << CAP_SYS_ADMIN;
    data[0].effective &= ~over_ipc;
    data[0].permitted &= ~over_ipc;
    data[0].inheritable &= ~over_ipc;
    check(syscall(SYS_capset, &header, data) == 0);
}
static void change_user(void) {
    check(setresuid(GUEST, GUEST, GUEST) == 0);
    prctl(PR_SET_DUMPABLE, 1); /* the parent goes on looking at it */
}

/* As if nobody had ever changed his user id. */
static void take_back_set(int id) {
    struct semid_ds ds;
    union {
        struct semid_ds *buf;
    } arg = {&ds};
    check(semctl(id, 0, IPC_STAT, arg) == 0);
    ds.sem_perm.uid = f->h->uid;
    check(semctl(id, 0, IPC_SET, arg) == 0);
}
static void no_guest(void) {
    struct shmid_ds ds;
    take_back_set(f->semid);
    for (uint32_t i = 0; i < MP_ALIVE_SETS; i++)
        if (mp_published(&f->seg->alive_sets[i]) >= 0)
            take_back_set(mp_published(&f->seg->alive_sets[i]));
    for (uint32_t i = 0; i < MP_BELL_SETS; i++)
        if (mp_published(&f->seg->bell_sets[i]) >= 0)
            take_back_set(mp_published(&f->seg->bell_sets[i]));
    check(shmctl(f->shmid, IPC_STAT, &ds) == 0);
    ds.shm_perm.uid = f->h->uid;
    check(shmctl(f->shmid, IPC_SET, &ds) == 0);
    atomic_store(&f->h->guest, 0);
    atomic_store(&f->h->access_wanted, 0);
    f->is_reaper = false;
}

/* A member with another user id uses a set, the segment and the queue, which he may not. */
static int lives_as_guest(void) {
    struct shmid_ds segment;
    struct msqid_ds messages;
    change_user();
    if (mp_bell_ring(f, 0, 1) != MP_OK || shmctl(f->shmid, IPC_STAT, &segment) != 0)
        return 3;
    bool queue = mp_block_is_live(atomic_load(&at()->word)) && at()->kind == MP_KIND_QUEUE;
    return queue && msgctl(atomic_load(&at()->id), IPC_STAT, &messages) != 0 ? 4 : 0;
}
static void admit_until_he_has_lived(pid_t pid) {
    siginfo_t info = {0};
    for (int64_t deadline = mp_now_ns() + PATIENCE_NS; info.si_pid == 0 && mp_now_ns() < deadline; sched_yield()) {
        mp_guests_admit(f);
        check(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0);
    }
    bystander_ends(pid);
    mp_bell_set(f, 0, 0);
}

static int admits(void) {
    while (!DONE) {
        mp_guests_admit(f);
        usleep(100);
    }
    return 0;
}
static void setup_admitter(void) {
    give_up_capabilities();
    DONE = 0;
    bystander(admits);
}
static void op_ask(void) { check_equal(mp_access_need(f), MP_OK); }
/* A member that has run wild writes into the process table what it likes; who is let in the kernel has to confirm. */
static void forge(int slot, pid_t pid, uint32_t uid) {
    struct mp_slot *s = &f->seg->slots[slot];
    uint32_t high = atomic_load(&f->h->slot_high);
    atomic_store(&s->access, mp_access_word(MP_ACCESS_WANTED, uid));
    atomic_store(&f->h->access_wanted, 1);
    if (slot != f->slot) {
        atomic_store(&s->pid_ns, f->pid_ns);
        atomic_store(&s->start_time, mp_process_start_time(pid));
        atomic_store(&s->word, mp_slot_word(MP_SLOT_ALIVE, 1, pid));
        atomic_store(&f->h->slot_high, (uint32_t)slot + 1);
    }
    mp_guests_admit(f);
    check_equal(atomic_load(&f->h->guest), 0);
    check_equal(mp_access_of(atomic_load(&s->access)), MP_ACCESS_WANTED);
    atomic_store(&s->access, 0);
    if (slot != f->slot) {
        atomic_store(&s->word, 0);
        atomic_store(&s->pid_ns, 0);
        atomic_store(&f->h->slot_high, high);
    }
}
static void nobody_else_is_let_in(void) {
    pid_t stranger = fork(); /* not by the hooks: he is no member */
    check(stranger >= 0);
    if (stranger == 0) {
        check(setresuid(GUEST - 1, GUEST - 1, GUEST - 1) == 0);
        pause();
        _exit(0);
    }
    for (uint32_t uid = 0; !mp_process_euid(stranger, &uid) || uid != GUEST - 1;)
        sched_yield();
    forge(f->slot, getpid(), GUEST - 1);
    forge(100, stranger, GUEST - 1);
    kill(stranger, SIGKILL);
    check(waitpid(stranger, NULL, 0) == stranger);
}

static void check_another_is_let_in(bool finished) {
    DONE = 1;
    bystander_ends(bystanders[0]);
    no_guest();
    nobody_else_is_let_in();
    for (uint32_t i = 0; i < MP_SLOTS; i++)
        if ((int)i != f->slot)
            check_equal(atomic_load(&f->seg->slots[i].access), 0);
    admit_until_he_has_lived(bystander(lives_as_guest));
    no_guest();
}

static int somebody_asks(void) { return (int)atomic_load(&f->h->access_wanted); }
static void setup_queue_and_asker(void) {
    give_up_capabilities();
    block = make(MP_KIND_QUEUE);
    check(mp_block_msgget(f, block, 0600) >= 0);
    mp_block_ready(f, block);
    bystander(lives_as_guest);
    wait_until_equal(somebody_asks, 1);
}
static void op_admit(void) { mp_guests_admit(f); }
static void check_let_in(bool finished) {
    admit_until_he_has_lived(bystanders[0]);
    mp_recover(f);
    mp_block_drop(f, block);
    no_guest();
}

static void setup_guest(void) {
    give_up_capabilities();
    setup_nothing();
    block = 0;
    admit_until_he_has_lived(bystander(lives_as_guest));
    mp_recover(f);
    f->is_reaper = true; /* who alone may become the guest for a moment */
    count_objects();
}
static void check_nothing_made_for_two(bool finished) {
    check_nothing_made(finished);
    no_guest();
}

#define FAR_SET 400u
static void op_make_set(void) { mp_own_set(f, &f->seg->bell_sets[FAR_SET], MP_SET_BELLS + FAR_SET, (int)f->set_size); }
static void remove_far_set(void) {
    for (uint32_t attempt = 0; attempt < 16; attempt++)
        semctl(semget(mp_family_key(f, MP_SET_BELLS + FAR_SET, attempt), 0, 0), 0, IPC_RMID);
}
static void check_one_set_for_both(bool finished) {
    struct sembuf ring = {1, 1, IPC_NOWAIT};
    op_make_set();
    int id = mp_published(&f->seg->bell_sets[FAR_SET]);
    check(id >= 0 && semop(id, &ring, 1) == 0);
    check(mp_guests_become(f));
    check(semop(id, &ring, 1) == 0);
    remove_far_set();
    mp_guests_unbecome(f);
    remove_far_set();
    check_equal(sets(), sets_before);
    atomic_store(&f->seg->bell_sets[FAR_SET], 0);
    no_guest();
}

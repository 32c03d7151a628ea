/* Scenarios of kill_every_step.c: members that end with another one. */

static pid_t tied_to; /* a bystander */
static int tied_slot;
static uint32_t tied_generation;

static int wait_for_the_end(void) {
    while (pause() < 0)
        ;
    return 1;
}
/* The slot of a process, -1: it has none (so far). */
static int slot_of(pid_t pid) {
    for (uint32_t i = 0; i < mp_slot_high(f); i++) {
        uint64_t word = atomic_load(&f->seg->slots[i].word);
        if (mp_slot_state_of(word) == MP_SLOT_ALIVE && mp_slot_pid(word) == pid)
            return (int)i;
    }
    return -1;
}
static int joined(void) { return slot_of(bystanders[bystander_count - 1]) >= 0; }
static void setup_parent_of_tie(void) {
    setup_nothing();
    tied_to = bystander(wait_for_the_end);
    wait_until_equal(joined, 1);
    tied_slot = slot_of(tied_to);
    tied_generation = mp_slot_generation(atomic_load(&f->seg->slots[tied_slot].word));
}
static void parent_of_tie_dies(void) {
    int status;
    kill(tied_to, SIGKILL);
    check(waitpid(tied_to, &status, 0) == tied_to && WIFSIGNALED(status));
    for (int i = 0; i < bystander_count; i++)
        if (bystanders[i] == tied_to)
            bystanders[i] = bystanders[--bystander_count];
}
static void op_tie(void) { shared->ran[0] = mp_tie(f, tied_slot, tied_generation); }
static uint64_t tie_of_child(void) {
    int slot = slot_of(child_pid);
    return slot < 0 ? 0 : atomic_load(&f->seg->slots[slot].tie);
}
static void nothing_is_tied(void) {
    for (uint32_t i = 0; i < mp_slot_high(f); i++)
        check_equal(atomic_load(&f->seg->slots[i].tie), 0);
}
static void check_untied(bool finished) {
    if (finished)
        check_equal(shared->ran[0], MP_OK);
    check_equal(slot_of(tied_to), tied_slot); /* a tie holds one side only */
    nothing_is_tied();
    parent_of_tie_dies();
}
/* It ends by itself or it is ended: the child's tie comes before its look, recovery's look for ties after the death is noted. */
static void parent_dies_and_child_goes_on(void) {
    siginfo_t end = {0};
    bool tied = tie_of_child() != 0;
    parent_of_tie_dies();
    check(mp_recover(f) >= 0);
    if (tied) {
        check_equal(waitid(P_PID, (id_t)child_pid, &end, WEXITED | WNOWAIT), 0);
        check_equal(end.si_status, SIGKILL);
    } else {
        run_child_to_its_end();
        check_equal(shared->ran[0], MP_GONE);
    }
}
static void check_no_tie_is_left(bool finished) { nothing_is_tied(); }

/* A recovery is killed while it ends who is tied to the dead. */
static pid_t tied[2];
static int tie_and_wait(void) { return mp_tie(f, tied_slot, tied_generation) == MP_OK ? wait_for_the_end() : 1; }
static int has_tied(void) {
    int slot = slot_of(bystanders[bystander_count - 1]);
    return slot >= 0 && atomic_load(&f->seg->slots[slot].tie) != 0;
}
static void setup_dead_parent_of_two(void) {
    setup_parent_of_tie();
    for (int i = 0; i < 2; i++) {
        tied[i] = bystander(tie_and_wait);
        wait_until_equal(has_tied, 1);
    }
    parent_of_tie_dies();
}
static void check_both_ended(bool finished) {
    for (int i = 0; i < 2; i++) {
        int status;
        check(waitpid(tied[i], &status, 0) == tied[i]);
        check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    bystander_count = 0;
    check(mp_recover(f) >= 0);
    nothing_is_tied();
}

/* Who can write to the segment has put the pid of a stranger into the slot of a tied member: the kernel says that it is none. */
static pid_t stranger;
static int stranger_waits(void) { return shared->ran[1]; }
static void setup_forged_tie(void) {
    sigset_t call;
    int signal;
    sigemptyset(&call);
    sigaddset(&call, SIGUSR1);
    setup_parent_of_tie();
    tied[0] = bystander(tie_and_wait);
    wait_until_equal(has_tied, 1);
    sigprocmask(SIG_BLOCK, &call, NULL);
    shared->ran[1] = 0;
    stranger = fork();
    check(stranger >= 0);
    if (stranger == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        shared->ran[1] = 1;
        sigwait(&call, &signal);
        _exit(7);
    }
    sigprocmask(SIG_UNBLOCK, &call, NULL);
    wait_until_equal(stranger_waits, 1); /* it ends with this process from then on */
    struct mp_slot *s = &f->seg->slots[slot_of(tied[0])];
    atomic_store(&s->start_time, mp_process_start_time(stranger));
    atomic_store(&s->word, mp_slot_word(MP_SLOT_ALIVE, mp_slot_generation(atomic_load(&s->word)), stranger));
    parent_of_tie_dies();
}
static void check_stranger_lives(bool finished) {
    int status;
    kill(stranger, SIGUSR1);
    check(waitpid(stranger, &status, 0) == stranger);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 7); /* and not by the SIGKILL that would have come first */
    kill(tied[0], SIGKILL);
    check(waitpid(tied[0], &status, 0) == tied[0]);
    bystander_count = 0;
    check(mp_recover(f) >= 0);
    nothing_is_tied();
}

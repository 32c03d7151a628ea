/* Scenarios of kill_every_step.c: the ledger of a pool's worker, who is the child. */

#define TASKS 8

static uint64_t taken_from; /* what the parent took back begins here */
static bool condemned;

static struct mp_ledger *ledger(void) { return (struct mp_ledger *)at()->bytes; }

static void setup_ledger(void) {
    block = make(MP_KIND_DATA);
    mp_block_ready(f, block);
    memset((void *)shared->ran, 0, sizeof shared->ran);
    taken_from = TASKS + 1;
    condemned = false;
}
static void setup_ledger_5_and_6_taken_back(void) {
    setup_ledger();
    check_equal(mp_ledger_revoke(ledger(), 1, 5, 6), 5);
}

/* It has 4 and what comes then; what is left of 1 to 3 in its hands was taken back. */
static void setup_ledger_up_to_3_taken_back(void) {
    setup_ledger();
    check_equal(mp_ledger_revoke(ledger(), 1, 1, 3), 1);
}

/* The child has all tasks in its hands. */
static void op_run_tasks(void) {
    for (uint64_t number = 1; number <= TASKS; number++)
        if (mp_ledger_start(ledger(), number, number))
            shared->ran[number] = 1;
}
static void take_back_and_child_goes_on(void) {
    taken_from = mp_ledger_revoke(ledger(), 1, 4, TASKS);
    run_child_to_its_end();
}
/* It begins where a range has begun before: only the turn tells the words apart. */
static void take_back_the_same_and_child_goes_on(void) {
    taken_from = mp_ledger_revoke(ledger(), 1, 5, TASKS);
    run_child_to_its_end();
}

static void take_back_behind_4_and_child_goes_on(void) {
    taken_from = mp_ledger_revoke(ledger(), 4, 5, TASKS);
    check(taken_from > 4);
    run_child_to_its_end();
}
/* And again, as if the child had answered nothing meanwhile. */
static void take_back_twice_behind_4_and_child_goes_on(void) {
    taken_from = mp_ledger_revoke(ledger(), 4, 7, TASKS);
    check(taken_from > 4);
    uint64_t more = mp_ledger_revoke(ledger(), 4, 5, TASKS);
    check(more > 4);
    if (more < taken_from)
        taken_from = more;
    run_child_to_its_end();
}

static void no_ledger(void) { mp_block_drop(f, block); }

/* A task that was begun is known to be, by whoever looks after the death; one more at most has been claimed. */
static void check_claimed(bool finished) {
    uint64_t claimed = mp_ledger_claimed(ledger()), ran = 0;
    for (uint64_t number = 1; number <= TASKS; number++)
        if (shared->ran[number])
            ran = number;
    check(claimed == ran || (claimed == ran + 1 && !finished));
    no_ledger();
}
/* Each task is run by the child, or the parent has it back. */
static void check_each_has_one(bool finished) {
    for (uint64_t number = 1; number <= TASKS; number++)
        check_equal(shared->ran[number], number < taken_from);
    no_ledger();
}
static void check_each_but_5_and_6_has_one(bool finished) {
    for (uint64_t number = 1; number <= TASKS; number++)
        if (number == 5 || number == 6)
            check_equal(shared->ran[number], 0);
        else
            check_equal(shared->ran[number], number < taken_from);
    no_ledger();
}
static void check_each_behind_3_has_one(bool finished) {
    for (uint64_t number = 1; number <= TASKS; number++)
        check_equal(shared->ran[number], number > 3 && number < taken_from);
    no_ledger();
}

/* ---- a task that takes too long */

static void op_finish_and_send(void) {
    check(mp_ledger_start(ledger(), 1, 1));
    if (mp_ledger_finish(ledger(), 1, 2))
        while (atomic_load(&ledger()->condemned) == 1)
            sched_yield();
    shared->ran[1] = 1; /* sends */
}
static void condemn_and_child_goes_on(void) {
    bool blocked = false;
    condemned = mp_ledger_condemn(ledger(), 1);
    if (!condemned)
        run_child_to_its_end();
    else
        for (int i = 0; i < 300; i++)
            step(&blocked);
}
static void check_sent_or_condemned(bool finished) {
    check_equal(shared->ran[1], !condemned);
    no_ledger();
}

/* ---- what it spends its time on */

static const struct {
    uint64_t at;
    enum mp_activity to;
} turns[] = {{100, MP_WAITING},  {110, MP_TRANSFER}, {130, MP_WORKING}, {170, MP_TRANSFER}, {180, MP_WAITING},
             {185, MP_TRANSFER}, {186, MP_WORKING},  {196, MP_WORKING}, {200, MP_TRANSFER}};
#define TURNS (sizeof turns / sizeof *turns)

static struct mp_times *times(void) { return (struct mp_times *)at()->bytes; }

static void op_turn(void) {
    for (size_t i = 0; i < TURNS; i++)
        mp_times_turn(times(), turns[i].to, turns[i].at);
}
/* The sums after so many turns; the last of them is the number of tasks. */
static void sums_after(size_t count, uint64_t sums[5]) {
    memset(sums, 0, 5 * sizeof *sums);
    for (size_t i = 1; i < count; i++) {
        sums[turns[i - 1].to] += turns[i].at - turns[i - 1].at;
        sums[4] += turns[i - 1].to == MP_WORKING;
    }
}
/* What is read belongs to the turn that it is said to be at; or else, in between, each sum is that before a turn or after it. */
static void look_at_times(void) {
    uint64_t found[5], before[5], after[5];
    uint64_t word = mp_times_read(times(), found, &found[4]);
    size_t count = 0;
    while (count < TURNS && turns[count].at <= word >> 2)
        count++;
    sums_after(count, after);
    sums_after(count != 0 && (word & 3) == MP_TURNING ? count - 1 : count, before);
    check((word & 3) == MP_TURNING || (count != 0 && (word & 3) == turns[count - 1].to));
    for (int i = 0; i < 5; i++)
        check(found[i] == before[i] || found[i] == after[i]);
}
static void check_times(bool finished) {
    look_at_times();
    if (finished)
        check_equal(times()->now, 200 << 2 | MP_TRANSFER);
    no_ledger();
}
static void look_at_times_and_child_goes_on(void) {
    look_at_times();
    run_child_to_its_end();
}
static void check_all_times(bool finished) {
    uint64_t found[5], all[5];
    check_equal(mp_times_read(times(), found, &found[4]), 200 << 2 | MP_TRANSFER);
    sums_after(TURNS, all);
    for (int i = 0; i < 5; i++)
        check_equal(found[i], all[i]);
    no_ledger();
}

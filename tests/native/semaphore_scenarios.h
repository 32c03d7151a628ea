/* Scenarios of kill_every_step.c: which units come back, and to whom the debt is due (the head of semaphore.c). Wherever the child
 * dies, the three numbers that make up a semaphore are exactly those before or after its operation. */

struct numbers {
    int value;
    enum mp_returns returns;
    int debt;
};

static struct numbers numbers(void) { return (struct numbers){value(), mp_sem_returns(at()), (int)mp_sem_debt(at())}; }
static bool are(struct numbers wanted) {
    struct numbers n = numbers();
    return n.value == wanted.value && n.returns == wanted.returns && n.debt == wanted.debt;
}
static void must_be(struct numbers wanted) {
    struct numbers n = numbers();
    if (!are(wanted))
        fail("value %d, returns %d, debt %d; not %d, %d, %d", n.value, n.returns, n.debt, wanted.value, wanted.returns,
             wanted.debt);
}
/* The operation has happened or it has not; it happens at one step, and always if the child came to its end. */
static void before_or_after(bool finished, struct numbers before, struct numbers after) {
    bool happened = are(after);
    if (!happened || finished)
        must_be(finished ? after : before);
    appears_once(happened);
}

#define GUESSED MP_RETURNS_GUESSED
#define ALWAYS MP_RETURNS_ALWAYS
#define NEVER MP_RETURNS_NEVER
#define numbers_of(...) ((struct numbers){__VA_ARGS__})

/* A process that acquires some units and dies; nobody has looked after it yet. */
static int take_1(void) { return !sem_try(); }
static int take_2(void) { return !(sem_try() && sem_try()); }
static void dies_with(int (*take)(void)) { bystander_ends(bystander(take)); }
static void recovered(void) { check(mp_recover(f) > 0); }
static void release_here(void) { check_equal(mp_sem_release(f, block), MP_OK); }

static void setup_guessed_debt_of_2(void) {
    have_semaphore_that(GUESSED, 3, 5);
    dies_with(take_2);
    recovered();
    must_be(numbers_of(3, GUESSED, 2));
}
static void setup_debt_of_3(enum mp_returns returns, uint32_t maximum) {
    have_semaphore_that(returns, 3, maximum);
    dies_with(take_2);
    dies_with(take_1);
    recovered();
    must_be(numbers_of(3, returns, 3));
}
static void setup_guessed_debt_of_3(void) { setup_debt_of_3(GUESSED, 5); }
static void setup_always_debt_of_3(void) { setup_debt_of_3(ALWAYS, 5); }
static void setup_bounded_debt_of_3(void) { setup_debt_of_3(GUESSED, 3); }
static void setup_always_3(void) { have_semaphore_that(ALWAYS, 3, 5); }
static void setup_never_3(void) { have_semaphore_that(NEVER, 3, 5); }

/* ---- releases ---- */

static void op_release_and_tell(void) { shared->ran[0] = mp_sem_release(f, block); }

static void check_first_signal(bool finished) { before_or_after(finished, numbers_of(0, GUESSED, 0), numbers_of(1, NEVER, 0)); }
static void check_paid(bool finished) { before_or_after(finished, numbers_of(3, GUESSED, 3), numbers_of(3, NEVER, 2)); }
static void check_paid_always(bool finished) { before_or_after(finished, numbers_of(3, ALWAYS, 3), numbers_of(3, ALWAYS, 2)); }
static void check_added_always(bool finished) { before_or_after(finished, numbers_of(3, ALWAYS, 0), numbers_of(4, ALWAYS, 0)); }
static void check_never_taken(bool finished) { before_or_after(finished, numbers_of(3, NEVER, 0), numbers_of(2, NEVER, 0)); }
static void check_never_added(bool finished) { before_or_after(finished, numbers_of(3, NEVER, 0), numbers_of(4, NEVER, 0)); }

static void pay_1(void) { check_equal(mp_sem_release(f, block), MP_OK); }
static void check_last_paid(bool finished) { before_or_after(finished, numbers_of(3, NEVER, 1), numbers_of(3, NEVER, 0)); }
static void check_paid_by_two(bool finished) { before_or_after(finished, numbers_of(3, NEVER, 2), numbers_of(3, NEVER, 1)); }
static void check_paid_at_the_maximum(bool finished) {
    check_paid(finished);
    if (finished)
        check_equal(shared->ran[0], MP_OK);
    while (mp_sem_debt(at()) != 0)
        release_here();
    check_equal(mp_sem_release(f, block), EOVERFLOW);
    must_be(numbers_of(3, NEVER, 0));
}
static void check_too_many(bool finished) {
    must_be(numbers_of(3, GUESSED, 0));
    if (finished)
        check_equal(shared->ran[0], EOVERFLOW);
}
static void pay_1_and_use_it_70000_times(void) {
    pay_1();
    others_use_it_70000_times();
}

/* A process that paid long ago, and whose sequence has come round to the same number. What it did then must not be taken for what
 * it was about to do. */
static void pay_and_come_round(void) {
    pay_1();
    for (int i = 0; i < 0x7fff / 2; i++) {
        check(sem_try());
        release_here();
    }
    check(sem_try()); /* 0x7fff operations: the next one has the number of the payment */
}
static void check_come_round(bool finished) { /* one unit held, and another or not: back they come, and are a debt */
    before_or_after(finished, numbers_of(3, ALWAYS, 2 + 1), numbers_of(3, ALWAYS, 2 + 2));
}

/* always, at the maximum: the child's own release is one too many, but for the debt. */
static void setup_always_bounded_3(void) { have_semaphore_that(ALWAYS, 3, 3); }
static void another_dies_after_a_release(void) {
    dies_with(take_2);
    release_here();
    recovered();
    must_be(numbers_of(3, ALWAYS, 2));
}
static void check_own_paid_at_the_maximum(bool finished) { /* the child's unit has no room */
    before_or_after(finished, numbers_of(3, ALWAYS, 2), numbers_of(3, ALWAYS, 1));
    if (finished)
        check_equal(shared->ran[0], MP_OK);
}

/* At no moment is the semaphore both full and without debt: the release may not fail. */
static void setup_bounded_debt_of_1(void) {
    setup_bounded_3();
    dies_with(take_1);
    recovered();
}
static void taken_then_paid_and_child_goes_on(void) {
    if (shared->finished)
        return;
    dies_with(take_1);
    release_here();
    run_child_to_its_end();
}
static void check_not_too_many(bool finished) {
    check_equal(shared->ran[0], MP_OK);
    must_be(numbers_of(3, NEVER, 0));
}

/* ---- returns ---- */

static void op_mp_recover(void) { mp_recover(f); }

static void setup_dead_holder(void) {
    have_semaphore_that(GUESSED, 3, 5);
    dies_with(take_2);
}
static void setup_dead_holders(void) {
    setup_dead_holder();
    dies_with(take_1);
}
static void setup_dead_holder_always(void) {
    setup_always_3();
    dies_with(take_2);
}
static void setup_dead_holder_with_room_for_1(void) {
    setup_always_bounded_3();
    dies_with(take_2);
    release_here();
}
static void setup_dead_holder_of_a_signal(void) {
    setup_dead_holder();
    release_here();
}
static void setup_dead_holder_and_debt(void) {
    setup_guessed_debt_of_2();
    dies_with(take_2);
}
static void check_returned_2(bool finished) { must_be(numbers_of(3, GUESSED, 2)); }
static void check_returned_3(bool finished) { must_be(numbers_of(3, GUESSED, 3)); }
static void check_returned_1_of_2(bool finished) { must_be(numbers_of(3, ALWAYS, 1)); }
static void check_returned_none(bool finished) { must_be(numbers_of(2, NEVER, 0)); }
static void check_returned_2_more(bool finished) { must_be(numbers_of(3, GUESSED, 4)); }

static void setup_sleeper_for_dead_holder(void) {
    have_semaphore_that(GUESSED, 1, 1);
    pid_t holder = bystander(take_1);
    bystander_ends(holder);
    bystander(semaphore_wait_and_release);
    wait_until_equal(sleepers, 1);
}
static void check_sleeper_got_it(bool finished) {
    bystander_ends(bystanders[0]);
    must_be(numbers_of(1, GUESSED, 1));
}

/* A recovery stands still while somebody releases. Either the death comes first, and the release pays; or the release, and then
 * nothing comes back. */
static void death_first_or_release(struct numbers release_first, struct numbers death_first) {
    bool death = are(death_first);
    if (!death)
        must_be(release_first);
    appears_once(now->operation == op_release ? !death : death);
}
static void check_death_or_signal(bool finished) { death_first_or_release(numbers_of(2, NEVER, 0), numbers_of(3, NEVER, 1)); }
static void check_death_or_added(bool finished) { death_first_or_release(numbers_of(4, ALWAYS, 2), numbers_of(3, ALWAYS, 1)); }
static void check_death_or_paid(bool finished) { death_first_or_release(numbers_of(1, NEVER, 1), numbers_of(3, NEVER, 3)); }
static void op_settle(void) { /* the part of a recovery that matters here */
    for (uint32_t i = 0; i < atomic_load(&f->h->record_high); i++) {
        uint64_t owner = atomic_load(&f->seg->records[i].owner);
        if ((uint32_t)owner == block + 1 && !mp_slot_lives(f, (int)(owner >> 32) - 1))
            mp_sem_return_units(f, i);
    }
}
static void release_and_child_goes_on(void) {
    release_here();
    run_child_to_its_end();
}
static void use_it_and_child_goes_on(void) {
    others_use_it();
    run_child_to_its_end();
}

/* The other way round: a release stands still while a whole recovery is made, and goes on. */
static void recovered_and_child_goes_on(void) {
    if (!shared->finished) {
        recovered();
        run_child_to_its_end();
    }
}

/* always: the child holds one unit and acquires another; a release here takes nothing from its record. */
static void check_always_came_back(bool finished) {
    before_or_after(finished, numbers_of(2 + 1 + 1, ALWAYS, 1), numbers_of(1 + 1 + 2, ALWAYS, 2));
}
static void check_always_released(bool finished) {
    before_or_after(finished, numbers_of(3, ALWAYS, 2), numbers_of(3, ALWAYS, 1));
}

/* Scenarios of kill_every_step.c: events and barriers. */

/* ---- events ---------------------------------------------------------------------------------------------------------- */

static void setup_clear_event(void) {
    block = make(MP_KIND_EVENT);
    check_equal(mp_event_init(f, block), MP_OK);
    mp_block_ready(f, block);
}
static int event_sleep(void) { return mp_bell_wait(f, block, 0, -1) == MP_OK ? 0 : 4; }
static int event_sleepers(void) { return mp_bell_get(f, block, GETZCNT); }
static void setup_waiter_for_event(void) {
    setup_clear_event();
    bystander(event_sleep);
    wait_until_equal(event_sleepers, 1);
}
static void op_event_set(void) { mp_event_set(f, block); }
static void event_works(void) {
    for (int i = 0; i < 2; i++) {
        check_equal(mp_event_set(f, block), MP_OK);
        check_equal(mp_event_is_set(f, block), 1);
        check_equal(mp_event_clear(f, block), MP_OK);
        check_equal(mp_event_is_set(f, block), 0);
    }
}
static void check_event_set(bool finished) {
    int set = mp_event_is_set(f, block);
    check(set == 1 || (set == 0 && !finished));
    appears_once(set);
    check_equal(mp_event_set(f, block), MP_OK);
    bystander_ends(bystanders[0]);
    event_works();
}
static void setup_event_set(void) {
    setup_clear_event();
    check_equal(mp_event_set(f, block), MP_OK);
}
static void op_event_clear(void) { mp_event_clear(f, block); }
static void check_event_cleared(bool finished) {
    int set = mp_event_is_set(f, block);
    check(set == 0 || (set == 1 && !finished));
    appears_once(set == 0);
    event_works();
}
static void setup_rung_bell(void) {
    uint32_t index = make(MP_KIND_LOCK); /* the next block's bell has been rung in an earlier life */
    mp_block_ready(f, index);
    mp_bell_ring(f, index, 2);
    mp_block_drop(f, index);
    setup_nothing();
}
static void op_event_new(void) { setup_clear_event(); }

/* ---- barriers -------------------------------------------------------------------------------------------------------- */

static int party; /* of a bystander: which one it is */

static int barrier_wait(void) { /* the loop of BarrierState.wait() */
    uint64_t generation;
    uint32_t place;
    int outcome;
    if (mp_lock_wait(f, block, -1) != MP_OK)
        return 3;
    mp_barrier_waiting(f, block, &place);
    int64_t cell = mp_barrier_enter(f, block, place, &generation);
    if (cell < 0 || mp_lock_release(f, block) != MP_OK)
        return 3;
    while ((outcome = (int)mp_barrier_outcome(f, block, (uint32_t)cell, generation)) == MP_BARRIER_WAITING)
        if (mp_cell_wait(f, (uint32_t)cell, -1) != MP_OK)
            return 4;
    mp_cell_leave(f, (uint32_t)cell);
    shared->ran[party] = outcome;
    return 0;
}
static int arrived(void) {
    uint32_t place;
    return (int)mp_barrier_waiting(f, block, &place);
}
static int asleep(void) {
    int count = 0;
    for (int i = 0; i < bystander_count; i++)
        count += has_blocked(bystanders[i]);
    return count;
}
static void setup_barrier(void) {
    block = make(MP_KIND_BARRIER);
    at()->condition.parties = 3;
    mp_block_ready(f, block);
}
static void setup_barrier_with_2(void) {
    setup_barrier();
    for (party = 0; party < 2; party++) {
        shared->ran[party] = 0;
        bystander(barrier_wait);
        wait_until_equal(arrived, party + 1);
    }
    wait_until_equal(asleep, 2);
}
static void have_barrier(void) { check_equal(mp_lock_wait(f, block, -1), MP_OK); }
static void end_barrier(bool broken, bool stays) {
    have_barrier();
    mp_barrier_end(f, block, broken, stays);
    check_equal(mp_lock_release(f, block), MP_OK);
}
static void op_barrier_open(void) { end_barrier(false, false); }
static void op_barrier_break(void) { end_barrier(true, true); }
static void op_barrier_reset(void) { end_barrier(true, false); }

/* Both have heard the same. */
static int what_both_heard(void) {
    bystander_ends(bystanders[0]);
    bystander_ends(bystanders[0]);
    check_equal(shared->ran[0], shared->ran[1]);
    return shared->ran[0];
}
/* The next three can meet. */
static void barrier_works(void) {
    setup_nothing();
    for (party = 0; party < 2; party++) {
        bystander(barrier_wait);
        wait_until_equal(arrived, party + 1);
    }
    op_barrier_open();
    check_equal(what_both_heard(), MP_BARRIER_PASSED);
}
static void check_opened(bool finished) {
    uint64_t ended = atomic_load(&at()->condition.generation);
    check(ended == 1 || (ended == 0 && !finished));
    appears_once(ended == 1);
    if (ended == 0) {
        check_equal(arrived(), 2); /* who died had not come */
        op_barrier_open();
    }
    check_equal(what_both_heard(), MP_BARRIER_PASSED);
    barrier_works();
}
static void check_broken(bool finished) {
    bool broken = atomic_load(&at()->condition.broken);
    check(broken || !finished);
    appears_once(broken);
    if (!broken)
        op_barrier_break();
    else if (atomic_load(&at()->condition.generation) == 0) /* nobody has rung: they see it when they look */
        end_barrier(true, true);
    check_equal(what_both_heard(), MP_BARRIER_BROKEN);
    op_barrier_reset();
    barrier_works();
}
static void check_reset(bool finished) {
    uint64_t ended = atomic_load(&at()->condition.generation);
    check(ended == 1 || (ended == 0 && !finished));
    appears_once(ended == 1);
    if (ended == 0)
        op_barrier_reset();
    check_equal(what_both_heard(), MP_BARRIER_BROKEN);
    barrier_works();
}
static void op_barrier_enter(void) {
    uint64_t generation;
    uint32_t place;
    have_barrier();
    mp_barrier_waiting(f, block, &place);
    mp_barrier_enter(f, block, place, &generation);
    mp_lock_release(f, block);
}
static void check_not_counted(bool finished) {
    check_equal(arrived(), 0);
    barrier_works();
}

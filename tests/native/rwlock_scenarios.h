/* Scenarios of kill_every_step.c: the lock of readers and writers. The steps R1 to W4 are those at the head of rwlock.c. */

static void make_rwlock(void) {
    block = make(MP_KIND_RWLOCK);
    mp_rw_init(at());
    mp_block_ready(f, block);
}

/* ---- what RWLockBase does, until a deadline ---------------------------------------------------------------------------- */

static int sleep_in(int64_t cell, int64_t deadline) {
    int outcome = mp_cell_wait(f, (uint32_t)cell, deadline);
    check(outcome == MP_OK || outcome == MP_TIMED_OUT || outcome == MP_TICK || outcome == MP_INTERRUPTED);
    return outcome;
}
static int rw_read_until(int64_t deadline) {
    uint32_t tenure;
    int64_t cell = -1;
    int outcome = mp_rw_read_try(f, block);
    if (outcome != MP_BUSY)
        return outcome;
    check_equal(mp_rw_read_enroll(f, block, &tenure), MP_OK);
    for (;;) {
        check((cell = mp_rw_cell(f, block, cell, MP_RW_READ)) >= 0);
        bool taken = mp_rw_read_look(f, block, tenure);
        if (taken || outcome == MP_TIMED_OUT) {
            if (!taken)
                mp_rw_read_cancel(f, block, tenure);
            mp_cell_leave(f, (uint32_t)cell);
            return taken ? MP_OK : MP_TIMED_OUT;
        }
        outcome = sleep_in(cell, deadline);
    }
}
static int rw_write_until(int64_t deadline) {
    int64_t cell = -1;
    int outcome;
    if (mp_rw_write_try(f, block))
        return MP_OK;
    do
        outcome = mp_lock_wait(f, block, deadline);
    while (outcome == MP_TICK || outcome == MP_INTERRUPTED);
    if (outcome != MP_OK)
        return outcome;
    mp_rw_write_begin(f, block);
    for (;;) {
        check((cell = mp_rw_cell(f, block, cell, MP_RW_WRITE)) >= 0);
        bool taken = mp_rw_write_look(f, block);
        if (taken || outcome == MP_TIMED_OUT) {
            if (!taken)
                mp_rw_write_cancel(f, block);
            mp_cell_leave(f, (uint32_t)cell);
            return taken ? MP_OK : MP_TIMED_OUT;
        }
        outcome = sleep_in(cell, deadline);
    }
}

static void rw_read_now(void) { check_equal(mp_rw_read_try(f, block), MP_OK); }
static void rw_write_now(void) { check(mp_rw_write_try(f, block)); }
static void rw_written(void) { check_equal(mp_rw_write_release(f, block), MP_OK); }
static int rw_read_cycle(void) {
    check_equal(rw_read_until(-1), MP_OK);
    check_equal(lock_word() & MP_LOCK_INSIDE, 0);
    mp_rw_read_release(f, block);
    return 0;
}
static int rw_write_cycle(void) {
    check_equal(rw_write_until(-1), MP_OK);
    check_equal(mp_rw_count(f, block).readers, 0);
    check_equal(lock_word() & MP_LOCK_OWNER, f->me);
    rw_written();
    return 0;
}

/* ---- what must be true when the child is dead --------------------------------------------------------------------------- */

static bool rw_died(void) { return (lock_word() & MP_LOCK_DIED) != 0; }
static void rw_is_free(void) {
    struct mp_rw_count count = mp_rw_count(f, block);
    check_equal(lock_word() & ~MP_LOCK_DIED, 0);
    check_equal(count.readers, 0);
    check_equal(count.waiting, 0);
    check_equal(waiting_cells(), 0);
}
static void rw_works(void) {
    bool died = rw_died();
    rw_is_free();
    rw_read_now();
    check_equal(rw_died(), died);
    check(!mp_rw_write_try(f, block));
    check_equal(rw_died(), died);
    mp_rw_read_release(f, block);
    rw_write_now();
    check_equal(rw_died(), died);
    check_equal(mp_rw_read_try(f, block), MP_BUSY);
    rw_written();
    check(!rw_died());
    rw_is_free();
}
static void bystanders_end(void) {
    while (bystander_count > 0)
        bystander_ends(bystanders[0]);
}
static void check_rw_free(bool finished) {
    bystanders_end();
    check(!rw_died());
    rw_works();
}
static void check_rw_died_inside(bool finished) {
    bystanders_end();
    check(rw_died() || !finished);
    appears_once(rw_died());
    rw_works();
}
static void check_rw_died_until_released(bool finished) {
    check(!rw_died() || !finished);
    appears_once(!rw_died());
    rw_works();
}
/* One of the bystanders was a writer, and has ended what there was to tell. */
static void check_rw_passed_on(bool finished) {
    bystanders_end();
    rw_works();
}

/* ---- readers -------------------------------------------------------------------------------------------------------------- */

static void op_rw_read(void) { shared->ran[0] = mp_rw_read_try(f, block); }
static void op_rw_read_release(void) { mp_rw_read_release(f, block); }
static void rw_have_read(void) {
    rw_read_now();
    mp_rw_read_release(f, block);
}
static void rw_read_twice(void) { /* two threads */
    rw_read_now();
    rw_read_now();
}
static void setup_rw_written(void) { /* by the parent */
    make_rwlock();
    rw_write_now();
}
static void op_rw_read_and_cancel(void) {
    uint32_t tenure;
    check_equal(mp_rw_read_enroll(f, block, &tenure), MP_OK);
    int64_t cell = mp_rw_cell(f, block, -1, MP_RW_READ);
    mp_rw_read_cancel(f, block, tenure);
    mp_cell_leave(f, (uint32_t)cell);
}
static void rw_release_here(void) {
    if ((lock_word() & MP_LOCK_OWNER) == f->me)
        rw_written();
}
static void check_rw_free_after_parent(bool finished) {
    rw_release_here();
    check_rw_free(finished);
}
static void op_rw_read_wait(void) {
    if (rw_read_until(-1) == MP_OK)
        mp_rw_read_release(f, block);
}
static int rw_cells_asleep_1(void) { return cells_asleep() >= 1; }
static void rw_release_for_child(void) {
    wait_until_equal(rw_cells_asleep_1, 1);
    rw_written();
}
/* Another writer comes before the child does; and when the parent has written the child is called by it, or goes first. */
static void rw_next_writer_is_there(void) {
    bystander(rw_write_cycle);
    wait_until_equal(sleepers, 1);
}
/* A writer sleeps until the child has left. */
static void rw_writer_waits_for_child(void) {
    bystander(rw_write_cycle);
    wait_until_equal(cells_asleep, 1);
}

/* ---- a writer comes while a reader stands at any step of R1 and R2, or of R3 and R4, and the reader goes on ---------------- */

/* Never are both in. A reader that does not know yet that it is in is counted as one. */
static void not_both_in(bool writer, bool finished) {
    if (!finished)
        run_child_to_its_end();
    bool reader = shared->ran[0] == MP_OK;
    check(!(writer && reader));
    check(!reader || mp_rw_count(f, block).readers == 1);
    if (writer)
        check_equal(mp_rw_count(f, block).readers, 0);
}
static void rw_writer_comes_and_child_goes_on(void) {
    bool taken = mp_rw_write_try(f, block);
    not_both_in(taken, shared->finished);
    if (taken)
        rw_written();
    else
        check(shared->ran[0] == MP_OK || !shared->finished);
}
static void op_rw_enroll_and_look(void) {
    uint32_t tenure;
    mp_rw_read_enroll(f, block, &tenure);
    shared->ran[0] = MP_BUSY;
    for (int i = 0; i < 2 && shared->ran[0] == MP_BUSY; i++)
        if (mp_rw_read_look(f, block, tenure))
            shared->ran[0] = MP_OK;
}
static void rw_writers_change_and_child_goes_on(void) {
    bool finished = shared->finished;
    rw_written();
    bool taken = mp_rw_write_try(f, block);
    not_both_in(taken, finished);
    check(!(taken && finished)); /* it was called before this one's tenure */
    if (taken)
        rw_written();
    else
        check_equal(mp_rw_count(f, block).readers, 1);
}
/* The parent waits to write, in its cell; whoever leaves, or was taken for a reader for a moment, rings for it. */
static int64_t parents_cell;
static bool rw_parent_begins(void) {
    check(mp_lock_try(f, at(), 0));
    mp_rw_write_begin(f, block);
    check((parents_cell = mp_rw_cell(f, block, -1, MP_RW_WRITE)) >= 0);
    return mp_rw_write_look(f, block);
}
static void rw_parent_was_rung_for(void) {
    check_equal(mp_cell_state(atomic_load(&f->seg->cells[parents_cell].word)), MP_CELL_RELEASED);
    check(mp_rw_write_look(f, block));
}
static void rw_parent_ends(void) {
    mp_cell_leave(f, (uint32_t)parents_cell);
    if (lock_word() & MP_LOCK_INSIDE)
        rw_written();
    else
        mp_rw_write_cancel(f, block);
}
static void rw_writer_waits_and_child_goes_on(void) {
    bool finished = shared->finished, taken = rw_parent_begins();
    not_both_in(taken, finished);
    if (!taken && mp_rw_count(f, block).readers == 0)
        rw_parent_was_rung_for();
    rw_parent_ends();
}
static void rw_next_writer_waits_and_child_goes_on(void) {
    rw_written();
    check(!(shared->finished && mp_rw_count(f, block).readers != 0));
    rw_writer_waits_and_child_goes_on();
}

static uint32_t enrolled_in;
static void rw_enroll(void) {
    check_equal(mp_rw_read_enroll(f, block, &enrolled_in), MP_OK);
    shared->ran[0] = MP_BUSY;
}
static void op_rw_look(void) {
    if (mp_rw_read_look(f, block, enrolled_in))
        shared->ran[0] = MP_OK;
}
/* The child looks when nobody has the lock, and then somebody takes it. */
static void rw_writer_comes_in_vain_and_child_goes_on(void) {
    bool finished = shared->finished;
    check(!mp_rw_write_try(f, block));
    check(mp_lock_try(f, at(), 0));
    not_both_in(false, finished);
    check_equal(mp_rw_count(f, block).readers, 1);
    mp_rw_write_begin(f, block);
    check(!mp_rw_write_look(f, block));
    mp_rw_write_cancel(f, block);
}

/* The child gives up when it has been called. */
static void op_rw_cancel(void) { mp_rw_read_cancel(f, block, enrolled_in); }
static void rw_call_child(void) {
    rw_written();
    check(!rw_parent_begins());
}
static void rw_parent_is_rung_for(void) {
    if (shared->finished)
        rw_parent_was_rung_for();
}
static void check_rw_free_after_parent_waited(bool finished) {
    check(mp_rw_write_look(f, block));
    rw_parent_ends();
    check_rw_free(finished);
}

/* ---- writers ----------------------------------------------------------------------------------------------------------------- */

static void op_rw_write(void) { shared->ran[0] = mp_rw_write_try(f, block); }
static void op_rw_write_release(void) { mp_rw_write_release(f, block); }
static void op_rw_write_wait_and_hold(void) { rw_write_until(-1); }
static void setup_rw_read(void) { /* by the parent */
    make_rwlock();
    rw_read_now();
}
static void rw_parent_leaves(void) {
    wait_until_equal(rw_cells_asleep_1, 1);
    mp_rw_read_release(f, block);
}
static void check_rw_died_inside_after_parent(bool finished) {
    if (mp_rw_count(f, block).readers != 0)
        mp_rw_read_release(f, block);
    check(rw_died() || !finished); /* at which step is another one each time: it sleeps more or less often */
    rw_works();
}
static void check_rw_free_after_parent_read(bool finished) {
    mp_rw_read_release(f, block);
    check_rw_free(finished);
}
static void rw_begin(void) {
    check(mp_lock_try(f, at(), 0));
    mp_rw_write_begin(f, block);
    check(!mp_rw_write_look(f, block));
}
static void op_rw_begin(void) {
    mp_lock_wait(f, block, -1);
    mp_rw_write_begin(f, block);
    mp_rw_write_look(f, block);
    mp_rw_write_cancel(f, block);
}
static void op_rw_write_cancel(void) { mp_rw_write_cancel(f, block); }
static void rw_reader_waits(void) {
    bystander(rw_read_cycle);
    wait_until_equal(cells_asleep, 1);
}
static void rw_reader_and_writer_wait(void) {
    rw_reader_waits();
    bystander(rw_write_cycle);
    wait_until_equal(sleepers, 1);
}
/* Recovery rings for everybody. Who has come to the end of its operation has rung for those who can go on. */
static void rw_others_end(void) {
    if (shared->finished)
        bystanders_end();
}
static void rw_reader_ends(void) {
    if (shared->finished) {
        bystander_ends(bystanders[0]);
        wait_until_equal(sleepers, 0); /* the writer has the lock, and waits for the parent */
    }
}
static void check_rw_passed_on_beside_parent(bool finished) {
    if (bystander_count == 2)
        bystander_ends(bystanders[0]);
    check_equal(mp_rw_count(f, block).readers, 1);
    mp_rw_read_release(f, block);
    check_rw_free(finished);
}
/* The parent's writer comes while the child has taken the lock and waits at some step for the readers that there are. */
static void rw_reader_comes_and_child_goes_on(void) {
    int outcome = mp_rw_read_try(f, block);
    if (!shared->finished)
        run_child_to_its_end();
    check(!(outcome == MP_OK && shared->ran[0]));
    if (outcome == MP_OK) {
        check(!(lock_word() & MP_LOCK_INSIDE));
        mp_rw_read_release(f, block);
    }
}
/* A reader has looked after W1 and before W2, and sleeps. */
static void setup_rw_reader_asleep(void) {
    setup_rw_written();
    bystander(rw_read_cycle);
    wait_until_equal(cells_asleep, 1);
    check_equal(mp_lock_release(f, block), MP_OK);
}
static void op_rw_begin_and_look(void) {
    check(mp_lock_try(f, at(), 0));
    mp_rw_write_begin(f, block);
    mp_rw_write_look(f, block);
}
static void op_rw_downgrade(void) {
    check_equal(mp_rw_read_within(f, block), MP_OK);
    mp_rw_write_release(f, block);
}

/* ---- ends ---------------------------------------------------------------------------------------------------------------------- */

static int rw_die_reading(void) {
    rw_read_twice();
    return 0;
}
static int rw_die_writing(void) {
    rw_write_now();
    return 0;
}
static int rw_die_beginning(void) {
    check(mp_lock_try(f, at(), 0));
    mp_rw_write_begin(f, block);
    return 0;
}
static void setup_rw_dead_reader(void) {
    make_rwlock();
    bystander_ends(bystander(rw_die_reading));
    check_equal(mp_rw_count(f, block).readers, 2);
    rw_writer_waits_for_child();
}
static void setup_rw_dead_writer(void) {
    make_rwlock();
    bystander_ends(bystander(rw_die_writing));
    rw_reader_and_writer_wait();
}
static void setup_rw_dead_beginner(void) {
    setup_rw_read();
    bystander_ends(bystander(rw_die_beginning));
    rw_reader_and_writer_wait();
}
/* Whoever takes it and gives up, or dies, before it is inside has put nothing right. */
static void setup_rw_died_and_read(void) {
    make_rwlock();
    bystander_ends(bystander(rw_die_writing));
    check(mp_recover(f) > 0);
    check(rw_died());
    rw_read_now();
}
static void check_rw_still_died(bool finished) {
    check(rw_died());
    mp_rw_read_release(f, block);
    rw_works();
}
static void op_rw_new(void) { make_rwlock(); }

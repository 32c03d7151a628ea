/* Scenarios of kill_every_step.c: the tables of blocks and chunks grow. */

/* As if the family had never had more than the first bank, and that was full as far as anybody knows (hints). */
static void only_the_first_bank(void) {
    mp_remove_banks(f);
    mp_banks_unmap(f);
    for (uint32_t i = 0; i < MP_BANKS; i++)
        atomic_store(&f->seg->banks[i], 0);
    atomic_store(&f->h->bank_high, 0);
    atomic_store(&f->h->block_high, mp_at_most(atomic_load(&f->h->block_high), MP_BANK));
    atomic_store(&f->h->chunk_high, mp_at_most(atomic_load(&f->h->chunk_high), MP_BANK));
    atomic_store(&f->h->block_hint, MP_BANK);
    atomic_store(&f->h->chunk_hint, MP_BANK);
    for (uint32_t i = 0; i < MP_RECENT; i++)
        atomic_store(&f->recent[i], 0);
}
static void setup_first_bank(void) {
    only_the_first_bank();
    count_objects();
}
static uint32_t lock_in_second_bank(void) {
    atomic_store(&f->h->block_hint, MP_BANK);
    int64_t index = mp_block_new(f, MP_KIND_LOCK);
    check(index >= MP_BANK && index < 2 * MP_BANK);
    mp_block_ready(f, (uint32_t)index);
    return (uint32_t)index;
}
/* However far the child came, there is one second bank, and it can be used. */
static void check_second_bank(bool finished) {
    every_block_is_free();
    block = lock_in_second_bank();
    check_equal(segments(), segments_before + 1);
    check(mp_block_holds(f, block, f->slot));
    check_equal(mp_lock_wait(f, block, mp_now_ns()), MP_OK);
    check_equal(mp_lock_release(f, block), MP_OK);
    mp_block_drop(f, block);
    every_block_is_free();
    only_the_first_bank();
    check_equal(segments(), segments_before);
}
static uint32_t beside_it;
static void parent_makes_one_and_child_goes_on(void) {
    beside_it = lock_in_second_bank();
    run_child_to_its_end();
}
static void check_one_for_both(bool finished) {
    check_equal(mp_block_state_of(atomic_load(&mp_block_at(f, beside_it)->word)), MP_BLOCK_READY);
    check(mp_block_holds(f, beside_it, f->slot));
    check_equal(segments(), segments_before + 1);
    mp_block_drop(f, beside_it);
    check_second_bank(finished);
}

/* A process that has not seen the bank yet adopts a block in it. */
static void setup_queue_in_second_bank(void) {
    setup_first_bank();
    setup_shared_queue();
    check(block >= MP_BANK);
}
static void unmap_all(void) { mp_banks_unmap(f); }
static void check_still_shared_there(bool finished) {
    check_still_shared(finished);
    only_the_first_bank();
}

/* The 29th holder, whose chunk is the first of the second bank. */
static void setup_full_block_and_chunks(void) {
    setup_first_bank();
    atomic_store(&f->h->block_hint, 0);
    setup_full_block();
}
static void check_full_block_there(bool finished) {
    check_full_block(finished);
    only_the_first_bank();
}

/* A family with two banks ends. */
static void found_and_grow(void) {
    found_other();
    atomic_store(&other.h->block_hint, MP_BANK);
    int64_t index = mp_block_new(&other, MP_KIND_QUEUE);
    check(index == MP_BANK && mp_block_msgget(&other, (uint32_t)index, 0600) >= 0);
    mp_block_ready(&other, (uint32_t)index);
}
static int found_and_grow_and_die(void) {
    found_and_grow();
    kill(getpid(), SIGKILL);
    return 0;
}
static void setup_dead_family_with_two_banks(void) {
    count_objects();
    pid_t pid = bystander(found_and_grow_and_die);
    int status;
    check(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    bystander_count--;
    mp_recover(f);
    check_equal(segments(), segments_before + 2);
    check_equal(queues(), queues_before + 2);
}
/* The same, by its last member, which could not start a reaper. */
static void found_and_grow_without_reaper(void) {
    found_and_grow();
    other.reaper_failed = true;
}
static void op_leave(void) { mp_family_leave(&other); }
static void check_nothing_is_left(bool finished) {
    if (finished) {
        no_new_objects();
        check_equal(sets(), sets_before);
    }
    check_swept(finished);
}
static void op_grow(void) {
    atomic_store(&other.h->block_hint, MP_BANK);
    mp_block_ready(&other, (uint32_t)mp_block_new(&other, MP_KIND_LOCK));
}

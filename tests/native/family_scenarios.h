/* Scenarios of kill_every_step.c: the process table, and who holds a block. */

/* ---- holders in chunks ------------------------------------------------------------------------------------------------------------- */

/* Slots that nobody has, as holders: what is wanted of them is that they are many. */
#define STRANGERS 1000u

static void every_chunk_is_free(void) {
    for (uint32_t i = 0; i < atomic_load(&f->h->chunk_high); i++)
        check_equal(atomic_load(&mp_chunk_at(f, i)->word), MP_CHUNK_FREE);
}
static int holders(void) {
    static uint16_t slots[MP_SLOTS];
    return (int)mp_block_holders(f, block, slots, MP_SLOTS);
}
static void setup_full_block(void) {
    setup_shared_queue();
    for (uint32_t i = 1; i < MP_HOLDERS; i++)
        check_equal(mp_block_hold(f, block, (int)(STRANGERS + i)), MP_OK);
}
static void setup_block_with_chunks(void) {
    setup_full_block();
    check_equal(mp_block_hold(f, block, (int)(STRANGERS + MP_CHUNK_SLOTS)), MP_OK);
    check_equal(mp_block_hold(f, block, (int)(STRANGERS + 2 * MP_CHUNK_SLOTS)), MP_OK);
}
static void strangers_go(uint32_t in_chunks) {
    for (uint32_t i = 1; i < MP_HOLDERS; i++)
        check(mp_block_unhold(f, block, (int)(STRANGERS + i)));
    for (uint32_t i = 1; i <= in_chunks; i++)
        check(mp_block_unhold(f, block, (int)(STRANGERS + i * MP_CHUNK_SLOTS)));
}
/* A chunk that is in a chain is nobody else's. */
static void another_block_has_chunks_of_its_own(void) {
    uint32_t mine = block, other = make(MP_KIND_DATA);
    int before = holders();
    mp_block_ready(f, other);
    atomic_store(&f->h->chunk_hint, 0); /* a hint: the first that seems free is taken */
    for (uint32_t i = 0; i < MP_HOLDERS + 2; i++)
        check_equal(mp_block_hold(f, other, (int)(STRANGERS + i)), MP_OK);
    check_equal(holders(), before);
    block = other;
    for (uint32_t i = 0; i < MP_HOLDERS + 2; i++)
        check(mp_block_unhold(f, block, (int)(STRANGERS + i)));
    check_equal(holders(), 1);
    mp_block_drop(f, block);
    block = mine;
}
/* The child passes it on to a process whose slot needs a chunk of its own. (Its own was made by its parent, before the fork.) */
#define CHILDS_CHILD ((int)(STRANGERS + 4 * MP_CHUNK_SLOTS))
static void op_pass_on(void) { mp_block_hold(f, block, CHILDS_CHILD); }
static void childs_child_goes(bool finished) {
    bool held = mp_block_unhold(f, block, CHILDS_CHILD);
    check(held || !finished);
    appears_once(held);
}
static void check_full_block(bool finished) {
    childs_child_goes(finished);
    check_equal(holders(), MP_HOLDERS);
    another_block_has_chunks_of_its_own();
    check(mp_block_holds(f, block, f->slot));
    strangers_go(0);
    check_still_shared(finished);
    every_chunk_is_free();
}
static void check_block_with_chunks(bool finished) {
    childs_child_goes(finished);
    check_equal(holders(), MP_HOLDERS + 2);
    strangers_go(2);
    check_still_shared(finished);
    every_chunk_is_free();
}
/* While the child appends a chunk, another process appends one for other slots, or for the same. */
static void another_is_added_and_child_goes_on(void) {
    check_equal(mp_block_hold(f, block, (int)(STRANGERS + MP_CHUNK_SLOTS)), MP_OK);
    run_child_to_its_end();
    check_equal(holders(), MP_HOLDERS + 3);
}
static void its_neighbour_is_added_and_child_goes_on(void) {
    check_equal(mp_block_hold(f, block, CHILDS_CHILD + 1), MP_OK);
    run_child_to_its_end();
    check_equal(holders(), MP_HOLDERS + 3);
    check(mp_block_unhold(f, block, CHILDS_CHILD + 1));
    check_equal(mp_block_hold(f, block, (int)(STRANGERS + MP_CHUNK_SLOTS)), MP_OK);
}
static void check_another_was_added(bool finished) {
    childs_child_goes(true);
    check_equal(holders(), MP_HOLDERS + 1);
    strangers_go(1);
    check_still_shared(finished);
    every_chunk_is_free();
}
/* The last holder of a block with chunks goes: in a process of its own, so that the parent is none. */
static void hold_alone_with_chunks(void) {
    block = make(MP_KIND_QUEUE);
    check(mp_block_msgget(f, block, 0600) >= 0);
    mp_block_ready(f, block);
    for (uint32_t i = 1; i < MP_HOLDERS; i++)
        mp_block_hold(f, block, (int)(STRANGERS + i));
    for (uint32_t i = 1; i <= 3; i++)
        mp_block_hold(f, block, (int)(STRANGERS + i * MP_CHUNK_SLOTS));
    strangers_go(3);
}
static void check_nothing_and_no_chunk(bool finished) {
    check_nothing_made(finished);
    every_chunk_is_free();
}

/* ---- taking down, while somebody else is added -------------------------------------------------------------------------------------- */

static void op_drop_block(void) { mp_block_drop(f, block); }
/* The child drops what it shares with the parent, and meanwhile the parent passes it on to another process and goes itself. That one
 * comes to stand before the parent among the holders. */
static void setup_parent_second(void) {
    setup_shared_queue();
    for (int i = 0; i < 4; i++)
        check_equal(mp_block_hold(f, block, (int)STRANGERS + i), MP_OK);
    check(mp_block_unhold(f, block, f->slot));
    for (int i = 4; i < 9; i++)
        check_equal(mp_block_hold(f, block, (int)STRANGERS + i), MP_OK);
    check_equal(mp_block_hold(f, block, f->slot), MP_OK);
    for (int i = 0; i < 9; i++)
        check(mp_block_unhold(f, block, (int)STRANGERS + i));
    check_equal(atomic_load(&at()->holders[0]), 0); /* what is added is looked at long before the parent is */
    check_equal(atomic_load(&at()->holders[2]) != 0, 1);
}
static void pass_it_on_and_child_goes_on(void) {
    check_equal(mp_block_hold(f, block, STRANGERS + 2), MP_OK);
    mp_block_drop(f, block);
    run_child_to_its_end();
}
static void pass_it_on(void) {
    check_equal(mp_block_hold(f, block, STRANGERS + 2), MP_OK);
    mp_block_drop(f, block);
}
/* The second look alone: the first one has found nobody. */
static void find_nobody(void) {
    uint64_t word = atomic_load(&at()->word);
    check(mp_block_unhold(f, block, f->slot));
    f->local_refs[block] = 0;
    atomic_store(&at()->word, mp_block_word(MP_BLOCK_LEAVING, f->slot, mp_block_serial(word)));
}
static void op_look_again(void) { mp_block_settle(f, block, f->slot); }
static void check_passed_to_another(bool finished) {
    check_equal(mp_block_state_of(atomic_load(&at()->word)), MP_BLOCK_READY);
    check_equal(holders(), 1);
    check(mp_block_holds(f, block, STRANGERS + 2));
    check_equal(queues(), queues_before);
    check(mp_block_unhold(f, block, STRANGERS + 2));
    check(mp_block_try_free(f, block, f->slot));
    check_equal(queues(), queues_before - 1);
}

/* ---- the process table ---------------------------------------------------------------------------------------------------------------- */

static int64_t journey;

static void setup_journey(void) {
    setup_shared_queue();
    journey = mp_transit_reserve(f);
    check(journey >= 0);
    check_equal(mp_block_hold(f, block, mp_transit_slot(journey)), MP_OK);
}
/* As a spawned child: it has inherited nothing, and takes over what its transit slot holds. */
static void op_arrive(void) {
    f->local_refs[block] = 0;
    if (mp_transit_claim(f, journey) != MP_OK || mp_block_adopt(f, block, mp_block_serial(atomic_load(&at()->word))) != MP_OK)
        return;
    mp_transit_arrived(f, journey);
}
static void it_was_sent(void) { mp_transit_sent(f, journey, child_pid); }
static void op_start_and_cancel(void) {
    mp_start_reserve(f);
    mp_start_cancel(f);
}
static void op_start(void) {
    mp_start_reserve(f);
    mp_fork_prepare(f);
    mp_fork_parent(f);
}

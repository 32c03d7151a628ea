/* Scenarios of kill_every_step.c: broadcasts. The steps P1 to G5 are those at the head of broadcast.c. Each message has its number all
 * over, so that one that is torn is seen. */

#define WORDS 10u /* of a message; there is room for three of them, and a little */
static struct mp_broadcast_view channel;
static uint32_t mine, second; /* subscriptions, of the parent */

static uint32_t subscribe(void) {
    uint32_t index = make(MP_KIND_SUBSCRIPTION);
    mp_block_ready(f, index);
    check_equal(mp_subscribe(&channel, index), MP_OK);
    return index;
}
static struct mp_subscription *sub(uint32_t index) { return mp_subscription_of(mp_block_at(f, index)); }

static uint32_t new_broadcast(uint64_t maxsize, uint32_t flags) {
    uint32_t index = make(MP_KIND_BROADCAST);
    check(mp_block_shmget(f, index, mp_broadcast_size(maxsize, 128), 0600) >= 0);
    mp_broadcast_init(mp_block_at(f, index), maxsize, 128, flags);
    mp_block_ready(f, index);
    check_equal(mp_broadcast_open(&channel, f, index), MP_OK);
    return index;
}
static void make_broadcast(uint64_t maxsize, uint32_t flags) {
    block = new_broadcast(maxsize, flags);
    mine = subscribe();
    second = subscribe();
}
static void setup_broadcast(void) { make_broadcast(3, 0); }
static void no_broadcast(void) {
    check_equal(waiting_cells(), 0);
    check_equal(lock_word() & MP_LOCK_OWNER, 0);
    mp_broadcast_close(&channel);
}
static uint64_t broadcast_digest(uint64_t h) {
    const uint64_t *words[] = {(const uint64_t *)channel.subscriptions, (const uint64_t *)channel.entries,
                               (const uint64_t *)channel.bytes};
    for (size_t i = 0; channel.segment != NULL && i < sizeof words / sizeof *words; i++)
        for (int n = 0; n < (i == 1 ? 8 : i == 2 ? 16 : 4); n++)
            h = (h ^ words[i][n]) * 0x9e3779b97f4a7c15ull, h ^= h >> 29;
    return h;
}

/* ---- what Log and Cursor do ------------------------------------------------------------------------------------------------ */

static int put_now(uint32_t number, int64_t deadline) {
    struct mp_letter letter = {.length = WORDS * sizeof number};
    int outcome = mp_broadcast_begin(&channel, &letter, deadline);
    if (outcome != MP_OK)
        return outcome;
    for (uint32_t i = 0; i < WORDS; i++)
        ((uint32_t *)letter.data)[i] = number;
    return mp_broadcast_publish(&channel, &letter);
}
static int put_waiting(uint32_t number, int64_t deadline) {
    int64_t cell = -1;
    int outcome, slept = MP_OK;
    for (;;) {
        check((cell = mp_broadcast_cell(&channel, cell, MP_PLACE_PUT)) >= 0);
        outcome = put_now(number, deadline);
        if (outcome == MP_TICK || outcome == MP_INTERRUPTED)
            continue;
        if (outcome != MP_FULL || slept == MP_TIMED_OUT)
            break;
        slept = mp_cell_wait(f, (uint32_t)cell, deadline);
    }
    mp_cell_leave(f, (uint32_t)cell);
    return outcome == MP_FULL ? MP_TIMED_OUT : outcome;
}
static int get_now(uint32_t index, uint32_t *number) {
    struct mp_letter letter;
    uint32_t words[WORDS];
    for (;;) {
        int outcome = mp_subscription_next(&channel, sub(index), &letter);
        if (outcome != MP_OK)
            return outcome;
        memcpy(words, letter.data, sizeof words);
        if (!mp_subscription_take(&channel, sub(index), &letter))
            continue;
        check_equal(letter.length, sizeof words);
        for (uint32_t i = 1; i < WORDS; i++)
            check_equal(words[i], words[0]);
        *number = words[0];
        return MP_OK;
    }
}
static int get_waiting(uint32_t index, uint32_t *number, int64_t deadline) {
    int64_t cell = -1;
    int outcome, slept = MP_OK;
    for (;;) {
        check((cell = mp_broadcast_cell(&channel, cell, MP_PLACE_GET)) >= 0);
        outcome = get_now(index, number);
        if (outcome != MP_EMPTY || slept == MP_TIMED_OUT)
            break;
        slept = mp_cell_wait(f, (uint32_t)cell, deadline);
    }
    mp_cell_leave(f, (uint32_t)cell);
    return outcome == MP_EMPTY ? MP_TIMED_OUT : outcome;
}
static void put(uint32_t number) { check_equal(put_now(number, -1), MP_OK); }
/* 0: there is none. */
static uint32_t get(uint32_t index) {
    uint32_t number = 0;
    int outcome = get_now(index, &number);
    check(outcome == MP_OK || outcome == MP_EMPTY || outcome == MP_SHUT_DOWN);
    return number;
}
static void gets(uint32_t index, uint32_t from, uint32_t to) {
    for (; from <= to; from++)
        check_equal(get(index), from);
    check_equal(get(index), 0);
}
/* All is as it should be: whatever was there has been got. */
static void channel_works(void) {
    check_equal(get(mine), 0);
    check_equal(get(second), 0);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t number = 91; number <= 93; number++)
            put(number);
        check_equal(put_now(94, -1), channel.drops ? MP_OK : MP_FULL);
        gets(mine, channel.drops ? 92 : 91, channel.drops ? 94 : 93);
        gets(second, channel.drops ? 92 : 91, channel.drops ? 94 : 93);
    }
    no_broadcast();
}

/* ---- putting ------------------------------------------------------------------------------------------------------------------- */

static void op_put(void) { shared->ran[0] = put_now(7, -1); }
static void check_put(bool finished) {
    uint32_t number = get(mine);
    check(number == 7 || (number == 0 && !finished && !seen));
    seen = number == 7;
    check_equal(get(second), number); /* for all or for none */
    channel_works();
}
/* The fourth message reaches over the end, and the first one is got by all but in its place. */
static void setup_broadcast_at_its_end(void) {
    setup_broadcast();
    for (uint32_t number = 1; number <= 3; number++) {
        put(number);
        check_equal(get(mine), number);
        check_equal(get(second), number);
    }
}
static void setup_broadcast_that_drops(void) {
    make_broadcast(3, MP_BROADCAST_DROP);
    for (uint32_t number = 1; number <= 3; number++)
        put(number);
    check_equal(get(second), 1);
}
static void check_dropped(bool finished) {
    uint64_t lost = mp_subscription_lost(&channel, sub(mine));
    check(lost <= 1 && (lost == 1 || !finished));
    check_equal(mp_subscription_lost(&channel, sub(second)), 0);
    for (uint32_t next = (uint32_t)lost + 1; next <= 3; next++)
        check_equal(get(mine), next);
    check_equal(mp_subscription_lost(&channel, sub(mine)), lost);
    check_equal(get(second), 2);
    check_equal(get(second), 3);
    check_put(finished);
}

static int bystander_gets(void) {
    uint32_t number;
    return get_waiting(subscribe(), &number, -1) == MP_OK && (number == 7 || number == 8) ? 0 : 4;
}
static int bystander_gets_the_end(void) {
    uint32_t number;
    return get_waiting(subscribe(), &number, -1) == MP_SHUT_DOWN ? 0 : 4;
}
static void setup_broadcast_and_getters(void) {
    setup_broadcast();
    bystander(bystander_gets);
    wait_until_equal(cells_asleep, 1);
    bystander(bystander_gets);
    wait_until_equal(cells_asleep, 2);
}
static void bystanders_if_finished(void) { /* nobody but the child has rung for them */
    if (shared->finished)
        bystanders_end();
}
static void check_put_to_getters(bool finished) {
    uint32_t number = get(mine);
    check_equal(get(second), number);
    check(number == 7 || (number == 0 && !finished && !seen));
    seen = number == 7;
    if (number == 0) {
        put(8);
        check(get(mine) == 8 && get(second) == 8);
    }
    bystanders_end();
    check(mp_recover(f) >= 0); /* of their subscriptions */
    channel_works();
}

static void setup_full_broadcast(void) {
    setup_broadcast();
    for (uint32_t number = 1; number <= 3; number++)
        put(number);
    gets(mine, 1, 3);
}
static void op_put_waiting(void) { shared->ran[0] = put_waiting(4, -1); }
static void make_room_for_child(void) {
    wait_until_equal(child_cell_asleep, 1);
    check_equal(get(second), 1);
}
static void check_put_after_wait(bool finished) {
    uint32_t number = get(mine);
    check(number == 4 || (number == 0 && !finished));
    while (get(second) != 0)
        ;
    channel_works();
}

/* A putter that was told that its message is there has put it before the end; one that was refused has put nothing. */
static void shut_down_and_put_goes_on(void) {
    bool finished = shared->finished;
    mp_broadcast_shutdown(&channel, false);
    if (!finished)
        run_child_to_its_end();
    check(shared->ran[0] == MP_OK || (shared->ran[0] == MP_SHUT_DOWN && !finished));
    uint32_t number = get(mine);
    check_equal(number, shared->ran[0] == MP_OK ? 7 : 0);
    check_equal(get(second), number);
}
static void check_channel_ended(bool finished) {
    uint32_t number;
    check_equal(put_now(8, -1), MP_SHUT_DOWN);
    check_equal(get_now(mine, &number), MP_SHUT_DOWN);
    no_broadcast();
}

/* ---- getting ------------------------------------------------------------------------------------------------------------------- */

static void setup_broadcast_with_3(void) {
    setup_broadcast();
    for (uint32_t number = 1; number <= 3; number++)
        put(number);
}
static void op_get(void) { shared->ran[0] = (int)get(mine); }
static void check_got(bool finished) {
    uint32_t number = get(mine);
    check(number == 2 || (number == 1 && !finished && !seen));
    seen = number == 2;
    gets(mine, number + 1, 3);
    gets(second, 1, 3);
    channel_works();
}
static void setup_overtaken(void) {
    setup_broadcast_that_drops();
    put(4);
    put(5);
}
static void check_got_overtaken(bool finished) {
    uint32_t number = get(mine);
    check(number == 4 || (number == 3 && !finished && !seen));
    seen = number == 4;
    uint64_t lost = mp_subscription_lost(&channel, sub(mine));
    check(lost == 2 || (lost == 0 && !finished)); /* killed between the two stores of G2 */
    gets(mine, number + 1, 5);
    gets(second, 3, 5);
    channel_works();
}
/* The child stands anywhere, and what it was about to get is written over. */
static void overtake_and_child_goes_on(void) {
    bool finished = shared->finished;
    for (uint32_t number = 6; number <= 9; number++)
        put(number);
    if (!finished)
        run_child_to_its_end();
    check(shared->ran[0] == 3 || (!finished && (shared->ran[0] == 3 || shared->ran[0] == 7)));
}
static void check_after_overtaking(bool finished) {
    gets(mine, shared->ran[0] == 7 ? 8 : 7, 9);
    gets(second, 7, 9);
    channel_works();
}
/* Two who share a subscription. */
static void get_too_and_child_goes_on(void) {
    bool finished = shared->finished;
    int number = (int)get(mine);
    if (!finished)
        run_child_to_its_end();
    check(number != shared->ran[0] && number + shared->ran[0] == 3);
}
static void check_got_two(bool finished) {
    gets(mine, 3, 3);
    gets(second, 1, 3);
    channel_works();
}
static void op_get_waiting(void) {
    uint32_t number = 0;
    get_waiting(mine, &number, -1);
    shared->ran[0] = (int)number;
}
static void put_for_child(void) {
    wait_until_equal(child_cell_asleep, 1);
    put(7);
}
static void check_got_after_wait(bool finished) {
    uint32_t number = get(mine);
    check(number == 0 || (number == 7 && !finished));
    if (number == 0)
        get(second);
    else
        check_equal(get(second), 7);
    channel_works();
}

/* A putter sleeps until the child has got a message, has closed its subscription, or is dead. */
static uint32_t childs;
static void child_subscribes(void) { childs = subscribe(); }
static int bystander_puts(void) { return put_waiting(4, -1) == MP_OK ? 0 : 4; }
static void putter_waits_for_child(void) {
    for (uint32_t number = 1; number <= 3; number++)
        put(number);
    gets(mine, 1, 3);
    gets(second, 1, 3);
    bystander(bystander_puts);
    wait_until_equal(cells_asleep, 1);
}
static void op_get_childs(void) { get(childs); }
static void op_close(void) { mp_block_drop(f, childs); }
static void check_putter_went_on(bool finished) {
    bystanders_end();
    gets(mine, 4, 4);
    gets(second, 4, 4);
    channel_works();
}

/* ---- subscribing --------------------------------------------------------------------------------------------------------------- */

static void op_subscribe(void) {
    childs = subscribe();
    shared->ran[0] = (int)childs;
}
static void setup_full_and_no_child(void) {
    shared->ran[0] = 0;
    setup_full_broadcast();
    gets(second, 1, 3);
}
static void check_subscribed(bool finished) {
    check(mp_subscription_at(&channel, 2) < 0); /* the child is dead */
    channel_works();
}
/* What is put while the child stands somewhere, it gets all of, or nothing, or what came last. */
static void put_and_subscriber_goes_on(void) {
    bool finished = shared->finished;
    put(1);
    put(2);
    if (!finished)
        run_child_to_its_end();
    put(3);
    uint32_t index = (uint32_t)shared->ran[0], behind = (uint32_t)mp_subscription_behind(&channel, sub(index));
    check(behind == 3 || (!finished && (behind == 1 || behind == 2)));
    gets(index, 4 - behind, 3);
}
static void check_subscribed_beside(bool finished) {
    gets(mine, 1, 3);
    gets(second, 1, 3);
    check_subscribed(finished);
}

/* ---- ends ---------------------------------------------------------------------------------------------------------------------- */

static int bystander_is_refused(void) { return put_waiting(4, -1) == MP_SHUT_DOWN ? 0 : 4; }
static void setup_waiters_at_broadcast(void) {
    setup_broadcast();
    for (uint32_t number = 1; number <= 3; number++)
        put(number);
    bystander(bystander_gets_the_end);
    wait_until_equal(cells_asleep, 1);
    bystander(bystander_is_refused);
    wait_until_equal(cells_asleep, 2);
}
static void op_end_channel(void) { mp_broadcast_shutdown(&channel, false); }
static void op_end_channel_at_once(void) { mp_broadcast_shutdown(&channel, true); }
static void check_ended_with(bool finished, bool immediate) {
    bool shut = mp_broadcast_is_shut(&channel);
    check(shut || !finished);
    appears_once(shut);
    if (!shut)
        mp_broadcast_shutdown(&channel, immediate);
    bystanders_end();
    if (immediate)
        check_equal(mp_subscription_behind(&channel, sub(mine)), 0);
    else
        gets(mine, 1, 3);
    check_channel_ended(finished);
}
static void check_channel_shut(bool finished) { check_ended_with(finished, false); }
static void check_channel_shut_at_once(bool finished) { check_ended_with(finished, true); }

static void op_new_broadcast(void) { new_broadcast(3, 0); }
static void child_has_broadcast(void) {
    make_broadcast(3, 0);
    put(1);
    mp_broadcast_close(&channel);
}
static void op_drop_broadcast(void) {
    mp_block_drop(f, block);
    mp_block_drop(f, mine);
    mp_block_drop(f, second);
}

static int dies_behind(void) {
    subscribe();
    for (uint32_t number = 1; number <= 3; number++)
        put(number);
    return 0;
}
static void setup_dead_subscriber(void) {
    setup_broadcast();
    bystander_ends(bystander(dies_behind));
    gets(mine, 1, 3);
    gets(second, 1, 3);
    bystander(bystander_puts);
    wait_until_equal(cells_asleep, 1);
}
static int dies_putting(void) {
    struct mp_letter letter = {.length = WORDS * sizeof(uint32_t)};
    check_equal(mp_broadcast_begin(&channel, &letter, -1), MP_OK);
    return 0;
}
static void setup_dead_putter(void) {
    setup_broadcast();
    bystander_ends(bystander(dies_putting));
    bystander(bystander_puts);
    wait_until_equal(sleepers, 1);
}

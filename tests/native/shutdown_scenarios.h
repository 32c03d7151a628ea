/* Scenarios of kill_every_step.c: a queue is shut down. Whoever waits for it comes to an end, also if the one who shuts it down is
 * killed in the middle; a message that a sender was told is sent comes before the end, or was dropped. */

static bool is_shut(void) { return mp_queue_is_shut(&queue); }

static int shut_down(bool immediate) {
    int outcome;
    do
        outcome = mp_queue_shutdown(&queue, immediate, -1);
    while (outcome == MP_TICK || outcome == MP_INTERRUPTED);
    return outcome;
}
static void op_shutdown(void) { check_equal(shut_down(false), MP_OK); }
static void op_shutdown_at_once(void) { check_equal(shut_down(true), MP_OK); }

/* The loops of MessageQueue, which end because the queue does. */
static int sleep_until_shut(void) {
    struct mp_item item;
    int outcome;
    do
        outcome = mp_queue_await(&queue, &item);
    while (outcome == MP_EMPTY || outcome == MP_INTERRUPTED || outcome == MP_TICK || outcome == MP_OK);
    return outcome == MP_SHUT_DOWN ? 0 : 4;
}
static int get_until_shut(void) { return wait_in_room() == MP_SHUT_DOWN ? 0 : 4; }
static int put_until_shut(void) {
    struct mp_message m = {.kind = MP_BODY_INLINE};
    uint32_t epoch = mp_room_enter(&queue.q->putters);
    int outcome;
    while ((outcome = send_message(&m, 4)) == MP_FULL) {
        if (mp_room_wait(f, &queue.q->putters, -1) != MP_OK)
            return 4;
        epoch = mp_room_stay(&queue.q->putters, epoch);
    }
    mp_room_leave(&queue.q->putters, epoch);
    return outcome == MP_SHUT_DOWN ? 0 : 5;
}

static int both_are_asleep(void) { return has_blocked(bystanders[0]) && has_blocked(bystanders[1]); }
static void two_wait(int (*life)(void)) {
    bystander(life);
    bystander(life);
    wait_until_equal(both_are_asleep, 1);
}
static void setup_two_sleepers(void) {
    setup_queue_with_token();
    two_wait(sleep_until_shut);
}
static void setup_sleepers_at_priorities(void) {
    have_queue_of(0, MP_QUEUE_PRIORITY);
    two_wait(sleep_until_shut);
}
static void setup_two_getters(void) {
    setup_empty_queue();
    two_wait(get_until_shut);
}
static void setup_two_putters(void) {
    have_queue_of(1, 0);
    send_number(1);
    two_wait(put_until_shut);
}
static void setup_two_joiners(void) {
    have_queue_of(0, MP_QUEUE_COUNTED);
    send_number(1);
    send_number(2);
    two_wait(join_queue);
}

static void has_ended(void) {
    struct mp_message m = {.kind = MP_BODY_INLINE};
    struct mp_item item;
    check_equal(send_message(&m, 4), MP_SHUT_DOWN);
    check_equal(take_item(&item), MP_SHUT_DOWN);
    check_equal(mp_queue_size(&queue), 0);
    if (atomic_load(&queue.q->arena) != 0) {
        uint64_t bytes, in_use, segments_used;
        mp_arena_usage(&queue, &bytes, &in_use, &segments_used);
        check_equal(in_use, 0);
    }
    bystander(sleep_until_shut);
    bystander(get_until_shut);
    bystander_ends(bystanders[1]);
    bystander_ends(bystanders[0]);
    no_queue();
}
/* The child has shut the queue down, or not; if it has, nobody else has to do anything for those who wait. */
static void end_with(bool finished, bool immediate) {
    check(is_shut() || !finished);
    appears_once(is_shut());
    if (!is_shut())
        check_equal(shut_down(immediate), MP_OK);
    while (bystander_count > 0)
        bystander_ends(bystanders[0]);
}
static void check_woken(bool finished) {
    end_with(finished, false);
    if (mp_queue_size(&queue) == 1)
        check_equal(take_number(), 1);
    has_ended();
}
static void check_joined(bool finished) {
    end_with(finished, true);
    check_equal(mp_queue_unfinished(&queue, -1), 0);
    has_ended();
}

/* Messages everywhere: in the kernel queue, in the spill, large, and posted. */
#define EVERYWHERE 6u
static void setup_messages_everywhere(void) {
    setup_1_in_kernel_2_in_spill();
    send_large(4);
    check(mp_lock_try(f, queue.b, 0)); /* else they would be collected */
    post_number(5);
    post_number(6);
    check(mp_queue_try_lock(&queue) == false);
    atomic_store(&queue.q->lock.word, 0);
}
static void check_all_are_there(bool finished) {
    check(is_shut() || !finished);
    appears_once(is_shut());
    for (uint32_t next = 1; next <= EVERYWHERE; next++) {
        check_equal(mp_queue_size(&queue), EVERYWHERE + 1 - next);
        check_equal(take_large(), next);
    }
    if (!is_shut())
        check_equal(shut_down(false), MP_OK);
    has_ended();
}
static void check_all_are_dropped(bool finished) {
    check(is_shut() || !finished);
    appears_once(is_shut());
    check_equal(mp_queue_size(&queue), is_shut() ? 0 : EVERYWHERE);
    if (!is_shut())
        check_equal(shut_down(true), MP_OK);
    has_ended();
}

/* The last look: a receiver finds nothing, and says that nothing will come. A sender that has not seen SHUT yet has sent before
 * that, and the receiver has the message, or it has sent nothing. */
static void setup_shut(void) {
    setup_queue_with_token();
    shared->ran[0] = 0;
    check_equal(shut_down(false), MP_OK);
}
static void setup_shut_without_token(void) {
    setup_empty_queue();
    shared->ran[0] = 0;
    atomic_fetch_or(&queue.q->token, MP_TOKEN_SHUT); /* by one who was killed */
}
static void op_take_last(void) {
    struct mp_item item;
    shared->ran[0] = take_item(&item);
}
static void check_ended(bool finished) {
    check(shared->ran[0] == MP_SHUT_DOWN || !finished);
    has_ended();
}
static void last_message_is_taken(bool sent) {
    run_child_to_its_end();
    if (sent && shared->ran[0] == MP_SHUT_DOWN)
        fail("a message was sent, and the queue is said to have ended");
    if (!sent)
        check_equal(shared->ran[0], MP_SHUT_DOWN);
}
static void check_last_taken(bool finished) { has_ended(); }
static void send_late_and_child_goes_on(void) {
    struct {
        long type;
        char kind;
        uint32_t number;
    } __attribute__((packed)) m = {MP_TYPE_LEVEL, MP_BODY_INLINE, 1};
    bool sent = msgsnd(queue.id, &m, 5, IPC_NOWAIT) == 0;
    if (step_now % 2 == 0) /* it may stand still here */
        atomic_fetch_and(&queue.q->token, ~(uint32_t)MP_TOKEN_DRY);
    last_message_is_taken(sent);
}
static void post_late_and_child_goes_on(void) {
    unsigned char bytes[16] = {[0] = 1 + 4, [4] = MP_BODY_INLINE, [5] = 1}; /* a struct mp_body */
    int outcome = mp_spill_post(&queue, bytes, mp_body_size(1 + 4), 1, 0);
    check(outcome == MP_OK || outcome == MP_SHUT_DOWN);
    last_message_is_taken(outcome == MP_OK);
}

/* A sender, and meanwhile the queue comes to its end: what it was told is sent has been received. */
static int accepted_by_child(void) { return shared->ran[0] + shared->ran[1]; }
static void setup_sender(void) {
    setup_empty_queue();
    shared->ran[0] = shared->ran[1] = 0;
    last_taken = 0;
}
static void setup_sender_by_spill(void) {
    setup_queue_with_token();
    shared->ran[0] = shared->ran[1] = 0;
    last_taken = 0;
}
static void setup_sender_who_posts(void) {
    setup_sender_by_spill();
    check(mp_lock_try(f, queue.b, 0));
}
static void op_send_2_if_open(void) {
    for (int i = 0; i < 2; i++) {
        struct mp_message m = {.kind = MP_BODY_INLINE, .data = {7}};
        int outcome = send_message(&m, 4);
        check(outcome == MP_OK || outcome == MP_SHUT_DOWN);
        shared->ran[i] = outcome == MP_OK;
    }
}
static bool child_does_not_stand_in_the_way(void) { return (lock_word() & MP_LOCK_OWNER) == 0; }
static void take_to_the_end(void) {
    struct mp_item item;
    int outcome;
    while ((outcome = take_item(&item)) == MP_OK)
        last_taken++; /* how many, here */
    check_equal(outcome, MP_SHUT_DOWN);
}
static void shut_down_and_child_goes_on(void) {
    if ((lock_word() & MP_LOCK_OWNER) == f->me)
        mp_queue_unlock(&queue);
    check_equal(shut_down(false), MP_OK);
    bool ended = child_does_not_stand_in_the_way();
    if (ended)
        take_to_the_end();
    uint32_t before = last_taken;
    run_child_to_its_end();
    take_to_the_end();
    check_equal(last_taken, accepted_by_child());
    check(!ended || last_taken == before);
}
static void shut_down_and_take(void) {
    if ((lock_word() & MP_LOCK_OWNER) == f->me)
        mp_queue_unlock(&queue);
    check_equal(shut_down(false), MP_OK);
}
/* Killed in the middle: one that was sent, and not known to be. */
static void check_accepted_taken(bool finished) {
    take_to_the_end();
    check(last_taken == (uint32_t)accepted_by_child() || last_taken == (uint32_t)accepted_by_child() + 1);
    has_ended();
}
static void check_accepted_were_taken(bool finished) { has_ended(); }

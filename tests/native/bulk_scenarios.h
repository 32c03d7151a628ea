/* Scenarios of kill_every_step.c: several messages at once, bounded and counted queues, and what a queue owns. */

#define MANY 3u

static void op_send_many(void) {
    union {
        struct mp_body body;
        unsigned char bytes[MANY * 16];
    } bodies = {0};
    uint64_t size = 0;
    int outcome;
    for (uint32_t number = 1; number <= MANY; number++) {
        struct mp_body *body = (struct mp_body *)(bodies.bytes + size);
        body->length = 1 + sizeof number;
        body->body[0] = MP_BODY_INLINE;
        memcpy(body->body + 1, &number, sizeof number);
        size += mp_body_size(body->length);
    }
    check(size <= sizeof bodies);
    check_equal(mp_queue_send_many(&queue, bodies.bytes, MANY, 0, -1, &outcome), MANY);
    check_equal(outcome, MP_OK);
}
/* The first so many of them, in order. */
static void check_sent_many(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size >= 0 && size <= MANY && (size == MANY || !finished));
    for (uint32_t number = 1; number <= size; number++)
        check_equal(take_number(), number);
    check_equal(take_number(), 0);
    no_queue();
}

static int wait_in_room(void) { /* the loop of MessageQueue.wait_and_take() */
    struct mp_item item;
    uint32_t epoch = mp_room_enter(&queue.q->getters);
    int outcome;
    for (;;) {
        outcome = take_item(&item);
        if (outcome != MP_EMPTY)
            break;
        if ((outcome = mp_room_wait(f, &queue.q->getters, -1)) != MP_OK)
            break;
        epoch = mp_room_stay(&queue.q->getters, epoch);
    }
    mp_room_leave(&queue.q->getters, epoch);
    return outcome;
}
static void op_wait_in_room(void) { wait_in_room(); }
static void setup_waiter_at_queue(void) {
    setup_queue_with_arena();
    bystander(wait_in_room);
    wait_until_equal(bystander_sleeps, 1);
}
static void check_waiter_has_one(bool finished) {
    if (!finished)
        send_number(100); /* perhaps the child has sent nothing */
    bystander_ends(bystanders[0]);
    while (take_number() != 0)
        ;
    no_queue();
}

static void setup_5_in_spill(void) {
    setup_queue_with_token();
    for (uint32_t number = 1; number <= 5; number++)
        send_number(number);
}
static void op_take_many(void) {
    static struct mp_item items[MANY];
    uint32_t count;
    check_equal(mp_queue_take_many(&queue, items, MANY, &count, -1), MP_OK);
    check_equal(count, MANY);
}
/* What has been taken is the first so many; the others are there. */
static void check_took_many(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size >= 5 - MANY && size <= 5 && (size == 5 - MANY || !finished));
    for (uint32_t number = (uint32_t)(6 - size); number <= 5; number++)
        check_equal(take_number(), number);
    check_equal(take_number(), 0);
    no_queue();
}

static void have_queue_of(uint64_t maxsize, uint32_t flags) {
    block = make(MP_KIND_QUEUE);
    check(mp_block_msgget(f, block, 0600) >= 0);
    check_equal(mp_queue_make(f, block, maxsize, flags), MP_OK);
    mp_block_ready(f, block);
    check_equal(mp_queue_open(&queue, f, block), MP_OK);
    last_taken = 99;
}

/* Room for one of the child's two: the other is refused. */
static void setup_bounded_with_1_of_2(void) {
    have_queue_of(2, 0);
    send_number(9);
}
static int send_if_room(uint32_t number) {
    struct mp_message m = {.kind = MP_BODY_INLINE};
    memcpy(m.data, &number, sizeof number);
    return send_message(&m, sizeof number);
}
static void op_send_bounded(void) {
    check_equal(send_if_room(100), MP_OK);
    check_equal(send_if_room(101), MP_FULL);
}
static void check_bounded(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size == 2 || (size == 1 && !finished));
    appears_once(size == 2);
    check_equal(send_if_room(7), size == 2 ? MP_FULL : MP_OK);
    check_equal(take_number(), 9);
    check_equal(take_number(), size == 2 ? 100 : 7);
    check_equal(send_if_room(8), MP_OK);
    check_equal(send_if_room(8), MP_OK);
    check_equal(send_if_room(8), MP_FULL);
    while (take_number() != 0)
        ;
    no_queue();
}

static int join_queue(void) { /* the loop of MessageQueue.join() */
    struct mp_room *room = mp_joiners(queue.b);
    uint32_t epoch = mp_room_enter(room);
    while (mp_queue_unfinished(&queue, -1) != 0) {
        if (mp_room_wait(f, room, -1) != MP_OK)
            return 4;
        epoch = mp_room_stay(room, epoch);
    }
    mp_room_leave(room, epoch);
    return 0;
}
static void setup_2_tasks(void) {
    have_queue_of(0, MP_QUEUE_COUNTED);
    send_number(1);
    send_number(2);
    check_equal(take_number(), 1);
    check_equal(take_number(), 2);
    check_equal(mp_queue_task_done(&queue, -1), MP_OK);
    bystander(join_queue);
    wait_until_equal(bystander_sleeps, 1);
}
static void op_task_done(void) { check_equal(mp_queue_task_done(&queue, -1), MP_OK); }
static void check_task_done(bool finished) {
    int64_t unfinished = mp_queue_unfinished(&queue, -1);
    check(unfinished == 0 || (unfinished == 1 && !finished));
    appears_once(unfinished == 0);
    if (unfinished == 1)
        check_equal(mp_queue_task_done(&queue, -1), MP_OK);
    bystander_ends(bystanders[0]);
    check_equal(mp_queue_task_done(&queue, -1), MP_NONE_LEFT);
    no_queue();
}

/* Pieces that were used and are free; who trims has them for a moment. */
static void setup_idle_piece(void) {
    setup_queue_with_arena();
    send_large(1);
    check_equal(take_large(), 1);
}
static void op_trim(void) { mp_queue_trim(f, block, 0); }
static void check_trimmed(bool finished) {
    send_large(1);
    are_there(1, 1);
}

static void op_new_counted_queue(void) { have_queue_of(5, MP_QUEUE_COUNTED); }
static void have_queue_with_everything(void) {
    have_queue_of(5, MP_QUEUE_COUNTED);
    send_large(1);
    send_large(2);
    check_equal(take_large(), 1);
}

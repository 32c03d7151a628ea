/* Scenarios of kill_every_step.c: what senders do without the queue's lock, and what its owner does for them. */

static void setup_locked_by_parent(void) {
    setup_queue_with_token();
    check(mp_lock_try(f, queue.b, 0));
}
static void have_priority_queue(void) {
    struct msqid_ds ds;
    last_taken = 99;
    block = make(MP_KIND_QUEUE);
    check(mp_block_msgget(f, block, 0600) >= 0);
    check_equal(mp_queue_make(f, block, 0, MP_QUEUE_PRIORITY), MP_OK);
    mp_block_ready(f, block);
    check_equal(mp_queue_open(&queue, f, block), MP_OK);
    check(msgctl(queue.id, IPC_STAT, &ds) == 0);
    ds.msg_qbytes = 4; /* it takes nothing but tokens */
    check(msgctl(queue.id, IPC_SET, &ds) == 0);
    send_number(9);
    check_equal(take_number(), 9);
}
static void setup_locked_priority(void) {
    have_priority_queue();
    check(mp_lock_try(f, queue.b, 0));
}
static void unlock_and_take_in_order(void) {
    mp_queue_unlock(&queue);
    take_in_order();
}

/* Every chunk is free, and nothing is on the stack: what the dead child had in its hands has not been lost to the others. */
static void pieces_are_free(void) {
    uint64_t bytes, in_use, segments_used;
    check_equal(mp_queue_lock(&queue, -1), MP_OK); /* repairs, if that is due */
    mp_queue_unlock(&queue);
    mp_arena_usage(&queue, &bytes, &in_use, &segments_used);
    check_equal(in_use, 0);
    check_equal(atomic_load(mp_posted(queue.b)), 0);
    check_equal(atomic_load(&queue.q->spilled), 0);
}
static void check_sent_in_order_and_whole(bool finished) {
    if ((lock_word() & MP_LOCK_OWNER) == f->me)
        mp_queue_unlock(&queue);
    take_in_order();
    check(last_taken == 101 || !finished);
    pieces_are_free();
    no_queue();
}

/* The stack grows under the child's hands, and is emptied. */
static void post_number(uint32_t number) {
    unsigned char bytes[16] = {[0] = 1 + sizeof number, [4] = MP_BODY_INLINE}; /* a struct mp_body */
    memcpy(bytes + 5, &number, sizeof number);
    check_equal(mp_spill_post(&queue, bytes, mp_body_size(1 + sizeof number), 1, 0), MP_OK);
}
static void post_unlock_and_child_goes_on(void) {
    post_number(9);
    mp_queue_unlock(&queue);
    if ((lock_word() & MP_LOCK_OWNER) == 0)
        take_in_order();
    run_child_to_its_end();
    take_in_order();
    check_equal(last_taken, 101);
}

/* The posting itself, which is what can leave a chunk behind that nothing leads to. */
static void op_post_2(void) {
    post_number(100);
    post_number(101);
}
static void setup_posted_before(void) { /* so that there are pieces for it */
    setup_queue_with_token();
    post_number(9);
    check_equal(take_number(), 9);
}
static void setup_priority_posted_before(void) {
    have_priority_queue();
    post_number(9);
    check_equal(take_number(), 9);
}
static void collect_and_child_goes_on(void) {
    post_number(9);
    take_in_order();
    run_child_to_its_end();
    take_in_order();
    check_equal(last_taken, 101);
}

static void post_3(void) {
    for (uint32_t number = 1; number <= 3; number++)
        post_number(number);
}
static void setup_3_posted(void) {
    setup_queue_with_token();
    post_3();
}
static void setup_3_posted_priority(void) {
    have_priority_queue();
    post_3();
}
static void check_all_3(uint32_t from) {
    for (uint32_t next = from; next <= 3; next++) {
        check_equal(take_number(), next);
        check_equal(atomic_load(&queue.q->token) & (MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR), 0); /* nothing was found damaged */
    }
    check_equal(take_number(), 0);
    pieces_are_free();
    no_queue();
}
static void check_taken_and_whole(bool finished) {
    uint32_t number = take_number();
    check(number == 2 || (number == 1 && !finished && !seen));
    seen = number == 2;
    check_all_3(number + 1);
}

static void forget_the_token(void) {
    struct mp_item item;
    check(msgrcv(queue.id, &item.message, MP_BODY_SIZE, -(MP_TYPE_LEVEL - 1), IPC_NOWAIT) >= 0);
    item.token = item.message.type;
    check_equal(mp_queue_take(&queue, &item, -1), MP_EMPTY);
}
/* Somebody posts while the child has the lock, and leaves word: whoever sleeps in msgrcv(2) is woken when the child releases the
 * lock, or is dead. */
static void lock_queue(void) { check(mp_lock_try(f, queue.b, 0)); }
static void op_unlock_queue(void) { mp_queue_unlock(&queue); }
static void setup_sleeper_at_full_queue(void) {
    have_priority_queue();
    while (token_is_out()) /* else the sleeper has it in its hand when the child takes the lock */
        forget_the_token();
    bystander(receive_one);
    wait_until_equal(bystander_sleeps, 1);
}
static void post_1_and_leave_word(void) {
    send_number(1);
    check(atomic_load(mp_posted(queue.b)) != 0);
    check(lock_word() & MP_LOCK_LOOK);
}
static void check_sleeper_has_it(bool finished) {
    bystander_ends(bystanders[0]);
    check_equal(take_number(), 0);
    pieces_are_free();
    no_queue();
}

/* A receiver that has a token in its hand and does not get the lock. */
static void setup_token_in_hand(void) {
    setup_3_in_spill();
    check(mp_lock_try(f, queue.b, 0));
}
static void op_give_token_back(void) {
    struct mp_item item;
    ssize_t n = msgrcv(queue.id, &item.message, MP_BODY_SIZE, -(MP_TYPE_LEVEL - 1), IPC_NOWAIT);
    item.token = n >= 0 ? item.message.type : 0;
    mp_queue_take(&queue, &item, mp_now_ns());
}
static void check_receiver_finds_3(bool finished) {
    bystander(receive_one); /* whom only a token can wake; the lock is not free yet */
    mp_queue_unlock(&queue);
    bystander_ends(bystanders[0]);
    check_all_3(2);
}

/* ---- the arena */

static void check_none_taken(bool finished) {
    if (atomic_load(&queue.q->arena) != 0)
        pieces_are_free();
    no_queue();
}
static void claim_and_child_goes_on(void) {
    pieces[0] = claim_one();
    run_child_to_its_end();
}
/* Both have one, and they have made one segment for it, or one after the other. */
static void check_two_taken(bool finished) {
    uint64_t bytes, in_use, segments_used;
    check_equal(mp_queue_size(&queue), 0); /* repairs: nothing leads to the child's */
    mp_arena_usage(&queue, &bytes, &in_use, &segments_used);
    check_equal(in_use, 16 << 10);
    check(segments_used <= 3);
    mp_piece_free(&queue, &pieces[0]);
    pieces_are_free();
    no_queue();
}

/* Scenarios of kill_every_step.c in which the child is not killed but left standing, as one that is stopped by SIGSTOP, looked at
 * by a debugger, or throttled: at every step of an operation, for three ticks and more if somebody waits for it. Meanwhile the
 * parent and bystanders do all that can be done with the same object, waiting, waiting with a deadline, and not waiting. Nobody
 * may get an error, and what does not wait for the child by its nature may not wait. Then the child goes on, and everything has to
 * be whole: each message is received once, those of a sender in their order.
 *
 * MP_TICK_NS is 10 ms here, so that whoever sleeps is woken by ticks again and again. */

#define TICKS 3
static int64_t after_ticks(void) { return mp_now_ns() + TICKS * MP_TICK_NS; }

/* ---- what everybody may be told ----------------------------------------------------------------------------------------------- */

/* Of a call with a deadline: done, not to be done, or too late; and not late before the deadline. */
static bool done_or_late(int outcome, int nothing, int64_t deadline) {
    if (outcome == MP_TIMED_OUT)
        check(mp_now_ns() >= deadline);
    else if (outcome != MP_OK)
        check_equal(outcome, nothing);
    return outcome == MP_OK;
}

static bool again(int outcome) { return outcome == MP_TICK || outcome == MP_INTERRUPTED; }

/* ---- queues --------------------------------------------------------------------------------------------------------------------- */

/* Numbers: 100 and 101 are the child's, 201... the parent's, 301... a bystander's; 1 to 3 were there before. */
#define MOST_NUMBERS 400
static struct stop_shared {
    volatile int received[MOST_NUMBERS]; /* how often, by whomever */
    volatile int put[MOST_NUMBERS];
    _Atomic int64_t second_wait; /* when it began; 0: it has not */
} *record;
static uint32_t latest[4]; /* of each sender, received by the parent */

static void note_put(uint32_t number) { __atomic_fetch_add(&record->put[number], 1, __ATOMIC_SEQ_CST); }
static void note_received(uint32_t number) {
    check(number < MOST_NUMBERS);
    __atomic_fetch_add(&record->received[number], 1, __ATOMIC_SEQ_CST);
}
static void received_in_order(uint32_t number) {
    note_received(number);
    check(number > latest[number / 100]);
    latest[number / 100] = number;
}
static uint32_t number_of(struct mp_item *item) {
    uint32_t number;
    check_equal(item->size, sizeof number);
    memcpy(&number, item->data, sizeof number);
    return number;
}

static int put_until(uint32_t number, int64_t deadline) {
    struct mp_message m = {.kind = MP_BODY_INLINE};
    memcpy(m.data, &number, sizeof number);
    int outcome = mp_queue_try_send(&queue, &m, sizeof number, 0);
    while (outcome == MP_BUSY || again(outcome))
        outcome = mp_queue_send(&queue, &m, sizeof number, 0, deadline);
    if (outcome == MP_OK)
        note_put(number);
    return outcome;
}
static int put_many_until(uint32_t first, uint32_t count, int64_t deadline) {
    unsigned char bodies[256];
    uint32_t used = 0;
    int outcome;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = first + i;
        struct mp_body *body = (struct mp_body *)(bodies + used);
        body->length = 1 + sizeof number;
        body->body[0] = MP_BODY_INLINE;
        memcpy(body->body + 1, &number, sizeof number);
        used += mp_body_size(body->length);
    }
    do {
        uint64_t sent = mp_queue_send_many(&queue, bodies, count, 0, deadline, &outcome);
        for (uint64_t i = 0; i < sent; i++)
            note_put(first + (uint32_t)i);
        check(sent == count || outcome != MP_OK);
        check(sent == 0 || !again(outcome));
    } while (again(outcome));
    return outcome;
}
static int take_until(struct mp_item *item, int64_t deadline) {
    int outcome = mp_queue_try_take(&queue, item);
    while (outcome == MP_BUSY || again(outcome))
        outcome = mp_queue_take(&queue, item, deadline);
    return outcome;
}
/* As get(timeout=...): until there is a message, or the deadline. */
static int wait_and_take(struct mp_item *item, int64_t deadline) {
    uint32_t epoch = mp_room_enter(&queue.q->getters);
    int outcome;
    while ((outcome = take_until(item, deadline)) == MP_EMPTY) {
        outcome = mp_room_wait(f, &queue.q->getters, deadline);
        if (outcome != MP_OK && !again(outcome))
            break;
        epoch = mp_room_stay(&queue.q->getters, epoch);
    }
    mp_room_leave(&queue.q->getters, epoch);
    if (outcome != MP_OK)
        mp_room_ring(f, &queue.q->getters, false);
    return outcome;
}

/* Bystanders. They end when they have done what they are there for. */
static int get_in_room(void) {
    struct mp_item item;
    check_equal(wait_and_take(&item, -1), MP_OK);
    note_received(number_of(&item));
    return 0;
}
static int get_in_msgrcv(void) {
    struct mp_item item;
    int outcome = take_until(&item, -1);
    while (outcome == MP_EMPTY || again(outcome))
        outcome = mp_queue_await(&queue, &item);
    check_equal(outcome, MP_OK);
    note_received(number_of(&item));
    return 0;
}
static int put_two(void) {
    check_equal(put_until(301, -1), MP_OK);
    check_equal(put_until(302, -1), MP_OK);
    return 0;
}
static int put_two_with_room(void) { /* into a bounded queue */
    for (uint32_t number = 301; number <= 302; number++) {
        uint32_t epoch = mp_room_enter(&queue.q->putters);
        int outcome;
        while ((outcome = put_until(number, -1)) == MP_FULL) {
            outcome = mp_room_wait(f, &queue.q->putters, -1);
            check(outcome == MP_OK || again(outcome));
            epoch = mp_room_stay(&queue.q->putters, epoch);
        }
        mp_room_leave(&queue.q->putters, epoch);
        check_equal(outcome, MP_OK);
    }
    return 0;
}
static int finish_task(void) {
    int outcome;
    do
        outcome = mp_queue_task_done(&queue, -1);
    while (again(outcome));
    check(outcome == MP_OK || outcome == MP_NONE_LEFT);
    return 0;
}

static void get_without_waiting(void) {
    struct mp_item item;
    int64_t deadline = mp_queue_soon();
    if (done_or_late(take_until(&item, deadline), MP_EMPTY, deadline))
        received_in_order(number_of(&item));
}
static void get_with_deadline(void) {
    struct mp_item item;
    int64_t deadline = after_ticks();
    if (done_or_late(wait_and_take(&item, deadline), MP_TIMED_OUT, deadline))
        received_in_order(number_of(&item));
}
static void get_many_without_waiting(void) {
    struct mp_item items[8];
    uint32_t count;
    int outcome;
    int64_t deadline = mp_queue_soon();
    do
        outcome = mp_queue_take_many(&queue, items, 8, &count, deadline);
    while (again(outcome));
    done_or_late(outcome, MP_EMPTY, deadline);
    for (uint32_t i = 0; i < count; i++)
        received_in_order(number_of(&items[i]));
}
static void look_at_queue(void) {
    uint64_t bytes, in_use, segments_used;
    check(mp_queue_size(&queue) >= 0);
    check(mp_queue_room(&queue) >= 0);
    check(mp_arena_trim(&queue, 0) >= 0);
    mp_arena_usage(&queue, &bytes, &in_use, &segments_used);
}

/* A queue without a limit: putting does not wait for the child, wherever it stands. */
static void others_use_queue(void) {
    bystander(get_in_room);
    if (!(queue.flags & MP_QUEUE_COUNTED))
        bystander(get_in_msgrcv);
    pid_t putter = bystander(put_two);
    int64_t began = mp_now_ns();
    check_equal(put_until(201, -1), MP_OK);
    check_equal(put_many_until(202, 2, -1), MP_OK);
    check_equal(put_until(204, -1), MP_OK);
    check(mp_now_ns() - began < PATIENCE_NS / 4);
    bystander_ends(putter);
    look_at_queue();
    check(mp_queue_size(&queue) > 0 || !child_has_lock());
    get_without_waiting();
    get_with_deadline();
    get_many_without_waiting();
}
static void others_use_bounded_queue(void) {
    bystander(put_two_with_room);
    bystander(get_in_room);
    int64_t deadline = mp_queue_soon();
    done_or_late(put_until(201, deadline), MP_FULL, deadline);
    deadline = after_ticks();
    done_or_late(put_until(202, deadline), MP_FULL, deadline);
    deadline = after_ticks();
    done_or_late(put_many_until(203, 2, deadline), MP_FULL, deadline);
    look_at_queue();
    get_without_waiting();
    get_with_deadline();
}
static void others_use_counted_queue(void) {
    others_use_queue();
    int64_t deadline = after_ticks();
    int outcome;
    do
        outcome = mp_queue_task_done(&queue, deadline);
    while (again(outcome));
    done_or_late(outcome, MP_NONE_LEFT, deadline);
    bystander(finish_task);
    deadline = after_ticks();
    do
        outcome = mp_queue_unfinished(&queue, deadline) < 0 ? errno : MP_OK;
    while (again(outcome));
    done_or_late(outcome, MP_OK, deadline);
}
/* The parent has had the lock all the time, so that the child had to post; the child may be in the middle of that. */
static void others_use_queue_after_release(void) {
    check(lock_word() & MP_LOCK_OWNER);
    mp_queue_unlock(&queue);
    others_use_queue();
}

/* Bystanders who wait for a message, or for room, get it, until all have ended. */
static void serve_bystanders(void) {
    uint32_t more = 290;
    for (int64_t deadline = mp_now_ns() + PATIENCE_NS; bystander_count != 0;) {
        struct mp_item item;
        int status;
        pid_t pid = waitpid(bystanders[0], &status, WNOHANG);
        int64_t size = mp_queue_size(&queue);
        check(mp_now_ns() < deadline);
        check(size >= 0);
        if (pid != 0) {
            check(pid == bystanders[0] && WIFEXITED(status) && WEXITSTATUS(status) == 0);
            bystanders[0] = bystanders[--bystander_count];
        } else if (size == 0 && more < 300) {
            check_equal(put_until(more++, -1), MP_OK);
        } else if (queue.b->size != 0 && (uint64_t)size == queue.b->size) {
            if (take_until(&item, -1) == MP_OK)
                received_in_order(number_of(&item));
        } else {
            sched_yield();
        }
    }
}

/* No token was lost: one who sleeps in msgrcv(2) is woken. */
static void wake_sleeper(void) {
    pid_t sleeper = bystander(get_in_msgrcv);
    wait_until_equal(bystander_sleeps, 1);
    check_equal(put_until(299, -1), MP_OK);
    bystander_ends(sleeper);
}

static void check_whole_queue(bool finished) {
    struct mp_item item;
    int outcome;
    serve_bystanders();
    while ((outcome = take_until(&item, -1)) == MP_OK)
        received_in_order(number_of(&item));
    check_equal(outcome, MP_EMPTY);
    if (queue.b->size == 0 && !(queue.flags & MP_QUEUE_COUNTED))
        wake_sleeper();
    for (uint32_t number = 0; number < MOST_NUMBERS; number++)
        if (record->received[number] != record->put[number])
            fail("%u was put %d times and received %d times", number, record->put[number], record->received[number]);
    check_equal(lock_word() & (MP_LOCK_OWNER | MP_LOCK_LOOK), 0);
    check_equal(atomic_load(mp_posted(queue.b)), 0);
    check_equal(atomic_load(&queue.q->spilled), 0);
    check_equal(atomic_load(&queue.q->token) & (MP_TOKEN_SUSPECT | MP_TOKEN_REPAIR), 0);
    no_queue();
}
static void check_whole_counted_queue(bool finished) {
    struct mp_item item;
    int64_t taken = 0;
    serve_bystanders();
    while (take_until(&item, -1) == MP_OK)
        received_in_order(number_of(&item));
    for (uint32_t number = 0; number < MOST_NUMBERS; number++)
        taken += record->received[number];
    int64_t unfinished = mp_queue_unfinished(&queue, -1);
    /* The child, the parent and a bystander may have finished one each. */
    check(unfinished <= taken && unfinished >= taken - 3);
    for (int64_t i = 0; i < unfinished; i++)
        check_equal(mp_queue_task_done(&queue, -1), MP_OK);
    check_equal(mp_queue_task_done(&queue, -1), MP_NONE_LEFT);
    check_whole_queue(finished);
}

/* ---- what the child does */

static void child_puts(void) {
    check_equal(put_until(100, -1), MP_OK);
    check_equal(put_until(101, -1), MP_OK);
}
static void child_puts_many(void) { check_equal(put_many_until(100, 2, -1), MP_OK); }
static void child_puts_or_not(void) {
    int64_t deadline = after_ticks();
    done_or_late(put_until(100, deadline), MP_FULL, deadline);
}
static void child_gets(void) {
    struct mp_item item;
    int outcome = take_until(&item, -1);
    if (outcome == MP_OK)
        note_received(number_of(&item));
    else
        check_equal(outcome, MP_EMPTY);
}
static void child_gets_many(void) {
    struct mp_item items[2];
    uint32_t count;
    int outcome;
    do
        outcome = mp_queue_take_many(&queue, items, 2, &count, -1);
    while (again(outcome));
    check(outcome == MP_OK || outcome == MP_EMPTY);
    for (uint32_t i = 0; i < count; i++)
        note_received(number_of(&items[i]));
}
/* It has the token when it finds that it does not get the lock. */
static void child_gives_token_back(void) {
    struct mp_item item;
    ssize_t n = msgrcv(queue.id, &item.message, MP_BODY_SIZE, -(MP_TYPE_LEVEL - 1), IPC_NOWAIT);
    item.token = n >= 0 ? item.message.type : 0;
    int outcome = mp_queue_take(&queue, &item, mp_now_ns());
    if (outcome == MP_OK)
        note_received(number_of(&item));
    else
        check(outcome == MP_TIMED_OUT || outcome == MP_EMPTY);
}
static void child_awaits(void) { get_in_msgrcv(); }
static void wake_child(void) { check_equal(put_until(200, -1), MP_OK); }
static void others_use_queue_and_feed_child(void) {
    others_use_queue();
    check_equal(put_many_until(205, 4, -1), MP_OK); /* for it, and for those beside it that have got nothing */
}
static void child_finishes_task(void) { finish_task(); }

static void begin(void) {
    memset(record, 0, sizeof *record);
    memset(latest, 0, sizeof latest);
}
static void note_3(uint32_t first) {
    for (uint32_t number = first; number < first + 3; number++)
        note_put(number);
}
static void stop_empty(void) {
    begin();
    setup_empty_queue();
}
static void stop_with_token(void) {
    begin();
    setup_queue_with_token();
}
static void have_queue(uint64_t maxsize, uint32_t flags) {
    begin();
    block = make(MP_KIND_QUEUE);
    check(mp_block_msgget(f, block, 0600) >= 0);
    check_equal(mp_queue_make(f, block, maxsize, flags), MP_OK);
    mp_block_ready(f, block);
    check_equal(mp_queue_open(&queue, f, block), MP_OK);
}
static void stop_bounded(void) {
    have_queue(3, 0);
    check_equal(put_until(1, -1), MP_OK);
    check_equal(put_until(2, -1), MP_OK);
}
static void stop_counted(void) {
    have_queue(0, MP_QUEUE_COUNTED);
    for (uint32_t number = 1; number <= 3; number++)
        check_equal(put_until(number, -1), MP_OK);
    get_without_waiting();
}
/* The kernel queue takes nothing any more but tokens, and the queue has lanes. */
static void stop_full_priority(void) {
    struct msqid_ds ds;
    have_queue(0, MP_QUEUE_PRIORITY);
    check(msgctl(queue.id, IPC_STAT, &ds) == 0);
    ds.msg_qbytes = 4;
    check(msgctl(queue.id, IPC_SET, &ds) == 0);
    check_equal(put_until(1, -1), MP_OK);
}
static void stop_3_in_kernel(void) {
    begin();
    setup_3_in_kernel();
    note_3(1);
}
static void stop_3_in_spill(void) {
    begin();
    setup_3_in_spill();
    note_3(1);
}
static void stop_in_both(void) {
    begin();
    setup_1_in_kernel_2_in_spill();
    note_3(1);
}
static void stop_end_of_streak(void) {
    begin();
    setup_end_of_streak();
    note_3(1);
}
static void stop_locked(void) {
    stop_with_token();
    check(mp_lock_try(f, queue.b, 0));
}
static void stop_3_in_spill_locked(void) {
    stop_3_in_spill();
    check(mp_lock_try(f, queue.b, 0));
}
static void stop_empty_locked(void) { /* there is room in the kernel queue, and no token */
    stop_empty();
    check(mp_lock_try(f, queue.b, 0));
}
/* Something is posted that whoever gets the lock next has to collect. */
static void post_three(uint32_t first) {
    for (uint32_t number = first; number < first + 3; number++) {
        unsigned char bytes[16] = {[0] = 1 + sizeof number, [4] = MP_BODY_INLINE}; /* a struct mp_body */
        memcpy(bytes + 5, &number, sizeof number);
        check_equal(mp_spill_post(&queue, bytes, mp_body_size(1 + sizeof number), 1, 0), MP_OK);
    }
    note_3(first);
}
static void stop_3_posted(void) {
    stop_with_token();
    post_three(1);
}
static void stop_3_posted_priority(void) {
    stop_full_priority();
    post_three(2);
}

/* ---- the end of a queue ------------------------------------------------------------------------------------------------------------- */

/* The child shuts the queue down, and stands still in it: others are told so or not, but nobody is told anything else. */
static void meet_the_end(void) {
    for (uint32_t number = 201; number <= 203; number++) {
        int outcome = put_until(number, -1); /* without a limit: it does not wait */
        check(outcome == MP_OK || outcome == MP_SHUT_DOWN);
    }
    for (int i = 0; i < 8; i++) {
        struct mp_item item;
        int64_t deadline = after_ticks();
        int outcome = wait_and_take(&item, deadline);
        if (outcome == MP_OK)
            received_in_order(number_of(&item));
        else if (outcome != MP_SHUT_DOWN)
            done_or_late(outcome, MP_TIMED_OUT, deadline);
        if (outcome != MP_OK)
            break;
    }
}
static void child_shuts_down(void) { check_equal(shut_down(false), MP_OK); }
static void child_shuts_down_at_once(void) { check_equal(shut_down(true), MP_OK); }
static void take_to_the_end_in_order(void) {
    struct mp_item item;
    int outcome;
    while ((outcome = take_until(&item, -1)) == MP_OK)
        received_in_order(number_of(&item));
    check_equal(outcome, MP_SHUT_DOWN);
}
static void check_whole_end(bool finished) {
    take_to_the_end_in_order();
    for (uint32_t number = 0; number < MOST_NUMBERS; number++)
        if (record->received[number] != record->put[number])
            fail("%u was put %d times and received %d times", number, record->put[number], record->received[number]);
    has_ended();
}
static void check_dropped_end(bool finished) {
    take_to_the_end_in_order();
    for (uint32_t number = 0; number < MOST_NUMBERS; number++)
        check(record->received[number] <= record->put[number]);
    has_ended();
}

/* ---- how many ----------------------------------------------------------------------------------------------------------------------- */

/* Three messages fill a bounded queue, and neither put nor taken is any: however the tokens are made suspect and exact again
 * meanwhile, and whoever stands still in the middle, there are three. */
static void put_3(void) {
    for (uint32_t number = 1; number <= 3; number++)
        check_equal(put_until(number, -1), MP_OK);
}
static void stop_full_in_spill(void) {
    have_queue(3, 0);
    atomic_fetch_or(&queue.q->token, MP_TOKEN_OUT); /* as end_streak() does */
    check_equal(mp_queue_send_token(&queue), MP_OK);
    put_3();
    check_equal(atomic_load(&queue.q->spilled), 3);
}
static void stop_full_in_kernel(void) {
    have_queue(3, 0);
    put_3();
    check_equal(atomic_load(&queue.q->spilled), 0);
    atomic_fetch_or(&queue.q->token, MP_TOKEN_OUT);
    check_equal(mp_queue_send_token(&queue), MP_OK);
}
static void stop_full_and_suspect(void) {
    stop_full_in_spill();
    mp_queue_heal(f, block);
}
static void stop_full_in_kernel_and_suspect(void) {
    stop_full_in_kernel();
    mp_queue_heal(f, block);
}
static void child_heals(void) { mp_queue_heal(f, block); }
static void child_finds_it_full(void) {
    struct mp_message m = {.kind = MP_BODY_INLINE};
    check_equal(mp_queue_send(&queue, &m, 4, 0, -1), MP_FULL);
}
static void child_counts(void) { check_equal(mp_queue_size(&queue), 3); }
static void others_count(void) {
    check_equal(mp_queue_size(&queue), 3);
    check_equal(mp_queue_room(&queue), 0);
}
/* Next to messages in the kernel queue a token may be counted, or not, while the lock's owner stands among the tokens. */
static void others_count_about(void) {
    int64_t size = mp_queue_size(&queue);
    check(size == 3 || (size == 2 && lock_word() & MP_LOCK_OWNER));
}
static void others_mend_tokens(void) {
    mp_queue_heal(f, block);
    int64_t deadline = after_ticks();
    check(!done_or_late(put_until(201, deadline), MP_FULL, deadline)); /* having made them exact, if it can have the lock */
    others_count();
}
static void others_make_tokens_suspect(void) { mp_queue_heal(f, block); }
static void check_whole_after_count(bool finished) {
    check_equal(mp_queue_size(&queue), 3); /* who counts makes the tokens exact, if they are suspect */
    check_whole_queue(finished);
}

/* ---- large messages --------------------------------------------------------------------------------------------------------------- */

#define LARGE_MESSAGE 70000

static int put_large_until(uint32_t number, int64_t deadline) {
    struct mp_message m = {.kind = MP_BODY_PIECE};
    struct mp_piece piece;
    unsigned char *data;
    int outcome = mp_piece_claim(&queue, LARGE_MESSAGE, &piece, &data);
    check_equal(outcome, MP_OK); /* needs no lock */
    memcpy(data, &number, sizeof number);
    memcpy(data + LARGE_MESSAGE - sizeof number, &number, sizeof number);
    memcpy(m.data, &piece, sizeof piece);
    outcome = mp_queue_try_send(&queue, &m, sizeof piece, 0);
    while (outcome == MP_BUSY || again(outcome))
        outcome = mp_queue_send(&queue, &m, sizeof piece, 0, deadline);
    check_equal(outcome, MP_OK);
    mp_piece_sent(&queue, &piece);
    note_put(number);
    return outcome;
}
static bool take_large_until(int64_t deadline, uint32_t *number) {
    struct mp_item item;
    uint32_t end;
    if (!done_or_late(take_until(&item, deadline), MP_EMPTY, deadline < 0 ? 0 : deadline))
        return false;
    check_equal(item.message.kind, MP_BODY_PIECE);
    check_equal(item.size, LARGE_MESSAGE);
    memcpy(number, item.data, sizeof *number);
    memcpy(&end, item.data + LARGE_MESSAGE - sizeof end, sizeof end);
    check_equal(end, *number);
    mp_piece_free(&queue, &item.piece);
    note_received(*number);
    return true;
}
static void child_puts_large(void) { put_large_until(100, -1); }
/* Only the first of them has to be posted, for it is large; the other must not overtake it through the kernel queue. */
static void child_puts_large_and_small(void) {
    put_large_until(100, -1);
    check_equal(put_until(101, -1), MP_OK);
}
static void take_both_kinds(void) {
    uint32_t number;
    struct mp_item item;
    while (take_until(&item, -1) == MP_OK) {
        memcpy(&number, item.data, sizeof number);
        if (item.message.kind == MP_BODY_PIECE)
            mp_piece_free(&queue, &item.piece);
        received_in_order(number);
    }
}
static void others_release_and_take(void) {
    check(lock_word() & MP_LOCK_OWNER);
    mp_queue_unlock(&queue);
    take_both_kinds();
    check_equal(put_until(201, -1), MP_OK);
}
static void check_whole_mixed(bool finished) {
    take_both_kinds();
    check_whole_queue(finished);
}
static void child_gets_large(void) {
    uint32_t number;
    take_large_until(-1, &number);
}
static void stop_large(void) {
    stop_empty();
    put_large_until(1, -1);
}
static void others_use_large(void) {
    uint32_t number;
    put_large_until(201, -1);
    look_at_queue();
    take_large_until(after_ticks(), &number);
    put_large_until(202, -1);
}
static void check_whole_large(bool finished) {
    uint32_t number;
    while (take_large_until(-1, &number)) {
        check(number > latest[number / 100]);
        latest[number / 100] = number;
    }
    uint64_t bytes, in_use, segments_used;
    mp_arena_usage(&queue, &bytes, &in_use, &segments_used);
    check_equal(in_use, 0);
    check_whole_queue(finished);
}

/* ---- locks, semaphores, events, cells ------------------------------------------------------------------------------------------------ */

static int lock_until(int64_t deadline) {
    int outcome;
    do
        outcome = mp_lock_wait(f, block, deadline);
    while (again(outcome));
    return outcome;
}
static int lock_and_release(void) {
    check_equal(lock_until(-1), MP_OK);
    check_equal(mp_lock_release(f, block), MP_OK);
    return 0;
}
static void child_locks_and_releases(void) { lock_and_release(); }
static void others_lock(void) {
    bystander(lock_and_release);
    if (mp_lock_try(f, at(), 0))
        check_equal(mp_lock_release(f, block), MP_OK);
    int64_t deadline = after_ticks();
    if (done_or_late(lock_until(deadline), MP_OK, deadline))
        check_equal(mp_lock_release(f, block), MP_OK);
}
static void check_whole_lock(bool finished) {
    while (bystander_count > 0)
        bystander_ends(bystanders[0]);
    check_equal(lock_word() & (MP_LOCK_OWNER | MP_LOCK_DIED), 0);
}

static int sem_until(int64_t deadline) { /* the loop of SemaphoreBase.acquire() */
    int error, outcome = MP_OK;
    if (mp_sem_try(f, block, &error))
        return MP_OK;
    check_equal(error, 0);
    check_equal(mp_sem_enroll(f, block), MP_OK);
    while (!mp_sem_try(f, block, &error)) {
        check_equal(error, 0);
        if (outcome == MP_TIMED_OUT)
            break;
        outcome = mp_bell_await(f, block, -1, deadline);
        if (again(outcome))
            outcome = MP_OK;
        check(outcome == MP_OK || outcome == MP_TIMED_OUT);
    }
    mp_sem_withdraw(f, block);
    return outcome;
}
static int sem_cycle(void) {
    check_equal(sem_until(-1), MP_OK);
    check_equal(mp_sem_release(f, block), MP_OK);
    return 0;
}
static void setup_semaphore_1(void) { have_semaphore(1, 5); }
static void child_acquires_and_releases(void) { sem_cycle(); }
static void others_acquire(void) {
    bystander(sem_cycle);
    if (sem_try())
        check_equal(mp_sem_release(f, block), MP_OK);
    int64_t deadline = after_ticks();
    if (done_or_late(sem_until(deadline), MP_OK, deadline))
        check_equal(mp_sem_release(f, block), MP_OK);
}
static void check_whole_semaphore(bool finished) {
    while (bystander_count > 0)
        bystander_ends(bystanders[0]);
    semaphore_is_whole(1);
}

static void setup_event(void) {
    block = make(MP_KIND_EVENT);
    mp_block_ready(f, block);
    check_equal(mp_event_init(f, block), MP_OK);
}
static int event_wait(void) {
    int outcome;
    do
        outcome = mp_bell_await(f, block, 0, -1);
    while (again(outcome));
    return outcome;
}
static void child_sets_and_clears(void) {
    check_equal(mp_event_set(f, block), MP_OK);
    check_equal(mp_event_clear(f, block), MP_OK);
    check(mp_event_is_set(f, block) >= 0);
}
static void others_use_event(void) {
    pid_t waiter = bystander(event_wait);
    int64_t deadline = after_ticks();
    int outcome;
    do
        outcome = mp_bell_await(f, block, 0, deadline);
    while (again(outcome));
    done_or_late(outcome, MP_OK, deadline);
    check_equal(mp_event_set(f, block), MP_OK);
    check_equal(mp_event_is_set(f, block), 1);
    bystander_ends(waiter);
    check_equal(mp_event_clear(f, block), MP_OK);
    check_equal(mp_event_is_set(f, block), 0);
}
static void check_whole_event(bool finished) {
    check_equal(mp_event_set(f, block), MP_OK);
    check_equal(mp_event_is_set(f, block), 1);
    check_equal(mp_event_clear(f, block), MP_OK);
    check_equal(mp_event_is_set(f, block), 0);
}

static int cell_until(int64_t deadline) {
    int64_t cell = mp_cell_enter(f, block, 0, 0);
    int outcome = MP_OK;
    check(cell >= 0);
    while (outcome != MP_TIMED_OUT && mp_cell_state(atomic_load(&f->seg->cells[cell].word)) == MP_CELL_WAITING) {
        outcome = mp_cell_wait(f, (uint32_t)cell, deadline);
        check(outcome == MP_OK || outcome == MP_TIMED_OUT || again(outcome));
    }
    if (mp_cell_cancel(f, (uint32_t)cell))
        return MP_TIMED_OUT;
    mp_cell_leave(f, (uint32_t)cell);
    return MP_OK;
}
static int wait_in_cell(void) { return cell_until(-1); }
static void child_waits_in_cell(void) { cell_until(after_ticks()); }
static void let_child_wait(void) {}
static void child_notifies(void) { mp_cells_notify(f, block, 1); }
static void others_use_cells(void) {
    pid_t waiter = bystander(wait_in_cell);
    int64_t deadline = after_ticks();
    done_or_late(cell_until(deadline), MP_OK, deadline);
    check(mp_cells_waiting(f, block) >= 0);
    for (int64_t until = mp_now_ns() + PATIENCE_NS; bystander_count != 0;) {
        int status;
        check(mp_now_ns() < until);
        mp_cells_notify(f, block, -1);
        if (waitpid(waiter, &status, WNOHANG) == waiter) {
            check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            bystander_count--;
        }
        sched_yield();
    }
}

static void child_reads(void) { rw_read_cycle(); }
static void child_writes(void) { rw_write_cycle(); }
static void others_read_and_write(void) {
    bystander(rw_read_cycle);
    bystander(rw_write_cycle);
    int64_t deadline = after_ticks();
    if (done_or_late(rw_read_until(deadline), MP_OK, deadline))
        mp_rw_read_release(f, block);
    deadline = after_ticks();
    if (done_or_late(rw_write_until(deadline), MP_OK, deadline))
        rw_written();
}
/* Who reads or writes is waited for, and who is to read next; all others come in. */
static void others_read_beside(void) {
    int64_t deadline = after_ticks();
    check_equal(rw_read_until(deadline), MP_OK);
    mp_rw_read_release(f, block);
}
static void setup_rw_writer_beside(void) {
    make_rwlock();
    bystander(rw_write_cycle);
}

/* ---- broadcasts --------------------------------------------------------------------------------------------------------------------- */

static void child_puts_broadcast(void) {
    int outcome;
    do
        outcome = put_now(100, -1);
    while (again(outcome));
    check_equal(outcome, MP_OK);
}
static void child_gets_broadcast(void) { shared->ran[0] = (int)get(mine); }
static void child_subscribes_and_gets(void) {
    childs = subscribe();
    while (get(childs) != 0)
        ;
    mp_block_drop(f, childs);
}
/* Who puts waits for who has the lock; who gets, subscribes or ends waits for nobody. */
static void others_use_broadcast(void) {
    int64_t deadline = after_ticks();
    uint32_t number, index = subscribe();
    int outcome;
    do
        outcome = put_now(201, deadline);
    while (again(outcome));
    bool is_put = done_or_late(outcome, MP_OK, deadline);
    deadline = after_ticks();
    outcome = get_waiting(index, &number, deadline);
    check(done_or_late(outcome, MP_OK, deadline) || !is_put);
    check(outcome != MP_OK || number == 201 || number == 100);
    mp_block_drop(f, index);
    while (get(second) != 0)
        ;
}
static void setup_half_full_broadcast(void) {
    setup_broadcast();
    put(1);
}
static void check_whole_broadcast(bool finished) {
    while (get(mine) != 0)
        ;
    while (get(second) != 0)
        ;
    put(9);
    gets(mine, 9, 9);
    gets(second, 9, 9);
    no_broadcast();
}

/* ---- a pool's worker ------------------------------------------------------------------------------------------------------------------- */

/* The pool looks at the ledger of a worker that stands still, takes back what it can, and gives up what it cannot. */
static void others_use_ledger(void) {
    uint64_t claimed = mp_ledger_claimed(ledger());
    check(claimed <= TASKS);
    taken_from = mp_ledger_revoke(ledger(), 1, 4, TASKS);
    check(taken_from > claimed);
}
static void child_finishes_tasks(void) {
    for (uint64_t number = 1; number <= TASKS; number++)
        if (mp_ledger_start(ledger(), number, number)) {
            shared->ran[number] = 1;
            check(!mp_ledger_finish(ledger(), number, number + 1));
        }
}

/* ---- wait records ------------------------------------------------------------------------------------------------------------------------------ */

/* A record that is being written is not read, and one that is, is one wait's: not where one was, and since when another is. */
static struct mp_wait *parents;
static void setup_waits(void) {
    count_objects();
    parents = NULL;
}
static void setup_parents_wait(void) {
    setup_waits();
    parents = mp_wait_enter(f, MP_WAIT_RING, 100);
}
static void child_waits_twice(void) {
    mp_wait_leave(mp_wait_enter(f, MP_WAIT_RING, 100), false);
    mp_wait_leave(mp_wait_enter(f, MP_WAIT_ZERO, 200), false);
}
static void others_read_it(void) {
    struct mp_waiting waiting;
    int n = waits_now(&waiting);
    check(n <= 1);
    if (n == 0)
        return;
    check_equal(waiting.tid, child_pid);
    check(waiting.slot != f->slot && mp_slot_lives(f, waiting.slot));
    check(waiting.since_ns > mp_now_ns() - PATIENCE_NS && waiting.since_ns <= mp_now_ns());
    check(waiting.where == (waiting.kind == MP_WAIT_RING ? 100u : 200u));
}
static void child_reads_it(void) {
    struct mp_waiting waiting;
    bool read = mp_wait_read(f, (uint32_t)(parents - f->seg->waits), &waiting);
    int64_t parents_second = atomic_load(&record->second_wait);
    if (!read)
        return;
    check(waiting.kind == MP_WAIT_RING && (waiting.where == 100 || waiting.where == 200));
    if (parents_second != 0)
        check((waiting.where == 200) == (waiting.since_ns >= parents_second));
}
static void others_wait_again(void) {
    mp_wait_leave(parents, false);
    atomic_store(&record->second_wait, mp_now_ns());
    struct mp_wait *again = mp_wait_enter(f, MP_WAIT_RING, 200);
    check(again == parents);
}
static void setup_parents_first_wait(void) {
    setup_parents_wait();
    atomic_store(&record->second_wait, 0);
}
static void check_whole_waits(bool finished) {
    mp_wait_leave(parents, false);
    no_record_is_left();
}

/* ---- the list ----------------------------------------------------------------------------------------------------------------------------- */

static const struct scenario stop_scenarios[] = {
    {"put", stop_empty, NULL, child_puts, NULL, others_use_queue, check_whole_queue},
    {"put-by-spill", stop_with_token, NULL, child_puts, NULL, others_use_queue, check_whole_queue},
    {"put-to-full-kernel-queue", stop_full_priority, NULL, child_puts, NULL, others_use_queue, check_whole_queue},
    {"put-many", stop_empty, NULL, child_puts_many, NULL, others_use_queue, check_whole_queue},
    {"put-bounded", stop_bounded, NULL, child_puts_or_not, NULL, others_use_bounded_queue, check_whole_queue},
    {"put-counted", stop_counted, NULL, child_puts, NULL, others_use_counted_queue, check_whole_counted_queue},
    {"post", stop_locked, NULL, child_puts, NULL, others_use_queue_after_release, check_whole_queue},
    {"post-many", stop_locked, NULL, child_puts_many, NULL, others_use_queue_after_release, check_whole_queue},
    {"post-large", stop_empty_locked, NULL, child_puts_large_and_small, NULL, others_release_and_take, check_whole_mixed},
    {"give-token-back", stop_3_in_spill_locked, NULL, child_gives_token_back, NULL, others_use_queue_after_release,
     check_whole_queue},
    {"collect", stop_3_posted, NULL, child_gets, NULL, others_use_queue, check_whole_queue},
    {"collect-priorities", stop_3_posted_priority, NULL, child_gets, NULL, others_use_queue, check_whole_queue},
    {"get", stop_3_in_kernel, NULL, child_gets, NULL, others_use_queue, check_whole_queue},
    {"get-from-spill", stop_3_in_spill, NULL, child_gets, NULL, others_use_queue, check_whole_queue},
    {"get-from-both", stop_in_both, NULL, child_gets, NULL, others_use_queue, check_whole_queue},
    {"get-last-of-streak", stop_end_of_streak, NULL, child_gets, NULL, others_use_queue, check_whole_queue},
    {"get-many", stop_3_in_spill, NULL, child_gets_many, NULL, others_use_queue, check_whole_queue},
    {"get-bounded", stop_bounded, NULL, child_gets, NULL, others_use_bounded_queue, check_whole_queue},
    {"get-counted", stop_counted, NULL, child_gets, NULL, others_use_counted_queue, check_whole_counted_queue},
    {"get-asleep", stop_with_token, NULL, child_awaits, wake_child, others_use_queue_and_feed_child, check_whole_queue},
    {"task-done", stop_counted, NULL, child_finishes_task, NULL, others_use_counted_queue, check_whole_counted_queue},
    {"shutdown", stop_in_both, NULL, child_shuts_down, NULL, meet_the_end, check_whole_end},
    {"shutdown-drop", stop_in_both, NULL, child_shuts_down_at_once, NULL, meet_the_end, check_dropped_end},
    {"heal", stop_full_in_spill, NULL, child_heals, NULL, others_count, check_whole_after_count},
    {"heal-in-kernel", stop_full_in_kernel, NULL, child_heals, NULL, others_count, check_whole_after_count},
    {"mend", stop_full_and_suspect, NULL, child_finds_it_full, NULL, others_count, check_whole_queue},
    {"mend-in-kernel", stop_full_in_kernel_and_suspect, NULL, child_finds_it_full, NULL, others_count_about, check_whole_queue},
    {"count", stop_full_in_spill, NULL, child_counts, NULL, others_mend_tokens, check_whole_queue},
    {"count-in-kernel", stop_full_in_kernel, NULL, child_counts, NULL, others_mend_tokens, check_whole_queue},
    {"count-suspect", stop_full_in_kernel, NULL, child_counts, NULL, others_make_tokens_suspect, check_whole_queue},
    {"large-put", stop_large, NULL, child_puts_large, NULL, others_use_large, check_whole_large},
    {"large-get", stop_large, NULL, child_gets_large, NULL, others_use_large, check_whole_large},
    {"lock", setup_lock, NULL, child_locks_and_releases, NULL, others_lock, check_whole_lock},
    {"semaphore", setup_semaphore_1, NULL, child_acquires_and_releases, NULL, others_acquire, check_whole_semaphore},
    {"event", setup_event, NULL, child_sets_and_clears, NULL, others_use_event, check_whole_event},
    {"cell-wait", setup_condition, NULL, child_waits_in_cell, let_child_wait, others_use_cells, check_no_cells},
    {"cell-notify", setup_condition, NULL, child_notifies, NULL, others_use_cells, check_no_cells},
    {"rw-read", make_rwlock, NULL, child_reads, NULL, others_read_and_write, check_rw_free},
    {"rw-read-beside-another", make_rwlock, NULL, child_reads, NULL, others_read_beside, check_rw_free},
    {"rw-write", make_rwlock, NULL, child_writes, NULL, others_read_and_write, check_rw_free},
    {"rw-read-beside-a-writer", setup_rw_writer_beside, NULL, child_reads, let_child_wait, others_read_and_write,
     check_rw_free},
    {"rw-write-beside-a-writer", setup_rw_writer_beside, NULL, child_writes, let_child_wait, others_read_and_write,
     check_rw_free},
    {"broadcast-put", setup_half_full_broadcast, NULL, child_puts_broadcast, NULL, others_use_broadcast, check_whole_broadcast},
    {"broadcast-get", setup_half_full_broadcast, NULL, child_gets_broadcast, NULL, others_use_broadcast, check_whole_broadcast},
    {"broadcast-subscribe", setup_half_full_broadcast, NULL, child_subscribes_and_gets, NULL, others_use_broadcast,
     check_whole_broadcast},
    {"ledger-start", setup_ledger, NULL, op_run_tasks, NULL, others_use_ledger, check_each_has_one},
    {"ledger-finish", setup_ledger, NULL, child_finishes_tasks, NULL, others_use_ledger, check_each_has_one},
    {"wait-record", setup_waits, NULL, child_waits_twice, NULL, others_read_it, check_whole_waits},
    {"wait-record-read", setup_parents_first_wait, NULL, child_reads_it, NULL, others_wait_again, check_whole_waits},
};

/* A short operation is stopped at each step, a long one where something has changed and at some of the steps between. While the
 * child has a lock, each costs others their deadlines: then only at every 16th of those. */
static long every(long length) { return length <= 300 ? 1 : length <= 2000 ? length / 300 + 1 : length / 60 + 1; }

static void run_stop_scenario(const struct scenario *s) {
    uint8_t *changes = calloc(ROOM, 1);
    if (record == NULL)
        record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(record != MAP_FAILED);
    now = s;
    long length = run(ROOM - 1, changes, ROOM), stops = 0, locked = 0;
    if (length < 0)
        fail("not finished after %d steps", ROOM - 1);
    for (long k = 0; k < length; k++) {
        bool has_lock = changes[k] & LOCKED;
        if (changes[k] & CHANGED || k % (has_lock ? 16 : every(length)) == 0) {
            run(k, NULL, 0);
            stops++;
            locked += has_lock;
        }
    }
    printf("%-34s %6ld instructions, stopped at %ld, with the lock at %ld\n", s->name, length, stops, locked);
    fflush(stdout);
    free(changes);
}

/* Scenarios of kill_every_step.c: jobs, which come back until somebody acknowledges them. However the child dies, each job that was
 * put is there, whole and once, or was acknowledged; and whoever waits for it gets it, or is told the end. */

#define JOB_SMALL 4u
#define JOB_LARGE 20000u
static uint32_t job_size(uint32_t number) { return number % 2 ? JOB_SMALL : JOB_LARGE; }

static struct mp_item job; /* in this process's hands */

static int send_job(struct mp_piece *piece) {
    struct mp_message m = {.kind = MP_BODY_PIECE};
    memcpy(m.data, piece, sizeof *piece);
    int outcome = send_message(&m, sizeof *piece);
    if (outcome == MP_OK)
        mp_piece_sent(&queue, piece);
    else
        mp_message_end(&queue, piece);
    return outcome;
}
static int put_job(uint32_t number) { /* as WorkMessages.put() */
    struct mp_piece piece;
    unsigned char *data;
    check_equal(mp_piece_claim(&queue, job_size(number), &piece, &data), MP_OK);
    for (uint32_t i = 0; i < job_size(number); i += sizeof number)
        memcpy(data + i, &number, sizeof number);
    mp_job_begin(&queue, &piece, MP_BODY_INLINE);
    return send_job(&piece);
}
static int take_next_job(void) {
    int outcome = mp_work_try_take(&queue, &job);
    while (outcome == MP_BUSY || outcome == MP_TICK)
        outcome = mp_work_take(&queue, &job, 0, -1);
    return outcome;
}
/* 0: there is none, or there will be none. */
static uint32_t take_job(void) {
    uint32_t number, other;
    int outcome = take_next_job();
    if (outcome == MP_EMPTY || outcome == MP_SHUT_DOWN)
        return 0;
    check_equal(outcome, MP_OK);
    memcpy(&number, job.data, sizeof number);
    check_equal(job.size, job_size(number));
    check_equal(job.job_kind, MP_BODY_INLINE);
    for (uint32_t i = 0; i < job.size; i += sizeof other) {
        memcpy(&other, job.data + i, sizeof other);
        check_equal(other, number);
    }
    return number;
}
static void acknowledge(void) { check(mp_work_acknowledge(&queue, &job.piece)); }
static void give_back(void) { check(mp_work_give_back(&queue, &job.piece)); }

/* Nothing is there, nobody has anything, and every piece is free. */
static void no_jobs(void) {
    uint64_t bytes, in_use, segments_used;
    check_equal(take_job(), 0);
    check_equal(mp_queue_size(&queue), 0);
    check_equal(mp_work_unfinished(&queue, -1), 0);
    mp_arena_usage(&queue, &bytes, &in_use, &segments_used);
    check_equal(in_use, 0);
    check_equal(atomic_load(&queue.q->token) & MP_TOKEN_SEEKING, 0);
    no_queue();
}
/* These, in this order, and no others. */
static void jobs_are(uint32_t next, uint32_t last) {
    for (; next <= last; next++) {
        check_equal(take_job(), next);
        check_equal(mp_queue_size(&queue), last - next);
        check_equal(mp_work_unfinished(&queue, -1), last - next + 1);
        acknowledge();
        check(!mp_work_acknowledge(&queue, &job.piece)); /* only once */
    }
    no_jobs();
}

static void setup_no_jobs(void) {
    have_queue_of(0, MP_QUEUE_WORK);
    put_job(1); /* makes the arena */
    put_job(2);
    check_equal(take_job(), 1);
    acknowledge();
    check_equal(take_job(), 2);
    acknowledge();
}
static void setup_jobs(void) {
    setup_no_jobs();
    for (uint32_t number = 1; number <= 3; number++)
        check_equal(put_job(number), MP_OK);
}

static void op_put_jobs(void) {
    put_job(1);
    put_job(2);
}
static void check_jobs_put(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size >= 0 && size <= 2 && (size == 2 || !finished));
    jobs_are(1, (uint32_t)size);
}

/* What the dead child had in its hands comes back before the others. */
static void op_take_job(void) { take_job(); }
static void check_all_jobs(bool finished) {
    check_equal(mp_queue_size(&queue), 3);
    check_equal(take_job(), 1);
    check(job.attempts == 2 || (!finished && job.attempts == 1));
    give_back();
    check_equal(take_job(), 1);
    acknowledge();
    jobs_are(2, 3);
}
static void setup_returned(void) {
    struct mp_item first;
    setup_jobs();
    check_equal(take_job(), 1);
    first = job;
    check_equal(take_job(), 2);
    give_back();
    job = first;
    give_back();
}
static void op_take_returned(void) { check_equal(take_job(), 1); }
static void check_returned(bool finished) {
    check_equal(mp_queue_size(&queue), 3);
    jobs_are(1, 3);
}
static void op_take_what_was_taken_often(void) {
    check_equal(mp_work_take(&queue, &job, 2, -1), MP_EMPTY);
    check_equal(mp_work_take(&queue, &job, 1, -1), MP_OK);
}

static void take_first(void) { check_equal(take_job(), 1); }
static void check_acknowledged(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size == 2 || (size == 3 && !finished && !seen));
    seen = size == 2;
    jobs_are(size == 2 ? 2 : 1, 3);
}
static void check_given_back(bool finished) { jobs_are(1, 3); }

/* Those who wait while the child has the only job: one of them gets it when it comes back. */
static void setup_one_job(void) {
    setup_no_jobs();
    put_job(1);
}
static int take_all_jobs(void) { /* as WorkMessages.take(), until the end, or until it has one */
    uint32_t epoch = mp_room_enter(&queue.q->getters);
    int outcome;
    while ((outcome = take_next_job()) == MP_EMPTY) {
        if (mp_room_wait(f, &queue.q->getters, -1) != MP_OK)
            return 4;
        epoch = mp_room_stay(&queue.q->getters, epoch);
    }
    mp_room_leave(&queue.q->getters, epoch);
    return outcome;
}
static int take_one_job(void) {
    int outcome = take_all_jobs();
    if (outcome != MP_OK)
        return 5;
    acknowledge();
    return 0;
}
static int take_jobs_until_shut(void) {
    int outcome;
    while ((outcome = take_all_jobs()) == MP_OK)
        acknowledge();
    return outcome == MP_SHUT_DOWN ? 0 : 6;
}
static void taker_waits(void) {
    bystander(take_one_job);
    wait_until_equal(bystander_sleeps, 1);
}
static void two_takers_wait_for_the_end(void) { two_wait(take_jobs_until_shut); }
static void check_taker_has_it(bool finished) {
    bystander_ends(bystanders[0]);
    no_jobs();
}
static void setup_one_job_and_shut(void) {
    setup_one_job();
    check_equal(shut_down(false), MP_OK);
}
static void check_all_are_told(bool finished) {
    while (bystander_count > 0)
        bystander_ends(bystanders[0]);
    check_equal(take_next_job(), MP_SHUT_DOWN);
    no_jobs();
}
/* The child shuts it down, while somebody else has a job and two wait. */
static void setup_out_and_waiting(void) {
    setup_one_job();
    take_first();
    two_takers_wait_for_the_end();
}
static void check_end_comes_with_the_last(bool finished) {
    appears_once(is_shut());
    if (!is_shut())
        check_equal(shut_down(false), MP_OK);
    check_equal(bystander_count, 2);
    give_back();
    check_all_are_told(finished);
}

static int join_jobs(void) { /* as WorkMessages.join() */
    struct mp_room *room = mp_joiners(queue.b);
    uint32_t epoch = mp_room_enter(room);
    while (mp_work_unfinished(&queue, -1) != 0) {
        if (mp_room_wait(f, room, -1) != MP_OK)
            return 4;
        epoch = mp_room_stay(room, epoch);
    }
    mp_room_leave(room, epoch);
    return 0;
}
static void joiner_waits(void) {
    bystander(join_jobs);
    wait_until_equal(bystander_sleeps, 1);
}
static void check_joiner_goes_on(bool finished) {
    uint32_t number = take_job();
    check(number == 0 || (number == 1 && !finished));
    if (number == 1)
        acknowledge();
    bystander_ends(bystanders[0]);
    no_jobs();
}

/* Queued, returned, and in somebody's hands; the child drops what it may. */
static struct mp_item kept;
static void setup_jobs_everywhere(void) {
    setup_returned();
    put_job(4);
    check_equal(take_job(), 1);
    kept = job;
}
static void check_jobs_dropped(bool finished) {
    check(is_shut() || !finished);
    appears_once(is_shut());
    if (!is_shut() || mp_job_count(&queue, false, true) != 0)
        check_equal(shut_down(true), MP_OK);
    check_equal(mp_queue_size(&queue), 0);
    check_equal(mp_work_unfinished(&queue, -1), 1);
    check_equal(take_next_job(), MP_SHUT_DOWN);
    job = kept;
    acknowledge();
    no_jobs();
}
/* What is given back then is dropped, too. */
static void drop_all(void) {
    take_first();
    check_equal(shut_down(true), MP_OK);
}
static void check_given_back_is_dropped(bool finished) {
    bystander_ends(bystanders[0]);
    check_equal(take_next_job(), MP_SHUT_DOWN);
    no_jobs();
}

/* Processes have died with jobs in their hands: who recovers dies, too, or who takes them. */
static int take_two_jobs_and_die(void) {
    check_equal(take_job(), 1);
    check_equal(take_job(), 2);
    raise(SIGKILL);
    return 0;
}
static void setup_dead_taker(void) {
    setup_jobs();
    dies(take_two_jobs_and_die);
}

/* Memory that a job refers to is held for each attempt. */
static void setup_job_with_memories(void) {
    struct mp_piece piece;
    have_queue_of(0, MP_QUEUE_WORK);
    have_two();
    write_message_with(2, &piece);
    mp_job_begin(&queue, &piece, MP_BODY_INLINE);
    check_equal(send_job(&piece), MP_OK);
    drop_memories(2);
}
static void adopt_memories(void) {
    uint32_t count;
    check(job.piece.carrier != 0);
    struct mp_references *r = mp_message_references(job.data, job.size, &count);
    check(r != NULL && count == 2);
    for (uint32_t i = 0; i < count; i++) {
        held[i] = mp_reference_block(r->blocks[i]);
        check_equal(mp_block_adopt(f, held[i], mp_reference_serial(r->blocks[i])), MP_OK);
        memory_is(held[i], 7 + i);
    }
    drop_memories(2);
}
static void op_try_job_with_memories(void) {
    check_equal(take_next_job(), MP_OK);
    adopt_memories();
    give_back();
}
static void op_do_job_with_memories(void) {
    check_equal(take_next_job(), MP_OK);
    adopt_memories();
    acknowledge();
}
static void check_job_with_memories(bool finished) {
    int64_t size = mp_queue_size(&queue);
    check(size == 1 || (size == 0 && now->operation == op_do_job_with_memories));
    check(!finished || now->operation == op_try_job_with_memories || size == 0);
    if (size == 1) {
        check_equal(live_blocks(MP_KIND_MEMORY), 2);
        op_try_job_with_memories();
        op_do_job_with_memories();
    }
    mp_recover(f);
    no_memory_is_held();
    no_jobs();
}
